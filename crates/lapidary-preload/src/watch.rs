//! Whether the server wants to know when the program unmaps or replaces memory: it does while the device uses some of it.

use std::sync::atomic::{AtomicBool, Ordering};

/// Said by the server with each reply. Relaxed: a thread that gives memory to the device has the answer before it can
/// take it away again.
static WANTED: AtomicBool = AtomicBool::new(false);

/// Whether changes of memory are to be told.
pub(crate) fn is_wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

/// Notes what the server said.
pub(crate) fn set(wanted: bool) {
    // Mostly nothing changes, and then the cache line stays shared.
    if is_wanted() != wanted {
        WANTED.store(wanted, Ordering::Relaxed);
    }
}
