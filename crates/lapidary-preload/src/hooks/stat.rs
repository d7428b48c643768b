//! What files are: the stand-ins of nodes, and descriptors of the device, show as what they stand for.

use std::ffi::{c_char, c_int, c_uint};
use std::mem::MaybeUninit;

use libc::stat as Stat;

use crate::config::{self, Node};
use crate::identity::Name;
use crate::paths::{TreePath, tree_path};
use crate::sys;

/// The node whose stand-in is at this path, links followed.
///
/// # Safety
/// `path` is null or a C string.
pub(super) unsafe fn node_at(folder: c_int, path: *const c_char) -> Option<&'static Node> {
    let mut stat = MaybeUninit::<Stat>::zeroed();
    let kept = sys::errno();
    // SAFETY: the caller vouches for the path; the structure is valid.
    let result = unsafe { raw_stat(folder, path, stat.as_mut_ptr(), 0) };
    sys::set_errno(kept);
    if result != 0 {
        return None;
    }
    // SAFETY: zero bytes are a value, and the kernel has filled it in.
    let stat = unsafe { stat.assume_init() };
    config::get()?.node_of(stat.st_dev, stat.st_ino)
}

/// # Safety
/// As `fstatat`.
unsafe fn raw_stat(folder: c_int, path: *const c_char, stat: *mut Stat, flags: c_int) -> c_int {
    let arguments = [folder as usize, path as usize, stat as usize, flags as usize, 0, 0];
    // SAFETY: the kernel checks the pointers.
    unsafe { sys::call(libc::SYS_newfstatat, arguments) as c_int }
}

/// # Safety
/// As `fstatat`.
unsafe fn stat_at(folder: c_int, path: *const c_char, stat: *mut Stat, flags: c_int) -> c_int {
    // SAFETY: the caller vouches for the path.
    let bytes = unsafe { sys::bytes(path) }.unwrap_or_default();
    if bytes.is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
        // SAFETY: as the caller promised.
        return unsafe { stat_fd(folder, stat) };
    }
    // SAFETY: as above.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: as above.
    let result = unsafe { raw_stat(folder, path, stat, flags) };
    if result == 0 {
        // SAFETY: the kernel has filled it in.
        show_node(unsafe { &mut *stat });
    }
    result
}

/// # Safety
/// As `fstat`.
unsafe fn stat_fd(fd: c_int, stat: *mut Stat) -> c_int {
    // SAFETY: the kernel checks the pointer.
    let result = unsafe { sys::call(libc::SYS_fstat, [fd as usize, stat as usize, 0, 0, 0, 0]) as c_int };
    if result != 0 {
        return result;
    }
    // SAFETY: the kernel has filled it in.
    let filled = unsafe { &mut *stat };
    if filled.st_mode & libc::S_IFMT != libc::S_IFSOCK {
        show_node(filled);
        return 0;
    }
    let Some(name) = Name::of(fd) else { return 0 };
    match name.node_path().and_then(TreePath::of) {
        Some(tree) => {
            let mut node = MaybeUninit::<Stat>::zeroed();
            // SAFETY: a tree path is a C string; the structure is valid.
            if unsafe { raw_stat(libc::AT_FDCWD, tree.as_ptr(), node.as_mut_ptr(), 0) } == 0 {
                // SAFETY: the kernel has filled it in.
                *filled = unsafe { node.assume_init() };
                show_node(filled);
            }
        }
        // As an anonymous inode.
        None => filled.st_mode = 0o600,
    }
    0
}

/// Makes a stand-in show as the node it stands for.
fn show_node(stat: &mut Stat) {
    let node = config::get().and_then(|config| config.node_of(stat.st_dev, stat.st_ino));
    let Some(node) = node else { return };
    stat.st_mode = node.file_type() | (stat.st_mode & 0o7777);
    stat.st_rdev = libc::makedev(node.major, node.minor);
    stat.st_size = 0;
    stat.st_blocks = 0;
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn statx(
    folder: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    out: *mut libc::statx,
) -> c_int {
    // SAFETY: the caller vouches for the path.
    let tree = unsafe { tree_path(path) };
    let real = tree.as_ref().map_or(path, TreePath::as_ptr);
    let arguments =
        [folder as usize, real as usize, flags as usize, (mask | libc::STATX_INO) as usize, out as usize, 0];
    // SAFETY: the kernel checks the pointers.
    let result = unsafe { sys::call(libc::SYS_statx, arguments) as c_int };
    if result != 0 || config::get().is_none() {
        return result;
    }
    // SAFETY: the kernel has filled it in.
    let out = unsafe { &mut *out };
    // SAFETY: the caller vouches for the path.
    let is_fd = unsafe { sys::bytes(path) }.is_none_or(<[u8]>::is_empty);
    let is_socket = u32::from(out.stx_mode) & libc::S_IFMT == libc::S_IFSOCK;
    show_node_x(out);
    if is_fd && is_socket {
        show_socket_x(folder, out);
    }
    0
}

fn show_node_x(out: &mut libc::statx) {
    let device = libc::makedev(out.stx_dev_major, out.stx_dev_minor);
    let node = config::get().and_then(|config| config.node_of(device, out.stx_ino));
    let Some(node) = node else { return };
    out.stx_mode = node.file_type() as u16 | (out.stx_mode & 0o7777);
    (out.stx_rdev_major, out.stx_rdev_minor) = (node.major, node.minor);
    (out.stx_size, out.stx_blocks) = (0, 0);
}

/// The same fields as `fstat` on one of our descriptors.
fn show_socket_x(fd: c_int, out: &mut libc::statx) {
    let mut stat = MaybeUninit::<Stat>::zeroed();
    // SAFETY: the structure is valid.
    if unsafe { stat_fd(fd, stat.as_mut_ptr()) } != 0 {
        return;
    }
    // SAFETY: it was filled in.
    let stat = unsafe { stat.assume_init() };
    out.stx_mode = stat.st_mode as u16;
    out.stx_ino = stat.st_ino;
    (out.stx_dev_major, out.stx_dev_minor) = (libc::major(stat.st_dev), libc::minor(stat.st_dev));
    (out.stx_rdev_major, out.stx_rdev_minor) = (libc::major(stat.st_rdev), libc::minor(stat.st_rdev));
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn stat(path: *const c_char, out: *mut Stat) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_at(libc::AT_FDCWD, path, out, 0) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn stat64(path: *const c_char, out: *mut Stat) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_at(libc::AT_FDCWD, path, out, 0) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn lstat(path: *const c_char, out: *mut Stat) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_at(libc::AT_FDCWD, path, out, libc::AT_SYMLINK_NOFOLLOW) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn lstat64(path: *const c_char, out: *mut Stat) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_at(libc::AT_FDCWD, path, out, libc::AT_SYMLINK_NOFOLLOW) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn fstat(fd: c_int, out: *mut Stat) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_fd(fd, out) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn fstat64(fd: c_int, out: *mut Stat) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_fd(fd, out) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn fstatat(folder: c_int, path: *const c_char, out: *mut Stat, flags: c_int) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_at(folder, path, out, flags) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn fstatat64(folder: c_int, path: *const c_char, out: *mut Stat, flags: c_int) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_at(folder, path, out, flags) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __xstat(_version: c_int, path: *const c_char, out: *mut Stat) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_at(libc::AT_FDCWD, path, out, 0) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __xstat64(_version: c_int, path: *const c_char, out: *mut Stat) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_at(libc::AT_FDCWD, path, out, 0) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __lxstat(_version: c_int, path: *const c_char, out: *mut Stat) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_at(libc::AT_FDCWD, path, out, libc::AT_SYMLINK_NOFOLLOW) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __lxstat64(_version: c_int, path: *const c_char, out: *mut Stat) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_at(libc::AT_FDCWD, path, out, libc::AT_SYMLINK_NOFOLLOW) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __fxstat(_version: c_int, fd: c_int, out: *mut Stat) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_fd(fd, out) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __fxstat64(_version: c_int, fd: c_int, out: *mut Stat) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_fd(fd, out) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __fxstatat(
    _version: c_int,
    folder: c_int,
    path: *const c_char,
    out: *mut Stat,
    flags: c_int,
) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_at(folder, path, out, flags) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __fxstatat64(
    _version: c_int,
    folder: c_int,
    path: *const c_char,
    out: *mut Stat,
    flags: c_int,
) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { stat_at(folder, path, out, flags) }
}
