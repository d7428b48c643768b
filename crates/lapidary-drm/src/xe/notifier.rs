//! Who is told before a process changes memory that the GPU uses.
//!
//! Each client process has one [`Mm`] while it has userptrs, fed by its preload library: from the first userptr on, the
//! library tells before the program unmaps or replaces memory, and the program goes on when every job that may use the
//! range has ended. Jobs that come later find what the process has mapped by then, since device accesses look it up each
//! time: there are no pages to drop, and page tables stay as they are.
//!
//! The C library's own unmapping (inside `free`, or of a thread's stack) does not pass through the preload library. A job
//! that still uses such memory faults, as it would at an address that was never mapped.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use lapidary::fence::Fence;
use lapidary::reaper::Reaper;
use lapidary::resv::{Reservation, Usage};
use lapidary::userptr::{Blocking, Mm, NotifierSource, Userptr, UserptrUser, WatchError, WeakMm};
use parking_lot::Mutex;

use crate::core::Error;
use crate::transport::{Errno, Process};

/// A registered range. No pages are kept with it.
pub(super) type ClientUserptr = Userptr<()>;

/// The notifiers of all client processes of a device.
pub(super) struct Notifiers {
    worker: Reaper,
    by_process: Mutex<HashMap<u64, WeakMm>>,
}

impl Notifiers {
    pub(super) fn new(worker: &Reaper) -> Self {
        Self { worker: worker.clone(), by_process: Mutex::default() }
    }

    /// Registers `range` of a process's memory, whose users' fences are in `reservation`.
    ///
    /// # Errors
    /// `EFAULT` for a range that can't be watched.
    pub(super) fn register(
        &self,
        process: &Arc<Process>,
        range: Range<u64>,
        reservation: &Reservation,
    ) -> Result<ClientUserptr, Error> {
        let user = Arc::new(User { reservation: reservation.clone() });
        self.notifier_of(process).register(range, user).map_err(|error| {
            tracing::debug!(%error, "userptr");
            Error::refused(Errno::FAULT, "client memory that can't be watched")
        })
    }

    /// Waits until no job uses `range` of a process's memory any more.
    pub(super) fn memory_changes(&self, process: &Process, range: Range<u64>) {
        let mm = self.by_process.lock().get(&process.id()).and_then(WeakMm::upgrade);
        // A blocking invalidation can't be refused.
        let _ = mm.map(|mm| mm.invalidate(range, Blocking::May));
    }

    fn notifier_of(&self, process: &Arc<Process>) -> Mm {
        let mut by_process = self.by_process.lock();
        if let Some(mm) = by_process.get(&process.id()).and_then(WeakMm::upgrade) {
            return mm;
        }
        by_process.retain(|_, mm| mm.upgrade().is_some());
        let mm = Mm::new(Arc::new(Preload { process: Arc::clone(process) }), self.worker.clone());
        by_process.insert(process.id(), mm.downgrade());
        mm
    }
}

/// The preload library of one process as a source of changes.
struct Preload {
    process: Arc<Process>,
}

impl NotifierSource for Preload {
    fn attach(&self, _mm: WeakMm) -> Result<(), WatchError> {
        self.process.watch_memory(true);
        Ok(())
    }

    fn watch(&self, _range: Range<u64>) -> Result<(), WatchError> {
        Ok(())
    }

    fn unwatch(&self, _range: Range<u64>) {}

    fn detach(&self) {
        self.process.watch_memory(false);
    }
}

/// The jobs of one address space.
struct User {
    reservation: Reservation,
}

impl UserptrUser for User {
    fn fences(&self) -> Vec<Fence> {
        self.reservation.fences(Usage::Bookkeep)
    }

    fn invalidated(&self, _range: Range<u64>) {}
}
