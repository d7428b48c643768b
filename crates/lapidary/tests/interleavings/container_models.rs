//! Arrays and chains: arming, signalling, forgetting.

use shuttle::thread;

use crate::{
    Counter, Names, check,
    fence::{self, ArrayMode, Deadline, Fence, FenceError, Interrupt, Signaller, Timeline},
};

/// Fences of a timeline of the model's.
fn fences(names: &Names, count: usize) -> (Vec<Fence>, Vec<Signaller>) {
    let timeline = names.timeline();
    (0..count).map(|_| timeline.next()).unzip()
}

/// One thread each signals.
fn signal_all(signallers: impl IntoIterator<Item = Signaller>) -> Vec<thread::JoinHandle<()>> {
    signallers.into_iter().map(|signaller| thread::spawn(move || signaller.signal())).collect()
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Arrays of both kinds are armed, looked at and disarmed while their members signal in two threads: each callback runs
/// once, not before its array has signalled, and an array says once and for all how it ended.
#[test]
fn an_array_is_armed_while_its_members_signal() {
    for mode in [ArrayMode::All, ArrayMode::Any] {
        check(600, move || {
            let names = Names::new();
            let (fences, mut signallers) = fences(&names, 2);
            let array = Fence::array(fences, mode);
            let failing = signallers.pop().unwrap();
            let mut threads = signal_all(signallers);
            threads.push(thread::spawn(move || failing.fail(FenceError::Fault)));
            let counter = Counter::default();
            let removed = array.add_callback(|_| ()).is_ok_and(|id| array.remove_callback(id));
            array.on_signal({
                let counter = counter.clone();
                move |array| {
                    assert!(array.is_signalled());
                    counter.add();
                }
            });
            let first = array.status();
            assert!(first.is_none() || !removed || first == array.status());
            join(threads);
            assert_eq!(counter.get(), 1);
            let status = array.status();
            assert!(first.is_none() || first == status);
            match mode {
                ArrayMode::All => assert_eq!(status, Some(Err(FenceError::Fault))),
                ArrayMode::Any => assert!(status.is_some()),
            }
            drop(array);
            names.assert_all_freed();
        });
    }
}

/// Containers that only their callbacks know, in one another, while the members signal and somebody takes a callback back:
/// each callback runs once, and then everything is gone.
#[test]
fn nested_containers_live_for_their_callbacks() {
    check(600, || {
        let names = Names::new();
        let (fences, signallers) = fences(&names, 3);
        let counter = Counter::default();
        let chain = Fence::chain(Some(Fence::chain(None, fences[0].clone(), 1)), fences[1].clone(), 2);
        let any = Fence::array(vec![chain.clone(), fences[2].clone()], ArrayMode::Any);
        let all = Fence::array(vec![any.clone(), chain], ArrayMode::All);
        drop(fences);
        let threads = signal_all(signallers);
        all.on_signal(counter.callback());
        let taken_back = Counter::default();
        let id = any.add_callback(taken_back.callback()).ok();
        let removed = id.is_some_and(|id| any.remove_callback(id));
        drop((all, any));
        join(threads);
        assert_eq!(counter.get(), 1);
        assert_eq!(taken_back.get(), usize::from(id.is_some() && !removed));
        names.assert_all_freed();
    });
}

/// An array that waits for any of its members is dropped, or armed and dropped, while they signal: whatever it has left with
/// them goes.
#[test]
fn an_unwanted_container_withdraws_while_members_signal() {
    check(600, || {
        let names = Names::new();
        let (fences, signallers) = fences(&names, 2);
        let array = Fence::array(fences.clone(), ArrayMode::Any);
        let link = Fence::chain(Some(Fence::chain(None, fences[0].clone(), 1)), fences[1].clone(), 2);
        let threads = signal_all(signallers);
        for container in [array, link] {
            if let Ok(id) = container.add_callback(|_| ()) {
                container.remove_callback(id);
            }
        }
        join(threads);
        drop(fences);
        names.assert_all_freed();
    });
}

/// A chain of these fences, points from 1.
fn chain(fences: &[Fence]) -> Fence {
    let link =
        |prev, (place, fence): (usize, &Fence)| Some(Fence::chain(prev, fence.clone(), place as u64 + 1));
    fences.iter().enumerate().fold(None, link).expect("there are fences")
}

/// Two threads walk a chain while its fences signal in two others, out of order: each walk finds the links in order, none
/// that is not there any more, and of those whose own fence is pending, none is missing.
#[test]
fn a_walk_finds_every_pending_link() {
    check(600, || {
        let names = Names::new();
        let (fences, signallers) = fences(&names, 4);
        let head = chain(&fences);
        let walk = |head: &Fence, fences: &[Fence]| {
            let links = head.chain_links();
            let seen: Vec<_> = links.iter().map(|link| link.seqno().get()).collect();
            assert!(seen.is_sorted_by(|later, earlier| later > earlier), "{seen:?}");
            for (place, fence) in fences.iter().enumerate() {
                assert!(
                    fence.is_signalled() || seen.contains(&(place as u64 + 1)),
                    "{seen:?} without {place}"
                );
            }
        };
        let walkers: Vec<_> = (0..2)
            .map(|_| {
                let (head, fences) = (head.clone(), fences.clone());
                thread::spawn(move || (0..2).for_each(|_| walk(&head, &fences)))
            })
            .collect();
        let mut signallers = signallers.into_iter();
        let (one, two) = (signallers.next().unwrap(), signallers.next().unwrap());
        let later = thread::spawn(move || signallers.for_each(Signaller::signal));
        let earlier = thread::spawn(move || {
            two.signal();
            one.signal();
        });
        join(walkers.into_iter().chain([later, earlier]));
        assert!(head.is_signalled());
        drop((head, fences));
        names.assert_all_freed();
    });
}

/// Points are looked up, waited for and unwrapped while the chain is forgotten from its end: what stands for a point signals
/// when that point and all before have, and not earlier.
#[test]
fn a_point_signals_with_all_before_it() {
    check(600, || {
        let names = Names::new();
        let (fences, signallers) = fences(&names, 3);
        let head = chain(&fences);
        let lookers: Vec<_> = [1, 2]
            .map(|point| {
                let (head, fences) = (head.clone(), fences.clone());
                thread::spawn(move || {
                    let found = head.chain_point(point).unwrap();
                    assert!(found.seqno().get() <= point);
                    let before = &fences[..point as usize];
                    assert!(!found.is_signalled() || before.iter().all(Fence::is_signalled));
                    let pending = fence::unwrap(&found).count();
                    assert!(pending >= 1);
                    found.wait(Deadline::never(), &Interrupt::none()).unwrap();
                    assert!(before.iter().all(Fence::is_signalled));
                })
            })
            .into();
        let forgetter = thread::spawn({
            let head = head.clone();
            move || {
                let mut link = Some(head);
                while let Some(current) = link {
                    link = current.chain_prev();
                }
            }
        });
        let signalling = thread::spawn(move || signallers.into_iter().for_each(Signaller::signal));
        join(lookers.into_iter().chain([forgetter, signalling]));
        drop((head, fences));
        names.assert_all_freed();
    });
}

/// Links of a chain that only their callbacks know signal in order, however their fences do, while a timeline goes on to grow
/// from the same head.
#[test]
fn links_signal_in_order() {
    check(600, || {
        let names = Names::new();
        let (fences, signallers) = fences(&names, 3);
        let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let note = |point: u64| {
            let order = order.clone();
            move |link: &Fence| {
                assert!(link.is_signalled());
                order.lock().unwrap().push(point);
            }
        };
        let threads = signal_all(signallers);
        let first = Fence::chain(None, fences[0].clone(), 1);
        first.on_signal(note(1));
        let second = Fence::chain(Some(first), fences[1].clone(), 2);
        second.on_signal(note(2));
        let third = Fence::chain(Some(second.clone()), fences[2].clone(), 3);
        // One that grows out of order from the same link.
        let other = Fence::chain(Some(second), Fence::signalled(), 1);
        third.on_signal(note(3));
        other.on_signal(note(4));
        drop((fences, third, other));
        join(threads);
        let mut order = std::mem::take(&mut *order.lock().unwrap());
        assert_eq!(order.len(), 4);
        order.sort_unstable();
        assert_eq!(order, [1, 2, 3, 4]);
        names.assert_all_freed();
    });
}

/// The last reference of a chain goes in a callback of one of its own fences, while another thread walks it from a link it
/// has.
#[test]
fn a_chain_goes_in_a_callback_of_its_own() {
    check(600, || {
        let names = Names::new();
        let (fences, signallers) = fences(&names, 3);
        let middle = chain(&fences[..2]);
        let head = Fence::chain(Some(middle.clone()), fences[2].clone(), 3);
        fences[1].on_signal(move |_| drop(head));
        let threads = signal_all(signallers);
        let walker = thread::spawn(move || {
            while middle.chain_links().iter().nth(1).is_some() {
                thread::yield_now();
            }
        });
        join(threads.into_iter().chain([walker]));
        drop(fences);
        names.assert_all_freed();
    });
}

/// Hints go down a chain and an array while they are armed and signal: none is later than the one before, and the hook goes
/// with the fence.
#[test]
fn hints_pass_containers_that_signal() {
    check(600, || {
        let names = Names::new();
        let timeline: Timeline = names.timeline();
        let (fence, signaller) = timeline.next();
        drop(timeline);
        let hints = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        signaller.on_deadline({
            let hints = hints.clone();
            move |time| hints.lock().unwrap().push(time.as_nanos())
        });
        let link = Fence::chain(Some(Fence::chain(None, fence.clone(), 1)), Fence::signalled(), 2);
        let array = Fence::array(vec![link, fence], ArrayMode::All);
        let threads: Vec<_> = [30, 20]
            .map(|time| {
                let array = array.clone();
                thread::spawn(move || array.set_deadline(fence::Timestamp::from_nanos(time)))
            })
            .into();
        let counter = Counter::default();
        array.on_signal(counter.callback());
        signaller.signal();
        join(threads);
        drop(array);
        assert_eq!(counter.get(), 1);
        // The hook of a fence that has signalled is gone.
        let hints = std::sync::Arc::into_inner(hints).unwrap().into_inner().unwrap();
        assert!([&[][..], &[30], &[20], &[30, 20], &[20, 30]].contains(&&hints[..]), "{hints:?}");
        names.assert_all_freed();
    });
}
