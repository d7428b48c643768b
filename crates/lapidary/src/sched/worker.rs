//! The scheduler's threads, and the queues that wait for one.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    thread::{self, JoinHandle},
};

use crate::{
    fence::FenceError,
    sync::{Arc, Condvar, Mutex, Weak},
};

use super::{Backend, Priority, Queue, QueueConfig, queue::Inner};

/// Worker threads, a backend, and the queues that feed it. Clones are handles to the same scheduler; its threads end
/// when the last handle and the last queue are gone.
pub struct Scheduler<B: Backend>(Arc<Handle<B>>);

/// Ends the workers when dropped; they hold only what is inside.
struct Handle<B: Backend> {
    shared: Arc<Shared<B>>,
    backend: Arc<B>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    queues: Mutex<Vec<Weak<Inner<B>>>>,
}

struct Shared<B: Backend> {
    ready: Mutex<Ready<B>>,
    wake: Condvar,
}

struct Ready<B: Backend> {
    queues: [VecDeque<Arc<Inner<B>>>; Priority::COUNT],
    stopping: bool,
}

impl<B: Backend> Scheduler<B> {
    /// A scheduler with `workers` threads, at least one.
    ///
    /// # Panics
    /// If the system refuses a thread.
    pub fn new(name: &str, backend: Arc<B>, workers: usize) -> Self {
        let ready = Ready { queues: std::array::from_fn(|_| VecDeque::new()), stopping: false };
        let shared = Arc::new(Shared { ready: Mutex::new(ready), wake: Condvar::new() });
        let spawn = |_| {
            let shared = shared.clone();
            let worker = thread::Builder::new().name(name.into()).spawn(move || shared.work());
            worker.expect("the system gives a scheduler its threads")
        };
        let workers = (0..workers.max(1)).map(spawn).collect();
        let handle = Handle { shared, backend, workers: Mutex::new(workers), queues: Mutex::default() };
        Self(Arc::new(handle))
    }

    /// A new queue.
    pub fn queue(&self, config: QueueConfig) -> Queue<B> {
        let queue = Queue::new(self.clone(), config);
        let mut queues = self.0.queues.lock();
        if queues.len() == queues.capacity() {
            queues.retain(|queue| queue.strong_count() > 0);
        }
        queues.push(queue.downgrade());
        queue
    }

    /// Kills all queues with [`FenceError::DeviceLost`], and ends the workers once what is ready has run. The backend's jobs in
    /// flight are its own business.
    pub fn shutdown(&self) {
        let queues = std::mem::take(&mut *self.0.queues.lock());
        for queue in queues.iter().filter_map(Weak::upgrade) {
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

    /// What carries out the jobs.
    pub fn backend(&self) -> &B {
        &self.0.backend
    }

    pub(super) fn ready(&self, queue: Arc<Inner<B>>, priority: Priority) {
        self.0.shared.ready.lock().queues[priority as usize].push_back(queue);
        self.0.shared.wake.notify_one();
    }
}

impl<B: Backend> Shared<B> {
    fn work(&self) {
        while let Some(queue) = self.next() {
            if catch_unwind(AssertUnwindSafe(|| queue.work())).is_err() {
                tracing::error!("a job's backend panicked; the job has failed");
            }
        }
    }

    /// The next ready queue; nothing if it is time to end.
    fn next(&self) -> Option<Arc<Inner<B>>> {
        let mut ready = self.ready.lock();
        loop {
            if let Some(queue) = ready.queues.iter_mut().rev().find_map(VecDeque::pop_front) {
                return Some(queue);
            }
            if ready.stopping {
                return None;
            }
            self.wake.wait(&mut ready);
        }
    }

    fn stop(&self) {
        self.ready.lock().stopping = true;
        self.wake.notify_all();
    }
}

impl<B: Backend> Drop for Handle<B> {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl<B: Backend> Clone for Scheduler<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend> fmt::Debug for Scheduler<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler").field("queues", &self.0.queues.lock().len()).finish()
    }
}
