//! Every allocation an address space makes is refused once, under random requests: the request fails, nothing is half done,
//! and nothing leaks. What must not fail is shown to ask for no memory.
//!
//! One allocation can't be refused, since Rust's shared pointers have no way to report it: the tie itself. It is measured
//! and left out.

#[path = "../address_spaces/driver.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod driver;
mod failing;
#[path = "../address_spaces/model.rs"]
mod model;

use std::sync::Arc;

use driver::{DriverError, Fixture, Model, Space, Worker, buffer};
use lapidary::gpuvm::{GpuVm, MapRequest, ObjectId, Plan, Step, Steps, VmConfig, VmError, VmTypes};
use lapidary::reaper::Reaper;
use lapidary::resv::Reservation;
use model::{Back, Op, Pages, Tied};
use proptest::prelude::*;

/// The driver, whose own memory is not what is tested.
struct Aside<'a>(&'a Space);

impl Steps<Model> for Aside<'_> {
    type Error = DriverError;

    fn reserve(&mut self, plan: &Plan<'_, Model>) -> Result<(), DriverError> {
        failing::paused(|| Worker(self.0).reserve(plan))
    }

    fn step(&mut self, step: Step<'_, Model>) {
        failing::paused(|| Worker(self.0).step(step));
    }

    fn flush(&mut self) {
        failing::paused(|| Worker(self.0).flush());
    }
}

/// Lets the one allocation succeed that can't be refused: a tie's own.
fn exempt_ties() {
    let fixture = Fixture::new();
    let object = fixture.local();
    // The second time everything else is there.
    drop(fixture.vm.obtain(&object).unwrap());
    let (tie, layout) = failing::only_allocation(|| fixture.vm.obtain(&object).unwrap());
    drop(tie);
    failing::exempt(layout);
}

#[derive(Clone, Debug)]
enum Request {
    AtOnce(Op),
    Batch(Vec<Op>),
    TakenBack(Vec<Op>),
    /// So many objects are tied for the first time, and let go of.
    Tie(usize),
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let request = prop_oneof![
        6 => model::op().prop_map(Request::AtOnce),
        2 => prop::collection::vec(model::op(), 1..6).prop_map(Request::Batch),
        2 => prop::collection::vec(model::op(), 1..6).prop_map(Request::TakenBack),
        1 => (1..20usize).prop_map(Request::Tie),
    ];
    prop::collection::vec(request, 1..30)
}

/// An address space and what it should be.
struct World {
    fixture: Fixture,
    objects: Vec<Tied>,
    pages: Pages,
}

impl World {
    /// The world after `requests`.
    fn after(config: VmConfig, requests: &[Request]) -> World {
        let fixture = Fixture::with(config);
        let objects = model::objects(&fixture);
        let mut world = World { fixture, objects, pages: Pages::new(config) };
        for request in requests {
            assert!(!world.carry_out(request, NONE));
        }
        world
    }

    /// Carries `request` out with its allocation number `n` refused. If there was one, the request has failed and nothing
    /// has changed; says so.
    fn carry_out(&mut self, request: &Request, n: usize) -> bool {
        let (refused, failed) = match request {
            Request::AtOnce(op) => self.at_once(*op, n),
            Request::Batch(ops) => self.batch(ops, true, n),
            Request::TakenBack(ops) => self.batch(ops, false, n),
            Request::Tie(count) => self.tie(*count, n),
        };
        assert_eq!(
            refused, failed,
            "an allocation failed and nobody noticed, or nothing failed and somebody did"
        );
        refused
    }

    fn at_once(&mut self, op: Op, n: usize) -> (bool, bool) {
        let World { fixture, objects, pages } = self;
        let mut guard = fixture.vm.lock().unwrap();
        let steps = &mut Aside(&fixture.space);
        let (outcome, refused) = failing::refusing(n, || op.at_once(&mut guard, objects, steps));
        let failed = outcome == Err(DriverError::Vm(VmError::OutOfMemory));
        if !failed {
            assert_eq!(outcome, pages.apply(op, objects).map_err(DriverError::Vm), "{op:?}");
        }
        (refused, failed)
    }

    /// A batch that ends at its first operation without memory, and leaves out what is refused for another reason.
    fn batch(&mut self, ops: &[Op], stays: bool, n: usize) -> (bool, bool) {
        let World { fixture, objects, pages } = self;
        let mut after = pages.clone();
        let expected: Vec<_> = ops.iter().map(|op| after.apply(*op, objects)).collect();
        let mut guard = fixture.vm.lock().unwrap();
        let mut batch = guard.batch();
        let mut each = ops.iter().zip(&expected);
        let (failed, refused) = failing::refusing(n, || {
            each.any(|(op, expected)| {
                let outcome = op.prepared(&mut batch, objects);
                let failed = outcome == Err(VmError::OutOfMemory);
                assert!(failed || outcome == *expected, "{op:?}: {outcome:?}");
                failed
            })
        });
        // Neither of the ways in which a batch ends needs memory, nor does going through the steps.
        if failed || !stays {
            failing::without_memory(|| drop(batch));
            return (refused, failed);
        }
        let steps = failing::without_memory(|| batch.commit());
        let carry_out = |step| failing::paused(|| fixture.space.0.lock().carry_out(&step));
        failing::without_memory(|| steps.iter().for_each(carry_out));
        fixture.space.0.lock().flush();
        failing::without_memory(|| drop(steps));
        *pages = after;
        (refused, failed)
    }

    fn tie(&mut self, count: usize, n: usize) -> (bool, bool) {
        let vm = &self.fixture.vm;
        let objects: Vec<_> = (0..count).map(|_| buffer(&Reservation::new())).collect();
        let mut ties = Vec::with_capacity(count);
        let (failed, refused) = failing::refusing(n, || {
            objects.iter().any(|object| match vm.obtain(object) {
                Ok(tie) => {
                    ties.push(tie);
                    false
                }
                Err(error) => {
                    assert_eq!(error, VmError::OutOfMemory);
                    true
                }
            })
        });
        // Evicting them, bringing them back and letting go can't fail.
        failing::without_memory(|| {
            objects.iter().for_each(|object| object.vm_bos().evict_all());
            for tie in ties.drain(..ties.len() / 2) {
                tie.set_valid();
                tie.evict();
            }
            let guard = vm.lock_shared().unwrap();
            guard.locked().validate(|_| Ok::<(), ()>(())).unwrap();
            drop(guard);
            ties.clear();
        });
        for object in &objects {
            assert_eq!(Arc::strong_count(object), 1);
            assert!(object.vm_bos().snapshot().is_empty() && vm.find(object).is_none());
        }
        (refused, failed)
    }

    fn agree(&self) {
        model::agree(&self.fixture, &self.objects, &self.pages);
    }
}

/// Refuses each allocation of each request in turn, in a world that is made anew each time, and then lets the request have
/// what it needs.
fn run(config: VmConfig, requests: &[Request]) -> usize {
    exempt_ties();
    let mut refusals = 0;
    for (k, request) in requests.iter().enumerate() {
        for n in 0.. {
            let mut world = World::after(config, &requests[..k]);
            let refused = world.carry_out(request, n);
            world.agree();
            if refused {
                refusals += 1;
                assert!(!world.carry_out(request, NONE));
                world.agree();
            }
            model::close(&world.fixture, world.objects);
            if !refused {
                break;
            }
        }
    }
    refusals
}

/// The number of no allocation.
const NONE: usize = usize::MAX;

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn h07_h25_each_allocation_is_refused_once_and_nothing_is_half_done_or_leaks(
        config in model::config(),
        requests in requests(),
    ) {
        run(config, &requests);
    }
}

#[test]
fn h25_the_first_mapping_is_refused_as_often_as_it_asks_for_memory() {
    let map = Op::Map(1, 4, Back::Object(0, 0), 0);
    // A chunk and the list of chunks, for records and for leaves.
    assert_eq!(run(VmConfig::bits(47), &[Request::AtOnce(map)]), 4);
    // And the list of steps.
    assert_eq!(run(VmConfig::bits(47), &[Request::Batch(vec![map])]), 5);
}

#[test]
fn h25_the_first_tie_is_refused_as_often_as_it_asks_for_memory() {
    exempt_ties();
    let mut n = 0;
    loop {
        let fixture = Fixture::new();
        let object = fixture.local();
        let (tie, refused) = failing::refusing(n, || fixture.vm.obtain(&object));
        assert_eq!(tie.is_err(), refused);
        drop(tie);
        assert_eq!(Arc::strong_count(&object), 1);
        if !refused {
            break;
        }
        n += 1;
    }
    // Index, slots, what they stand for, external objects, the lists of evicted and of untied ones, the object's list.
    assert_eq!(n, 7);
}

/// A driver without page tables, so that all memory is the address space's own.
struct Tracker;

impl VmTypes for Tracker {
    type Object = Arc<()>;
    type Tag = ();
    type Space = ();

    fn id(object: &Arc<()>) -> ObjectId {
        ObjectId(Arc::as_ptr(object) as usize)
    }

    fn teardown(_: &()) -> impl Steps<Self> {}
}

#[test]
fn h26_closing_with_a_thousand_mappings_asks_for_no_memory() {
    let vm = GpuVm::<Tracker>::new(VmConfig::bits(47), Reservation::new(), (), &Reaper::new());
    let objects: Vec<Arc<()>> = (0..10).map(|_| Arc::new(())).collect();
    // Distinct addresses for distinct objects.
    assert_ne!(Tracker::id(&objects[0]), Tracker::id(&objects[1]));
    for i in 0..1000 {
        let vm_bo = vm.obtain(&objects[i % objects.len()]).unwrap();
        let request = MapRequest::object(driver::range(2 * i as u64, 1), &vm_bo, 0, ());
        vm.lock().unwrap().map(&request, &mut ()).unwrap();
    }
    failing::without_memory(|| vm.close());
    assert!(objects.iter().all(|object| Arc::strong_count(object) == 1));
}

/// The worst a batch can do: full leaves, that lose nearly everything and get it back in the order that fills them least.
#[test]
fn h07_taking_back_a_batch_over_thousands_of_mappings_asks_for_no_memory() {
    const COUNT: u64 = 5000;
    let vm = GpuVm::<Tracker>::new(VmConfig::bits(47), Reservation::new(), (), &Reaper::new());
    let vm_bo = vm.obtain(&Arc::new(())).unwrap();
    let mut guard = vm.lock().unwrap();
    for i in 0..COUNT {
        let request = MapRequest::object(driver::range(2 * i, 1), &vm_bo, 0, ());
        guard.map(&request, &mut ()).unwrap();
    }
    let mut batch = guard.batch();
    for i in (0..COUNT).filter(|i| i % 32 != 0) {
        batch.unmap(driver::range(2 * i, 1)).unwrap();
    }
    failing::without_memory(|| drop(batch));
    let read = guard.read();
    read.check().unwrap();
    assert!(read.iter().map(|mapping| mapping.range()).eq((0..COUNT).map(|i| driver::range(2 * i, 1))));
}

#[test]
fn h26_unmapping_whole_mappings_asks_for_no_memory() {
    let vm = GpuVm::<Tracker>::new(VmConfig::bits(47), Reservation::new(), (), &Reaper::new());
    let object = Arc::new(());
    let vm_bo = vm.obtain(&object).unwrap();
    for i in 0..1000 {
        let request = MapRequest::object(driver::range(2 * i, 1), &vm_bo, 0, ());
        vm.lock().unwrap().map(&request, &mut ()).unwrap();
    }
    drop(vm_bo);
    failing::without_memory(|| {
        for i in 0..1000 {
            vm.lock().unwrap().unmap(driver::range(2 * i, 1), &mut ()).unwrap();
        }
    });
    assert_eq!((vm.read().bytes() > 0, Arc::strong_count(&object)), (true, 1));
}
