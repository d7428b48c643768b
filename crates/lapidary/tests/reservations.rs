//! The rules for reservations and for locking many of them: H19 and H20 (what readers hold), H22 (the fences' part), H23. H24
//! is in `signalling_sections`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use lapidary::{
    exec::{Duplicates, Exec, ExecError},
    fence::{Deadline, Fence, FenceContext, FenceError, Interrupt, Seqno, Signaller, Timeline, WaitError},
    resv::{Reservation, ResvError, Usage},
};

fn fence() -> (Fence, Signaller) {
    Fence::new(FenceContext::alloc(), Seqno(1))
}

fn add(resv: &Reservation, fence: &Fence, usage: Usage) {
    let mut guard = resv.lock();
    guard.reserve(1).unwrap();
    guard.add_fence(fence.clone(), usage);
}

/// A small generator of numbers that need not be good, only reproducible.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

#[test]
fn h20_asking_for_a_usage_includes_the_more_pressing_ones() {
    let resv = Reservation::new();
    let usages = [Usage::Kernel, Usage::Write, Usage::Read, Usage::Bookkeep];
    let (fences, signallers): (Vec<_>, Vec<_>) = usages.iter().map(|_| fence()).unzip();
    for (fence, usage) in fences.iter().zip(usages) {
        add(&resv, fence, usage);
    }
    for (count, usage) in usages.into_iter().enumerate() {
        assert_eq!(resv.fences(usage).len(), count + 1);
        assert!(!resv.is_idle(usage));
    }
    assert_eq!((Usage::for_access(true), Usage::for_access(false)), (Usage::Read, Usage::Write));
    // When the most pressing signals, it is gone from all.
    let mut signallers = signallers.into_iter();
    signallers.next().unwrap().signal();
    assert!(resv.is_idle(Usage::Kernel) && !resv.is_idle(Usage::Write));
    drop(signallers);
    assert!(resv.is_idle(Usage::Bookkeep));
    assert_eq!(resv.wait(Usage::Bookkeep, Deadline::poll(), &Interrupt::none()), Ok(()));
}

#[test]
fn h20_a_newer_fence_of_a_context_replaces_the_older() {
    let resv = Reservation::new();
    let timeline = Timeline::new("ring");
    let (one, _one) = timeline.next();
    let (two, _two) = timeline.next();
    add(&resv, &one, Usage::Read);
    // A more pressing usage takes the place of a less pressing one.
    add(&resv, &two, Usage::Write);
    assert!(resv.fences(Usage::Write).iter().all(|fence| fence.ptr_eq(&two)));
    assert_eq!(resv.fences(Usage::Bookkeep).len(), 1);
    // But not the other way round: the write must still be waited for as one.
    let (three, _three) = timeline.next();
    add(&resv, &three, Usage::Bookkeep);
    assert_eq!(resv.fences(Usage::Bookkeep).len(), 2);
    // And an older one replaces nothing.
    add(&resv, &one, Usage::Kernel);
    assert_eq!(resv.fences(Usage::Bookkeep).len(), 3);
    // All of a context can be replaced when its work no longer uses the buffer.
    resv.lock().replace_fences(timeline.context(), Fence::signalled(), Usage::Bookkeep);
    assert!(resv.is_idle(Usage::Bookkeep));
}

#[test]
fn h20_signalled_fences_are_pruned() {
    let resv = Reservation::new();
    for _ in 0..10_000 {
        let (fence, signaller) = fence();
        add(&resv, &fence, Usage::Read);
        signaller.signal();
    }
    let (pending, _signaller) = fence();
    add(&resv, &pending, Usage::Read);
    assert_eq!(resv.fences(Usage::Read).len(), 1);
    assert!(resv.merged(Usage::Read).ptr_eq(&pending));
}

#[test]
fn h20_reserving_may_fail_and_changes_nothing_then() {
    let resv = Reservation::new();
    let (fence, _signaller) = fence();
    add(&resv, &fence, Usage::Read);
    let mut guard = resv.lock();
    assert_eq!(guard.reserve(usize::MAX), Err(ResvError::OutOfMemory(usize::MAX)));
    assert_eq!(guard.reserve(usize::MAX / 64), Err(ResvError::OutOfMemory(usize::MAX / 64)));
    assert_eq!(guard.fences(Usage::Read).len(), 1);
}

#[test]
fn h20_fences_can_be_copied() {
    let (source, target) = (Reservation::new(), Reservation::new());
    let (fences, _signallers): (Vec<_>, Vec<_>) = (0..3).map(|_| fence()).unzip();
    for (fence, usage) in fences.iter().zip([Usage::Kernel, Usage::Write, Usage::Bookkeep]) {
        add(&source, fence, usage);
    }
    let (old, _old) = fence();
    add(&target, &old, Usage::Read);
    target.lock().copy_from(&source).unwrap();
    for usage in [Usage::Kernel, Usage::Write, Usage::Read, Usage::Bookkeep] {
        assert_eq!(target.fences(usage).len(), source.fences(usage).len());
    }
    assert!(source.clone().lock().copy_from(&source).is_ok());
}

#[test]
fn h20_a_reader_without_the_lock_sees_one_state() {
    // Given a buffer that always has exactly one unfinished fence of each of two contexts.
    let resv = Reservation::new();
    let timelines = [Timeline::new("copy"), Timeline::new("render")];
    let mut last: Vec<_> = timelines.iter().map(Timeline::next).collect();
    for (fence, _) in &last {
        add(&resv, fence, Usage::Write);
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut seen = [Seqno(0); 2];
                while !stop.load(Ordering::Relaxed) {
                    let fences = resv.fences(Usage::Write);
                    for (timeline, seen) in timelines.iter().zip(&mut seen) {
                        let found: Vec<_> =
                            fences.iter().filter(|fence| fence.context() == timeline.context()).collect();
                        // Then a reader finds the old or the new one, never none, never both, never going back.
                        assert_eq!(found.len(), 1);
                        assert!(found[0].seqno() >= *seen);
                        *seen = found[0].seqno();
                    }
                    assert!(!resv.is_idle(Usage::Write));
                    assert_eq!(
                        resv.wait(Usage::Write, Deadline::poll(), &Interrupt::none()),
                        Err(WaitError::TimedOut)
                    );
                }
            });
        }
        // When the fences are replaced, and the old ones signal only then.
        for _ in 0..5_000 {
            for (timeline, last) in timelines.iter().zip(&mut last) {
                let next = timeline.next();
                add(&resv, &next.0, Usage::Write);
                let (_, old) = std::mem::replace(last, next);
                old.signal();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn h19_whatever_a_reader_holds_stays_the_fence_it_was() {
    // Given a reader that holds what it found, with and without references,
    let resv = Reservation::new();
    let timeline = Timeline::new("found");
    let (fence, signaller) = timeline.next();
    add(&resv, &fence, Usage::Read);
    drop(fence);
    let found = resv.snapshot(Usage::Read);
    let kept = resv.fences(Usage::Read);
    // when the fence is replaced and signals, and so many others come and go that all memory was used again,
    let mut last = Some(signaller);
    for _ in 0..10_000 {
        let (next, next_signaller) = self::fence();
        let mut guard = resv.lock();
        guard.reserve(1).unwrap();
        for fence in guard.fences(Usage::Read) {
            guard.replace_fences(fence.context(), next.clone(), Usage::Read);
        }
        drop(guard);
        last.replace(next_signaller).unwrap().fail(FenceError::Device);
    }
    // then it is that fence all the same.
    let (fence, usage) = found.iter().next().unwrap();
    assert!(usage == Usage::Read && kept[0].ptr_eq(&fence));
    assert_eq!((fence.context(), fence.seqno()), (timeline.context(), Seqno(1)));
    assert_eq!(fence.timeline().map(Timeline::name), Some("found"));
    assert_eq!(fence.status(), Some(Err(FenceError::Device)));
    // And it is not what is there now.
    assert!(resv.fences(Usage::Read).iter().all(|now| !now.ptr_eq(&fence)));
}

#[test]
fn h20_what_is_replaced_goes_with_the_last_reader() {
    // Given a fence that is on a list alone, and on two chains' links,
    let name: Arc<str> = "replaced".into();
    let (fence, signaller) = Timeline::new(name.clone()).next();
    let (resv, other) = (Reservation::new(), Reservation::new());
    add(&resv, &fence, Usage::Read);
    let (own, _own) = self::fence();
    let head = Fence::chain(Some(Fence::chain(None, fence, 1)), own, 2);
    // and readers of both,
    let readers = [resv.snapshot(Usage::Read), resv.snapshot(Usage::Bookkeep)];
    let walker = head.chain_links();
    assert_eq!(walker.iter().count(), 2);
    // when it is replaced and forgotten, then it is there for as long as they are.
    signaller.signal();
    resv.lock().copy_from(&other).unwrap();
    assert!(head.chain_prev().is_none());
    assert!(resv.is_idle(Usage::Bookkeep) && resv.snapshot(Usage::Bookkeep).is_empty());
    for reader in readers {
        assert_eq!(reader.iter().next().map(|(fence, _)| fence.is_signalled()), Some(true));
        assert!(Arc::strong_count(&name) > 1);
    }
    assert!(Arc::strong_count(&name) > 1);
    drop(walker);
    assert_eq!(Arc::strong_count(&name), 1);
}

/// Readers hold what they found for a while, and look at it again and again, while two writers replace, add, prune and copy;
/// in the end nothing is kept.
#[test]
fn h20_readers_hold_live_fences_while_writers_replace_them() {
    const ROUNDS: u64 = 3_000;
    let name: Arc<str> = "of the test".into();
    let resvs = [Reservation::new(), Reservation::new()];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|writer: usize| {
                let (name, resvs) = (name.clone(), &resvs);
                scope.spawn(move || {
                    let mut numbers = Numbers(writer as u64);
                    let timelines: Vec<_> = (0..3).map(|_| Timeline::new(name.clone())).collect();
                    let mut pending = std::collections::VecDeque::new();
                    for _ in 0..ROUNDS {
                        let (fence, signaller) = timelines[numbers.below(3)].next();
                        pending.push_back(signaller);
                        let mut guard = resvs[writer].lock();
                        match numbers.below(8) {
                            0 => guard.copy_from(&resvs[1 - writer]).unwrap(),
                            1 => guard.replace_fences(timelines[0].context(), fence, Usage::Bookkeep),
                            2 => guard.reserve(30).unwrap(),
                            _ => {
                                guard.reserve(1).unwrap();
                                guard.add_fence(fence, Usage::Write);
                            }
                        }
                        drop(guard);
                        while pending.len() > 8 {
                            pending.pop_front().into_iter().for_each(Signaller::signal);
                        }
                    }
                })
            })
            .collect();
        for reader in 0..3 {
            let (name, resvs, stop) = (&name, &resvs, &stop);
            scope.spawn(move || {
                let mut numbers = Numbers(10 + reader);
                while !stop.load(Ordering::Relaxed) {
                    let snapshot = resvs[numbers.below(2)].snapshot(Usage::Bookkeep);
                    let seen: Vec<_> =
                        snapshot.iter().map(|(fence, _)| (fence.context(), fence.seqno())).collect();
                    let kept: Vec<_> = snapshot.iter().map(|(fence, _)| fence.clone()).collect();
                    thread::yield_now();
                    for ((fence, _), (seen, kept)) in snapshot.iter().zip(seen.iter().zip(&kept)) {
                        assert_eq!(*seen, (fence.context(), fence.seqno()));
                        assert!(kept.ptr_eq(&fence));
                        assert!(fence.timeline().is_some_and(|timeline| timeline.name() == &**name));
                    }
                }
            });
        }
        for writer in writers {
            writer.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    // The writers' signallers are gone, so everything has signalled.
    assert!(resvs.iter().all(|resv| resv.is_idle(Usage::Bookkeep)));
    drop(resvs);
    assert_eq!(Arc::strong_count(&name), 1, "a fence is kept though nobody has it");
}

/// A reader that is forgotten, and a guard: nothing is used after it is gone, and others' readers are as ever.
#[test]
fn h20_forgotten_readers_and_guards_keep_what_they_had() {
    let resv = Reservation::new();
    let (fence, _signaller) = fence();
    add(&resv, &fence, Usage::Read);
    std::mem::forget(resv.snapshot(Usage::Read));
    // What is taken out is kept for the forgotten reader.
    let (next, _next) = self::fence();
    resv.lock().replace_fences(fence.context(), next.clone(), Usage::Read);
    assert!(resv.snapshot(Usage::Read).iter().all(|(fence, _)| fence.ptr_eq(&next)));
    // A guard that is forgotten stays locked.
    let other = Reservation::new();
    add(&other, &next, Usage::Read);
    let mut guard = other.try_lock().unwrap();
    guard.replace_fences(next.context(), fence, Usage::Read);
    std::mem::forget(guard);
    assert!(other.is_locked() && other.try_lock().is_none() && !other.is_idle(Usage::Read));
    drop((resv, other));
}

#[test]
fn h22_fences_outlive_the_reservation_they_were_on() {
    let resv = Reservation::new();
    let (fence, signaller) = fence();
    add(&resv, &fence, Usage::Read);
    let idle = Arc::new(AtomicUsize::new(0));
    // Given an object that goes while it is busy, and whose memory is to be freed once it is idle.
    let freed = idle.clone();
    resv.merged(Usage::Bookkeep).on_signal(move |_| {
        freed.fetch_add(1, Ordering::SeqCst);
    });
    drop((resv, fence));
    assert_eq!(idle.load(Ordering::SeqCst), 0);
    signaller.signal();
    assert_eq!(idle.load(Ordering::SeqCst), 1);
}

#[test]
fn h23_a_wait_for_a_buffer_ends_when_its_producers_die() {
    let resv = Reservation::new();
    let (fences, signallers): (Vec<_>, Vec<_>) = (0..4).map(|_| fence()).unzip();
    for fence in &fences {
        add(&resv, fence, Usage::Read);
    }
    let waited = resv.clone();
    let waiter = thread::spawn(move || waited.wait(Usage::Read, Deadline::never(), &Interrupt::none()));
    drop(signallers);
    assert_eq!(waiter.join().unwrap(), Ok(()));
}

#[test]
fn h23_waiting_for_a_lock_can_be_interrupted() {
    let resv = Reservation::new();
    let interrupt = Interrupt::new();
    let guard = resv.lock();
    assert!(resv.try_lock().is_none() && resv.is_locked());
    thread::scope(|scope| {
        let single = scope.spawn(|| resv.lock_interruptible(&interrupt).map(|_| ()));
        let many = scope.spawn(|| {
            Exec::lock_all([&Reservation::new(), &resv], Duplicates::Refuse, &interrupt).map(|_| ())
        });
        interrupt.raise();
        assert_eq!(single.join().unwrap(), Err(ResvError::Interrupted));
        assert_eq!(many.join().unwrap(), Err(ExecError::Interrupted));
    });
    drop(guard);
    assert!(!resv.is_locked());
    // A free lock is taken even then.
    assert!(resv.lock_interruptible(&interrupt).is_ok());
}

#[test]
fn exec_allows_or_reports_duplicates_and_finds_guards() {
    let resvs: Vec<_> = (0..5).map(|_| Reservation::new()).collect();
    let twice: Vec<_> = resvs.iter().chain(&resvs).collect();
    let none = Interrupt::none();
    assert_eq!(
        Exec::lock_all(twice.clone(), Duplicates::Refuse, &none).map(|_| ()),
        Err(ExecError::AlreadyLocked)
    );
    assert!(resvs.iter().all(|resv| !resv.is_locked()));
    let mut exec = Exec::lock_all(twice, Duplicates::Allow, &none).unwrap();
    assert_eq!((exec.len(), exec.guards().count()), (5, 5));
    for resv in &resvs {
        assert!(exec.is_locked(resv) && exec.guard(resv).is_some_and(|guard| guard.guards(resv)));
    }
    assert!(exec.guard(&Reservation::new()).is_none());
    // One can go before the others, and come back.
    exec.unlock(&resvs[2]);
    assert!(!resvs[2].is_locked() && exec.guard(&resvs[2]).is_none() && exec.len() == 4);
    assert!(exec.try_lock(&resvs[2]) && exec.guard(&resvs[2]).is_some());
    drop(exec);
    assert!(resvs.iter().all(|resv| !resv.is_locked()));
}

#[test]
fn exec_ends_with_the_steps_own_error_and_nothing_locked() {
    #[derive(Debug, PartialEq)]
    enum Error {
        Own,
        Exec(ExecError),
    }
    impl From<ExecError> for Error {
        fn from(error: ExecError) -> Self {
            Self::Exec(error)
        }
    }
    let resv = Reservation::new();
    let result = Exec::run(Duplicates::Refuse, &Interrupt::none(), |exec| {
        exec.prepare(&resv, 1)?;
        if exec.lock(&resv) == Err(ExecError::AlreadyLocked) { Err::<(), _>(Error::Own) } else { Ok(()) }
    });
    assert_eq!(result.map(|_| ()), Err(Error::Own));
    assert!(!resv.is_locked());
}

#[test]
fn the_younger_operation_gives_way_to_the_older() {
    // Given an older operation that holds A and wants B, and a younger one that holds B and wants A.
    let (a, b) = (&Reservation::new(), &Reservation::new());
    let (older_has_a, wait_for_a) = std::sync::mpsc::channel();
    let (younger_has_b, wait_for_b) = std::sync::mpsc::channel();
    let tries = AtomicUsize::new(0);
    let tries = &tries;
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut told = false;
            let run = Exec::run(Duplicates::Refuse, &Interrupt::none(), |exec| {
                exec.lock(a)?;
                if !std::mem::replace(&mut told, true) {
                    older_has_a.send(()).unwrap();
                    wait_for_b.recv().unwrap();
                }
                exec.lock(b)
            });
            // The older one never had to start over.
            assert!(run.is_ok() && tries.load(Ordering::SeqCst) == 1);
        });
        scope.spawn(move || {
            wait_for_a.recv().unwrap();
            let run = Exec::run(Duplicates::Refuse, &Interrupt::none(), |exec| {
                let first = tries.load(Ordering::SeqCst) == 0;
                exec.lock(b)?;
                if first {
                    tries.fetch_add(1, Ordering::SeqCst);
                    younger_has_b.send(()).unwrap();
                }
                let locked = exec.lock(a);
                assert!(locked.is_ok() || first);
                locked
            });
            assert!(run.is_ok());
        });
    });
}

/// Operations of every kind on few reservations: nobody waits for ever, and no two hold the same one.
#[test]
fn many_threads_lock_random_sets_without_deadlock() {
    const RESERVATIONS: usize = 6;
    const THREADS: u64 = 6;
    const ROUNDS: usize = 1_500;
    let resvs: Vec<_> = (0..RESERVATIONS).map(|_| (Reservation::new(), AtomicBool::new(false))).collect();
    let work = |held: &[usize]| {
        for index in held {
            assert!(!resvs[*index].1.swap(true, Ordering::Relaxed), "held twice");
        }
        std::hint::black_box(held);
        for index in held {
            resvs[*index].1.store(false, Ordering::Relaxed);
        }
    };
    let all_at_once = |numbers: &mut Numbers| {
        let set: Vec<_> = (0..1 + numbers.below(4)).map(|_| numbers.below(RESERVATIONS)).collect();
        let locks: Vec<_> = set.iter().map(|index| &resvs[*index].0).collect();
        let exec = Exec::lock_all(locks, Duplicates::Allow, &Interrupt::none()).unwrap();
        let mut held = set;
        held.sort_unstable();
        held.dedup();
        assert_eq!(exec.len(), held.len());
        work(&held);
    };
    let step_by_step = |numbers: &mut Numbers| {
        let (exec, held) = Exec::run(Duplicates::Refuse, &Interrupt::none(), |exec| {
            let mut held: Vec<usize> = Vec::new();
            for _ in 0..3 {
                // A different set on each try: what was waited for may turn out not to be needed.
                let index = numbers.below(RESERVATIONS);
                if !held.contains(&index) {
                    exec.lock(&resvs[index].0)?;
                    held.push(index);
                }
                thread::yield_now();
            }
            Ok::<_, ExecError>(held)
        })
        .unwrap();
        assert_eq!(exec.len(), held.len());
        work(&held);
    };
    let one = |numbers: &mut Numbers| {
        let index = numbers.below(RESERVATIONS);
        let _guard = resvs[index].0.lock();
        work(&[index]);
    };
    let (all_at_once, step_by_step, one) = (&all_at_once, &step_by_step, &one);
    thread::scope(|scope| {
        for seed in 0..THREADS {
            scope.spawn(move || {
                let mut numbers = Numbers(seed);
                for _ in 0..ROUNDS {
                    match numbers.below(3) {
                        0 => all_at_once(&mut numbers),
                        1 => step_by_step(&mut numbers),
                        _ => one(&mut numbers),
                    }
                }
            });
        }
    });
    assert!(resvs.iter().all(|(resv, _)| !resv.is_locked()));
}

/// Interrupts at any time leave no lock behind and lose no wake-up.
#[test]
fn interrupted_waits_leave_the_locks_usable() {
    let resvs: Vec<_> = (0..3).map(|_| Reservation::new()).collect();
    let interrupts: Vec<_> = (0..3).map(|_| Interrupt::new()).collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let lockers: Vec<_> = interrupts
            .iter()
            .enumerate()
            .map(|(place, interrupt)| {
                let resvs = &resvs;
                scope.spawn(move || {
                    let mut locked = 0;
                    while locked < 2_000 {
                        let order: Vec<_> = (0..3).map(|n| &resvs[(n + place) % 3]).collect();
                        match Exec::lock_all(order, Duplicates::Refuse, interrupt) {
                            Ok(_) => locked += 1,
                            Err(error) => {
                                assert_eq!(error, ExecError::Interrupted);
                                interrupt.clear();
                            }
                        }
                    }
                })
            })
            .collect();
        let (interrupts, stop) = (&interrupts, &stop);
        scope.spawn(move || {
            let mut numbers = Numbers(7);
            while !stop.load(Ordering::Relaxed) {
                interrupts[numbers.below(3)].raise();
                thread::yield_now();
            }
        });
        for locker in lockers {
            locker.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(resvs.iter().all(|resv| !resv.is_locked()));
}
