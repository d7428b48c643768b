//! Opening files.

use std::ffi::{c_char, c_int, c_uint};

use crate::calls;
use crate::config;
use crate::identity::Name;
use crate::paths::{ProcPath, TreePath, parse, tree_path};
use crate::sys::{self, Next};

/// Opens what the program names: a file of the tree, a device node, or anything else.
///
/// # Safety
/// `path` is null or a C string.
unsafe fn open_at(folder: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller vouches for it.
    if let Some(tree) = unsafe { tree_path(path) } {
        return open_in_tree(&tree, flags, mode);
    }
    if config::get().is_none() {
        // SAFETY: as for `open` itself.
        return unsafe { raw_open(folder, path, flags, mode) };
    }
    // SAFETY: the caller vouches for it.
    let bytes = unsafe { sys::bytes(path) }.unwrap_or_default();
    if let Some(ProcPath::FdInfo(fd)) = ProcPath::of(bytes)
        && let Some(fd) = calls::fdinfo(fd, flags)
    {
        return fd;
    }
    let kept = sys::errno();
    // SAFETY: as for `open` itself.
    let fd = unsafe { raw_open(folder, path, flags, mode) };
    if fd < 0 && matches!(sys::errno(), libc::ENXIO | libc::EACCES) {
        // SAFETY: the caller vouches for it.
        return unsafe { open_special(folder, path, bytes, flags) }
            .inspect(|_| sys::set_errno(kept))
            .unwrap_or(fd);
    }
    match fdinfo_below(folder, bytes, flags) {
        Some(info) if fd >= 0 => {
            sys::close(fd);
            info
        }
        _ => fd,
    }
}

fn open_in_tree(tree: &TreePath, flags: c_int, mode: c_uint) -> c_int {
    if let Some(node) = tree.node()
        && flags & libc::O_PATH == 0
    {
        return open_node(node.path, flags);
    }
    // SAFETY: a tree path is a C string.
    let fd = unsafe { raw_open(libc::AT_FDCWD, tree.as_ptr(), flags, mode) };
    if fd < 0 && matches!(sys::errno(), libc::ENXIO | libc::EACCES) {
        // SAFETY: as above.
        let node = unsafe { super::stat::node_at(libc::AT_FDCWD, tree.as_ptr()) };
        return node.map_or(fd, |node| open_node(node.path, flags));
    }
    fd
}

fn open_node(path: &[u8], flags: c_int) -> c_int {
    if flags & libc::O_DIRECTORY != 0 {
        return sys::fail(libc::ENOTDIR);
    }
    if flags & (libc::O_CREAT | libc::O_EXCL) == libc::O_CREAT | libc::O_EXCL {
        return sys::fail(libc::EEXIST);
    }
    calls::open(path, flags)
}

/// Opens what the kernel refused: it knows neither the stand-ins of nodes, by a relative path or a link, nor how
/// to open a socket by its link in `/proc`.
///
/// # Safety
/// `path` is null or a C string.
unsafe fn open_special(folder: c_int, path: *const c_char, bytes: &[u8], flags: c_int) -> Option<c_int> {
    if let Some(ProcPath::Fd(fd)) = ProcPath::of(bytes) {
        return Some(open_node(Name::of(fd)?.node_path()?, flags));
    }
    // SAFETY: the caller vouches for it.
    let node = unsafe { super::stat::node_at(folder, path) }?;
    Some(open_node(node.path, flags))
}

/// The `fdinfo` text of a descriptor that is named by its number in an open `/proc/self/fdinfo`.
fn fdinfo_below(folder: c_int, name: &[u8], flags: c_int) -> Option<c_int> {
    if folder == libc::AT_FDCWD || name.len() > 6 {
        return None;
    }
    let number = parse(name)?;
    let mut link = [0; 64];
    let len = super::link::raw_link_of(folder, &mut link)?;
    let mut full = [0; 80];
    full[..len].copy_from_slice(&link[..len]);
    full[len] = b'/';
    full[len + 1..][..name.len()].copy_from_slice(name);
    let full = &full[..len + 1 + name.len()];
    match ProcPath::of(full)? {
        ProcPath::FdInfo(fd) if fd == number => calls::fdinfo(fd, flags),
        _ => None,
    }
}

/// The kernel's `openat`.
///
/// # Safety
/// As `openat`.
unsafe fn raw_open(folder: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    let arguments = [folder as usize, path as usize, flags as usize, mode as usize, 0, 0];
    // SAFETY: the kernel checks the path.
    unsafe { sys::call(libc::SYS_openat, arguments) as c_int }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { open_at(libc::AT_FDCWD, path, flags, mode) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { open_at(libc::AT_FDCWD, path, flags, mode) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn openat(folder: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { open_at(folder, path, flags, mode) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn openat64(folder: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { open_at(folder, path, flags, mode) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __open_2(path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { open_at(libc::AT_FDCWD, path, flags, 0) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { open_at(libc::AT_FDCWD, path, flags, 0) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __openat_2(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { open_at(folder, path, flags, 0) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __openat64_2(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { open_at(folder, path, flags, 0) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn creat(path: *const c_char, mode: c_uint) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { open_at(libc::AT_FDCWD, path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn creat64(path: *const c_char, mode: c_uint) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { creat(path, mode) }
}

type OpenStream = unsafe extern "C" fn(*const c_char, *const c_char) -> *mut libc::FILE;
type ReopenStream = unsafe extern "C" fn(*const c_char, *const c_char, *mut libc::FILE) -> *mut libc::FILE;

/// # Safety
/// As `fopen`.
unsafe fn open_stream(next: &Next, path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    // SAFETY: the caller vouches for the path.
    let tree = unsafe { tree_path(path) };
    if tree.is_none()
        // SAFETY: as above.
        && let Some(stream) = unsafe { open_info_stream(path, mode) }
    {
        return stream;
    }
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is that of `fopen`.
    match unsafe { next.get::<OpenStream>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, mode) },
        None => std::ptr::null_mut(),
    }
}

/// A stream over the `fdinfo` text of one of our descriptors.
///
/// # Safety
/// As `fopen`.
unsafe fn open_info_stream(path: *const c_char, mode: *const c_char) -> Option<*mut libc::FILE> {
    // SAFETY: the caller vouches for the path.
    let bytes = unsafe { sys::bytes(path) }?;
    let ProcPath::FdInfo(fd) = ProcPath::of(bytes)? else { return None };
    let info = calls::fdinfo(fd, libc::O_CLOEXEC).filter(|fd| *fd >= 0)?;
    // SAFETY: the mode is the caller's, the descriptor is new.
    Some(unsafe { libc::fdopen(info, mode) })
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn fopen(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    static NEXT: Next = Next::new(c"fopen");
    // SAFETY: as the caller promised.
    unsafe { open_stream(&NEXT, path, mode) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn fopen64(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
    static NEXT: Next = Next::new(c"fopen64");
    // SAFETY: as the caller promised.
    unsafe { open_stream(&NEXT, path, mode) }
}

/// # Safety
/// As `freopen`.
unsafe fn reopen_stream(
    next: &Next,
    path: *const c_char,
    mode: *const c_char,
    stream: *mut libc::FILE,
) -> *mut libc::FILE {
    // SAFETY: the caller vouches for the path.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is that of `freopen`.
    match unsafe { next.get::<ReopenStream>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, mode, stream) },
        None => std::ptr::null_mut(),
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn freopen(
    path: *const c_char,
    mode: *const c_char,
    stream: *mut libc::FILE,
) -> *mut libc::FILE {
    static NEXT: Next = Next::new(c"freopen");
    // SAFETY: as the caller promised.
    unsafe { reopen_stream(&NEXT, path, mode, stream) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn freopen64(
    path: *const c_char,
    mode: *const c_char,
    stream: *mut libc::FILE,
) -> *mut libc::FILE {
    static NEXT: Next = Next::new(c"freopen64");
    // SAFETY: as the caller promised.
    unsafe { reopen_stream(&NEXT, path, mode, stream) }
}
