//! The two kinds of tree nodes and what can be done inside one.

use super::arena::{Chained, NONE};
use super::prefetch::prefetch;

/// Entries in a leaf.
pub(super) const LEAF: usize = 32;
/// Children of an inner node.
pub(super) const INNER: usize = 64;

/// One mapping as the tree knows it: its range and the index of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it begins.
    pub start: u64,
    /// Where it ends, itself not included.
    pub end: u64,
    /// The index of its record, or whatever the tree's user makes of it.
    pub id: u32,
}

/// How many of the ascending `keys` are at most `key`. Unused keys are `u64::MAX`.
///
/// Three rounds, each of which picks a quarter by comparing with the keys at the quarters' ends: within a round nothing waits
/// for anything else, neither the comparisons nor the cache lines, and nothing is left to guess for branch prediction.
#[inline]
fn count_at_most<const N: usize>(keys: &[u64; N], key: u64) -> usize {
    const { assert!(N.is_power_of_two() && N >= 16) };
    // The masks are never needed; they tell the compiler that the index is in bounds.
    let at_most = |at: usize| usize::from(keys[at & (N - 1)] <= key);
    let quarter = |base: usize, size: usize| {
        base + size * (at_most(base + size - 1) + at_most(base + 2 * size - 1) + at_most(base + 3 * size - 1))
    };
    let base = quarter(quarter(0, N / 4), N / 16);
    base + (0..N / 16).map(|i| at_most(base + i)).sum::<usize>()
}

/// Up to [`LEAF`] neighbouring mappings, in order.
#[derive(Debug)]
pub(super) struct Leaf {
    /// `ends[len..]` is `u64::MAX`.
    pub(super) ends: [u64; LEAF],
    pub(super) starts: [u64; LEAF],
    pub(super) ids: [u32; LEAF],
    pub(super) len: u32,
    pub(super) prev: u32,
    pub(super) next: u32,
}

impl Chained for Leaf {
    fn chain(&self) -> u32 {
        self.next
    }

    fn set_chain(&mut self, next: u32) {
        self.next = next;
    }
}

impl Leaf {
    pub(super) const fn new() -> Leaf {
        Leaf {
            ends: [u64::MAX; LEAF],
            starts: [u64::MAX; LEAF],
            ids: [NONE; LEAF],
            len: 0,
            prev: NONE,
            next: NONE,
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// Index of the first entry that ends behind `at`, which is the length if there is none.
    #[inline]
    pub(super) fn seek(&self, at: u64) -> usize {
        count_at_most(&self.ends, at).min(self.len())
    }

    /// As [`seek`](Self::seek), with what comes after it on its way: in a large tree the leaf is in no cache.
    #[inline]
    pub(super) fn seek_ahead(&self, at: u64) -> usize {
        prefetch(&self.ends);
        prefetch(&self.starts);
        prefetch(&self.ids);
        self.seek(at)
    }

    /// Where the last entry ends. There is one.
    #[inline]
    pub(super) fn end(&self) -> u64 {
        self.ends[(self.len() - 1) & (LEAF - 1)]
    }

    #[inline]
    pub(super) fn entry(&self, pos: usize) -> Entry {
        Entry { start: self.starts[pos], end: self.ends[pos], id: self.ids[pos] }
    }

    #[inline]
    fn set(&mut self, pos: usize, entry: Entry) {
        self.starts[pos] = entry.start;
        self.ends[pos] = entry.end;
        self.ids[pos] = entry.id;
    }

    /// Replaces `removed` entries from `pos` on with `new`. The result must fit.
    #[inline]
    pub(super) fn splice(&mut self, pos: usize, removed: usize, new: &[Entry]) {
        let len = self.len();
        let grown = len - removed + new.len();
        debug_assert!(pos + removed <= len && grown <= LEAF);
        if removed != new.len() {
            self.starts.copy_within(pos + removed..len, pos + new.len());
            self.ends.copy_within(pos + removed..len, pos + new.len());
            self.ids.copy_within(pos + removed..len, pos + new.len());
            if grown < len {
                self.ends[grown..len].fill(u64::MAX);
            }
            self.len = grown as u32;
        }
        for (i, entry) in new.iter().enumerate() {
            self.set(pos + i, *entry);
        }
    }

    /// Moves the entries from `pos` on to the end of `to`, where they must fit.
    pub(super) fn move_tail(&mut self, pos: usize, to: &mut Leaf) {
        let (len, at) = (self.len(), to.len());
        let count = len - pos;
        to.starts[at..at + count].copy_from_slice(&self.starts[pos..len]);
        to.ends[at..at + count].copy_from_slice(&self.ends[pos..len]);
        to.ids[at..at + count].copy_from_slice(&self.ids[pos..len]);
        to.len += count as u32;
        self.ends[pos..len].fill(u64::MAX);
        self.len = pos as u32;
    }
}

/// Up to [`INNER`] children with an address between each two.
#[derive(Debug)]
pub(super) struct Inner {
    /// `keys[i]` separates child `i` from child `i + 1`; `keys[len - 1..]` is `u64::MAX`.
    pub(super) keys: [u64; INNER],
    pub(super) children: [u32; INNER],
    pub(super) len: u32,
}

impl Chained for Inner {
    fn chain(&self) -> u32 {
        self.children[0]
    }

    fn set_chain(&mut self, next: u32) {
        self.children[0] = next;
    }
}

impl Inner {
    pub(super) const fn new() -> Inner {
        Inner { keys: [u64::MAX; INNER], children: [NONE; INNER], len: 0 }
    }

    /// A root over two nodes.
    pub(super) fn over(left: u32, key: u64, right: u32) -> Inner {
        let mut node = Inner::new();
        node.children[0] = left;
        node.keys[0] = key;
        node.children[1] = right;
        node.len = 2;
        node
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// Index of the child in which `at` is to be looked for.
    #[inline]
    pub(super) fn seek(&self, at: u64) -> usize {
        count_at_most(&self.keys, at).min(self.len().saturating_sub(1))
    }

    /// Puts `child` behind the one at `index`, with `key` between the two. There must be room.
    pub(super) fn insert_after(&mut self, index: usize, key: u64, child: u32) {
        let len = self.len();
        debug_assert!(index < len && len < INNER);
        self.children.copy_within(index + 1..len, index + 2);
        self.keys.copy_within(index..len - 1, index + 1);
        self.children[index + 1] = child;
        self.keys[index] = key;
        self.len += 1;
    }

    /// Takes the child at `index` out. The separator before it goes too: the one behind it is as good, since
    /// nothing is left between the two.
    pub(super) fn remove(&mut self, index: usize) {
        let len = self.len();
        debug_assert!(index < len);
        self.children.copy_within(index + 1..len, index);
        if len >= 2 {
            self.keys.copy_within(index.max(1)..len - 1, index.saturating_sub(1));
            self.keys[len - 2] = u64::MAX;
        }
        self.len -= 1;
    }

    /// Moves the children from `at` on to the empty `to` and returns the separator between the two nodes.
    pub(super) fn move_tail(&mut self, at: usize, to: &mut Inner) -> u64 {
        let len = self.len();
        debug_assert!(at >= 1 && at < len && to.len == 0);
        let between = self.keys[at - 1];
        to.children[..len - at].copy_from_slice(&self.children[at..len]);
        to.keys[..len - 1 - at].copy_from_slice(&self.keys[at..len - 1]);
        to.len = (len - at) as u32;
        self.keys[at - 1..len - 1].fill(u64::MAX);
        self.len = at as u32;
        between
    }

    /// Takes over all children of `right`, the next node; `between` separates the two.
    pub(super) fn absorb(&mut self, between: u64, right: &Inner) {
        let (len, more) = (self.len(), right.len());
        debug_assert!(len >= 1 && more >= 1 && len + more <= INNER);
        self.keys[len - 1] = between;
        self.keys[len..len + more - 1].copy_from_slice(&right.keys[..more - 1]);
        self.children[len..len + more].copy_from_slice(&right.children[..more]);
        self.len += more as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_counts_keys_at_most() {
        let mut keys = [u64::MAX; 64];
        for (i, key) in keys.iter_mut().take(63).enumerate() {
            *key = 10 * i as u64;
        }
        for probe in 0..700 {
            let expected = keys.iter().filter(|key| **key <= probe).count();
            assert_eq!(count_at_most(&keys, probe), expected, "probe {probe}");
        }
        assert_eq!(count_at_most(&[0; 64], 0), 64);
    }
}
