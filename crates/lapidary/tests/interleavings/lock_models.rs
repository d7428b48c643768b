//! Locks of reservations: wound and wait, plain locks, interrupts, readers' pins in the same word.

use shuttle::thread;

use crate::{
    check,
    exec::{Duplicates, Exec, ExecError},
    fence::Interrupt,
    resv::{Reservation, ResvError, Usage},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// A reservation, and whether somebody has it: by the scheduler's eyes, so that it can switch in between.
#[derive(Clone, Default)]
struct Held(Reservation, Arc<AtomicBool>);

impl Held {
    fn three() -> [Self; 3] {
        Default::default()
    }

    /// What the holder does.
    fn use_alone(&self) {
        assert!(!self.1.swap(true, Ordering::Relaxed), "held twice");
        self.1.store(false, Ordering::Relaxed);
    }
}

fn assert_free(resvs: &[Held]) {
    for resv in resvs {
        assert!(!resv.0.is_locked() && resv.0.try_lock().is_some());
    }
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Three operations lock three reservations, each in an order that can deadlock with the others', and threads without a
/// ticket lock one: everybody gets all, alone.
#[test]
fn operations_in_any_order_get_all_their_locks() {
    check(750, || {
        let resvs = Held::three();
        let mut threads: Vec<_> = (0..3)
            .map(|first| {
                let resvs = resvs.clone();
                thread::spawn(move || {
                    let order = [0, 1, 2].map(|n| &resvs[(first + n) % 3].0);
                    let exec = Exec::lock_all(order, Duplicates::Refuse, &Interrupt::none()).unwrap();
                    assert_eq!(exec.len(), 3);
                    resvs.iter().for_each(Held::use_alone);
                })
            })
            .collect();
        for place in [0, 2] {
            let resv = resvs[place].clone();
            threads.push(thread::spawn(move || {
                let _guard = resv.0.lock();
                resv.use_alone();
            }));
        }
        join(threads);
        assert_free(&resvs);
    });
}

/// An operation that grows step by step meets others: it lets go of a victim early and tries a lock, and if it has to start
/// over it needs something else, and not what it was made to wait for. It comes through in the end, with what it asked for
/// the last time.
#[test]
fn operations_that_change_their_minds_come_through() {
    check(750, || {
        let resvs = Held::three();
        let growing = thread::spawn({
            let resvs = resvs.clone();
            move || {
                let [a, b, c] = &resvs;
                let mut tries = 0;
                let (exec, needed) = Exec::run(Duplicates::Refuse, &Interrupt::none(), |exec| {
                    tries += 1;
                    if tries > 1 {
                        exec.lock_owned(c.0.clone())?;
                        return Ok::<_, ExecError>([false, false, true]);
                    }
                    exec.lock(&a.0)?;
                    exec.lock(&b.0)?;
                    exec.unlock(&a.0);
                    Ok([false, true, exec.try_lock(&c.0)])
                })
                .unwrap();
                for (resv, needed) in resvs.iter().zip(needed) {
                    assert_eq!(exec.is_locked(&resv.0), needed);
                    if needed {
                        resv.use_alone();
                    }
                }
                assert_eq!(exec.len(), needed.iter().filter(|needed| **needed).count());
            }
        });
        let others = [[1, 0, 2], [2, 1, 0]].map(|order| {
            let resvs = resvs.clone();
            thread::spawn(move || {
                let order = order.map(|place| &resvs[place].0);
                let exec = Exec::lock_all(order, Duplicates::Allow, &Interrupt::none()).unwrap();
                resvs.iter().for_each(Held::use_alone);
                drop(exec);
            })
        });
        join(others.into_iter().chain([growing]));
        assert_free(&resvs);
    });
}

/// Waits for locks are interrupted at any time, that of a thread that is just handed the lock among them: who is interrupted
/// holds nothing, and nobody else waits for ever.
#[test]
fn interrupted_waits_pass_the_lock_on() {
    check(750, || {
        let resvs = Held::three();
        let interrupt = Interrupt::new();
        let mut threads: Vec<_> = [[0, 1], [1, 0]]
            .map(|order| {
                let (resvs, interrupt) = (resvs.clone(), interrupt.clone());
                thread::spawn(move || {
                    match Exec::lock_all(order.map(|place| &resvs[place].0), Duplicates::Refuse, &interrupt) {
                        Ok(_) => order.map(|place| resvs[place].use_alone()).into_iter().collect(),
                        Err(error) => assert_eq!(error, ExecError::Interrupted),
                    }
                })
            })
            .into();
        for interruptible in [true, false] {
            let (resv, interrupt) = (resvs[0].clone(), interrupt.clone());
            threads.push(thread::spawn(move || {
                let interrupt = if interruptible { interrupt } else { Interrupt::none() };
                match resv.0.lock_interruptible(&interrupt) {
                    Ok(_guard) => resv.use_alone(),
                    Err(error) => assert!(interruptible && error == ResvError::Interrupted),
                }
            }));
        }
        threads.push(thread::spawn(move || interrupt.raise()));
        join(threads);
        assert_free(&resvs);
    });
}

/// One thread takes the lock again and again while others wait for it and readers come and go in its word: a waiter that
/// came too late is handed the lock, with the pins that are in it left alone.
#[test]
fn a_lock_is_handed_over_past_readers() {
    check(750, || {
        let resv = Held::default();
        let busy = thread::spawn({
            let resv = resv.clone();
            move || {
                for _ in 0..4 {
                    let _guard = resv.0.lock();
                    resv.use_alone();
                }
            }
        });
        let waiters = [false, true].map(|with_ticket| {
            let resv = resv.clone();
            thread::spawn(move || {
                if with_ticket {
                    let exec = Exec::lock_all([&resv.0], Duplicates::Refuse, &Interrupt::none()).unwrap();
                    resv.use_alone();
                    drop(exec);
                } else {
                    let _guard = resv.0.lock();
                    resv.use_alone();
                }
            })
        });
        let reader = thread::spawn({
            let resv = resv.clone();
            move || {
                let held = resv.0.snapshot(Usage::Bookkeep);
                assert!(resv.0.is_idle(Usage::Bookkeep) && held.is_empty());
            }
        });
        join(waiters.into_iter().chain([busy, reader]));
        assert_free(&[resv]);
    });
}
