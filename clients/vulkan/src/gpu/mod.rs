//! A thin layer over Vulkan: objects that free themselves, commands that keep what they use.
//!
//! Everything unsafe of this program is below this folder; the checks are safe code. Two rules make that sound:
//! every object holds the device it was made from, and a recorded command buffer holds the objects its commands name,
//! as a submission holds its command buffer until it has been waited for.
//!
//! Bytes that the device writes are read through copies after a wait, never through a reference.

mod buffer;
mod commands;
mod context;
mod host;
mod image;
mod memory;
mod sync;

pub(crate) use buffer::Buffer;
pub(crate) use commands::{CommandBuffer, Submission, TimestampQueries};
pub(crate) use context::{Choice, Context, Queue};
pub(crate) use host::{HostRegion, map_shared};
pub(crate) use image::{Image, Shape};
pub(crate) use memory::{Memory, Source};
pub(crate) use sync::{Semaphore, SparseBind, wait_all, wait_any};

/// How long anything on the device may take, in nanoseconds, before a check gives up on it.
pub(crate) const PATIENCE: u64 = 60_000_000_000;
