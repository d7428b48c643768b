//! A stand-in for waiting: for as long as it takes, and without interrupts, which `interleavings` has.

use std::sync::Arc;

use loom::sync::{Condvar, Mutex};

#[derive(Default)]
pub(crate) struct Parker {
    woken: Mutex<bool>,
    wake: Condvar,
}

loom::thread_local! {
    static PARKER: Arc<Parker> = Arc::default();
}

impl Parker {
    pub(crate) fn current() -> Arc<Self> {
        PARKER.with(Arc::clone)
    }

    pub(crate) fn unpark(&self) {
        *self.woken.lock().unwrap() = true;
        self.wake.notify_one();
    }

    fn park(&self) {
        let mut woken = self.woken.lock().unwrap();
        while !*woken {
            woken = self.wake.wait(woken).unwrap();
        }
        *woken = false;
    }
}

pub(crate) struct Deadline;

impl Deadline {
    pub(crate) fn never() -> Self {
        Self
    }
}

pub(crate) struct Interrupt;

pub(crate) enum WaitError {
    TimedOut,
    Interrupted,
}

pub(crate) fn park_until<T>(
    parker: &Arc<Parker>,
    _: Deadline,
    _: &Interrupt,
    mut done: impl FnMut() -> Option<T>,
) -> Result<T, WaitError> {
    loop {
        if let Some(value) = done() {
            return Ok(value);
        }
        parker.park();
    }
}
