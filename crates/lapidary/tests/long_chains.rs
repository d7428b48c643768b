//! Chains and nests so long that whatever recursed per element would end the process: H19 and H21 hold all the same.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use lapidary::fence::{self, ArrayMode, Fence, FenceContext, Seqno, Signaller, Timestamp};

/// Far more than fits on a stack if anything recursed per element.
const MANY: usize = 1_000_000;

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

/// A chain of pending fences, points from 1, and who signals them, in order.
fn long_chain(length: usize) -> (Fence, Vec<Signaller>) {
    let mut head = None;
    let mut signallers = Vec::new();
    for point in 1..=length as u64 {
        let (fence, signaller) = fence();
        signallers.push(signaller);
        head = Some(Fence::chain(head, fence, point));
    }
    (head.expect("there are links"), signallers)
}

#[test]
fn h19_a_long_chain_is_walked_hinted_and_forgotten_without_recursion() {
    let (head, mut signallers) = long_chain(MANY);
    let hints = Arc::new(Mutex::new(Vec::new()));
    for place in [0, MANY / 2, MANY - 1] {
        let hints = hints.clone();
        signallers[place].on_deadline(move |time| hints.lock().unwrap().push((place, time.as_nanos())));
    }
    // Walked, from its end to its beginning.
    assert!(!head.is_signalled());
    let links = head.chain_links();
    assert!(links.iter().map(|link| link.seqno().get()).eq((1..=MANY as u64).rev()));
    drop(links);
    assert!(!head.chain_point(1).unwrap().is_signalled());
    assert!(head.chain_point(MANY as u64 + 1).is_none());
    // Hinted, through an array.
    Fence::array(vec![head.clone()], ArrayMode::All).set_deadline(Timestamp::from_nanos(50));
    let mut hinted = hints.lock().unwrap().clone();
    hinted.sort_unstable();
    assert_eq!(hinted, [(0, 50), (MANY / 2, 50), (MANY - 1, 50)]);
    // Forgotten: all but the first and the last point signal, and the next look lets go of them.
    let last = signallers.pop().unwrap();
    let middle = head.chain_point(MANY as u64 / 2).unwrap();
    let mut signallers = signallers.into_iter();
    let first = signallers.next().unwrap();
    signallers.for_each(Signaller::signal);
    assert_eq!(
        head.chain_links().iter().map(|link| link.seqno().get()).collect::<Vec<_>>(),
        [MANY as u64, 1]
    );
    // A link that somebody has is not forgotten, and waits for what is before it.
    assert!(!middle.is_signalled());
    assert_eq!(middle.chain_prev().map(|prev| prev.seqno()), Some(Seqno(1)));
    // A point between is not known any more; what stands for it signals with the first.
    let between = head.chain_point(3).unwrap();
    assert!(!between.is_signalled());
    first.signal();
    assert!(middle.is_signalled() && between.is_signalled() && !head.is_signalled());
    last.signal();
    assert!(head.is_signalled());
}

#[test]
fn h21_a_long_chain_is_dropped_without_recursion() {
    let (head, signallers) = long_chain(MANY);
    let counter = Counter::default();
    let id = head.add_callback(counter.callback()).ok().unwrap();
    assert!(!head.is_signalled());
    assert_eq!(fence::unwrap(&head).count(), MANY);
    assert!(head.remove_callback(id));
    drop(head);
    drop(signallers);
    assert_eq!(counter.get(), 0);
}

#[test]
fn h19_a_long_chain_signals_without_recursion_in_whatever_order() {
    for reverse in [false, true] {
        let counter = Counter::default();
        let mut signallers = Vec::new();
        let mut head = None;
        for point in 1..=MANY as u64 / 4 {
            let (fence, signaller) = fence();
            signallers.push(signaller);
            let link = Fence::chain(head, fence, point);
            link.on_signal(counter.callback());
            head = Some(link);
        }
        if reverse {
            signallers.reverse();
        }
        let count = signallers.len();
        let mut signallers = signallers.into_iter();
        let last = signallers.next_back().unwrap();
        signallers.for_each(Signaller::signal);
        assert_eq!(counter.get(), if reverse { 0 } else { count - 1 });
        assert!(!head.as_ref().unwrap().is_signalled());
        last.signal();
        assert_eq!(counter.get(), count);
        assert!(head.unwrap().is_signalled());
    }
}

#[test]
fn h21_armed_links_of_a_long_chain_that_nobody_wants_go_without_recursion() {
    let mut head = None;
    let mut signallers = Vec::new();
    let mut ids = Vec::new();
    for point in 1..=MANY as u64 / 4 {
        let (fence, signaller) = fence();
        signallers.push(signaller);
        let link = Fence::chain(head, fence, point);
        let id = link.add_callback(|_| unreachable!()).ok().unwrap();
        ids.push((link.clone(), id));
        head = Some(link);
    }
    // The later halves wait for the earlier links themselves.
    let first = signallers.remove(0);
    signallers.into_iter().for_each(Signaller::signal);
    for (link, id) in ids.drain(..) {
        assert!(link.remove_callback(id));
    }
    drop(head);
    first.signal();
}

#[test]
fn h19_deeply_nested_arrays_are_used_without_recursion() {
    let (innermost, signaller) = fence();
    let mut nested = innermost;
    for _ in 0..MANY / 10 {
        nested = Fence::array(vec![nested, Fence::signalled()], ArrayMode::All);
    }
    let counter = Counter::default();
    nested.on_signal(counter.callback());
    assert!(!nested.is_signalled());
    assert_eq!(fence::unwrap(&nested).filter(|fence| !fence.is_signalled()).count(), 1);
    signaller.signal();
    assert!(nested.is_signalled());
    assert_eq!(counter.get(), 1);
    // One that is dropped unsignalled.
    let (innermost, _signaller) = fence();
    let mut nested = innermost;
    for _ in 0..MANY / 10 {
        nested = Fence::array(vec![nested, Fence::signalled()], ArrayMode::Any);
        nested = Fence::array(vec![nested], ArrayMode::All);
    }
    drop(nested);
}

#[test]
fn h19_fences_that_signal_fences_do_not_nest_on_the_stack() {
    let (first, signaller) = fence();
    let mut last = first;
    for _ in 0..MANY / 10 {
        let (next, next_signaller) = fence();
        last.on_signal(move |_| next_signaller.signal());
        last = next;
    }
    signaller.signal();
    assert!(last.is_signalled());
}
