//! A place for a fence that is read without a lock.
//!
//! Readers [pin](super::pins) the place's [*readers' desk*](super::desks), which many places share; whoever takes a fence out
//! of a place retires it there.

#![allow(unsafe_code, reason = "fences are kept as plain pointers where readers have no lock")]

use std::{marker::PhantomData, ptr};

use crate::sync::atomic::{AtomicPtr, Ordering};

use super::{
    Fence,
    desks::{DESKS, Desk, desk},
    pins::{self, FenceRef},
};

/// Which desk a place belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeskId(u8);

impl DeskId {
    /// The desk of the places whose number is `number`.
    pub(super) fn of(number: u64) -> Self {
        Self((number % DESKS as u64) as u8)
    }

    fn desk(self) -> &'static Desk {
        desk(self.0)
    }
}

/// A reader at a desk: what it finds in the places of that desk stays until this is dropped.
pub(super) struct Pinned {
    desk: DeskId,
    not_send: PhantomData<*const ()>,
}

impl Pinned {
    pub(super) fn new(desk: DeskId) -> Self {
        pins::pin(&desk.desk().word);
        Self { desk, not_send: PhantomData }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let desk = self.desk.desk();
        if pins::unpin(&desk.word) {
            desk.retired.collect(&desk.word);
        }
    }
}

/// A fence, or none, that can be looked at and replaced at the same time.
pub(super) struct Slot {
    /// From [`pins::into_raw`], or null.
    fence: AtomicPtr<()>,
    desk: DeskId,
}

impl Slot {
    pub(super) fn new(fence: Option<Fence>, desk: DeskId) -> Self {
        Self { fence: AtomicPtr::new(to_raw(fence)), desk }
    }

    pub(super) fn desk(&self) -> DeskId {
        self.desk
    }

    /// The fence in it.
    ///
    /// # Panics
    /// If the reader is at another desk.
    #[inline]
    pub(super) fn load<'p>(&self, pinned: &'p Pinned) -> Option<FenceRef<'p>> {
        assert!(pinned.desk == self.desk, "a reader looks at places of its own desk");
        let raw = self.fence.load(Ordering::Acquire);
        // SAFETY: whoever takes the fence out retires it at this desk, where it stays until all who were pinned at that time,
        // this reader among them, have unpinned.
        (!raw.is_null()).then(|| unsafe { FenceRef::from_raw(raw) })
    }

    /// Puts `new` in the place of `old`, unless something else is there by now.
    pub(super) fn replace(&self, old: &FenceRef<'_>, new: Option<Fence>) {
        let new = to_raw(new);
        let replaced =
            self.fence.compare_exchange(old.as_raw().cast_mut(), new, Ordering::AcqRel, Ordering::Relaxed);
        match replaced {
            Ok(old) => self.let_go(old),
            // SAFETY: it is from this call, and nobody has seen it.
            Err(_) if !new.is_null() => drop(unsafe { pins::from_raw(new) }),
            Err(_) => {}
        }
    }

    /// Empties the place.
    pub(super) fn clear(&self) {
        // Most are empty already.
        if !self.fence.load(Ordering::Relaxed).is_null() {
            self.let_go(self.fence.swap(ptr::null_mut(), Ordering::AcqRel));
        }
    }

    /// Drops what was taken out, once nobody can be looking at it.
    fn let_go(&self, raw: *mut ()) {
        if raw.is_null() {
            return;
        }
        // SAFETY: only one thread takes a pointer out of the place, and with it the reference.
        let fence = unsafe { pins::from_raw(raw) };
        let desk = self.desk.desk();
        if pins::ask(&desk.word) {
            desk.retired.retire(&desk.word, std::iter::once(fence));
        }
    }

    /// The fence, by who has the place to itself.
    pub(super) fn take(&mut self) -> Option<Fence> {
        let raw = self.fence.load(Ordering::Relaxed);
        self.fence.store(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: nobody else has the place, so the reference is this call's.
        (!raw.is_null()).then(|| unsafe { pins::from_raw(raw) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        drop(self.take());
    }
}

fn to_raw(fence: Option<Fence>) -> *mut () {
    fence.map_or(ptr::null_mut(), |fence| pins::into_raw(fence).cast_mut())
}
