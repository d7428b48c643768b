#![allow(unsafe_code, reason = "lists are made of plain pointers")]

use loom::{
    sync::{
        Arc,
        atomic::{AtomicPtr, Ordering},
    },
    thread,
};

use super::ww::{Ticket, WwLock};
use crate::{
    check,
    fence::{
        Fence, FenceRef, Interrupt, keeps_nothing,
        pins::{self, Retired},
    },
    join,
    watch::Watched,
};

/// A list of one place behind a lock, in whose word its readers are counted, as in a reservation.
struct Resv {
    lock: WwLock,
    retired: Retired<Fence>,
    place: AtomicPtr<()>,
    /// Only the holder of the lock touches it.
    changes: Watched<u64>,
}

impl Resv {
    fn new() -> Arc<Self> {
        let place = AtomicPtr::new(pins::into_raw(Fence::new(1, 0)).cast_mut());
        let lock = WwLock::default();
        Arc::new(Self { lock, retired: Retired::new(), place, changes: Watched::new(0) })
    }

    fn read(&self) -> u64 {
        pins::pin(self.lock.word());
        // SAFETY: the list is pinned.
        let seqno = unsafe { FenceRef::from_raw(self.place.load(Ordering::Acquire)) }.seqno().0;
        if pins::unpin(self.lock.word()) {
            self.retired.collect(self.lock.word());
        }
        seqno
    }

    /// Puts a fence in the place of the one that is there, as the holder of the lock, and unlocks.
    fn replace_and_unlock(&self) {
        let changes = self.changes.read() + 1;
        self.changes.write(changes);
        let new = pins::into_raw(Fence::new(1, changes)).cast_mut();
        // A plain store, as in the list.
        let old = self.place.load(Ordering::Relaxed);
        self.place.store(new, Ordering::Release);
        let pinned = self.lock.unlock();
        // SAFETY: it was taken out, by the holder of the lock.
        let old = unsafe { pins::from_raw(old) };
        if pinned {
            self.retired.retire(self.lock.word(), std::iter::once(old));
        }
    }

    fn lock(&self) {
        assert!(self.lock.lock(&Interrupt).is_ok());
    }

    fn end(&self, changes: u64) {
        assert!(self.lock.try_lock(Ticket::NONE));
        assert_eq!(self.changes.read(), changes);
        assert!(!self.lock.unlock() && !self.lock.is_locked());
        assert!(keeps_nothing(&self.retired), "something is retired though nobody has pinned");
        // SAFETY: nobody else has the list any more.
        drop(unsafe { pins::from_raw(self.place.swap(std::ptr::null_mut(), Ordering::AcqRel)) });
    }
}

fn spawn(resv: &Arc<Resv>, work: impl FnOnce(&Resv) + 'static) -> thread::JoinHandle<()> {
    let resv = resv.clone();
    thread::spawn(move || work(&resv))
}

/// A holder changes the list and unlocks while a reader pins, looks and unpins, before, between and after: the reader finds
/// the old one or the new one, alive, and unlocking tells whether somebody may still be looking.
#[test]
fn unlocking_tells_of_readers() {
    check(4, || {
        let resv = Resv::new();
        let reader = spawn(&resv, |resv| {
            let (first, second) = (resv.read(), resv.read());
            assert!(first <= second);
        });
        resv.lock();
        resv.replace_and_unlock();
        join([reader]);
        resv.end(1);
    });
}

/// Two threads change the list, one after the other: the one finds the lock free, is woken for it, or is handed it; and each
/// sees what the other did before.
#[test]
fn holders_follow_one_another() {
    check(5, || {
        let resv = Resv::new();
        let other = spawn(&resv, |resv| {
            resv.lock();
            resv.replace_and_unlock();
        });
        for _ in 0..2 {
            resv.lock();
            resv.replace_and_unlock();
        }
        join([other]);
        resv.end(3);
    });
}

/// The same with a reader, whose pins come between all steps of giving back and handing over.
#[test]
fn holders_follow_one_another_past_a_reader() {
    check(2, || {
        let resv = Resv::new();
        let other = spawn(&resv, |resv| {
            resv.lock();
            resv.replace_and_unlock();
        });
        let reader = spawn(&resv, |resv| _ = resv.read());
        resv.lock();
        resv.replace_and_unlock();
        join([other, reader]);
        resv.end(2);
    });
}

/// A waiter that came too late, as the lock was taken again before it had its turn, is handed the lock, while a reader's pins
/// come and go: they stay in the word, and the one who hands over is told of them.
#[test]
fn a_lock_is_handed_over_past_a_reader() {
    check(1, || {
        let resv = Resv::new();
        resv.lock();
        let waiter = spawn(&resv, |resv| {
            resv.lock();
            resv.replace_and_unlock();
        });
        let reader = spawn(&resv, |resv| _ = resv.read());
        // The waiter sleeps, is woken, finds the lock taken, and sleeps again.
        thread::yield_now();
        resv.replace_and_unlock();
        resv.lock();
        thread::yield_now();
        resv.replace_and_unlock();
        join([waiter, reader]);
        resv.end(3);
    });
}

/// Two operations with tickets want two locks, each in the order of the other's: the younger one is told to give way, lets go
/// and waits for what it was refused.
#[test]
fn the_younger_of_two_operations_gives_way() {
    fn lock_both(first: &Resv, second: &Resv) {
        let ticket = Ticket::draw();
        assert!(first.lock.lock_with(ticket, &Interrupt, false, || false).is_ok());
        let wounded = || first.lock.has_older_waiter(ticket);
        if second.lock.lock_with(ticket, &Interrupt, true, wounded).is_err() {
            first.lock.unlock();
            assert!(second.lock.lock_with(ticket, &Interrupt, false, || false).is_ok());
            // What is left is had in a safe order, or given way for again.
            let wounded = || second.lock.has_older_waiter(ticket);
            let locked = first.lock.lock_with(ticket, &Interrupt, true, wounded);
            if locked.is_err() {
                second.lock.unlock();
                return;
            }
        }
        assert!(first.lock.is_held_by(ticket) && second.lock.is_held_by(ticket));
        first.replace_and_unlock();
        second.replace_and_unlock();
    }
    check(3, || {
        let (one, two) = (Resv::new(), Resv::new());
        let other = thread::spawn({
            let (one, two) = (one.clone(), two.clone());
            move || lock_both(&two, &one)
        });
        lock_both(&one, &two);
        join([other]);
        let changes = one.changes.read();
        assert!((1..=2).contains(&changes) && two.changes.read() == changes);
        one.end(changes);
        two.end(changes);
    });
}
