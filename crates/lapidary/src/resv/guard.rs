//! The proof that a reservation is locked, and what may be done with it.

use std::{borrow::Cow, cell::RefCell, fmt, marker::PhantomData, panic::Location};

use crate::fence::{Fence, FenceContext};

use super::{Reservation, ResvError, Ticket, Usage, list::Entry};

thread_local! {
    /// In debug builds: what this thread holds, with which ticket, and where it was locked.
    static HELD: RefCell<Vec<(Ticket, &'static Location<'static>)>> = const { RefCell::new(Vec::new()) };
}

/// Panics in debug builds if this thread holds a reservation that `ticket` did not lock: blocking on another one then
/// deadlocks as soon as another thread does the same the other way round.
#[track_caller]
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

/// A locked reservation. Unlocks when dropped. Stays in the thread that locked it.
pub struct ResvGuard<'a> {
    resv: Cow<'a, Reservation>,
    ticket: Ticket,
    /// Slots that may be used up.
    room: usize,
    locked_at: &'static Location<'static>,
    not_send: PhantomData<*const ()>,
}

impl<'a> ResvGuard<'a> {
    /// The guard of a reservation that was just locked without a ticket.
    #[track_caller]
    pub(super) fn locked(resv: &'a Reservation) -> Self {
        Self::new(Cow::Borrowed(resv), Ticket::NONE)
    }

    /// The guard of a reservation that was just locked with `ticket`.
    #[track_caller]
    pub(crate) fn locked_by(resv: Reservation, ticket: Ticket) -> ResvGuard<'static> {
        ResvGuard::new(Cow::Owned(resv), ticket)
    }

    #[track_caller]
    fn new(resv: Cow<'a, Reservation>, ticket: Ticket) -> Self {
        let locked_at = Location::caller();
        if cfg!(debug_assertions) {
            let _ = HELD.try_with(|held| held.borrow_mut().push((ticket, locked_at)));
        }
        Self { resv, ticket, room: 0, locked_at, not_send: PhantomData }
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
    pub fn reserve(&mut self, n: usize) -> Result<(), ResvError> {
        let room = self.room.checked_add(n).ok_or(ResvError::OutOfMemory(n))?;
        if !self.resv.0.list.lock().reserve(room) {
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
    pub fn add_fence(&mut self, fence: Fence, usage: Usage) {
        debug_assert!(self.room > 0, "a fence is added to a reservation without a reserved slot");
        self.room = self.room.saturating_sub(1);
        self.resv.0.list.lock().add(fence, usage);
    }

    /// Puts `replacement`, with `usage`, in the place of every fence of `context`. For work that no longer uses the buffer,
    /// though it goes on: once the page tables are changed, say. Needs no slot.
    pub fn replace_fences(&mut self, context: FenceContext, replacement: Fence, usage: Usage) {
        self.resv.0.list.lock().replace(context, &replacement, usage);
    }

    /// Replaces all fences by those of `other`, which need not be locked. Slots reserved before are lost.
    ///
    /// # Errors
    /// [`ResvError::OutOfMemory`]; nothing has changed then.
    pub fn copy_from(&mut self, other: &Reservation) -> Result<(), ResvError> {
        if self.guards(other) {
            return Ok(());
        }
        let mut copy: Vec<Entry> = Vec::new();
        {
            let source = other.0.list.lock();
            let count = source.entries().len();
            copy.try_reserve(count).map_err(|_| ResvError::OutOfMemory(count))?;
            copy.extend(source.pending(Usage::Bookkeep).cloned());
        }
        self.room = 0;
        self.resv.0.list.lock().set(copy);
        Ok(())
    }

    /// The fences of `usage` and all usages before it that have not signalled.
    pub fn fences(&self, usage: Usage) -> Vec<Fence> {
        self.resv.fences(usage)
    }

    /// Whether every fence of `usage` and the usages before it has signalled.
    pub fn is_idle(&self, usage: Usage) -> bool {
        self.resv.is_idle(usage)
    }
}

impl Drop for ResvGuard<'_> {
    fn drop(&mut self) {
        if cfg!(debug_assertions) {
            let _ = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                let mine = (self.ticket, self.locked_at);
                if let Some(place) = held.iter().rposition(|held| *held == mine) {
                    held.remove(place);
                }
            });
        }
        self.resv.0.lock.unlock(self.ticket);
    }
}

impl fmt::Debug for ResvGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResvGuard")
            .field("reservation", &*self.resv)
            .field("locked_at", &self.locked_at)
            .finish()
    }
}
