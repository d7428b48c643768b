//! What requests turn into, and what can be looked up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lapidary::gpuvm::{BackingRef, MapRequest, MappingRef, Step};
use lapidary::resv::Reservation;

use crate::driver::{DriverError, Fixture, Model, PAGE, Worker, buffer, range};

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

/// The picture in the head of `gpuvm`.
#[test]
fn a_retag_splits_at_the_ends_of_its_range_where_that_makes_a_difference() {
    let fixture = Fixture::new();
    let object = fixture.local();
    for (first, pages) in [(0, 10), (20, 10), (30, 10), (50, 10)] {
        fixture.map(first, pages, &object).unwrap();
    }
    let mut guard = fixture.vm.lock().unwrap();
    guard.retag(range(30, 10), |_| 1, &mut Worker(&fixture.space)).unwrap();
    fixture.log();
    guard.retag(range(5, 50), |_| 1, &mut Worker(&fixture.space)).unwrap();
    drop(guard);
    let tags: Vec<_> = fixture.vm.read().iter().map(|mapping| mapping.get().tag).collect();
    assert_eq!(fixture.mapped(), [(0, 5, 0), (5, 5, 5), (20, 10, 0), (30, 10, 0), (50, 5, 0), (55, 5, 5)]);
    assert_eq!(tags, [0, 1, 1, 1, 1, 0]);
    let log = fixture.log();
    assert_eq!(log.len(), 3, "one for each whose tag changes: {log:?}");
    assert!(log.iter().all(|step| step.starts_with("retag")));
}

#[test]
fn a_retag_to_what_is_there_changes_nothing_and_tells_nobody() {
    let fixture = Fixture::new();
    fixture.map(0, 10, &fixture.local()).unwrap();
    fixture.log();
    let flushes = fixture.space.0.lock().flushes;
    let mut guard = fixture.vm.lock().unwrap();
    guard.retag(range(3, 4), |part| part.tag, &mut Worker(&fixture.space)).unwrap();
    guard.retag(range(20, 4), |_| 1, &mut Worker(&fixture.space)).unwrap();
    let mut batch = guard.batch();
    batch.retag(range(3, 4), |_| 0).unwrap();
    assert!(batch.commit().is_empty());
    drop(guard);
    assert_eq!((fixture.mapped(), fixture.log().len()), (vec![(0, 10, 0)], 0));
    assert_eq!(fixture.space.0.lock().flushes, flushes);
}

#[test]
fn a_retag_may_depend_on_what_is_mapped() {
    let fixture = Fixture::new();
    let worker = &mut Worker(&fixture.space);
    let mut guard = fixture.vm.lock().unwrap();
    guard.map(&MapRequest::host(range(0, 10), 0x10_0000, 0), worker).unwrap();
    guard.map(&MapRequest::null(range(10, 10), 0), worker).unwrap();
    // It is shown the part in the range, with its place in the backing.
    let only_host = |part: &MappingRef<'_, Model>| match part.backing {
        BackingRef::Host { addr } => (addr / PAGE) as u32,
        _ => part.tag,
    };
    guard.retag(range(4, 10), only_host, worker).unwrap();
    let tags: Vec<_> = guard.read().iter().map(|mapping| mapping.get().tag).collect();
    assert_eq!(tags, [0, 0x104, 0]);
}

#[test]
fn a_driver_without_page_tables_refuses_a_retag_and_nothing_has_changed() {
    let fixture = Fixture::new();
    fixture.map(0, 10, &fixture.local()).unwrap();
    fixture.space.0.lock().refuse = true;
    let mut guard = fixture.vm.lock().unwrap();
    let refused = guard.retag(range(3, 4), |_| 1, &mut Worker(&fixture.space));
    drop(guard);
    assert_eq!((refused, fixture.mapped()), (Err(DriverError::NoPageTable), vec![(0, 10, 0)]));
}

#[test]
fn a_prefetch_is_a_step_for_each_mapping_and_changes_nothing() {
    let fixture = Fixture::new();
    let object = fixture.local();
    for (first, pages) in [(0, 10), (20, 10), (30, 10), (50, 10)] {
        fixture.map(first, pages, &object).unwrap();
    }
    let before = fixture.mapped();
    let mut guard = fixture.vm.lock().unwrap();
    guard.prefetch(range(25, 20), &mut Worker(&fixture.space)).unwrap();
    guard.prefetch(range(40, 10), &mut Worker(&fixture.space)).unwrap();
    drop(guard);
    assert_eq!(fixture.mapped(), before);
    let prefetched = fixture.space.0.lock().prefetched.clone();
    assert_eq!(prefetched, [(range(20, 10), range(25, 5)), (range(30, 10), range(30, 10))]);
}

#[test]
fn a_prefetch_in_a_batch_sees_what_the_batch_has_done_by_then() {
    let fixture = Fixture::new();
    let object = fixture.local();
    fixture.map(0, 10, &object).unwrap();
    let mut guard = fixture.vm.lock().unwrap();
    let mut batch = guard.batch();
    batch.unmap(range(5, 5)).unwrap();
    batch.map(&MapRequest::null(range(20, 2), 0)).unwrap();
    batch.prefetch(range(0, 100)).unwrap();
    batch.unmap(range(20, 2)).unwrap();
    let steps = batch.commit();
    let prefetched: Vec<_> = steps.iter().filter(|step| matches!(step, Step::Prefetch { .. })).collect();
    assert_eq!(prefetched.iter().map(Step::affected).collect::<Vec<_>>(), [range(0, 5), range(20, 2)]);
    // The list holds the object until it is dropped.
    drop(guard);
    steps.iter().for_each(|step| fixture.space.0.lock().carry_out(&step));
    fixture.vm.close();
    assert!(Arc::strong_count(&object) > 1);
    drop(steps);
    assert_eq!(Arc::strong_count(&object), 1);
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
                        assert!(read.iter().map(|mapping| mapping.range().len()).sum::<u64>() >= 64 * PAGE);
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
