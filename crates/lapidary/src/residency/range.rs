//! The range allocator: addresses of a space, best fit.
//!
//! For spaces whose addresses cost nothing, such as the device's view of system memory: one contiguous range per
//! allocation, with any alignment. Needs `alloc` alone and has no lock.

use alloc::collections::{BTreeMap, BTreeSet};

use super::buddy::Extent;

/// Why no range was given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// No hole is large enough.
    #[error("no hole of {size:#x} bytes at a multiple of {align:#x}")]
    NoSpace {
        /// The bytes asked for.
        size: u64,
        /// The alignment asked for.
        align: u64,
    },
    /// The range asked for is not free, or not in the space.
    #[error("the range {0:#x?} is not free")]
    NotFree(Extent),
    /// No bytes, or an alignment that is no power of two.
    #[error("an allocation of {size:#x} bytes at a multiple of {align:#x} makes no sense")]
    BadRequest {
        /// The bytes asked for.
        size: u64,
        /// The alignment asked for.
        align: u64,
    },
}

/// Free and used ranges of `[start, end)`.
///
/// # Invariants
/// `holes` maps the start of each free range to its length; they neither touch nor overlap. `by_len` holds the same
/// ranges as (length, start).
#[derive(Debug, Clone)]
pub struct RangeAllocator {
    space: Extent,
    holes: BTreeMap<u64, u64>,
    by_len: BTreeSet<(u64, u64)>,
    available: u64,
}

impl RangeAllocator {
    /// An allocator for `space`, all of it free.
    pub fn new(space: Extent) -> Self {
        let mut ranges =
            Self { space, holes: BTreeMap::new(), by_len: BTreeSet::new(), available: space.len };
        ranges.add_hole(space);
        ranges
    }

    /// The bytes that are free.
    pub const fn available(&self) -> u64 {
        self.available
    }

    /// The whole space.
    pub const fn space(&self) -> Extent {
        self.space
    }

    /// Allocates `size` bytes at a multiple of `align`, from the smallest hole that fits.
    ///
    /// # Errors
    /// [`RangeError::NoSpace`], or [`RangeError::BadRequest`] if `size` is 0 or `align` no power of two.
    pub fn allocate(&mut self, size: u64, align: u64) -> Result<Extent, RangeError> {
        if size == 0 || !align.is_power_of_two() {
            return Err(RangeError::BadRequest { size, align });
        }
        let fit = |&(len, start): &(u64, u64)| {
            let at = start.checked_next_multiple_of(align)?;
            (at - start <= len && size <= len - (at - start)).then_some(Extent { start: at, len: size })
        };
        let found = self.by_len.range((size, 0)..).find_map(fit);
        let extent = found.ok_or(RangeError::NoSpace { size, align })?;
        self.take(extent)?;
        Ok(extent)
    }

    /// Takes a particular range.
    ///
    /// # Errors
    /// [`RangeError::NotFree`] if any of it is used or outside of the space.
    pub fn take(&mut self, extent: Extent) -> Result<(), RangeError> {
        let not_free = RangeError::NotFree(extent);
        let end = extent.start.checked_add(extent.len).ok_or(not_free)?;
        let (start, len) =
            self.holes.range(..=extent.start).next_back().map(|(s, l)| (*s, *l)).ok_or(not_free)?;
        if extent.len == 0 || end > start + len {
            return Err(not_free);
        }
        self.remove_hole(start, len);
        self.add_hole(Extent { start, len: extent.start - start });
        self.add_hole(Extent { start: end, len: start + len - end });
        self.available -= extent.len;
        Ok(())
    }

    /// Gives a range back: one that was allocated, or a part of it.
    pub fn free(&mut self, extent: Extent) {
        let mut joined = extent;
        if let Some((&start, &len)) = self.holes.range(..=extent.start).next_back()
            && start + len >= extent.start
        {
            debug_assert!(start + len == extent.start, "a range is freed twice");
            self.remove_hole(start, len);
            joined = Extent { start, len: joined.end() - start };
        }
        if let Some(&len) = self.holes.get(&extent.end()) {
            self.remove_hole(extent.end(), len);
            joined.len += len;
        }
        self.add_hole(joined);
        self.available += extent.len;
    }

    fn add_hole(&mut self, hole: Extent) {
        if hole.len > 0 {
            self.holes.insert(hole.start, hole.len);
            self.by_len.insert((hole.len, hole.start));
        }
    }

    fn remove_hole(&mut self, start: u64, len: u64) {
        self.holes.remove(&start);
        self.by_len.remove(&(len, start));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_smallest_hole_that_fits_is_used() {
        let mut ranges = RangeAllocator::new(Extent { start: 0, len: 100 });
        ranges.take(Extent { start: 10, len: 5 }).unwrap();
        ranges.take(Extent { start: 22, len: 5 }).unwrap();
        assert_eq!(ranges.allocate(6, 1), Ok(Extent { start: 15, len: 6 }));
        assert_eq!(ranges.allocate(8, 4), Ok(Extent { start: 0, len: 8 }));
        assert_eq!(ranges.allocate(8, 32), Ok(Extent { start: 32, len: 8 }));
    }

    #[test]
    fn requests_without_sense_are_refused() {
        let mut ranges = RangeAllocator::new(Extent { start: 1, len: u64::MAX - 1 });
        assert!(ranges.allocate(0, 1).is_err());
        assert!(ranges.allocate(1, 3).is_err());
        assert!(ranges.allocate(u64::MAX, 1).is_err());
        assert!(ranges.take(Extent { start: 0, len: 2 }).is_err());
        assert!(ranges.take(Extent { start: 5, len: u64::MAX }).is_err());
        assert!(ranges.allocate(2, 1 << 63).is_ok());
    }

    proptest! {
        #[test]
        fn behaves_like_a_naive_model(
            steps in prop::collection::vec((0u8..3, 1u64..40, 0u32..6, any::<prop::sample::Index>()), 1..150),
        ) {
            const START: u64 = 7;
            let mut ranges = RangeAllocator::new(Extent { start: START, len: 400 });
            let mut used = [false; 400];
            let mut live = Vec::new();
            let flags = |e: Extent| (e.start - START) as usize..(e.end() - START) as usize;
            for (kind, size, align, index) in steps {
                let align = 1 << align;
                let taken = match kind {
                    0 if !live.is_empty() => {
                        let extent: Extent = live.swap_remove(index.index(live.len()));
                        used[flags(extent)].fill(false);
                        ranges.free(extent);
                        None
                    }
                    1 => {
                        let extent = Extent { start: START + index.index(400) as u64, len: size };
                        let inside = extent.end() <= START + 400;
                        let free = inside && !used[flags(extent)].contains(&true);
                        prop_assert_eq!(ranges.take(extent).is_ok(), free);
                        free.then_some(extent)
                    }
                    _ => {
                        let fits = |at: &u64| !used[flags(Extent { start: *at, len: size })].contains(&true);
                        let exists = (START..=START + 400 - size).filter(|at| at % align == 0).any(|at| fits(&at));
                        let got = ranges.allocate(size, align).ok();
                        prop_assert_eq!(got.is_some(), exists);
                        prop_assert!(got.is_none_or(|e| e.start % align == 0 && fits(&e.start)));
                        got
                    }
                };
                if let Some(extent) = taken {
                    used[flags(extent)].fill(true);
                    live.push(extent);
                }
                prop_assert_eq!(ranges.available() as usize, used.iter().filter(|used| !**used).count());
                prop_assert_eq!(ranges.holes.values().sum::<u64>(), ranges.available());
            }
        }
    }
}
