//! A lock for readers and writers, of `shuttle`'s mutex and condition variable, that lets in whom `parking_lot`'s does.
//!
//! A writer claims the lock, which keeps other writers and new readers out, and then waits for the readers that are in. Who
//! reads *recursively* gets in past a claim as long as there are readers. One reader at a time can be *upgradable*: it
//! claims the lock later, ahead of all writers.

use std::{
    mem,
    ops::{Deref, DerefMut},
    sync,
};

use crate::sync::{Condvar, Mutex};

pub struct RwLock<T> {
    state: Mutex<State>,
    changed: Condvar,
    /// Nobody waits for it: who may have it is decided by `state`.
    value: sync::RwLock<T>,
}

struct State {
    /// The upgradable one included.
    readers: usize,
    upgradable: bool,
    /// By the writer that is in, or by the one that waits for the readers to go.
    claimed: bool,
}

impl<T> RwLock<T> {
    pub const fn new(value: T) -> Self {
        let state = State { readers: 0, upgradable: false, claimed: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), value: sync::RwLock::new(value) }
    }

    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.enter(|state| !state.claimed, |state| state.readers += 1);
        self.reader()
    }

    pub fn read_recursive(&self) -> RwLockReadGuard<'_, T> {
        self.enter(|state| !state.claimed || state.readers > 0, |state| state.readers += 1);
        self.reader()
    }

    pub fn upgradable_read(&self) -> RwLockUpgradableReadGuard<'_, T> {
        self.enter(
            |state| !state.claimed && !state.upgradable,
            |state| {
                state.readers += 1;
                state.upgradable = true;
            },
        );
        RwLockUpgradableReadGuard(self.reader())
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.enter(|state| !state.claimed && !state.upgradable, |state| state.claimed = true);
        self.writer()
    }

    fn reader(&self) -> RwLockReadGuard<'_, T> {
        let held = self.value.try_read().expect("nobody writes while there are readers");
        RwLockReadGuard { lock: self, held: Some(held) }
    }

    /// Of whoever claimed the lock.
    fn writer(&self) -> RwLockWriteGuard<'_, T> {
        self.enter(|state| state.readers == 0, |_| ());
        let held = self.value.try_write().expect("who claimed it has it alone once the readers are gone");
        RwLockWriteGuard { lock: self, held: Some(held) }
    }

    fn enter(&self, may: impl Fn(&State) -> bool, entered: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        while !may(&state) {
            self.changed.wait(&mut state);
        }
        entered(&mut state);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.notify_all();
    }
}

pub struct RwLockReadGuard<'a, T> {
    lock: &'a RwLock<T>,
    held: Option<sync::RwLockReadGuard<'a, T>>,
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_ref().expect("it is empty only when it goes")
    }
}

impl<T> Drop for RwLockReadGuard<'_, T> {
    fn drop(&mut self) {
        self.held = None;
        self.lock.change(|state| state.readers -= 1);
    }
}

pub struct RwLockUpgradableReadGuard<'a, T>(RwLockReadGuard<'a, T>);

impl<'a, T> RwLockUpgradableReadGuard<'a, T> {
    pub fn upgrade(mut guard: Self) -> RwLockWriteGuard<'a, T> {
        let lock = guard.0.lock;
        guard.0.held = None;
        // Not a drop: nobody may come between.
        mem::forget(guard);
        lock.change(|state| {
            state.readers -= 1;
            state.upgradable = false;
            state.claimed = true;
        });
        lock.writer()
    }
}

impl<T> Deref for RwLockUpgradableReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Drop for RwLockUpgradableReadGuard<'_, T> {
    fn drop(&mut self) {
        // With the reader, which goes next, it is nobody's.
        self.0.lock.change(|state| state.upgradable = false);
    }
}

pub struct RwLockWriteGuard<'a, T> {
    lock: &'a RwLock<T>,
    held: Option<sync::RwLockWriteGuard<'a, T>>,
}

impl<'a, T> RwLockWriteGuard<'a, T> {
    pub fn downgrade_to_upgradable(mut guard: Self) -> RwLockUpgradableReadGuard<'a, T> {
        let lock = guard.lock;
        guard.held = None;
        mem::forget(guard);
        lock.change(|state| {
            state.claimed = false;
            state.upgradable = true;
            state.readers += 1;
        });
        RwLockUpgradableReadGuard(lock.reader())
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_ref().expect("it is empty only when it goes")
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect("it is empty only when it goes")
    }
}

impl<T> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        self.held = None;
        self.lock.change(|state| state.claimed = false);
    }
}
