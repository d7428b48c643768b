//! Functions that only need their path to lead into the tree.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::paths::{TreePath, tree_path};
use crate::sys::Next;

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn access(path: *const c_char, mode: c_int) -> c_int {
    static NEXT: Next = Next::new(c"access");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(*const c_char, c_int) -> c_int>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, mode) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn eaccess(path: *const c_char, mode: c_int) -> c_int {
    static NEXT: Next = Next::new(c"eaccess");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(*const c_char, c_int) -> c_int>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, mode) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn euidaccess(path: *const c_char, mode: c_int) -> c_int {
    static NEXT: Next = Next::new(c"euidaccess");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(*const c_char, c_int) -> c_int>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, mode) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn faccessat(folder: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int {
    static NEXT: Next = Next::new(c"faccessat");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(c_int, *const c_char, c_int, c_int) -> c_int>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(folder, path, mode, flags) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn chdir(path: *const c_char) -> c_int {
    static NEXT: Next = Next::new(c"chdir");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(*const c_char) -> c_int>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn chmod(path: *const c_char, mode: c_uint) -> c_int {
    static NEXT: Next = Next::new(c"chmod");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(*const c_char, c_uint) -> c_int>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, mode) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn fchmodat(folder: c_int, path: *const c_char, mode: c_uint, flags: c_int) -> c_int {
    static NEXT: Next = Next::new(c"fchmodat");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(c_int, *const c_char, c_uint, c_int) -> c_int>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(folder, path, mode, flags) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn chown(path: *const c_char, owner: c_uint, group: c_uint) -> c_int {
    static NEXT: Next = Next::new(c"chown");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(*const c_char, c_uint, c_uint) -> c_int>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, owner, group) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn lchown(path: *const c_char, owner: c_uint, group: c_uint) -> c_int {
    static NEXT: Next = Next::new(c"lchown");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(*const c_char, c_uint, c_uint) -> c_int>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, owner, group) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn fchownat(
    folder: c_int,
    path: *const c_char,
    owner: c_uint,
    group: c_uint,
    flags: c_int,
) -> c_int {
    static NEXT: Next = Next::new(c"fchownat");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(c_int, *const c_char, c_uint, c_uint, c_int) -> c_int>() }
    {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(folder, path, owner, group, flags) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn getxattr(
    path: *const c_char,
    name: *const c_char,
    value: *mut c_void,
    len: usize,
) -> isize {
    static NEXT: Next = Next::new(c"getxattr");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe {
        NEXT.get::<unsafe extern "C" fn(*const c_char, *const c_char, *mut c_void, usize) -> isize>()
    } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, name, value, len) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn lgetxattr(
    path: *const c_char,
    name: *const c_char,
    value: *mut c_void,
    len: usize,
) -> isize {
    static NEXT: Next = Next::new(c"lgetxattr");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe {
        NEXT.get::<unsafe extern "C" fn(*const c_char, *const c_char, *mut c_void, usize) -> isize>()
    } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, name, value, len) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn listxattr(path: *const c_char, list: *mut c_char, len: usize) -> isize {
    static NEXT: Next = Next::new(c"listxattr");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(*const c_char, *mut c_char, usize) -> isize>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, list, len) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn llistxattr(path: *const c_char, list: *mut c_char, len: usize) -> isize {
    static NEXT: Next = Next::new(c"llistxattr");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(*const c_char, *mut c_char, usize) -> isize>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, list, len) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn statfs(path: *const c_char, out: *mut libc::statfs) -> c_int {
    static NEXT: Next = Next::new(c"statfs");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(*const c_char, *mut libc::statfs) -> c_int>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, out) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn statfs64(path: *const c_char, out: *mut libc::statfs64) -> c_int {
    static NEXT: Next = Next::new(c"statfs64");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(*const c_char, *mut libc::statfs64) -> c_int>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, out) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn statvfs(path: *const c_char, out: *mut libc::statvfs) -> c_int {
    static NEXT: Next = Next::new(c"statvfs");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(*const c_char, *mut libc::statvfs) -> c_int>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, out) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn statvfs64(path: *const c_char, out: *mut libc::statvfs64) -> c_int {
    static NEXT: Next = Next::new(c"statvfs64");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(*const c_char, *mut libc::statvfs64) -> c_int>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, out) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn inotify_add_watch(fd: c_int, path: *const c_char, mask: c_uint) -> c_int {
    static NEXT: Next = Next::new(c"inotify_add_watch");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(c_int, *const c_char, c_uint) -> c_int>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(fd, path, mask) },
        None => -1,
    }
}
