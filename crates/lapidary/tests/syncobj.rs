//! What programs may rely on in syncobjs: the behaviour of the kernel's, rule by rule, and against a naive model.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use lapidary::{
    fence::{Deadline, Fence, FenceContext, Interrupt, Seqno, Signaller, Timestamp},
    syncobj::{self, Syncobj, SyncobjError, WaitFlags},
};
use proptest::prelude::*;

const SIGNALLED: WaitFlags = WaitFlags { all: false, for_submit: false, available: false, deadline: None };
const ALL: WaitFlags = WaitFlags { all: true, ..SIGNALLED };
const FOR_SUBMIT: WaitFlags = WaitFlags { for_submit: true, ..SIGNALLED };
const AVAILABLE: WaitFlags = WaitFlags { available: true, ..SIGNALLED };

fn fence() -> (Fence, Signaller) {
    Fence::new(FenceContext::alloc(), Seqno(1))
}

fn poll(syncobj: &Syncobj, point: u64, flags: WaitFlags) -> Result<usize, SyncobjError> {
    syncobj::wait(&[(syncobj.clone(), point)], flags, Deadline::poll(), &Interrupt::none())
}

/// A count, and a listener that adds to it.
fn counter() -> (Arc<AtomicUsize>, impl FnOnce() + Send + 'static) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    (count, move || {
        counted.fetch_add(1, Ordering::SeqCst);
    })
}

#[test]
fn an_empty_syncobj_is_an_error_unless_submission_is_waited_for() {
    let syncobj = Syncobj::new(false);
    assert_eq!(poll(&syncobj, 0, SIGNALLED), Err(SyncobjError::NotSubmitted(0)));
    assert_eq!(poll(&syncobj, 0, FOR_SUBMIT), Err(SyncobjError::TimedOut));
    assert_eq!(poll(&syncobj, 0, AVAILABLE), Err(SyncobjError::TimedOut));
    assert!(syncobj.find_fence(0).is_none());
    assert_eq!(syncobj.query(false), 0);
    // A missing one among others is an error whatever the others are.
    let points = [(Syncobj::new(true), 0), (syncobj, 0)];
    let wait = |flags| syncobj::wait(&points, flags, Deadline::poll(), &Interrupt::none());
    assert_eq!(wait(SIGNALLED), Err(SyncobjError::NotSubmitted(0)));
    assert_eq!(wait(FOR_SUBMIT), Ok(0));
    assert_eq!(wait(WaitFlags { all: true, ..FOR_SUBMIT }), Err(SyncobjError::TimedOut));
}

#[test]
fn a_binary_syncobj_is_submitted_signalled_and_reset() {
    let syncobj = Syncobj::new(false);
    let (fence, signaller) = fence();
    syncobj.replace_fence(Some(fence));
    assert_eq!(poll(&syncobj, 0, SIGNALLED), Err(SyncobjError::TimedOut));
    assert_eq!(poll(&syncobj, 0, AVAILABLE), Ok(0));
    signaller.signal();
    assert_eq!(poll(&syncobj, 0, SIGNALLED), Ok(0));
    syncobj.reset();
    assert_eq!(poll(&syncobj, 0, SIGNALLED), Err(SyncobjError::NotSubmitted(0)));
    syncobj.signal();
    assert_eq!(poll(&syncobj, 0, SIGNALLED), Ok(0));
    assert_eq!(poll(&Syncobj::new(true), 0, SIGNALLED), Ok(0));
    // A binary syncobj has no points.
    assert_eq!(poll(&syncobj, 1, SIGNALLED), Err(SyncobjError::NotSubmitted(1)));
    assert_eq!(syncobj.query(true), 0);
}

#[test]
fn waiting_for_any_names_the_first_in_the_list() {
    let syncobjs: Vec<_> = (0..4).map(|_| (Syncobj::new(false), 0)).collect();
    let (fences, mut signallers): (Vec<_>, Vec<_>) = (0..4).map(|_| fence()).unzip();
    for ((syncobj, _), fence) in syncobjs.iter().zip(fences) {
        syncobj.replace_fence(Some(fence));
    }
    let wait = |flags| syncobj::wait(&syncobjs, flags, Deadline::poll(), &Interrupt::none());
    signallers.pop().unwrap().signal();
    assert_eq!(wait(SIGNALLED), Ok(3));
    signallers.remove(1).signal();
    assert_eq!(wait(SIGNALLED), Ok(1));
    assert_eq!(wait(ALL), Err(SyncobjError::TimedOut));
    drop(signallers);
    assert_eq!(wait(ALL), Ok(0));
}

#[test]
fn points_signal_in_order_however_their_fences_do() {
    let syncobj = Syncobj::new(false);
    let (fences, signallers): (Vec<_>, Vec<_>) = (0..3).map(|_| fence()).unzip();
    for (fence, point) in fences.into_iter().zip([2, 5, 9]) {
        syncobj.add_point(fence, point);
    }
    let [two, five, nine] = <[Signaller; 3]>::try_from(signallers).ok().unwrap();
    assert_eq!((syncobj.query(false), syncobj.query(true)), (0, 9));
    nine.signal();
    assert_eq!(syncobj.query(false), 0);
    assert_eq!(poll(&syncobj, 9, SIGNALLED), Err(SyncobjError::TimedOut));
    two.signal();
    assert_eq!(syncobj.query(false), 2);
    assert_eq!(poll(&syncobj, 1, SIGNALLED), Ok(0));
    assert_eq!(poll(&syncobj, 2, SIGNALLED), Ok(0));
    // A point between two belongs to the later one.
    assert_eq!(poll(&syncobj, 3, SIGNALLED), Err(SyncobjError::TimedOut));
    five.signal();
    assert_eq!(syncobj.query(false), 9);
    assert_eq!(poll(&syncobj, 9, SIGNALLED), Ok(0));
    // A point past the last has not been submitted.
    assert_eq!(poll(&syncobj, 10, SIGNALLED), Err(SyncobjError::NotSubmitted(10)));
    assert_eq!(poll(&syncobj, 10, FOR_SUBMIT), Err(SyncobjError::TimedOut));
}

#[test]
fn a_point_out_of_order_starts_anew_and_waits_for_all_before() {
    let syncobj = Syncobj::new(false);
    let (five, five_signaller) = fence();
    syncobj.add_point(five, 5);
    syncobj.signal_point(3);
    // The number never goes back.
    assert_eq!(syncobj.query(true), 5);
    assert_eq!(syncobj.query(false), 0);
    assert_eq!(poll(&syncobj, 3, SIGNALLED), Err(SyncobjError::TimedOut));
    five_signaller.signal();
    assert_eq!(syncobj.query(false), 5);
    assert_eq!(poll(&syncobj, 3, SIGNALLED), Ok(0));
}

#[test]
fn host_signals_advance_the_timeline() {
    let syncobj = Syncobj::new(false);
    for point in 1..=100 {
        syncobj.signal_point(point);
        assert_eq!((syncobj.query(false), syncobj.query(true)), (point, point));
    }
    syncobj.reset();
    assert_eq!(syncobj.query(false), 0);
    assert_eq!(poll(&syncobj, 1, SIGNALLED), Err(SyncobjError::NotSubmitted(1)));
}

#[test]
fn a_wait_before_submission_goes_on_to_the_signal() {
    let syncobj = Syncobj::new(false);
    let (fence, signaller) = fence();
    let wait = |point, flags| {
        let points = [(syncobj.clone(), point)];
        move || syncobj::wait(&points, flags, Deadline::never(), &Interrupt::none())
    };
    thread::scope(|scope| {
        let signalled = scope.spawn(wait(7, FOR_SUBMIT));
        let available = scope.spawn(wait(7, AVAILABLE));
        syncobj.add_point(fence, 8);
        assert_eq!(available.join().unwrap(), Ok(0));
        signaller.signal();
        assert_eq!(signalled.join().unwrap(), Ok(0));
    });
}

#[test]
fn a_waiter_keeps_the_fence_it_saw() {
    // Given somebody who waits for a submission.
    let syncobj = Syncobj::new(false);
    let (seen, listener) = counter();
    assert!(syncobj.on_point(0, true, listener).is_some());
    let waiting = [(syncobj.clone(), 0)];
    let waiter =
        thread::spawn(move || syncobj::wait(&waiting, FOR_SUBMIT, Deadline::never(), &Interrupt::none()));
    // When something is submitted, and taken away before it has signalled, until the waiter has seen one.
    while !waiter.is_finished() {
        let (fence, signaller) = fence();
        syncobj.replace_fence(Some(fence));
        syncobj.reset();
        signaller.signal();
    }
    // Then the signal of that fence is what counts.
    assert_eq!(waiter.join().unwrap(), Ok(0));
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[test]
fn a_wait_ends_by_deadline_or_interrupt() {
    let syncobj = Syncobj::new(false);
    let points = [(syncobj.clone(), 1)];
    let soon = Deadline::at_timestamp(Timestamp::from_nanos(Timestamp::now().as_nanos() + 1_000_000));
    assert_eq!(syncobj::wait(&points, FOR_SUBMIT, soon, &Interrupt::none()), Err(SyncobjError::TimedOut));
    let interrupt = Interrupt::new();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| syncobj::wait(&points, AVAILABLE, Deadline::never(), &interrupt));
        let finder = scope.spawn(|| syncobj.wait_fence(1, Deadline::never(), &interrupt).map(|_| ()));
        interrupt.raise();
        assert_eq!(waiter.join().unwrap(), Err(SyncobjError::Interrupted));
        assert_eq!(finder.join().unwrap(), Err(SyncobjError::Interrupted));
    });
}

#[test]
fn a_deadline_hint_reaches_the_fences_of_a_wait_when_they_are_there() {
    let (there, later) = (Syncobj::new(false), Syncobj::new(false));
    let hinted = || {
        let (fence, signaller) = fence();
        let hint = Arc::new(AtomicUsize::new(0));
        let seen = hint.clone();
        signaller.on_deadline(move |time| seen.store(time.as_nanos() as usize, Ordering::SeqCst));
        (fence, signaller, hint)
    };
    let flags = |time| WaitFlags { all: true, deadline: Some(Timestamp::from_nanos(time)), ..FOR_SUBMIT };
    let (first, signal_first, first_hint) = hinted();
    let (second, signal_second, second_hint) = hinted();
    there.replace_fence(Some(first));
    // Who only looks leaves its hint.
    assert_eq!(poll(&there, 0, flags(20)), Err(SyncobjError::TimedOut));
    assert_eq!(first_hint.load(Ordering::SeqCst), 20);
    let points = [(there, 0), (later.clone(), 0)];
    thread::scope(|scope| {
        let waiter = scope
            .spawn(|| syncobj::wait(&points, flags(10), Deadline::never(), &Interrupt::none()).map(drop));
        later.replace_fence(Some(second));
        while first_hint.load(Ordering::SeqCst) != 10 || second_hint.load(Ordering::SeqCst) != 10 {
            thread::yield_now();
        }
        signal_first.signal();
        signal_second.signal();
        assert_eq!(waiter.join().unwrap(), Ok(()));
    });
}

#[test]
fn a_transfer_takes_what_the_source_stands_for_now() {
    let (source, binary, timeline) = (Syncobj::new(false), Syncobj::new(false), Syncobj::new(false));
    assert_eq!(binary.transfer(0, &source, 3), Err(SyncobjError::NotSubmitted(3)));
    let (one, signal_one) = fence();
    let (two, signal_two) = fence();
    source.add_point(one, 1);
    source.add_point(two, 2);
    binary.transfer(0, &source, 1).unwrap();
    timeline.transfer(10, &source, 2).unwrap();
    source.reset();
    signal_one.signal();
    assert_eq!(poll(&binary, 0, SIGNALLED), Ok(0));
    assert_eq!(timeline.query(false), 0);
    signal_two.signal();
    assert_eq!(timeline.query(false), 10);
    // Into itself, behind what is there.
    timeline.transfer(11, &timeline, 10).unwrap();
    assert_eq!(timeline.query(false), 11);
    // Waiting for the source.
    let interrupt = Interrupt::none();
    assert_eq!(
        binary.transfer_when_submitted(0, &source, 5, Deadline::poll(), &interrupt),
        Err(SyncobjError::TimedOut)
    );
    thread::scope(|scope| {
        let transfer =
            scope.spawn(|| binary.transfer_when_submitted(0, &source, 5, Deadline::never(), &interrupt));
        source.signal_point(5);
        assert_eq!(transfer.join().unwrap(), Ok(()));
    });
}

#[test]
fn listeners_are_told_once_of_submission_or_signal() {
    let syncobj = Syncobj::new(false);
    let (available, on_available) = counter();
    let (signalled, on_signalled) = counter();
    let (late, on_late) = counter();
    let (forgotten, on_forgotten) = counter();
    syncobj.on_point(2, true, on_available);
    syncobj.on_point(2, false, on_signalled);
    let id = syncobj.on_point(2, false, on_forgotten).unwrap();
    assert!(syncobj.forget(id) && !syncobj.forget(id));
    let counts = || [&available, &signalled, &late, &forgotten].map(|count| count.load(Ordering::SeqCst));
    syncobj.signal_point(1);
    assert_eq!(counts(), [0, 0, 0, 0]);
    let (fence, signaller) = fence();
    syncobj.add_point(fence, 2);
    assert_eq!(counts(), [1, 0, 0, 0]);
    signaller.signal();
    assert_eq!(counts(), [1, 1, 0, 0]);
    // Of what has happened, at once.
    assert!(syncobj.on_point(1, false, on_late).is_none());
    syncobj.signal_point(3);
    assert_eq!(counts(), [1, 1, 1, 0]);
}

#[test]
fn a_listener_whose_syncobj_goes_is_dropped() {
    let syncobj = Syncobj::new(false);
    let (count, listener) = counter();
    let held = Arc::downgrade(&count);
    syncobj.on_point(1, false, listener);
    drop(count);
    assert!(held.upgrade().is_some());
    drop(syncobj);
    assert!(held.upgrade().is_none());
}

#[test]
fn a_long_lived_timeline_stays_short() {
    let syncobj = Syncobj::new(false);
    let mut last: Option<Signaller> = None;
    for point in 1..=100_000 {
        let (fence, signaller) = fence();
        syncobj.add_point(fence, point);
        if let Some(last) = last.replace(signaller) {
            last.signal();
        }
        let head = syncobj.fence().unwrap();
        let links = std::iter::successors(Some(head), Fence::chain_prev).count();
        assert!(links <= 2, "{links} links at point {point}");
    }
}

/// What a timeline is, without anything clever: all links that were ever added.
#[derive(Default)]
struct Model {
    links: Vec<ModelLink>,
}

struct ModelLink {
    context: usize,
    seqno: u64,
    prev_seqno: u64,
    signalled: bool,
}

impl Model {
    fn add(&mut self, point: u64) {
        let link = match self.links.last() {
            Some(prev) if point > prev.seqno => {
                ModelLink { context: prev.context, seqno: point, prev_seqno: prev.seqno, signalled: false }
            }
            prev => ModelLink {
                context: self.links.len(),
                seqno: point.max(prev.map_or(0, |prev| prev.seqno)),
                prev_seqno: 0,
                signalled: false,
            },
        };
        self.links.push(link);
    }

    /// Whether the link at `place` and all before have signalled.
    fn is_done(&self, place: usize) -> bool {
        self.links[..=place].iter().all(|link| link.signalled)
    }

    fn prev(&self, place: usize) -> Option<usize> {
        self.links[..place].iter().rposition(|link| !link.signalled)
    }

    /// `None`: not submitted. `Some(None)`: past. Else the place of the link.
    fn find(&self, point: u64) -> Option<Option<usize>> {
        let head = self.links.len().checked_sub(1)?;
        if point == 0 {
            return Some(Some(head));
        }
        if self.links[head].seqno < point {
            return None;
        }
        let mut place = head;
        while self.links[place].context == self.links[head].context && self.links[place].prev_seqno >= point {
            match self.prev(place) {
                Some(prev) => place = prev,
                None => return Some(None),
            }
        }
        Some(Some(place))
    }

    fn query(&self) -> u64 {
        let Some(mut oldest) = self.links.len().checked_sub(1) else { return 0 };
        while let Some(prev) = self.prev(oldest)
            && self.links[prev].context == self.links[oldest].context
        {
            oldest = prev;
        }
        if self.is_done(oldest) { self.links[oldest].seqno } else { self.links[oldest].prev_seqno }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Add(u64),
    /// The nth of those not signalled.
    Signal(usize),
    /// Register a listener.
    Listen(u64),
    Query,
    Find(u64),
    Reset,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..40u64).prop_map(Op::Add),
        6 => any::<usize>().prop_map(Op::Signal),
        3 => (0..45u64).prop_map(Op::Listen),
        2 => Just(Op::Query),
        3 => (0..45u64).prop_map(Op::Find),
        1 => Just(Op::Reset),
    ]
}

/// Somebody who waits for a link of one generation of the model, or for a point that is not there yet.
struct Listening {
    count: Arc<AtomicUsize>,
    target: Target,
}

enum Target {
    Point(u64),
    Link { generation: usize, place: usize },
    Past,
}

/// Runs the operations on both and compares. `in_order` makes every point higher than the one before.
fn compare(ops: Vec<Op>, in_order: bool) {
    let syncobj = Syncobj::new(false);
    // A reset begins a new generation; fences of older ones still signal.
    let mut generations = vec![Model::default()];
    let mut waiting: Vec<(usize, usize, Signaller)> = Vec::new();
    let mut listening: Vec<Listening> = Vec::new();
    let mut high = 0;
    for op in ops {
        let current = generations.len() - 1;
        match op {
            Op::Add(point) => {
                let point = if in_order { high + 1 + point % 5 } else { point };
                high = high.max(point);
                let (fence, signaller) = fence();
                waiting.push((current, generations[current].links.len(), signaller));
                generations[current].add(point);
                syncobj.add_point(fence, point);
            }
            Op::Signal(_) if waiting.is_empty() => {}
            Op::Signal(nth) => {
                let (generation, place, signaller) = waiting.swap_remove(nth % waiting.len());
                generations[generation].links[place].signalled = true;
                signaller.signal();
            }
            Op::Listen(point) => {
                let point = if in_order { high / 2 + point } else { point };
                let (count, listener) = counter();
                syncobj.on_point(point, false, listener);
                listening.push(Listening { count, target: Target::Point(point) });
            }
            Op::Query => assert_eq!(syncobj.query(false), generations[current].query()),
            Op::Find(point) => {
                let point = if in_order { (high + 2).saturating_sub(point) } else { point };
                let model = &generations[current];
                let expected = model.find(point).map(|place| place.is_none_or(|place| model.is_done(place)));
                assert_eq!(syncobj.find_fence(point).map(|fence| fence.is_signalled()), expected);
            }
            Op::Reset => {
                generations.push(Model::default());
                syncobj.reset();
                high = 0;
            }
        }
        for listening in &mut listening {
            let generation = generations.len() - 1;
            if let Target::Point(point) = listening.target {
                match generations[generation].find(point) {
                    None => {}
                    Some(None) => listening.target = Target::Past,
                    Some(Some(place)) => listening.target = Target::Link { generation, place },
                }
            }
            let expected = match listening.target {
                Target::Point(_) => false,
                Target::Past => true,
                Target::Link { generation, place } => generations[generation].is_done(place),
            };
            assert_eq!(listening.count.load(Ordering::SeqCst), usize::from(expected));
        }
        let model = generations.last().unwrap();
        assert_eq!(syncobj.query(true), model.links.last().map_or(0, |link| link.seqno));
        if in_order {
            // Of a timeline in order the answer is plain: the last point before which all is done.
            let done = model.links.iter().take_while(|link| link.signalled).last();
            assert_eq!(syncobj.query(false), done.map_or(0, |link| link.seqno));
        }
    }
}

proptest! {
    #[test]
    fn a_timeline_in_order_behaves_like_the_naive_one(ops in proptest::collection::vec(op(), 0..80)) {
        compare(ops, true);
    }

    #[test]
    fn a_timeline_out_of_order_behaves_like_the_naive_one(ops in proptest::collection::vec(op(), 0..80)) {
        compare(ops, false);
    }
}

/// Submitters, signallers and waiters on one timeline: each waiter returns, and never before its point.
#[test]
fn many_threads_share_a_timeline() {
    const POINTS: u64 = 2_000;
    let syncobj = Syncobj::new(false);
    let reached = AtomicUsize::new(0);
    let (send, receive) = std::sync::mpsc::channel::<(u64, Signaller)>();
    thread::scope(|scope| {
        for stride in [1, 3, 7] {
            let (syncobj, reached) = (&syncobj, &reached);
            scope.spawn(move || {
                for point in (1..=POINTS).step_by(stride) {
                    let points = [(syncobj.clone(), point)];
                    let flags = WaitFlags { all: point % 2 == 0, ..FOR_SUBMIT };
                    syncobj::wait(&points, flags, Deadline::never(), &Interrupt::none()).unwrap();
                    assert!(reached.load(Ordering::SeqCst) as u64 >= point);
                    assert!(syncobj.query(false) >= point);
                }
            });
        }
        let submitting = syncobj.clone();
        scope.spawn(move || {
            for point in 1..=POINTS {
                let (fence, signaller) = fence();
                submitting.add_point(fence, point);
                send.send((point, signaller)).unwrap();
            }
        });
        for (point, signaller) in receive {
            reached.store(point as usize, Ordering::SeqCst);
            signaller.signal();
        }
    });
    assert_eq!(syncobj.query(false), POINTS);
}
