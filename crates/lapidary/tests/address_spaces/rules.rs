//! The rules, by their numbers.

use std::sync::Arc;

use lapidary::fence::{self, Fence, Interrupt, Timeline};
use lapidary::gpuvm::{GpuVm, MapRequest, ObjectId, Steps, Va, VaRange, VmConfig, VmError, VmTypes};
use lapidary::reaper::Reaper;
use lapidary::resv::{Reservation, Usage};

use crate::driver::{DriverError, Fixture, PAGE, Worker, buffer, range};

/// An address space with one mapping of four pages.
fn mapped_fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.map(1, 4, &fixture.local()).unwrap();
    fixture
}

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

#[test]
fn an_external_object_is_locked_while_it_is_mapped_and_no_longer() {
    let fixture = Fixture::new();
    let objects: Vec<_> = (0..5).map(|_| buffer(&Reservation::new())).collect();
    for (i, object) in objects.iter().enumerate() {
        fixture.map(10 * i as u64, 4, object).unwrap();
        fixture.map(1000 + 10 * i as u64, 4, object).unwrap();
    }
    let locked = || {
        let guard = fixture.vm.lock_shared().unwrap();
        guard.locked().lock_all(0, &Interrupt::none()).unwrap().len()
    };
    assert_eq!(locked(), 6);
    fixture.unmap(10, 4).unwrap();
    assert_eq!(locked(), 6, "mapped elsewhere still");
    fixture.unmap(1010, 4).unwrap();
    assert_eq!(locked(), 5);
    fixture.unmap(0, 2000).unwrap();
    assert_eq!(locked(), 1);
    fixture.map(0, 4, &objects[1]).unwrap();
    assert_eq!(locked(), 2);
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

// ---- H25: a failed insert leaks nothing ----

#[test]
fn h25_a_failed_insert_leaks_nothing() {
    let fixture = Fixture::with(VmConfig { limit: 1, ..VmConfig::bits(47) });
    let object = fixture.local();
    fixture.map(1, 1, &object).unwrap();
    let bytes = fixture.vm.read().bytes();
    for page in 10..200 {
        let refused = fixture.map(page, 1, &buffer(&Reservation::new()));
        assert_eq!(refused, Err(DriverError::Vm(VmError::TooManyMappings { limit: 1 })));
    }
    assert_eq!(fixture.mapped(), [(1, 1, 0)]);
    let grown = fixture.vm.read().bytes() - bytes;
    assert!(grown <= 4096, "ties that came to nothing were reused, {grown} bytes more");
    fixture.vm.close();
    assert_eq!(Arc::strong_count(&object), 1);
}

// ---- H26: closing with live mappings ----

#[test]
fn h26_closing_unmaps_flushes_and_only_then_releases() {
    let fixture = Fixture::new();
    let object = fixture.local();
    for i in 0..1000 {
        fixture.map(2 * i, 1, &object).unwrap();
    }
    {
        let mut tables = fixture.space.0.lock();
        tables.watched = vec![object.clone()];
        tables.log.clear();
    }
    let vm_bo = fixture.vm.find(&object).unwrap();
    drop(vm_bo);
    fixture.vm.close();
    let mut tables = fixture.space.0.lock();
    assert!(tables.entries.is_empty());
    assert_eq!(tables.log.len(), 1000);
    assert_eq!(tables.unflushed, 0);
    assert_eq!(tables.seen, [3], "at the flush the address space still held the object");
    tables.watched.clear();
    assert_eq!(Arc::strong_count(&object), 1);
}

#[test]
fn h26_a_closed_address_space_refuses_and_closing_twice_is_fine() {
    let fixture = mapped_fixture();
    let other = fixture.vm.clone();
    fixture.vm.close();
    fixture.vm.close();
    assert!(matches!(other.lock(), Err(VmError::Closed)));
    assert!(matches!(other.lock_shared(), Err(VmError::Closed)));
    assert!(other.read().is_empty());
    assert_eq!(fixture.map(1, 1, &fixture.local()), Err(DriverError::Vm(VmError::Closed)));
}

#[test]
fn h26_ties_that_outlive_a_closed_address_space_are_the_last() {
    let fixture = mapped_fixture();
    let (old, new) = (fixture.local(), fixture.local());
    let tie = fixture.vm.obtain(&old).unwrap();
    fixture.vm.close();
    assert!(matches!(fixture.vm.obtain(&new), Err(VmError::Closed)));
    assert!(fixture.vm.find(&old).is_none());
    drop(tie);
    assert_eq!((Arc::strong_count(&old), Arc::strong_count(&new)), (1, 1));
}

#[test]
fn h26_closing_is_possible_while_its_reservation_is_held() {
    let fixture = mapped_fixture();
    let reservation = fixture.vm.reservation().clone();
    let _held = reservation.lock();
    fixture.vm.close();
    assert!(fixture.space.0.lock().entries.is_empty());
}

#[test]
fn h26_what_is_unmapped_is_held_until_after_the_flush() {
    let fixture = Fixture::new();
    let object = fixture.local();
    fixture.map(1, 4, &object).unwrap();
    fixture.space.0.lock().watched = vec![object.clone()];
    fixture.unmap(0, 10).unwrap();
    let seen = fixture.space.0.lock().seen.clone();
    assert_eq!(seen, [3]);
    assert_eq!(Arc::strong_count(&object), 2, "the test's two");
}

#[test]
fn h26_a_committed_list_holds_what_it_unmaps() {
    let fixture = Fixture::new();
    let object = fixture.local();
    fixture.map(1, 4, &object).unwrap();
    let steps = {
        let mut guard = fixture.vm.lock().unwrap();
        let mut batch = guard.batch();
        batch.unmap(range(0, 10)).unwrap();
        batch.commit()
    };
    assert!(fixture.vm.read().is_empty());
    assert_eq!(Arc::strong_count(&object), 2, "the list's");
    for step in steps.iter() {
        fixture.space.0.lock().carry_out(&step);
    }
    drop(steps);
    assert_eq!(Arc::strong_count(&object), 1);
}

// ---- H27: who keeps whom ----

#[test]
fn h27_a_mapping_keeps_its_object_and_not_its_address_space() {
    let fixture = Fixture::new();
    let object = fixture.local();
    let weak = Arc::downgrade(&object);
    fixture.map(1, 4, &object).unwrap();
    drop(object);
    let object = weak.upgrade().expect("mapped");
    let vm_bo = fixture.vm.find(&object).unwrap();
    // Neither the mapping nor its tie is enough for the address space to live on.
    let Fixture { vm, space, reaper } = fixture;
    drop(vm);
    reaper.flush();
    assert!(space.0.lock().entries.is_empty());
    assert!(vm_bo.vm().is_none());
    // The tie, which outlived the address space, still keeps the object.
    drop(object);
    assert!(weak.upgrade().is_some());
    drop(vm_bo);
    assert!(weak.upgrade().is_none());
}

#[test]
fn h27_a_tie_goes_with_its_last_user_or_its_last_mapping_whichever_is_later() {
    let fixture = Fixture::new();
    let object = fixture.local();
    // The last user is later:
    let vm_bo = fixture.vm.obtain(&object).unwrap();
    fixture.map_at(1, 4, &vm_bo, 0).unwrap();
    fixture.unmap(1, 4).unwrap();
    assert!(fixture.vm.find(&object).is_some());
    drop(vm_bo);
    assert!(fixture.vm.find(&object).is_none());
    assert_eq!(object.vm_bos().snapshot().len(), 0);
    // The last mapping is later:
    fixture.map(1, 4, &object).unwrap();
    assert!(fixture.vm.find(&object).is_some());
    assert_eq!(object.vm_bos().snapshot().len(), 1);
    fixture.unmap(1, 4).unwrap();
    assert!(fixture.vm.find(&object).is_none());
    assert_eq!(Arc::strong_count(&object), 1);
}

#[test]
fn h27_there_is_one_tie_per_object_however_many_ask() {
    let fixture = Fixture::new();
    let object = fixture.local();
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| fixture.vm.obtain(&object).unwrap())).collect();
        let ties: Vec<_> = asked.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(ties.windows(2).all(|pair| pair[0].ptr_eq(&pair[1])));
    });
    assert_eq!(Arc::strong_count(&object), 1);
}

// ---- H28: what no request may touch ----

#[test]
fn h28_the_kernels_range_is_neither_counted_nor_removable() {
    let fixture = Fixture::with(VmConfig { kernel: Some(range(100, 50)), ..VmConfig::bits(47) });
    let object = fixture.local();
    for (first, pages) in [(100, 50), (99, 2), (149, 1), (0, 1000)] {
        let refused = Err(DriverError::Vm(VmError::KernelReserved {
            range: range(first, pages),
            reserved: range(100, 50),
        }));
        assert_eq!(fixture.map(first, pages, &object), refused);
        assert_eq!(fixture.unmap(first, pages), refused);
    }
    fixture.map(0, 100, &object).unwrap();
    fixture.map(150, 10, &object).unwrap();
    assert_eq!(fixture.vm.read().len(), 2);
    let free = fixture.vm.lock().unwrap().find_empty(5 * PAGE, PAGE, range(0, 1000));
    assert_eq!(free, Some(Va::new(160 * PAGE)));
}

#[test]
fn h28_a_request_that_leaves_the_space_or_overflows_is_refused() {
    let config = VmConfig { range: range(16, 1 << 20), ..VmConfig::bits(47) };
    let fixture = Fixture::with(config);
    let vm_bo = fixture.vm.obtain(&fixture.local()).unwrap();
    for (first, pages) in [(0, 1), (15, 2), ((1 << 20) + 15, 2), (1 << 40, 1), (0, 1 << 50)] {
        let refused = fixture.map_at(first, pages, &vm_bo, 0);
        assert!(matches!(refused, Err(DriverError::Vm(VmError::OutsideSpace { .. }))), "{refused:?}");
    }
    let overflowing = [
        MapRequest::object(range(16, 2), &vm_bo, u64::MAX - PAGE, 0),
        MapRequest::host(range(16, 2), u64::MAX - PAGE, 0),
    ];
    for request in overflowing {
        let refused = fixture.vm.lock().unwrap().map(&request, &mut Worker(&fixture.space));
        assert!(matches!(refused, Err(DriverError::Vm(VmError::OffsetOverflow { .. }))));
    }
    let other = Fixture::new();
    assert_eq!(other.map_at(16, 1, &vm_bo, 0), Err(DriverError::Vm(VmError::ForeignVmBo)));
    assert!(fixture.mapped().is_empty() && other.mapped().is_empty());
}

// ---- H29: limits ----

#[test]
fn h29_past_the_limit_requests_fail_and_nothing_else_is_harmed() {
    let fixture = Fixture::with(VmConfig { limit: 4, ..VmConfig::bits(47) });
    let object = fixture.local();
    fixture.map(0, 10, &object).unwrap();
    fixture.map(20, 10, &object).unwrap();
    fixture.map(40, 10, &object).unwrap();
    let full = Err(DriverError::Vm(VmError::TooManyMappings { limit: 4 }));
    assert_eq!(fixture.map(4, 2, &object), full, "three in place of one");
    fixture.unmap(4, 2).unwrap();
    assert_eq!(fixture.unmap(24, 2), full, "two in place of one");
    assert_eq!(fixture.map(60, 1, &object), full);
    // What does not add to their number goes through.
    fixture.map(20, 10, &object).unwrap();
    fixture.map(0, 30, &object).unwrap();
    assert_eq!(fixture.mapped(), [(0, 30, 0), (40, 10, 0)]);
}

#[test]
fn h29_a_batch_past_the_limit_is_taken_back() {
    let fixture = Fixture::with(VmConfig { limit: 3, ..VmConfig::bits(47) });
    let vm_bo = fixture.vm.obtain(&fixture.local()).unwrap();
    let mut guard = fixture.vm.lock().unwrap();
    let mut batch = guard.batch();
    let mut mapped = 0;
    while batch.map(&MapRequest::object(range(10 * mapped, 5), &vm_bo, 0, 0)).is_ok() {
        mapped += 1;
    }
    drop(batch);
    drop(guard);
    assert_eq!(mapped, 3);
    assert!(fixture.mapped().is_empty());
}

#[test]
fn h29_memory_for_records_is_charged_to_the_owner_and_credited_again() {
    let fixture = Fixture::new();
    let object = fixture.local();
    let charged = || fixture.space.0.lock().charged;
    fixture.map(0, 1, &object).unwrap();
    let one = charged();
    assert!(one > 0);
    for i in 1..500 {
        fixture.map(2 * i, 1, &object).unwrap();
    }
    assert!(charged() >= 500 * 48, "{} bytes", charged());
    // An owner who has used up its share gets no further; what it has is not harmed.
    fixture.space.0.lock().refuse_memory = true;
    let mut at = 1000;
    while fixture.map(at, 1, &object).is_ok() {
        at += 2;
    }
    assert_eq!(fixture.map(at, 1, &object), Err(DriverError::Vm(VmError::OutOfMemory)));
    assert_eq!(fixture.mapped().len() as u64, at / 2);
    fixture.unmap(0, 10_000).unwrap();
    assert_eq!(charged(), 0);
    fixture.space.0.lock().refuse_memory = false;
    fixture.map(0, 1, &object).unwrap();
    fixture.vm.close();
    assert_eq!(charged(), 0);
}

// ---- H30: tracking alone ----

/// A driver without reservations, eviction or page tables: it wants to know what is where.
struct Tracker;

impl VmTypes for Tracker {
    type Object = &'static str;
    type Tag = ();
    type Space = ();

    fn id(object: &&'static str) -> ObjectId {
        ObjectId(object.as_ptr() as usize)
    }

    fn teardown(_: &()) -> impl Steps<Self> {}
}

#[test]
fn h30_mappings_can_be_tracked_alone() {
    let vm = GpuVm::<Tracker>::new(VmConfig::bits(40), Reservation::new(), (), &Reaper::new());
    let (a, b) = (vm.obtain(&"a").unwrap(), vm.obtain(&"b").unwrap());
    let mut guard = vm.lock().unwrap();
    guard.map(&MapRequest::object(range(0, 10), &a, 0, ()), &mut ()).unwrap();
    guard.map(&MapRequest::object(range(5, 10), &b, 0, ()), &mut ()).unwrap();
    let found: Vec<_> =
        guard.read().iter().map(|mapping| (mapping.range, *mapping.vm_bo().unwrap().object())).collect();
    assert_eq!(found, [(range(0, 5), "a"), (range(5, 10), "b")]);
    assert!(!a.is_external());
}

#[test]
fn h30_an_address_space_for_one_mapping_is_small() {
    let vm = GpuVm::<Tracker>::new(VmConfig::bits(40), Reservation::new(), (), &Reaper::new());
    let a = vm.obtain(&"a").unwrap();
    vm.lock().unwrap().map(&MapRequest::object(range(0, 10), &a, 0, ()), &mut ()).unwrap();
    let bytes = vm.read().bytes();
    assert!(bytes < 4096, "{bytes} bytes");
}
