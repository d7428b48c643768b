//! The wound/wait lock.
//!
//! One word says who holds the lock: nobody, somebody without a ticket, or the holder's ticket; a bit below, that the queue is
//! not empty; and the lowest bits count the [pins] of those who read what the lock is over. Taking and
//! giving back a lock nobody waits for is one compare-and-swap each, and giving it back tells of pins. All else happens
//! under the queue's lock.
//!
//! # Who gives way
//!
//! Tickets are numbers; a lower one is older. An operation that is to sleep for a lock while it holds others looks through
//! the queues of those: if somebody older waits in one, it is *wounded* and must give way ([`Blocked::Wounded`]). It
//! publishes where it sleeps ([`sleepers`]) before looking; an older operation that joins a queue later finds it there and
//! wakes it to look again. Either the sleeper sees the older one or the older one sees the sleeper, and as only a younger
//! operation ever gives way, the oldest one always makes progress.
//!
//! # Who is next
//!
//! The lock is free for all between unlocking and the woken waiter's turn, which keeps it busy; a waiter that came too
//! late once is handed the lock the next time. Waiters without a ticket get one on arrival, for their place in the queue
//! only.

use crate::{
    fence::{Deadline, Interrupt, Parker, WaitError, park_until, pins},
    sync::{
        self, Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use super::common::{next_ticket, sleepers};

/// The age of an operation that locks several reservations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

impl Ticket {
    /// For locking one reservation on its own.
    pub(crate) const NONE: Self = Self(u64::MAX >> TICKET_SHIFT);

    /// The youngest ticket so far. There are enough for ten million a second over three years.
    pub(crate) fn draw() -> Self {
        let ticket = Self(next_ticket());
        assert!(ticket < Self::NONE, "there are no more tickets for locking reservations");
        ticket
    }

    #[inline]
    fn word(self) -> u64 {
        self.0 << TICKET_SHIFT
    }
}

/// Why a lock was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// An older operation waits for a lock this one holds.
    Wounded,
    /// The interrupt was raised.
    Interrupted,
}

/// The queue is not empty.
const WAITERS: u64 = 1 << pins::BITS;
const TICKET_SHIFT: u32 = pins::BITS + 1;
/// Who holds the lock.
const HOLDER: u64 = u64::MAX << TICKET_SHIFT;

#[derive(Default)]
#[repr(C)]
pub(super) struct WwLock {
    queue: Mutex<Vec<Waiter>>,
    /// The holder's ticket, 0 for nobody, above the bit [`WAITERS`] above pins. That bit changes only under the lock of
    /// `queue`.
    word: AtomicU64,
}

struct Waiter {
    age: Ticket,
    /// Whether it is an operation with a ticket, which a younger holder gives way to.
    wounds: bool,
    /// Came too late once; is handed the lock.
    late: bool,
    parker: Arc<Parker>,
}

impl WwLock {
    pub(super) fn is_locked(&self) -> bool {
        holder(self.word.load(Ordering::Relaxed)).is_some()
    }

    #[inline]
    pub(super) fn is_held_by(&self, ticket: Ticket) -> bool {
        holder(self.word.load(Ordering::Relaxed)) == Some(ticket)
    }

    /// Takes the lock if it is free.
    #[inline]
    pub(super) fn try_lock(&self, ticket: Ticket) -> bool {
        // Most often nobody has it, and nobody is looking.
        let mut word =
            match self.word.compare_exchange(0, ticket.word(), Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(word) => word,
            };
        while holder(word).is_none() {
            let taken = ticket.word() | word;
            match self.word.compare_exchange_weak(word, taken, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Takes the lock for an operation that holds no other.
    #[inline]
    pub(super) fn lock(&self, interrupt: &Interrupt) -> Result<(), Blocked> {
        if self.try_lock(Ticket::NONE) {
            return Ok(());
        }
        self.lock_slow(Ticket::NONE, interrupt, || false)
    }

    /// Takes the lock for an operation with a ticket. `wounded` tells whether anyone older waits for a lock the operation
    /// holds; `holds_others`, whether it holds any.
    #[inline]
    pub(super) fn lock_with(
        &self,
        ticket: Ticket,
        interrupt: &Interrupt,
        holds_others: bool,
        wounded: impl FnMut() -> bool,
    ) -> Result<(), Blocked> {
        if self.try_lock(ticket) {
            return Ok(());
        }
        if !holds_others {
            return self.lock_slow(ticket, interrupt, || false);
        }
        let _sleeper = Sleeper::publish(ticket);
        self.lock_slow(ticket, interrupt, wounded)
    }

    #[cold]
    fn lock_slow(
        &self,
        ticket: Ticket,
        interrupt: &Interrupt,
        mut wounded: impl FnMut() -> bool,
    ) -> Result<(), Blocked> {
        if self.spin(ticket) {
            return Ok(());
        }
        let parker = Parker::current();
        let wounds = ticket != Ticket::NONE;
        let age = if wounds { ticket } else { Ticket::draw() };
        self.enqueue(Waiter { age, wounds, late: false, parker: parker.clone() });
        let mut slept = false;
        let result = park_until(&parker, Deadline::never(), interrupt, || {
            if self.take_turn(ticket, age, slept) {
                return Some(Ok(()));
            }
            slept = true;
            wounded().then_some(Err(Blocked::Wounded))
        });
        let blocked = match result {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(blocked)) => blocked,
            Err(WaitError::Interrupted | WaitError::TimedOut) => Blocked::Interrupted,
        };
        if self.leave_queue(age) {
            return Err(blocked);
        }
        // It was handed over in the last moment.
        Ok(())
    }

    /// Looks a few times whether the lock gets free before anybody sleeps for it: most are held for less than going to sleep
    /// takes. Leaves it to those who wait already. True if it was taken.
    fn spin(&self, ticket: Ticket) -> bool {
        for _ in 0..sync::looks() {
            let word = self.word.load(Ordering::Relaxed);
            if word & WAITERS != 0 {
                return false;
            }
            if holder(word).is_none() && self.try_lock(ticket) {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    fn enqueue(&self, waiter: Waiter) {
        let mut queue = self.queue.lock();
        let (age, wounds) = (waiter.age, waiter.wounds);
        queue.push(waiter);
        // The queue's lock orders; the bit makes the holder come here.
        let word = self.word.fetch_or(WAITERS, Ordering::Relaxed);
        drop(queue);
        // Who takes the lock from now on finds this waiter before it sleeps.
        if let Some(holder) = holder(word).filter(|holder| wounds && *holder != Ticket::NONE && *holder > age)
        {
            wake_sleeper(holder);
        }
    }

    /// Takes the lock if it is free or was handed over; `age` names the waiter. If not, and it has slept before, notes that
    /// it came too late.
    fn take_turn(&self, ticket: Ticket, age: Ticket, slept: bool) -> bool {
        let mut queue = self.queue.lock();
        let Some(place) = queue.iter().position(|waiter| waiter.age == age) else {
            // Handed over: whoever did so took the waiter out. Acquire: see what the holder before did.
            self.word.load(Ordering::Acquire);
            return true;
        };
        if !self.try_lock(ticket) {
            queue[place].late |= slept;
            return false;
        }
        queue.swap_remove(place);
        if queue.is_empty() {
            self.word.fetch_and(!WAITERS, Ordering::Relaxed);
        }
        true
    }

    /// Gives up waiting. False if the lock was handed over before.
    fn leave_queue(&self, age: Ticket) -> bool {
        let mut queue = self.queue.lock();
        let Some(place) = queue.iter().position(|waiter| waiter.age == age) else {
            self.word.load(Ordering::Acquire);
            return false;
        };
        queue.swap_remove(place);
        if queue.is_empty() {
            self.word.fetch_and(!WAITERS, Ordering::Relaxed);
        } else if holder(self.word.load(Ordering::Relaxed)).is_none() {
            // The wake-up may have been for this waiter: pass it on.
            next_of(&queue).inspect(|next| queue[*next].parker.unpark());
        }
        true
    }

    /// Whether an operation older than `ticket` waits here.
    ///
    /// Always asks under the queue's lock: the look must come after the asking sleeper was published, in an order that
    /// the waiters agree with.
    pub(super) fn has_older_waiter(&self, ticket: Ticket) -> bool {
        self.queue.lock().iter().any(|waiter| waiter.wounds && waiter.age < ticket)
    }

    /// The word, for those who pin what the lock is over.
    #[inline]
    pub(super) fn word(&self) -> &AtomicU64 {
        &self.word
    }

    /// The ticket with which the caller holds the lock.
    #[cfg(debug_assertions)]
    pub(super) fn holder(&self) -> Ticket {
        holder(self.word.load(Ordering::Relaxed)).unwrap_or(Ticket::NONE)
    }

    /// Gives the lock back, which the caller holds. True if somebody has pinned what it is over; who pins
    /// later sees what the caller did before.
    #[inline]
    pub(super) fn unlock(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        let alone = word & !HOLDER == 0;
        if alone && self.word.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            return false;
        }
        self.unlock_slow()
    }

    #[cold]
    fn unlock_slow(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & WAITERS == 0 {
            let free = word & !HOLDER;
            match self.word.compare_exchange_weak(word, free, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return pins::is_pinned(word),
                Err(now) => word = now,
            }
        }
        let mut queue = self.queue.lock();
        let Some(next) = next_of(&queue) else {
            return pins::is_pinned(self.word.fetch_and(!(HOLDER | WAITERS), Ordering::AcqRel));
        };
        if !queue[next].late {
            let word = self.word.fetch_and(!HOLDER, Ordering::AcqRel);
            queue[next].parker.unpark();
            return pins::is_pinned(word);
        }
        let waiter = queue.swap_remove(next);
        let ticket = if waiter.wounds { waiter.age } else { Ticket::NONE };
        let more = if queue.is_empty() { 0 } else { WAITERS };
        let hand_over = |word| Some((word & !(HOLDER | WAITERS)) | ticket.word() | more);
        let word = self.word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, hand_over);
        drop(queue);
        waiter.parker.unpark();
        word.is_ok_and(pins::is_pinned)
    }
}

/// Who holds the lock, by its word.
fn holder(word: u64) -> Option<Ticket> {
    let ticket = word >> TICKET_SHIFT;
    (ticket != 0).then_some(Ticket(ticket))
}

/// The place of the oldest waiter.
fn next_of(queue: &[Waiter]) -> Option<usize> {
    (0..queue.len()).min_by_key(|place| queue[*place].age)
}

fn wake_sleeper(ticket: Ticket) {
    let sleepers = sleepers().lock();
    if let Some((_, parker)) = sleepers.iter().find(|(sleeper, _)| *sleeper == ticket) {
        parker.unpark();
    }
}

/// An operation's place among the sleepers.
struct Sleeper(Ticket);

impl Sleeper {
    fn publish(ticket: Ticket) -> Self {
        sleepers().lock().push((ticket, Parker::current()));
        Self(ticket)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let mut sleepers = sleepers().lock();
        if let Some(place) = sleepers.iter().position(|(ticket, _)| *ticket == self.0) {
            sleepers.swap_remove(place);
        }
    }
}
