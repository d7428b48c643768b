//! Who lives how long, and who gets what when somebody else lets go: rules H1 to H7.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use lapidary::fence::{self, Fence, FenceError, Interrupt, Signaller, Timeline};
use lapidary::gem::{Handle, HandleTable};
use lapidary::gpuvm::{GpuVm, MapRequest, Va, VaRange, VmConfig, VmError};
use lapidary::reaper::Reaper;
use lapidary::resv::{Reservation, Usage};
use lapidary::sched::{Backend, ProtoContext, ProtoError, QueueConfig, Scheduler};

use crate::driver::{DriverError, Fixture, Model, PAGE, Space, Worker, buffer, mapped_fixture, range};

// ---- H1: the last handle may be dropped anywhere ----

#[test]
fn h01_the_last_handle_may_be_dropped_in_a_fence_callback() {
    // Given an address space with a mapping, whose last handle a fence's callback holds
    let Fixture { vm, space, reaper } = mapped_fixture();
    let (fence, signaller) = Timeline::new("test").next();
    fence.on_signal(move |_| drop(vm));
    // When the fence signals, in the middle of a signalling section and under the driver's own lock, which the
    // release needs
    {
        let held = space.0.lock();
        let _section = fence::signalling();
        signaller.signal();
        // Then the drop has returned and freed nothing inline
        assert_eq!(held.entries.len(), 4);
    }
    reaper.flush();
    assert!(space.0.lock().entries.is_empty());
    assert_ne!(space.0.lock().torn_down_by, Some(std::thread::current().id()));
}

#[test]
fn h01_the_last_handle_may_be_dropped_under_reservations() {
    let Fixture { vm, space, reaper } = mapped_fixture();
    let reservation = vm.reservation().clone();
    let held = reservation.lock();
    drop(vm);
    reaper.flush();
    drop(held);
    assert!(space.0.lock().entries.is_empty());
}

/// A backend whose jobs are things to let go of.
struct LettingGo;

impl Backend for LettingGo {
    type Work = Box<dyn Send>;

    fn run(&self, work: Box<dyn Send>, done: Signaller) {
        drop(work);
        done.signal();
    }
}

/// Drops something under a lock.
type DropUnder = fn(Box<dyn Send>);

/// Ways to drop something with a lock of ARCHITECTURE.md's table held, from the top. Those that the library keeps to itself
/// are reached through the driver's code that runs under them; the GPU's are a driver's own lock to the library.
const UNDER_EACH_LOCK: [(&str, DropUnder); 12] = [
    ("a context's parameters, while they are set", |last| {
        ProtoContext::<_, ()>::new(()).configure(|()| drop(last)).unwrap();
    }),
    ("a context's parameters, while it is made", |last| {
        let make = |(): &()| -> Result<(), ProtoError> {
            drop(last);
            Ok(())
        };
        ProtoContext::new(()).fix(make).unwrap();
    }),
    ("another address space's right to change", |last| {
        let other = mapped_fixture();
        let _held = other.vm.lock().unwrap();
        drop(last);
    }),
    ("another address space's right to change, shared", |last| {
        let other = mapped_fixture();
        let _held = other.vm.lock_shared().unwrap();
        drop(last);
    }),
    ("reservations, many at once", |last| {
        let other = mapped_fixture();
        other.map(100, 1, &buffer(&Reservation::new())).unwrap();
        let guard = other.vm.lock_shared().unwrap();
        let _held = guard.locked().lock_all(1, &Interrupt::none()).unwrap();
        drop(last);
    }),
    ("a queue, while its job runs", |last| {
        let queue = Scheduler::new("test", Arc::new(LettingGo), 1).queue(QueueConfig::default());
        assert!(queue.push(last, []).map_err(|refused| refused.error).unwrap().is_signalled());
    }),
    ("a queue, while it is killed", |last| {
        let queue = Scheduler::new("test", Arc::new(LettingGo), 1).queue(QueueConfig::default());
        let (fence, _never) = Timeline::new("never").next();
        queue.push(last, [fence]).map_err(|refused| refused.error).unwrap();
        queue.kill(FenceError::Cancelled);
    }),
    ("another address space's book, for reading", |last| {
        let other = mapped_fixture();
        let _held = other.vm.read();
        drop(last);
    }),
    ("another address space's book, in its steps, and its page tables", |last| {
        let other = mapped_fixture();
        other.space.0.lock().dropped_by_step = Some(last);
        other.unmap(1, 4).unwrap();
        assert!(other.space.0.lock().dropped_by_step.is_none());
    }),
    ("another address space's book, for writing", |last| {
        let other = Fixture::new();
        other.space.0.lock().dropped_by_charge = Some(last);
        other.map(1, 4, &other.local()).unwrap();
        assert!(other.space.0.lock().dropped_by_charge.is_none());
    }),
    ("a fence, whose callback is taken back", |last| {
        let (fence, _never) = Timeline::new("never").next();
        let callback = fence.add_callback(move |_| drop(last)).ok().unwrap();
        fence.remove_callback(callback);
    }),
    ("the reaper, in a release", |last| {
        let reaper = Reaper::new();
        reaper.queue(Box::new(move || drop(last)));
        reaper.flush();
    }),
];

#[test]
fn h01_the_last_handle_may_be_dropped_under_each_lock_of_the_table() {
    for (lock, drop_under) in UNDER_EACH_LOCK {
        // Given an address space of which one handle is left, and a driver's lock that its release needs
        let Fixture { vm, space, reaper } = mapped_fixture();
        let held = space.0.lock();
        // When that handle is dropped under a lock
        drop_under(Box::new(vm));
        // Then the drop has returned, nothing was freed inline, and the release runs when it can.
        assert_eq!(held.entries.len(), 4, "{lock}");
        drop(held);
        reaper.flush();
        let tables = space.0.lock();
        assert!(tables.entries.is_empty(), "{lock}");
        assert_ne!(tables.torn_down_by, Some(std::thread::current().id()), "{lock}");
    }
}

/// The address space goes with the object, and the object with another address space.
#[test]
fn h01_the_last_handle_may_be_dropped_by_the_end_of_another_address_space() {
    let Fixture { vm: inner, space, reaper } = mapped_fixture();
    let outer = Fixture::new();
    let object = outer.local();
    object.keep(inner);
    outer.map(1, 4, &object).unwrap();
    drop(object);
    outer.vm.close();
    reaper.flush();
    assert!(space.0.lock().entries.is_empty());
}

#[test]
fn h01_the_last_reference_to_a_tie_may_be_dropped_in_steps_and_in_fence_callbacks() {
    let fixture = Fixture::new();
    let (object, other) = (fixture.local(), fixture.local());
    let tie = fixture.vm.obtain(&object).unwrap();
    fixture.space.0.lock().dropped_by_step = Some(Box::new(tie));
    fixture.map(1, 4, &other).unwrap();
    assert_eq!(Arc::strong_count(&object), 1);
    let tie = fixture.vm.obtain(&object).unwrap();
    let (fence, signaller) = Timeline::new("test").next();
    fence.on_signal(move |_| drop(tie));
    signaller.signal();
    assert_eq!(Arc::strong_count(&object), 1);
    // Their places were given back.
    fixture.map(1, 4, &object).unwrap();
    fixture.vm.read().check().unwrap();
}

#[test]
fn h01_of_racing_drops_one_releases() {
    let Fixture { vm, space, reaper } = mapped_fixture();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let vm = vm.clone();
            scope.spawn(move || drop(vm));
        }
        drop(vm);
    });
    reaper.flush();
    assert_eq!(space.0.lock().flushes, 2, "one for the mapping, one for the end");
}

// ---- H2: shutdown waits for releases ----

#[test]
fn h02_a_flush_returns_after_every_queued_release() {
    let fixtures: Vec<_> = (0..16).map(|_| Fixture::new()).collect();
    let reaper = Reaper::new();
    let mut spaces = Vec::new();
    for fixture in fixtures {
        let vm = GpuVm::new(VmConfig::bits(47), Reservation::new(), fixture.space.clone(), &reaper);
        let object = buffer(vm.reservation());
        let vm_bo = vm.obtain(&object).unwrap();
        let request = MapRequest::object(range(1, 4), &vm_bo, 0, 0);
        vm.lock().unwrap().map(&request, &mut Worker(&fixture.space)).unwrap();
        spaces.push((fixture.space.clone(), Arc::downgrade(&object)));
    }
    reaper.flush();
    for (space, object) in spaces {
        assert!(space.0.lock().entries.is_empty());
        assert!(object.upgrade().is_none());
    }
}

#[test]
fn h02_shutdown_returns_after_releases_that_releases_have_queued() {
    // Given a chain of address spaces, each kept alive by an object in the one before
    let reaper = Reaper::new();
    let spaces: Vec<_> = (0..10).map(|_| Arc::new(Space::default())).collect();
    let mut next: Option<GpuVm<Model>> = None;
    for space in &spaces {
        let vm = GpuVm::new(VmConfig::bits(47), Reservation::new(), space.clone(), &reaper);
        let object = buffer(vm.reservation());
        object.keep(next.take());
        let vm_bo = vm.obtain(&object).unwrap();
        let request = MapRequest::object(range(1, 4), &vm_bo, 0, 0);
        vm.lock().unwrap().map(&request, &mut Worker(space)).unwrap();
        next = Some(vm);
    }
    // When the first goes, and the device is shut down
    drop(next);
    reaper.shutdown();
    // Then all have gone.
    assert!(spaces.iter().all(|space| space.0.lock().torn_down_by.is_some()));
    assert_eq!(reaper.pending(), 0);
}

#[test]
fn h02_handles_may_go_during_a_shutdown_and_after_it() {
    let reaper = Reaper::new();
    let space = || Arc::new(Space::default());
    let spaces: Vec<Vec<_>> = (0..4).map(|_| (0..50).map(|_| space()).collect()).collect();
    let make = |space: &Arc<Space>| {
        GpuVm::<Model>::new(VmConfig::bits(47), Reservation::new(), space.clone(), &reaper)
    };
    std::thread::scope(|scope| {
        for spaces in &spaces {
            scope.spawn(move || spaces.iter().for_each(|space| drop(make(space))));
        }
        for _ in 0..20 {
            reaper.shutdown();
        }
    });
    reaper.flush();
    assert!(spaces.iter().flatten().all(|space| space.0.lock().torn_down_by.is_some()));
    let late = space();
    drop(make(&late));
    reaper.shutdown();
    assert!(late.0.lock().torn_down_by.is_some());
}

// ---- H3: look-ups that race with destruction ----

#[test]
fn h03_a_look_up_that_races_with_destruction_gets_an_address_space_that_works_or_none() {
    const ROUNDS: u64 = 400;
    let reaper = Reaper::new();
    let table = HandleTable::<GpuVm<Model>>::new();
    let gone = AtomicBool::new(false);
    let spaces: Vec<_> = (0..ROUNDS).map(|_| Arc::new(Space::default())).collect();
    std::thread::scope(|scope| {
        for thread in 1..3 {
            let (table, gone) = (&table, &gone);
            scope.spawn(move || {
                while !gone.load(Ordering::Relaxed) {
                    // Whatever is found is whole: it takes mappings, even if its handle goes meanwhile.
                    let Some(vm) = table.get(Handle(1)) else { continue };
                    let object = buffer(vm.reservation());
                    let (space, vm_bo) = (vm.space().clone(), vm.obtain(&object).unwrap());
                    let request = MapRequest::object(range(100 * thread, 4), &vm_bo, 0, 0);
                    vm.lock().unwrap().map(&request, &mut Worker(&space)).unwrap();
                    assert!(vm.read().at(request.start()).is_some());
                    assert!(vm_bo.vm().is_some_and(|found| found.ptr_eq(&vm)));
                }
            });
        }
        for space in &spaces {
            let vm = GpuVm::new(VmConfig::bits(47), Reservation::new(), space.clone(), &reaper);
            let handle = table.insert(vm).unwrap();
            std::thread::yield_now();
            drop(table.remove(handle));
        }
        gone.store(true, Ordering::Relaxed);
    });
    reaper.flush();
    for space in spaces {
        let tables = space.0.lock();
        assert!(tables.torn_down_by.is_some() && tables.entries.is_empty());
    }
}

#[test]
fn h03_a_tie_leads_to_a_whole_address_space_or_to_none() {
    for _ in 0..200 {
        let Fixture { vm, space, reaper } = mapped_fixture();
        let tie = vm.obtain(&buffer(&Reservation::new())).unwrap();
        std::thread::scope(|scope| {
            let finder = scope.spawn(|| match tie.vm() {
                // Found in time: it is not gone before this handle is.
                Some(found) => {
                    found.lock().unwrap().unmap(range(1, 2), &mut Worker(&space)).unwrap();
                    found.read().len()
                }
                None => 0,
            });
            drop(vm);
            assert!(finder.join().unwrap() <= 1);
        });
        reaper.flush();
        assert!(tie.vm().is_none() && space.0.lock().entries.is_empty());
    }
}

// ---- H5: a shared reservation outlives the address space ----

#[test]
fn h05_a_shared_reservation_outlives_the_address_space() {
    // Given a local object
    let fixture = Fixture::new();
    let object = fixture.local();
    fixture.map(1, 4, &object).unwrap();
    assert!(!fixture.vm.find(&object).unwrap().is_external());
    let space = Arc::downgrade(&fixture.space);
    // When the address space goes
    let reaper = fixture.reaper.clone();
    drop(fixture);
    reaper.flush();
    // Then it is really gone, and the object's reservation still works
    assert!(space.upgrade().is_none());
    let mut guard = object.reservation().lock();
    guard.reserve(1).unwrap();
    guard.add_fence(Fence::signalled(), Usage::Write);
}

#[test]
fn h05_a_submission_locks_the_shared_reservation_once_and_each_external_one() {
    let fixture = Fixture::new();
    let locals: Vec<_> = (0..10).map(|_| fixture.local()).collect();
    let own = Reservation::new();
    let external = [buffer(&own), buffer(&own), buffer(&Reservation::new())];
    for (i, object) in locals.iter().chain(&external).enumerate() {
        fixture.map(100 * i as u64, 4, object).unwrap();
    }
    let (fence, _signaller) = Timeline::new("test").next();
    let guard = fixture.vm.lock_shared().unwrap();
    let locked = guard.locked();
    let mut exec = locked.lock_all(1, &Interrupt::none()).unwrap();
    assert_eq!(exec.len(), 3);
    locked.add_fence(&mut exec, &fence, Usage::Bookkeep, Usage::Write);
    drop(exec);
    assert_eq!(fixture.vm.reservation().fences(Usage::Write).len(), 0);
    assert_eq!(fixture.vm.reservation().fences(Usage::Bookkeep).len(), 1);
    assert_eq!(own.fences(Usage::Write).len(), 1);
}

// ---- H6: look-up caches ----

#[test]
fn h06_a_tie_that_was_looked_up_is_whole_although_the_last_mapping_goes() {
    let fixture = Fixture::new();
    let object = fixture.local();
    let found = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while found.load(Ordering::Relaxed) < 200 {
                let Some(tie) = fixture.vm.find(&object) else { continue };
                assert!(Arc::ptr_eq(tie.object(), &object));
                // It can be mapped with: it is the one that the address space knows.
                fixture.map_at(50, 1, &tie, 0).unwrap();
                assert!(fixture.vm.find(&object).is_some_and(|known| known.ptr_eq(&tie)));
                fixture.unmap(50, 1).unwrap();
                found.fetch_add(1, Ordering::Relaxed);
            }
        });
        while found.load(Ordering::Relaxed) < 200 {
            fixture.map(1, 4, &object).unwrap();
            fixture.unmap(1, 4).unwrap();
        }
    });
    assert!(fixture.vm.find(&object).is_none());
    assert_eq!(Arc::strong_count(&object), 1);
    fixture.vm.read().check().unwrap();
}

/// A driver's cache from a client's handle to the tie, so that a submission need not look objects up one by one.
#[test]
fn h06_a_cache_of_ties_hands_out_what_outlives_handle_mapping_and_address_space() {
    let fixture = Fixture::new();
    let cache = HandleTable::new();
    let object = fixture.local();
    let weak = Arc::downgrade(&object);
    fixture.map(1, 4, &object).unwrap();
    let handle = cache.insert(fixture.vm.find(&object).unwrap()).unwrap();
    drop(object);
    let looked_up = cache.get(handle).unwrap();
    drop(cache.remove(handle));
    fixture.unmap(1, 4).unwrap();
    fixture.vm.close();
    assert!(cache.get(handle).is_none());
    assert!(Arc::ptr_eq(looked_up.object(), &weak.upgrade().unwrap()));
    drop(looked_up);
    assert!(weak.upgrade().is_none());
}

// ---- H7: error paths ----

#[test]
fn h07_a_driver_that_refuses_leaves_everything_as_it_was() {
    // Given a mapping that a request would cut
    let fixture = Fixture::new();
    let (old, new) = (fixture.local(), fixture.local());
    fixture.map(10, 10, &old).unwrap();
    let vm_bo = fixture.vm.obtain(&new).unwrap();
    let (counts, before) = ((Arc::strong_count(&old), Arc::strong_count(&new)), fixture.mapped());
    // When the driver has no page table for it
    fixture.space.0.lock().refuse = true;
    assert_eq!(fixture.map_at(12, 4, &vm_bo, 0), Err(DriverError::NoPageTable));
    fixture.space.0.lock().refuse = true;
    assert_eq!(fixture.unmap(12, 4), Err(DriverError::NoPageTable));
    fixture.space.0.lock().refuse = true;
    let old_bo = fixture.vm.find(&old).unwrap();
    let refused = fixture.vm.lock().unwrap().unmap_object(&old_bo, &mut Worker(&fixture.space));
    assert_eq!(refused, Err(DriverError::NoPageTable));
    // Then nothing has changed
    assert_eq!(fixture.mapped(), before);
    assert_eq!((Arc::strong_count(&old), Arc::strong_count(&new)), counts);
}

#[test]
fn h07_a_batch_that_fails_halfway_is_taken_back() {
    let fixture = Fixture::new();
    let (old, new) = (fixture.local(), fixture.local());
    for i in 0..100 {
        fixture.map(10 * i, 10, &old).unwrap();
    }
    fixture.log();
    let before = fixture.mapped();
    let vm_bo = fixture.vm.obtain(&new).unwrap();
    {
        let mut guard = fixture.vm.lock().unwrap();
        let mut batch = guard.batch();
        batch.map(&MapRequest::object(range(5, 500), &vm_bo, 0, 0)).unwrap();
        batch.unmap(range(100, 20)).unwrap();
        batch.map(&MapRequest::null(range(110, 300), 1)).unwrap();
        batch.unmap_object(&fixture.vm.find(&old).unwrap()).unwrap();
        let outside = VaRange::new(Va::new(1 << 50), PAGE).unwrap();
        assert!(matches!(batch.unmap(outside), Err(VmError::OutsideSpace { .. })));
    }
    assert_eq!(fixture.mapped(), before);
    drop(vm_bo);
    assert_eq!(Arc::strong_count(&new), 1);
    assert!(fixture.log().is_empty(), "the page tables never heard of it");
}
