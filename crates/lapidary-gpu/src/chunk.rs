//! Pieces of translated memory, for bulk work.
//!
//! A [`Chunk`] wraps what a translation led to: mapped bytes, nothing (a null mapping), or a client's memory behind calls. All its
//! operations are bounds-checked; an offset outside the chunk is a programming error of the streamer, not of the client, and panics.
//!
//! Mapped bytes are shared with other processes: they are touched through raw pointers only, and copies may tear.

#![allow(unsafe_code)]

use std::{
    marker::PhantomData,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64},
    },
};

use crate::{
    bus::{Access, Fault, FaultKind, GpuVa},
    memory::{HostMemory, MemoryError},
};

/// Bytes moved per round where a copy must go through a buffer.
const BOUNCE: usize = 4096;

/// A contiguous piece of memory at a GPU virtual address, good while the bus that lent it is borrowed.
pub struct Chunk<'a> {
    va: GpuVa,
    access: Access,
    len: usize,
    target: Target,
    _bus: PhantomData<&'a ()>,
}

enum Target {
    /// Valid for reads and writes of the chunk's length.
    Mapped(NonNull<u8>),
    /// Reads as zero, swallows writes.
    Null,
    /// Reached by calls, from this offset on.
    Remote(Arc<dyn HostMemory>, u64),
}

impl<'a> Chunk<'a> {
    /// Memory in this process.
    ///
    /// # Safety
    /// `ptr` must be valid for reads and writes of `len` bytes for `'a`, and nobody may hold Rust references to the bytes other than to
    /// atomics.
    pub unsafe fn mapped(va: GpuVa, access: Access, ptr: NonNull<u8>, len: usize) -> Self {
        Self { va, access, len, target: Target::Mapped(ptr), _bus: PhantomData }
    }

    /// Memory in this process that is already known as atomics.
    pub fn from_atomics(va: GpuVa, access: Access, bytes: &'a [AtomicU8]) -> Self {
        // SAFETY: the bytes live for `'a`, and references to atomics allow writes.
        unsafe { Self::mapped(va, access, NonNull::from(bytes).cast(), bytes.len()) }
    }

    /// A null mapping.
    pub fn null(va: GpuVa, access: Access, len: usize) -> Self {
        Self { va, access, len, target: Target::Null, _bus: PhantomData }
    }

    /// Memory behind calls, starting at `offset`.
    pub fn remote(va: GpuVa, access: Access, memory: Arc<dyn HostMemory>, offset: u64, len: usize) -> Self {
        Self { va, access, len, target: Target::Remote(memory, offset), _bus: PhantomData }
    }

    /// Number of bytes.
    #[expect(clippy::len_without_is_empty, reason = "a chunk has at least one byte")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Address of the first byte.
    pub fn va(&self) -> GpuVa {
        self.va
    }

    /// Whether the chunk is a null mapping.
    pub fn is_null(&self) -> bool {
        matches!(self.target, Target::Null)
    }

    /// The bytes themselves, if they are mapped: valid for [`len`](Self::len) bytes while the chunk's borrow lasts. For raw or atomic accesses
    /// only, never for references.
    pub fn as_ptr(&self) -> Option<NonNull<u8>> {
        match self.target {
            Target::Mapped(ptr) => Some(ptr),
            _ => None,
        }
    }

    /// Copies bytes at `offset` into `buf`.
    ///
    /// # Errors
    /// A [`FaultKind::Host`] if the client's memory is gone.
    ///
    /// # Panics
    /// If the range is not inside the chunk.
    pub fn read(&self, offset: usize, buf: &mut [u8]) -> Result<(), Fault> {
        self.check(offset, buf.len());
        match &self.target {
            // SAFETY: checked above; `buf` is exclusively ours, so it does not overlap shared memory.
            Target::Mapped(ptr) => unsafe {
                std::ptr::copy_nonoverlapping(ptr.as_ptr().add(offset), buf.as_mut_ptr(), buf.len());
            },
            Target::Null => buf.fill(0),
            Target::Remote(memory, start) => {
                memory.read_at(start + offset as u64, buf).map_err(|e| self.fault(offset, &e))?;
            }
        }
        Ok(())
    }

    /// Copies `buf` to `offset`.
    ///
    /// # Errors
    /// A [`FaultKind::Host`] if the client's memory is gone.
    ///
    /// # Panics
    /// If the range is not inside the chunk.
    pub fn write(&self, offset: usize, buf: &[u8]) -> Result<(), Fault> {
        self.check(offset, buf.len());
        match &self.target {
            // SAFETY: as in `read`.
            Target::Mapped(ptr) => unsafe {
                std::ptr::copy_nonoverlapping(buf.as_ptr(), ptr.as_ptr().add(offset), buf.len());
            },
            Target::Null => {}
            Target::Remote(memory, start) => {
                memory.write_at(start + offset as u64, buf).map_err(|e| self.fault(offset, &e))?;
            }
        }
        Ok(())
    }

    /// Copies `len` bytes at `offset` to `dst` at `dst_offset`. Overlapping memory behaves as `memmove` when both are mapped.
    ///
    /// # Errors
    /// A [`FaultKind::Host`] if a client's memory is gone.
    ///
    /// # Panics
    /// If a range is not inside its chunk.
    pub fn copy_to(
        &self,
        offset: usize,
        dst: &Chunk<'_>,
        dst_offset: usize,
        len: usize,
    ) -> Result<(), Fault> {
        self.check(offset, len);
        dst.check(dst_offset, len);
        match (&self.target, &dst.target) {
            (_, Target::Null) => Ok(()),
            (Target::Mapped(from), Target::Mapped(to)) => {
                // SAFETY: both ranges were checked; `copy` allows overlap.
                unsafe { std::ptr::copy(from.as_ptr().add(offset), to.as_ptr().add(dst_offset), len) };
                Ok(())
            }
            _ => self.bounce_to(offset, dst, dst_offset, len),
        }
    }

    /// Sets `len` bytes at `offset` to `byte`.
    ///
    /// # Errors
    /// A [`FaultKind::Host`] if the client's memory is gone.
    ///
    /// # Panics
    /// If the range is not inside the chunk.
    pub fn fill(&self, offset: usize, len: usize, byte: u8) -> Result<(), Fault> {
        self.check(offset, len);
        match &self.target {
            Target::Mapped(ptr) => {
                // SAFETY: checked above.
                unsafe { std::ptr::write_bytes(ptr.as_ptr().add(offset), byte, len) };
                Ok(())
            }
            Target::Null => Ok(()),
            Target::Remote(..) => {
                let pattern = [byte; BOUNCE];
                (0..len)
                    .step_by(BOUNCE)
                    .try_for_each(|done| self.write(offset + done, &pattern[..BOUNCE.min(len - done)]))
            }
        }
    }

    /// The 4 bytes at `offset` as an atomic, if they are mapped and aligned.
    pub fn atomic_u32(&self, offset: usize) -> Option<&AtomicU32> {
        let ptr = self.aligned(offset, 4)?;
        // SAFETY: in bounds and aligned; the bytes are valid while the chunk's borrow lasts and are shared as atomics only.
        Some(unsafe { AtomicU32::from_ptr(ptr.cast()) })
    }

    /// The 8 bytes at `offset` as an atomic, if they are mapped and aligned.
    pub fn atomic_u64(&self, offset: usize) -> Option<&AtomicU64> {
        let ptr = self.aligned(offset, 8)?;
        // SAFETY: as in `atomic_u32`.
        Some(unsafe { AtomicU64::from_ptr(ptr.cast()) })
    }

    fn aligned(&self, offset: usize, size: usize) -> Option<*mut u8> {
        self.check(offset, size);
        let Target::Mapped(ptr) = self.target else { return None };
        // SAFETY: checked above.
        let ptr = unsafe { ptr.as_ptr().add(offset) };
        (ptr as usize).is_multiple_of(size).then_some(ptr)
    }

    fn bounce_to(&self, offset: usize, dst: &Chunk<'_>, dst_offset: usize, len: usize) -> Result<(), Fault> {
        let mut buffer = [0; BOUNCE];
        for done in (0..len).step_by(BOUNCE) {
            let piece = &mut buffer[..BOUNCE.min(len - done)];
            self.read(offset + done, piece)?;
            dst.write(dst_offset + done, piece)?;
        }
        Ok(())
    }

    fn check(&self, offset: usize, len: usize) {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "{len} bytes at {offset} are outside a chunk of {} bytes", self.len);
    }

    fn fault(&self, offset: usize, error: &MemoryError) -> Fault {
        tracing::debug!(va = %self.va.offset(offset as u64), %error, "host memory access failed");
        Fault { va: self.va.offset(offset as u64), access: self.access, kind: FaultKind::Host }
    }
}
