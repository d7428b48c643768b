//! Host memory that can stand behind device addresses.
//!
//! Two kinds exist. *Mapped* memory is in this process's address space (a memfd that clients map as well): the engines use it through raw
//! pointers, since other processes write it at any time. *Unmapped* memory (a client's own pages, reached through
//! `/proc/PID/mem`) is read and written by calls.
//!
//! A device address is detached only when no engine uses it any more, so a [`SharedRegion`] lives as long as its [`HostMemory`]
//! is attached, and that is all its users rely on.

#![allow(unsafe_code)]

use std::{fmt, os::fd::AsFd, ptr::NonNull, sync::atomic::AtomicU64};

/// Why host memory could not be had, read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The bytes are not in the memory.
    #[error("{len} bytes at offset {offset:#x} are outside memory of {size:#x} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Number of bytes asked for.
        len: u64,
        /// Size of the memory.
        size: u64,
    },
    /// The host refused the access: the page is gone or protected.
    #[error("host memory at offset {offset:#x} is not accessible")]
    Inaccessible {
        /// First byte asked for.
        offset: u64,
    },
    /// A file could not be mapped.
    #[error("mapping {len:#x} bytes failed: {errno}")]
    Map {
        /// Bytes to map.
        len: usize,
        /// The host's reason.
        errno: rustix::io::Errno,
    },
}

/// Memory that a driver attaches to device addresses.
pub trait HostMemory: Send + Sync {
    /// The memory in this process, if it is mapped. Must answer the same for the life of `self`.
    fn mapped(&self) -> Option<&SharedRegion>;

    /// Copies bytes at `offset` into `buf`. Called for unmapped memory only.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`] or [`MemoryError::Inaccessible`]; part of `buf` may have been written.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryError>;

    /// Copies `buf` to `offset`. Called for unmapped memory only.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`] or [`MemoryError::Inaccessible`]; part of the memory may have been written.
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), MemoryError>;
}

/// Bytes in this process that other threads and processes may write at any time.
///
/// # Invariants
/// `ptr` is valid for reads and writes of `len` bytes until the region is dropped, aligned to 8, and no Rust reference to the
/// bytes exists other than to atomics.
pub struct SharedRegion {
    ptr: NonNull<u8>,
    len: usize,
    owner: Owner,
}

enum Owner {
    Heap(#[expect(dead_code, reason = "kept for its memory")] Box<[AtomicU64]>),
    Mapping,
    Foreign,
}

// SAFETY: the region only lends a raw pointer; the bytes are valid from any thread, and what users do with them is their contract.
unsafe impl Send for SharedRegion {}
// SAFETY: as above; `&SharedRegion` gives nothing but the pointer and the length.
unsafe impl Sync for SharedRegion {}

impl SharedRegion {
    /// Zeroed memory of at least `len` bytes (rounded up to 8) on the heap.
    pub fn heap(len: usize) -> Self {
        let words: Box<[AtomicU64]> = (0..len.div_ceil(8)).map(|_| AtomicU64::new(0)).collect();
        let ptr = NonNull::from(&words[..]).cast();
        Self { ptr, len: words.len() * 8, owner: Owner::Heap(words) }
    }

    /// The first `len` bytes of a file (a memfd), mapped shared for reading and writing. The file must not shrink while the region
    /// lives (seal it): touching bytes beyond its end is a bus error.
    ///
    /// # Errors
    /// [`MemoryError::Map`].
    pub fn map_file(file: impl AsFd, len: usize) -> Result<Self, MemoryError> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses; nobody else knows of it.
        let ptr = unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, file, 0) };
        let ptr = ptr.map_err(|errno| MemoryError::Map { len, errno })?;
        let ptr =
            NonNull::new(ptr.cast()).ok_or(MemoryError::Map { len, errno: rustix::io::Errno::INVAL })?;
        Ok(Self { ptr, len, owner: Owner::Mapping })
    }

    /// Memory that somebody else owns.
    ///
    /// # Safety
    /// `ptr` must be valid for reads and writes of `len` bytes and aligned to 8 for the life of the region, and nobody may hold Rust
    /// references to the bytes other than to atomics.
    pub unsafe fn from_raw(ptr: NonNull<u8>, len: usize) -> Self {
        Self { ptr, len, owner: Owner::Foreign }
    }

    /// Start of the bytes.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for SharedRegion {
    fn drop(&mut self) {
        if matches!(self.owner, Owner::Mapping) {
            // SAFETY: this region made the mapping, and by its contract nobody uses the pointer any more.
            let unmapped = unsafe { rustix::mm::munmap(self.ptr.as_ptr().cast(), self.len) };
            debug_assert!(unmapped.is_ok(), "munmap of an own mapping: {unmapped:?}");
        }
    }
}

impl fmt::Debug for SharedRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedRegion({:p}, {:#x} bytes)", self.ptr, self.len)
    }
}

impl HostMemory for SharedRegion {
    fn mapped(&self) -> Option<&SharedRegion> {
        Some(self)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let src = self.at(offset, buf.len())?;
        // SAFETY: `at` checked the range; `buf` is ours alone, so the two do not overlap. Racing writers tear, as on hardware.
        unsafe { std::ptr::copy_nonoverlapping(src, buf.as_mut_ptr(), buf.len()) };
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), MemoryError> {
        let dst = self.at(offset, buf.len())?;
        // SAFETY: as in `read_at`.
        unsafe { std::ptr::copy_nonoverlapping(buf.as_ptr(), dst, buf.len()) };
        Ok(())
    }
}

impl SharedRegion {
    /// Pointer to `len` bytes at `offset`, if all are inside.
    fn at(&self, offset: u64, len: usize) -> Result<*mut u8, MemoryError> {
        let error = MemoryError::OutOfRange { offset, len: len as u64, size: self.len as u64 };
        let start = usize::try_from(offset).map_err(|_| error.clone())?;
        match start.checked_add(len) {
            // SAFETY: within the region's bytes.
            Some(end) if end <= self.len => Ok(unsafe { self.ptr.as_ptr().add(start) }),
            _ => Err(error),
        }
    }
}
