//! The thread that tells drivers about what ended: files without descriptors, processes.
//!
//! The event loop must stay responsive while a driver tears down a file, so it hands that over to here.
//!
//! Locks: `pending`, a leaf.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::registry::Release;
use super::{Process, Shared};

/// What ended.
#[derive(Debug)]
pub(super) enum Ended {
    File(Release),
    Process(Arc<Process>),
}

/// The queue to the thread.
#[derive(Debug)]
pub(super) struct Releaser {
    queue: Mutex<Option<Sender<Ended>>>,
    pending: Arc<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    count: Mutex<usize>,
    is_zero: Condvar,
}

/// The thread's end of the queue.
pub(super) struct Work {
    queue: Receiver<Ended>,
    pending: Arc<Pending>,
}

impl Releaser {
    pub(super) fn new() -> (Self, Work) {
        let (sender, receiver) = channel();
        let pending = Arc::<Pending>::default();
        let work = Work { queue: receiver, pending: pending.clone() };
        (Self { queue: Mutex::new(Some(sender)), pending }, work)
    }

    pub(super) fn push(&self, ended: Ended) {
        let queue = self.queue.lock();
        if let Some(queue) = &*queue {
            *self.pending.count.lock() += 1;
            // The thread outlives the queue.
            let _ = queue.send(ended);
        }
    }

    /// Waits until everything pushed before has been told.
    pub(super) fn flush(&self) {
        let mut count = self.pending.count.lock();
        while *count != 0 {
            self.pending.is_zero.wait(&mut count);
        }
    }

    /// Lets the thread end when the queue is empty.
    pub(super) fn stop(&self) {
        self.queue.lock().take();
    }
}

impl Work {
    pub(super) fn spawn(self, shared: Weak<Shared>) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("lapidary-release".to_owned()).spawn(move || self.run(&shared))
    }

    fn run(self, shared: &Weak<Shared>) {
        for ended in self.queue {
            match ended {
                Ended::File(release) => release.run(),
                Ended::Process(process) => {
                    if let Some(shared) = shared.upgrade() {
                        shared.service().process_gone(&process);
                    }
                }
            }
            let mut count = self.pending.count.lock();
            *count -= 1;
            if *count == 0 {
                self.pending.is_zero.notify_all();
            }
        }
    }
}
