//! Using and closing descriptors.

use std::ffi::{c_int, c_uint, c_ulong, c_void};

use crate::calls;
use crate::connection;
use crate::sys;

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(fd: c_int, command: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: as the caller promised.
    if let Some(result) = unsafe { calls::ioctl(fd, command as u32, argument) } {
        return result;
    }
    // SAFETY: as the caller promised.
    unsafe {
        sys::call(libc::SYS_ioctl, [fd as usize, command as usize, argument as usize, 0, 0, 0]) as c_int
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn mmap(
    address: *mut c_void,
    length: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    super::memory::about_to_map(address, length, flags);
    if fd >= 0
        && flags & libc::MAP_ANONYMOUS == 0
        && crate::config::get().is_some()
        && let Some(result) = calls::mmap(address as usize, length, [prot, flags], fd, offset)
    {
        return result as *mut c_void;
    }
    let modes = [prot as usize, flags as usize];
    let arguments = [address as usize, length, modes[0], modes[1], fd as usize, offset as usize];
    // SAFETY: as the caller promised.
    unsafe { sys::call(libc::SYS_mmap, arguments) as *mut c_void }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn mmap64(
    address: *mut c_void,
    length: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: as the caller promised.
    unsafe { mmap(address, length, prot, flags, fd, offset) }
}

/// Closes a descriptor by `close`. A program that closes the device's last one can rely on what a kernel would have
/// done by then; one that closes every number does not close this library's.
fn close_with(fd: c_int, close: impl FnOnce() -> c_int) -> c_int {
    let identity = calls::watched_identity(fd);
    let result = close();
    if result >= 0
        && let Some(identity) = identity
    {
        calls::closed(identity);
    }
    result
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    if connection::is_own(fd) {
        return sys::fail(libc::EBADF);
    }
    // SAFETY: touches no memory.
    close_with(fd, || unsafe { sys::call(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) as c_int })
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn dup2(old: c_int, new: c_int) -> c_int {
    if old == new {
        // The same number is no copy, but must be open.
        let arguments = [old as usize, libc::F_GETFD as usize, 0, 0, 0, 0];
        // SAFETY: touches no memory.
        let open = unsafe { sys::call(libc::SYS_fcntl, arguments) } >= 0;
        return if open { new } else { -1 };
    }
    // SAFETY: as the caller promised.
    unsafe { dup3(old, new, 0) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    if connection::is_own(old) {
        return sys::fail(libc::EBADF);
    }
    if connection::is_own(new) {
        return sys::fail(libc::EBUSY);
    }
    // SAFETY: touches no memory.
    close_with(new, || unsafe {
        sys::call(libc::SYS_dup3, [old as usize, new as usize, flags as usize, 0, 0, 0]) as c_int
    })
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    let mut from = first;
    while let Some(own) = connection::first_own(from).filter(|own| *own <= last) {
        if own > from && raw_close_range(from, own - 1, flags) < 0 {
            return -1;
        }
        from = own + 1;
    }
    if from > last && from > first { 0 } else { raw_close_range(from, last, flags) }
}

fn raw_close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    let arguments = [first as usize, last as usize, flags as usize, 0, 0, 0];
    // SAFETY: touches no memory.
    unsafe { sys::call(libc::SYS_close_range, arguments) as c_int }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn closefrom(first: c_int) {
    let kept = sys::errno();
    // SAFETY: as the caller promised.
    unsafe { close_range(first.max(0).cast_unsigned(), c_uint::MAX, 0) };
    sys::set_errno(kept);
}
