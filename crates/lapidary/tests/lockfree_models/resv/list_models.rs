#![allow(unsafe_code, reason = "the models are the holders of the lock")]

use loom::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use super::{
    Usage,
    list::{FenceList, Locked, Snapshot},
};
use crate::{
    check,
    fence::{Fence, FenceContext, pins},
    join,
};

/// A list and the word in which pins are counted. The models' first thread is the only one that changes the list: what the
/// lock adds for more of them is in `lock_models`.
struct Resv {
    list: FenceList,
    word: AtomicU64,
}

impl Resv {
    /// With these fences, each of a context of its own, and room for no more.
    fn with(fences: impl IntoIterator<Item = Fence>) -> Arc<Self> {
        let resv = Self { list: FenceList::new(), word: AtomicU64::new(0) };
        resv.change(|list| {
            assert!(list.reserve(1));
            for fence in fences {
                list.add(fence, Usage::Write);
            }
        });
        Arc::new(resv)
    }

    /// Changes the list as the holder of the lock, and unlocks.
    fn change(&self, change: impl FnOnce(&mut Locked<'_>)) {
        // SAFETY: this is called by one thread.
        let mut list = unsafe { self.list.locked(&self.word) };
        change(&mut list);
        let aside = list.take_aside();
        aside.let_go(pins::ask(&self.word));
    }

    fn snapshot(&self) -> Snapshot<'_> {
        Snapshot::of(self.list.pin(&self.word), Usage::Bookkeep)
    }

    /// Context and number of each fence that a reader finds, once each, in order.
    fn seen(&self) -> Vec<(u64, u64)> {
        let snapshot = self.snapshot();
        let mut seen: Vec<_> = snapshot
            .iter()
            .map(|(fence, usage)| {
                assert_eq!(usage, Usage::Write);
                (fence.context().get(), fence.seqno().0)
            })
            .collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    fn is_idle(&self) -> bool {
        self.list.pin(&self.word).is_idle(Usage::Bookkeep)
    }
}

fn spawn(resv: &Arc<Resv>, work: impl FnOnce(&Resv) + 'static) -> thread::JoinHandle<()> {
    let resv = resv.clone();
    thread::spawn(move || work(&resv))
}

fn fence(context: u64, seqno: u64) -> Fence {
    Fence::new(context, seqno)
}

/// Two fences are replaced one after the other while a reader takes a snapshot, before, between and after the stores: it
/// finds old and old, new and old, or new and new, but never old and new; and what it found stays while it holds it.
#[test]
fn a_snapshot_is_one_state_of_the_list() {
    check(3, || {
        let resv = Resv::with([fence(1, 1), fence(2, 1)]);
        let reader = spawn(&resv, |resv| {
            let seen = resv.seen();
            assert!(
                [[1, 1], [2, 1], [2, 2]].iter().any(|[one, two]| seen == [(1, *one), (2, *two)]),
                "{seen:?}"
            );
        });
        resv.change(|list| {
            list.add(fence(1, 2), Usage::Write);
            list.add(fence(2, 2), Usage::Write);
        });
        join([reader]);
        assert_eq!(resv.seen(), [(1, 2), (2, 2)]);
    });
}

/// The same fence is replaced twice, each time before the other: versions that a reader notes between the stores must not
/// make it take an old one with a new one.
#[test]
fn a_reader_never_goes_back() {
    check(2, || {
        let resv = Resv::with([fence(1, 1), fence(2, 1)]);
        let reader = spawn(&resv, |resv| {
            let (first, second) = (resv.seen(), resv.seen());
            for seen in [&first, &second] {
                let numbers: Vec<_> = seen.iter().map(|(_, seqno)| *seqno).collect();
                assert!([[1, 1], [2, 1], [2, 2], [3, 2]].iter().any(|state| numbers == state), "{seen:?}");
            }
            assert!(first <= second);
        });
        resv.change(|list| list.add(fence(1, 2), Usage::Write));
        resv.change(|list| {
            list.add(fence(2, 2), Usage::Write);
            list.add(fence(1, 3), Usage::Write);
        });
        join([reader]);
    });
}

/// A buffer always has an unfinished fence: it is added behind the one before, into a new table, and then the one before is
/// replaced by one that has signalled. Who asks for idleness at any moment is told that it is busy, and who looks for the
/// fences finds one.
#[test]
fn a_busy_list_is_never_found_idle() {
    check(3, || {
        let resv = Resv::with([fence(1, 1)]);
        let reader = spawn(&resv, |resv| {
            assert!(!resv.is_idle());
            assert!(!resv.snapshot().is_empty());
        });
        resv.change(|list| list.add(fence(2, 1), Usage::Write));
        resv.change(|list| list.replace(FenceContext(1), &Fence::signalled(1), Usage::Write));
        join([reader]);
    });
}

/// The list is full: it moves to a larger table while a reader is in the old one, then what was in both is replaced in the
/// new one alone.
#[test]
fn a_reader_in_an_old_table_finds_live_fences() {
    check(3, || {
        let resv = Resv::with((1..=4).map(|context| fence(context, 1)));
        let reader = spawn(&resv, |resv| {
            let seen = resv.seen();
            assert!(seen.starts_with(&[(1, 1), (2, 1), (3, 1)]), "{seen:?}");
        });
        resv.change(|list| {
            assert!(list.reserve(1));
            list.add(fence(4, 2), Usage::Write);
        });
        join([reader]);
    });
}

/// A signalled fence is pruned, which moves the last one forward, and a new one is put behind: a reader that knows the
/// length of before finds each pending one.
#[test]
fn pruning_hides_no_fence() {
    check(2, || {
        let fences = [1, 2, 3, 4].map(|context| fence(context, 1));
        let resv = Resv::with(fences.clone());
        fences[0].signal();
        drop(fences);
        let reader = spawn(&resv, |resv| {
            let seen = resv.seen();
            assert!(seen == [(2, 1), (3, 1), (4, 1)] || seen == [(2, 1), (3, 1), (4, 1), (5, 1)], "{seen:?}");
        });
        resv.change(|list| {
            assert!(list.reserve(1));
            list.add(fence(5, 1), Usage::Write);
        });
        join([reader]);
    });
}

/// A list is copied while it changes: the copy is one of its states, with references of its own.
#[test]
fn a_copy_is_one_state_of_the_list() {
    check(2, || {
        let (source, target) = (Resv::with([fence(1, 1), fence(2, 1)]), Resv::with([fence(3, 1)]));
        let copier = thread::spawn({
            let (source, target) = (source.clone(), target.clone());
            move || target.change(|list| list.copy(&source.list.pin(&source.word)).unwrap())
        });
        source.change(|list| {
            list.add(fence(1, 2), Usage::Write);
            list.add(fence(2, 2), Usage::Write);
        });
        join([copier]);
        drop(source);
        let seen = target.seen();
        assert!([[1, 1], [2, 1], [2, 2]].iter().any(|[one, two]| seen == [(1, *one), (2, *two)]), "{seen:?}");
    });
}

/// More is taken out under one lock than can be laid aside, while a reader comes, looks and goes.
#[test]
fn what_is_laid_aside_early_is_kept_for_readers() {
    check(2, || {
        let resv = Resv::with([fence(1, 0)]);
        let reader = spawn(&resv, |resv| assert!(!resv.is_idle()));
        resv.change(|list| (1..=7).for_each(|seqno| list.add(fence(1, seqno), Usage::Write)));
        join([reader]);
        assert_eq!(resv.word.load(Ordering::Relaxed) & !1, 0);
    });
}
