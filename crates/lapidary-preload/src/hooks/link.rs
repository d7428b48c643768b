//! Where links lead, and other paths that the system answers: the tree's folder must not show.

use std::ffi::{c_char, c_int};

use crate::config;
use crate::identity::Name;
use crate::paths::{ProcPath, TreePath, strip, strip_string, tree_path};
use crate::sys::{self, Next};

/// Where the link of a descriptor in `/proc` leads, as the kernel sees it. The length, if it fits.
pub(super) fn raw_link_of(fd: c_int, into: &mut [u8]) -> Option<usize> {
    let mut path = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut digits = [0; 10];
    let mut rest = u32::try_from(fd).ok()?;
    let mut count = 0;
    loop {
        digits[count] = b'0' + (rest % 10) as u8;
        count += 1;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    for (place, digit) in path[14..].iter_mut().zip(digits[..count].iter().rev()) {
        *place = *digit;
    }
    let arguments =
        [libc::AT_FDCWD as usize, path.as_ptr() as usize, into.as_mut_ptr() as usize, into.len(), 0, 0];
    // SAFETY: the path ends with a zero; the buffer is valid.
    let len = unsafe { sys::quiet(libc::SYS_readlinkat, arguments) };
    usize::try_from(len).ok().filter(|len| *len < into.len())
}

/// # Safety
/// As `readlinkat`.
unsafe fn read_link(folder: c_int, path: *const c_char, into: *mut c_char, size: usize) -> isize {
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let real = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: as the caller promised; a tree path is a C string.
    let Some(bytes) = (unsafe { sys::bytes(path) }).filter(|_| config::get().is_some()) else {
        // SAFETY: as the caller promised.
        return unsafe { raw_read_link(folder, path, into, size) };
    };
    if let Some(ProcPath::Fd(fd)) = ProcPath::of(bytes)
        && let Some(name) = Name::of(fd)
    {
        let len = name.text().len().min(size);
        // SAFETY: the buffer has `size` bytes.
        unsafe { std::ptr::copy_nonoverlapping(name.text().as_ptr(), into.cast(), len) };
        return len as isize;
    }
    // The tree's folder must fit in front of what the program has room for.
    let mut buffer = [0_u8; libc::PATH_MAX as usize];
    // SAFETY: the buffer is valid.
    let len = unsafe { raw_read_link(folder, real, buffer.as_mut_ptr().cast(), buffer.len()) };
    let Ok(len) = usize::try_from(len) else { return len };
    if size == 0 {
        return sys::fail(libc::EINVAL) as isize;
    }
    let len = strip(&mut buffer, len).min(size);
    // SAFETY: both have room for that.
    unsafe { std::ptr::copy_nonoverlapping(buffer.as_ptr(), into.cast(), len) };
    len as isize
}

/// # Safety
/// As `readlinkat`.
unsafe fn raw_read_link(folder: c_int, path: *const c_char, into: *mut c_char, size: usize) -> isize {
    let arguments = [folder as usize, path as usize, into as usize, size, 0, 0];
    // SAFETY: the kernel checks the pointers.
    unsafe { sys::call(libc::SYS_readlinkat, arguments) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn readlink(path: *const c_char, into: *mut c_char, size: usize) -> isize {
    // SAFETY: as the caller promised.
    unsafe { read_link(libc::AT_FDCWD, path, into, size) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn readlinkat(folder: c_int, path: *const c_char, into: *mut c_char, size: usize) -> isize {
    // SAFETY: as the caller promised.
    unsafe { read_link(folder, path, into, size) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __readlink_chk(
    path: *const c_char,
    into: *mut c_char,
    size: usize,
    room: usize,
) -> isize {
    // SAFETY: as the caller promised.
    unsafe { read_link(libc::AT_FDCWD, path, into, size.min(room)) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __readlinkat_chk(
    folder: c_int,
    path: *const c_char,
    into: *mut c_char,
    size: usize,
    room: usize,
) -> isize {
    // SAFETY: as the caller promised.
    unsafe { read_link(folder, path, into, size.min(room)) }
}

type RealPath = unsafe extern "C" fn(*const c_char, *mut c_char) -> *mut c_char;

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn realpath(path: *const c_char, into: *mut c_char) -> *mut c_char {
    static NEXT: Next = Next::new(c"realpath");
    // SAFETY: as the caller promised.
    let tree = unsafe { tree_path(path) };
    let path = tree.as_ref().map_or(path, TreePath::as_ptr);
    // SAFETY: the type is the function's.
    let Some(next) = (unsafe { NEXT.get::<RealPath>() }) else { return std::ptr::null_mut() };
    // SAFETY: as the caller promised; a tree path is a C string.
    let answer = unsafe { next(path, into) };
    // SAFETY: the answer is null or a string in memory of the program's.
    unsafe { strip_string(answer) };
    answer
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __realpath_chk(path: *const c_char, into: *mut c_char, _room: usize) -> *mut c_char {
    // SAFETY: as the caller promised: libc demands room for the longest path.
    unsafe { realpath(path, into) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn canonicalize_file_name(path: *const c_char) -> *mut c_char {
    // SAFETY: as the caller promised.
    unsafe { realpath(path, std::ptr::null_mut()) }
}

type CurrentFolder = unsafe extern "C" fn(*mut c_char, usize) -> *mut c_char;

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn getcwd(into: *mut c_char, size: usize) -> *mut c_char {
    static NEXT: Next = Next::new(c"getcwd");
    // SAFETY: the type is the function's.
    let Some(next) = (unsafe { NEXT.get::<CurrentFolder>() }) else { return std::ptr::null_mut() };
    // SAFETY: as the caller promised.
    let answer = unsafe { next(into, size) };
    // SAFETY: the answer is null or a string in memory of the program's.
    unsafe { strip_string(answer) };
    answer
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __getcwd_chk(into: *mut c_char, size: usize, room: usize) -> *mut c_char {
    // SAFETY: as the caller promised.
    unsafe { getcwd(into, size.min(room)) }
}
