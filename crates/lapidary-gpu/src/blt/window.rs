//! A small cache of chunks for one side of a blit, for the duration of a step.
//!
//! Rows of a surface lie far apart, but neighbouring rows and tiles come back to the same few pages. A hit costs a comparison instead of a
//! translation. The bus guarantees that chunks stay good while it is lent, which is exactly as long as a window lives.

use crate::{
    bus::{Access, Bus, Fault, GpuVa},
    chunk::Chunk,
};

/// Chunks remembered; by page, so that the rows of a tile do not evict each other.
const WAYS: usize = 64;
const PAGE_BITS: u32 = 12;
/// How far ahead to ask for contiguous memory.
const AHEAD: u64 = 64 << 10;

/// Memory seen through a cache of translations.
pub(super) struct Window<'a, B: ?Sized> {
    bus: &'a B,
    access: Access,
    ways: [Option<Chunk<'a>>; WAYS],
    recent: usize,
}

impl<'a, B: Bus + ?Sized> Window<'a, B> {
    pub(super) fn new(bus: &'a B, access: Access) -> Self {
        Self { bus, access, ways: [const { None }; WAYS], recent: 0 }
    }

    /// A chunk that contains `va`, and the offset of `va` in it.
    pub(super) fn at(&mut self, va: GpuVa) -> Result<(&Chunk<'a>, usize), Fault> {
        let home = (va.get() >> PAGE_BITS) as usize % WAYS;
        let way = if hit(self.ways[self.recent].as_ref(), va).is_some() { self.recent } else { home };
        if hit(self.ways[way].as_ref(), va).is_none() {
            self.ways[way] = Some(self.bus.chunk(va, AHEAD, self.access)?);
        }
        self.recent = way;
        match &self.ways[way] {
            Some(chunk) => Ok((chunk, (va.get() - chunk.va().get()) as usize)),
            None => unreachable!("the way was filled above"),
        }
    }

    /// Reads bytes that may lie in several chunks.
    pub(super) fn read(&mut self, mut va: GpuVa, mut buf: &mut [u8]) -> Result<(), Fault> {
        while !buf.is_empty() {
            let (chunk, offset) = self.at(va)?;
            let (now, later) = buf.split_at_mut(buf.len().min(chunk.len() - offset));
            chunk.read(offset, now)?;
            va = va.offset(now.len() as u64);
            buf = later;
        }
        Ok(())
    }

    /// Writes bytes that may lie in several chunks.
    pub(super) fn write(&mut self, mut va: GpuVa, mut data: &[u8]) -> Result<(), Fault> {
        while !data.is_empty() {
            let (chunk, offset) = self.at(va)?;
            let (now, later) = data.split_at(data.len().min(chunk.len() - offset));
            chunk.write(offset, now)?;
            va = va.offset(now.len() as u64);
            data = later;
        }
        Ok(())
    }
}

fn hit(chunk: Option<&Chunk<'_>>, va: GpuVa) -> Option<()> {
    let chunk = chunk?;
    let distance = va.get().checked_sub(chunk.va().get())?;
    (distance < chunk.len() as u64).then_some(())
}

/// Copies `len` bytes forward between two windows, in pieces that do not overlap themselves.
pub(super) fn copy<B: Bus + ?Sized>(
    from: &mut Window<'_, B>,
    mut source: GpuVa,
    to: &mut Window<'_, B>,
    mut destination: GpuVa,
    mut len: u64,
) -> Result<(), Fault> {
    let piece = forward_piece(source, destination, len);
    while len > 0 {
        let (read, read_at) = from.at(source)?;
        let (write, write_at) = to.at(destination)?;
        let now = piece.min(len).min((read.len() - read_at) as u64).min((write.len() - write_at) as u64);
        read.copy_to(read_at, write, write_at, now as usize)?;
        source = source.offset(now);
        destination = destination.offset(now);
        len -= now;
    }
    Ok(())
}

/// Most bytes to move at once so that a copy of `len` bytes onto a later part of itself repeats what it wrote before, like a copy that goes
/// forward by cache lines.
pub(super) fn forward_piece(source: GpuVa, destination: GpuVa, len: u64) -> u64 {
    const LINE: u64 = 64;
    match destination.get().checked_sub(source.get()) {
        Some(distance @ 1..) if distance < len => (distance & !(LINE - 1)).max(LINE),
        _ => u64::MAX,
    }
}
