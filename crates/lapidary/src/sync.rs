//! The locks, atomics, shared pointers, threads and thread locals of the library, in one place.
//!
//! Every module takes its primitives from here and nowhere else, so that a model checker can put its own in
//! their stead. The locks are `parking_lot`'s: they are one byte, need no allocation and are not poisoned by
//! a panic; a structure whose invariants a panic could break repairs itself in a drop guard instead.

pub use parking_lot::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockUpgradableReadGuard, RwLockWriteGuard,
};
pub use std::sync::{Arc, LazyLock, OnceLock, Weak};

pub(crate) use std::thread_local;

/// Atomic integers and orderings.
pub mod atomic {
    pub use std::sync::atomic::{
        AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
        Ordering, fence,
    };
}

/// Cells whose exclusion is the business of who uses them.
pub(crate) mod cell {
    pub(crate) use std::cell::UnsafeCell;
}

/// Threads that the library starts, and who runs.
pub(crate) mod thread {
    pub(crate) use std::thread::{Builder, JoinHandle, ThreadId, current};
}

/// Runs a unit test. A model checker runs it with its own primitives, in many orders.
#[cfg(test)]
pub(crate) fn unit_test(test: impl Fn() + Send + Sync + 'static) {
    test();
}

/// How often to look for something that another thread is about to do before going to sleep for it.
#[inline]
pub(crate) fn looks() -> u32 {
    40
}

/// Waits a moment for another thread that is about to be done: spins, then offers the processor to others, and at last
/// sleeps, so that even a thread of higher priority lets it go on. `tries` counts from 0.
#[cold]
pub(crate) fn relax(tries: &mut u32) {
    const SPINS: u32 = 6;
    const YIELDS: u32 = 64;
    match *tries {
        0..SPINS => (0..1 << *tries).for_each(|_| std::hint::spin_loop()),
        SPINS..YIELDS => std::thread::yield_now(),
        _ => std::thread::sleep(std::time::Duration::from_micros(50)),
    }
    *tries = tries.saturating_add(1);
}
