//! Counters for the report, and the kinds of objects that the driver makes.

use std::sync::atomic::AtomicU64;

use crate::core::census::{Census, Kind};

/// What address spaces did. Relaxed counters: for people, not for decisions.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Calls of files that are closed.
    pub(super) ioctls: AtomicU64,
    /// Address spaces ever made.
    pub(super) vms_created: AtomicU64,
    /// Bind jobs carried out.
    pub(super) binds: AtomicU64,
    /// Mappings written again after an eviction.
    pub(super) rebinds: AtomicU64,
}

/// The kinds of objects that must be gone when their clients are.
pub(super) struct Kinds {
    /// VMs.
    pub(super) vms: Kind,
    /// Exec queues.
    pub(super) exec_queues: Kind,
    /// Buffers' bytes, those included that only the GPU still uses.
    pub(super) backings: Kind,
    /// Ranges of client memory.
    pub(super) client_ranges: Kind,
}

impl Kinds {
    pub(super) fn of(census: &Census) -> Self {
        Self {
            vms: census.kind("VMs"),
            exec_queues: census.kind("exec queues"),
            backings: census.kind("buffer backings"),
            client_ranges: census.kind("client ranges"),
        }
    }
}

/// The latest faults, in words.
#[derive(Debug, Default)]
pub(super) struct FaultLog {
    latest: parking_lot::Mutex<std::collections::VecDeque<String>>,
}

impl FaultLog {
    /// How many are kept.
    const KEPT: usize = 8;

    /// Adds one.
    pub(super) fn note(&self, fault: &impl std::fmt::Display) {
        let text = fault.to_string();
        let mut latest = self.latest.lock();
        if latest.len() == Self::KEPT {
            latest.pop_front();
        }
        latest.push_back(text);
    }

    /// Those kept, oldest first.
    pub(super) fn latest(&self) -> Vec<String> {
        self.latest.lock().iter().cloned().collect()
    }
}
