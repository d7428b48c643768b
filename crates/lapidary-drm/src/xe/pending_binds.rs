//! Binds of an address space whose page-table work may not be done yet, and where it is.
//!
//! What is on record is in the order of the calls, whatever queue they named; page tables must follow in that order where
//! ranges overlap. A bind also comes after one that is to make a table which both need, as programs may rely on. Binds
//! elsewhere don't wait for each other.
//!
//! What waits holds memory: steps, page-table nodes. So only so much of it may wait at a time, in all of an address space; a
//! client that asks for more is told to try again with less, as where a kernel's pool of page-table updates is used up.

use std::collections::BTreeMap;
use std::ops::Range;

use lapidary::fence::{self, Fence, FenceContext};
use lapidary::gpuvm::VaRange;
use lapidary::userptr::{IntervalId, IntervalIndex};

use super::bind_queue::BindQueue;
use super::tables::Footprint;

/// Most page-table entries that binds which have to wait may be going to write. Programs count on an error where more wait.
const MAX_ENTRIES: u64 = 192 << 10;

/// See the [module](self). Kept under a lock that is held for a look or a change.
#[derive(Default)]
pub(super) struct PendingBinds {
    /// By number, in the order of the calls.
    binds: BTreeMap<u64, Bind>,
    next: u64,
    /// Where translations change, and by which bind.
    ranges: IntervalIndex<Name>,
    /// The same with the rest of tables that are made.
    reaches: IntervalIndex<Name>,
    entries: u64,
}

/// A bind's number, and the context of its queue's fences.
#[derive(Clone, Copy)]
struct Name {
    number: u64,
    queue: FenceContext,
}

struct Bind {
    done: Fence,
    queue: BindQueue,
    entries: u64,
    ranges: Vec<IntervalId>,
    reaches: Vec<IntervalId>,
}

/// A bind's place among the others, found before it has a fence.
pub(super) struct Place {
    ranges: Vec<Range<u64>>,
    reaches: Vec<Range<u64>>,
    entries: u64,
}

impl Place {
    /// For work at `footprints` that writes so many entries.
    pub(super) fn new(footprints: &[Footprint], entries: u64) -> Self {
        let merged = |part: fn(&Footprint) -> VaRange| {
            merge(footprints.iter().map(|at| part(at).start().raw()..part(at).end().raw()).collect())
        };
        Self { ranges: merged(|at| at.range), reaches: merged(|at| at.reach), entries }
    }
}

impl PendingBinds {
    /// Whether nothing waits, or is under way.
    pub(super) fn is_empty(&mut self) -> bool {
        self.forget_done();
        self.binds.is_empty()
    }

    /// Whether a bind that writes so many entries may wait, beside what waits already.
    pub(super) fn has_room(&self, entries: u64) -> bool {
        self.entries + entries <= MAX_ENTRIES
    }

    /// Whether page-table work on `range` is still to be done.
    pub(super) fn touches(&self, range: VaRange) -> bool {
        self.on(range).any(|bind| !bind.done.is_signalled())
    }

    /// The end of all such work on `range`, if any is still to be done.
    pub(super) fn end_of(&self, range: VaRange) -> Option<Fence> {
        let done = self.on(range).map(|bind| bind.done.clone()).filter(|done| !done.is_signalled());
        let done: Vec<Fence> = done.collect();
        (!done.is_empty()).then(|| fence::merge(done))
    }

    /// Adds a bind that `done`, of `queue`, is the end of. Answers what it must come after, besides those before it in its
    /// queue.
    pub(super) fn add(&mut self, place: Place, done: &Fence, queue: &BindQueue) -> Vec<Fence> {
        let before = self.before(&place.reaches, done.context());
        let name = Name { number: self.next, queue: done.context() };
        self.next += 1;
        let file = |index: &mut IntervalIndex<Name>, ranges: Vec<Range<u64>>| {
            ranges.into_iter().filter_map(|range| index.insert(range, name)).collect()
        };
        let bind = Bind {
            done: done.clone(),
            queue: queue.clone(),
            entries: place.entries,
            ranges: file(&mut self.ranges, place.ranges),
            reaches: file(&mut self.reaches, place.reaches),
        };
        self.entries += bind.entries;
        self.binds.insert(name.number, bind);
        before
    }

    /// The queues with something that still waits or runs, the latest of each, and how much that is in all.
    pub(super) fn queues(&mut self) -> (Vec<(BindQueue, Fence)>, usize) {
        self.forget_done();
        let mut queues: Vec<(BindQueue, Fence)> = Vec::new();
        for bind in self.binds.values() {
            match queues.iter_mut().find(|(queue, _)| queue.is(&bind.queue)) {
                Some((_, latest)) => *latest = bind.done.clone(),
                None => queues.push((bind.queue.clone(), bind.done.clone())),
            }
        }
        (queues, self.binds.len())
    }

    /// A queue's fences signal in order: the latest of each stands for those before it.
    fn before(&self, reaches: &[Range<u64>], own: FenceContext) -> Vec<Fence> {
        let mut latest: Vec<Name> = Vec::new();
        let met = reaches.iter().flat_map(|reach| self.reaches.overlapping(reach.clone()));
        for (_, name) in met.filter(|(_, name)| name.queue != own) {
            match latest.iter_mut().find(|other| other.queue == name.queue) {
                Some(other) => other.number = other.number.max(name.number),
                None => latest.push(*name),
            }
        }
        latest.iter().filter_map(|name| Some(self.binds.get(&name.number)?.done.clone())).collect()
    }

    fn on(&self, range: VaRange) -> impl Iterator<Item = &Bind> {
        let met = self.ranges.overlapping(range.start().raw()..range.end().raw());
        met.filter_map(|(_, name)| self.binds.get(&name.number))
    }

    fn forget_done(&mut self) {
        let (ranges, reaches, entries) = (&mut self.ranges, &mut self.reaches, &mut self.entries);
        self.binds.retain(|_, bind| {
            let waits = !bind.done.is_signalled();
            if !waits {
                for &id in &bind.ranges {
                    ranges.remove(id);
                }
                for &id in &bind.reaches {
                    reaches.remove(id);
                }
                *entries -= bind.entries;
            }
            waits
        });
    }
}

/// The same addresses in as few ranges as possible, in order.
fn merge(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, merged| {
        let joins = next.start <= merged.end;
        if joins {
            merged.end = merged.end.max(next.end);
        }
        joins
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        assert_eq!(merge(vec![5..6, 0..2, 2..3, 8..20, 9..10]), [0..3, 5..6, 8..20]);
        assert_eq!(merge(Vec::new()), []);
    }
}
