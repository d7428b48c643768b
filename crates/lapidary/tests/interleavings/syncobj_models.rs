//! Syncobjs: replacing, adding points, waiting, listening.

use shuttle::thread;

use crate::{
    Counter, Names, check,
    fence::{Deadline, Fence, Interrupt, Signaller},
    syncobj::{self, Syncobj, SyncobjError, WaitFlags},
};

const FOR_SUBMIT: WaitFlags = WaitFlags { all: false, for_submit: true, available: false, deadline: None };

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// One waits for a fence to come and to signal, while others put one in place, put another in its place and take it away:
/// the wait ends when a fence that was there has signalled.
#[test]
fn a_fence_is_replaced_while_it_is_waited_for() {
    check(600, || {
        let names = Names::new();
        let timeline = names.timeline();
        let ((one, signal_one), (two, signal_two)) = (timeline.next(), timeline.next());
        drop(timeline);
        let syncobj = Syncobj::new(false);
        let waiter = thread::spawn({
            let (syncobj, one, two) = (syncobj.clone(), one.clone(), two.clone());
            move || {
                syncobj::wait(&[(syncobj, 0)], FOR_SUBMIT, Deadline::never(), &Interrupt::none()).unwrap();
                assert!(one.is_signalled() || two.is_signalled());
            }
        });
        let replacer = thread::spawn({
            let syncobj = syncobj.clone();
            move || syncobj.replace_fence(Some(two))
        });
        syncobj.replace_fence(Some(one));
        let signalling = thread::spawn(move || {
            signal_two.signal();
            signal_one.signal();
        });
        join([replacer, signalling, waiter]);
        syncobj.reset();
        names.assert_all_freed();
    });
}

/// One waits for two points before they are submitted, one for the later point to be available, and one asks how far the
/// timeline is, while they are added and signal out of order.
#[test]
fn points_are_added_while_they_are_waited_for() {
    check(600, || {
        let names = Names::new();
        let timeline = names.timeline();
        let (fences, signallers): (Vec<_>, Vec<_>) = (0..2).map(|_| timeline.next()).unzip();
        drop(timeline);
        let syncobj = Syncobj::new(false);
        let all = thread::spawn({
            let (syncobj, fences) = (syncobj.clone(), fences.clone());
            move || {
                let points = [(syncobj.clone(), 2), (syncobj, 1)];
                let flags = WaitFlags { all: true, ..FOR_SUBMIT };
                assert_eq!(syncobj::wait(&points, flags, Deadline::never(), &Interrupt::none()), Ok(0));
                assert!(fences.iter().all(Fence::is_signalled));
            }
        });
        let available = thread::spawn({
            let syncobj = syncobj.clone();
            move || {
                let flags = WaitFlags { available: true, ..FOR_SUBMIT };
                let points = [(syncobj.clone(), 2)];
                assert_eq!(syncobj::wait(&points, flags, Deadline::never(), &Interrupt::none()), Ok(0));
                assert_eq!(syncobj.query(true), 2);
            }
        });
        let asking = thread::spawn({
            let syncobj = syncobj.clone();
            move || {
                let (reached, submitted) = (syncobj.query(false), syncobj.query(true));
                assert!(reached <= submitted && submitted <= 2 && reached <= syncobj.query(false));
            }
        });
        let signalling = thread::spawn(move || signallers.into_iter().rev().for_each(Signaller::signal));
        for (point, fence) in [1, 2].into_iter().zip(fences) {
            syncobj.add_point(fence, point);
        }
        join([all, available, asking, signalling]);
        assert_eq!(syncobj.query(false), 2);
        drop(syncobj);
        names.assert_all_freed();
    });
}

/// A listener is registered and forgotten, and one whose syncobj goes, while the point is submitted and signals: each is
/// called once or dropped.
#[test]
fn a_listener_is_called_or_forgotten() {
    check(600, || {
        let names = Names::new();
        let (fence, signaller) = names.timeline().next();
        let syncobj = Syncobj::new(false);
        let listeners: Vec<_> = [true, false]
            .map(|available| {
                let (syncobj, fence) = (syncobj.clone(), fence.clone());
                thread::spawn(move || {
                    let called = Counter::default();
                    let listener = {
                        let called = called.clone();
                        move || {
                            assert!(available || fence.is_signalled());
                            called.add();
                        }
                    };
                    let id = syncobj.on_point(1, available, listener);
                    let forgotten = id.is_some_and(|id| syncobj.forget(id));
                    move || assert_eq!(called.get(), usize::from(!forgotten))
                })
            })
            .into();
        let signalling = thread::spawn(move || signaller.signal());
        syncobj.add_point(fence, 1);
        let checks: Vec<_> = listeners.into_iter().map(|listener| listener.join().unwrap()).collect();
        join([signalling]);
        checks.into_iter().for_each(|check| check());
        drop(syncobj);
        names.assert_all_freed();
    });
}

/// Waits for submission are interrupted while points come: who is interrupted leaves no listener.
#[test]
fn a_wait_for_submission_is_interrupted() {
    check(600, || {
        let names = Names::new();
        let (fence, signaller) = names.timeline().next();
        let (syncobj, target, interrupt) = (Syncobj::new(false), Syncobj::new(false), Interrupt::new());
        let waiter = thread::spawn({
            let (syncobj, interrupt) = (syncobj.clone(), interrupt.clone());
            // This point never comes.
            move || {
                let waited = syncobj.wait_fence(2, Deadline::never(), &interrupt);
                assert_eq!(waited.err(), Some(SyncobjError::Interrupted));
            }
        });
        let transferrer = thread::spawn({
            let (syncobj, target, interrupt) = (syncobj.clone(), target.clone(), interrupt.clone());
            move || match target.transfer_when_submitted(3, &syncobj, 1, Deadline::never(), &interrupt) {
                Ok(()) => assert_eq!(target.query(true), 3),
                Err(error) => assert_eq!((error, target.query(true)), (SyncobjError::Interrupted, 0)),
            }
        });
        let raiser = thread::spawn(move || interrupt.raise());
        syncobj.add_point(fence, 1);
        join([waiter, transferrer, raiser]);
        assert!(format!("{syncobj:?}").contains("listeners: 0"));
        drop((syncobj, target, signaller));
        names.assert_all_freed();
    });
}
