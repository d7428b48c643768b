//! Putting threads to sleep until a condition holds.
//!
//! Each thread owns one [`Parker`]. Whoever may make a condition true keeps a reference to the parkers of the
//! threads that wait for it and unparks them afterwards; a sleeper checks its condition after each wake-up, so a
//! wake-up too many does no harm.

use crate::sync::{Arc, Condvar, Mutex, thread_local};

use super::{Deadline, Interrupt, WaitError, signalling::assert_may_block};

/// A thread's place to sleep.
#[derive(Debug, Default)]
pub(crate) struct Parker {
    woken: Mutex<bool>,
    wake: Condvar,
}

thread_local! {
    static PARKER: Arc<Parker> = Arc::default();
}

impl Parker {
    /// The calling thread's parker.
    pub(crate) fn current() -> Arc<Self> {
        // A thread whose locals are gone already gets one for this wait alone.
        PARKER.try_with(Arc::clone).unwrap_or_default()
    }

    /// Wakes the thread, or lets its next sleep return at once.
    pub(crate) fn unpark(&self) {
        let mut woken = self.woken.lock();
        if !*woken {
            *woken = true;
            self.wake.notify_one();
        }
    }

    /// Sleeps until unparked or until the deadline.
    fn park(&self, deadline: &Deadline) {
        let mut woken = self.woken.lock();
        while !*woken {
            match deadline.instant() {
                None => self.wake.wait(&mut woken),
                Some(instant) => {
                    if self.wake.wait_until(&mut woken, instant).timed_out() {
                        break;
                    }
                }
            }
        }
        *woken = false;
    }
}

/// Sleeps until `done` gives a value, the deadline passes or the interrupt is raised.
///
/// The caller has arranged for `parker`, the calling thread's, to be unparked after each change that may make
/// `done` succeed. `done` is asked before anything else, so what has happened counts even when it is late.
pub(crate) fn park_until<T>(
    parker: &Arc<Parker>,
    deadline: Deadline,
    interrupt: &Interrupt,
    mut done: impl FnMut() -> Option<T>,
) -> Result<T, WaitError> {
    let _registration = interrupt.register(parker);
    loop {
        if let Some(value) = done() {
            return Ok(value);
        }
        if deadline.has_passed() {
            return Err(WaitError::TimedOut);
        }
        if interrupt.is_raised() {
            return Err(WaitError::Interrupted);
        }
        parker.park(&deadline);
    }
}

/// A place where threads wait for a condition that others make true: what a fence is too heavy or too
/// final for.
///
/// Whoever changes something the condition depends on calls [`wake_all`](Self::wake_all) afterwards.
#[derive(Debug, Default)]
pub struct WaitQueue {
    waiting: Mutex<Vec<Arc<Parker>>>,
}

impl WaitQueue {
    /// A queue nobody waits in.
    pub const fn new() -> Self {
        Self { waiting: Mutex::new(Vec::new()) }
    }

    /// Waits until `done` gives a value, and returns it. `done` runs in this thread with no lock held, at least
    /// once, and after each [`wake_all`](Self::wake_all).
    ///
    /// # Errors
    /// [`WaitError`] when the deadline passes or the interrupt is raised first.
    ///
    /// # Panics
    /// In debug builds, in a signalling section, unless the deadline is a poll.
    #[track_caller]
    pub fn wait<T>(
        &self,
        deadline: Deadline,
        interrupt: &Interrupt,
        mut done: impl FnMut() -> Option<T>,
    ) -> Result<T, WaitError> {
        if !deadline.is_poll() {
            assert_may_block("wait");
        }
        if let Some(value) = done() {
            return Ok(value);
        }
        if deadline.is_poll() {
            return Err(WaitError::TimedOut);
        }
        let parker = Parker::current();
        self.waiting.lock().push(parker.clone());
        let _place = Place { queue: self, parker: &parker };
        park_until(&parker, deadline, interrupt, done)
    }

    /// Has every waiting thread ask for its condition again.
    pub fn wake_all(&self) {
        for parker in self.waiting.lock().iter() {
            parker.unpark();
        }
    }
}

/// A thread's place in a queue, given up when dropped.
struct Place<'a> {
    queue: &'a WaitQueue,
    parker: &'a Arc<Parker>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.queue.waiting.lock();
        if let Some(place) = waiting.iter().rposition(|parker| Arc::ptr_eq(parker, self.parker)) {
            waiting.swap_remove(place);
        }
    }
}
