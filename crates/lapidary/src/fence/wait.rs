//! Waiting for one fence, all, or any of several, in a thread.

use crate::sync::Arc;

use super::{
    CallbackId, Deadline, Fence, Interrupt, WaitError,
    park::{Parker, park_until},
    signalling::assert_may_block,
};

impl Fence {
    /// Waits until the fence has signalled, in whatever way; see [`status`](Fence::status) for which.
    ///
    /// # Errors
    /// [`WaitError`] when the deadline passes or the interrupt is raised first. A fence that has signalled counts even
    /// then.
    ///
    /// # Panics
    /// In debug builds, in a [signalling section](super::signalling()), unless the deadline is a poll.
    #[track_caller]
    pub fn wait(&self, deadline: Deadline, interrupt: &Interrupt) -> Result<(), WaitError> {
        wait_for(std::slice::from_ref(self), deadline, interrupt, || self.is_signalled().then_some(()))
    }
}

/// Waits until any of the fences has signalled and returns the index of the first in the list that has.
///
/// With no fence at all there is nothing to wait for that could happen: the wait ends by deadline or interrupt.
///
/// # Errors
/// As [`Fence::wait`].
///
/// # Panics
/// As [`Fence::wait`].
#[track_caller]
pub fn wait_any(fences: &[Fence], deadline: Deadline, interrupt: &Interrupt) -> Result<usize, WaitError> {
    wait_for(fences, deadline, interrupt, || fences.iter().position(Fence::is_signalled))
}

/// Waits until all of the fences have signalled.
///
/// # Errors
/// As [`Fence::wait`].
///
/// # Panics
/// As [`Fence::wait`].
#[track_caller]
pub fn wait_all(fences: &[Fence], deadline: Deadline, interrupt: &Interrupt) -> Result<(), WaitError> {
    // One after the other: the last to signal decides, and each is asked once.
    for fence in fences {
        fence.wait(deadline, interrupt)?;
    }
    Ok(())
}

#[track_caller]
fn wait_for<T>(
    fences: &[Fence],
    deadline: Deadline,
    interrupt: &Interrupt,
    mut done: impl FnMut() -> Option<T>,
) -> Result<T, WaitError> {
    if !deadline.is_poll() {
        assert_may_block("fence wait");
    }
    if let Some(value) = done() {
        return Ok(value);
    }
    if deadline.is_poll() {
        return Err(WaitError::TimedOut);
    }
    let parker = Parker::current();
    let _wakes = Wakes::register(fences, &parker);
    park_until(&parker, deadline, interrupt, done)
}

/// Fences that will wake this thread, until dropped.
pub(crate) struct Wakes<'a>(Vec<(&'a Fence, CallbackId)>);

impl<'a> Wakes<'a> {
    pub(crate) fn register(fences: &'a [Fence], parker: &Arc<Parker>) -> Self {
        // A fence that has signalled needs no wake-up: the caller looks once more before it sleeps.
        let register = |fence: &'a Fence| {
            let parker = parker.clone();
            Some((fence, fence.register(move |_| parker.unpark()).ok()?))
        };
        Self(fences.iter().filter_map(register).collect())
    }
}

impl Drop for Wakes<'_> {
    fn drop(&mut self) {
        for (fence, id) in self.0.drain(..) {
            fence.remove_callback(id);
        }
    }
}
