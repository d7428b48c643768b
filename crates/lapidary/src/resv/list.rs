//! The fences of a reservation.

use crate::fence::{Fence, FenceContext};

use super::Usage;

/// A fence and what the work behind it does.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) fence: Fence,
    pub(super) usage: Usage,
}

impl Entry {
    /// Whether adding `fence` as `usage` makes this entry superfluous: it has signalled, or the new one is of the same
    /// context, not earlier, and waited for by at least the same.
    fn is_superseded_by(&self, fence: &Fence, usage: Usage) -> bool {
        let later = fence.context() == self.fence.context() && fence.seqno() >= self.fence.seqno();
        (later && self.usage >= usage) || self.fence.is_signalled()
    }
}

/// The entries, in no particular order.
#[derive(Default)]
pub(super) struct FenceList(Vec<Entry>);

impl FenceList {
    pub(super) fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// Makes room for `n` more entries; false if there is no memory for them.
    pub(super) fn reserve(&mut self, n: usize) -> bool {
        if self.0.capacity() - self.0.len() >= n {
            return true;
        }
        self.0.retain(|entry| !entry.fence.is_signalled());
        self.0.try_reserve(n).is_ok()
    }

    /// Adds a fence, in the place of one it supersedes if there is any. Needs room for one entry at most.
    pub(super) fn add(&mut self, fence: Fence, usage: Usage) {
        let entry = Entry { fence, usage };
        match self.0.iter_mut().find(|old| old.is_superseded_by(&entry.fence, usage)) {
            Some(old) => *old = entry,
            None => self.0.push(entry),
        }
    }

    /// Puts `fence` in the place of every fence of `context`.
    pub(super) fn replace(&mut self, context: FenceContext, fence: &Fence, usage: Usage) {
        for entry in self.0.iter_mut().filter(|entry| entry.fence.context() == context) {
            *entry = Entry { fence: fence.clone(), usage };
        }
    }

    pub(super) fn set(&mut self, entries: Vec<Entry>) {
        self.0 = entries;
    }

    /// Entries of `usage` and the usages before it that have not signalled.
    pub(super) fn pending(&self, usage: Usage) -> impl Iterator<Item = &Entry> {
        self.0.iter().filter(move |entry| entry.usage <= usage && !entry.fence.is_signalled())
    }

    pub(super) fn snapshot(&self, usage: Usage) -> Vec<Fence> {
        self.pending(usage).map(|entry| entry.fence.clone()).collect()
    }

    pub(super) fn is_idle(&self, usage: Usage) -> bool {
        self.pending(usage).next().is_none()
    }
}
