//! Locking many reservations at once.
//!
//! An operation that uses many buffers locks their reservations in whatever order they come. Two that meet can deadlock,
//! so each has a ticket, its age, and the younger gives way: it unlocks everything, waits for the reservation it was
//! refused while it holds nothing, and starts over. [`Exec`] hides that.
//!
//! ```
//! # use lapidary::{exec::{Exec, ExecError, Duplicates}, fence::{Fence, Interrupt}, resv::{Reservation, Usage}};
//! # let (a, b, done) = (Reservation::new(), Reservation::new(), Fence::signalled());
//! // A set that is known from the start:
//! let mut exec = Exec::lock_all([&a, &b], Duplicates::Allow, &Interrupt::none())?;
//! for guard in exec.guards() {
//!     guard.reserve(1)?;
//!     guard.add_fence(done.clone(), Usage::Write);
//! }
//! drop(exec);
//!
//! // A set that grows: the closure runs again from its start after each back-off.
//! let (mut exec, ()) = Exec::run(Duplicates::Allow, &Interrupt::none(), |exec| {
//!     exec.lock(&a)?;
//!     exec.lock_owned(b.clone())?; // a victim to evict, say, that nobody else would keep
//!     Ok::<_, ExecError>(())
//! })?;
//! assert!(exec.guard(&b).is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Locking
//!
//! The thread must hold no reservation that this `Exec` did not lock, and must not be in a
//! [signalling section](crate::fence::signalling()); debug builds panic, naming both places. An `Exec` borrows its reservations,
//! or holds references of those it was given. Looking up a guard takes one load of the reservation's word: no search, however many are
//! locked.

use thiserror::Error;

use crate::{
    fence::{self, Interrupt},
    resv::{Blocked, Reservation, ResvError, ResvGuard, ResvRef, Ticket, assert_none_held_besides},
};

/// What locking a reservation twice means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Duplicates {
    /// Nothing: it stays locked once.
    Allow,
    /// [`ExecError::AlreadyLocked`].
    Refuse,
}

/// Why a reservation was not locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ExecError {
    /// An older operation is in the way. Inside [`Exec::run`], pass this on: the closure runs again.
    #[error("an older operation waits for a reservation this one holds: it must give way and start over")]
    Contended,
    /// The reservation is locked by this `Exec` already, and duplicates are refused.
    #[error("the reservation is in the set twice")]
    AlreadyLocked,
    /// The interrupt was raised.
    #[error("interrupted while waiting for a reservation's lock")]
    Interrupted,
    /// There is no memory for this many fences, or to lock one more reservation.
    #[error("no memory for {0} more fences on a reservation")]
    OutOfMemory(usize),
}

impl From<ResvError> for ExecError {
    fn from(error: ResvError) -> Self {
        match error {
            ResvError::OutOfMemory(fences) => Self::OutOfMemory(fences),
            ResvError::Interrupted => Self::Interrupted,
        }
    }
}

/// Guards that a set has room for once it has any: more than most operations use.
const FIRST_GUARDS: usize = 16;

/// A set of locked reservations, unlocked together when dropped.
///
/// # Invariants
/// A reservation is held by `ticket` exactly if its guard is in `guards`, at the reservation's slot.
#[derive(Debug)]
pub struct Exec<'r> {
    ticket: Ticket,
    duplicates: Duplicates,
    interrupt: Interrupt,
    /// In the order of locking; a hole is one that was unlocked again.
    guards: Vec<Option<ResvGuard<'r>>>,
    /// How many of `guards` are no holes.
    held: usize,
    /// The reservation that could not be had, to be waited for after backing off.
    contended: Option<ResvRef<'r>>,
    /// The reservation locked first after backing off, until the closure comes to it.
    prelocked: Option<Reservation>,
}

impl<'r> Exec<'r> {
    /// A set with nothing in it, for who deals with [`ExecError::Contended`] himself: by dropping it, with whatever it has
    /// locked, and beginning anew. [`lock_all`](Self::lock_all) and [`run`](Self::run) do better.
    pub fn new(duplicates: Duplicates, interrupt: &Interrupt) -> Self {
        Self {
            ticket: Ticket::draw(),
            duplicates,
            interrupt: interrupt.clone(),
            guards: Vec::new(),
            held: 0,
            contended: None,
            prelocked: None,
        }
    }

    /// Locks all of `reservations`, backing off and trying again as needed.
    ///
    /// # Errors
    /// [`ExecError::Interrupted`], [`ExecError::OutOfMemory`], or [`ExecError::AlreadyLocked`] for a duplicate that is refused.
    /// Nothing is locked then.
    ///
    /// # Panics
    /// In debug builds, if the thread holds another reservation or is in a signalling section.
    #[track_caller]
    pub fn lock_all(
        reservations: impl IntoIterator<Item = &'r Reservation> + Clone,
        duplicates: Duplicates,
        interrupt: &Interrupt,
    ) -> Result<Self, ExecError> {
        let mut exec = Self::new(duplicates, interrupt);
        loop {
            match exec.lock_each(reservations.clone()) {
                Ok(()) => {
                    exec.ended();
                    return Ok(exec);
                }
                Err(ExecError::Contended) => exec.back_off()?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs `step` to lock reservations one by one; if one can't be had without deadlock, unlocks everything, waits for it,
    /// and runs `step` again from its start. Returns the locked set with what `step` returned.
    ///
    /// `step` must be able to run again: it passes on [`ExecError::Contended`], in an error type of its own, and leaves
    /// nothing behind that locks protect. If it returns `Ok` in spite of a contended lock, that stands.
    ///
    /// # Errors
    /// What `step` returns, or [`ExecError::Interrupted`] while waiting. Nothing is locked then.
    ///
    /// # Panics
    /// As [`lock_all`](Self::lock_all).
    #[track_caller]
    pub fn run<T, E: From<ExecError>>(
        duplicates: Duplicates,
        interrupt: &Interrupt,
        mut step: impl FnMut(&mut Exec<'r>) -> Result<T, E>,
    ) -> Result<(Self, T), E> {
        let mut exec = Self::new(duplicates, interrupt);
        loop {
            match step(&mut exec) {
                Ok(value) => {
                    exec.ended();
                    return Ok((exec, value));
                }
                Err(_) if exec.contended.is_some() => exec.back_off()?,
                Err(error) => return Err(error),
            }
        }
    }

    #[track_caller]
    fn lock_each(
        &mut self,
        reservations: impl IntoIterator<Item = &'r Reservation>,
    ) -> Result<(), ExecError> {
        for resv in reservations {
            self.lock(resv)?;
        }
        Ok(())
    }

    /// The set when all is locked: what is left of backing off is forgotten, and with it a reservation that was waited for
    /// but turned out not to be needed.
    #[inline]
    fn ended(&mut self) {
        self.contended = None;
        if let Some(unused) = self.prelocked.take() {
            self.unlock(&unused);
        }
    }

    /// Locks a reservation, waiting for it if need be.
    ///
    /// # Errors
    /// [`ExecError::Contended`] if an older operation is in the way, [`ExecError::Interrupted`],
    /// [`ExecError::OutOfMemory`] if the lock can't be noted, or [`ExecError::AlreadyLocked`] for a duplicate that is refused.
    /// What was locked before stays so.
    ///
    /// # Panics
    /// As [`lock_all`](Self::lock_all).
    #[track_caller]
    #[inline]
    pub fn lock(&mut self, resv: &'r Reservation) -> Result<(), ExecError> {
        self.acquire(ResvRef::Borrowed(resv)).map(drop)
    }

    /// As [`lock`](Self::lock), for a reservation that the set is to keep: a victim's, say.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    ///
    /// # Panics
    /// As [`lock`](Self::lock).
    #[track_caller]
    pub fn lock_owned(&mut self, resv: Reservation) -> Result<(), ExecError> {
        self.acquire(ResvRef::Owned(resv)).map(drop)
    }

    /// Locks a reservation and makes room for `fences` fences on it.
    ///
    /// # Errors
    /// As [`lock`](Self::lock), and [`ExecError::OutOfMemory`].
    #[track_caller]
    #[inline]
    pub fn prepare(&mut self, resv: &'r Reservation, fences: usize) -> Result<(), ExecError> {
        Ok(self.acquire(ResvRef::Borrowed(resv))?.reserve(fences)?)
    }

    /// As [`prepare`](Self::prepare), for a reservation that the set is to keep.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    #[track_caller]
    pub fn prepare_owned(&mut self, resv: Reservation, fences: usize) -> Result<(), ExecError> {
        Ok(self.acquire(ResvRef::Owned(resv))?.reserve(fences)?)
    }

    #[track_caller]
    #[inline]
    fn acquire(&mut self, resv: ResvRef<'r>) -> Result<&mut ResvGuard<'r>, ExecError> {
        fence::assert_may_block("reservation lock");
        assert_none_held_besides(self.ticket);
        if !self.has_room() {
            return Err(ExecError::OutOfMemory(1));
        }
        if resv.try_lock_with(self.ticket) {
            return Ok(self.keep(resv));
        }
        if resv.is_held_by(self.ticket) {
            return self.meet_again(&resv);
        }
        self.wait_for(resv)
    }

    #[track_caller]
    #[cold]
    fn wait_for(&mut self, resv: ResvRef<'r>) -> Result<&mut ResvGuard<'r>, ExecError> {
        let wounded = || self.held().any(|held| held.has_older_waiter(self.ticket));
        match resv.lock_with(self.ticket, &self.interrupt, self.held > 0, wounded) {
            Ok(()) => Ok(self.keep(resv)),
            Err(Blocked::Interrupted) => Err(ExecError::Interrupted),
            Err(Blocked::Wounded) => {
                self.contended = Some(resv);
                Err(ExecError::Contended)
            }
        }
    }

    /// Locks a reservation if nobody else holds it, and there is memory to note that, and keeps a reference of it. True if it
    /// is locked now.
    #[track_caller]
    pub fn try_lock(&mut self, resv: &Reservation) -> bool {
        if resv.is_held_by(self.ticket) {
            return self.meet_again(resv).is_ok();
        }
        if !self.has_room() || !resv.try_lock_with(self.ticket) {
            return false;
        }
        self.keep(ResvRef::Owned(resv.clone()));
        true
    }

    /// Unlocks a reservation before the others: a victim that has been dealt with, say. Does nothing to one that is not
    /// locked here.
    pub fn unlock(&mut self, resv: &Reservation) {
        if resv.is_held_by(self.ticket)
            && let Some(guard) = self.guards.get_mut(resv.slot())
        {
            *guard = None;
            self.held -= 1;
            // A set that is locked and unlocked over and over does not grow.
            while self.guards.pop_if(|guard| guard.is_none()).is_some() {}
        }
    }

    /// The guard of a reservation, if it is locked here.
    pub fn guard(&mut self, resv: &Reservation) -> Option<&mut ResvGuard<'r>> {
        if !resv.is_held_by(self.ticket) {
            return None;
        }
        self.guards.get_mut(resv.slot())?.as_mut()
    }

    /// Whether a reservation is locked here.
    pub fn is_locked(&self, resv: &Reservation) -> bool {
        resv.is_held_by(self.ticket)
    }

    /// Whether a reservation is locked only because it was waited for after backing off: the closure has not come to it
    /// yet, and may lock it even where duplicates are refused.
    pub fn is_prelocked(&self, resv: &Reservation) -> bool {
        self.prelocked.as_ref().is_some_and(|prelocked| prelocked.ptr_eq(resv))
    }

    /// All guards, in the order of locking.
    pub fn guards(&mut self) -> impl Iterator<Item = &mut ResvGuard<'r>> {
        self.guards.iter_mut().flatten()
    }

    /// How many reservations are locked.
    pub fn len(&self) -> usize {
        self.held
    }

    /// Whether no reservation is locked.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    fn held(&self) -> impl Iterator<Item = &Reservation> {
        self.guards.iter().flatten().map(ResvGuard::reservation)
    }

    /// Whether there is room for one more guard; makes it if need be. Comes before every lock, which can't be kept otherwise.
    #[inline]
    fn has_room(&mut self) -> bool {
        self.guards.len() < self.guards.capacity() || self.make_room()
    }

    #[cold]
    fn make_room(&mut self) -> bool {
        self.guards.try_reserve_exact(self.guards.len().max(FIRST_GUARDS)).is_ok()
    }

    /// Takes up a reservation that was just locked, for which there is room.
    #[track_caller]
    #[inline]
    fn keep(&mut self, resv: ResvRef<'r>) -> &mut ResvGuard<'r> {
        resv.set_slot(self.guards.len());
        self.held += 1;
        // In two steps: pushed as it is, the guard would take a detour over the stack.
        self.guards.push(None);
        let place = self.guards.last_mut().expect("it was just put there");
        place.insert(ResvGuard::locked(resv))
    }

    /// Answers for a reservation that is locked here already: the one waited for after backing off is no duplicate.
    #[cold]
    fn meet_again(&mut self, resv: &Reservation) -> Result<&mut ResvGuard<'r>, ExecError> {
        let prelocked = self.prelocked.take_if(|prelocked| prelocked.ptr_eq(resv)).is_some();
        if !prelocked && self.duplicates == Duplicates::Refuse {
            return Err(ExecError::AlreadyLocked);
        }
        self.guard(resv).ok_or(ExecError::AlreadyLocked)
    }

    /// Unlocks everything and locks what could not be had, which is safe while nothing is held.
    #[track_caller]
    fn back_off(&mut self) -> Result<(), ExecError> {
        self.guards.clear();
        self.held = 0;
        self.prelocked = None;
        let Some(resv) = self.contended.take() else { return Ok(()) };
        let locked = resv.lock_with(self.ticket, &self.interrupt, false, || false);
        locked.map_err(|_| ExecError::Interrupted)?;
        self.prelocked = Some((*resv).clone());
        self.keep(resv);
        Ok(())
    }
}
