//! Signalling sections: work that a fence's signalling depends on.
//!
//! If such work waits for a fence or takes a reservation, the wait may be for itself: a deadlock that shows
//! only under load. [`signalling()`] marks the scope; in debug builds a blocking call inside panics at once and
//! names both places. Callbacks of fences are such work as well and run marked. Trying a lock and polling a
//! fence are always allowed.

use std::{cell::RefCell, marker::PhantomData, panic::Location};

use crate::sync::thread_local;

thread_local! {
    static SECTIONS: RefCell<Vec<&'static Location<'static>>> = const { RefCell::new(Vec::new()) };
}

/// Marks the calling thread as being in a signalling section until it is dropped.
#[derive(Debug)]
#[must_use = "the section ends when this is dropped"]
pub struct SignallingSection {
    // The mark belongs to the thread.
    not_send: PhantomData<*const ()>,
}

/// Begins a signalling section in this thread. Sections nest.
///
/// Costs nothing in release builds.
#[track_caller]
pub fn signalling() -> SignallingSection {
    if cfg!(debug_assertions) {
        let here = Location::caller();
        // A thread that is being torn down has no section to check any more.
        let _ = SECTIONS.try_with(|sections| sections.borrow_mut().push(here));
    }
    SignallingSection { not_send: PhantomData }
}

impl Drop for SignallingSection {
    fn drop(&mut self) {
        if cfg!(debug_assertions) {
            let _ = SECTIONS.try_with(|sections| sections.borrow_mut().pop());
        }
    }
}

/// Panics in debug builds if this thread is in a signalling section. `what` names the blocking call.
#[track_caller]
pub(crate) fn assert_may_block(what: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    let begun = SECTIONS.try_with(|sections| sections.borrow().last().copied()).ok().flatten();
    if let Some(begun) = begun
        && !std::thread::panicking()
    {
        let here = Location::caller();
        panic!("{what} at {here} inside the signalling section begun at {begun}: this can deadlock");
    }
}
