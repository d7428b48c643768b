//! The bytes behind buffers: memfds, and client memory.
//!
//! A buffer's bytes are a memfd of its own, so that a client's `mmap` is the kernel's own, and a shared buffer's
//! descriptor is the memfd itself. It is sealed against changes of size: an engine touches it through a mapping, and
//! a client that shrank it would otherwise kill the server with a bus error. The mapping is made before the GPU
//! first sees the bytes and stays for the buffer's life. A system allows a process so many mappings and no more: buffers
//! beyond [`MAX_MAPPED`] are read and written through their descriptors, which is slower, and not atomic towards the CPU.
//!
//! Client memory (a userptr) is reached through `/proc/PID/mem` at each access, so what the client has mapped at an
//! address at that moment is what the GPU sees: there is no page to become stale, and nothing is pinned.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use lapidary::fence::Interrupt;
use lapidary_gpu::memory::{HostMemory, MemoryError, SharedRegion};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::transport::{ClientMemory, Errno};

/// Most buffers that are mapped at a time: half of what Linux allows a process unless told otherwise, since threads and
/// memory allocators need mappings too.
pub const MAX_MAPPED: usize = 32 << 10;

/// A buffer's bytes. See the module's head.
#[derive(Debug)]
pub struct Backing {
    fd: Arc<OwnedFd>,
    size: u64,
    region: OnceLock<Mapped>,
}

/// A mapping that counts as one of [`MAX_MAPPED`].
#[derive(Debug)]
struct Mapped {
    region: SharedRegion,
    _counted: Counted,
}

/// One of the mappings there are.
#[derive(Debug)]
struct Counted;

static MAPPED: AtomicUsize = AtomicUsize::new(0);

impl Counted {
    fn enter() -> Option<Self> {
        let one_more = |mapped: usize| (mapped < MAX_MAPPED).then_some(mapped + 1);
        MAPPED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok().then_some(Self)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        MAPPED.fetch_sub(1, Ordering::Relaxed);
    }
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

    /// Maps the bytes into this process, if that hasn't happened yet and can be done. To be called before they get device
    /// addresses, since that takes note of where they are.
    pub fn map(&self) {
        if self.region.get().is_some() {
            return;
        }
        let Some(counted) = Counted::enter() else { return };
        match SharedRegion::map_file(&*self.fd, self.size as usize) {
            // Whoever was quicker made the same mapping; this one goes again.
            Ok(region) => drop(self.region.set(Mapped { region, _counted: counted })),
            Err(error) => tracing::warn!(%error, size = self.size, "a buffer can't be mapped"),
        }
    }

    /// Refuses what is not within the buffer.
    fn check(&self, offset: u64, len: usize) -> Result<(), MemoryError> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(MemoryError::OutOfRange { offset, len: len as u64, size: self.size }),
        }
    }
}

impl HostMemory for Backing {
    fn mapped(&self) -> Option<&SharedRegion> {
        self.region.get().map(|mapped| &mapped.region)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        if let Some(region) = self.mapped() {
            return region.read_at(offset, buf);
        }
        self.check(offset, buf.len())?;
        let mut done = 0;
        while done < buf.len() {
            done += match rustix::io::pread(&*self.fd, &mut buf[done..], offset + done as u64) {
                Ok(read) if read > 0 => read,
                _ => return Err(MemoryError::Inaccessible { offset }),
            };
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), MemoryError> {
        if let Some(region) = self.mapped() {
            return region.write_at(offset, buf);
        }
        self.check(offset, buf.len())?;
        let mut done = 0;
        while done < buf.len() {
            done += match rustix::io::pwrite(&*self.fd, &buf[done..], offset + done as u64) {
                Ok(written) if written > 0 => written,
                _ => return Err(MemoryError::Inaccessible { offset }),
            };
        }
        Ok(())
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
    /// `EFAULT` if a page of it can't be read now; `EINTR`. Touches each page once, which brings it in, and may take long.
    pub fn new(
        memory: Arc<ClientMemory>,
        start: u64,
        len: u64,
        interrupt: &Interrupt,
    ) -> Result<Self, Errno> {
        const PAGE: u64 = 4096;
        let end = start.checked_add(len).ok_or(Errno::FAULT)?;
        let mut page = start;
        while page < end {
            if interrupt.is_raised() {
                return Err(Errno::INTR);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_same_with_and_without_a_mapping() {
        let backing = Backing::new("test", 8192).unwrap();
        backing.write_at(4000, &[7; 200]).unwrap();
        assert!(backing.mapped().is_none());
        backing.map();
        assert!(backing.mapped().is_some());
        let mut bytes = [0; 200];
        backing.read_at(4000, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 200]);
    }

    #[test]
    fn nothing_outside_the_buffer_is_reached() {
        let backing = Backing::new("test", 4096).unwrap();
        for map in [false, true] {
            if map {
                backing.map();
            }
            assert!(backing.read_at(4090, &mut [0; 7]).is_err());
            assert!(backing.write_at(u64::MAX, &[0; 2]).is_err());
            assert!(backing.write_at(4090, &[0; 6]).is_ok());
        }
    }
}
