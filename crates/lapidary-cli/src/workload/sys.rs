//! The few system interfaces that a plain DRM client needs: `ioctl` and `mmap` through the C library.
//!
//! They go through the C library's functions on purpose, as any client's do: those are what the device's library
//! stands in front of.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use bytemuck::Pod;

/// Direction bits of an ioctl number: the client writes, reads, or both (Linux `asm-generic/ioctl.h`).
const WRITE: u64 = 1;
const READ: u64 = 2;

/// A DRM ioctl that reads and writes its argument; `nr` as in `drm.h`, the size that of `T`.
///
/// Retries when a signal interrupts it, as libdrm does.
pub(super) fn drm_ioctl<T: Pod>(file: &File, nr: u8, argument: &mut T) -> io::Result<()> {
    let number = (READ | WRITE) << 30 | (size_of::<T>() as u64) << 16 | u64::from(b'd') << 8 | u64::from(nr);
    loop {
        // SAFETY: the argument is plain data of exactly the size that the number says, and exclusively borrowed; any
        // bytes the device stores in it are valid for a `Pod` type. Addresses inside it are the caller's business and
        // come from live, borrowed memory.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), number as _, std::ptr::from_mut(argument)) };
        if result != -1 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            return Err(error);
        }
    }
}

/// A shared mapping of a buffer; unmapped on drop.
#[derive(Debug)]
pub(super) struct Mapping {
    at: NonNull<libc::c_void>,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes of `file` at `offset`, to read and write.
    pub(super) fn new(file: &impl AsRawFd, offset: u64, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the system's choice touches no memory that is in use.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(at).map(|at| Self { at, len }).ok_or_else(|| io::Error::other("mapped at address zero"))
    }

    /// The number of 64-bit words.
    pub(super) fn words(&self) -> usize {
        self.len / 8
    }

    /// Word `index`; the GPU or another process may change it at any time.
    pub(super) fn read(&self, index: usize) -> u64 {
        assert!(index < self.words(), "word {index} of {}", self.words());
        // SAFETY: in bounds by the assertion, aligned since mappings are page-aligned; volatile because others write.
        unsafe { self.at.cast::<u64>().add(index).read_volatile() }
    }

    /// Stores word `index`.
    pub(super) fn write(&self, index: usize, value: u64) {
        assert!(index < self.words(), "word {index} of {}", self.words());
        // SAFETY: as for `read`.
        unsafe { self.at.cast::<u64>().add(index).write_volatile(value) }
    }

    /// Stores `byte` everywhere.
    pub(super) fn fill(&self, byte: u8) {
        // SAFETY: the mapping is `len` bytes long.
        unsafe { self.at.cast::<u8>().write_bytes(byte, self.len) }
    }

    /// Copies the bytes of another mapping, which is at least as long, by the C library's `memcpy`.
    pub(super) fn copy_from(&self, other: &Mapping) {
        assert!(self.len <= other.len, "{} bytes from a mapping of {}", self.len, other.len);
        // SAFETY: both mappings are long enough; they are different ones, so they don't overlap.
        unsafe { self.at.cast::<u8>().copy_from_nonoverlapping(other.at.cast(), self.len) }
    }

    /// Stores 32-bit word `index`.
    pub(super) fn write_u32(&self, index: usize, value: u32) {
        assert!(index < self.len / 4, "word {index} of {}", self.len / 4);
        // SAFETY: as for `read`.
        unsafe { self.at.cast::<u32>().add(index).write_volatile(value) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, and nothing refers to it beyond this value.
        unsafe { libc::munmap(self.at.as_ptr(), self.len) };
    }
}

/// Takes ownership of a descriptor that the device installed.
pub(super) fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the device just installed this descriptor in this process for this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
