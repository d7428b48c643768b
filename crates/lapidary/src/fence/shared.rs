//! The reference count of fences.
//!
//! Fences are made and let go of at a rate at which each atomic operation shows, so they don't use the standard library's
//! `Arc`. This one differs in two ways: what is new has two owners from the start, the fence's two halves; and one word holds
//! both counts, so that the last owner sees whether there are weak references and, if there are none, is done with one
//! operation.

#![allow(unsafe_code, reason = "a reference count gives out what it counts")]

use std::{mem::ManuallyDrop, ops::Deref, process::abort, ptr::NonNull};

use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// One owner.
const STRONG: u64 = 1;
/// One weak reference. The owners together hold one.
const WEAK: u64 = 1 << 32;

/// More of either would be a leak that nobody has the memory for.
const MOST: u32 = i32::MAX as u32;

fn owners(counts: u64) -> u32 {
    counts as u32
}

fn weak(counts: u64) -> u32 {
    (counts >> 32) as u32
}

// In this order, so that the counts share a cache line with what the value begins with.
#[repr(C)]
struct Counted<T> {
    counts: AtomicU64,
    /// Dropped by the last owner; the memory goes with the last weak reference.
    value: ManuallyDrop<T>,
}

/// An owner of a shared value.
///
/// # Invariants
/// The pointer is good, and one of the owners counted there is this.
pub(crate) struct Shared<T>(NonNull<Counted<T>>);

/// A reference to a shared value that does not keep it.
///
/// # Invariants
/// The pointer is good for its counts, and one of the weak references counted there is this.
pub(crate) struct WeakShared<T>(NonNull<Counted<T>>);

// SAFETY: as with `Arc`: owners share the value, and whichever is last drops it.
unsafe impl<T: Send + Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}
// SAFETY: it may become an owner in the thread that it is in.
unsafe impl<T: Send + Sync> Send for WeakShared<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for WeakShared<T> {}

/// The counts alone: the value may be the last owner's already, who drops it.
///
/// # Safety
/// The memory is there for `'a`.
#[inline]
unsafe fn counts<'a, T>(counted: NonNull<Counted<T>>) -> &'a AtomicU64 {
    // SAFETY: the caller's promise.
    unsafe { &(*counted.as_ptr()).counts }
}

impl<T> Shared<T> {
    /// A value with one owner.
    pub(crate) fn new(value: T) -> Self {
        Self::allocate(value, STRONG)
    }

    /// A value with two owners.
    #[inline]
    pub(crate) fn pair(value: T) -> (Self, Self) {
        let one = Self::allocate(value, 2 * STRONG);
        let other = Self(one.0);
        (one, other)
    }

    #[inline]
    fn allocate(value: T, strong: u64) -> Self {
        let counts = AtomicU64::new(strong + WEAK);
        Self(NonNull::from(Box::leak(Box::new(Counted { counts, value: ManuallyDrop::new(value) }))))
    }

    #[inline]
    fn counted(&self) -> &Counted<T> {
        // SAFETY: by the invariant; the memory stays while there is an owner.
        unsafe { self.0.as_ref() }
    }

    /// Whether both own the same value.
    #[inline]
    pub(crate) fn ptr_eq(a: &Self, b: &Self) -> bool {
        a.0 == b.0
    }

    /// A weak reference.
    pub(crate) fn downgrade(this: &Self) -> WeakShared<T> {
        let before = this.counted().counts.fetch_add(WEAK, Ordering::Relaxed);
        if weak(before) > MOST {
            abort();
        }
        WeakShared(this.0)
    }

    /// The value, if this was its last owner.
    pub(crate) fn into_inner(this: Self) -> Option<T> {
        let counted = ManuallyDrop::new(this).0;
        // SAFETY: it was an owner, which gives up its share once.
        let left = unsafe { Self::give_up(counted)? };
        // SAFETY: nobody else has the value any more, and it is not used again.
        let value = unsafe { ManuallyDrop::take(&mut (*counted.as_ptr()).value) };
        // SAFETY: the value is gone, and the owners' weak reference is given up once.
        unsafe { left.release(counted) };
        Some(value)
    }

    /// A pointer that owns the share of this.
    #[inline]
    pub(crate) fn into_raw(this: Self) -> *const () {
        ManuallyDrop::new(this).0.as_ptr().cast_const().cast()
    }

    /// The pointer that [`into_raw`](Self::into_raw) gives for this value.
    #[inline]
    pub(crate) fn as_raw(this: &Self) -> *const () {
        this.0.as_ptr().cast_const().cast()
    }

    /// The owner that [`into_raw`](Self::into_raw) made a pointer of.
    ///
    /// # Safety
    /// `raw` is from `into_raw` of the same type, and its share is given to the answer.
    #[inline]
    pub(crate) unsafe fn from_raw(raw: *const ()) -> Self {
        // SAFETY: the pointer was made of one that is not null.
        Self(unsafe { NonNull::new_unchecked(raw.cast_mut().cast()) })
    }

    /// Gives an owner's share up. If it was the last, the answer tells what else there is.
    ///
    /// # Safety
    /// The caller has a share, and uses it no more.
    #[inline]
    unsafe fn give_up(counted: NonNull<Counted<T>>) -> Option<Left> {
        // SAFETY: there is a share until the operation.
        let before = unsafe { counts(counted) }.fetch_sub(STRONG, Ordering::Release);
        if owners(before) != 1 {
            return None;
        }
        // What all other owners did comes before what the last one does.
        fence(Ordering::Acquire);
        // Without an owner or a weak reference nobody can make another.
        Some(if weak(before) == 1 { Left::Nothing } else { Left::Weak })
    }
}

/// What is left of references when the last owner has gone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Weak,
}

impl Left {
    /// Gives up the weak reference that the owners held together, and the memory if that was the last.
    ///
    /// # Safety
    /// The caller was the last owner, and the value is gone.
    #[inline]
    unsafe fn release<T>(self, counted: NonNull<Counted<T>>) {
        match self {
            // SAFETY: it came from a box, nobody else has it, and what is in it needs no drop any more.
            Self::Nothing => drop(unsafe { Box::from_raw(counted.as_ptr()) }),
            // The weak reference is the owners', which nobody else gives up.
            Self::Weak => drop(WeakShared(counted)),
        }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.counted().value
    }
}

impl<T> Clone for Shared<T> {
    #[inline]
    fn clone(&self) -> Self {
        let before = self.counted().counts.fetch_add(STRONG, Ordering::Relaxed);
        if owners(before) > MOST {
            abort();
        }
        Self(self.0)
    }
}

impl<T> Drop for Shared<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: this is an owner, and is gone after this.
        let last = unsafe { Self::give_up(self.0) };
        let Some(left) = last else { return };
        // SAFETY: nobody else has the value any more, and it is not used again.
        unsafe { ManuallyDrop::drop(&mut (*self.0.as_ptr()).value) };
        // SAFETY: this was the last owner, and the value is gone.
        unsafe { left.release(self.0) };
    }
}

impl<T> WeakShared<T> {
    /// An owner, if there still is one.
    pub(crate) fn upgrade(&self) -> Option<Shared<T>> {
        // SAFETY: by the invariant.
        let counts = unsafe { counts(self.0) };
        let another = |now| (owners(now) != 0).then(|| now + STRONG);
        counts.fetch_update(Ordering::Acquire, Ordering::Relaxed, another).ok()?;
        Some(Shared(self.0))
    }
}

impl<T> Drop for WeakShared<T> {
    fn drop(&mut self) {
        // SAFETY: by the invariant.
        let before = unsafe { counts(self.0) }.fetch_sub(WEAK, Ordering::Release);
        if weak(before) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        // SAFETY: this was the last reference of all, so the value is gone; it came from a box.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}
