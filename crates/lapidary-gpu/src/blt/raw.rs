//! The inner loops of the blitter over mapped memory.
//!
//! The bytes are shared with other processes, hence raw pointers only; copies may tear. Nothing here translates addresses.

#![allow(unsafe_code)]

use crate::chunk::Chunk;

/// Copies `len` bytes from the start of `from` to the start of `to` past the caches, if both are mapped memory and the processor can.
/// Returns whether it did. The ranges must not overlap, or the result is one of the possible mixtures.
///
/// # Panics
/// If a chunk is shorter than `len`.
pub(super) fn copy_streaming(from: &Chunk<'_>, to: &Chunk<'_>, len: usize) -> bool {
    assert!(len <= from.len() && len <= to.len(), "{len} bytes do not fit the chunks");
    let (Some(source), Some(destination)) = (from.as_ptr(), to.as_ptr()) else { return false };
    // SAFETY: both chunks are valid for `len` bytes while they are borrowed.
    unsafe { stream(source.as_ptr(), destination.as_ptr(), len) }
}

/// # Safety
/// `source` must be valid for reads and `destination` for writes of `len` bytes.
#[cfg(target_arch = "x86_64")]
unsafe fn stream(source: *const u8, destination: *mut u8, len: usize) -> bool {
    use std::arch::x86_64::{_MM_HINT_NTA, _mm_loadu_si128, _mm_prefetch, _mm_sfence, _mm_stream_si128};
    const LINE: usize = 64;
    const AHEAD: usize = 8 * LINE;

    let head = destination.align_offset(LINE).min(len);
    // SAFETY: `head` is at most `len`. A misaligned head is copied as usual; then the destination is aligned to 64 bytes, and whole lines are
    // copied while they fit. Prefetching an address beyond the end is allowed: it never faults. SSE2 is part of x86-64.
    unsafe {
        std::ptr::copy(source, destination, head);
        let mut at = head;
        while at + LINE <= len {
            let from = source.add(at);
            let to = destination.add(at);
            _mm_prefetch::<_MM_HINT_NTA>(from.wrapping_add(AHEAD).cast());
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

/// A row of a block: where each of its runs is.
pub(super) struct Row<'a> {
    /// Offset of the row's first run in the chunk.
    pub(super) start: usize,
    /// Offsets of the runs relative to the first.
    pub(super) runs: &'a [u16],
    /// Bytes of a run; a power of two, at least 16.
    pub(super) run_bytes: usize,
    /// First byte of the row that is wanted.
    pub(super) x: usize,
}

/// Copies the bytes of `row` from `block` into `buf`. Returns false if the block is not mapped memory.
///
/// # Panics
/// If the row does not lie in the chunk.
pub(super) fn gather(block: &Chunk<'_>, row: &Row<'_>, buf: &mut [u8]) -> bool {
    let Some(base) = block.as_ptr() else { return false };
    row.for_each(block.len(), buf.len(), |offset, at, len| {
        // SAFETY: `for_each` yields ranges inside the chunk and inside `buf` only; `buf` is ours alone.
        unsafe { move_run(base.as_ptr().add(offset), buf.as_mut_ptr().add(at), len) }
    });
    true
}

/// Copies `data` to the bytes of `row` in `block`. Returns false if the block is not mapped memory.
///
/// # Panics
/// If the row does not lie in the chunk.
pub(super) fn scatter(block: &Chunk<'_>, row: &Row<'_>, data: &[u8]) -> bool {
    let Some(base) = block.as_ptr() else { return false };
    row.for_each(block.len(), data.len(), |offset, at, len| {
        // SAFETY: as in `gather`.
        unsafe { move_run(data.as_ptr().add(at), base.as_ptr().add(offset), len) }
    });
    true
}

impl Row<'_> {
    /// Calls `each` with the offset in the chunk, the offset in the row's wanted part, and the length of each piece of `len` wanted bytes.
    #[inline]
    pub(super) fn for_each(&self, chunk_len: usize, len: usize, mut each: impl FnMut(usize, usize, usize)) {
        let mut done = 0;
        while done < len {
            let x = self.x + done;
            let within = x & (self.run_bytes - 1);
            let now = (self.run_bytes - within).min(len - done);
            let offset = self.start + usize::from(self.runs[x / self.run_bytes]) + within;
            assert!(offset + now <= chunk_len, "a run of {now} bytes at {offset} leaves its chunk");
            each(offset, done, now);
            done += now;
        }
    }
}

/// # Safety
/// `from` must be valid for reads and `to` for writes of `len` bytes; they must not overlap.
#[inline]
unsafe fn move_run(from: *const u8, to: *mut u8, len: usize) {
    // The common length as a constant, so that it becomes one load and one store.
    // SAFETY: the caller's.
    unsafe {
        if len == 16 {
            std::ptr::copy_nonoverlapping(from, to, 16);
        } else {
            std::ptr::copy_nonoverlapping(from, to, len);
        }
    }
}
