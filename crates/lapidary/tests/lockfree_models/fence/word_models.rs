use loom::{sync::Arc, thread};

use super::word::Guarded;
use crate::{check, join, watch::Watched};

const SIGNALLED: u32 = 2;

/// Adds to both value and word.
fn add(guarded: &Guarded<u32>) {
    // The cell behind the lock reports two who have it at the same time, or without an order.
    let mut guard = guarded.lock();
    *guard += 1;
    let word = guard.word();
    guard.set_word(word + 4);
}

/// Two threads take the lock again and again: each order of their attempts, with every spin of who finds it taken.
#[test]
fn one_thread_at_a_time_has_the_value() {
    check(4, || {
        let guarded = Arc::new(Guarded::new(0, 0));
        let other = thread::spawn({
            let guarded = guarded.clone();
            move || (0..2).for_each(|_| add(&guarded))
        });
        (0..2).for_each(|_| add(&guarded));
        join([other]);
        assert_eq!((*guarded.lock(), guarded.word()), (4, 16));
    });
}

/// A third thread comes while one has the lock and one spins.
#[test]
fn one_of_those_who_spin_is_next() {
    check(1, || {
        let guarded = Arc::new(Guarded::new(0, 0));
        let others = [guarded.clone(), guarded.clone()].map(|guarded| thread::spawn(move || add(&guarded)));
        add(&guarded);
        join(others);
        assert_eq!((*guarded.lock(), guarded.word()), (3, 12));
    });
}

/// A producer writes, then publishes the word, while another holds the lock before or after; a consumer who sees the new
/// word without the lock sees what was written.
#[test]
fn who_sees_the_word_sees_what_came_before() {
    check(3, || {
        let shared = Arc::new((Guarded::new(0, ()), Watched::new(0)));
        let other = thread::spawn({
            let shared = shared.clone();
            // Gives back the word as it found it.
            move || drop(shared.0.lock())
        });
        let consumer = thread::spawn({
            let shared = shared.clone();
            move || {
                if shared.0.word() == SIGNALLED {
                    assert_eq!(shared.1.read(), 1);
                }
            }
        });
        shared.1.write(1);
        shared.0.lock().set_word(SIGNALLED);
        join([other, consumer]);
        assert_eq!(shared.0.word(), SIGNALLED);
    });
}

/// Signalling as fences do it, from two threads: one of them is the first, and whoever sees the word from then on never
/// sees it go back.
#[test]
fn of_two_signals_one_is_the_first() {
    check(3, || {
        let guarded = Arc::new(Guarded::new(0, 0));
        let signal = |guarded: &Guarded<u32>, error: u32| {
            let mut state = guarded.lock();
            if state.word() & SIGNALLED == 0 {
                state.set_word(SIGNALLED | error << 8);
                *state += 1;
            }
        };
        let other = thread::spawn({
            let guarded = guarded.clone();
            move || signal(&guarded, 2)
        });
        let watching = thread::spawn({
            let guarded = guarded.clone();
            move || {
                let seen = [guarded.word(), guarded.word()];
                assert!(seen[0] & SIGNALLED == 0 || seen[0] == seen[1]);
            }
        });
        signal(&guarded, 1);
        join([other, watching]);
        assert_eq!(*guarded.lock(), 1);
    });
}
