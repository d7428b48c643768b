//! Unmapping and replacing memory: the device is told before, if it uses any of the program's.

use std::ffi::{c_int, c_ulong, c_void};

use crate::calls;
use crate::sys;

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn munmap(address: *mut c_void, length: usize) -> c_int {
    calls::memory_changes(address as usize, length);
    // SAFETY: as the caller promised.
    unsafe { sys::call(libc::SYS_munmap, [address as usize, length, 0, 0, 0, 0]) as c_int }
}

/// # Safety
/// As libc's. The fifth argument counts only with `MREMAP_FIXED`.
#[unsafe(no_mangle)]
unsafe extern "C" fn mremap(
    old: *mut c_void,
    old_length: usize,
    new_length: usize,
    flags: c_int,
    new: *mut c_void,
) -> *mut c_void {
    calls::memory_changes(old as usize, old_length);
    if flags & libc::MREMAP_FIXED != 0 {
        calls::memory_changes(new as usize, new_length);
    }
    let arguments = [old as usize, old_length, new_length, flags as usize, new as usize, 0];
    // SAFETY: as the caller promised.
    unsafe { sys::call(libc::SYS_mremap, arguments) as *mut c_void }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int {
    // These take pages away; all others leave them.
    if matches!(advice, libc::MADV_DONTNEED | libc::MADV_FREE | libc::MADV_REMOVE) {
        calls::memory_changes(address as usize, length);
    }
    // SAFETY: as the caller promised.
    unsafe { sys::call(libc::SYS_madvise, [address as usize, length, advice as usize, 0, 0, 0]) as c_int }
}

/// What an anonymous or native mapping at a fixed place replaces.
pub(super) fn about_to_map(address: *mut c_void, length: usize, flags: c_int) {
    const NO_REPLACE: c_ulong = libc::MAP_FIXED_NOREPLACE as c_ulong;
    if flags & libc::MAP_FIXED != 0 && flags as c_ulong & NO_REPLACE != NO_REPLACE {
        calls::memory_changes(address as usize, length);
    }
}
