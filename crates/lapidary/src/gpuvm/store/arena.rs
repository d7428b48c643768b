//! A slab of equal-sized things named by `u32`.
//!
//! The things lie in chunks that never move: growing copies nothing, and a slab of a million holds at most one chunk more than
//! it needs. Only the first chunk starts small and grows, so that who has few things pays for few.
//!
//! Freed places are chained through the things themselves, so an arena costs nothing beside its contents.
//! [`Arena::reserve`] may fail; [`Arena::put`] after it may not.

use alloc::vec::Vec;

/// The index that names nothing.
pub const NONE: u32 = u32::MAX;

/// Something with room for an index while it is free.
pub trait Chained {
    /// The index last stored by [`set_chain`](Self::set_chain).
    fn chain(&self) -> u32;
    /// Stores an index. Only called on things that are not in use.
    fn set_chain(&mut self, next: u32);
}

/// Bytes of a chunk, about.
const CHUNK_BYTES: usize = 16 << 10;

/// A slab of things named by `u32`. See the module.
///
/// # Invariants
/// All chunks but the last are full, and all but the first have room for [`CHUNK`](Self::CHUNK) things.
#[derive(Debug)]
pub struct Arena<N> {
    chunks: Vec<Vec<N>>,
    /// Places that were ever used.
    len: usize,
    /// Places that there are.
    capacity: usize,
    first_free: u32,
    free: u32,
}

impl<N: Chained> Arena<N> {
    /// Bits of an index that name a place in its chunk.
    const SHIFT: u32 = (CHUNK_BYTES / size_of::<N>()).ilog2();
    /// Places in a chunk.
    const CHUNK: usize = 1 << Self::SHIFT;

    /// An arena with nothing in it and no memory.
    pub const fn new() -> Self {
        Arena { chunks: Vec::new(), len: 0, capacity: 0, first_free: NONE, free: 0 }
    }

    /// How many things are in use.
    pub fn live(&self) -> usize {
        self.len - self.free as usize
    }

    /// How many more fit without asking for memory.
    #[inline]
    pub fn spare(&self) -> usize {
        self.capacity - self.len + self.free as usize
    }

    /// How many places [`reserve`](Self::reserve) would ask memory for: in the first chunk, and in others.
    fn growth(&self, more: usize) -> (usize, usize) {
        let missing = more.saturating_sub(self.spare());
        if missing == 0 {
            return (0, 0);
        }
        let first = self.capacity.min(Self::CHUNK);
        let wanted = missing.max(self.len / 4).min(Self::CHUNK - first);
        (wanted, missing.saturating_sub(wanted).next_multiple_of(Self::CHUNK))
    }

    /// Bytes that [`reserve`](Self::reserve) would ask for.
    pub fn growth_bytes(&self, more: usize) -> usize {
        let (first, others) = self.growth(more);
        let table = self.table_growth(first, others) * size_of::<Vec<N>>();
        (first + others).saturating_mul(size_of::<N>()).saturating_add(table)
    }

    /// By how much the list of chunks grows for so many places in the first chunk, and in others.
    fn table_growth(&self, first: usize, others: usize) -> usize {
        let new_first = usize::from(first > 0 && self.chunks.is_empty());
        let chunks = self.chunks.len() + new_first + others / Self::CHUNK;
        let capacity = self.chunks.capacity();
        if chunks <= capacity { 0 } else { chunks.next_power_of_two() - capacity }
    }

    /// Makes room for `more` things, or leaves what is there as it was. `false`: no memory.
    pub fn reserve(&mut self, more: usize) -> bool {
        let (first, others) = self.growth(more);
        // The last index means "none".
        if self.capacity.saturating_add(first).saturating_add(others) >= NONE as usize {
            return false;
        }
        let table = self.table_growth(first, others);
        let room = self.chunks.capacity() - self.chunks.len() + table;
        if table > 0 && self.chunks.try_reserve_exact(room).is_err() {
            return false;
        }
        (first == 0 || self.grow_first(first)) && self.add_chunks(others / Self::CHUNK)
    }

    fn grow_first(&mut self, more: usize) -> bool {
        if self.chunks.is_empty() {
            self.chunks.push(Vec::new());
        }
        let room = self.capacity - self.len + more;
        let grown = self.chunks[0].try_reserve_exact(room).is_ok();
        self.capacity += if grown { more } else { 0 };
        grown
    }

    fn add_chunks(&mut self, count: usize) -> bool {
        for _ in 0..count {
            let mut chunk = Vec::new();
            if chunk.try_reserve_exact(Self::CHUNK).is_err() {
                return false;
            }
            self.chunks.push(chunk);
            self.capacity += Self::CHUNK;
        }
        true
    }

    /// Stores `thing` in room that [`reserve`](Self::reserve) made.
    #[inline]
    pub fn put(&mut self, thing: N) -> u32 {
        debug_assert!(self.spare() > 0, "room is reserved before a change begins");
        if self.first_free == NONE {
            let index = self.len;
            self.chunks[index >> Self::SHIFT].push(thing);
            self.len += 1;
            return index as u32;
        }
        let index = self.first_free;
        let place = self.get_mut(index);
        let next = place.chain();
        *place = thing;
        self.first_free = next;
        self.free -= 1;
        index
    }

    /// Gives a place back.
    #[inline]
    pub fn free(&mut self, index: u32) {
        let next = self.first_free;
        self.get_mut(index).set_chain(next);
        self.first_free = index;
        self.free += 1;
    }

    /// The thing at `index`.
    ///
    /// # Panics
    /// If there never was one.
    #[inline]
    pub fn get(&self, index: u32) -> &N {
        let index = index as usize;
        &self.chunks[index >> Self::SHIFT][index & (Self::CHUNK - 1)]
    }

    /// The thing at `index`, to be changed.
    ///
    /// # Panics
    /// If there never was one.
    #[inline]
    pub fn get_mut(&mut self, index: u32) -> &mut N {
        let index = index as usize;
        &mut self.chunks[index >> Self::SHIFT][index & (Self::CHUNK - 1)]
    }

    /// Both of two different places.
    pub fn get_two(&mut self, a: u32, b: u32) -> (&mut N, &mut N) {
        debug_assert_ne!(a, b);
        if a > b {
            let (b, a) = self.get_two(b, a);
            return (a, b);
        }
        let (a, b) = (a as usize, b as usize);
        let (chunk_a, chunk_b) = (a >> Self::SHIFT, b >> Self::SHIFT);
        let (a, b) = (a & (Self::CHUNK - 1), b & (Self::CHUNK - 1));
        if chunk_a == chunk_b {
            let (low, high) = self.chunks[chunk_a].split_at_mut(b);
            return (&mut low[a], &mut high[0]);
        }
        let (low, high) = self.chunks.split_at_mut(chunk_b);
        (&mut low[chunk_a][a], &mut high[0][b])
    }

    /// Bytes of memory held, used or not.
    pub fn bytes(&self) -> usize {
        self.capacity * size_of::<N>() + self.chunks.capacity() * size_of::<Vec<N>>()
    }

    /// Gives all memory back. Nothing may be in use.
    pub fn release(&mut self) {
        debug_assert_eq!(self.live(), 0);
        *self = Arena::new();
    }
}

impl<N: Chained> Default for Arena<N> {
    fn default() -> Self {
        Self::new()
    }
}
