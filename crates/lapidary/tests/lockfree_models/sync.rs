//! `loom`'s primitives in the shape of the library's `sync`.

pub(crate) mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
}

pub(crate) mod cell {
    /// Each [`get`](Self::get) counts as a write: two without an order between them are a race.
    pub(crate) struct UnsafeCell<T>(loom::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::cell::UnsafeCell::new(value))
        }

        pub(crate) fn get(&self) -> *mut T {
            self.0.with_mut(|value| value)
        }
    }
}

pub(crate) use loom::sync::MutexGuard;
pub(crate) use std::sync::Arc;

#[derive(Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("a model that panics ends")
    }
}

/// Looking more than once before sleeping adds orders, and nothing that can go wrong.
pub(crate) fn looks() -> u32 {
    0
}

pub(crate) fn relax(_: &mut u32) {
    loom::thread::yield_now();
}
