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
    /// Nothing once the scheduler was shut down.
    queues: Mutex<Option<Vec<Weak<Inner<B>>>>>,
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

    /// What carries out the jobs.
    pub fn backend(&self) -> &B {
        &self.0.backend
    }

    pub(super) fn ready(&self, queue: Arc<Inner<B>>, priority: Priority) {
        self.0.shared.ready(queue, priority);
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
        f.debug_struct("Scheduler")
            .field("queues", &self.0.queues.lock().as_ref().map_or(0, Vec::len))
            .finish()
    }
}
