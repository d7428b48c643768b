//! The scheduler's threads, and the queues that wait for one.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    fence::{FenceError, Timestamp},
    sync::{
        Arc, Condvar, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{Backend, Priority, Queue, QueueConfig, queue::Inner, watch::Look};

/// Worker threads, a backend, and the queues that feed it. Clones are handles to the same scheduler; its threads end
/// when the last handle and the last queue are gone, and nobody has to look at a job in flight any more.
pub struct Scheduler<B: Backend>(Arc<Handle<B>>);

/// Ends the workers when dropped; they hold only what is inside.
struct Handle<B: Backend> {
    shared: Arc<Shared<B>>,
    backend: Arc<B>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    /// Nothing once the scheduler was shut down.
    queues: Mutex<Option<Vec<Weak<Inner<B>>>>>,
}

struct Shared<B: Backend> {
    ready: Mutex<Ready<B>>,
    wake: Condvar,
    /// How many pauses there are.
    paused: AtomicUsize,
}

struct Ready<B: Backend> {
    queues: [VecDeque<Arc<Inner<B>>>; Priority::COUNT],
    /// Queues with a job in flight, by when its time may be up. The number tells those of one moment apart.
    looks: BTreeMap<(Timestamp, u64), Looked<B>>,
    next_look: u64,
    stopping: bool,
}

/// A queue whose job in flight is to be looked at, and for which generation of its watch.
struct Looked<B: Backend>(Arc<Inner<B>>, u64);

/// What a worker is to do.
enum Task<B: Backend> {
    /// Hand over jobs.
    Run(Arc<Inner<B>>),
    /// See whether the job in flight has had its time.
    Look(Looked<B>),
}

/// Keeps a scheduler's jobs from being handed to the backend, until it is dropped. From [`Scheduler::pause`].
#[must_use = "the scheduler goes on when this is dropped"]
pub struct Paused<B: Backend>(Scheduler<B>);

impl<B: Backend> Scheduler<B> {
    /// A scheduler with `workers` threads, at least one.
    ///
    /// # Panics
    /// If the system refuses a thread.
    pub fn new(name: &str, backend: Arc<B>, workers: usize) -> Self {
        let ready = Ready {
            queues: std::array::from_fn(|_| VecDeque::new()),
            looks: BTreeMap::new(),
            next_look: 0,
            stopping: false,
        };
        let shared =
            Arc::new(Shared { ready: Mutex::new(ready), wake: Condvar::new(), paused: AtomicUsize::new(0) });
        let spawn = |_| {
            let shared = shared.clone();
            let worker = thread::Builder::new().name(name.into()).spawn(move || shared.work());
            worker.expect("the system gives a scheduler its threads")
        };
        let workers = (0..workers.max(1)).map(spawn).collect();
        let handle =
            Handle { shared, backend, workers: Mutex::new(workers), queues: Mutex::new(Some(Vec::new())) };
        Self(Arc::new(handle))
    }

    /// A new queue; one that was killed already if the scheduler was shut down.
    pub fn queue(&self, config: QueueConfig) -> Queue<B> {
        let queue = Queue::new(self.clone(), config);
        if !self.enlist(&queue) {
            // Nobody is left to run what waits in it.
            queue.kill(FenceError::DeviceLost);
        }
        queue
    }

    /// Notes a queue for the shutdown. False if that is over.
    fn enlist(&self, queue: &Queue<B>) -> bool {
        let mut queues = self.0.queues.lock();
        let Some(queues) = queues.as_mut() else { return false };
        if queues.len() == queues.capacity() {
            queues.retain(|queue| queue.strong_count() > 0);
        }
        queues.push(queue.downgrade());
        true
    }

    /// Kills all queues with [`FenceError::DeviceLost`], and ends the workers once what is ready has run. The backend's jobs in
    /// flight are its own business. Waits for the workers, so it must not be called under a lock that the backend takes.
    pub fn shutdown(&self) {
        let queues = self.0.queues.lock().take();
        for queue in queues.iter().flatten().filter_map(Weak::upgrade) {
            Queue::from_inner(queue).kill(FenceError::DeviceLost);
        }
        self.0.shared.stop();
        let workers = std::mem::take(&mut *self.0.workers.lock());
        for worker in workers {
            if worker.thread().id() != thread::current().id() {
                // Panics of the backend were caught and reported.
                let _ = worker.join();
            }
        }
    }

    /// Keeps jobs from being handed to the backend: for the time of a reset, say. When this returns no thread is handing one
    /// over; arming, pushing and killing go on. No job in flight [times out](Queue::set_timeout) meanwhile, and all of them
    /// have their whole time again afterwards. Pauses add up.
    ///
    /// What is in flight is the backend's own business. Waits for [`Backend::run`], so it must not be called from there, nor
    /// under a lock that is taken there; from [`Backend::timed_out`] it may.
    pub fn pause(&self) -> Paused<B> {
        // Before the queues are looked at: whoever takes a queue's lock afterwards sees it.
        self.0.shared.paused.fetch_add(1, Ordering::AcqRel);
        for queue in self.queues() {
            drop(queue.at_rest());
        }
        Paused(self.clone())
    }

    /// Whether jobs are kept from being handed over.
    pub fn is_paused(&self) -> bool {
        self.0.shared.paused.load(Ordering::Acquire) > 0
    }

    fn queues(&self) -> Vec<Arc<Inner<B>>> {
        self.0.queues.lock().iter().flatten().filter_map(Weak::upgrade).collect()
    }

    /// What carries out the jobs.
    pub fn backend(&self) -> &B {
        &self.0.backend
    }

    pub(super) fn ready(&self, queue: Arc<Inner<B>>, priority: Priority) {
        self.0.shared.ready(queue, priority);
    }

    pub(super) fn watch(&self, queue: Arc<Inner<B>>, look: Look) {
        self.0.shared.watch(queue, look);
    }
}

impl<B: Backend> Drop for Paused<B> {
    fn drop(&mut self) {
        if self.0.0.shared.paused.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.queues().iter().for_each(Inner::watch_anew);
            self.0.0.shared.go_on();
        }
    }
}

impl<B: Backend> Shared<B> {
    fn work(&self) {
        while let Some(task) = self.next() {
            let work = || match &task {
                Task::Run(queue) => queue.work(),
                Task::Look(Looked(queue, generation)) => queue.look(*generation),
            };
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("a backend panicked; if it was given a job, that has failed");
            }
        }
    }

    /// Has a worker look at a queue's job in flight at its time.
    fn watch(&self, queue: Arc<Inner<B>>, Look { at, generation }: Look) {
        let mut ready = self.ready.lock();
        if ready.stopping {
            return;
        }
        let number = ready.next_look;
        ready.next_look += 1;
        let first = ready.looks.first_key_value().is_none_or(|((first, _), _)| at < *first);
        ready.looks.insert((at, number), Looked(queue, generation));
        drop(ready);
        // Whoever waits for something later is to wait less long.
        if first {
            self.wake.notify_one();
        }
    }

    /// Has a worker look at a queue. After a shutdown there is nothing to look at: all queues were killed before.
    fn ready(&self, queue: Arc<Inner<B>>, priority: Priority) {
        let mut ready = self.ready.lock();
        if ready.stopping {
            return;
        }
        ready.queues[priority as usize].push_back(queue);
        drop(ready);
        self.wake.notify_one();
    }

    /// What to do next; nothing if it is time to end.
    fn next(&self) -> Option<Task<B>> {
        let mut ready = self.ready.lock();
        loop {
            let until_look = ready.until_look();
            if until_look.is_some_and(|wait| wait.is_zero())
                && let Some((_, looked)) = ready.looks.pop_first()
            {
                return Some(Task::Look(looked));
            }
            let paused = self.paused.load(Ordering::Acquire) > 0 && !ready.stopping;
            if !paused && let Some(queue) = ready.queues.iter_mut().rev().find_map(VecDeque::pop_front) {
                return Some(Task::Run(queue));
            }
            if ready.stopping {
                return None;
            }
            match until_look {
                Some(wait) => drop(self.wake.wait_for(&mut ready, wait)),
                None => self.wake.wait(&mut ready),
            }
        }
    }

    /// Has the workers see that a pause is over.
    fn go_on(&self) {
        // Who looked before is waiting by now.
        drop(self.ready.lock());
        self.wake.notify_all();
    }

    fn stop(&self) {
        let looks = {
            let mut ready = self.ready.lock();
            ready.stopping = true;
            std::mem::take(&mut ready.looks)
        };
        self.wake.notify_all();
        drop(looks);
    }
}

impl<B: Backend> Ready<B> {
    /// How long it is until somebody has to look at a job in flight, if at all.
    fn until_look(&self) -> Option<Duration> {
        let ((at, _), _) = self.looks.first_key_value()?;
        Some(Duration::from_nanos(at.as_nanos().saturating_sub(Timestamp::now().as_nanos())))
    }
}

impl<B: Backend> Drop for Handle<B> {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl<B: Backend> fmt::Debug for Paused<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Paused").field(&self.0).finish()
    }
}

impl<B: Backend> Clone for Scheduler<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend> fmt::Debug for Scheduler<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler")
            .field("queues", &self.0.queues.lock().as_ref().map_or(0, Vec::len))
            .finish()
    }
}
