//! The server's side of a channel's shared page.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use lapidary_protocol::channel::{PAGE_BYTES, Page};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::Errno;

/// A mapped page.
///
/// # Invariants
/// `page` points to `PAGE_BYTES` of a shared mapping that is this value's own. The file under it is sealed
/// against shrinking, so that no access can fault whatever the client does with its descriptor.
#[derive(Debug)]
pub(super) struct MappedPage {
    page: NonNull<Page>,
}

// SAFETY: every field of a `Page` is an atomic, and the mapping lasts until the value is dropped.
unsafe impl Send for MappedPage {}
// SAFETY: as above.
unsafe impl Sync for MappedPage {}

impl MappedPage {
    /// Makes a page of zeros, and the descriptor to give to the client.
    pub(super) fn create() -> Result<(Self, OwnedFd), Errno> {
        let fd = memfd_create("lapidary-channel", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, PAGE_BYTES as u64)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nobody else's memory.
        let address =
            unsafe { mmap(std::ptr::null_mut(), PAGE_BYTES, protection, MapFlags::SHARED, &fd, 0) }?;
        let page = NonNull::new(address.cast()).ok_or(Errno::NOMEM)?;
        Ok((Self { page }, fd))
    }
}

impl std::ops::Deref for MappedPage {
    type Target = Page;

    fn deref(&self) -> &Page {
        // SAFETY: by the invariant the memory is there, aligned and large enough; all-zero and any other bytes are
        // valid atomics; nobody makes a `&mut` of it.
        unsafe { self.page.as_ref() }
    }
}

impl Drop for MappedPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no reference into it outlives the value.
        let unmapped = unsafe { munmap(self.page.as_ptr().cast(), PAGE_BYTES) };
        debug_assert!(unmapped.is_ok());
    }
}
