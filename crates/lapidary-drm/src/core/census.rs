//! Counts of live objects, by kind: the leak check of the whole server.
//!
//! Whatever a client can make (files, buffers, syncobjs, address spaces, …) carries a [`Live`] guard
//! of its kind. Making the guard counts up, dropping it counts down, so a count can't be forgotten on
//! an error path. When every client is gone, every count must be back at zero; a count that isn't names the
//! kind of object that leaked.
//!
//! Counters are relaxed atomics: a [`Census::snapshot`] taken while clients run is approximate, one
//! taken after they have been joined is exact. Looking a kind up takes a lock, counting doesn't: keep
//! the [`Kind`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

/// The counts of one device server. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Census {
    kinds: Arc<Mutex<BTreeMap<&'static str, Kind>>>,
}

/// One kind of counted object.
#[derive(Clone, Debug)]
pub struct Kind {
    counter: Arc<Counter>,
}

#[derive(Debug, Default)]
struct Counter {
    live: AtomicU64,
    peak: AtomicU64,
    total: AtomicU64,
}

/// Proof that one object of a kind exists. Lives inside that object.
#[derive(Debug)]
pub struct Live {
    counter: Arc<Counter>,
}

/// What [`Census::snapshot`] says about one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Objects that exist now.
    pub live: u64,
    /// Most that ever existed at once.
    pub peak: u64,
    /// All that were ever made.
    pub total: u64,
}

impl Census {
    /// A census without any object.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The kind of that name, made at its first mention.
    #[must_use]
    pub fn kind(&self, name: &'static str) -> Kind {
        let mut kinds = self.kinds.lock();
        kinds.entry(name).or_insert_with(|| Kind { counter: Arc::default() }).clone()
    }

    /// Every kind's counts, by name.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<&'static str, Count> {
        let kinds = self.kinds.lock();
        kinds.iter().map(|(name, kind)| (*name, kind.count())).collect()
    }

    /// The kinds with objects that still exist, with how many: empty when nothing leaked.
    #[must_use]
    pub fn survivors(&self) -> Vec<(&'static str, u64)> {
        let snapshot = self.snapshot().into_iter();
        snapshot.filter(|(_, count)| count.live != 0).map(|(name, count)| (name, count.live)).collect()
    }
}

impl Kind {
    /// Counts one more object, until the guard is dropped.
    #[must_use]
    pub fn enter(&self) -> Live {
        let counter = &self.counter;
        counter.total.fetch_add(1, Ordering::Relaxed);
        let live = counter.live.fetch_add(1, Ordering::Relaxed) + 1;
        counter.peak.fetch_max(live, Ordering::Relaxed);
        Live { counter: Arc::clone(counter) }
    }

    /// This kind's counts.
    #[must_use]
    pub fn count(&self) -> Count {
        Count {
            live: self.counter.live.load(Ordering::Relaxed),
            peak: self.counter.peak.load(Ordering::Relaxed),
            total: self.counter.total.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.counter.live.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_counts_what_lives_and_remembers_what_was() {
        let census = Census::new();
        let first = census.kind("vms").enter();
        let second = census.kind("vms").enter();
        drop(first);
        let count = census.kind("vms").count();
        assert_eq!(count, Count { live: 1, peak: 2, total: 2 });
        assert_eq!(census.survivors(), [("vms", 1)]);
        drop(second);
        assert!(census.survivors().is_empty());
    }
}
