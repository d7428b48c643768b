//! The command streamer: decodes a context's batches and executes their memory commands.
//!
//! A batch is a list of commands in GPU memory. The first dword of a command is its header; the top three bits are the client:
//!
//! | client | commands | here |
//! | --- | --- | --- |
//! | 0 | MI: memory, registers, flow control | executed ([`mi`]) |
//! | 2 | blitter | executed on copy engines ([`crate::blt`]) |
//! | 3 | 3D, compute and media | skipped by length and counted, but for `PIPE_CONTROL` |
//! | 5 | barriers | skipped by length |
//!
//! Anything else, and every encoding that the hardware reserves, is [`CsError::InvalidCommand`].
//!
//! * [`decode`]: from a header to a command and its length.
//! * [`regs`]: the registers that commands can reach. [`math`]: the arithmetic unit over them.
//! * [`mi`] and [`atomic`]: what the MI commands do.
//! * [`streamer`]: the instruction pointer, nested batches, waiting, resuming.
//!
//! Fetch is live: a command is read when it is executed, so batches may patch themselves, and other engines and the CPU may
//! patch them. Commands of one streamer take effect in order; there is no cache, so flushes and fences have nothing left to do.
//!
//! Per-process addresses only: the virtual GPU has no global address table, and the bits that choose between the two are
//! ignored, as hardware does for batches without privileges. There is no status page either: writes to it are dropped.
//!
//! A streamer belongs to one context and is used by one thread at a time. It takes no lock.

pub mod atomic;
pub mod decode;
mod error;
pub mod math;
pub mod mi;
pub mod regs;
pub mod streamer;
#[cfg(test)]
pub(crate) mod test_bus;
#[cfg(test)]
mod tests;

pub use error::CsError;
pub use streamer::{Progress, Streamer};
