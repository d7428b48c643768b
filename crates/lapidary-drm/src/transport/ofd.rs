//! Locks that belong to an open file description.
//!
//! A shared lock on one byte marks an open of a file: it lasts as long as any copy of the descriptor or mapping made
//! from it, in any process, and the kernel drops it with the last. Another open of the same file can ask whether it is
//! still there.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::Errno;

/// Marks this open with byte `slot`.
pub(super) fn mark(fd: impl AsFd, slot: u64) -> Result<(), Errno> {
    lock_call(fd.as_fd(), libc::F_OFD_SETLK, libc::F_RDLCK, slot).map(drop)
}

/// Whether an open that is marked with byte `slot` is left. `fd` must be another open of the file.
pub(super) fn is_marked(fd: impl AsFd, slot: u64) -> Result<bool, Errno> {
    let found = lock_call(fd.as_fd(), libc::F_OFD_GETLK, libc::F_WRLCK, slot)?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

fn lock_call(fd: BorrowedFd<'_>, command: i32, kind: i32, slot: u64) -> Result<libc::flock, Errno> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: i64::try_from(slot).map_err(|_| Errno::OVERFLOW)?,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the descriptor is borrowed and `lock` is a valid structure that these commands read and write.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut lock) };
    if result < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};

    #[test]
    fn a_mark_lasts_as_long_as_any_copy_of_the_open() {
        let memfd = memfd_create("t", MemfdFlags::CLOEXEC).unwrap();
        let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
        let marked = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        mark(&marked, 5).unwrap();
        let copy = rustix::io::fcntl_dupfd_cloexec(&marked, 0).unwrap();
        assert!(is_marked(&memfd, 5).unwrap() && !is_marked(&memfd, 6).unwrap());
        drop(marked);
        assert!(is_marked(&memfd, 5).unwrap());
        drop(copy);
        assert!(!is_marked(&memfd, 5).unwrap());
    }
}
