//! The proof that a reservation is locked, and what may be done with it.

#![allow(unsafe_code, reason = "the guard is the proof that the list's holder part asks for")]

use std::{cell::RefCell, fmt, marker::PhantomData, ops::Deref, panic::Location};

use crate::{
    fence::{Fence, FenceContext, FenceRef},
    sync::thread_local,
};

use super::{Reservation, ResvError, Ticket, Usage, list::Locked};

thread_local! {
    /// In debug builds: what this thread holds, with which ticket, and where it was locked.
    static HELD: RefCell<Vec<(Ticket, &'static Location<'static>)>> = const { RefCell::new(Vec::new()) };
}

/// Panics in debug builds if this thread holds a reservation that `ticket` did not lock: blocking on another one then
/// deadlocks as soon as another thread does the same the other way round.
#[track_caller]
#[inline]
pub(crate) fn assert_none_held_besides(ticket: Ticket) {
    if !cfg!(debug_assertions) {
        return;
    }
    let other = |held: &RefCell<Vec<(Ticket, _)>>| {
        let held = held.borrow();
        held.iter().find(|(by, _)| ticket == Ticket::NONE || *by != ticket).map(|(_, place)| *place)
    };
    if let Some(held) = HELD.try_with(other).ok().flatten()
        && !std::thread::panicking()
    {
        let here = Location::caller();
        panic!(
            "reservation lock at {here} while this thread holds one locked at {held}: lock both through one `Exec`"
        );
    }
}

/// A reservation that somebody else keeps, or a handle of one's own.
#[derive(Clone, Debug)]
pub(crate) enum ResvRef<'a> {
    Borrowed(&'a Reservation),
    Owned(Reservation),
}

impl Deref for ResvRef<'_> {
    type Target = Reservation;

    #[inline]
    fn deref(&self) -> &Reservation {
        match self {
            Self::Borrowed(resv) => resv,
            Self::Owned(resv) => resv,
        }
    }
}

/// A locked reservation. Unlocks when dropped. Stays in the thread that locked it.
///
/// # Invariants
/// The lock of `resv` is held, and this is the only guard of it.
pub struct ResvGuard<'a> {
    resv: ResvRef<'a>,
    /// Slots that may be used up.
    room: usize,
    #[cfg(debug_assertions)]
    locked_at: &'static Location<'static>,
    not_send: PhantomData<*const ()>,
}

impl<'a> ResvGuard<'a> {
    /// The guard of a reservation that was just locked.
    #[track_caller]
    #[inline]
    pub(crate) fn locked(resv: ResvRef<'a>) -> Self {
        #[cfg(debug_assertions)]
        let locked_at = Location::caller();
        #[cfg(debug_assertions)]
        let _ = HELD.try_with(|held| {
            let mut held = held.borrow_mut();
            // Without memory the lock goes unchecked.
            if held.try_reserve(1).is_ok() {
                held.push((resv.0.lock.holder(), locked_at));
            }
        });
        Self {
            resv,
            room: 0,
            #[cfg(debug_assertions)]
            locked_at,
            not_send: PhantomData,
        }
    }

    /// The list, as the holder of the lock sees it.
    #[inline]
    fn list(&self) -> Locked<'_> {
        let inner = &*self.resv.0;
        // SAFETY: this guard holds the lock, for longer than the answer can be used. Methods that change the list have
        // the guard to themselves, the others only look.
        unsafe { inner.list.locked(inner.lock.word()) }
    }

    /// The reservation that is locked.
    pub fn reservation(&self) -> &Reservation {
        &self.resv
    }

    /// Whether this is the lock of `resv`.
    pub fn guards(&self, resv: &Reservation) -> bool {
        self.resv.ptr_eq(resv)
    }

    /// Makes room for `n` fences to be added under this lock, besides what was reserved before.
    ///
    /// # Errors
    /// [`ResvError::OutOfMemory`]; nothing has changed then.
    #[inline]
    pub fn reserve(&mut self, n: usize) -> Result<(), ResvError> {
        let room = self.room.checked_add(n).ok_or(ResvError::OutOfMemory(n))?;
        if !self.list().reserve(room) {
            return Err(ResvError::OutOfMemory(n));
        }
        self.room = room;
        Ok(())
    }

    /// Adds a fence. It takes the place of one that has signalled, or that is of the same context, not later, and of the
    /// same or a less pressing usage. Uses up one slot.
    ///
    /// # Panics
    /// In debug builds, if no slot was [reserved](Self::reserve) under this lock.
    #[track_caller]
    #[inline]
    pub fn add_fence(&mut self, fence: Fence, usage: Usage) {
        debug_assert!(self.room > 0, "a fence is added to a reservation without a reserved slot");
        self.room = self.room.saturating_sub(1);
        self.list().add(fence, usage);
    }

    /// Puts `replacement`, with `usage`, in the place of every fence of `context`. For work that no longer uses the buffer,
    /// though it goes on: once the page tables are changed, say. Needs no slot.
    pub fn replace_fences(&mut self, context: FenceContext, replacement: Fence, usage: Usage) {
        self.list().replace(context, &replacement, usage);
    }

    /// Replaces all fences by those of `other`, which need not be locked. Slots reserved before are lost.
    ///
    /// # Errors
    /// [`ResvError::OutOfMemory`]; nothing has changed then.
    pub fn copy_from(&mut self, other: &Reservation) -> Result<(), ResvError> {
        if self.guards(other) {
            return Ok(());
        }
        let other = other.0.list.pin(other.0.lock.word());
        self.list().copy(&other).map_err(ResvError::OutOfMemory)?;
        self.room = 0;
        Ok(())
    }

    /// Goes through the fences of `usage` and all usages before it that have not signalled, without taking references.
    #[inline]
    pub fn iter(&self, usage: Usage) -> impl Iterator<Item = (FenceRef<'_>, Usage)> {
        self.list().pending(usage)
    }

    /// The fences of `usage` and all usages before it that have not signalled.
    pub fn fences(&self, usage: Usage) -> Vec<Fence> {
        self.iter(usage).map(|(fence, _)| fence.clone()).collect()
    }

    /// Whether every fence of `usage` and the usages before it has signalled.
    pub fn is_idle(&self, usage: Usage) -> bool {
        self.iter(usage).next().is_none()
    }
}

impl Drop for ResvGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        let _ = HELD.try_with(|held| {
            let mut held = held.borrow_mut();
            let mine = (self.resv.0.lock.holder(), self.locked_at);
            if let Some(place) = held.iter().rposition(|held| *held == mine) {
                held.remove(place);
            }
        });
        let aside = self.list().take_aside();
        let pinned = self.resv.0.lock.unlock();
        aside.let_go(pinned);
    }
}

impl fmt::Debug for ResvGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResvGuard").field("reservation", &*self.resv).finish_non_exhaustive()
    }
}
