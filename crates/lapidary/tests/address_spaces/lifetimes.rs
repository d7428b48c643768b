//! Who lives how long, and who gets what when somebody else lets go: rules H1 to H7.

use std::sync::Arc;

use lapidary::fence::{self, Fence, Interrupt, Timeline};
use lapidary::gpuvm::{GpuVm, MapRequest, Va, VaRange, VmConfig, VmError};
use lapidary::reaper::Reaper;
use lapidary::resv::{Reservation, Usage};

use crate::driver::{DriverError, Fixture, PAGE, Worker, buffer, mapped_fixture, range};

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
