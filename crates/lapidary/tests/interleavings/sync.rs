//! `shuttle`'s primitives in the shape of the library's `sync`.

use std::{
    ops::{Deref, DerefMut},
    time::Instant,
};

pub use shuttle::{thread, thread_local};
pub use std::sync::{Arc, LazyLock, OnceLock, Weak};

pub use crate::rwlock::{RwLock, RwLockReadGuard, RwLockUpgradableReadGuard, RwLockWriteGuard};

pub mod atomic {
    pub use shuttle::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
}

pub(crate) mod cell {
    pub(crate) use std::cell::UnsafeCell;
}

#[derive(Debug, Default)]
pub struct Mutex<T>(shuttle::sync::Mutex<T>);

pub struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    held: Option<shuttle::sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        let held = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        MutexGuard { mutex: self, held: Some(held) }
    }

    pub fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<T> MutexGuard<'_, T> {
    pub fn unlocked<R>(guard: &mut Self, run: impl FnOnce() -> R) -> R {
        drop(guard.held.take());
        let result = run();
        guard.held = guard.mutex.lock().held;
        result
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_ref().expect("it is empty only while it waits")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect("it is empty only while it waits")
    }
}

#[derive(Debug, Default)]
pub struct Condvar(shuttle::sync::Condvar);

pub struct TimedOut;

impl TimedOut {
    pub fn timed_out(&self) -> bool {
        true
    }
}

impl Condvar {
    pub const fn new() -> Self {
        Self(shuttle::sync::Condvar::new())
    }

    pub fn notify_one(&self) -> bool {
        self.0.notify_one();
        true
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let waiting = guard.held.take().expect("it is empty only while it waits");
        guard.held = Some(self.0.wait(waiting).unwrap_or_else(|poisoned| poisoned.into_inner()));
    }

    /// Time does not pass in a model: it is up at once.
    pub fn wait_until<T>(&self, _: &mut MutexGuard<'_, T>, _: Instant) -> TimedOut {
        TimedOut
    }
}

/// Looking more than once before sleeping adds orders, and nothing that can go wrong.
pub(crate) fn looks() -> u32 {
    0
}

pub(crate) fn relax(_: &mut u32) {
    shuttle::thread::yield_now();
}

/// The library's unit tests are models of one thread here.
pub(crate) fn unit_test(test: impl Fn() + Send + Sync + 'static) {
    crate::check_alone(test);
}
