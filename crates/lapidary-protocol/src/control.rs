//! Messages on the control socket.
//!
//! Each is one packet of [`Message`]. The client sends [`HELLO`] first, with a descriptor of its `/proc/self/mem`, and
//! gets a [`WELCOME`]. Then [`NEW_CHANNEL`] any number of times, each answered by [`CHANNEL`] with two descriptors:
//! the shared page and the channel's socket. [`CANCEL`] has no answer. The server ends the connection of a
//! client that sends anything else.

use bytemuck::{Pod, Zeroable};

/// Client: `a` is the process id.
pub const HELLO: u32 = 1;
/// Server: the client is known.
pub const WELCOME: u32 = 2;
/// Client: wants a channel.
pub const NEW_CHANNEL: u32 = 3;
/// Server: here it is; `a` is its number.
pub const CHANNEL: u32 = 4;
/// Client: a signal arrived in the call that was handed over at turn `b` on channel `a`.
pub const CANCEL: u32 = 5;

/// A packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Message {
    /// One of this module's constants.
    pub kind: u32,
    /// [`VERSION`](crate::VERSION).
    pub version: u32,
    /// See `kind`.
    pub a: u64,
    /// See `kind`.
    pub b: u64,
}

impl Message {
    /// A message of this version.
    pub const fn new(kind: u32, a: u64, b: u64) -> Self {
        Self { kind, version: crate::VERSION, a, b }
    }
}
