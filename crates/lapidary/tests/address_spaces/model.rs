//! Random requests against a model that knows nothing but pages: what each shows, and which mapping put it there.
//!
//! The book must list the mappings the model has, and page tables kept by the steps alone, trusting `keep`, must
//! show what the model shows: after requests carried out at once, after batches committed, and after batches taken
//! back.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::driver::{Entry, Fixture, Model, Object, PAGE, Shows, Worker, buffer, entry, pages, range};
use lapidary::gpuvm::{MapRequest, MappingRef, VaRange, VmBo};
use lapidary::resv::Reservation;
use proptest::prelude::*;

const SPACE: u64 = 300;
const OBJECTS: usize = 4;

#[derive(Clone, Copy, Debug)]
enum Back {
    Object(usize, u64),
    Null,
    Host(u64),
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Map(u64, u64, Back, u32),
    Unmap(u64, u64),
    UnmapObject(usize),
}

#[derive(Clone, Debug)]
enum Request {
    AtOnce(Op),
    Batch(Vec<Op>),
    TakenBack(Vec<Op>),
}

fn op() -> impl Strategy<Value = Op> {
    let place = (0..SPACE, prop_oneof![4 => 1..12u64, 1 => 1..120u64]);
    // Backings that follow the address, so that the same bytes are often mapped again, and others.
    let back = prop_oneof![
        3 => (0..OBJECTS).prop_map(|object| Back::Object(object, u64::MAX)),
        2 => (0..OBJECTS, 0..50u64).prop_map(|(object, page)| Back::Object(object, page)),
        1 => Just(Back::Null),
        1 => (0..50u64).prop_map(Back::Host),
    ];
    prop_oneof![
        12 => (place.clone(), back, 0..2u32).prop_map(|((first, count), back, tag)| {
            let back = match back {
                Back::Object(object, u64::MAX) => Back::Object(object, first),
                back => back,
            };
            Op::Map(first, count, back, tag)
        }),
        5 => place.prop_map(|(first, count)| Op::Unmap(first, count)),
        1 => (0..OBJECTS).prop_map(Op::UnmapObject),
    ]
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let request = prop_oneof![
        3 => op().prop_map(Request::AtOnce),
        1 => prop::collection::vec(op(), 1..6).prop_map(Request::Batch),
        1 => prop::collection::vec(op(), 1..6).prop_map(Request::TakenBack),
    ];
    prop::collection::vec(request, 1..120)
}

/// What each page shows, and the number of the map request that put it there.
#[derive(Clone, Default, PartialEq, Debug)]
struct Pages {
    pages: BTreeMap<u64, (Entry, u64)>,
    requests: u64,
}

impl Pages {
    fn apply(&mut self, op: Op, objects: &[(Object, VmBo<Model>)]) {
        match op {
            Op::Map(first, count, back, tag) => {
                self.requests += 1;
                let request = request(first, count, back, tag, objects);
                for page in pages(request.range) {
                    self.pages.insert(page, (entry(&request, page), self.requests));
                }
            }
            Op::Unmap(first, count) => {
                for page in pages(range(first, count)) {
                    self.pages.remove(&page);
                }
            }
            Op::UnmapObject(object) => {
                let gone = objects[object].0.id();
                self.pages
                    .retain(|_, ((shows, _), _)| !matches!(shows, Shows::Object { id, .. } if *id == gone));
            }
        }
    }

    /// The mappings: runs of neighbouring pages of one request.
    fn mappings(&self) -> Vec<(VaRange, Entry)> {
        let mut runs: Vec<(u64, u64, Entry, u64)> = Vec::new();
        for (&page, &(entry, request)) in &self.pages {
            match runs.last_mut() {
                Some(run) if run.1 == page && run.3 == request => run.1 += PAGE,
                _ => runs.push((page, page + PAGE, entry, request)),
            }
        }
        let whole = |start: u64, end: u64| range(start / PAGE, (end - start) / PAGE);
        runs.into_iter().map(|(start, end, entry, _)| (whole(start, end), entry)).collect()
    }
}

fn request(
    first: u64,
    count: u64,
    back: Back,
    tag: u32,
    objects: &[(Object, VmBo<Model>)],
) -> MappingRef<'_, Model> {
    let range = range(first, count);
    match back {
        Back::Object(object, page) => MapRequest::object(range, &objects[object].1, page * PAGE, tag),
        Back::Null => MapRequest::null(range, tag),
        Back::Host(page) => MapRequest::host(range, page * PAGE, tag),
    }
}

fn run(requests: Vec<Request>) {
    let fixture = Fixture::new();
    let reservations = [fixture.vm.reservation().clone(), Reservation::new()];
    let objects: Vec<_> = (0..OBJECTS)
        .map(|i| {
            let object = buffer(&reservations[i % 2]);
            let vm_bo = fixture.vm.obtain(&object).unwrap();
            (object, vm_bo)
        })
        .collect();
    let mut model = Pages::default();
    for request in requests {
        step(&fixture, &objects, &mut model, request);
        agree(&fixture, &objects, &model);
    }
    fixture.vm.close();
    assert!(fixture.space.0.lock().entries.is_empty());
    for (object, vm_bo) in objects {
        drop(vm_bo);
        assert_eq!(Arc::strong_count(&object), 1);
    }
}

fn step(fixture: &Fixture, objects: &[(Object, VmBo<Model>)], model: &mut Pages, wanted: Request) {
    let mut guard = fixture.vm.lock().unwrap();
    let (ops, stays) = match wanted {
        Request::AtOnce(op) => {
            let worker = &mut Worker(&fixture.space);
            match op {
                Op::Map(first, count, back, tag) => {
                    guard.map(&request(first, count, back, tag, objects), worker).unwrap();
                }
                Op::Unmap(first, count) => guard.unmap(range(first, count), worker).unwrap(),
                Op::UnmapObject(object) => guard.unmap_object(&objects[object].1, worker).unwrap(),
            }
            model.apply(op, objects);
            return;
        }
        Request::Batch(ops) => (ops, true),
        Request::TakenBack(ops) => (ops, false),
    };
    let mut batch = guard.batch();
    for op in &ops {
        match *op {
            Op::Map(first, count, back, tag) => {
                batch.map(&request(first, count, back, tag, objects)).unwrap();
            }
            Op::Unmap(first, count) => batch.unmap(range(first, count)).unwrap(),
            Op::UnmapObject(object) => batch.unmap_object(&objects[object].1).unwrap(),
        }
        batch.guard().read().check().unwrap();
    }
    if stays {
        let steps = batch.commit();
        for step in steps.iter() {
            fixture.space.0.lock().carry_out(&step);
        }
        for op in ops {
            model.apply(op, objects);
        }
    }
}

fn agree(fixture: &Fixture, objects: &[(Object, VmBo<Model>)], model: &Pages) {
    let read = fixture.vm.read();
    read.check().unwrap();
    let mapped: Vec<_> =
        read.iter().map(|mapping| (mapping.range, entry(&mapping, mapping.start().raw()))).collect();
    assert_eq!(mapped, model.mappings());
    let shown: Vec<_> = fixture.space.0.lock().entries.iter().map(|(page, entry)| (*page, *entry)).collect();
    let expected: Vec<_> = model.pages.iter().map(|(page, (entry, _))| (*page, *entry)).collect();
    assert_eq!(shown, expected);
    let of_objects: usize = objects.iter().map(|(_, vm_bo)| read.mappings_of(vm_bo).count()).sum();
    assert_eq!(of_objects, read.iter().filter(|mapping| mapping.vm_bo().is_some()).count());
    let external = objects.iter().filter(|(_, vm_bo)| vm_bo.is_external());
    let external = external.filter(|(_, vm_bo)| read.mappings_of(vm_bo).next().is_some()).count();
    assert_eq!(read.external().count(), external);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_requests_agree_with_pages(requests in requests()) {
        run(requests);
    }
}
