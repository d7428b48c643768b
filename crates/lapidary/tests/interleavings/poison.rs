//! Memory that is freed is overwritten, so that who looks at it afterwards does not find what was there.

#![allow(unsafe_code, reason = "an allocator is")]

use std::alloc::{GlobalAlloc, Layout, System};

struct Poisoning;

#[global_allocator]
static ALLOCATOR: Poisoning = Poisoning;

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Poisoning {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // A locked and pending container, to whom this was a fence's state; small enough blocks are anything.
        // SAFETY: it is the caller's until it is freed.
        unsafe { memory.write_bytes(0xa5, layout.size().min(256)) };
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}
