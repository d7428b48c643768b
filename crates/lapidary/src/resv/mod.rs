//! Reservations: which fences a buffer waits for, and the right to change them.
//!
//! Each buffer, or group of buffers that is always used together, has a [`Reservation`]: a list of fences, each
//! with a [`Usage`] that says what the work behind it does with the buffer, and a lock.
//!
//! # Vocabulary
//!
//! - *usage*: how pressing a fence is for others, from [`Usage::Kernel`], which everyone waits for, to
//!   [`Usage::Bookkeep`], which only those wait for who free or move the memory. Asking for a usage gives the fences of
//!   that one and of all before it.
//! - *guard*: a [`ResvGuard`] is the proof that the lock is held. Everything that needs the lock is a method of it.
//! - *slot*: room for one more fence. [`ResvGuard::reserve`] makes room and may fail; adding afterwards can't.
//!
//! # Locking
//!
//! The lock is a wound/wait mutex. One reservation is locked with [`Reservation::lock`]; a thread that holds one must not
//! lock another so (debug builds panic, naming both places). Several are locked through [`exec`](crate::exec), which gives
//! the operation a *ticket*: of two operations in each other's way the one with the older ticket wins, the younger lets go
//! of everything and starts over.
//!
//! Readers need no lock. What they get is one consistent state of the list, each fence in it a live reference; how that is so
//! stands in one place, `list`, whose iterator everybody else uses: [`Reservation::snapshot`], [`Reservation::is_idle`] and
//! what is made of them.
//!
//! Lock order: reservations (by ticket) → a fence. A reservation must not be locked in a
//! [signalling section](crate::fence::signalling()).
//!
//! What this module leaves to others: which buffers share a reservation (`gem`), whom to evict (`residency`).

mod common;
mod guard;
mod list;
mod ww;

use std::fmt;

use thiserror::Error;

use crate::{
    fence::{self, Deadline, Fence, Interrupt, Timestamp, WaitError},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

pub use guard::ResvGuard;
pub(crate) use guard::{ResvRef, assert_none_held_besides};
use list::FenceList;
pub use list::Snapshot;
pub(crate) use ww::{Blocked, Ticket};

/// What the work behind a fence does with the buffer. Ordered: each usage includes those before it when asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Usage {
    /// Memory management: moves and clears. Everyone waits for these before touching the buffer.
    Kernel = 0,
    /// Writes that implicit synchronisation knows about. Readers and writers wait.
    Write,
    /// Reads that implicit synchronisation knows about. Writers wait.
    Read,
    /// Any other use. Waited for only before the memory goes or moves.
    Bookkeep,
}

impl Usage {
    /// What an access must wait for: a write for readers and writers, a read for writers.
    pub const fn for_access(write: bool) -> Self {
        if write { Self::Read } else { Self::Write }
    }
}

/// Why a reservation made no room, or was not locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ResvError {
    /// There is no memory for more fences.
    #[error("no memory for {0} more fences on a reservation")]
    OutOfMemory(usize),
    /// The interrupt was raised before the lock was free.
    #[error("interrupted while waiting for a reservation's lock")]
    Interrupted,
}

/// The fences of a buffer and the lock over them. Clones are handles to the same one.
#[derive(Clone)]
pub struct Reservation(Arc<Inner>);

/// In this order, so that what every lock and change touches is together.
#[repr(C)]
struct Inner {
    lock: ww::WwLock,
    /// Where the holder keeps the guard, if it holds several; its own business.
    slot: AtomicUsize,
    list: FenceList,
}

impl Default for Reservation {
    fn default() -> Self {
        Self(Arc::new(Inner {
            lock: ww::WwLock::default(),
            slot: AtomicUsize::new(0),
            list: FenceList::new(),
        }))
    }
}

impl Reservation {
    /// A reservation without fences, not locked.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether both are handles to the same reservation.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Locks this one reservation, waiting for as long as it takes.
    ///
    /// # Panics
    /// In debug builds, if this thread holds a reservation already, or is in a
    /// [signalling section](crate::fence::signalling()).
    #[track_caller]
    #[inline]
    pub fn lock(&self) -> ResvGuard<'_> {
        match self.lock_interruptible(&Interrupt::none()) {
            Ok(guard) => guard,
            Err(_) => unreachable!("nothing can interrupt this wait"),
        }
    }

    /// Locks this one reservation.
    ///
    /// # Errors
    /// [`ResvError::Interrupted`] if the interrupt is raised before the lock is free. A free lock is taken even then.
    ///
    /// # Panics
    /// As [`lock`](Self::lock).
    #[track_caller]
    #[inline]
    pub fn lock_interruptible(&self, interrupt: &Interrupt) -> Result<ResvGuard<'_>, ResvError> {
        fence::assert_may_block("reservation lock");
        guard::assert_none_held_besides(Ticket::NONE);
        self.0.lock.lock(interrupt).map_err(|_| ResvError::Interrupted)?;
        Ok(ResvGuard::locked(ResvRef::Borrowed(self)))
    }

    /// Locks the reservation if nobody holds it. Allowed everywhere, whatever else is held.
    #[track_caller]
    pub fn try_lock(&self) -> Option<ResvGuard<'_>> {
        // No closure: the caller's place goes into the guard.
        if self.0.lock.try_lock(Ticket::NONE) {
            Some(ResvGuard::locked(ResvRef::Borrowed(self)))
        } else {
            None
        }
    }

    /// Whether somebody holds the lock at this moment.
    pub fn is_locked(&self) -> bool {
        self.0.lock.is_locked()
    }

    /// The fences of `usage` and all usages before it, signalled ones left out: one consistent state of the list, whoever
    /// changes it meanwhile. Takes no reference of the fences: while the answer is held, fences that leave the list are kept
    /// besides. Hold it for a look.
    #[inline]
    pub fn snapshot(&self, usage: Usage) -> Snapshot<'_> {
        Snapshot::of(self.0.list.pin(self.0.lock.word()), usage)
    }

    /// As [`snapshot`](Self::snapshot), with references.
    pub fn fences(&self, usage: Usage) -> Vec<Fence> {
        self.snapshot(usage).iter().map(|(fence, _)| fence.clone()).collect()
    }

    /// One fence that signals when all [`fences`](Self::fences) of `usage` have.
    pub fn merged(&self, usage: Usage) -> Fence {
        fence::merge(self.fences(usage))
    }

    /// Whether every fence of `usage` and the usages before it has signalled.
    #[inline]
    pub fn is_idle(&self, usage: Usage) -> bool {
        self.0.list.pin(self.0.lock.word()).is_idle(usage)
    }

    /// Waits until the fences that are there now, of `usage` and the usages before it, have signalled. Those added
    /// meanwhile do not count. With a deadline that polls this is [`is_idle`](Self::is_idle).
    ///
    /// # Errors
    /// [`WaitError`] when the deadline passes or the interrupt is raised first.
    ///
    /// # Panics
    /// In debug builds, in a [signalling section](crate::fence::signalling()), unless the deadline is a poll.
    #[track_caller]
    pub fn wait(&self, usage: Usage, deadline: Deadline, interrupt: &Interrupt) -> Result<(), WaitError> {
        if deadline.is_poll() {
            // Not by a copy: its fences could all have signalled while newer ones are pending.
            return if self.is_idle(usage) { Ok(()) } else { Err(WaitError::TimedOut) };
        }
        fence::assert_may_block("reservation wait");
        fence::wait_all(&self.fences(usage), deadline, interrupt)
    }

    /// Passes a deadline hint to the fences of `usage` and the usages before it.
    pub fn set_deadline(&self, usage: Usage, time: Timestamp) {
        // With references of its own: hints go to foreign code.
        for fence in self.fences(usage) {
            fence.set_deadline(time);
        }
    }
}

/// For [`exec`](crate::exec), which locks several reservations with one ticket.
impl Reservation {
    /// Takes the lock; see [`ww::WwLock::lock_with`]. The caller makes the guard.
    #[inline]
    pub(crate) fn lock_with(
        &self,
        ticket: Ticket,
        interrupt: &Interrupt,
        holds_others: bool,
        wounded: impl FnMut() -> bool,
    ) -> Result<(), Blocked> {
        self.0.lock.lock_with(ticket, interrupt, holds_others, wounded)
    }

    /// Takes the lock if it is free. The caller makes the guard.
    #[inline]
    pub(crate) fn try_lock_with(&self, ticket: Ticket) -> bool {
        self.0.lock.try_lock(ticket)
    }

    #[inline]
    pub(crate) fn is_held_by(&self, ticket: Ticket) -> bool {
        self.0.lock.is_held_by(ticket)
    }

    pub(crate) fn has_older_waiter(&self, ticket: Ticket) -> bool {
        self.0.lock.has_older_waiter(ticket)
    }

    /// Where the holder keeps the guard. Only the holder sets it, so only the holder can rely on it.
    #[inline]
    pub(crate) fn slot(&self) -> usize {
        self.0.slot.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_slot(&self, slot: usize) {
        self.0.slot.store(slot, Ordering::Relaxed);
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fences = self.snapshot(Usage::Bookkeep);
        let fences: Vec<_> = fences.iter().map(|(fence, usage)| (usage, fence.clone())).collect();
        f.debug_struct("Reservation").field("locked", &self.is_locked()).field("pending", &fences).finish()
    }
}
