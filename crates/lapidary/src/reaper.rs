//! The reaper: where things are let go that can't be let go where they are dropped.
//!
//! The last reference to an address space, a busy buffer or an imported mapping may be dropped in a fence
//! callback, under a reservation, in the middle of a submission. Whatever may block or take a lock is then
//! packed into a *release*, a closure, and queued here; one worker thread runs releases in the order they were
//! queued, holding no lock.
//!
//! # Locking
//!
//! [`Reaper::queue`] takes one internal lock for the length of a push. No foreign code runs under it, so it may
//! be called under any lock and in any signalling section. [`Reaper::flush`] waits, and must be called without
//! locks that a release may take.
//!
//! # Epochs
//!
//! A release may queue further releases; those belong to the release's *epoch*. `flush` begins a new epoch and
//! waits for the older ones to run dry, so it returns although others keep queueing.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::fence::assert_may_block;
use crate::sync::thread::{self, JoinHandle, ThreadId};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Work to do later: lets go of what its closure owns.
pub type Release = Box<dyn FnOnce() + Send>;

/// A handle to a worker thread that runs releases. Clones are handles to the same worker.
#[derive(Clone)]
pub struct Reaper(Arc<Handle>);

/// Ends the worker with the last handle; the worker itself holds only what is inside.
struct Handle(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Wakes the worker.
    work: Condvar,
    /// Wakes those who flush.
    done: Condvar,
}

struct State {
    queue: VecDeque<(Epoch, Release)>,
    /// The epoch of what is queued from outside.
    now: Epoch,
    /// How many releases of each epoch are queued or running; no entry is zero.
    pending: BTreeMap<Epoch, usize>,
    /// The release that runs: its epoch and thread.
    running: Option<(Epoch, ThreadId)>,
    worker: Worker,
}

type Epoch = u64;

enum Worker {
    Stopped,
    Running(JoinHandle<()>),
    /// Asked to end once the queue is empty.
    Stopping,
}

impl Reaper {
    /// A reaper with a worker of its own.
    pub fn new() -> Self {
        let state = State {
            queue: VecDeque::new(),
            now: 0,
            pending: BTreeMap::new(),
            running: None,
            worker: Worker::Stopped,
        };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), done: Condvar::new() });
        Shared::start(&shared, &mut shared.state.lock());
        Self(Arc::new(Handle(shared)))
    }

    /// Has `release` run by the worker. Never blocks and takes no lock that a caller may hold.
    pub fn queue(&self, release: Release) {
        let shared = &self.0.0;
        let mut state = shared.state.lock();
        let epoch = match state.running {
            Some((epoch, thread)) if thread == thread::current().id() => epoch,
            _ => state.now,
        };
        *state.pending.entry(epoch).or_default() += 1;
        state.queue.push_back((epoch, release));
        Shared::start(shared, &mut state);
        drop(state);
        shared.work.notify_one();
    }

    /// Returns when all releases queued before the call, and those that they queue in turn, have run.
    ///
    /// Called by a release it does nothing: a release can't wait for its own end.
    ///
    /// # Panics
    /// In debug builds, in a [signalling section](crate::fence::signalling()).
    #[track_caller]
    pub fn flush(&self) {
        let shared = &self.0.0;
        let mut state = shared.state.lock();
        if state.running.is_some_and(|(_, thread)| thread == thread::current().id()) {
            return;
        }
        assert_may_block("flushing a reaper");
        let until = state.now;
        state.now += 1;
        while state.pending.first_key_value().is_some_and(|(epoch, _)| *epoch <= until) {
            if matches!(state.worker, Worker::Stopped) {
                // The system refused a thread: this one does the work.
                if shared.run_next(&mut state) {
                    continue;
                }
            }
            shared.done.wait(&mut state);
        }
    }

    /// Runs what is queued, ends the worker and waits for its end. A later [`queue`](Self::queue) starts another.
    ///
    /// # Panics
    /// As [`flush`](Self::flush).
    #[track_caller]
    pub fn shutdown(&self) {
        self.flush();
        let worker = {
            let mut state = self.0.0.state.lock();
            if state.running.is_some_and(|(_, thread)| thread == thread::current().id()) {
                return;
            }
            match std::mem::replace(&mut state.worker, Worker::Stopping) {
                Worker::Running(worker) => worker,
                other => {
                    state.worker = other;
                    return;
                }
            }
        };
        self.0.0.work.notify_all();
        // The worker catches panics of releases, so it has none to report.
        let _ = worker.join();
    }

    /// How many releases are queued or running.
    pub fn pending(&self) -> usize {
        self.0.0.state.lock().pending.values().sum()
    }
}

impl Default for Reaper {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Reaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reaper").field("pending", &self.pending()).finish()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        // The worker is not waited for: a handle may be dropped where nothing may block.
        state.worker = Worker::Stopping;
        drop(state);
        self.0.work.notify_all();
    }
}

impl Shared {
    /// Starts a worker if there is none.
    fn start(this: &Arc<Self>, state: &mut State) {
        // A worker that was asked to end empties the queue first.
        if !matches!(state.worker, Worker::Stopped) {
            return;
        }
        let shared = this.clone();
        match thread::Builder::new().name("lapidary-reaper".into()).spawn(move || shared.work()) {
            Ok(worker) => state.worker = Worker::Running(worker),
            Err(error) => {
                tracing::error!(%error, "no thread for the reaper: releases wait for the next flush")
            }
        }
    }

    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if self.run_next(&mut state) {
                continue;
            }
            if matches!(state.worker, Worker::Stopping) {
                state.worker = Worker::Stopped;
                return;
            }
            self.work.wait(&mut state);
        }
    }

    /// Runs the oldest release, without the lock. False if there is none, or another thread runs one.
    fn run_next(&self, state: &mut MutexGuard<'_, State>) -> bool {
        if state.running.is_some() {
            return false;
        }
        let Some((epoch, release)) = state.queue.pop_front() else { return false };
        state.running = Some((epoch, thread::current().id()));
        MutexGuard::unlocked(state, || {
            if catch_unwind(AssertUnwindSafe(release)).is_err() {
                tracing::error!("a release panicked; what it had not let go of yet may be lost");
            }
        });
        state.running = None;
        self.work.notify_one();
        if let Some(count) = state.pending.get_mut(&epoch) {
            *count -= 1;
            if *count == 0 {
                state.pending.remove(&epoch);
                self.done.notify_all();
            }
        }
        true
    }
}
