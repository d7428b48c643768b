//! The rules for fences: H19, H21, H22 (the fences' part), H23. H24 is in `signalling_sections`.

use std::{
    future::{Future, IntoFuture},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread,
};

use lapidary::{
    fence::{
        self, ArrayMode, Deadline, Fence, FenceContext, FenceError, Interrupt, Seqno, Signaller, Timeline,
        Timestamp, WaitError, WaitQueue,
    },
    resv::{Reservation, Usage},
    syncobj::{self, Syncobj, WaitFlags},
};

fn fence() -> (Fence, Signaller) {
    Fence::new(FenceContext::alloc(), Seqno(1))
}

/// Counts how often the closures it hands out are called.
#[derive(Clone, Default)]
struct Counter(Arc<AtomicUsize>);

impl Counter {
    fn callback(&self) -> impl FnOnce(&Fence) + Send + 'static {
        let count = self.0.clone();
        move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn wait(fence: &Fence) -> Result<(), WaitError> {
    fence.wait(Deadline::never(), &Interrupt::none())
}

#[test]
fn h19_a_fence_signals_once_and_never_goes_back() {
    // Given a fence and a copy of it.
    let (fence, signaller) = fence();
    let copy = fence.clone();
    assert!(!copy.is_signalled() && copy.status().is_none() && copy.timestamp().is_none());
    let before = Timestamp::now();
    // When it fails.
    signaller.fail(FenceError::Fault);
    // Then every handle says so, with the same time, for ever.
    let at = fence.timestamp();
    assert!(at.is_some_and(|at| at >= before));
    for handle in [&fence, &copy, &fence.clone()] {
        assert!(handle.is_signalled());
        assert_eq!(handle.status(), Some(Err(FenceError::Fault)));
        assert_eq!(handle.timestamp(), at);
    }
}

#[test]
fn h19_a_callback_runs_once_in_the_signalling_thread() {
    let (fence, signaller) = fence();
    let (tell, told) = mpsc::channel();
    fence.on_signal(move |_| tell.send(thread::current().id()).unwrap());
    let signalling = thread::spawn(move || {
        signaller.signal();
        thread::current().id()
    });
    assert_eq!(told.recv(), Ok(signalling.join().unwrap()));
    assert!(told.recv().is_err(), "the callback ran twice");
}

#[test]
fn h19_callbacks_run_in_order_with_the_fence_signalled_and_unlocked() {
    let (fence, signaller) = fence();
    let order = Arc::new(Mutex::new(Vec::new()));
    for number in 0..10 {
        let order = order.clone();
        fence.on_signal(move |fence| {
            // The fence can be used in every way from its callbacks.
            assert_eq!(fence.status(), Some(Ok(())));
            let counter = Counter::default();
            fence.on_signal(counter.callback());
            assert_eq!(counter.get(), 1);
            assert!(fence.add_callback(|_| unreachable!()).is_err());
            assert_eq!(fence.wait(Deadline::poll(), &Interrupt::none()), Ok(()));
            order.lock().unwrap().push(number);
        });
    }
    signaller.signal();
    assert_eq!(*order.lock().unwrap(), (0..10).collect::<Vec<_>>());
}

#[test]
fn h19_a_removed_callback_never_runs() {
    let (fence, signaller) = fence();
    let (kept, removed) = (Counter::default(), Counter::default());
    let ids: Vec<_> = (0..6)
        .map(|n| fence.add_callback(if n % 2 == 0 { &kept } else { &removed }.callback()).ok().unwrap())
        .collect();
    for id in ids.iter().skip(1).step_by(2) {
        assert!(fence.remove_callback(*id));
        assert!(!fence.remove_callback(*id));
    }
    signaller.signal();
    assert_eq!((kept.get(), removed.get()), (3, 0));
    assert!(!fence.remove_callback(ids[0]));
}

#[test]
fn h19_a_signalled_fence_gives_the_callback_back() {
    let counter = Counter::default();
    let callback = Fence::signalled().add_callback(counter.callback()).err().unwrap();
    assert_eq!(counter.get(), 0);
    callback(&Fence::signalled());
    assert_eq!(counter.get(), 1);
}

#[test]
fn h19_an_array_of_all_signals_with_the_last_member() {
    for armed in [false, true] {
        let (fences, signallers): (Vec<_>, Vec<_>) = (0..3).map(|_| fence()).unzip();
        let array = Fence::array(fences, ArrayMode::All);
        let counter = Counter::default();
        if armed {
            array.on_signal(counter.callback());
        }
        let mut signallers = signallers.into_iter();
        signallers.next().unwrap().signal();
        signallers.next().unwrap().fail(FenceError::Device);
        assert!(!array.is_signalled());
        signallers.next().unwrap().signal();
        assert_eq!(array.status(), Some(Err(FenceError::Device)));
        assert_eq!(counter.get(), usize::from(armed));
    }
}

#[test]
fn h19_an_array_of_any_signals_with_the_first_member_and_keeps_its_status() {
    for armed in [false, true] {
        let (fences, signallers): (Vec<_>, Vec<_>) = (0..3).map(|_| fence()).unzip();
        let array = Fence::array(fences, ArrayMode::Any);
        let counter = Counter::default();
        if armed {
            array.on_signal(counter.callback());
        }
        let mut signallers = signallers.into_iter();
        let first = signallers.next().unwrap();
        signallers.next().unwrap().signal();
        let at = array.timestamp();
        assert_eq!(array.status(), Some(Ok(())));
        first.fail(FenceError::Device);
        drop(signallers);
        assert_eq!((array.status(), array.timestamp()), (Some(Ok(())), at));
        assert_eq!(counter.get(), usize::from(armed));
    }
}

#[test]
fn h19_whoever_sees_the_fence_signalled_sees_what_was_done_before() {
    for _ in 0..200 {
        let (fence, signaller) = fence();
        let work = Arc::new(AtomicUsize::new(0));
        let done = work.clone();
        let producer = thread::spawn(move || {
            done.store(1, Ordering::Relaxed);
            signaller.signal();
        });
        wait(&fence).unwrap();
        assert_eq!(work.load(Ordering::Relaxed), 1);
        producer.join().unwrap();
    }
}

#[test]
fn h21_a_container_without_callback_may_go_before_its_members_signal() {
    let (member, signaller) = fence();
    let other = fence();
    drop(Fence::array(vec![member.clone(), other.0.clone()], ArrayMode::All));
    drop(Fence::chain(Some(other.0.clone()), member.clone(), 1));
    // Also one that had a callback.
    let array = Fence::array(vec![member.clone(), other.0], ArrayMode::All);
    let counter = Counter::default();
    let id = array.add_callback(counter.callback()).ok().unwrap();
    assert!(array.remove_callback(id));
    drop(array);
    signaller.signal();
    drop(other.1);
    assert_eq!(counter.get(), 0);
}

#[test]
fn h21_a_fence_with_a_callback_cannot_vanish_under_it() {
    let counter = Counter::default();
    let (one, signal_one) = fence();
    let (two, signal_two) = fence();
    // Given containers that only their callbacks know.
    Fence::array(vec![one.clone(), two.clone()], ArrayMode::All).on_signal(counter.callback());
    Fence::array(vec![one.clone(), two.clone()], ArrayMode::Any).on_signal(counter.callback());
    let link = Fence::chain(None, one.clone(), 1);
    Fence::chain(Some(link), two.clone(), 2).on_signal(counter.callback());
    drop((one, two));
    // When the members signal, then each callback runs.
    signal_two.signal();
    assert_eq!(counter.get(), 1);
    signal_one.signal();
    assert_eq!(counter.get(), 3);
}

#[test]
fn h21_a_callback_may_drop_the_last_reference_to_anything() {
    let (fence, signaller) = fence();
    let (inner, inner_signaller) = self::fence();
    let counter = Counter::default();
    inner.on_signal(counter.callback());
    let own = fence.clone();
    let array = Fence::array(vec![fence.clone(), inner.clone()], ArrayMode::All);
    array.on_signal(counter.callback());
    fence.on_signal(move |_| drop((own, inner, array, inner_signaller)));
    drop(fence);
    signaller.signal();
    assert_eq!(counter.get(), 2);
}

#[test]
fn h22_a_fence_outlives_everybody_but_its_producer() {
    let counter = Counter::default();
    let (fence, signaller) = fence();
    fence.on_signal(counter.callback());
    drop(fence);
    assert_eq!(signaller.fence().status(), None);
    signaller.signal();
    assert_eq!(counter.get(), 1);
}

#[test]
fn h23_a_producer_that_dies_signals_with_an_error() {
    // Dropped.
    let (fence, signaller) = fence();
    drop(signaller);
    assert_eq!(fence.status(), Some(Err(FenceError::Cancelled)));
    // Panicked, while somebody waits.
    let (fence, signaller) = self::fence();
    let waiting = fence.clone();
    let waiter = thread::spawn(move || wait(&waiting));
    let producer = thread::spawn(move || {
        let _signaller = signaller;
        std::panic::resume_unwind(Box::new("the producer's own trouble"));
    });
    assert!(producer.join().is_err());
    assert_eq!(waiter.join().unwrap(), Ok(()));
    assert_eq!(fence.status(), Some(Err(FenceError::Cancelled)));
}

/// Whoever waits for a fence, in whatever way, is told when the producer dies.
#[test]
fn h23_no_waiter_of_any_kind_hangs_when_the_producer_dies() {
    let (fence, signaller) = fence();
    let (pending, _pending) = self::fence();
    // Given a fence on a buffer, at a point of a timeline and in containers,
    let resv = Reservation::new();
    let mut guard = resv.lock();
    guard.reserve(1).unwrap();
    guard.add_fence(fence.clone(), Usage::Read);
    drop(guard);
    let syncobj = Syncobj::new(false);
    syncobj.add_point(fence.clone(), 1);
    let all = Fence::array(vec![fence.clone(), Fence::signalled()], ArrayMode::All);
    let any = Fence::array(vec![fence.clone(), pending.clone()], ArrayMode::Any);
    let chain = Fence::chain(Some(fence.clone()), Fence::signalled(), 1);
    // and callbacks, a listener and a task that wait for it,
    let told = Counter::default();
    for fence in [&fence, &all, &any, &chain] {
        fence.on_signal(told.callback());
    }
    let listener = told.callback();
    syncobj.on_point(1, false, move || listener(&Fence::signalled()));
    let mut task = pin!(fence.clone().into_future());
    assert_eq!(task.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending);
    // and threads,
    let (never, none) = (Deadline::never(), &Interrupt::none());
    let fences = [pending.clone(), fence.clone()];
    let points = [(syncobj.clone(), 1)];
    let waits: [&(dyn Fn() -> bool + Sync); 7] = [
        &|| fence.wait(never, none).is_ok(),
        &|| chain.wait(never, none).is_ok(),
        &|| fence::wait_any(&fences, never, none) == Ok(1),
        &|| fence::wait_all(&fences[1..], never, none).is_ok(),
        &|| resv.wait(Usage::Read, never, none).is_ok(),
        &|| resv.merged(Usage::Read).wait(never, none).is_ok(),
        &|| syncobj::wait(&points, WaitFlags::default(), never, none) == Ok(0),
    ];
    thread::scope(|scope| {
        let waiters = waits.map(|wait| scope.spawn(wait));
        // when the producer dies, then all of them go on,
        drop(signaller);
        assert!(waiters.into_iter().all(|waiter| waiter.join().unwrap()));
    });
    assert_eq!(told.get(), 5);
    // and can see why.
    assert_eq!(
        task.as_mut().poll(&mut Context::from_waker(Waker::noop())),
        Poll::Ready(Err(FenceError::Cancelled))
    );
    assert_eq!(all.status(), Some(Err(FenceError::Cancelled)));
}

/// What a panic carries, which panics when it is dropped.
struct Worse;

impl Drop for Worse {
    fn drop(&mut self) {
        std::panic::resume_unwind(Box::new("worse trouble"));
    }
}

/// A panic on top of a panic would end the process: callbacks of a producer that panics may panic too.
#[test]
fn h23_a_producer_that_panics_signals_even_if_its_callbacks_panic() {
    let (fences, signallers): (Vec<_>, Vec<_>) = (0..2).map(|_| fence()).unzip();
    let counter = Counter::default();
    for fence in &fences {
        fence.on_signal(|_| std::panic::resume_unwind(Box::new(Worse)));
        fence.on_signal(|_| std::panic::resume_unwind(Box::new(Worse)));
        fence.on_signal(counter.callback());
    }
    let (only, only_signaller) = fence();
    only.on_signal(|_| std::panic::resume_unwind(Box::new(Worse)));
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let _signallers = (signallers, only_signaller);
        std::panic::resume_unwind(Box::new("the producer's own trouble"));
    }));
    assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"the producer's own trouble"));
    assert!(fences.iter().chain([&only]).all(Fence::is_signalled));
    assert_eq!(counter.get(), 2);
    // And the thread's next signal works as ever.
    let (fence, signaller) = self::fence();
    fence.on_signal(counter.callback());
    signaller.signal();
    assert_eq!(counter.get(), 3);
}

/// As above, where the panic of a callback goes on: what others carry is let go of.
#[test]
fn h23_of_several_panics_the_first_goes_on() {
    let (fence, signaller) = fence();
    let (inner, inner_signaller) = self::fence();
    inner.on_signal(|_| std::panic::resume_unwind(Box::new(Worse)));
    inner.on_signal(|_| std::panic::resume_unwind(Box::new(Worse)));
    fence.on_signal(|_| inner_signaller.signal());
    fence.on_signal(|_| std::panic::resume_unwind(Box::new("trouble")));
    fence.on_signal(|_| std::panic::resume_unwind(Box::new(Worse)));
    let panic = catch_unwind(AssertUnwindSafe(|| signaller.signal())).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"trouble"));
    assert!(inner.is_signalled());
    // And the thread's callbacks run at once, as ever.
    let counter = Counter::default();
    let (fence, signaller) = self::fence();
    fence.on_signal(counter.callback());
    signaller.signal();
    assert_eq!(counter.get(), 1);
}

#[test]
fn h23_a_callback_that_panics_keeps_no_other_from_running() {
    let (fence, signaller) = fence();
    let counter = Counter::default();
    fence.on_signal(counter.callback());
    fence.on_signal(|_| std::panic::resume_unwind(Box::new("trouble")));
    fence.on_signal(counter.callback());
    let panic = catch_unwind(AssertUnwindSafe(|| signaller.signal())).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"trouble"));
    assert_eq!(counter.get(), 2);
    // And the thread's next signal works as ever.
    let (fence, signaller) = self::fence();
    fence.on_signal(counter.callback());
    signaller.signal();
    assert_eq!(counter.get(), 3);
}

#[test]
fn h23_a_wait_ends_by_deadline_or_interrupt() {
    let (fence, _signaller) = fence();
    let none = Interrupt::none();
    assert_eq!(fence.wait(Deadline::poll(), &none), Err(WaitError::TimedOut));
    assert_eq!(fence.wait(Deadline::at_timestamp(Timestamp::from_nanos(0)), &none), Err(WaitError::TimedOut));
    let soon = Deadline::at_timestamp(Timestamp::from_nanos(Timestamp::now().as_nanos() + 1_000_000));
    assert_eq!(fence.wait(soon, &none), Err(WaitError::TimedOut));
    // Raised before.
    let interrupt = Interrupt::new();
    interrupt.raise();
    assert_eq!(fence.wait(Deadline::never(), &interrupt), Err(WaitError::Interrupted));
    assert_eq!(Fence::signalled().wait(Deadline::never(), &interrupt), Ok(()));
    interrupt.clear();
    // Raised while waiting, for everyone who uses it.
    let waiters: Vec<_> = (0..4)
        .map(|_| {
            let (fence, interrupt) = (fence.clone(), interrupt.clone());
            thread::spawn(move || fence.wait(Deadline::never(), &interrupt))
        })
        .collect();
    interrupt.raise();
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), Err(WaitError::Interrupted));
    }
}

#[test]
fn h23_waiting_for_any_and_all() {
    let (fences, mut signallers): (Vec<_>, Vec<_>) = (0..4).map(|_| fence()).unzip();
    let poll = Deadline::poll();
    let none = Interrupt::none();
    assert_eq!(fence::wait_any(&fences, poll, &none), Err(WaitError::TimedOut));
    signallers.remove(2).signal();
    assert_eq!(fence::wait_any(&fences, poll, &none), Ok(2));
    assert_eq!(fence::wait_all(&fences, poll, &none), Err(WaitError::TimedOut));
    let waiting = fences.clone();
    let all = thread::spawn(move || fence::wait_all(&waiting, Deadline::never(), &Interrupt::none()));
    drop(signallers);
    assert_eq!(all.join().unwrap(), Ok(()));
    assert_eq!(fence::wait_any(&fences, Deadline::never(), &none), Ok(0));
    assert_eq!(fence::wait_all(&[], poll, &none), Ok(()));
    assert_eq!(fence::wait_any(&[], poll, &none), Err(WaitError::TimedOut));
}

#[test]
fn h23_a_wait_queue_wakes_whoever_waits() {
    let queue = Arc::new(WaitQueue::new());
    let value = Arc::new(AtomicUsize::new(0));
    let waiter = thread::spawn({
        let (queue, value) = (queue.clone(), value.clone());
        let get = move || Some(value.load(Ordering::SeqCst)).filter(|value| *value >= 3);
        move || queue.wait(Deadline::never(), &Interrupt::none(), get)
    });
    for _ in 0..3 {
        value.fetch_add(1, Ordering::SeqCst);
        queue.wake_all();
    }
    assert_eq!(waiter.join().unwrap(), Ok(3));
    assert_eq!(queue.wait(Deadline::poll(), &Interrupt::none(), || None::<()>), Err(WaitError::TimedOut));
}

#[test]
fn merging_keeps_the_latest_of_each_context_and_errors() {
    let timeline = Timeline::new("ring");
    let (early, early_signaller) = timeline.next();
    let (late, late_signaller) = timeline.next();
    let (other, other_signaller) = fence();
    assert!(late.is_later_than(&early) && !early.is_later_than(&late) && !late.is_later_than(&other));
    // One fence stays as it is.
    assert!(fence::merge([late.clone(), early.clone(), Fence::signalled()]).ptr_eq(&late));
    // Containers are taken apart.
    let chain = Fence::chain(Some(Fence::chain(None, early.clone(), 1)), other.clone(), 2);
    let merged = fence::merge([chain, Fence::array(vec![late.clone(), early], ArrayMode::All)]);
    assert_eq!(merged.members().map(<[Fence]>::len), Some(2));
    other_signaller.fail(FenceError::NoMemory);
    early_signaller.signal();
    late_signaller.signal();
    assert_eq!(merged.status(), Some(Err(FenceError::NoMemory)));
    // What has signalled already: the error stays, and the time of the last.
    assert_eq!(fence::merge([late.clone(), other]).status(), Some(Err(FenceError::NoMemory)));
    assert_eq!(fence::merge([late.clone()]).timestamp(), late.timestamp());
    assert!(fence::merge([]).is_signalled());
}

#[test]
fn a_deadline_hint_reaches_every_producer_below() {
    let (one, signal_one) = fence();
    let (two, signal_two) = fence();
    let hints = Arc::new(Mutex::new(Vec::new()));
    for (name, signaller) in [("one", &signal_one), ("two", &signal_two)] {
        let hints = hints.clone();
        signaller.on_deadline(move |time| hints.lock().unwrap().push((name, time.as_nanos())));
    }
    let chain = Fence::chain(Some(Fence::chain(None, one, 1)), two.clone(), 2);
    Fence::array(vec![chain], ArrayMode::Any).set_deadline(Timestamp::from_nanos(50));
    two.set_deadline(Timestamp::from_nanos(60));
    two.set_deadline(Timestamp::from_nanos(40));
    let mut hints = hints.lock().unwrap().clone();
    hints.sort();
    assert_eq!(hints, [("one", 50), ("two", 40), ("two", 50)]);
}

#[test]
fn a_fence_can_be_awaited() {
    struct Woken(AtomicUsize);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let woken = Arc::new(Woken(AtomicUsize::new(0)));
    let waker = Waker::from(woken.clone());
    let mut context = Context::from_waker(&waker);
    let (fence, signaller) = fence();
    let mut future = pin!(async { fence.clone().await });
    assert_eq!(future.as_mut().poll(&mut context), Poll::Pending);
    assert_eq!(future.as_mut().poll(&mut context), Poll::Pending);
    signaller.fail(FenceError::TimedOut);
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    assert_eq!(future.as_mut().poll(&mut context), Poll::Ready(Err(FenceError::TimedOut)));
}

#[test]
fn h19_wakers_are_dropped_without_locks() {
    /// A task whose end signals the fence it waits for.
    struct Task(Mutex<Option<Signaller>>);
    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }
    impl Drop for Task {
        fn drop(&mut self) {
            drop(self.0.lock().unwrap().take());
        }
    }
    let (fence, signaller) = fence();
    let mut future = pin!(async { fence.clone().await });
    let task = Waker::from(Arc::new(Task(Mutex::new(Some(signaller)))));
    assert_eq!(future.as_mut().poll(&mut Context::from_waker(&task)), Poll::Pending);
    // The future moves to another task, and with it goes the first.
    drop(task);
    let other = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert_eq!(other, Poll::Ready(Err(FenceError::Cancelled)));
}

/// Producers, waiters of all kinds and people who change their minds, all at once: everybody returns.
#[test]
fn h19_h23_many_threads_agree_on_what_has_signalled() {
    const ROUNDS: usize = 300;
    for round in 0..ROUNDS {
        let (fences, signallers): (Vec<_>, Vec<_>) = (0..8).map(|_| fence()).unzip();
        let mut head = None;
        for (point, fence) in fences.iter().enumerate() {
            head = Some(Fence::chain(head, fence.clone(), point as u64 + 1));
        }
        let head = head.unwrap();
        let all = Fence::array(fences.clone(), ArrayMode::All);
        let any = Fence::array(vec![all.clone(), head.clone(), fences[round % 8].clone()], ArrayMode::Any);
        let counter = Counter::default();
        thread::scope(|scope| {
            for container in [&head, &all, &any] {
                let counter = counter.clone();
                scope.spawn(move || {
                    for _ in 0..10 {
                        if let Ok(id) = container.add_callback(|_| ()) {
                            container.remove_callback(id);
                        }
                    }
                    container.on_signal(counter.callback());
                    wait(container).unwrap();
                    assert!(container.is_signalled() && container.status() == Some(Ok(())));
                });
            }
            scope.spawn(|| {
                while !head.is_signalled() {
                    // What is unwrapped of a chain that is not done is not empty.
                    let _ = fence::unwrap(&head).count();
                    let _ = head.chain_point(4).map(|point| point.is_signalled());
                }
                assert!(fences.iter().all(Fence::is_signalled));
            });
            let mut parts: [Vec<Signaller>; 2] = Default::default();
            for (place, signaller) in signallers.into_iter().enumerate() {
                parts[(place + round) % 2].push(signaller);
            }
            for mut part in parts {
                scope.spawn(move || {
                    if round % 3 == 0 {
                        part.reverse();
                    }
                    part.into_iter().for_each(Signaller::signal);
                });
            }
        });
        assert_eq!(counter.get(), 3, "in round {round}");
    }
}
