//! The inner loops of the blitter over mapped memory.
//!
//! The bytes are shared with other processes, hence raw pointers only; copies may tear. Nothing here translates addresses.

#![allow(unsafe_code)]

use super::tiling::{BLOCK, Row};
use crate::chunk::Chunk;

/// Copies `len` bytes from the start of `from` to the start of `to` past the caches, if both are mapped memory and the processor can.
/// Returns whether it did. The ranges must not overlap, or the result is one of the possible mixtures.
///
/// # Panics
/// If a chunk is shorter than `len`.
pub(super) fn copy_streaming(from: &Chunk<'_>, to: &Chunk<'_>, len: usize) -> bool {
    let (Some(source), Some(destination)) = (from.as_ptr(), to.as_ptr()) else { return false };
    assert!(len <= from.len() && len <= to.len(), "{len} bytes do not fit the chunks");
    // SAFETY: both chunks are valid for `len` bytes while they are borrowed.
    unsafe { stream(source.as_ptr(), destination.as_ptr(), len) }
}

/// # Safety
/// `source` must be valid for reads and `destination` for writes of `len` bytes.
#[cfg(target_arch = "x86_64")]
unsafe fn stream(source: *const u8, destination: *mut u8, len: usize) -> bool {
    use std::arch::x86_64::{_mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const LINE: usize = 64;

    let head = destination.align_offset(LINE).min(len);
    // SAFETY: `head` is at most `len`. The head is copied as usual; behind it the destination is aligned to a line, and whole lines are streamed
    // while they fit. SSE2 is part of x86-64.
    unsafe {
        std::ptr::copy(source, destination, head);
        let mut at = head;
        while at + LINE <= len {
            let (from, to) = (source.add(at), destination.add(at));
            let a = _mm_loadu_si128(from.cast());
            let b = _mm_loadu_si128(from.add(16).cast());
            let c = _mm_loadu_si128(from.add(32).cast());
            let d = _mm_loadu_si128(from.add(48).cast());
            _mm_stream_si128(to.cast(), a);
            _mm_stream_si128(to.add(16).cast(), b);
            _mm_stream_si128(to.add(32).cast(), c);
            _mm_stream_si128(to.add(48).cast(), d);
            at += LINE;
        }
        std::ptr::copy(source.add(at), destination.add(at), len - at);
        // Streaming stores are weakly ordered: whoever sees a later store must see them too.
        _mm_sfence();
    }
    true
}

/// # Safety
/// None needed: nothing is accessed.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn stream(_source: *const u8, _destination: *mut u8, _len: usize) -> bool {
    false
}

/// A block in a chunk of mapped memory.
///
/// # Invariants
/// `base` is valid for reads and writes of [`BLOCK`] bytes while the chunk is borrowed.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    base: *mut u8,
    _chunk: &'a Chunk<'a>,
}

impl<'a> Block<'a> {
    /// The block at `offset` in `chunk`, if it is all there and mapped.
    pub(super) fn new(chunk: &'a Chunk<'_>, offset: usize) -> Option<Self> {
        if chunk.len().checked_sub(offset)? < BLOCK as usize {
            return None;
        }
        // SAFETY: `offset` is inside the chunk.
        let base = unsafe { chunk.as_ptr()?.as_ptr().add(offset) };
        Some(Self { base, _chunk: chunk })
    }

    /// Copies the row's first bytes into `buf`.
    pub(super) fn gather(&self, row: &Row<'_>, buf: &mut [u8]) {
        // SAFETY: `buf` is ours alone and as long as said.
        unsafe { self.gather_to(row, buf.as_mut_ptr(), buf.len()) }
    }

    /// Copies `data` to the row's first bytes.
    pub(super) fn scatter(&self, row: &Row<'_>, data: &[u8]) {
        // SAFETY: `data` is valid and as long as said.
        unsafe { self.scatter_from(row, data.as_ptr(), data.len()) }
    }

    /// Copies the row's first `len` bytes to `offset` in `to`. Returns false if that is not mapped memory, or not long enough.
    pub(super) fn gather_chunk(&self, row: &Row<'_>, to: &Chunk<'_>, offset: usize, len: usize) -> bool {
        let Some(target) = mapped(to, offset, len) else { return false };
        // SAFETY: `target` is valid for `len` bytes.
        unsafe { self.gather_to(row, target, len) };
        true
    }

    /// Copies `len` bytes at `offset` in `from` to the row's first bytes. Returns false if that is not mapped memory, or not long enough.
    pub(super) fn scatter_chunk(&self, row: &Row<'_>, from: &Chunk<'_>, offset: usize, len: usize) -> bool {
        let Some(source) = mapped(from, offset, len) else { return false };
        // SAFETY: `source` is valid for `len` bytes.
        unsafe { self.scatter_from(row, source, len) };
        true
    }

    /// # Safety
    /// `to` must be valid for writes of `len` bytes.
    #[inline]
    unsafe fn gather_to(&self, row: &Row<'_>, to: *mut u8, len: usize) {
        row.for_each(len, |offset, at, run| {
            // SAFETY: the row yields offsets inside the block, and inside `len`.
            unsafe { move_run(self.base.add(offset), to.add(at), run) }
        });
    }

    /// # Safety
    /// `from` must be valid for reads of `len` bytes.
    #[inline]
    unsafe fn scatter_from(&self, row: &Row<'_>, from: *const u8, len: usize) {
        row.for_each(len, |offset, at, run| {
            // SAFETY: as in `gather_to`.
            unsafe { move_run(from.add(at), self.base.add(offset), run) }
        });
    }
}

/// Mapped memory of `len` bytes at `offset` in `chunk`.
fn mapped(chunk: &Chunk<'_>, offset: usize, len: usize) -> Option<*mut u8> {
    if chunk.len().checked_sub(offset)? < len {
        return None;
    }
    // SAFETY: `offset` is inside the chunk.
    Some(unsafe { chunk.as_ptr()?.as_ptr().add(offset) })
}

/// Moves a run; the ranges may overlap.
///
/// # Safety
/// `from` must be valid for reads and `to` for writes of `len` bytes.
#[inline]
unsafe fn move_run(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's.
    unsafe {
        if len == 16 {
            // The common length as a constant: one load and one store.
            std::ptr::copy(from, to, 16);
        } else {
            std::ptr::copy(from, to, len);
        }
    }
}
