//! `drm/drm.h`: what every DRM driver answers, whatever its hardware.
//!
//! Mode-setting is left out: no device here has a display, so those numbers need no structures.

use super::ioctl::Command;
use bytemuck::{Pod, Zeroable};

/// The type letter of every DRM ioctl.
pub const BASE: u8 = b'd';
/// First number that belongs to the driver.
pub const COMMAND_BASE: u8 = 0x40;
/// First number after those of the driver.
pub const COMMAND_END: u8 = 0xa0;

/// Version of the interface between core and client, major.
pub const IF_MAJOR: i32 = 1;
/// Version of the interface between core and client, minor.
pub const IF_MINOR: i32 = 4;

/// Dumb buffers can be made.
pub const CAP_DUMB_BUFFER: u64 = 0x1;
/// Which directions buffers can be shared in: `PRIME_CAP_*`.
pub const CAP_PRIME: u64 = 0x5;
/// Timestamps are CLOCK_MONOTONIC.
pub const CAP_TIMESTAMP_MONOTONIC: u64 = 0x6;
/// There are syncobjs.
pub const CAP_SYNCOBJ: u64 = 0x13;
/// Syncobjs can be timelines.
pub const CAP_SYNCOBJ_TIMELINE: u64 = 0x14;
/// A value of [`CAP_PRIME`]: buffers can be imported.
pub const PRIME_CAP_IMPORT: u64 = 0x1;
/// A value of [`CAP_PRIME`]: buffers can be exported.
pub const PRIME_CAP_EXPORT: u64 = 0x2;

/// The new descriptor closes on `exec`.
pub const PRIME_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
/// The new descriptor may be mapped for writing.
pub const PRIME_RDWR: u32 = libc::O_RDWR as u32;
/// Holds a signalled fence from the start.
pub const SYNCOBJ_CREATE_SIGNALED: u32 = 1 << 0;
/// The descriptor is a sync_file, not a syncobj.
pub const SYNCOBJ_FD_SYNC_FILE: u32 = 1 << 0;
/// `point` says which of the syncobj's fences.
pub const SYNCOBJ_FD_TIMELINE: u32 = 1 << 1;
/// Wait for all, not for any.
pub const SYNCOBJ_WAIT_ALL: u32 = 1 << 0;
/// Wait also for fences that are not there yet.
pub const SYNCOBJ_WAIT_FOR_SUBMIT: u32 = 1 << 1;
/// Wait only until the fence is there.
pub const SYNCOBJ_WAIT_AVAILABLE: u32 = 1 << 2;
/// `deadline_nsec` is a hint to the fences' producers.
pub const SYNCOBJ_WAIT_DEADLINE: u32 = 1 << 3;
/// The last point that has a fence, signalled or not.
pub const SYNCOBJ_QUERY_LAST_SUBMITTED: u32 = 1 << 0;

/// Longest name of a client in bytes.
pub const CLIENT_NAME_MAX_LEN: u64 = 64;

/// Argument of [`IOCTL_VERSION`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Version {
    /// Out: major version.
    pub version_major: i32,
    /// Out: minor version.
    pub version_minor: i32,
    /// Out: patch level.
    pub version_patchlevel: i32,
    /// Alignment.
    pub _pad: u32,
    /// In: room at `name` in bytes; out: the name's length without a terminating zero.
    pub name_len: u64,
    /// Address for the driver's name, or 0.
    pub name: u64,
    /// As `name_len`.
    pub date_len: u64,
    /// Address for the driver's date, or 0.
    pub date: u64,
    /// As `name_len`.
    pub desc_len: u64,
    /// Address for the driver's description, or 0.
    pub desc: u64,
}

/// Argument of [`IOCTL_GET_UNIQUE`] and [`IOCTL_SET_UNIQUE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Unique {
    /// In: room at `unique` in bytes; out: the bus id's length.
    pub unique_len: u64,
    /// Address for the bus id.
    pub unique: u64,
}

/// Argument of [`IOCTL_GET_MAGIC`] and [`IOCTL_AUTH_MAGIC`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Auth {
    /// The token.
    pub magic: u32,
}

/// Argument of [`IOCTL_GET_CLIENT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Client {
    /// Which client.
    pub idx: i32,
    /// Out: whether it is authenticated.
    pub auth: i32,
    /// Out: its process id.
    pub pid: u64,
    /// Out: its user id.
    pub uid: u64,
    /// Out: its token.
    pub magic: u64,
    /// Out: how many ioctls it made.
    pub iocs: u64,
}

/// Argument of [`IOCTL_GET_STATS`]: counters that no kernel has filled for long.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Stats {
    /// Out: how many entries are valid.
    pub count: u64,
    /// Out: value and type, 15 times.
    pub data: [u64; 30],
}

/// Argument of [`IOCTL_SET_VERSION`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SetVersion {
    /// Interface major version, -1 to leave.
    pub drm_di_major: i32,
    /// Interface minor version.
    pub drm_di_minor: i32,
    /// Driver major version, -1 to leave.
    pub drm_dd_major: i32,
    /// Driver minor version.
    pub drm_dd_minor: i32,
}

/// Argument of [`IOCTL_GEM_CLOSE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GemClose {
    /// The handle to close.
    pub handle: u32,
    /// Ignored.
    pub pad: u32,
}

/// Argument of [`IOCTL_GEM_FLINK`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GemFlink {
    /// The buffer.
    pub handle: u32,
    /// Out: its device-wide name.
    pub name: u32,
}

/// Argument of [`IOCTL_GEM_OPEN`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GemOpen {
    /// A device-wide name.
    pub name: u32,
    /// Out: a handle in this file.
    pub handle: u32,
    /// Out: the buffer's size in bytes.
    pub size: u64,
}

/// Argument of [`IOCTL_GET_CAP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GetCap {
    /// One of `CAP_*`.
    pub capability: u64,
    /// Out: its value.
    pub value: u64,
}

/// Argument of [`IOCTL_SET_CLIENT_CAP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SetClientCap {
    /// One of `CLIENT_CAP_*`.
    pub capability: u64,
    /// Its new value.
    pub value: u64,
}

/// Argument of [`IOCTL_SET_CLIENT_NAME`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SetClientName {
    /// Length in bytes, 0 removes the name.
    pub name_len: u64,
    /// Address of the name.
    pub name: u64,
}

/// Argument of [`IOCTL_PRIME_HANDLE_TO_FD`] and [`IOCTL_PRIME_FD_TO_HANDLE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct PrimeHandle {
    /// The buffer's handle.
    pub handle: u32,
    /// `PRIME_*`; looked at for handle to descriptor only.
    pub flags: u32,
    /// The shared buffer's descriptor.
    pub fd: i32,
}

/// Argument of [`IOCTL_SYNCOBJ_CREATE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SyncobjCreate {
    /// Out: the new handle.
    pub handle: u32,
    /// `SYNCOBJ_CREATE_*`.
    pub flags: u32,
}

/// Argument of [`IOCTL_SYNCOBJ_DESTROY`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SyncobjDestroy {
    /// The handle to destroy.
    pub handle: u32,
    /// Must be zero.
    pub pad: u32,
}

/// Argument of [`IOCTL_SYNCOBJ_HANDLE_TO_FD`] and [`IOCTL_SYNCOBJ_FD_TO_HANDLE`]. Older clients leave `point` out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SyncobjHandle {
    /// The syncobj's handle.
    pub handle: u32,
    /// `SYNCOBJ_FD_*`.
    pub flags: u32,
    /// The descriptor.
    pub fd: i32,
    /// Must be zero.
    pub pad: u32,
    /// Timeline point, with `SYNCOBJ_FD_TIMELINE`.
    pub point: u64,
}

/// Argument of [`IOCTL_SYNCOBJ_TRANSFER`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SyncobjTransfer {
    /// Where the fence is taken from.
    pub src_handle: u32,
    /// Where it goes.
    pub dst_handle: u32,
    /// Its point, 0 for a binary syncobj.
    pub src_point: u64,
    /// Its new point, 0 for a binary syncobj.
    pub dst_point: u64,
    /// `SYNCOBJ_WAIT_FOR_SUBMIT` or 0.
    pub flags: u32,
    /// Must be zero.
    pub pad: u32,
}

/// Argument of [`IOCTL_SYNCOBJ_WAIT`]. Older clients leave `deadline_nsec` out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SyncobjWait {
    /// Address of `u32` handles.
    pub handles: u64,
    /// Absolute CLOCK_MONOTONIC nanoseconds; 0 polls.
    pub timeout_nsec: i64,
    /// How many handles.
    pub count_handles: u32,
    /// `SYNCOBJ_WAIT_*`.
    pub flags: u32,
    /// Out: index of the first signalled one.
    pub first_signaled: u32,
    /// Ignored.
    pub pad: u32,
    /// Deadline hint, with `SYNCOBJ_WAIT_DEADLINE`.
    pub deadline_nsec: u64,
}

/// Argument of [`IOCTL_SYNCOBJ_TIMELINE_WAIT`]. Older clients leave `deadline_nsec` out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SyncobjTimelineWait {
    /// Address of `u32` handles.
    pub handles: u64,
    /// Address of `u64` points, 0 for none.
    pub points: u64,
    /// Absolute CLOCK_MONOTONIC nanoseconds; 0 polls.
    pub timeout_nsec: i64,
    /// How many handles.
    pub count_handles: u32,
    /// `SYNCOBJ_WAIT_*`.
    pub flags: u32,
    /// Out: index of the first signalled one.
    pub first_signaled: u32,
    /// Ignored.
    pub pad: u32,
    /// Deadline hint, with `SYNCOBJ_WAIT_DEADLINE`.
    pub deadline_nsec: u64,
}

/// Argument of [`IOCTL_SYNCOBJ_EVENTFD`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SyncobjEventfd {
    /// The syncobj.
    pub handle: u32,
    /// `SYNCOBJ_WAIT_AVAILABLE` or 0.
    pub flags: u32,
    /// The point, 0 for a binary syncobj.
    pub point: u64,
    /// The eventfd to signal.
    pub fd: i32,
    /// Must be zero.
    pub pad: u32,
}

/// Argument of [`IOCTL_SYNCOBJ_RESET`] and [`IOCTL_SYNCOBJ_SIGNAL`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SyncobjArray {
    /// Address of `u32` handles.
    pub handles: u64,
    /// How many handles.
    pub count_handles: u32,
    /// Must be zero.
    pub pad: u32,
}

/// Argument of [`IOCTL_SYNCOBJ_QUERY`] and [`IOCTL_SYNCOBJ_TIMELINE_SIGNAL`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SyncobjTimelineArray {
    /// Address of `u32` handles.
    pub handles: u64,
    /// Address of `u64` points.
    pub points: u64,
    /// How many handles.
    pub count_handles: u32,
    /// `SYNCOBJ_QUERY_*`.
    pub flags: u32,
}

/// Argument of [`IOCTL_MODE_CREATE_DUMB`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ModeCreateDumb {
    /// Rows.
    pub height: u32,
    /// Pixels in a row.
    pub width: u32,
    /// Bits per pixel.
    pub bpp: u32,
    /// Must be zero.
    pub flags: u32,
    /// Out: the buffer's handle.
    pub handle: u32,
    /// Out: bytes from row to row.
    pub pitch: u32,
    /// Out: the buffer's size in bytes.
    pub size: u64,
}

/// Argument of [`IOCTL_MODE_MAP_DUMB`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ModeMapDumb {
    /// The buffer.
    pub handle: u32,
    /// Ignored.
    pub pad: u32,
    /// Out: the offset to give to `mmap`.
    pub offset: u64,
}

/// Argument of [`IOCTL_MODE_DESTROY_DUMB`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ModeDestroyDumb {
    /// The buffer.
    pub handle: u32,
}

const _: () = assert!(size_of::<Version>() == 64);
const _: () = assert!(size_of::<Unique>() == 16);
const _: () = assert!(size_of::<Auth>() == 4);
const _: () = assert!(size_of::<Client>() == 40);
const _: () = assert!(size_of::<Stats>() == 248);
const _: () = assert!(size_of::<SetVersion>() == 16);
const _: () = assert!(size_of::<GemClose>() == 8);
const _: () = assert!(size_of::<GemFlink>() == 8);
const _: () = assert!(size_of::<GemOpen>() == 16);
const _: () = assert!(size_of::<GetCap>() == 16);
const _: () = assert!(size_of::<SetClientCap>() == 16);
const _: () = assert!(size_of::<SetClientName>() == 16);
const _: () = assert!(size_of::<PrimeHandle>() == 12);
const _: () = assert!(size_of::<SyncobjCreate>() == 8);
const _: () = assert!(size_of::<SyncobjDestroy>() == 8);
const _: () = assert!(size_of::<SyncobjHandle>() == 24);
const _: () = assert!(size_of::<SyncobjTransfer>() == 32);
const _: () = assert!(size_of::<SyncobjWait>() == 40);
const _: () = assert!(size_of::<SyncobjTimelineWait>() == 48);
const _: () = assert!(size_of::<SyncobjEventfd>() == 24);
const _: () = assert!(size_of::<SyncobjArray>() == 16);
const _: () = assert!(size_of::<SyncobjTimelineArray>() == 24);
const _: () = assert!(size_of::<ModeCreateDumb>() == 32);
const _: () = assert!(size_of::<ModeMapDumb>() == 16);
const _: () = assert!(size_of::<ModeDestroyDumb>() == 4);

/// Which driver is this?
pub const IOCTL_VERSION: Command = Command::iowr::<Version>(BASE, 0x00);
/// The bus id, once SET_VERSION asked for it.
pub const IOCTL_GET_UNIQUE: Command = Command::iowr::<Unique>(BASE, 0x01);
/// The file's authentication token.
pub const IOCTL_GET_MAGIC: Command = Command::ior::<Auth>(BASE, 0x02);
/// Who am I?
pub const IOCTL_GET_CLIENT: Command = Command::iowr::<Client>(BASE, 0x05);
/// Counters, all zero.
pub const IOCTL_GET_STATS: Command = Command::ior::<Stats>(BASE, 0x06);
/// Agree on interface and driver version.
pub const IOCTL_SET_VERSION: Command = Command::iowr::<SetVersion>(BASE, 0x07);
/// Close a buffer's handle.
pub const IOCTL_GEM_CLOSE: Command = Command::iow::<GemClose>(BASE, 0x09);
/// Give a buffer a device-wide name.
pub const IOCTL_GEM_FLINK: Command = Command::iowr::<GemFlink>(BASE, 0x0a);
/// Open a buffer by its device-wide name.
pub const IOCTL_GEM_OPEN: Command = Command::iowr::<GemOpen>(BASE, 0x0b);
/// What can the device do?
pub const IOCTL_GET_CAP: Command = Command::iowr::<GetCap>(BASE, 0x0c);
/// What can the client do?
pub const IOCTL_SET_CLIENT_CAP: Command = Command::iow::<SetClientCap>(BASE, 0x0d);
/// Refused since long.
pub const IOCTL_SET_UNIQUE: Command = Command::iow::<Unique>(BASE, 0x10);
/// Authenticate another file.
pub const IOCTL_AUTH_MAGIC: Command = Command::iow::<Auth>(BASE, 0x11);
/// Share a buffer as a descriptor.
pub const IOCTL_PRIME_HANDLE_TO_FD: Command = Command::iowr::<PrimeHandle>(BASE, 0x2d);
/// Open a shared buffer.
pub const IOCTL_PRIME_FD_TO_HANDLE: Command = Command::iowr::<PrimeHandle>(BASE, 0x2e);
/// Create a linear buffer by its picture size.
pub const IOCTL_MODE_CREATE_DUMB: Command = Command::iowr::<ModeCreateDumb>(BASE, 0xb2);
/// Where to `mmap` such a buffer.
pub const IOCTL_MODE_MAP_DUMB: Command = Command::iowr::<ModeMapDumb>(BASE, 0xb3);
/// Close such a buffer's handle.
pub const IOCTL_MODE_DESTROY_DUMB: Command = Command::iowr::<ModeDestroyDumb>(BASE, 0xb4);
/// Create a syncobj.
pub const IOCTL_SYNCOBJ_CREATE: Command = Command::iowr::<SyncobjCreate>(BASE, 0xbf);
/// Close a syncobj's handle.
pub const IOCTL_SYNCOBJ_DESTROY: Command = Command::iowr::<SyncobjDestroy>(BASE, 0xc0);
/// Share a syncobj, or the fence in it, as a descriptor.
pub const IOCTL_SYNCOBJ_HANDLE_TO_FD: Command = Command::iowr::<SyncobjHandle>(BASE, 0xc1);
/// Open a shared syncobj, or put a sync_file's fence into one.
pub const IOCTL_SYNCOBJ_FD_TO_HANDLE: Command = Command::iowr::<SyncobjHandle>(BASE, 0xc2);
/// Wait for binary syncobjs.
pub const IOCTL_SYNCOBJ_WAIT: Command = Command::iowr::<SyncobjWait>(BASE, 0xc3);
/// Empty syncobjs.
pub const IOCTL_SYNCOBJ_RESET: Command = Command::iowr::<SyncobjArray>(BASE, 0xc4);
/// Put a signalled fence into syncobjs.
pub const IOCTL_SYNCOBJ_SIGNAL: Command = Command::iowr::<SyncobjArray>(BASE, 0xc5);
/// Wait for timeline points.
pub const IOCTL_SYNCOBJ_TIMELINE_WAIT: Command = Command::iowr::<SyncobjTimelineWait>(BASE, 0xca);
/// Read timelines' points.
pub const IOCTL_SYNCOBJ_QUERY: Command = Command::iowr::<SyncobjTimelineArray>(BASE, 0xcb);
/// Copy a fence from one syncobj to another.
pub const IOCTL_SYNCOBJ_TRANSFER: Command = Command::iowr::<SyncobjTransfer>(BASE, 0xcc);
/// Signal timeline points.
pub const IOCTL_SYNCOBJ_TIMELINE_SIGNAL: Command = Command::iowr::<SyncobjTimelineArray>(BASE, 0xcd);
/// Signal an eventfd when a point is reached.
pub const IOCTL_SYNCOBJ_EVENTFD: Command = Command::iowr::<SyncobjEventfd>(BASE, 0xcf);
/// Name the client for whoever looks on.
pub const IOCTL_SET_CLIENT_NAME: Command = Command::iowr::<SetClientName>(BASE, 0xd1);
/// Become master of the device.
pub const IOCTL_SET_MASTER: Command = Command::io(BASE, 0x1e);
/// Give up being master.
pub const IOCTL_DROP_MASTER: Command = Command::io(BASE, 0x1f);
