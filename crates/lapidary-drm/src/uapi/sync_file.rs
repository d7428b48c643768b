//! `linux/sync_file.h`: ioctls on a fence's descriptor.

use super::ioctl::Command;
use bytemuck::{Pod, Zeroable};

const MAGIC: u8 = b'>';

/// Length of every name in these structures, the terminating zero included, in bytes.
pub const NAME_LEN: usize = 32;

/// Argument of [`IOC_MERGE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct MergeData {
    /// Name of the new fence, zero-terminated.
    pub name: [u8; NAME_LEN],
    /// The other sync_file.
    pub fd2: i32,
    /// Out: the new descriptor.
    pub fence: i32,
    /// Must be zero.
    pub flags: u32,
    /// Must be zero.
    pub pad: u32,
}

/// One fence of a sync_file.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct FenceInfo {
    /// Name of the fence's timeline.
    pub obj_name: [u8; NAME_LEN],
    /// Name of the driver behind it.
    pub driver_name: [u8; NAME_LEN],
    /// 0 active, 1 signalled, negative: an error number.
    pub status: i32,
    /// Zero.
    pub flags: u32,
    /// When it signalled, CLOCK_MONOTONIC nanoseconds; 0 before.
    pub timestamp_ns: u64,
}

/// Argument of [`IOC_FILE_INFO`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct FileInfo {
    /// Out: the sync_file's name.
    pub name: [u8; NAME_LEN],
    /// Out: 0 active, 1 signalled, negative: an error number.
    pub status: i32,
    /// Must be zero.
    pub flags: u32,
    /// In: room at `sync_fence_info`, in elements; out: number of fences.
    pub num_fences: u32,
    /// Must be zero.
    pub pad: u32,
    /// Address of an array of [`FenceInfo`].
    pub sync_fence_info: u64,
}

/// Argument of [`IOC_SET_DEADLINE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SetDeadline {
    /// CLOCK_MONOTONIC nanoseconds.
    pub deadline_ns: u64,
    /// Must be zero.
    pub pad: u64,
}

const _: () = assert!(size_of::<MergeData>() == 48);
const _: () = assert!(size_of::<FenceInfo>() == 80);
const _: () = assert!(size_of::<FileInfo>() == 56);
const _: () = assert!(size_of::<SetDeadline>() == 16);

/// A new sync_file that signals when both have.
pub const IOC_MERGE: Command = Command::iowr::<MergeData>(MAGIC, 3);
/// What is in this sync_file.
pub const IOC_FILE_INFO: Command = Command::iowr::<FileInfo>(MAGIC, 4);
/// A hint by when the fence is wanted.
pub const IOC_SET_DEADLINE: Command = Command::iow::<SetDeadline>(MAGIC, 5);
