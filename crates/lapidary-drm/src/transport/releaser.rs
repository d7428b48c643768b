//! The thread that tells drivers about what ended: files without descriptors, processes.
//!
//! The event loop must stay responsive while a driver tears down a file, so it hands that over to here.
//!
//! Locks: `queue`, then `progress`, a leaf.

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
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    counts: Mutex<Counts>,
    told: Condvar,
}

/// Numbers of ends since the start. What is told is told in the order of pushing.
#[derive(Debug, Default)]
struct Counts {
    pushed: u64,
    told: u64,
}

/// The thread's end of the queue.
pub(super) struct Work {
    queue: Receiver<Ended>,
    progress: Arc<Progress>,
}

impl Releaser {
    pub(super) fn new() -> (Self, Work) {
        let (sender, receiver) = channel();
        let progress = Arc::<Progress>::default();
        let work = Work { queue: receiver, progress: progress.clone() };
        (Self { queue: Mutex::new(Some(sender)), progress }, work)
    }

    pub(super) fn push(&self, ended: Ended) {
        let queue = self.queue.lock();
        if let Some(queue) = &*queue {
            self.progress.counts.lock().pushed += 1;
            // The thread outlives the queue.
            let _ = queue.send(ended);
        }
    }

    /// Waits until everything pushed before has been told. What is pushed meanwhile is not waited for, or clients that come
    /// and go without a break would hold up everybody else.
    pub(super) fn flush(&self) {
        let mut counts = self.progress.counts.lock();
        let target = counts.pushed;
        while counts.told < target {
            self.progress.told.wait(&mut counts);
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
            self.progress.counts.lock().told += 1;
            self.progress.told.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::testing::TestClient;
    use super::*;

    /// The thread's work on one end, without the driver.
    fn tell_one(work: &Work) {
        drop(work.queue.recv().expect("something was pushed"));
        work.progress.counts.lock().told += 1;
        work.progress.told.notify_all();
    }

    #[test]
    fn a_flush_waits_for_what_was_pushed_before_it_alone() {
        let (releaser, work) = Releaser::new();
        let client = TestClient::new();
        let end = || Ended::Process(client.process().clone());
        releaser.push(end());
        let flushed = AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                releaser.flush();
                flushed.store(1, Ordering::SeqCst);
            });
            // Something always remains to be told.
            while flushed.load(Ordering::SeqCst) == 0 {
                releaser.push(end());
                tell_one(&work);
            }
        });
        let counts = releaser.progress.counts.lock();
        assert!(counts.pushed > counts.told);
    }
}
