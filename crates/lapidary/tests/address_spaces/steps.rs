//! What requests turn into, and what can be looked up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lapidary::fence::Interrupt;
use lapidary::gpuvm::{MapRequest, Step};
use lapidary::resv::Reservation;

use crate::driver::{Fixture, Model, PAGE, Worker, buffer, range};

#[test]
fn each_way_two_mappings_can_meet() {
    // The old mapping covers pages 10..20 from its object's page 0 on. Pictures: head of `gpuvm`.
    type Mapped<'a> = &'a [(u64, u64, u64)];
    let cases: [(u64, u64, Mapped<'_>, &str); 9] = [
        (10, 10, &[(10, 10, 100)], "unmap"),
        (10, 15, &[(10, 15, 100)], "unmap"),
        (10, 4, &[(10, 4, 100), (14, 6, 4)], "remap next"),
        (15, 5, &[(10, 5, 0), (15, 5, 100)], "remap prev"),
        (13, 4, &[(10, 3, 0), (13, 4, 100), (17, 3, 7)], "remap prev next"),
        (15, 10, &[(10, 5, 0), (15, 10, 100)], "remap prev"),
        (5, 15, &[(5, 15, 100)], "unmap"),
        (5, 20, &[(5, 20, 100)], "unmap"),
        (5, 10, &[(5, 10, 100), (15, 5, 5)], "remap next"),
    ];
    for (first, pages, after, step) in cases {
        let fixture = Fixture::new();
        let (old, new) = (fixture.local(), fixture.vm.obtain(&fixture.local()).unwrap());
        fixture.map(10, 10, &old).unwrap();
        fixture.log();
        fixture.map_at(first, pages, &new, 100).unwrap();
        assert_eq!(fixture.mapped(), after, "map of {pages} pages at {first}");
        let log = fixture.log();
        assert_eq!(log.len(), 2);
        assert!(log[0].starts_with(step.split(' ').next().unwrap()), "{log:?}");
        assert_eq!(log[0].contains("prev=Some"), step.contains("prev"), "{log:?}");
        assert_eq!(log[0].contains("next=Some"), step.contains("next"), "{log:?}");
        assert!(log[1].starts_with("map"));

        fixture.unmap(first, pages).unwrap();
        let left: Vec<_> = after.iter().copied().filter(|mapping| mapping.2 != 100).collect();
        assert_eq!(fixture.mapped(), left);
    }
}

#[test]
fn entries_may_stay_where_the_same_bytes_are_mapped_again() {
    let fixture = Fixture::new();
    let vm_bo = fixture.vm.obtain(&fixture.local()).unwrap();
    let keeps = |first: u64, pages: u64, page: u64, tag: u32| {
        let fixture = &fixture;
        let mut guard = fixture.vm.lock().unwrap();
        guard.map(&MapRequest::object(range(10, 10), &vm_bo, 0, 0), &mut Worker(&fixture.space)).unwrap();
        let mut batch = guard.batch();
        batch.map(&MapRequest::object(range(first, pages), &vm_bo, page * PAGE, tag)).unwrap();
        let keep = batch.steps().iter().next().unwrap().keep();
        drop(batch);
        keep
    };
    assert!(keeps(10, 10, 0, 0));
    assert!(keeps(12, 4, 2, 0));
    assert!(keeps(15, 20, 5, 0));
    assert!(!keeps(12, 4, 3, 0), "other bytes");
    assert!(!keeps(12, 4, 2, 1), "another tag");
}

#[test]
fn null_and_host_mappings_split_like_any_other() {
    let fixture = Fixture::new();
    let vm_bo = fixture.vm.obtain(&fixture.local()).unwrap();
    let worker = &mut Worker(&fixture.space);
    let mut guard = fixture.vm.lock().unwrap();
    guard.map(&MapRequest::null(range(0, 100), 0), worker).unwrap();
    guard.map(&MapRequest::host(range(40, 20), 1000 * PAGE, 0), worker).unwrap();
    guard.map(&MapRequest::object(range(45, 5), &vm_bo, 0, 0), worker).unwrap();
    drop(guard);
    assert_eq!(fixture.mapped(), [(0, 40, 0), (40, 5, 1000), (45, 5, 0), (50, 10, 1010), (60, 40, 0)]);
}

#[test]
fn unmapping_an_object_takes_all_its_mappings_and_no_others() {
    let fixture = Fixture::new();
    let (a, b) = (fixture.local(), fixture.local());
    for i in 0..200 {
        fixture.map(10 * i, 5, if i % 2 == 0 { &a } else { &b }).unwrap();
    }
    let vm_bo = fixture.vm.find(&a).unwrap();
    assert_eq!(fixture.vm.read().mappings_of(&vm_bo).count(), 100);
    fixture.vm.lock().unwrap().unmap_object(&vm_bo, &mut Worker(&fixture.space)).unwrap();
    assert_eq!(fixture.vm.read().mappings_of(&vm_bo).count(), 0);
    assert_eq!(fixture.mapped().len(), 100);
    drop(vm_bo);
    assert_eq!(Arc::strong_count(&a), 1);
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
fn a_free_range_is_found_between_mappings() {
    let fixture = Fixture::new();
    let object = fixture.local();
    for (first, pages) in [(0, 10), (12, 8), (30, 10)] {
        fixture.map(first, pages, &object).unwrap();
    }
    let guard = fixture.vm.lock().unwrap();
    let find = |pages: u64, align: u64, within| {
        guard.find_empty(pages * PAGE, align * PAGE, within).map(|va| va.raw() / PAGE)
    };
    let all = range(0, 1000);
    assert_eq!(find(1, 1, all), Some(10));
    assert_eq!(find(3, 1, all), Some(20));
    assert_eq!(find(1, 16, all), Some(48));
    assert_eq!(find(11, 1, all), Some(40));
    assert_eq!(find(1, 1, range(13, 6)), None);
    assert_eq!(find(11, 1, range(0, 50)), None);
    assert_eq!(find(0, 1, all), None);
    assert_eq!(guard.find_empty(PAGE, 3, all), None);
}

#[test]
fn the_dump_names_what_is_mapped() {
    let fixture = Fixture::new();
    let object = buffer(&Reservation::new());
    fixture.map(16, 1, &object).unwrap();
    object.vm_bos().evict_all();
    let text = fixture.vm.dump().to_string();
    assert!(text.contains("0x000000010000..0x000000011000"), "{text}");
    assert!(text.contains("(external, evicted)"), "{text}");
}

#[test]
fn readers_and_a_changer_meet_without_harm() {
    let fixture = Fixture::new();
    let object = fixture.local();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let read = fixture.vm.read();
                    // A map over a range replaces what is there in one go: a reader never sees the gap.
                    if !read.is_empty() {
                        assert!(read.iter().map(|mapping| mapping.range.len()).sum::<u64>() >= 64 * PAGE);
                    }
                    drop(read);
                    std::thread::yield_now();
                }
            });
        }
        for i in 0..500 {
            fixture.map(0, 64, &object).unwrap();
            fixture.map(i % 60, 4, &object).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Steps can be passed on and looked at by any means that takes them by value.
#[test]
fn steps_are_plain_values() {
    fn copy<T: Copy>(_: T) {}
    let fixture = Fixture::new();
    let request: MapRequest<'_, Model> = MapRequest::null(range(1, 1), 0);
    copy(Step::Map(request));
    assert_eq!(fixture.mapped(), []);
}
