//! An index of intervals that may overlap, for finding those that touch a range.
//!
//! Intervals are filed by the magnitude of their length, the position of its highest bit, and within a magnitude by their
//! start. One of magnitude *m* is shorter than 2^(m+1), so those that reach into a range start at most that far before it: a
//! search looks at one stretch per magnitude in use, in which at most about half of the entries are misses before the range.
//!
//! Needs `alloc` alone and has no lock.

use alloc::{collections::BTreeMap, vec::Vec};
use core::ops::Range;

/// Names an interval of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IntervalId {
    magnitude: u8,
    start: u64,
    unique: u64,
}

/// See the [module](self).
///
/// # Invariants
/// `count[m]` is the number of entries of magnitude *m*. No entry is empty.
#[derive(Debug, Clone)]
pub struct IntervalIndex<T> {
    entries: BTreeMap<IntervalId, (u64, T)>,
    count: [usize; 64],
    next: u64,
}

impl<T> IntervalIndex<T> {
    /// An empty index.
    pub const fn new() -> Self {
        Self { entries: BTreeMap::new(), count: [0; 64], next: 0 }
    }

    /// Adds an interval; `None` if it is empty. Equal intervals may be in the index any number of times.
    pub fn insert(&mut self, interval: Range<u64>, value: T) -> Option<IntervalId> {
        let len = interval.end.checked_sub(interval.start).filter(|len| *len > 0)?;
        let magnitude = len.ilog2() as u8;
        let id = IntervalId { magnitude, start: interval.start, unique: self.next };
        self.next += 1;
        self.entries.insert(id, (interval.end, value));
        self.count[usize::from(magnitude)] += 1;
        Some(id)
    }

    /// Removes an interval.
    pub fn remove(&mut self, id: IntervalId) -> Option<T> {
        let (_, value) = self.entries.remove(&id)?;
        self.count[usize::from(id.magnitude)] -= 1;
        Some(value)
    }

    /// The intervals that have at least one address in common with `range`, each once.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, &T)> {
        let Range { start, end } = range;
        let used = (0..64u8).filter(move |magnitude| self.count[usize::from(*magnitude)] > 0 && start < end);
        let stretches = used.map(move |magnitude| {
            let longest = if magnitude == 63 { u64::MAX } else { (2 << magnitude) - 1 };
            let id = |start| IntervalId { magnitude, start, unique: 0 };
            self.entries.range(id(start.saturating_sub(longest))..id(end))
        });
        let reaching = stretches.flatten().filter(move |(_, (end, _))| *end > start);
        reaching.map(|(id, (end, value))| (id.start..*end, value))
    }

    /// How many intervals there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All values, in no particular order.
    pub fn values(&self) -> Vec<&T> {
        self.entries.values().map(|(_, value)| value).collect()
    }
}

impl<T> Default for IntervalIndex<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ends_of_the_space_are_no_exception() {
        let mut index = IntervalIndex::new();
        index.insert(0..u64::MAX, 'a').unwrap();
        index.insert(u64::MAX - 1..u64::MAX, 'b').unwrap();
        assert_eq!(index.insert(5..5, 'c'), None);
        assert_eq!(index.overlapping(0..1).count(), 1);
        assert_eq!(index.overlapping(u64::MAX - 1..u64::MAX).count(), 2);
        assert_eq!(index.overlapping(7..7).count(), 0);
    }

    proptest! {
        #[test]
        fn behaves_like_a_list(
            steps in prop::collection::vec((0u8..4, 0u64..300, 1u64..120, any::<prop::sample::Index>()), 1..120),
        ) {
            let mut index = IntervalIndex::new();
            let mut list: Vec<(IntervalId, Range<u64>)> = Vec::new();
            for (kind, start, len, which) in steps {
                let range = start..start + len;
                match kind {
                    0 if !list.is_empty() => {
                        let (id, range) = list.swap_remove(which.index(list.len()));
                        prop_assert_eq!(index.remove(id), Some(range));
                        prop_assert_eq!(index.remove(id), None);
                    }
                    1 => {
                        let mut found: Vec<_> = index.overlapping(range.clone()).map(|(r, _)| (r.start, r.end)).collect();
                        let touches = |r: &Range<u64>| r.start < range.end && range.start < r.end;
                        let listed = list.iter().filter(|(_, r)| touches(r));
                        let mut expected: Vec<_> = listed.map(|(_, r)| (r.start, r.end)).collect();
                        found.sort_unstable();
                        expected.sort_unstable();
                        prop_assert_eq!(found, expected);
                    }
                    _ => list.push((index.insert(range.clone(), range.clone()).unwrap(), range)),
                }
                prop_assert_eq!(index.len(), list.len());
            }
        }
    }
}
