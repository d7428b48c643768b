//! An allocator that refuses one allocation of a thread, by its number, or allows none.
//!
//! It counts for the thread that asks for it and while a closure runs, so tests beside each other don't meet. Code of the
//! test that runs inside is left out with [`paused`].

#![allow(unsafe_code, reason = "an allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::null_mut;

#[global_allocator]
static ALLOCATOR: Failing = Failing;

struct Failing;

/// What a thread's allocations are subject to.
#[derive(Clone, Copy)]
struct Rule {
    /// How many more succeed before one is refused.
    left: usize,
    refused: bool,
    /// How many were asked for, exempt ones left out.
    asked: usize,
    /// The latest that was asked for.
    latest: Layout,
}

const IDLE: Rule = Rule { left: usize::MAX, refused: false, asked: 0, latest: Layout::new::<()>() };

thread_local! {
    static RULE: Cell<Option<Rule>> = const { Cell::new(None) };
    /// Allocations of this layout never fail.
    static EXEMPT: Cell<Option<Layout>> = const { Cell::new(None) };
}

/// Whether an allocation of `layout` is to be refused.
fn refuses(layout: Layout) -> bool {
    let Some(mut rule) = RULE.get().filter(|_| EXEMPT.get() != Some(layout)) else { return false };
    let refuse = rule.left == 0 && !rule.refused;
    rule.left = rule.left.saturating_sub(1);
    rule.refused |= refuse;
    rule.asked += 1;
    rule.latest = layout;
    RULE.set(Some(rule));
    refuse
}

// SAFETY: memory comes from and goes to the system's allocator, with the layouts it was asked for; a null pointer is how
// this trait says that there is none.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refuses(layout) {
            return null_mut();
        }
        // SAFETY: the caller keeps the trait's contract, which is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if refuses(Layout::from_size_align(size, layout.align()).unwrap_or(layout)) {
            return null_mut();
        }
        // SAFETY: as with `alloc`; `place` came from the system's allocator.
        unsafe { System.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as with `realloc`.
        unsafe { System.dealloc(place, layout) }
    }
}

fn under<R>(rule: Rule, work: impl FnOnce() -> R) -> (R, Rule) {
    assert!(RULE.replace(Some(rule)).is_none(), "rules don't nest");
    let result = work();
    (result, RULE.take().expect("set above"))
}

/// Runs `work` with its allocation number `n` (from 0 on) refused. Says whether there was one.
pub(crate) fn refusing<R>(n: usize, work: impl FnOnce() -> R) -> (R, bool) {
    let (result, rule) = under(Rule { left: n, ..IDLE }, work);
    (result, rule.refused)
}

/// Runs `work`, which must not allocate at all.
#[track_caller]
pub(crate) fn without_memory<R>(work: impl FnOnce() -> R) -> R {
    let (result, rule) = under(IDLE, work);
    assert_eq!(rule.asked, 0, "what must not fail asked for memory");
    result
}

/// Runs `work`, which must allocate once; the layout. Nothing is exempt any more.
#[track_caller]
pub(crate) fn only_allocation<R>(work: impl FnOnce() -> R) -> (R, Layout) {
    EXEMPT.set(None);
    let (result, rule) = under(IDLE, work);
    assert_eq!(rule.asked, 1);
    (result, rule.latest)
}

/// Lets allocations of one layout succeed in this thread from now on, without counting them.
pub(crate) fn exempt(layout: Layout) {
    EXEMPT.set(Some(layout));
}

/// Runs code that is not what is tested.
pub(crate) fn paused<R>(work: impl FnOnce() -> R) -> R {
    let rule = RULE.take();
    let result = work();
    RULE.set(rule);
    result
}
