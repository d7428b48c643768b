//! What mapping and unmapping may and may not do: rules H25 to H30.

use std::sync::Arc;

use lapidary::fence::Interrupt;
use lapidary::gpuvm::{GpuVm, MapRequest, MappingRef, ObjectId, Steps, Va, VmConfig, VmError, VmTypes};
use lapidary::reaper::Reaper;
use lapidary::resv::Reservation;
use lapidary::sync::Mutex;

use crate::driver::{DriverError, Fixture, Model, PAGE, Worker, buffer, mapped_fixture, range};

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

/// The same for all that can be asked of a range, at once and in a batch.
#[test]
fn h28_no_kind_of_request_touches_what_is_not_the_clients() {
    let config = VmConfig { range: range(16, 1000), kernel: Some(range(100, 50)), ..VmConfig::bits(47) };
    let fixture = Fixture::with(config);
    fixture.map(20, 70, &fixture.local()).unwrap();
    let before = fixture.mapped();
    let worker = &mut Worker(&fixture.space);
    let tag = |_: &MappingRef<'_, Model>| 1;
    let mut guard = fixture.vm.lock().unwrap();
    for (first, pages) in [(80, 21), (149, 5), (10, 20), (1000, 100), (1 << 45, 1)] {
        let range = range(first, pages);
        let error = match range.overlaps(config.kernel.unwrap()) {
            true => VmError::KernelReserved { range, reserved: config.kernel.unwrap() },
            false => VmError::OutsideSpace { range, space: config.range },
        };
        assert_eq!(guard.map(&MapRequest::null(range, 0), worker), Err(DriverError::Vm(error)));
        assert_eq!(guard.unmap(range, worker), Err(DriverError::Vm(error)));
        assert_eq!(guard.retag(range, tag, worker), Err(DriverError::Vm(error)));
        assert_eq!(guard.prefetch(range, worker), Err(DriverError::Vm(error)));
        let mut batch = guard.batch();
        assert_eq!(batch.map(&MapRequest::null(range, 0)), Err(error));
        assert_eq!(batch.unmap(range), Err(error));
        assert_eq!(batch.retag(range, tag), Err(error));
        assert_eq!(batch.prefetch(range), Err(error));
        assert!(batch.commit().is_empty());
    }
    drop(guard);
    assert_eq!(fixture.mapped(), before);
}

// ---- H29: limits ----

#[test]
fn h29_there_is_a_limit_even_if_none_is_asked_for() {
    assert_eq!(VmConfig::bits(48).limit, 1 << 30);
    let fixture = Fixture::with(VmConfig { limit: u32::MAX, ..VmConfig::bits(48) });
    assert_eq!(fixture.vm.config().limit, 1 << 30);
}

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

#[test]
fn h29_a_retag_past_the_limit_is_refused() {
    let fixture = Fixture::with(VmConfig { limit: 3, ..VmConfig::bits(47) });
    fixture.map(0, 10, &fixture.local()).unwrap();
    fixture.map(20, 10, &fixture.local()).unwrap();
    let retag = |first, pages, tag| {
        let mut guard = fixture.vm.lock().unwrap();
        guard.retag(range(first, pages), |_| tag, &mut Worker(&fixture.space))
    };
    let full = Err(DriverError::Vm(VmError::TooManyMappings { limit: 3 }));
    assert_eq!(retag(2, 2, 1), full, "three in place of one");
    assert_eq!(retag(5, 20, 1), full, "four in place of two");
    assert_eq!(retag(5, 20, 0), Ok(()), "nothing to change");
    assert_eq!(retag(0, 100, 1), Ok(()), "nothing to split");
    assert_eq!(retag(5, 100, 2), Ok(()), "two in place of one");
    assert_eq!(fixture.mapped(), [(0, 5, 0), (5, 5, 5), (20, 10, 0)]);
    assert_eq!(retag(0, 100, 0), Ok(()), "at the limit, nothing to split");
}

/// A driver that charges all address spaces of a client to one account.
struct Shared;

/// What the client has left.
type Account = Arc<Mutex<usize>>;

impl VmTypes for Shared {
    type Object = &'static str;
    type Tag = u32;
    type Space = Account;

    fn id(object: &&'static str) -> ObjectId {
        ObjectId(object.as_ptr() as usize)
    }

    fn teardown(_: &Account) -> impl Steps<Self> {}

    fn charge(left: &Account, bytes: usize) -> bool {
        let mut left = left.lock();
        let enough = left.checked_sub(bytes);
        enough.is_some_and(|rest| {
            *left = rest;
            true
        })
    }

    fn credit(left: &Account, bytes: usize) {
        *left.lock() += bytes;
    }
}

#[test]
fn h29_a_clients_address_spaces_share_what_it_may_have_and_others_are_not_harmed() {
    const ALLOWANCE: usize = 64 << 10;
    let reaper = Reaper::new();
    let space = |account: &Account| {
        GpuVm::<Shared>::new(VmConfig::bits(47), Reservation::new(), account.clone(), &reaper)
    };
    let fill = |vm: &GpuVm<Shared>| {
        let mut guard = vm.lock().unwrap();
        let mapped = (0..).map(|i| guard.map(&MapRequest::null(range(2 * i, 1), 0), &mut ()));
        mapped.take_while(Result::is_ok).count()
    };
    let (greedy, modest) = (Account::new(Mutex::new(ALLOWANCE)), Account::new(Mutex::new(ALLOWANCE)));
    let (first, second, other) = (space(&greedy), space(&greedy), space(&modest));
    // Given a client that maps in one address space until it may have no more
    let mapped = fill(&first);
    assert!(mapped > 500, "{mapped}");
    // Then it gets nowhere in its other one either, and a batch is taken back
    assert!(fill(&second) < mapped / 2);
    {
        let mut guard = first.lock().unwrap();
        let mut batch = guard.batch();
        let mut map = |i: u64| batch.map(&MapRequest::null(range(100_000 + 2 * i, 1), 0));
        assert_eq!((0..).find_map(|i| map(i).err()), Some(VmError::OutOfMemory));
    }
    // And what it has is not harmed, nor the other client
    first.read().check().unwrap();
    assert_eq!(first.read().len(), mapped);
    assert_eq!(fill(&other), mapped);
    // When the mappings go, or the address space does, all of it comes back.
    first.lock().unwrap().unmap(range(0, 1 << 20), &mut ()).unwrap();
    drop(second);
    reaper.flush();
    assert_eq!(*greedy.lock(), ALLOWANCE);
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
    let found: Vec<_> = guard
        .read()
        .iter()
        .map(|mapping| mapping.get())
        .map(|mapping| (mapping.range, *mapping.vm_bo().unwrap().object()))
        .collect();
    assert_eq!(found, [(range(0, 5), "a"), (range(5, 10), "b")]);
    assert!(!a.is_external());
}

#[test]
fn h30_tracking_alone_has_batches_ties_and_an_end_too() {
    let vm = GpuVm::<Tracker>::new(VmConfig::bits(40), Reservation::new(), (), &Reaper::new());
    let a = vm.obtain(&"a").unwrap();
    let mut guard = vm.lock().unwrap();
    let mut batch = guard.batch();
    batch.map(&MapRequest::object(range(0, 10), &a, 0, ())).unwrap();
    batch.unmap(range(4, 2)).unwrap();
    batch.prefetch(range(0, 100)).unwrap();
    assert_eq!(batch.commit().len(), 4);
    assert_eq!(guard.read().mappings_of(&a).count(), 2);
    // Nothing but the address space's own reservation is there to be locked, nothing is evicted.
    assert_eq!(guard.locked().lock_all(1, &Interrupt::none()).unwrap().len(), 1);
    assert!(!guard.locked().needs_validation());
    drop(guard);
    vm.close();
    assert!(vm.read().is_empty() && vm.find(&"a").is_none());
}

#[test]
fn h30_an_address_space_for_one_mapping_is_small() {
    let vm = GpuVm::<Tracker>::new(VmConfig::bits(40), Reservation::new(), (), &Reaper::new());
    let a = vm.obtain(&"a").unwrap();
    vm.lock().unwrap().map(&MapRequest::object(range(0, 10), &a, 0, ()), &mut ()).unwrap();
    let bytes = vm.read().bytes();
    assert!(bytes < 1100, "{bytes} bytes");
}
