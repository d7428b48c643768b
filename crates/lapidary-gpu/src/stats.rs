//! What a GPU counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::bus::Work;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the GPU started.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The counters behind [`Stats`], shared by engines.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Jobs accepted.
    submissions,
    /// Jobs whose batch ended.
    completions,
    /// Jobs that failed or were cancelled.
    failures,
    /// Commands executed.
    commands,
    /// State commands skipped by their length.
    skipped_state,
    /// Draws skipped.
    skipped_draws,
    /// Compute walkers skipped.
    skipped_compute,
    /// Bytes copied from memory to memory.
    bytes_copied,
    /// Bytes filled.
    bytes_filled,
    /// Accesses that faulted.
    faults,
    /// Contexts banned: for a fault, an invalid command or a hang.
    bans,
    /// Jobs that exceeded the job timeout.
    hangs,
    /// TLB invalidations.
    invalidations,
    /// Uses of stale translations; in check mode only.
    stale_hits,
    /// Slices that ended before their job did, without waiting for anything.
    preemptions,
    /// Nanoseconds that engines executed commands, summed over engines.
    busy_ns,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        if count > 0 {
            counter.fetch_add(count, Relaxed);
        }
    }

    /// Adds one engine's counts of work.
    pub(crate) fn add_work(&self, tally: &Tally) {
        Self::add(&self.commands, tally.commands);
        Self::add(&self.skipped_state, tally.skipped_state);
        Self::add(&self.skipped_draws, tally.skipped_draws);
        Self::add(&self.skipped_compute, tally.skipped_compute);
        Self::add(&self.bytes_copied, tally.bytes_copied);
        Self::add(&self.bytes_filled, tally.bytes_filled);
    }
}

/// Work counted by one engine and not yet added to the shared counters.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    commands: u64,
    skipped_state: u64,
    skipped_draws: u64,
    skipped_compute: u64,
    bytes_copied: u64,
    bytes_filled: u64,
}

impl Tally {
    pub(crate) fn count(&mut self, work: Work) {
        match work {
            Work::Command => self.commands += 1,
            Work::SkippedState => self.skipped_state += 1,
            Work::SkippedDraw => self.skipped_draws += 1,
            Work::SkippedCompute => self.skipped_compute += 1,
            Work::Copied(bytes) => self.bytes_copied += bytes,
            Work::Filled(bytes) => self.bytes_filled += bytes,
        }
    }
}
