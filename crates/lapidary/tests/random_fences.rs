//! Random operations on fences and reservations against naive models.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use proptest::prelude::*;

use lapidary::{
    fence::{self, ArrayMode, Fence, FenceContext, FenceError, Seqno, Signaller, Timestamp},
    resv::{Reservation, Snapshot, Usage},
};

mod reservations {
    use super::*;

    const CONTEXTS: usize = 4;
    const USAGES: [Usage; 4] = [Usage::Kernel, Usage::Write, Usage::Read, Usage::Bookkeep];

    #[derive(Debug, Clone)]
    enum Op {
        /// Add the next fence of a context, or one of before.
        Add {
            context: usize,
            usage: Usage,
            older: Option<usize>,
        },
        /// Put a new fence of the second context in the place of all of the first.
        Replace {
            context: usize,
            by: usize,
            usage: Usage,
        },
        /// The nth of those not signalled.
        Signal(usize),
        Reserve(usize),
        /// Copy the other reservation.
        Copy,
        /// Hold what a reader finds from now on.
        Look(Usage),
        /// From now on operations are on the other reservation.
        Other,
    }

    fn op() -> impl Strategy<Value = Op> {
        let usage = proptest::sample::select(USAGES.to_vec());
        prop_oneof![
            8 => (0..CONTEXTS, usage.clone(), proptest::option::of(any::<usize>()))
                .prop_map(|(context, usage, older)| Op::Add { context, usage, older }),
            2 => (0..CONTEXTS, 0..CONTEXTS, usage.clone())
                .prop_map(|(context, by, usage)| Op::Replace { context, by, usage }),
            5 => any::<usize>().prop_map(Op::Signal),
            2 => (0..20usize).prop_map(Op::Reserve),
            1 => Just(Op::Copy),
            2 => usage.prop_map(Op::Look),
            1 => Just(Op::Other),
        ]
    }

    /// All fences that were ever made, and who signals them, in order of their contexts.
    struct Made {
        contexts: Vec<FenceContext>,
        fences: Vec<(Fence, Option<Signaller>)>,
    }

    impl Made {
        fn next(&mut self, context: usize) -> usize {
            let context = self.contexts[context];
            let seqno = self.fences.iter().filter(|(fence, _)| fence.context() == context).count() as u64 + 1;
            let (fence, signaller) = Fence::new(context, Seqno(seqno));
            self.fences.push((fence, Some(signaller)));
            self.fences.len() - 1
        }

        fn older(&self, context: usize, nth: usize) -> Option<usize> {
            let of_it = |(place, (fence, _)): (usize, &(Fence, _))| {
                (fence.context() == self.contexts[context]).then_some(place)
            };
            let all: Vec<_> = self.fences.iter().enumerate().filter_map(of_it).collect();
            (!all.is_empty()).then(|| all[nth % all.len()])
        }

        fn place(&self, fence: &Fence) -> usize {
            self.fences.iter().position(|(made, _)| made.ptr_eq(fence)).expect("a fence nobody made")
        }

        fn seqno(&self, place: usize) -> Seqno {
            self.fences[place].0.seqno()
        }

        fn is_of(&self, place: usize, context: FenceContext) -> bool {
            self.fences[place].0.context() == context
        }

        fn is_pending(&self, place: usize) -> bool {
            !self.fences[place].0.is_signalled()
        }
    }

    /// A reservation and what is pending on it, each a place in [`Made`] and a usage, sorted. One that took the place of several
    /// is there as often.
    #[derive(Default)]
    struct Naive {
        resv: Reservation,
        pending: Vec<(usize, Usage)>,
    }

    fn found(made: &Made, snapshot: &Snapshot<'_>) -> Vec<(usize, Usage)> {
        let mut found: Vec<_> = snapshot.iter().map(|(fence, usage)| (made.place(&fence), usage)).collect();
        found.sort_unstable();
        found
    }

    impl Naive {
        /// Checks everything that can be asked against what is pending.
        fn check(&self, made: &Made) {
            for usage in USAGES {
                let mut expected = self.pending.clone();
                expected.retain(|(_, of)| *of <= usage);
                let snapshot = self.resv.snapshot(usage);
                assert_eq!(found(made, &snapshot), expected);
                assert_eq!(snapshot.is_empty(), expected.is_empty());
                assert_eq!(self.resv.is_idle(usage), expected.is_empty());
                assert_eq!(self.resv.merged(usage).is_signalled(), expected.is_empty());
                assert_eq!(self.resv.fences(usage).len(), snapshot.len());
                let guard = self.resv.lock();
                assert_eq!(guard.is_idle(usage), expected.is_empty());
                assert_eq!(guard.iter(usage).count(), snapshot.len());
            }
        }

        fn add(&mut self, made: &Made, place: usize, usage: Usage) {
            let fence = made.fences[place].0.clone();
            let context = fence.context();
            let mut guard = self.resv.lock();
            guard.reserve(1).unwrap();
            guard.add_fence(fence, usage);
            drop(guard);
            // It takes the place of one that it makes superfluous, if there is any: which one is the list's choice.
            let superseded = |(old, of): &(usize, Usage)| {
                made.is_of(*old, context) && *of >= usage && made.seqno(*old) <= made.seqno(place)
            };
            let candidates: Vec<_> = self.pending.iter().copied().filter(superseded).collect();
            let with_new = |mut pending: Vec<(usize, Usage)>| {
                pending.extend(made.is_pending(place).then_some((place, usage)));
                pending.sort_unstable();
                pending
            };
            let without = |old: &(usize, Usage)| {
                let mut pending = self.pending.clone();
                pending.remove(pending.iter().position(|pending| pending == old).unwrap());
                with_new(pending)
            };
            let found = found(made, &self.resv.snapshot(Usage::Bookkeep));
            let mut expected: Vec<_> = candidates.iter().map(without).collect();
            // A signalled one of the context, that is not pruned yet, may have been as superfluous.
            if candidates.is_empty()
                || made.fences.iter().any(|(fence, _)| fence.context() == context && fence.is_signalled())
            {
                expected.push(with_new(self.pending.clone()));
            }
            assert!(expected.contains(&found), "{found:?} is none of {expected:?}");
            self.pending = found;
        }

        fn replace(&mut self, made: &Made, context: usize, by: usize, usage: Usage) {
            let context = made.contexts[context];
            self.resv.lock().replace_fences(context, made.fences[by].0.clone(), usage);
            let (replaced, mut expected): (Vec<_>, Vec<_>) =
                self.pending.iter().partition(|(place, _)| made.is_of(*place, context));
            let found = found(made, &self.resv.snapshot(Usage::Bookkeep));
            // Also in the place of each signalled one that is not pruned yet.
            let times = found.iter().filter(|found| **found == (by, usage)).count();
            assert!(times >= replaced.len());
            expected.extend(std::iter::repeat_n((by, usage), times));
            expected.sort_unstable();
            assert_eq!(found, expected);
            self.pending = expected;
        }
    }

    fn compare(ops: Vec<Op>) {
        let contexts = (0..CONTEXTS).map(|_| FenceContext::alloc()).collect();
        let mut made = Made { contexts, fences: Vec::new() };
        let mut naive: [Naive; 2] = Default::default();
        let mut current = 0;
        // Readers stay on reservations of their own handles, whatever happens to the lists.
        let handles = naive.each_ref().map(|naive| naive.resv.clone());
        let mut looking: Vec<(Snapshot<'_>, Vec<(usize, Usage)>)> = Vec::new();
        for op in ops {
            match op {
                Op::Add { context, usage, older } => {
                    let place = older.and_then(|nth| made.older(context, nth));
                    let place = place.unwrap_or_else(|| made.next(context));
                    naive[current].add(&made, place, usage);
                }
                Op::Replace { context, by, usage } => {
                    let by = made.next(by);
                    naive[current].replace(&made, context, by, usage);
                }
                Op::Signal(nth) => {
                    let pending: Vec<_> = (0..made.fences.len()).filter(|at| made.is_pending(*at)).collect();
                    if pending.is_empty() {
                        continue;
                    }
                    // Those of one context signal in order.
                    let context = made.fences[pending[nth % pending.len()]].0.context();
                    let first = pending.into_iter().find(|at| made.is_of(*at, context)).unwrap();
                    made.fences[first].1.take().unwrap().signal();
                    for naive in &mut naive {
                        naive.pending.retain(|(place, _)| *place != first);
                    }
                }
                Op::Reserve(n) => naive[current].resv.lock().reserve(n).unwrap(),
                Op::Copy => {
                    let source = 1 - current;
                    naive[current].resv.lock().copy_from(&naive[source].resv).unwrap();
                    naive[current].pending = naive[source].pending.clone();
                }
                Op::Look(usage) => {
                    let snapshot = handles[current].snapshot(usage);
                    let seen = found(&made, &snapshot);
                    looking.push((snapshot, seen));
                }
                Op::Other => current = 1 - current,
            }
            naive.iter().for_each(|naive| naive.check(&made));
            if looking.len() > 3 {
                looking.remove(0);
            }
            // What a reader holds stays what it found.
            for (snapshot, seen) in &looking {
                assert_eq!(found(&made, snapshot), *seen);
            }
        }
    }

    proptest! {
        #[test]
        fn h20_a_reservation_behaves_like_the_naive_one(ops in proptest::collection::vec(op(), 0..60)) {
            compare(ops);
        }
    }
}

mod containers {
    use super::*;

    /// A fence made of fences, by the numbers of the plain ones.
    #[derive(Debug, Clone)]
    enum Made {
        Plain(usize),
        All(Vec<Made>),
        Any(Vec<Made>),
        Chain(Option<Box<Made>>, Box<Made>),
        Merged(Vec<Made>),
    }

    const PLAIN: usize = 8;

    fn made() -> impl Strategy<Value = Made> {
        (0..PLAIN).prop_map(Made::Plain).prop_recursive(12, 60, 4, |inner| {
            let several = proptest::collection::vec(inner.clone(), 1..4);
            prop_oneof![
                2 => several.clone().prop_map(Made::All),
                1 => several.clone().prop_map(Made::Any),
                3 => (proptest::option::of(inner.clone()), inner)
                    .prop_map(|(prev, own)| Made::Chain(prev.map(Box::new), Box::new(own))),
                1 => several.prop_map(Made::Merged),
            ]
        })
    }

    impl Made {
        fn make(&self, plain: &[Fence]) -> Fence {
            let all = |made: &[Made]| made.iter().map(|made| made.make(plain)).collect::<Vec<_>>();
            match self {
                Made::Plain(number) => plain[*number].clone(),
                Made::All(members) => Fence::array(all(members), ArrayMode::All),
                Made::Any(members) => Fence::array(all(members), ArrayMode::Any),
                Made::Chain(prev, own) => {
                    let prev = prev.as_ref().map(|prev| prev.make(plain));
                    let point =
                        prev.as_ref().filter(|prev| prev.is_chain()).map_or(1, |prev| prev.seqno().get() + 1);
                    Fence::chain(prev, own.make(plain), point)
                }
                Made::Merged(fences) => fence::merge(all(fences)),
            }
        }

        fn is_signalled(&self, plain: &[Fence]) -> bool {
            match self {
                Made::Plain(number) => plain[*number].is_signalled(),
                Made::All(members) | Made::Merged(members) => {
                    members.iter().all(|made| made.is_signalled(plain))
                }
                Made::Any(members) => members.iter().any(|made| made.is_signalled(plain)),
                Made::Chain(prev, own) => {
                    own.is_signalled(plain) && prev.as_ref().is_none_or(|prev| prev.is_signalled(plain))
                }
            }
        }

        /// The plain fences that must signal first.
        fn needs(&self, plain: &[Fence], needed: &mut Vec<usize>) {
            match self {
                Made::Plain(number) if !plain[*number].is_signalled() => needed.push(*number),
                Made::Plain(_) | Made::Any(_) => {}
                Made::All(members) | Made::Merged(members) => {
                    members.iter().for_each(|made| made.needs(plain, needed));
                }
                Made::Chain(prev, own) => {
                    own.needs(plain, needed);
                    prev.iter().for_each(|prev| prev.needs(plain, needed));
                }
            }
        }

        /// The plain fences that are worth hurrying: those of what has not signalled.
        fn hurries(&self, plain: &[Fence], hurried: &mut Vec<usize>) {
            if self.is_signalled(plain) {
                return;
            }
            match self {
                Made::Plain(number) => hurried.push(*number),
                Made::All(members) | Made::Any(members) | Made::Merged(members) => {
                    members.iter().for_each(|made| made.hurries(plain, hurried));
                }
                Made::Chain(prev, own) => {
                    own.hurries(plain, hurried);
                    prev.iter().for_each(|prev| prev.hurries(plain, hurried));
                }
            }
        }

        /// The first error in the order of an array's members, or of a link's own fence; `None` where that is not said: behind
        /// the first of any, and in what is merged or taken apart.
        fn error(&self, plain: &[Fence]) -> Option<Result<(), FenceError>> {
            match self {
                Made::Plain(number) => plain[*number].status(),
                Made::All(members) => {
                    let ends: Option<Vec<_>> = members.iter().map(|made| made.error(plain)).collect();
                    Some(ends?.into_iter().find(Result::is_err).unwrap_or(Ok(())))
                }
                Made::Chain(_, own) => match **own {
                    Made::Plain(_) => own.error(plain),
                    _ => None,
                },
                Made::Any(_) | Made::Merged(_) => None,
            }
        }
    }

    /// Makes a fence, signals the plain ones in `order`, some with an error, and compares after each. `arm` has a callback
    /// added from the start or by the way.
    fn compare(made: &Made, order: &[usize], failing: usize, arm: usize) {
        let (plain, mut signallers): (Vec<_>, Vec<_>) = (0..PLAIN)
            .map(|_| Fence::new(FenceContext::alloc(), Seqno(1)))
            .map(|(fence, signaller)| (fence, Some(signaller)))
            .unzip();
        let hints: Arc<Mutex<Vec<usize>>> = Arc::default();
        for (number, signaller) in signallers.iter().flatten().enumerate() {
            let hints = hints.clone();
            signaller.on_deadline(move |_| hints.lock().unwrap().push(number));
        }
        let fence = made.make(&plain);
        let called = Arc::new(AtomicUsize::new(0));
        for (step, next) in order.iter().map(Some).chain([None]).enumerate() {
            let signalled = made.is_signalled(&plain);
            if step == arm {
                let called = called.clone();
                fence.on_signal(move |_| _ = called.fetch_add(1, Ordering::SeqCst));
            }
            assert_eq!(called.load(Ordering::SeqCst), usize::from(step >= arm && signalled));
            // A hint reaches every producer that is worth hurrying, and no other. Each is earlier than those before.
            fence.set_deadline(Timestamp::from_nanos(100 - step as u64));
            let mut hurried = Vec::new();
            made.hurries(&plain, &mut hurried);
            let mut hinted = std::mem::take(&mut *hints.lock().unwrap());
            for numbers in [&mut hurried, &mut hinted] {
                numbers.sort_unstable();
                numbers.dedup();
            }
            assert_eq!(hinted, hurried);
            assert_eq!(fence.is_signalled(), signalled);
            if signalled && let Some(status) = made.error(&plain) {
                assert_eq!(fence.status(), Some(status));
            }
            // What is unwrapped signals when the fence does, and so does what is merged of it.
            let unwrapped: Vec<_> = fence::unwrap(&fence).collect();
            assert_eq!(unwrapped.iter().all(Fence::is_signalled), signalled);
            assert_eq!(fence::merge([fence.clone()]).is_signalled(), signalled);
            let mut needed = Vec::new();
            made.needs(&plain, &mut needed);
            assert!(needed.iter().all(|number| unwrapped.iter().any(|fence| fence.ptr_eq(&plain[*number]))));
            // A point of a chain stands for it and all before.
            if fence.is_chain() {
                let point = fence.chain_point(fence.seqno().get()).unwrap();
                assert_eq!(point.is_signalled(), signalled);
                assert!(fence.chain_point(fence.seqno().get() + 1).is_none());
                let links = fence.chain_links();
                assert_eq!(links.iter().all(|link| link.chain_contained().is_signalled()), signalled);
            }
            if let Some(&number) = next {
                let status = if number < failing { Err(FenceError::Fault) } else { Ok(()) };
                signallers[number].take().unwrap().signal_with(status);
            }
        }
        assert!(fence.is_signalled());
    }

    proptest! {
        #[test]
        fn h19_containers_behave_like_naive_ones(
            made in made(),
            order in Just((0..PLAIN).collect::<Vec<_>>()).prop_shuffle(),
            failing in 0..PLAIN,
            arm in 0..=PLAIN,
        ) {
            compare(&made, &order, failing, arm);
        }
    }
}
