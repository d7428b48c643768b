//! Invalidations of translation caches, and waiting until no engine uses what is about to go.
//!
//! An engine that executes holds an [`Online`]. Between two steps it passes a *checkpoint*: there it catches up with all invalidations
//! that were published since its last one, and says so. An engine that is idle, sleeps, or signals fences is offline and counts as
//! having acknowledged everything; it catches up when it comes back.
//!
//! ```text
//!   driver                                engine
//!   change page tables
//!   publish: log entry, generation = g
//!   seen >= g?  no                        step (may use old entries)
//!        :                                checkpoint: generation != mine -> drop entries, seen = g
//!   seen >= g?  yes
//!   free pages, nodes                     step
//! ```
//!
//! Everything that an engine borrows from translations (see [`Chunk`](crate::Chunk)) borrows its `Online`, and a checkpoint needs that
//! exclusively: so it is the compiler who sees to it that nothing is kept across.
//!
//! Locking: the log and the station locks are leaves, held for a few instructions. A waiter holds none of ours while it waits, and may hold any
//! of its own, since an online engine takes no lock but the log's and finishes its step on its own.
//!
//! Memory ordering: the generation and each `seen` form a Dekker pair: the driver writes the generation, then reads `seen`; an engine that
//! comes online writes `seen`, then reads the generation. Sequential consistency on these makes at least one see the other.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::*},
};

use lapidary::sync::{Condvar, Mutex};

use crate::pagetable::{Asid, VaSpan};

/// Log entries kept; an engine that is further behind drops its whole cache.
const LOG: usize = 64;

/// How often a waiter looks before it sleeps: a step of plain commands is over by then.
const SPINS: u32 = 200;

/// `seen` of an engine that is offline: later than every generation.
const OFFLINE: u64 = u64::MAX;

/// What an invalidation covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// A range of one address space.
    Range(Asid, VaSpan),
    /// Nothing in any cache; only wait until every engine has passed a checkpoint.
    Checkpoint,
}

/// The invalidations of one GPU.
pub(crate) struct Shootdown {
    /// Number of the newest log entry.
    generation: AtomicU64,
    log: Mutex<VecDeque<Scope>>,
    stations: Box<[Station]>,
    issued: AtomicU64,
}

/// One engine's side.
struct Station {
    seen: AtomicU64,
    waiters: AtomicU32,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Shootdown {
    /// For engines `0..engines`, all offline.
    pub(crate) fn new(engines: usize) -> Self {
        let station = |_| Station {
            seen: AtomicU64::new(OFFLINE),
            waiters: AtomicU32::new(0),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        };
        Self {
            generation: AtomicU64::new(0),
            log: Mutex::new(VecDeque::with_capacity(LOG)),
            stations: (0..engines).map(station).collect(),
            issued: AtomicU64::new(0),
        }
    }

    /// Invalidates `scope` in every cache. When it returns no engine uses a translation, or memory found through one, that the page tables
    /// did not hold when it was called. May be called with any lock held that no [`HostMemory`](crate::memory::HostMemory) takes.
    pub(crate) fn invalidate(&self, scope: Scope) {
        let generation = self.publish(scope);
        for station in &self.stations {
            station.wait_for(generation);
        }
    }

    /// Number of range invalidations so far.
    pub(crate) fn issued(&self) -> u64 {
        self.issued.load(Relaxed)
    }

    fn publish(&self, scope: Scope) -> u64 {
        if scope != Scope::Checkpoint {
            self.issued.fetch_add(1, Relaxed);
        }
        let mut log = self.log.lock();
        if log.len() == LOG {
            log.pop_front();
        }
        log.push_back(scope);
        let generation = self.generation.load(Relaxed) + 1;
        self.generation.store(generation, SeqCst);
        generation
    }

    /// Brings an engine online and its cache up to date. `local` is the generation that the cache is good for; the caller keeps it between
    /// calls.
    pub(crate) fn online<'a>(
        &'a self,
        engine: usize,
        local: &'a mut u64,
        cache: &mut dyn Invalidate,
    ) -> Online<'a> {
        let station = &self.stations[engine];
        station.seen.store(*local, SeqCst);
        let mut online = Online { shootdown: self, station, local };
        online.checkpoint(cache);
        online
    }

    /// Calls `drop_range` for every invalidation after `since`, or `drop_all` if some are no longer known. Returns the generation reached.
    fn replay(&self, since: u64, caches: &mut dyn Invalidate) -> u64 {
        let log = self.log.lock();
        let generation = self.generation.load(Relaxed);
        let missed = generation - since;
        if missed > log.len() as u64 {
            caches.drop_all();
            return generation;
        }
        for scope in log.iter().skip(log.len() - missed as usize) {
            if let Scope::Range(asid, span) = *scope {
                caches.drop_range(asid, span);
            }
        }
        generation
    }
}

/// A cache that can forget.
pub(crate) trait Invalidate {
    /// Forgets every entry of `asid` that overlaps `span`.
    fn drop_range(&mut self, asid: Asid, span: VaSpan);
    /// Forgets everything.
    fn drop_all(&mut self);
}

impl Station {
    fn wait_for(&self, generation: u64) {
        for _ in 0..SPINS {
            if self.seen.load(SeqCst) >= generation {
                return;
            }
            std::hint::spin_loop();
        }
        self.waiters.fetch_add(1, SeqCst);
        let mut guard = self.lock.lock();
        while self.seen.load(SeqCst) < generation {
            self.changed.wait(&mut guard);
        }
        drop(guard);
        self.waiters.fetch_sub(1, SeqCst);
    }

    fn announce(&self, seen: u64) {
        self.seen.store(seen, SeqCst);
        if self.waiters.load(SeqCst) > 0 {
            // Taking the lock orders this behind a waiter that has looked but not slept yet.
            drop(self.lock.lock());
            self.changed.notify_all();
        }
    }
}

/// An engine that may use translations. Borrowed by everything that came from one; dropping it takes the engine offline.
pub(crate) struct Online<'a> {
    shootdown: &'a Shootdown,
    station: &'a Station,
    local: &'a mut u64,
}

impl Online<'_> {
    /// Catches up with published invalidations. To be called between any two steps. One load if there is nothing to do.
    pub(crate) fn checkpoint(&mut self, cache: &mut dyn Invalidate) {
        if self.shootdown.generation.load(SeqCst) == *self.local {
            return;
        }
        *self.local = self.shootdown.replay(*self.local, cache);
        self.station.announce(*self.local);
    }
}

impl Drop for Online<'_> {
    fn drop(&mut self) {
        self.station.announce(OFFLINE);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;
    use crate::bus::GpuVa;

    #[derive(Default)]
    struct Seen(Vec<Option<VaSpan>>);

    impl Invalidate for Seen {
        fn drop_range(&mut self, _: Asid, span: VaSpan) {
            self.0.push(Some(span));
        }
        fn drop_all(&mut self) {
            self.0.push(None);
        }
    }

    fn span(start: u64, len: u64) -> VaSpan {
        VaSpan::new(GpuVa::new(start), len).unwrap()
    }

    #[test]
    fn an_offline_engine_counts_as_acknowledged_and_catches_up_later() {
        let shootdown = Shootdown::new(2);
        shootdown.invalidate(Scope::Range(Asid::alloc(), span(0x1000, 0x1000)));
        let (mut local, mut seen) = (0, Seen::default());
        let mut online = shootdown.online(1, &mut local, &mut seen);
        online.checkpoint(&mut seen);
        assert_eq!(seen.0, [Some(span(0x1000, 0x1000))]);
    }

    #[test]
    fn an_engine_too_far_behind_drops_everything() {
        let shootdown = Shootdown::new(1);
        for _ in 0..LOG + 1 {
            shootdown.invalidate(Scope::Range(Asid::alloc(), span(0, 0x1000)));
        }
        let (mut local, mut seen) = (0, Seen::default());
        drop(shootdown.online(0, &mut local, &mut seen));
        assert_eq!(seen.0, [None]);
    }

    #[test]
    fn an_invalidation_returns_only_after_the_online_engine_passed_a_checkpoint() {
        let shootdown = Arc::new(Shootdown::new(1));
        let (mut local, mut seen) = (0, Seen::default());
        let mut online = shootdown.online(0, &mut local, &mut seen);
        let (done, returned) = mpsc::channel();
        let driver = Arc::clone(&shootdown);
        let thread = std::thread::spawn(move || {
            driver.invalidate(Scope::Range(Asid::alloc(), span(0, 0x1000)));
            done.send(()).unwrap();
        });
        while shootdown.issued() == 0 {
            std::thread::yield_now();
        }
        assert!(returned.try_recv().is_err());
        while returned.try_recv().is_err() {
            online.checkpoint(&mut seen);
        }
        thread.join().unwrap();
        assert_eq!(seen.0.len(), 1);
    }
}
