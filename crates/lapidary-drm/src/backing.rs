//! The bytes behind buffers: memfds, and client memory.
//!
//! A buffer's bytes are a memfd of its own, so that a client's `mmap` is the kernel's own, and a shared buffer's
//! descriptor is the memfd itself. It is sealed against changes of size: an engine touches it through a mapping, and
//! a client that shrank it would otherwise kill the server with a bus error. The mapping is made at the first use
//! by the GPU and stays for the buffer's life.
//!
//! Client memory (a userptr) is reached through `/proc/PID/mem` at each access, so what the client has mapped at an
//! address at that moment is what the GPU sees: there is no page to become stale, and nothing is pinned.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use lapidary_gpu::memory::{HostMemory, MemoryError, SharedRegion};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::transport::{ClientMemory, Errno};

/// A buffer's bytes. See the module's head.
#[derive(Debug)]
pub struct Backing {
    fd: Arc<OwnedFd>,
    size: u64,
    region: OnceLock<SharedRegion>,
}

impl Backing {
    /// `size` zero bytes, which cost nothing until they are touched.
    ///
    /// # Errors
    /// What the system answers: no descriptors or no memory left.
    pub fn new(name: &str, size: u64) -> Result<Self, Errno> {
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, size)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self { fd: Arc::new(fd), size, region: OnceLock::new() })
    }

    /// The memfd.
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Maps the bytes into this process, if that hasn't happened yet; [`HostMemory::mapped`] needs it.
    ///
    /// # Errors
    /// When there is no address space left for it.
    pub fn map(&self) -> Result<(), MemoryError> {
        if self.region.get().is_none() {
            let region = SharedRegion::map_file(&*self.fd, self.size as usize)?;
            // Whoever was quicker made the same mapping; this one goes again.
            let _ = self.region.set(region);
        }
        Ok(())
    }
}

impl HostMemory for Backing {
    fn mapped(&self) -> Option<&SharedRegion> {
        self.region.get()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let outside = MemoryError::Inaccessible { offset };
        self.region.get().ok_or(outside)?.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), MemoryError> {
        let outside = MemoryError::Inaccessible { offset };
        self.region.get().ok_or(outside)?.write_at(offset, buf)
    }
}

/// A stretch of a client's own memory, at whatever is mapped there when it is accessed.
pub struct ClientRange {
    memory: Arc<ClientMemory>,
    start: u64,
    len: u64,
}

impl ClientRange {
    /// `len` bytes from client address `start` on.
    ///
    /// # Errors
    /// `EFAULT` if a page of it can't be read now. Touches each page once, which brings it in.
    pub fn new(memory: Arc<ClientMemory>, start: u64, len: u64) -> Result<Self, Errno> {
        const PAGE: u64 = 4096;
        let end = start.checked_add(len).ok_or(Errno::FAULT)?;
        let mut page = start;
        while page < end {
            memory.read_pod::<u8>(page)?;
            page = (page / PAGE + 1) * PAGE;
        }
        Ok(Self { memory, start, len })
    }

    fn address(&self, offset: u64, len: usize) -> Result<u64, MemoryError> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.len => Ok(self.start + offset),
            _ => Err(MemoryError::OutOfRange { offset, len: len as u64, size: self.len }),
        }
    }
}

impl HostMemory for ClientRange {
    fn mapped(&self) -> Option<&SharedRegion> {
        None
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let address = self.address(offset, buf.len())?;
        self.memory.read(address, buf).map_err(|_| MemoryError::Inaccessible { offset })
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), MemoryError> {
        let address = self.address(offset, buf.len())?;
        self.memory.write(address, buf).map_err(|_| MemoryError::Inaccessible { offset })
    }
}
