//! Pages of the program's own, to be imported as device memory; and mappings of shared descriptors.

#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::ptr;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// A mapped range of whole pages. Clones are the same range; the last one unmaps it.
#[derive(Clone)]
pub(crate) struct HostRegion {
    mapping: Rc<Mapping>,
}

struct Mapping {
    base: *mut u8,
    len: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `HostRegion`, which gives out copies of its bytes only; device memory that was
        // imported from it holds it.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

impl HostRegion {
    /// Fresh private pages.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn anonymous(len: usize) -> Result<HostRegion> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE) };
        Ok(HostRegion::of(base.context("mmap")?.cast(), len))
    }

    fn of(base: *mut u8, len: usize) -> HostRegion {
        HostRegion { mapping: Rc::new(Mapping { base, len }) }
    }

    /// Where it begins.
    pub(crate) fn address(&self) -> *mut u8 {
        self.mapping.base
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// When they leave the region.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        // SAFETY: the range lies within the mapping, checked above.
        unsafe { self.mapping.base.add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// When they leave the region.
    pub(crate) fn read(&self, offset: usize, len: usize) -> Result<Vec<u8>> {
        self.check(offset, len)?;
        let mut bytes = vec![0; len];
        // SAFETY: the range lies within the mapping, checked above.
        unsafe { self.mapping.base.add(offset).copy_to_nonoverlapping(bytes.as_mut_ptr(), len) };
        Ok(bytes)
    }

    fn check(&self, offset: usize, len: usize) -> Result<()> {
        let end = offset.checked_add(len);
        ensure!(end.is_some_and(|end| end <= self.mapping.len), "{len} bytes at {offset} leave the region");
        Ok(())
    }
}

/// Maps a shared descriptor (a dma-buf) into the program, readable and writable.
///
/// # Errors
/// When it can't be mapped.
pub(crate) fn map_shared(fd: BorrowedFd<'_>, len: usize) -> Result<HostRegion> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let base = unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, fd, 0) };
    Ok(HostRegion::of(base.context("mmap of a shared buffer")?.cast(), len))
}
