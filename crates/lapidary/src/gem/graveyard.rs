//! The graveyard: objects that are gone for everybody but the GPU.
//!
//! What is buried is only what the GPU may still touch, the memory, with the fences that say for how long. When they have
//! signalled, the reaper lets go of it; under memory pressure [`Graveyard::flush`] waits and does so at once.

use std::{collections::BTreeMap, fmt};

use crate::{
    fence::{self, Deadline, Fence, Interrupt, WaitError},
    reaper::{Reaper, Release},
    sync::{Arc, Mutex},
};

/// A device's graveyard. Clones are handles to the same one.
#[derive(Clone)]
pub struct Graveyard(Arc<Inner>);

struct Inner {
    reaper: Reaper,
    graves: Mutex<Graves>,
}

#[derive(Default)]
struct Graves {
    next: u64,
    by_id: BTreeMap<u64, Grave>,
}

struct Grave {
    until: Fence,
    remains: Release,
}

impl Graveyard {
    /// An empty graveyard whose remains `reaper` lets go of.
    pub fn new(reaper: Reaper) -> Self {
        Self(Arc::new(Inner { reaper, graves: Mutex::default() }))
    }

    /// The reaper behind the graveyard.
    pub fn reaper(&self) -> &Reaper {
        &self.0.reaper
    }

    /// How many buried objects still wait for their fences.
    pub fn len(&self) -> usize {
        self.0.graves.lock().by_id.len()
    }

    /// Whether nothing is buried.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets go of everything whose fences have signalled, in this thread.
    pub fn sweep(&self) {
        let ended: Vec<u64> = {
            let graves = self.0.graves.lock();
            graves.by_id.iter().filter(|(_, grave)| grave.until.is_signalled()).map(|(id, _)| *id).collect()
        };
        for id in ended {
            self.empty(id);
        }
    }

    /// Waits for the fences of all that is buried now and lets go of it. May be called with reservations locked: what
    /// is let go of is memory, and takes none.
    ///
    /// # Errors
    /// [`WaitError`] if the deadline passes or the interrupt is raised first; what was done so far stays done.
    pub fn flush(&self, deadline: Deadline, interrupt: &Interrupt) -> Result<(), WaitError> {
        let fences: Vec<Fence> =
            self.0.graves.lock().by_id.values().map(|grave| grave.until.clone()).collect();
        let waited = fence::wait_all(&fences, deadline, interrupt);
        self.sweep();
        waited
    }

    /// Keeps `remains` until `fence` has signalled. Takes only the graveyard's own lock, so it may be called anywhere.
    pub fn bury(&self, until: Fence, remains: Release) {
        let grave = Grave { until: until.clone(), remains };
        let id = {
            let mut graves = self.0.graves.lock();
            let id = graves.next;
            graves.next += 1;
            graves.by_id.insert(id, grave);
            id
        };
        let graveyard = self.clone();
        until.on_signal(move |_| {
            let reaper = graveyard.0.reaper.clone();
            reaper.queue(Box::new(move || graveyard.empty(id)));
        });
    }

    /// Lets go of what is in a grave, unless somebody else has.
    fn empty(&self, id: u64) {
        let grave = self.0.graves.lock().by_id.remove(&id);
        if let Some(grave) = grave {
            (grave.remains)();
        }
    }
}

impl fmt::Debug for Graveyard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graveyard").field("len", &self.len()).finish()
    }
}
