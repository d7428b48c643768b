//! The fences of a reservation: changed by whoever holds its lock, read by anybody.
//!
//! ```text
//!   Reservation
//!   ├─ word      who holds the lock, how many readers have pinned the list, whether something is retired
//!   ├─ version   one more with every change
//!   └─ table ──▶ len, [ fence·usage | context ] [ fence·usage | context ] …        fence: a pointer with a reference
//! ```
//!
//! # The holder's side
//!
//! Every change is one store that readers can see: a fence in the place of another, a fence behind the last and the length
//! after it, or a whole new table. The version is stored before it. What a change takes out is laid aside, and when the lock
//! is given back, by an operation that also tells whether somebody has pinned the list, it is dropped or
//! [retired](crate::fence::pins).
//!
//! # The readers' side
//!
//! A reader pins the list, which keeps alive whatever it comes to, and goes through these states; nothing of it is
//! repeated elsewhere:
//!
//! ```text
//!            ┌──────────────── version changed ◀───────────────┐
//!            ▼                                                  │
//!   note the version ──▶ read the table, entry by entry ──▶ look at the version ── the same ──▶ one state of the list
//!                                    │
//!                                    └── asked for idleness, and an entry is pending ──▶ busy
//! ```
//!
//! All that was read between two looks at the same version is one state the list was in. A reader that has noted a version
//! has acquired all that was stored before it, so it finds nothing older than the change before that one; and a reader that
//! has read what a change stored also finds the version stored before it, so it finds nothing newer than that one. It
//! restarts only if somebody else got on, and waits for nobody.

#![allow(unsafe_code, reason = "fences are kept as plain pointers where readers have no lock")]

use std::{
    mem::{self, MaybeUninit},
    ptr,
};

use crate::{
    fence::{Fence, FenceContext, FenceRef, pins},
    sync::{
        atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering},
        cell::UnsafeCell,
    },
};

use super::Usage;

/// The bits of an entry's pointer that are its usage: fences are aligned to more.
const USAGE: usize = 3;

/// A fence, which it has a reference of, and a usage in one word.
fn to_word(fence: Fence, usage: Usage) -> usize {
    pins::into_raw(fence).expose_provenance() | usage as usize
}

fn usage_of(word: usize) -> Usage {
    match word & USAGE {
        0 => Usage::Kernel,
        1 => Usage::Write,
        2 => Usage::Read,
        _ => Usage::Bookkeep,
    }
}

fn raw_of(word: usize) -> *const () {
    ptr::with_exposed_provenance(word & !USAGE)
}

/// Looks at a word's fence.
///
/// # Safety
/// The word's reference is not given up during `'a`.
unsafe fn fence_of<'a>(word: usize) -> FenceRef<'a> {
    // SAFETY: the caller's promise; words come from `to_word` alone.
    unsafe { FenceRef::from_raw(raw_of(word)) }
}

/// Takes a word's reference.
///
/// # Safety
/// It is the caller's, and not used again.
unsafe fn fence_from(word: usize) -> Fence {
    // SAFETY: the caller's promise; words come from `to_word` alone.
    unsafe { pins::from_raw(raw_of(word)) }
}

/// A place in a table.
struct Entry {
    /// From [`to_word`]; below the table's length, with a reference.
    fence: AtomicUsize,
    /// The fence's context, so that looking for one touches no fence. The holder's alone.
    context: AtomicU64,
}

/// The entries that there is room for.
///
/// # Invariants
/// `len` entries own a reference each, which a table does not drop: it is handed on to the next table, or taken out.
struct Table {
    len: AtomicUsize,
    entries: Box<[Entry]>,
}

impl Table {
    /// An empty table; `None` if there is no memory.
    fn with_capacity(capacity: usize) -> Option<Box<Table>> {
        let mut entries = Vec::new();
        entries.try_reserve_exact(capacity).ok()?;
        let empty = || Entry { fence: AtomicUsize::new(0), context: AtomicU64::new(0) };
        entries.resize_with(capacity, empty);
        // A box of one, by a way that can fail.
        let mut table = Vec::new();
        table.try_reserve_exact(1).ok()?;
        table.push(Table { len: AtomicUsize::new(0), entries: entries.into_boxed_slice() });
        let table: *mut [Table] = Box::into_raw(table.into_boxed_slice());
        // SAFETY: a slice of one has the layout of the one, and this is its only owner.
        Some(unsafe { Box::from_raw(table.cast()) })
    }

    #[inline]
    fn used(&self) -> &[Entry] {
        &self.entries[..self.len.load(Ordering::Acquire)]
    }
}

/// What was taken out of a list while readers may have been looking.
enum Old {
    Fence { _dropped: Fence },
    Table { _dropped: Box<Table> },
}

/// How many fences are laid aside before readers are asked for.
const ASIDE: usize = 6;

/// What only the holder of the lock touches.
#[repr(C)]
struct Holder {
    count: usize,
    /// References that were taken out since the lock was taken.
    aside: [usize; ASIDE],
}

/// See the module.
#[repr(C)]
pub(super) struct FenceList {
    /// Null while there was never a fence.
    table: AtomicPtr<Table>,
    version: AtomicU64,
    holder: UnsafeCell<Holder>,
    retired: pins::Retired<Old>,
}

// SAFETY: the holder's part is reached through `Locked` alone, which only the thread that holds the reservation's lock makes;
// all else is atomic. Fences and tables may be used and dropped by any thread.
unsafe impl Sync for FenceList {}

impl FenceList {
    pub(super) fn new() -> Self {
        Self {
            table: AtomicPtr::new(ptr::null_mut()),
            version: AtomicU64::new(0),
            holder: UnsafeCell::new(Holder { count: 0, aside: [0; ASIDE] }),
            retired: pins::Retired::new(),
        }
    }

    /// The list as the holder of the lock sees it. `word` is the reservation's, in which pins are counted.
    ///
    /// # Safety
    /// The calling thread holds the lock for as long as the answer is used, and uses one such answer at a time.
    #[inline]
    pub(super) unsafe fn locked<'a>(&'a self, word: &'a AtomicU64) -> Locked<'a> {
        Locked { list: self, word }
    }

    /// The list as a reader sees it, pinned. `word` is the reservation's.
    #[inline]
    pub(super) fn pin<'a>(&'a self, word: &'a AtomicU64) -> Pinned<'a> {
        pins::pin(word);
        Pinned { list: self, word }
    }

    #[inline]
    fn entries(&self) -> &[Entry] {
        let table = self.table.load(Ordering::Acquire);
        // SAFETY: a table that was taken out is dropped only when readers have unpinned, and the holder of the lock alone takes
        // one out; `Locked` and `Pinned`, who call this, are one or the other.
        unsafe { table.as_ref() }.map_or(&[], Table::used)
    }
}

impl Drop for FenceList {
    fn drop(&mut self) {
        // SAFETY: nobody else has the list any more.
        let holder = unsafe { &*self.holder.get() };
        // Left by a holder whose guard was forgotten.
        for word in &holder.aside[..holder.count] {
            // SAFETY: each was taken out once, and the list goes now.
            drop(unsafe { fence_from(*word) });
        }
        let table = self.table.load(Ordering::Relaxed);
        if table.is_null() {
            return;
        }
        // SAFETY: as above, and the table came from a box.
        let table = unsafe { Box::from_raw(table) };
        for entry in table.used() {
            // SAFETY: the entries in use own a reference, and the table goes now.
            drop(unsafe { fence_from(entry.fence.load(Ordering::Relaxed)) });
        }
    }
}

/// The list, and the proof that the lock is held.
pub(super) struct Locked<'a> {
    list: &'a FenceList,
    word: &'a AtomicU64,
}

impl<'a> Locked<'a> {
    /// The fences of `usage` and all before it that have not signalled.
    #[inline]
    pub(super) fn pending(&self, usage: Usage) -> impl Iterator<Item = (FenceRef<'a>, Usage)> + use<'a> {
        let words = self.list.entries().iter().map(|entry| entry.fence.load(Ordering::Relaxed));
        words.filter_map(move |word| {
            // SAFETY: only the holder takes a reference out. It has borrowed the lock's guard.
            let fence = unsafe { fence_of(word) };
            (usage_of(word) <= usage && !fence.is_signalled()).then(|| (fence, usage_of(word)))
        })
    }

    /// Makes room for `n` more entries; false if there is no memory for them.
    #[inline]
    pub(super) fn reserve(&mut self, n: usize) -> bool {
        self.room() >= n || self.make_room(n)
    }

    fn table(&self) -> Option<&'a Table> {
        // SAFETY: only the holder takes a table out.
        unsafe { self.list.table.load(Ordering::Relaxed).as_ref() }
    }

    fn room(&self) -> usize {
        self.table().map_or(0, |table| table.entries.len() - table.len.load(Ordering::Relaxed))
    }

    #[cold]
    fn make_room(&mut self, n: usize) -> bool {
        self.prune();
        if self.room() >= n {
            return true;
        }
        let used = self.list.entries();
        let Some(wanted) = used.len().checked_add(n) else { return false };
        let Some(table) = Table::with_capacity(wanted.max(used.len() * 2).max(4)) else { return false };
        for (to, from) in table.entries.iter().zip(used) {
            to.fence.store(from.fence.load(Ordering::Relaxed), Ordering::Relaxed);
            to.context.store(from.context.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        table.len.store(used.len(), Ordering::Relaxed);
        if let Some(old) = self.exchange(table) {
            self.let_go_of_table(old);
        }
        true
    }

    /// Takes out what has signalled.
    fn prune(&mut self) {
        let Some(table) = self.table() else { return };
        let mut at = 0;
        while at < table.len.load(Ordering::Relaxed) {
            let entry = &table.entries[at];
            let word = entry.fence.load(Ordering::Relaxed);
            // SAFETY: only the holder takes a reference out.
            if !unsafe { fence_of(word) }.is_signalled() {
                at += 1;
                continue;
            }
            // The last takes its place. A reader in between sees the last one twice.
            let last = table.len.load(Ordering::Relaxed) - 1;
            self.change();
            entry.fence.store(table.entries[last].fence.load(Ordering::Relaxed), Ordering::Release);
            entry.context.store(table.entries[last].context.load(Ordering::Relaxed), Ordering::Relaxed);
            table.len.store(last, Ordering::Release);
            self.lay_aside(word);
        }
    }

    /// Adds a fence, in the place of one that it makes superfluous if there is any: a not later one of its context that is
    /// waited for by no more than the new one, or one that has signalled. Room for one is there.
    #[inline]
    pub(super) fn add(&mut self, fence: Fence, usage: Usage) {
        let (context, seqno) = (fence.context(), fence.seqno());
        let entries = self.list.entries();
        let superseded = entries.iter().position(|entry| {
            if entry.context.load(Ordering::Relaxed) != context.get() {
                return false;
            }
            let word = entry.fence.load(Ordering::Relaxed);
            // SAFETY: only the holder takes a reference out.
            usage_of(word) >= usage && unsafe { fence_of(word) }.seqno() <= seqno
        });
        let place = superseded.or_else(|| {
            // SAFETY: only the holder takes a reference out.
            let done =
                |entry: &Entry| unsafe { fence_of(entry.fence.load(Ordering::Relaxed)) }.is_signalled();
            entries.iter().position(done)
        });
        match place {
            Some(at) => self.put(&entries[at], context, to_word(fence, usage)),
            None => self.append(context, to_word(fence, usage)),
        }
    }

    /// Puts `fence` in the place of every fence of `context`.
    pub(super) fn replace(&mut self, context: FenceContext, fence: &Fence, usage: Usage) {
        for entry in self.list.entries() {
            if entry.context.load(Ordering::Relaxed) == context.get() {
                self.put(entry, fence.context(), to_word(fence.clone(), usage));
            }
        }
    }

    #[inline]
    fn put(&mut self, entry: &Entry, context: FenceContext, new: usize) {
        let old = entry.fence.load(Ordering::Relaxed);
        self.change();
        entry.fence.store(new, Ordering::Release);
        entry.context.store(context.get(), Ordering::Relaxed);
        self.lay_aside(old);
    }

    fn append(&mut self, context: FenceContext, new: usize) {
        if self.room() == 0 {
            // Who has not reserved room has no memory to spare for mistakes.
            assert!(self.make_room(1), "no memory for a fence that no room was reserved for");
        }
        let Some(table) = self.table() else { return };
        let len = table.len.load(Ordering::Relaxed);
        self.change();
        table.entries[len].context.store(context.get(), Ordering::Relaxed);
        // A reader that knows a length of before may see this first.
        table.entries[len].fence.store(new, Ordering::Release);
        table.len.store(len + 1, Ordering::Release);
    }

    /// Replaces everything by what is pending in `other`. The error is for how many fences there was no memory.
    pub(super) fn copy(&mut self, other: &Pinned<'_>) -> Result<(), usize> {
        let table = loop {
            let count = other.count();
            let table = Table::with_capacity(count).ok_or(count)?;
            if other.copy_to(&table) {
                break table;
            }
        };
        if let Some(old) = self.exchange(table) {
            old.used().iter().for_each(|entry| self.lay_aside(entry.fence.load(Ordering::Relaxed)));
            self.let_go_of_table(old);
        }
        Ok(())
    }

    /// Puts a table in the place of the one that is there.
    fn exchange(&mut self, table: Box<Table>) -> Option<Box<Table>> {
        self.change();
        let old = self.list.table.swap(Box::into_raw(table), Ordering::AcqRel);
        // SAFETY: it came from a box, and is in the list no more.
        (!old.is_null()).then(|| unsafe { Box::from_raw(old) })
    }

    fn let_go_of_table(&mut self, old: Box<Table>) {
        if pins::ask(self.word) {
            self.list.retired.retire(self.word, std::iter::once(Old::Table { _dropped: old }));
        }
    }

    /// Goes before every store that readers can see.
    #[inline]
    fn change(&mut self) {
        // The lock's holder alone writes it.
        let version = self.list.version.load(Ordering::Relaxed);
        self.list.version.store(version + 1, Ordering::Release);
    }

    #[inline]
    fn holder(&mut self) -> &mut Holder {
        // SAFETY: the lock is held, and there is one such answer at a time.
        unsafe { &mut *self.list.holder.get() }
    }

    /// Keeps a reference that was taken out until the lock is given back, or readers can be asked for.
    #[inline]
    fn lay_aside(&mut self, word: usize) {
        if self.holder().count == ASIDE {
            self.let_go_early();
        }
        let holder = self.holder();
        holder.aside[holder.count] = word;
        holder.count += 1;
    }

    #[cold]
    fn let_go_early(&mut self) {
        let pinned = pins::ask(self.word);
        self.take_aside().let_go(pinned);
    }

    /// What was laid aside, to be let go of when it is known whether there are readers.
    #[inline]
    pub(super) fn take_aside(&mut self) -> Aside<'a> {
        let (list, word) = (self.list, self.word);
        let holder = self.holder();
        let words = match mem::take(&mut holder.count) {
            0 => Words::None,
            1 => Words::One(holder.aside[0]),
            count => Words::Many(count, holder.aside),
        };
        Aside { words, list, word }
    }
}

/// References that were taken out of a list.
#[must_use]
pub(super) struct Aside<'a> {
    words: Words,
    list: &'a FenceList,
    word: &'a AtomicU64,
}

enum Words {
    None,
    One(usize),
    Many(usize, [usize; ASIDE]),
}

impl Aside<'_> {
    /// Drops the references, or retires them for the readers that there are. `pinned` comes from an operation on the word
    /// after the last of them was taken out.
    #[inline]
    pub(super) fn let_go(self, pinned: bool) {
        match self.words {
            Words::None => {}
            Words::One(word) => self.let_go_of(&[word], pinned),
            Words::Many(count, words) => self.let_go_of(&words[..count], pinned),
        }
    }

    #[inline]
    fn let_go_of(&self, words: &[usize], pinned: bool) {
        // SAFETY: each was taken out once, and is used nowhere else.
        let fences = words.iter().map(|word| unsafe { fence_from(*word) });
        if !pinned {
            return fences.for_each(drop);
        }
        self.list.retired.retire(self.word, fences.map(|fence| Old::Fence { _dropped: fence }));
    }
}

/// The words of a table's entries, in order.
struct EntryWords<'a>(std::slice::Iter<'a, Entry>);

impl Iterator for EntryWords<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        self.0.next().map(|entry| entry.fence.load(Ordering::Acquire))
    }
}

/// The list, pinned: what is found in it stays until this is dropped.
pub(super) struct Pinned<'a> {
    list: &'a FenceList,
    word: &'a AtomicU64,
}

impl Drop for Pinned<'_> {
    #[inline]
    fn drop(&mut self) {
        if pins::unpin(self.word) {
            self.list.retired.collect(self.word);
        }
    }
}

impl Pinned<'_> {
    /// Has `look` go through the words of all entries, again for as long as the list changes meanwhile. What it answers with
    /// `Ok` is of one state of the list then; an `Err` stands at once. See the picture in the module's head.
    #[inline]
    fn read<R>(&self, mut look: impl FnMut(EntryWords<'_>) -> Result<R, R>) -> R {
        loop {
            let version = self.list.version.load(Ordering::Acquire);
            match look(EntryWords(self.list.entries().iter())) {
                Err(answer) => return answer,
                Ok(answer) if self.list.version.load(Ordering::Relaxed) == version => return answer,
                Ok(_) => {}
            }
        }
    }

    #[inline]
    fn is_pending(&self, word: usize, usage: Usage) -> bool {
        // SAFETY: the list is pinned, and it was there after that.
        usage_of(word) <= usage && !unsafe { fence_of(word) }.is_signalled()
    }

    /// How many fences there are, signalled ones included.
    fn count(&self) -> usize {
        self.read(|words| Ok(words.count()))
    }

    /// Fills an empty table that nobody else has with the fences that are pending; false if there are more by now than it
    /// has room for.
    fn copy_to(&self, table: &Table) -> bool {
        let copied = self.read(|words| {
            let mut len = 0;
            for word in words.filter(|word| self.is_pending(*word, Usage::Bookkeep)) {
                let Some(entry) = table.entries.get(len) else { return Err(None) };
                // SAFETY: the list is pinned, and it was there after that.
                let context = unsafe { fence_of(word) }.context();
                entry.context.store(context.get(), Ordering::Relaxed);
                entry.fence.store(word, Ordering::Relaxed);
                len += 1;
            }
            Ok(Some(len))
        });
        let Some(len) = copied else { return false };
        for entry in &table.entries[..len] {
            // SAFETY: the list is pinned, and it was there after that.
            let fence = unsafe { fence_of(entry.fence.load(Ordering::Relaxed)) };
            // From here on the entry has a reference.
            mem::forget(fence.clone());
        }
        table.len.store(len, Ordering::Relaxed);
        true
    }

    /// Whether every fence of `usage` and the usages before it has signalled.
    #[inline]
    pub(super) fn is_idle(&self, usage: Usage) -> bool {
        self.read(
            |mut words| if words.any(|word| self.is_pending(word, usage)) { Err(false) } else { Ok(true) },
        )
    }
}

/// The pending fences of a reservation as they were at one moment; see
/// [`Reservation::snapshot`](super::Reservation::snapshot).
pub struct Snapshot<'a> {
    _pinned: Pinned<'a>,
    /// The first `few_len` are there.
    few: [MaybeUninit<usize>; FEW],
    few_len: usize,
    /// Those that `few` had no room for.
    more: Vec<usize>,
}

/// Fences of which a snapshot needs no memory.
const FEW: usize = 16;

impl<'a> Snapshot<'a> {
    #[inline]
    pub(super) fn of(pinned: Pinned<'a>, usage: Usage) -> Self {
        let mut few = [MaybeUninit::uninit(); FEW];
        let (few_len, more) = pinned.read(|words| {
            let (mut len, mut more) = (0, Vec::new());
            for word in words.filter(|word| pinned.is_pending(*word, usage)) {
                match few.get_mut(len) {
                    Some(place) => {
                        place.write(word);
                        len += 1;
                    }
                    None => more.push(word),
                }
            }
            Ok((len, more))
        });
        Self { _pinned: pinned, few, few_len, more }
    }

    /// The fences and their usages, in no particular order. One that was moved to another place of the list meanwhile may be
    /// there twice.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = (FenceRef<'_>, Usage)> {
        // SAFETY: so many were written.
        let few = self.few[..self.few_len].iter().map(|word| unsafe { word.assume_init() });
        few.chain(self.more.iter().copied()).map(|word| {
            // SAFETY: the list is pinned for as long as the snapshot is borrowed.
            (unsafe { fence_of(word) }, usage_of(word))
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.few_len + self.more.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
