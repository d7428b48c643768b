//! The messages between Lapidary's device server and its preload library.
//!
//! Vocabulary:
//! - *control socket*: one `SOCK_SEQPACKET` connection per client process, to the path in [`ENV_SOCKET`]. Carries
//!   [`control::Message`]s: hello, requests for channels, cancellations.
//! - *channel*: what one client thread makes its calls through: a shared [`channel::Page`] and a socket of its own
//!   that carries descriptors and wakes a sleeping client.
//! - *upcall*: within a call, the server asks the client to do something: send a descriptor, receive one, make a
//!   system call.
//! - *manifest*: the file in the device tree that tells the preload library which paths are the server's.
//! - *name* of a descriptor: what the server binds its own end of a socket pair to, so that `getpeername` on the
//!   client's end tells what the descriptor is, without asking the server.
//!
//! This crate knows no system call and allocates nothing. Memory ordering of the page is described in [`channel`].
#![no_std]

pub mod channel;
pub mod control;
pub mod manifest;
pub mod name;
pub mod spin;

/// Environment variable: path of the control socket.
pub const ENV_SOCKET: &str = "LAPIDARY_SOCKET";
/// Environment variable: folder that holds the device tree.
pub const ENV_TREE: &str = "LAPIDARY_TREE";
/// Version of everything in this crate. Both sides refuse a peer that has another.
pub const VERSION: u32 = 1;
