//! The buddy allocator: device memory in blocks of a power of two.
//!
//! A block of order *n* is `chunk << n` bytes long and starts at a multiple of its length. Splitting one gives two *buddies*
//! of the next lower order; when both are free again they become one.
//!
//! ```text
//!  order 2  |               0               |
//!  order 1  |       0       |       1       |      a block's buddy: its number with the lowest bit turned
//!  order 0  |   0   |   1   |   2   |   3   |
//! ```
//!
//! Free blocks are bits in one bitmap per order; allocated memory has no record here at all. What is handed out is an
//! [`Extent`], any number of chunks long: it is given back whole or in parts. The owner must give back exactly what it
//! got, which [`Allocation`](super::Allocation) sees to.
//!
//! The structure needs `alloc` alone and has no lock.

use alloc::vec::Vec;

use super::bitmap::Bitmap;

/// A stretch of a region: `[start, start + len)`, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// The first byte's address in the region.
    pub start: u64,
    /// How many bytes; never 0 in an allocation.
    pub len: u64,
}

impl Extent {
    /// The address behind the last byte.
    pub const fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Of how many pieces an allocation may consist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Shape {
    /// One piece or nothing.
    Contiguous,
    /// One piece if there is one, otherwise as few as greed finds.
    #[default]
    PreferContiguous,
    /// Large pieces first, with no attempt at a single one: leaves large blocks whole.
    Scattered,
}

/// Why the allocator refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BuddyError {
    /// The chunk size is no power of two, or the size no multiple of it, or 0.
    #[error("a buddy allocator of {size:#x} bytes can't have chunks of {chunk:#x} bytes")]
    BadGeometry {
        /// The size asked for.
        size: u64,
        /// The chunk size asked for.
        chunk: u64,
    },
    /// There is not enough free memory, or not in one piece where that was asked for.
    #[error("no {size:#x} bytes free: {free:#x} bytes are, not all in one piece")]
    NoSpace {
        /// The bytes asked for, rounded up to chunks.
        size: u64,
        /// The bytes free in all.
        free: u64,
    },
    /// Nothing was asked for.
    #[error("an allocation of no bytes")]
    Empty,
}

/// See the [module](self).
///
/// # Invariants
/// Bit *i* of `free[n]` is set exactly if block *i* of order *n* is free and not part of a larger free block. Bit *n* of
/// `orders` is set exactly if `free[n]` has any. `available` is the sum of free blocks.
#[derive(Debug, Clone)]
pub struct Buddy {
    chunk_shift: u32,
    size: u64,
    available: u64,
    orders: u64,
    free: Vec<Bitmap>,
}

impl Buddy {
    /// An allocator of `size` bytes, all free, in chunks of `chunk` bytes.
    ///
    /// # Errors
    /// [`BuddyError::BadGeometry`] unless `chunk` is a power of two and `size` a multiple of it, not 0.
    pub fn new(size: u64, chunk: u64) -> Result<Self, BuddyError> {
        if !chunk.is_power_of_two() || size == 0 || !size.is_multiple_of(chunk) {
            return Err(BuddyError::BadGeometry { size, chunk });
        }
        let chunks = size / chunk;
        let free = (0..=chunks.ilog2()).map(|order| Bitmap::new((chunks >> order) as usize)).collect();
        let mut buddy = Self { chunk_shift: chunk.trailing_zeros(), size, available: 0, orders: 0, free };
        buddy.free(Extent { start: 0, len: size });
        Ok(buddy)
    }

    /// All bytes, free or not.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The bytes that are free.
    pub const fn available(&self) -> u64 {
        self.available
    }

    /// The smallest unit, in bytes.
    pub const fn chunk(&self) -> u64 {
        1 << self.chunk_shift
    }

    /// The length in bytes of the largest free block.
    pub fn largest_free(&self) -> u64 {
        if self.orders == 0 { 0 } else { self.chunk() << self.orders.ilog2() }
    }

    /// Allocates `size` bytes, rounded up to chunks, as adjacent extents joined and in the order in which they were found.
    ///
    /// # Errors
    /// [`BuddyError::NoSpace`] or [`BuddyError::Empty`]; nothing has changed then.
    pub fn allocate(&mut self, size: u64, shape: Shape) -> Result<Vec<Extent>, BuddyError> {
        if size == 0 {
            return Err(BuddyError::Empty);
        }
        let no_space = BuddyError::NoSpace { size, free: self.available };
        if size > self.available {
            return Err(no_space);
        }
        // No overflow: at most the size of the region, which is a multiple of the chunk.
        let chunks = size.div_ceil(self.chunk());
        if shape != Shape::Scattered
            && let Some(extent) = self.take_contiguous(chunks)
        {
            return Ok(alloc::vec![extent]);
        }
        if shape == Shape::Contiguous || chunks << self.chunk_shift > self.available {
            return Err(no_space);
        }
        Ok(self.take_scattered(chunks))
    }

    /// Gives memory back: an extent as it was allocated, or a part of one, in whole chunks.
    pub fn free(&mut self, extent: Extent) {
        debug_assert!(extent.end() <= self.size && (extent.start | extent.len).is_multiple_of(self.chunk()));
        let mut at = extent.start >> self.chunk_shift;
        let end = extent.end() >> self.chunk_shift;
        while at < end {
            let aligned = if at == 0 { u32::MAX } else { at.trailing_zeros() };
            let order = aligned.min((end - at).ilog2());
            self.free_block(order, (at >> order) as usize);
            at += 1 << order;
        }
        self.available += extent.len;
    }

    /// One piece: a block of the next power of two, its unneeded end given back.
    fn take_contiguous(&mut self, chunks: u64) -> Option<Extent> {
        let order = chunks.checked_next_power_of_two()?.trailing_zeros();
        let first = self.take_block(order)?;
        let extent = self.extent(first, 1 << order);
        self.available -= extent.len;
        let rest = (1 << order) - chunks;
        if rest > 0 {
            self.free(self.extent(first + chunks, rest));
        }
        Some(self.extent(first, chunks))
    }

    /// As many pieces as it takes; there is enough in all.
    fn take_scattered(&mut self, chunks: u64) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut missing = chunks;
        while missing > 0 && self.orders != 0 {
            let wanted = missing.ilog2();
            // The largest that is no larger than wanted; a larger one is split only if it must be.
            let order = if self.orders >> wanted != 0 { wanted } else { self.orders.ilog2() };
            let Some(first) = self.take_block(order) else { break };
            let extent = self.extent(first, 1 << order);
            self.available -= extent.len;
            missing -= 1 << order;
            match extents.last_mut() {
                Some(last) if last.end() == extent.start => last.len += extent.len,
                _ => extents.push(extent),
            }
        }
        debug_assert_eq!(missing, 0, "the free blocks add up to what is available");
        extents
    }

    fn extent(&self, first: u64, chunks: u64) -> Extent {
        Extent { start: first << self.chunk_shift, len: chunks << self.chunk_shift }
    }

    /// Takes the lowest block of the smallest order that will do, splitting it down to `order`. Gives its first chunk.
    fn take_block(&mut self, order: u32) -> Option<u64> {
        if order >= u64::BITS {
            return None;
        }
        let fitting = self.orders >> order << order;
        if fitting == 0 {
            return None;
        }
        let mut at = fitting.trailing_zeros();
        let mut index = self.free[at as usize].first()?;
        self.mark_used(at, index);
        while at > order {
            at -= 1;
            index *= 2;
            self.mark_free(at, index + 1);
        }
        Some((index as u64) << order)
    }

    fn free_block(&mut self, mut order: u32, mut index: usize) {
        while (order as usize) + 1 < self.free.len() && self.free[order as usize].get(index ^ 1) {
            self.mark_used(order, index ^ 1);
            order += 1;
            index /= 2;
        }
        debug_assert!(!self.free[order as usize].get(index), "a block is freed twice");
        self.mark_free(order, index);
    }

    fn mark_free(&mut self, order: u32, index: usize) {
        self.free[order as usize].set(index);
        self.orders |= 1 << order;
    }

    fn mark_used(&mut self, order: u32, index: usize) {
        let map = &mut self.free[order as usize];
        map.clear(index);
        if map.is_empty() {
            self.orders &= !(1 << order);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHUNK: u64 = 4096;

    impl Buddy {
        fn check(&self) {
            let mut free = 0;
            for (order, map) in self.free.iter().enumerate() {
                assert_eq!(self.orders >> order & 1 == 1, map.iter().next().is_some());
                for index in map.iter() {
                    free += self.chunk() << order;
                    let merges = order + 1 < self.free.len() && map.get(index ^ 1);
                    assert!(!merges, "two free buddies of order {order} are not merged");
                }
            }
            assert_eq!(free, self.available);
        }
    }

    #[test]
    fn everything_can_be_had_in_one_piece_and_given_back() {
        let mut buddy = Buddy::new(1 << 20, CHUNK).unwrap();
        let all = buddy.allocate(1 << 20, Shape::Contiguous).unwrap();
        assert_eq!(all, [Extent { start: 0, len: 1 << 20 }]);
        assert!(matches!(buddy.allocate(1, Shape::Scattered), Err(BuddyError::NoSpace { free: 0, .. })));
        buddy.free(all[0]);
        assert_eq!(buddy.largest_free(), 1 << 20);
    }

    #[test]
    fn a_size_that_is_no_power_of_two_wastes_nothing() {
        let mut buddy = Buddy::new(8 * CHUNK, CHUNK).unwrap();
        let five = buddy.allocate(5 * CHUNK, Shape::PreferContiguous).unwrap();
        assert_eq!(five, [Extent { start: 0, len: 5 * CHUNK }]);
        assert_eq!(buddy.available(), 3 * CHUNK);
    }

    #[test]
    fn scattered_memory_is_found_when_one_piece_is_not_there() {
        let mut buddy = Buddy::new(4 * CHUNK, CHUNK).unwrap();
        let all = buddy.allocate(4 * CHUNK, Shape::Contiguous).unwrap()[0];
        buddy.free(Extent { start: all.start, len: CHUNK });
        buddy.free(Extent { start: all.start + 2 * CHUNK, len: CHUNK });
        assert!(buddy.allocate(2 * CHUNK, Shape::Contiguous).is_err());
        assert_eq!(buddy.available(), 2 * CHUNK);
        assert_eq!(buddy.allocate(2 * CHUNK, Shape::PreferContiguous).unwrap().len(), 2);
    }

    #[test]
    fn bad_geometry_and_bad_sizes_are_refused() {
        assert!(Buddy::new(0, CHUNK).is_err());
        assert!(Buddy::new(CHUNK + 1, CHUNK).is_err());
        assert!(Buddy::new(3 * CHUNK, 3).is_err());
        let mut buddy = Buddy::new(3 * CHUNK, CHUNK).unwrap();
        assert_eq!(buddy.allocate(0, Shape::Contiguous), Err(BuddyError::Empty));
        assert!(buddy.allocate(u64::MAX, Shape::PreferContiguous).is_err());
        assert!(buddy.allocate(3 * CHUNK, Shape::PreferContiguous).is_ok());
    }

    proptest! {
        /// Against one flag per chunk.
        #[test]
        fn behaves_like_a_naive_model(
            chunks in 1u64..600,
            steps in prop::collection::vec((any::<bool>(), 1u64..80, 0usize..3, any::<prop::sample::Index>()), 1..120),
        ) {
            let mut buddy = Buddy::new(chunks * CHUNK, CHUNK).unwrap();
            let mut used = vec![false; chunks as usize];
            let mut live: Vec<Vec<Extent>> = Vec::new();
            let flags = |extent: &Extent| (extent.start / CHUNK) as usize..(extent.end() / CHUNK) as usize;
            for (allocate, wanted, shape, index) in steps {
                if !allocate && !live.is_empty() {
                    for extent in live.swap_remove(index.index(live.len())) {
                        used[flags(&extent)].fill(false);
                        buddy.free(extent);
                    }
                } else {
                    let shape = [Shape::Contiguous, Shape::PreferContiguous, Shape::Scattered][shape];
                    let room = used.iter().filter(|used| !**used).count() as u64;
                    match buddy.allocate(wanted * CHUNK - 1, shape) {
                        Ok(extents) => {
                            prop_assert_eq!(extents.iter().map(|e| e.len).sum::<u64>(), wanted * CHUNK);
                            prop_assert!(shape != Shape::Contiguous || extents.len() == 1);
                            for extent in &extents {
                                for flag in &mut used[flags(extent)] {
                                    prop_assert!(!std::mem::replace(flag, true), "handed out twice");
                                }
                            }
                            live.push(extents);
                        }
                        Err(_) => prop_assert!(shape == Shape::Contiguous || wanted > room),
                    }
                }
                buddy.check();
                prop_assert_eq!(buddy.available() / CHUNK, used.iter().filter(|used| !**used).count() as u64);
            }
        }
    }
}
