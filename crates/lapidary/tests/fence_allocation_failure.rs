//! Fences on reservations when memory runs out: H20 and H25's like for lists of fences. What can fail reports it and has
//! changed nothing; what can't fail takes no memory, or does without.

#![allow(unsafe_code, reason = "an allocator is")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    ptr,
};

use lapidary::{
    exec::{Duplicates, Exec, ExecError},
    fence::{Fence, FenceContext, Interrupt, Seqno, Signaller},
    resv::{Reservation, ResvError, Usage},
};

thread_local! {
    /// How many more times this thread is given memory; `None` for ever.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    /// Whether it was refused.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

struct Scarce;

#[global_allocator]
static ALLOCATOR: Scarce = Scarce;

// SAFETY: the system's allocator does it all; null is how an allocator says that there is nothing.
unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match LEFT.get() {
            Some(0) => {
                REFUSED.set(true);
                return ptr::null_mut();
            }
            Some(left) => LEFT.set(Some(left - 1)),
            None => {}
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Does `work` with memory for `allocations` allocations. The answer also says whether it wanted more.
fn with_memory_for<R>(allocations: usize, work: impl FnOnce() -> R) -> (R, bool) {
    REFUSED.set(false);
    LEFT.set(Some(allocations));
    let answer = work();
    LEFT.set(None);
    (answer, REFUSED.get())
}

fn fence() -> (Fence, Signaller) {
    Fence::new(FenceContext::alloc(), Seqno(1))
}

/// A reservation with this many pending fences, and whoever signals them.
fn reservation(fences: usize) -> (Reservation, Vec<Signaller>) {
    let resv = Reservation::new();
    let mut guard = resv.lock();
    guard.reserve(fences).unwrap();
    let add = |_| {
        let (fence, signaller) = fence();
        guard.add_fence(fence, Usage::Read);
        signaller
    };
    let signallers = (0..fences).map(add).collect();
    drop(guard);
    (resv, signallers)
}

fn contexts(resv: &Reservation) -> Vec<FenceContext> {
    let mut contexts: Vec<_> =
        resv.snapshot(Usage::Bookkeep).iter().map(|(fence, _)| fence.context()).collect();
    contexts.sort_unstable();
    contexts
}

/// Sizes of lists: none, a few, what a first table has room for, and more than a snapshot has room for itself.
const SIZES: [usize; 5] = [0, 1, 4, 20, 100];

#[test]
fn h20_reserving_reports_that_there_is_no_memory_and_changes_nothing() {
    for size in SIZES {
        for read_meanwhile in [false, true] {
            for allocations in 0.. {
                // Given a list, full, of which some fences have signalled, and maybe somebody who is reading it.
                let (resv, mut signallers) = reservation(size);
                signallers.truncate(size - size / 3);
                let before = contexts(&resv);
                let reader = read_meanwhile.then(|| resv.snapshot(Usage::Bookkeep));
                let mut guard = resv.lock();
                // When room is made with less memory than that takes.
                let (reserved, refused) = with_memory_for(allocations, || guard.reserve(size + 8));
                // Then the caller is told, and the fences are those of before.
                if reserved.is_err() {
                    assert_eq!(reserved, Err(ResvError::OutOfMemory(size + 8)));
                    assert!(refused);
                }
                drop(guard);
                assert_eq!(contexts(&resv), before);
                // And it works when there is memory again.
                let mut guard = resv.lock();
                guard.reserve(size + 8).unwrap();
                let (fence, _signaller) = fence();
                guard.add_fence(fence, Usage::Kernel);
                drop((guard, reader));
                assert_eq!(contexts(&resv).len(), before.len() + 1);
                if !refused {
                    assert_eq!(reserved, Ok(()));
                    break;
                }
            }
        }
    }
}

#[test]
fn h20_what_is_reserved_can_be_added_without_memory() {
    for size in SIZES {
        let (resv, signallers) = reservation(size);
        let (fences, _signallers): (Vec<_>, Vec<_>) = (0..8).map(|_| fence()).unzip();
        let mut guard = resv.lock();
        guard.reserve(8).unwrap();
        let ((), refused) = with_memory_for(0, || {
            for fence in fences {
                guard.add_fence(fence, Usage::Write);
            }
            // And it can be unlocked, and looked at.
            drop(guard);
            assert!(!resv.is_idle(Usage::Write));
        });
        assert!(!refused);
        assert_eq!(contexts(&resv).len(), size + 8);
        drop(signallers);
    }
}

#[test]
fn h20_copying_reports_that_there_is_no_memory_and_changes_nothing() {
    for (size, old) in [(0, 3), (1, 0), (4, 4), (20, 2), (100, 30)] {
        for read_meanwhile in [false, true] {
            for allocations in 0.. {
                let ((source, _signallers), (target, _old)) = (reservation(size), reservation(old));
                let before = contexts(&target);
                let reader = read_meanwhile.then(|| target.snapshot(Usage::Bookkeep));
                let mut guard = target.lock();
                let (copied, refused) = with_memory_for(allocations, || guard.copy_from(&source));
                drop(guard);
                match copied {
                    Ok(()) => assert_eq!(contexts(&target), contexts(&source)),
                    Err(error) => {
                        assert_eq!(error, ResvError::OutOfMemory(size));
                        assert!(refused);
                        assert_eq!(contexts(&target), before);
                    }
                }
                // What a reader holds is what it found, even if there was no memory to note that it is gone.
                assert!(reader.is_none_or(|reader| reader.iter().all(|(fence, _)| !fence.is_signalled())));
                if !refused {
                    break;
                }
            }
        }
    }
}

#[test]
fn h20_fences_are_replaced_and_unlocked_under_readers_without_memory() {
    let (resv, _signallers) = reservation(20);
    let contexts = contexts(&resv);
    let (replacement, _signaller) = fence();
    let reader = resv.snapshot(Usage::Bookkeep);
    let mut guard = resv.lock();
    let ((), _) = with_memory_for(0, || {
        for context in &contexts {
            guard.replace_fences(*context, replacement.clone(), Usage::Bookkeep);
        }
        drop(guard);
    });
    assert!(reader.iter().all(|(fence, _)| !fence.is_signalled() && contexts.contains(&fence.context())));
    drop(reader);
    assert!(resv.snapshot(Usage::Bookkeep).iter().all(|(fence, _)| fence.ptr_eq(&replacement)));
}

#[test]
fn locking_and_preparing_a_set_reports_that_there_is_no_memory() {
    let none = Interrupt::none();
    let resvs: Vec<_> = (0..40).map(|_| reservation(4)).collect();
    for locked_before in [0, 1, 16, 32] {
        for allocations in 0.. {
            let mut exec = Exec::new(Duplicates::Refuse, &none);
            for (resv, _) in &resvs[..locked_before] {
                exec.lock(resv).unwrap();
            }
            let ((resv, _), (tried, _)) = (&resvs[locked_before], &resvs[locked_before + 1]);
            let (prepared, refused) = with_memory_for(allocations, || exec.prepare(resv, 10));
            match prepared {
                Ok(()) => assert!(exec.is_locked(resv)),
                Err(error) => assert!(refused && matches!(error, ExecError::OutOfMemory(1 | 10)), "{error}"),
            }
            // Trying has no error to report it with.
            let (locked, no_memory) = with_memory_for(0, || exec.try_lock(tried));
            assert!(locked || no_memory);
            assert_eq!(exec.len(), exec.guards().count());
            assert!(resvs.iter().all(|(resv, _)| resv.is_locked() == exec.is_locked(resv)));
            drop(exec);
            assert!(resvs.iter().all(|(resv, _)| !resv.is_locked()));
            if !refused {
                assert_eq!(prepared, Ok(()));
                break;
            }
        }
    }
}
