//! What models watch: values that are read and written without an order, and memory that is freed too often or never.

#![allow(unsafe_code, reason = "cells and allocators are")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// A value that any thread may use; `loom` reports two uses, one of them a write, without an order between them.
pub(crate) struct Watched<T>(loom::cell::UnsafeCell<T>);

// SAFETY: `loom` ends the model before a race.
unsafe impl<T: Send> Sync for Watched<T> {}

impl<T: Copy> Watched<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::cell::UnsafeCell::new(value))
    }

    pub(crate) fn read(&self) -> T {
        // SAFETY: as above.
        self.0.with(|value| unsafe { *value })
    }

    pub(crate) fn write(&self, new: T) {
        // SAFETY: as above.
        self.0.with_mut(|value| unsafe { *value = new });
    }
}

/// What the memory of a stand-in is aligned to, and nothing else's.
pub(crate) const ALIGN: usize = 256;

thread_local! {
    // A model's threads are all run by one thread of the system.
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() == ALIGN {
            LIVE.with(|live| live.set(live.get() + 1));
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if layout.align() == ALIGN {
            LIVE.with(|live| live.set(live.get() - 1));
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// How many stand-ins have memory.
pub(crate) fn live() -> isize {
    LIVE.with(Cell::get)
}

pub(crate) fn assert_all_freed() {
    assert_eq!(live(), 0, "memory of fences is left at the end of a model, or was freed twice");
}
