//! The locks, atomics and shared pointers of the library, in one place.
//!
//! Every module takes its primitives from here and nowhere else, so that a model checker can put its own in
//! their stead. The locks are `parking_lot`'s: they are one byte, need no allocation and are not poisoned by
//! a panic; a structure whose invariants a panic could break repairs itself in a drop guard instead.

pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use std::sync::{Arc, LazyLock, OnceLock, Weak};

/// Atomic integers and orderings.
pub mod atomic {
    pub use std::sync::atomic::{
        AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
        Ordering, fence,
    };
}
