//! Interrupting waits from outside.

use crate::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use super::park::Parker;

/// A handle that ends waits early.
///
/// Each wait takes one. Raising it wakes every wait that was given this handle or a clone of it, and makes
/// later ones return [`WaitError::Interrupted`](super::WaitError::Interrupted) as soon as they would sleep,
/// until it is cleared.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Option<Arc<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    raised: AtomicBool,
    waiting: Mutex<Vec<Arc<Parker>>>,
}

impl Interrupt {
    /// An interrupt that is not raised.
    pub fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// An interrupt that can't be raised: for waits that nothing ends early.
    pub const fn none() -> Self {
        Self(None)
    }

    /// Raises the interrupt and wakes all waits that use it. Does nothing to [`Interrupt::none`].
    pub fn raise(&self) {
        let Some(shared) = &self.0 else { return };
        shared.raised.store(true, Ordering::SeqCst);
        for parker in shared.waiting.lock().iter() {
            parker.unpark();
        }
    }

    /// Takes back an earlier [`raise`](Self::raise).
    pub fn clear(&self) {
        if let Some(shared) = &self.0 {
            shared.raised.store(false, Ordering::SeqCst);
        }
    }

    /// Whether the interrupt is raised.
    pub fn is_raised(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.raised.load(Ordering::SeqCst))
    }

    /// Has `parker` woken by [`raise`](Self::raise) until the registration is dropped. A raise before that is
    /// seen by [`is_raised`](Self::is_raised), which the caller asks after registering.
    pub(super) fn register<'a>(&'a self, parker: &'a Arc<Parker>) -> Registration<'a> {
        if let Some(shared) = &self.0 {
            shared.waiting.lock().push(parker.clone());
        }
        Registration { interrupt: self, parker }
    }
}

/// A parker's place in the list of an interrupt.
#[derive(Debug)]
pub(super) struct Registration<'a> {
    interrupt: &'a Interrupt,
    parker: &'a Arc<Parker>,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let Some(shared) = &self.interrupt.0 else { return };
        let mut waiting = shared.waiting.lock();
        if let Some(place) = waiting.iter().rposition(|parker| Arc::ptr_eq(parker, self.parker)) {
            waiting.swap_remove(place);
        }
    }
}
