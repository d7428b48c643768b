//! Readers without a lock: how they keep what they look at alive.
//!
//! A list of fences is read by threads that hold no lock on it, while one that holds it replaces fences. A reader could
//! take a reference of each fence it passes, two writes to a shared cache line each. Instead it *pins* the whole list once;
//! what a writer takes out of a pinned list it does not drop but *retires*, and the last reader to unpin drops that.
//!
//! # Why a reader never sees what is gone
//!
//! Number of pins and whether something is retired are bits of one atomic word, and both sides change it by
//! read-modify-write operations, which have one order that everybody agrees on. A writer first takes the fence out of the
//! list, then does such an operation:
//!
//! ```text
//! reader   pin ──────────── reads the list ──────────── unpin
//! writer         takes X out ── asks for pins: sees one ── retires X           (the last unpin drops X)
//!
//! reader                                       pin ──── reads the list: no X   (synchronised with the writer's question)
//! writer         takes X out ── asks for pins: none ── drops X
//! ```
//!
//! A pin that comes after the question in that order has acquired what the writer released with it: the list without X.
//!
//! What was retired is taken out of its own list before it is asked for pins once more, so that one who pinned
//! meanwhile can't have found it either; if somebody has pinned, it is put back.
//!
//! # What it asks of readers
//!
//! To leave soon: what is taken out stays for as long as there is always a reader, and there is room for two thousand at a
//! time. A reader that is forgotten keeps what is taken out from then on. A reader may pin again what it has pinned, in a
//! container that it comes to, say; that many of them wait for one another only if they have taken all places.

#![allow(unsafe_code, reason = "fences are kept as plain pointers where readers have no lock")]

use std::{
    marker::PhantomData,
    mem::{self, ManuallyDrop},
    ops::Deref,
};

use crate::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
    relax,
};

use super::{core::Fence, shared::Shared};

/// Something was retired.
const RETIRED: u64 = 1;
/// One pin.
const PIN: u64 = 2;
/// The bits that count them.
const PINS: u64 = ((1 << 12) - 1) * PIN;
/// Most pins at a time; readers beyond wait for a place. As many threads again can be about to find that out.
const MOST: u64 = (1 << 11) * PIN;

/// Bits of a word that pins take; others may be used for something else by whoever owns the word.
pub(crate) const BITS: u32 = 13;

/// Counts a reader in. Waits for one to leave if there are too many.
#[inline]
pub(crate) fn pin(word: &AtomicU64) {
    let before = word.fetch_add(PIN, Ordering::AcqRel);
    if before & PINS >= MOST {
        pin_crowded(word);
    }
}

/// Takes a pin too many back, and waits until there is room for it.
#[cold]
fn pin_crowded(word: &AtomicU64) {
    word.fetch_sub(PIN, Ordering::AcqRel);
    let mut tries = 0;
    loop {
        let now = word.load(Ordering::Relaxed);
        if now & PINS >= MOST {
            relax(&mut tries);
        } else if word.compare_exchange_weak(now, now + PIN, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            return;
        }
    }
}

/// Counts a reader out. True if it was the last and something is retired.
#[inline]
#[must_use]
pub(crate) fn unpin(word: &AtomicU64) -> bool {
    let before = word.fetch_sub(PIN, Ordering::AcqRel);
    before & (PINS | RETIRED) == PIN | RETIRED
}

/// Whether a word's value says that there are readers.
#[inline]
pub(crate) fn is_pinned(word: u64) -> bool {
    word & PINS != 0
}

/// What was taken out of a pinned list, until nobody can be looking at it.
///
/// Holds fences, or whatever else a list is made of.
pub(crate) struct Retired<T>(pub(super) Mutex<Vec<T>>);

impl<T> Retired<T> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Keeps `items`, which the caller has taken out of the list, until the last reader unpins; drops them now if there
    /// is none. Can't fail: what there is no memory to note in stays for ever.
    #[cold]
    pub(crate) fn retire(&self, word: &AtomicU64, items: impl Iterator<Item = T>) {
        self.keep(items);
        self.collect(word);
    }

    fn keep(&self, items: impl Iterator<Item = T>) {
        let mut retired = self.0.lock();
        for item in items {
            match retired.try_reserve(1) {
                Ok(()) => retired.push(item),
                Err(_) => mem::forget(item),
            }
        }
    }

    /// Drops what was retired unless there are readers. For who retires, and for who [unpins](unpin) last.
    #[cold]
    pub(crate) fn collect(&self, word: &AtomicU64) {
        loop {
            let items = mem::take(&mut *self.0.lock());
            // Whoever pins after this question finds the list without them.
            let before = word.fetch_and(!RETIRED, Ordering::AcqRel);
            if items.is_empty() {
                // Unless somebody put something back meanwhile, whose mark that question has cleared.
                if self.0.lock().is_empty() {
                    return;
                }
                continue;
            }
            if !is_pinned(before) {
                return drop(items);
            }
            // Most often there is nothing new, and this takes no memory.
            let new = mem::replace(&mut *self.0.lock(), items);
            self.keep(new.into_iter());
            // The last reader comes here if it leaves after this; if it left before, this thread goes on.
            let before = word.fetch_or(RETIRED, Ordering::AcqRel);
            if is_pinned(before) {
                return;
            }
        }
    }
}

/// Whether there are readers, asked in a way that those who come later see what this thread did before.
#[inline]
pub(crate) fn ask(word: &AtomicU64) -> bool {
    is_pinned(word.fetch_or(0, Ordering::AcqRel))
}

/// A fence as a plain pointer, which owns a reference.
#[inline]
pub(crate) fn into_raw(fence: Fence) -> *const () {
    Shared::into_raw(fence.0)
}

/// The fence that [`into_raw`] gave away.
///
/// # Safety
/// `raw` is from `into_raw`, and the reference that it owns is given up to the answer.
#[inline]
pub(crate) unsafe fn from_raw(raw: *const ()) -> Fence {
    // SAFETY: the caller's promise; `into_raw` made it of the same type.
    Fence(unsafe { Shared::from_raw(raw) })
}

/// A fence that somebody else keeps alive for `'a`.
pub struct FenceRef<'a>(ManuallyDrop<Fence>, PhantomData<&'a Fence>);

impl<'a> FenceRef<'a> {
    /// A fence that the caller borrows.
    pub(super) fn new(fence: &'a Fence) -> Self {
        // SAFETY: the pointer is that of a reference, which is borrowed for `'a` and stays with its owner.
        unsafe { Self::from_raw(Shared::as_raw(&fence.0)) }
    }

    /// Looks at the fence that `raw` owns a reference of.
    ///
    /// # Safety
    /// `raw` is from [`into_raw`], and what it owns is not given up during `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw(raw: *const ()) -> Self {
        // SAFETY: the caller's promise. The handle is never dropped, so the reference stays with `raw`.
        Self(ManuallyDrop::new(unsafe { from_raw(raw) }), PhantomData)
    }

    /// The pointer it was made of.
    pub(crate) fn as_raw(&self) -> *const () {
        Shared::as_raw(&self.0.0)
    }
}

impl Deref for FenceRef<'_> {
    type Target = Fence;

    #[inline]
    fn deref(&self) -> &Fence {
        &self.0
    }
}
