//! Fences of a reservation: readers without the lock against those who change them.

use shuttle::thread;

use crate::{
    Names, check,
    exec::{Duplicates, Exec},
    fence::{Deadline, Fence, Interrupt, Seqno, Signaller, Timeline, WaitError},
    resv::{Reservation, Snapshot, Usage},
};

fn add(resv: &Reservation, fence: Fence, usage: Usage) {
    let mut guard = resv.lock();
    guard.reserve(1).unwrap();
    guard.add_fence(fence, usage);
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// The number of the only fence of each timeline.
fn numbers<const N: usize>(seen: &Snapshot<'_>, timelines: &[Timeline; N]) -> [Seqno; N] {
    assert_eq!(seen.len(), N);
    std::array::from_fn(|place| {
        let mut of_it = seen.iter().filter(|(fence, _)| fence.context() == timelines[place].context());
        let (fence, usage) = of_it.next().expect("a fence is missing");
        assert_eq!(usage, Usage::Write);
        assert!(fence.timeline().is_some_and(|timeline| timeline.context() == fence.context()));
        fence.seqno()
    })
}

/// A writer always replaces the fence of one timeline, then that of the other, while readers look: they never find the
/// second ahead of the first, nor the first ahead by more than one, never go back, and what they hold stays what it was.
#[test]
fn a_reader_sees_states_in_order() {
    check(600, || {
        let names = Names::new();
        let timelines = [names.timeline(), names.timeline()];
        let resv = Reservation::new();
        let mut signallers = Vec::new();
        let mut next = move |resv: &Reservation, timeline: &Timeline| {
            let (fence, signaller) = timeline.next();
            add(resv, fence, Usage::Write);
            // What it replaced signals only then.
            signallers.push(signaller);
            if signallers.len() > 2 {
                signallers.remove(0).signal();
            }
        };
        timelines.iter().for_each(|timeline| next(&resv, timeline));
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (resv, timelines) = (resv.clone(), timelines.clone());
                thread::spawn(move || {
                    let first = resv.snapshot(Usage::Bookkeep);
                    let seen = numbers(&first, &timelines);
                    let second = numbers(&resv.snapshot(Usage::Write), &timelines);
                    for [one, two] in [seen, second] {
                        assert!(one == two || one.get() == two.get() + 1, "{one:?} {two:?}");
                    }
                    assert!(seen <= second);
                    assert_eq!(numbers(&first, &timelines), seen);
                    assert!(!resv.is_idle(Usage::Write));
                })
            })
            .collect();
        for _ in 0..2 {
            timelines.iter().for_each(|timeline| next(&resv, timeline));
        }
        join(readers);
        drop((resv, next, timelines));
        names.assert_all_freed();
    });
}

/// The list grows, is pruned and is emptied by fences that signal, under two writers' locks, while a reader looks, asks for
/// idleness and waits: it finds the fence that stays, and a poll agrees with that.
#[test]
fn a_reader_finds_what_stays() {
    check(600, || {
        let names = Names::new();
        let resv = Reservation::new();
        let (stays, signaller) = names.timeline().next();
        add(&resv, stays.clone(), Usage::Read);
        let writers: Vec<_> = (0..2)
            .map(|_| {
                let (resv, timeline) = (resv.clone(), names.timeline());
                thread::spawn(move || {
                    for pending in [1, 3] {
                        // Of contexts of their own, so that they need places of their own.
                        let signallers: Vec<_> = (0..pending)
                            .map(|_| {
                                let (fence, signaller) = Timeline::new(timeline.name()).next();
                                add(&resv, fence, Usage::Bookkeep);
                                signaller
                            })
                            .collect();
                        signallers.into_iter().for_each(Signaller::signal);
                    }
                })
            })
            .collect();
        let reader = thread::spawn({
            let resv = resv.clone();
            move || {
                let found = resv.snapshot(Usage::Bookkeep);
                assert!(found.iter().any(|(fence, _)| fence.ptr_eq(&stays)));
                assert!(resv.is_idle(Usage::Write) && !resv.is_idle(Usage::Read));
                let poll = resv.wait(Usage::Bookkeep, Deadline::poll(), &Interrupt::none());
                assert_eq!(poll, Err(WaitError::TimedOut));
            }
        });
        join(writers.into_iter().chain([reader]));
        signaller.signal();
        assert!(resv.is_idle(Usage::Bookkeep));
        drop(resv);
        names.assert_all_freed();
    });
}

/// What one context has on two reservations that are locked together is replaced, and one is copied to a third, while
/// readers of all hold what they found.
#[test]
fn sets_are_replaced_and_copied_under_readers() {
    check(600, || {
        let names = Names::new();
        let (timeline, other) = (names.timeline(), names.timeline());
        let ((old, signal_old), (new, signal_new)) = (timeline.next(), other.next());
        let resvs: [Reservation; 3] = Default::default();
        resvs[..2].iter().for_each(|resv| add(resv, old.clone(), Usage::Write));
        let readers: Vec<_> = resvs
            .iter()
            .map(|resv| {
                let (resv, old, new) = (resv.clone(), old.clone(), new.clone());
                thread::spawn(move || {
                    let seen = resv.snapshot(Usage::Bookkeep);
                    assert!(seen.len() <= 1);
                    assert!(seen.iter().all(|(fence, usage)| match usage {
                        Usage::Write => fence.ptr_eq(&old),
                        _ => fence.ptr_eq(&new),
                    }));
                })
            })
            .collect();
        let copier = thread::spawn({
            let resvs = resvs.clone();
            move || resvs[2].lock().copy_from(&resvs[1]).unwrap()
        });
        {
            let mut exec = Exec::lock_all(&resvs[..2], Duplicates::Refuse, &Interrupt::none()).unwrap();
            for guard in exec.guards() {
                guard.replace_fences(timeline.context(), new.clone(), Usage::Bookkeep);
            }
        }
        join(readers.into_iter().chain([copier]));
        assert!(resvs.iter().all(|resv| resv.snapshot(Usage::Bookkeep).len() == 1));
        drop((resvs, old, new, signal_old, signal_new, timeline, other));
        names.assert_all_freed();
    });
}

/// A buffer is waited for while fences are added to it, signal, and the buffer goes: the wait is for what was there when it
/// began, and keeps that.
#[test]
fn a_wait_outlives_the_reservation() {
    check(600, || {
        let names = Names::new();
        let timeline = names.timeline();
        let ((first, signal_first), (second, signal_second)) = (timeline.next(), timeline.next());
        drop(timeline);
        let resv = Reservation::new();
        add(&resv, first.clone(), Usage::Write);
        let waiter = thread::spawn({
            let (resv, first, second) = (resv.clone(), first.clone(), second.clone());
            move || {
                let merged = resv.merged(Usage::Write);
                resv.wait(Usage::Write, Deadline::never(), &Interrupt::none()).unwrap();
                drop(resv);
                assert!(first.is_signalled() || second.is_signalled());
                merged.wait(Deadline::never(), &Interrupt::none()).unwrap();
            }
        });
        let producer = thread::spawn(move || {
            signal_first.signal();
            signal_second.signal();
        });
        add(&resv, second, Usage::Write);
        drop((resv, first));
        join([waiter, producer]);
        names.assert_all_freed();
    });
}
