//! One fence: signalling, callbacks, waiting.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Wake, Waker},
};

use shuttle::thread;

use crate::{
    Counter, Names, check,
    fence::{self, Deadline, Fence, FenceError, Interrupt, WaitError, WaitQueue},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Two threads add callbacks and take some back, before, while and after a third signals: each callback runs once, unless it
/// was taken back or handed back; one that was taken back had not begun.
#[test]
fn a_callback_runs_once_or_is_taken_back() {
    check(900, || {
        let names = Names::new();
        let (fence, signaller) = names.timeline().next();
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let fence = fence.clone();
                thread::spawn(move || {
                    let (taken_back, kept) = (Counter::default(), Counter::default());
                    let first = fence.add_callback(taken_back.callback()).ok();
                    let second = fence.add_callback(kept.callback()).ok();
                    let removed = first.is_some_and(|id| fence.remove_callback(id));
                    assert!(!removed || taken_back.get() == 0);
                    // Once it has signalled and everybody is done, what was not taken back has run.
                    move || {
                        assert_eq!(taken_back.get(), usize::from(first.is_some() && !removed));
                        assert_eq!(kept.get(), usize::from(second.is_some()));
                    }
                })
            })
            .collect();
        let signalling = thread::spawn(move || signaller.signal());
        let checks: Vec<_> = callers.into_iter().map(|caller| caller.join().unwrap()).collect();
        signalling.join().unwrap();
        checks.into_iter().for_each(|check| check());
        assert_eq!(fence.status(), Some(Ok(())));
        drop(fence);
        names.assert_all_freed();
    });
}

/// A producer writes and signals; one thread waits, one polls, and one adds a callback: whoever finds the fence signalled
/// finds what was written, and none sleeps through the signal.
#[test]
fn nobody_sleeps_through_a_signal() {
    check(900, || {
        let (fence, signaller) = crate::fence();
        let work = Arc::new(AtomicUsize::new(0));
        let producer = thread::spawn({
            let work = work.clone();
            move || {
                work.store(1, Ordering::Relaxed);
                signaller.fail(FenceError::Device);
            }
        });
        let waiter = thread::spawn({
            let (fence, work) = (fence.clone(), work.clone());
            move || {
                fence.wait(Deadline::never(), &Interrupt::none()).unwrap();
                assert_eq!(
                    (fence.status(), work.load(Ordering::Relaxed)),
                    (Some(Err(FenceError::Device)), 1)
                );
            }
        });
        let counter = Counter::default();
        fence.on_signal(counter.callback());
        if fence.is_signalled() {
            assert_eq!(work.load(Ordering::Relaxed), 1);
            assert!(fence.timestamp().is_some_and(|at| at.as_nanos() != 0));
        }
        waiter.join().unwrap();
        producer.join().unwrap();
        assert_eq!(counter.get(), 1);
    });
}

/// Threads wait for any and for all of two fences that two others signal, while a third raises the interrupt of the waits:
/// each wait ends, by its fences or by the interrupt, and leaves no callback and no place in the interrupt's list.
#[test]
fn waits_end_by_signal_or_interrupt() {
    check(600, || {
        let names = Names::new();
        let (timeline, interrupt) = (names.timeline(), Interrupt::new());
        let (fences, signallers): (Vec<_>, Vec<_>) = [timeline.next(), timeline.next()].into_iter().unzip();
        drop(timeline);
        let any = thread::spawn({
            let (fences, interrupt) = (fences.clone(), interrupt.clone());
            move || match fence::wait_any(&fences, Deadline::never(), &interrupt) {
                Ok(first) => assert!(fences[first].is_signalled()),
                Err(error) => assert_eq!(error, WaitError::Interrupted),
            }
        });
        let all = thread::spawn({
            let (fences, interrupt) = (fences.clone(), interrupt.clone());
            move || match fence::wait_all(&fences, Deadline::never(), &interrupt) {
                Ok(()) => assert!(fences.iter().all(Fence::is_signalled)),
                Err(error) => assert_eq!(error, WaitError::Interrupted),
            }
        });
        let raiser = thread::spawn(move || interrupt.raise());
        // One fence may never be signalled: the interrupt is then what ends the wait for all.
        let mut signallers = signallers.into_iter();
        let first = signallers.next().unwrap();
        let signalling = thread::spawn(move || first.signal());
        for thread in [any, all, raiser, signalling] {
            thread.join().unwrap();
        }
        drop(signallers);
        drop(fences);
        names.assert_all_freed();
    });
}

/// The interrupt is raised and cleared while a thread waits, and the fence signals later: the wait ends either way.
#[test]
fn a_cleared_interrupt_loses_no_signal() {
    check(600, || {
        let (fence, signaller) = crate::fence();
        let interrupt = Interrupt::new();
        let waiter = thread::spawn({
            let interrupt = interrupt.clone();
            move || match fence.wait(Deadline::never(), &interrupt) {
                Ok(()) => assert!(fence.is_signalled()),
                Err(error) => assert_eq!(error, WaitError::Interrupted),
            }
        });
        interrupt.raise();
        interrupt.clear();
        drop(signaller);
        waiter.join().unwrap();
    });
}

/// Two threads wait in a queue for a count that two others raise.
#[test]
fn a_wait_queue_loses_no_wake_up() {
    check(600, || {
        let queue = Arc::new((WaitQueue::new(), AtomicUsize::new(0)));
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let queue = queue.clone();
                thread::spawn(move || {
                    let counted = || (queue.1.load(Ordering::SeqCst) == 2).then_some(());
                    queue.0.wait(Deadline::never(), &Interrupt::none(), counted).unwrap();
                })
            })
            .collect();
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let queue = queue.clone();
                thread::spawn(move || {
                    queue.1.fetch_add(1, Ordering::SeqCst);
                    queue.0.wake_all();
                })
            })
            .collect();
        waiters.into_iter().chain(wakers).for_each(|thread| thread.join().unwrap());
    });
}

/// A task polls a future, moves to another waker and is dropped or goes on, while the fence signals: the last waker is
/// woken unless the future was ready.
#[test]
fn a_future_is_woken_where_it_was_polled_last() {
    #[derive(Default)]
    struct Woken(Counter);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.add();
        }
    }
    check(900, || {
        let names = Names::new();
        let (fence, signaller) = names.timeline().next();
        let signalling = thread::spawn(move || signaller.signal());
        let mut future = Box::pin(std::future::IntoFuture::into_future(fence));
        let woken = [Arc::<Woken>::default(), Arc::default()];
        let mut poll = |woken: &Arc<Woken>| {
            let waker = Waker::from(woken.clone());
            Pin::new(&mut future).poll(&mut Context::from_waker(&waker))
        };
        let ready = woken.iter().any(|woken| poll(woken).is_ready());
        signalling.join().unwrap();
        assert!(ready || woken[1].0.get() == 1);
        assert_eq!(poll(&woken[0]), Poll::Ready(Ok(())));
        drop(future);
        names.assert_all_freed();
    });
}

/// The last references of a fence go in its own callback, in the waiter and in another fence's callback, in every order.
#[test]
fn the_last_reference_goes_anywhere() {
    check(900, || {
        let names = Names::new();
        let timeline = names.timeline();
        let ((one, signal_one), (two, signal_two)) = (timeline.next(), timeline.next());
        drop(timeline);
        let counter = Counter::default();
        one.on_signal({
            let (counter, two) = (counter.clone(), two.clone());
            move |_| {
                counter.add();
                // The second signals in here, and its callbacks run behind this one.
                signal_two.signal();
                drop(two);
            }
        });
        two.on_signal({
            let (counter, one) = (counter.clone(), one.clone());
            move |_| {
                counter.add();
                drop(one);
            }
        });
        let waiter = thread::spawn(move || {
            two.wait(Deadline::never(), &Interrupt::none()).unwrap();
            drop(two);
        });
        let dropper = thread::spawn(move || drop(one));
        signal_one.signal();
        waiter.join().unwrap();
        dropper.join().unwrap();
        assert_eq!(counter.get(), 2);
        names.assert_all_freed();
    });
}
