//! Ioctls on a software timeline. No header has them: each program brings its own copy.

use super::ioctl::Command;
use bytemuck::{Pod, Zeroable};

const MAGIC: u8 = b'W';

/// Argument of [`IOC_CREATE_FENCE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct CreateFence {
    /// The value of the timeline at which the fence signals.
    pub value: u32,
    /// Ignored.
    pub name: [u8; 32],
    /// Out: a sync_file with the fence.
    pub fence: i32,
}

/// Argument of [`GET_DEADLINE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GetDeadline {
    /// Out: CLOCK_MONOTONIC nanoseconds; must be zero.
    pub deadline_ns: u64,
    /// Must be zero.
    pub pad: u32,
    /// A sync_file with a fence of a software timeline.
    pub fence_fd: i32,
}

const _: () = assert!(size_of::<CreateFence>() == 40);
const _: () = assert!(size_of::<GetDeadline>() == 16);

/// A fence that signals when the timeline has come to a value.
pub const IOC_CREATE_FENCE: Command = Command::iowr::<CreateFence>(MAGIC, 0);
/// Advances the timeline.
pub const IOC_INC: Command = Command::iow::<u32>(MAGIC, 1);
/// The earliest deadline that somebody gave to a fence.
pub const GET_DEADLINE: Command = Command::iowr::<GetDeadline>(MAGIC, 2);
