//! How many nodes changes may need.
//!
//! What is mapped when a change is made is not known when its nodes are set aside: it may have to wait. So each counts as if
//! nothing were there but what must be split: a node for every entry that it covers in part, at each level. Changes in ascending
//! order share the nodes at their borders, which are not empty as long as nothing before the border is changed. A change that
//! starts before another's end may take apart what the other made: what follows counts anew.

use super::{
    space::{LEAF_LEVEL, LEVELS, level_shift},
    types::{PAGE_SHIFT, Target, VaSpan},
};

/// What a number of changes needs, added up in the order in which they will be made.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    count: u64,
    /// Where the latest change ended that has left something in its tables.
    end: u64,
    /// The highest entry of each level, but the lowest, that has its node counted.
    counted: [Option<u64>; LEVELS as usize],
}

impl Needs {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds mapping `span` to `target`.
    pub fn map(&mut self, span: VaSpan, target: Target) {
        let congruent = match target {
            Target::Null => level_shift(LEAF_LEVEL),
            Target::Memory(at) => (span.start() ^ at.addr.0).trailing_zeros(),
        };
        self.add(span, congruent);
    }

    /// Adds mapping `span` to any memory in any number of pieces.
    pub fn map_pages(&mut self, span: VaSpan) {
        self.add(span, PAGE_SHIFT);
    }

    /// Adds unmapping `span`, whose ends may cut what was mapped in one piece.
    pub fn unmap(&mut self, span: VaSpan) {
        self.begin(span);
        self.end = span.end();
        for level in 1..=LEAF_LEVEL {
            self.add_ends(span, level);
        }
    }

    /// Adds unmapping whole pieces in `span`, as they were mapped: no leaf is larger than its piece, so none is split.
    pub fn unmap_whole(&mut self, span: VaSpan) {
        self.begin(span);
    }

    /// The number of nodes.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Mapping to memory whose addresses agree with the span's in the low `congruent` bits.
    fn add(&mut self, span: VaSpan, congruent: u32) {
        self.begin(span);
        self.end = span.end();
        for level in 1..LEVELS {
            if level > LEAF_LEVEL || congruent < level_shift(level) {
                self.add_entries(entry_of(span.start(), level), entry_of(span.end() - 1, level), level);
            } else {
                self.add_ends(span, level);
            }
        }
    }

    fn begin(&mut self, span: VaSpan) {
        if span.start() < self.end {
            self.counted = [None; LEVELS as usize];
        }
    }

    /// The entries at the ends of `span` that are not covered whole.
    fn add_ends(&mut self, span: VaSpan, level: u32) {
        let mask = (1 << level_shift(level)) - 1;
        for (at, cut) in [(span.start(), span.start() & mask != 0), (span.end() - 1, span.end() & mask != 0)]
        {
            if cut {
                let entry = entry_of(at, level);
                self.add_entries(entry, entry, level);
            }
        }
    }

    fn add_entries(&mut self, first: u64, last: u64, level: u32) {
        let counted = &mut self.counted[level as usize];
        let shared = u64::from(counted.is_some_and(|counted| counted == first));
        self.count += last - first + 1 - shared;
        *counted = Some(last);
    }
}

fn entry_of(va: u64, level: u32) -> u64 {
    va >> level_shift(level)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bus::GpuVa, memory::PhysAddr};

    const K4: u64 = 4 << 10;
    const M2: u64 = 2 << 20;
    const G1: u64 = 1 << 30;

    fn span(start: u64, len: u64) -> VaSpan {
        VaSpan::new(GpuVa::new(start), len).unwrap()
    }

    fn system(at: u64) -> Target {
        Target::Memory(PhysAddr::system(at))
    }

    #[test]
    fn one_page_takes_a_node_of_each_level_but_the_root() {
        let mut needs = Needs::new();
        needs.map(span(5 * M2, K4), system(0));
        assert_eq!(needs.count(), 3);
    }

    #[test]
    fn neighbours_in_order_share_their_tables() {
        let mut needs = Needs::new();
        (0..1024).for_each(|n| needs.map(span(n * K4, K4), system(0)));
        assert_eq!(needs.count(), 1 + 1 + 2);
    }

    #[test]
    fn what_is_replaced_in_order_shares_its_tables_too() {
        let mut needs = Needs::new();
        for n in 0..512 {
            needs.unmap_whole(span(n * K4, K4));
            needs.map(span(n * K4, K4), system(0));
        }
        assert_eq!(needs.count(), 3);
    }

    #[test]
    fn what_may_have_been_taken_apart_counts_anew() {
        let mut needs = Needs::new();
        needs.map(span(0, K4), system(0));
        needs.unmap_whole(span(0, M2));
        needs.map(span(0, K4), system(0));
        assert_eq!(needs.count(), 6);
    }

    #[test]
    fn large_leaves_take_nodes_at_their_ends_only() {
        let mut needs = Needs::new();
        needs.map(span(G1, G1), system(0));
        assert_eq!(needs.count(), 1);
        needs.map(span(4 * G1 - M2, M2 + K4), system(3 * G1 - M2));
        // Two of 1 GiB, one of 2 MiB.
        assert_eq!(needs.count(), 1 + 2 + 1);
    }

    #[test]
    fn an_unmap_may_split_both_ends() {
        let mut needs = Needs::new();
        needs.unmap(span(K4, 2 * G1));
        assert_eq!(needs.count(), 4);
        needs.unmap_whole(span(4 * G1, G1));
        assert_eq!(needs.count(), 4);
    }
}
