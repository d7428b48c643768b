//! `linux/dma-buf.h`: ioctls on a shared buffer's descriptor.

use super::ioctl::Command;
use bytemuck::{Pod, Zeroable};

const BASE: u8 = b'b';

/// The client reads through its mapping; in fence matters: waits for writers.
pub const SYNC_READ: u64 = 1 << 0;
/// The client writes through its mapping; in fence matters: waits for readers and writers.
pub const SYNC_WRITE: u64 = 1 << 1;
/// Both of the above.
pub const SYNC_RW: u64 = SYNC_READ | SYNC_WRITE;
/// Ends a bracket of CPU accesses; without it one begins.
pub const SYNC_END: u64 = 1 << 2;

/// Longest name of a buffer, its terminating zero included, in bytes.
pub const NAME_LEN: usize = 32;

/// Argument of [`IOCTL_SYNC`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Sync {
    /// `SYNC_*` bits.
    pub flags: u64,
}

/// Argument of [`IOCTL_EXPORT_SYNC_FILE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ExportSyncFile {
    /// `SYNC_READ`, `SYNC_WRITE` or both.
    pub flags: u32,
    /// Out: the new descriptor.
    pub fd: i32,
}

/// Argument of [`IOCTL_IMPORT_SYNC_FILE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ImportSyncFile {
    /// `SYNC_READ`, `SYNC_WRITE` or both.
    pub flags: u32,
    /// A sync_file descriptor.
    pub fd: i32,
}

const _: () = assert!(size_of::<Sync>() == 8);
const _: () = assert!(size_of::<ExportSyncFile>() == 8);
const _: () = assert!(size_of::<ImportSyncFile>() == 8);

/// Begins or ends a bracket of CPU accesses.
pub const IOCTL_SYNC: Command = Command::iow::<Sync>(BASE, 0);
/// Names the buffer; the 32-bit number. The argument itself is the string's address.
pub const SET_NAME_A: Command = Command::iow::<u32>(BASE, 1);
/// Names the buffer; the 64-bit number. The argument itself is the string's address.
pub const SET_NAME_B: Command = Command::iow::<u64>(BASE, 1);
/// Snapshot of the buffer's fences as a sync_file.
pub const IOCTL_EXPORT_SYNC_FILE: Command = Command::iowr::<ExportSyncFile>(BASE, 2);
/// Adds a sync_file's fence to the buffer.
pub const IOCTL_IMPORT_SYNC_FILE: Command = Command::iow::<ImportSyncFile>(BASE, 3);
