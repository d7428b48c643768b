//! What a submission does: lock what is mapped, bring back what was evicted, leave a fence.

use std::cell::Cell;

use lapidary::exec::{Duplicates, Exec, ExecError};
use lapidary::fence::{Fence, Interrupt};
use lapidary::gpuvm::MapRequest;
use lapidary::resv::{Reservation, Usage};

use crate::driver::{Fixture, Object, buffer, range};

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

#[test]
fn any_number_of_external_objects_is_locked_each_once() {
    for count in [0, 1, 15, 16, 17, 32, 50] {
        let fixture = Fixture::new();
        let objects: Vec<_> = (0..count).map(|_| buffer(&Reservation::new())).collect();
        for (i, object) in objects.iter().enumerate() {
            fixture.map(10 * i as u64, 4, object).unwrap();
        }
        let guard = fixture.vm.lock_shared().unwrap();
        let exec = guard.locked().lock_all(1, &Interrupt::none()).unwrap();
        assert_eq!(exec.len(), 1 + count);
        assert!(objects.iter().all(|object| exec.is_locked(object.reservation())));
    }
}

/// An address space with external objects at pages 0, 100 and 200, five pages each, and one that is not mapped.
fn with_external() -> (Fixture, [Object; 4]) {
    let fixture = Fixture::new();
    let objects = std::array::from_fn(|_| buffer(&Reservation::new()));
    for (i, object) in objects.iter().take(3).enumerate() {
        fixture.map(100 * i as u64, 5, object).unwrap();
    }
    (fixture, objects)
}

#[test]
fn a_submission_for_a_range_locks_what_is_mapped_there() {
    let (fixture, [a, b, c, _]) = with_external();
    // Given an object that is mapped many times in the range, and a local one
    for i in 0..50 {
        fixture.map(110 + 2 * i, 1, &b).unwrap();
    }
    fixture.map(50, 5, &fixture.local()).unwrap();
    let guard = fixture.vm.lock_shared().unwrap();
    let locked = guard.locked();
    let mut exec = locked.lock_range(range(50, 152), 1, &Interrupt::none()).unwrap();
    // Then it is locked once, what is partly in the range too, and what is elsewhere not
    assert_eq!(exec.len(), 3);
    assert!(exec.is_locked(fixture.vm.reservation()));
    assert!(exec.is_locked(b.reservation()) && exec.is_locked(c.reservation()));
    assert!(!a.reservation().is_locked());
    // And each has room for a fence.
    locked.add_fence(&mut exec, &Fence::signalled(), Usage::Bookkeep, Usage::Write);
}

#[test]
fn a_submission_can_lock_more_than_is_mapped() {
    let (fixture, [a, _, _, unmapped]) = with_external();
    let guard = fixture.vm.lock_shared().unwrap();
    let locked = guard.locked();
    let others = [unmapped.reservation(), a.reservation()];
    let mut exec = locked.lock_all_and(others, 1, &Interrupt::none()).unwrap();
    assert_eq!(exec.len(), 5);
    locked.add_fence(&mut exec, &Fence::signalled(), Usage::Bookkeep, Usage::Write);
}

#[test]
fn a_request_locks_what_it_meets_and_what_it_maps() {
    let (fixture, [a, b, c, new]) = with_external();
    let vm_bo = fixture.vm.obtain(&new).unwrap();
    let guard = fixture.vm.lock().unwrap();
    let locked = guard.locked();
    let request = MapRequest::object(range(3, 100), &vm_bo, 0, 0);
    let lock = |exec: &mut Exec| locked.lock_map_in(exec, &request, 1);
    let (mut exec, ()) = Exec::run(Duplicates::Allow, &Interrupt::none(), lock).unwrap();
    assert_eq!(exec.len(), 4);
    for object in [&a, &b, &new] {
        exec.guard(object.reservation()).unwrap().add_fence(Fence::signalled(), Usage::Write);
    }
    drop(exec);
    // To unmap there, or to map what has no reservation of its own, takes one lock less.
    let null = MapRequest::null(range(3, 100), 0);
    let lock = |exec: &mut Exec| locked.lock_map_in(exec, &null, 1);
    let (exec, ()) = Exec::run(Duplicates::Allow, &Interrupt::none(), lock).unwrap();
    assert_eq!((exec.len(), new.reservation().is_locked(), c.reservation().is_locked()), (3, false, false));
}

/// What a later request meets because of an earlier one was locked for the earlier one.
#[test]
fn a_list_of_requests_can_be_locked_before_the_first_is_on_record() {
    let (fixture, [a, _, _, new]) = with_external();
    let vm_bo = fixture.vm.obtain(&new).unwrap();
    let mut guard = fixture.vm.lock().unwrap();
    let map = MapRequest::object(range(50, 10), &vm_bo, 0, 0);
    let (exec, ()) = {
        let locked = guard.locked();
        let lock = |exec: &mut Exec| -> Result<(), ExecError> {
            locked.lock_map_in(exec, &map, 1)?;
            locked.lock_range_in(exec, range(0, 55), 1)
        };
        Exec::run(Duplicates::Allow, &Interrupt::none(), lock).unwrap()
    };
    let mut batch = guard.batch();
    batch.map(&map).unwrap();
    batch.unmap(range(0, 55)).unwrap();
    for step in batch.steps().iter() {
        let met = match step {
            lapidary::gpuvm::Step::Unmap { mapping, .. } => mapping,
            lapidary::gpuvm::Step::Remap { unmap, .. } => unmap,
            _ => continue,
        };
        assert!(exec.is_locked(met.vm_bo().unwrap().object().reservation()));
    }
    assert!(exec.is_locked(a.reservation()));
}

#[test]
fn an_evicted_object_is_validated_once_and_stays_evicted_if_that_fails() {
    let fixture = Fixture::new();
    let objects: Vec<_> = (0..3).map(|_| buffer(&Reservation::new())).collect();
    for (i, object) in objects.iter().enumerate() {
        fixture.map(10 * i as u64, 5, object).unwrap();
    }
    objects[0].vm_bos().evict_all();
    objects[1].vm_bos().evict_all();
    objects[1].vm_bos().evict_all();
    let guard = fixture.vm.lock_shared().unwrap();
    let locked = guard.locked();
    let _exec = locked.lock_all(0, &Interrupt::none()).unwrap();
    assert!(locked.needs_validation());
    assert_eq!(locked.validate(|_| Err("no memory")), Err("no memory"));
    let mut validated = Vec::new();
    locked
        .validate(|vm_bo| {
            // Bringing one back evicts another: that one follows.
            if vm_bo.object().id() == objects[0].id() {
                objects[2].vm_bos().evict_all();
            }
            validated.push(vm_bo.object().id());
            Ok::<_, ()>(())
        })
        .unwrap();
    validated.sort_unstable();
    let mut expected: Vec<_> = objects.iter().map(|object| object.id()).collect();
    expected.sort_unstable();
    assert_eq!(validated, expected);
    assert!(!locked.needs_validation());
}

#[test]
fn what_is_evicted_in_a_range_is_brought_back_for_that_range() {
    let (fixture, objects) = with_external();
    let ids = objects.each_ref().map(|object| object.id());
    objects.iter().for_each(|object| object.vm_bos().evict_all());
    let guard = fixture.vm.lock_shared().unwrap();
    let locked = guard.locked();
    let _exec = locked.lock_all(0, &Interrupt::none()).unwrap();
    assert_eq!(locked.validate_range(range(90, 11), |_| Err("no memory")), Err("no memory"));
    // When the second of two is brought back, the first has to give way once
    let (mut brought, gave_way) = (Vec::new(), Cell::new(false));
    locked
        .validate_range(range(0, 150), |vm_bo| {
            brought.push(vm_bo.object().id());
            if vm_bo.object().id() == ids[1] && !gave_way.replace(true) {
                objects[0].vm_bos().evict_all();
            }
            Ok::<_, ()>(())
        })
        .unwrap();
    // Then it is brought back again, and what is mapped elsewhere is as it was
    assert_eq!(brought, [ids[0], ids[1], ids[0]]);
    let evicted = |i: usize| fixture.vm.find(&objects[i]).is_some_and(|vm_bo| vm_bo.is_evicted());
    assert_eq!([evicted(0), evicted(1), evicted(2)], [false, false, true]);
    // And a later validation meets only that.
    brought.clear();
    locked
        .validate(|vm_bo| {
            brought.push(vm_bo.object().id());
            Ok::<_, ()>(())
        })
        .unwrap();
    assert_eq!((brought, locked.needs_validation()), (vec![ids[2]], false));
}

#[test]
fn an_object_that_comes_and_goes_takes_one_place_on_the_list() {
    let (fixture, [object, ..]) = with_external();
    let vm_bo = fixture.vm.find(&object).unwrap();
    let guard = fixture.vm.lock_shared().unwrap();
    let locked = guard.locked();
    for _ in 0..10_000 {
        vm_bo.evict();
        vm_bo.set_valid();
    }
    vm_bo.evict();
    let mut met = 0;
    locked
        .validate(|_| {
            met += 1;
            Ok::<_, ()>(())
        })
        .unwrap();
    assert_eq!(met, 1);
}

#[test]
fn an_eviction_that_comes_while_another_is_dealt_with_is_not_lost() {
    let (fixture, [object, ..]) = with_external();
    let vm_bo = fixture.vm.find(&object).unwrap();
    let rounds = 2000;
    std::thread::scope(|scope| {
        let evictor = scope.spawn(|| {
            for _ in 0..rounds {
                let _held = object.reservation().lock();
                vm_bo.evict();
            }
        });
        while !evictor.is_finished() {
            let guard = fixture.vm.lock_shared().unwrap();
            let locked = guard.locked();
            let _exec = locked.lock_all(0, &Interrupt::none()).unwrap();
            locked.validate(|_| Ok::<_, ()>(())).unwrap();
            // Nobody evicts while the reservation is held.
            assert!(!vm_bo.is_evicted());
        }
    });
    let guard = fixture.vm.lock_shared().unwrap();
    guard.locked().validate(|_| Ok::<_, ()>(())).unwrap();
    assert!(!vm_bo.is_evicted());
}
