//! A word of state and the lock over what goes with it, in one.
//!
//! A fence's state and the lock over its callbacks share an atomic word: whoever signals takes the lock with one
//! compare-and-swap, and gives it back and publishes the new state with one store. That works because nobody changes the
//! word without the lock, and it is why the lock has no list of sleepers.
//!
//! The lock is held for a few instructions, with no foreign code and no other lock under it. A thread that finds it
//! taken spins, then offers its processor to others, and at last sleeps for a little while, so that a holder that lost its
//! processor gets it back even from a thread of higher priority.

#![allow(unsafe_code, reason = "a lock hands out what is in it")]

use std::{
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use crate::sync::{
    atomic::{AtomicU32, Ordering},
    cell::UnsafeCell,
    relax,
};

/// The lock is taken. The users of the word leave this bit alone.
const LOCKED: u32 = 1;

/// A word, and a value behind the lock that is in it.
pub(super) struct Guarded<T> {
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through a `Guard` only, and there is one at a time: the thread that set `LOCKED`. Setting
// it acquires what clearing it released.
unsafe impl<T: Send> Sync for Guarded<T> {}

impl<T> Guarded<T> {
    /// Not locked. The lowest bit of `word` is clear.
    pub(super) fn new(word: u32, value: T) -> Self {
        Self { word: AtomicU32::new(word), value: UnsafeCell::new(value) }
    }

    /// The word. Seeing a value synchronises with the thread that stored it.
    #[inline]
    pub(super) fn word(&self) -> u32 {
        self.word.load(Ordering::Acquire) & !LOCKED
    }

    /// Takes the lock.
    #[inline]
    pub(super) fn lock(&self) -> Guard<'_, T> {
        let word = self.word.load(Ordering::Relaxed) & !LOCKED;
        let taken = self.word.compare_exchange(word, word | LOCKED, Ordering::Acquire, Ordering::Relaxed);
        match taken {
            Ok(_) => Guard::new(self, word),
            Err(_) => self.lock_contended(),
        }
    }

    #[cold]
    fn lock_contended(&self) -> Guard<'_, T> {
        let mut tries = 0;
        loop {
            let word = self.word.load(Ordering::Relaxed);
            if word & LOCKED == 0 {
                let taken = self.word.compare_exchange_weak(
                    word,
                    word | LOCKED,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                );
                if taken.is_ok() {
                    return Guard::new(self, word);
                }
            }
            relax(&mut tries);
        }
    }
}

/// The lock, held. Giving it back publishes the word.
pub(super) struct Guard<'a, T> {
    guarded: &'a Guarded<T>,
    word: u32,
    /// What it is for others to share or to send.
    value: PhantomData<&'a mut T>,
}

impl<'a, T> Guard<'a, T> {
    #[inline]
    fn new(guarded: &'a Guarded<T>, word: u32) -> Self {
        Self { guarded, word, value: PhantomData }
    }

    /// The word, without the lock's bit.
    #[inline]
    pub(super) fn word(&self) -> u32 {
        self.word
    }

    /// The word from when the lock is given back on.
    #[inline]
    pub(super) fn set_word(&mut self, word: u32) {
        debug_assert_eq!(word & LOCKED, 0);
        self.word = word;
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard is the only one, and it is borrowed for as long as the answer is.
        unsafe { &*self.guarded.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and it is borrowed mutably.
        unsafe { &mut *self.guarded.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.guarded.word.store(self.word, Ordering::Release);
    }
}
