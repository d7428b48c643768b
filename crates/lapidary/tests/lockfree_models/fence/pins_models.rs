#![allow(unsafe_code, reason = "lists are made of plain pointers")]

use std::ptr;

use loom::{
    sync::{
        Arc,
        atomic::{AtomicPtr, AtomicU64, Ordering},
    },
    thread,
};

use super::{
    Fence, FenceRef,
    pins::{self, Retired},
};
use crate::{check, join, watch::Watched};

/// A list of one place, with pins.
struct List {
    word: AtomicU64,
    retired: Retired<Fence>,
    place: AtomicPtr<()>,
}

impl List {
    fn new(word: u64) -> Arc<Self> {
        let place = AtomicPtr::new(pins::into_raw(Fence::new(1, 1)).cast_mut());
        Arc::new(Self { word: AtomicU64::new(word), retired: Retired::new(), place })
    }

    fn read(&self) {
        self.read_and(|| ());
    }

    fn read_and(&self, look: impl FnOnce()) {
        pins::pin(&self.word);
        look();
        let raw = self.place.load(Ordering::Acquire);
        if !raw.is_null() {
            // SAFETY: the list is pinned.
            unsafe { FenceRef::from_raw(raw) }.look();
        }
        if pins::unpin(&self.word) {
            self.retired.collect(&self.word);
        }
    }

    /// Takes what is in the place out of it, as a writer does.
    fn replace(&self, new: Option<Fence>) {
        let new = new.map_or(ptr::null_mut(), |fence| pins::into_raw(fence).cast_mut());
        let old = self.place.swap(new, Ordering::AcqRel);
        if old.is_null() {
            return;
        }
        // SAFETY: it was taken out, by this thread alone.
        let old = unsafe { pins::from_raw(old) };
        if pins::ask(&self.word) {
            self.retired.retire(&self.word, std::iter::once(old));
        }
    }

    /// Once all threads are done, nothing is kept any more.
    fn assert_nothing_is_kept(&self) {
        self.replace(None);
        assert!(self.retired.0.lock().is_empty(), "something is retired though nobody has pinned");
    }
}

fn spawn(list: &Arc<List>, work: impl FnOnce(&List) + 'static) -> thread::JoinHandle<()> {
    let list = list.clone();
    thread::spawn(move || work(&list))
}

/// A reader pins before and after each step of a writer who replaces what is in the list and empties it.
#[test]
fn a_reader_sees_nothing_that_is_gone() {
    check(4, || {
        let list = List::new(0);
        let reader = spawn(&list, |list| {
            list.read();
            list.read();
        });
        list.replace(Some(Fence::new(1, 2)));
        list.replace(None);
        join([reader]);
        list.assert_nothing_is_kept();
    });
}

/// Two readers overlap each other and the writer, so that the one who leaves last is now this and now that one, and one
/// collects while the other has come again.
#[test]
fn of_several_readers_the_last_one_drops_what_is_retired() {
    check(3, || {
        let list = List::new(0);
        let readers = [spawn(&list, List::read), spawn(&list, List::read)];
        list.replace(Some(Fence::new(1, 2)));
        join(readers);
        list.assert_nothing_is_kept();
    });
}

/// Two writers retire while a reader comes and goes: each collects what the other put down, or is putting back.
#[test]
fn writers_collect_what_others_retire() {
    check(3, || {
        let list = List::new(0);
        let writer = spawn(&list, |list| list.replace(Some(Fence::new(1, 2))));
        let reader = spawn(&list, List::read);
        list.replace(Some(Fence::new(1, 3)));
        join([writer, reader]);
        list.assert_nothing_is_kept();
    });
}

/// One who left as the last reader comes to collect only when another has pinned and a writer retires: it finds nothing, or
/// takes what the writer is to put back, but never leaves the mark cleared that makes the other reader collect.
#[test]
fn who_collects_late_leaves_the_mark() {
    check(4, || {
        let list = List::new(0);
        pins::pin(&list.word);
        let late = spawn(&list, |list| list.retired.collect(&list.word));
        list.replace(Some(Fence::new(1, 2)));
        join([late]);
        if pins::unpin(&list.word) {
            list.retired.collect(&list.word);
        }
        list.assert_nothing_is_kept();
    });
}

/// There is room for one more pin, and two readers come at the same time as a writer: one waits for the other to leave, and
/// no pin spills over into the bits above.
#[test]
fn readers_too_many_wait_for_a_place() {
    const ABOVE: u64 = 1 << pins::BITS;
    const OTHERS: u64 = 2047 * 2;
    check(2, || {
        let list = List::new(ABOVE | OTHERS);
        let alone = Arc::new(Watched::new(()));
        let readers =
            [alone.clone(), alone].map(|alone| spawn(&list, move |list| list.read_and(|| alone.write(()))));
        list.replace(Some(Fence::new(1, 2)));
        join(readers);
        assert_eq!(list.word.load(Ordering::Relaxed) & !1, ABOVE | OTHERS);
        // The others leave too, the last of them as one does.
        list.word.fetch_sub(OTHERS - 2, Ordering::AcqRel);
        if pins::unpin(&list.word) {
            list.retired.collect(&list.word);
        }
        list.assert_nothing_is_kept();
        assert_eq!(list.word.load(Ordering::Relaxed), ABOVE);
    });
}
