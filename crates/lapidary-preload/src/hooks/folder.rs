//! Walking folders. Over a real tree libc does it by itself, once the path leads there; only the paths it answers need care.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};

use crate::paths::{TreePath, strip_string, tree_path, visible_part};
use crate::sys::Next;

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn opendir(path: *const c_char) -> *mut libc::DIR {
    static NEXT: Next = Next::new(c"opendir");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<unsafe extern "C" fn(*const c_char) -> *mut libc::DIR>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path) },
        None => std::ptr::null_mut(),
    }
}

type Filter = Option<unsafe extern "C" fn(*const c_void) -> c_int>;
type Order = Option<unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int>;
type Scan = unsafe extern "C" fn(*const c_char, *mut *mut *mut c_void, Filter, Order) -> c_int;

/// # Safety
/// As `scandir`.
unsafe fn scan(
    next: &Next,
    path: *const c_char,
    list: *mut *mut *mut c_void,
    filter: Filter,
    order: Order,
) -> c_int {
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    match unsafe { next.get::<Scan>() } {
        // SAFETY: as the caller promised; a tree path is a C string.
        Some(next) => unsafe { next(path, list, filter, order) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn scandir(
    path: *const c_char,
    list: *mut *mut *mut c_void,
    filter: Filter,
    order: Order,
) -> c_int {
    static NEXT: Next = Next::new(c"scandir");
    // SAFETY: as the caller promised.
    unsafe { scan(&NEXT, path, list, filter, order) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn scandir64(
    path: *const c_char,
    list: *mut *mut *mut c_void,
    filter: Filter,
    order: Order,
) -> c_int {
    static NEXT: Next = Next::new(c"scandir64");
    // SAFETY: as the caller promised.
    unsafe { scan(&NEXT, path, list, filter, order) }
}

type OnError = Option<unsafe extern "C" fn(*const c_char, c_int) -> c_int>;
type Glob = unsafe extern "C" fn(*const c_char, c_int, OnError, *mut libc::glob_t) -> c_int;

/// # Safety
/// As `glob`.
unsafe fn find(
    next: &Next,
    pattern: *const c_char,
    flags: c_int,
    on_error: OnError,
    found: *mut libc::glob_t,
) -> c_int {
    // SAFETY: the type is the function's.
    let Some(next) = (unsafe { next.get::<Glob>() }) else { return libc::GLOB_NOSPACE };
    // SAFETY: as the caller promised.
    let Some(tree) = (unsafe { tree_path(pattern) }) else {
        // SAFETY: as the caller promised.
        return unsafe { next(pattern, flags, on_error, found) };
    };
    // SAFETY: as the caller promised; a tree path is a C string.
    let result = unsafe { next(tree.as_ptr(), flags, on_error, found) };
    if result == 0 {
        // SAFETY: libc has filled it in: `gl_pathc` strings behind `gl_offs` empty places.
        unsafe {
            for index in 0..(*found).gl_pathc {
                strip_string(
                    *(*found)
                        .gl_pathv
                        .add((*found).gl_offs * usize::from(flags & libc::GLOB_DOOFFS != 0) + index),
                );
            }
        }
    }
    result
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn glob(
    pattern: *const c_char,
    flags: c_int,
    on_error: OnError,
    found: *mut libc::glob_t,
) -> c_int {
    static NEXT: Next = Next::new(c"glob");
    // SAFETY: as the caller promised.
    unsafe { find(&NEXT, pattern, flags, on_error, found) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn glob64(
    pattern: *const c_char,
    flags: c_int,
    on_error: OnError,
    found: *mut libc::glob_t,
) -> c_int {
    static NEXT: Next = Next::new(c"glob64");
    // SAFETY: as the caller promised; on 64-bit machines the two structures are one.
    unsafe { find(&NEXT, pattern, flags, on_error, found) }
}

type OnFile = unsafe extern "C" fn(*const c_char, *const libc::stat, c_int, *mut c_void) -> c_int;
type Walk = unsafe extern "C" fn(*const c_char, OnFile, c_int, c_int) -> c_int;

thread_local! {
    /// What the program wants called in the walk that runs.
    static ON_FILE: Cell<Option<OnFile>> = const { Cell::new(None) };
}

unsafe extern "C" fn on_visible_file(
    path: *const c_char,
    stat: *const libc::stat,
    kind: c_int,
    place: *mut c_void,
) -> c_int {
    let Some(on_file) = ON_FILE.get() else { return -1 };
    // SAFETY: libc gives a C string.
    let visible = unsafe { visible_part(path) };
    // `base` of `struct FTW` counts from the path's beginning.
    let hidden = visible as usize - path as usize;
    // SAFETY: libc gives the structure, whose first member is `base`.
    unsafe { *place.cast::<c_int>() -= hidden as c_int };
    // SAFETY: as libc calls it.
    let result = unsafe { on_file(visible, stat, kind, place) };
    // SAFETY: as above.
    unsafe { *place.cast::<c_int>() += hidden as c_int };
    result
}

/// # Safety
/// As `nftw`.
unsafe fn walk(next: &Next, path: *const c_char, on_file: OnFile, depth: c_int, flags: c_int) -> c_int {
    // SAFETY: the type is the function's.
    let Some(next) = (unsafe { next.get::<Walk>() }) else { return -1 };
    // SAFETY: as the caller promised.
    let Some(tree) = (unsafe { tree_path(path) }) else {
        // SAFETY: as the caller promised.
        return unsafe { next(path, on_file, depth, flags) };
    };
    let outer = ON_FILE.replace(Some(on_file));
    // SAFETY: as the caller promised; a tree path is a C string.
    let result = unsafe { next(tree.as_ptr(), on_visible_file, depth, flags) };
    ON_FILE.set(outer);
    result
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn nftw(path: *const c_char, on_file: OnFile, depth: c_int, flags: c_int) -> c_int {
    static NEXT: Next = Next::new(c"nftw");
    // SAFETY: as the caller promised.
    unsafe { walk(&NEXT, path, on_file, depth, flags) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn nftw64(path: *const c_char, on_file: OnFile, depth: c_int, flags: c_int) -> c_int {
    static NEXT: Next = Next::new(c"nftw64");
    // SAFETY: as the caller promised.
    unsafe { walk(&NEXT, path, on_file, depth, flags) }
}
