//! Random requests, carried out at once, prepared, and taken back, against the [model](crate::model): the book, the steps
//! and all that can be looked up are compared after each.

use crate::driver::{DriverError, Fixture, Worker};
use crate::model::{self, Op, Pages, Tied};
use lapidary::gpuvm::VmConfig;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Request {
    AtOnce(Op),
    Batch(Vec<Op>),
    TakenBack(Vec<Op>),
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let request = prop_oneof![
        3 => model::op().prop_map(Request::AtOnce),
        1 => prop::collection::vec(model::op(), 1..6).prop_map(Request::Batch),
        1 => prop::collection::vec(model::op(), 1..6).prop_map(Request::TakenBack),
    ];
    prop::collection::vec(request, 1..120)
}

fn run(config: VmConfig, requests: Vec<Request>) {
    let fixture = Fixture::with(config);
    let objects = model::objects(&fixture);
    let mut pages = Pages::new(config);
    for request in requests {
        carry_out(&fixture, &objects, &mut pages, request);
        model::agree(&fixture, &objects, &pages);
    }
    model::close(&fixture, objects);
}

fn carry_out(fixture: &Fixture, objects: &[Tied], pages: &mut Pages, request: Request) {
    let mut guard = fixture.vm.lock().unwrap();
    let (ops, stays) = match request {
        Request::AtOnce(op) => {
            let outcome = op.at_once(&mut guard, objects, &mut Worker(&fixture.space));
            assert_eq!(outcome, pages.apply(op, objects).map_err(DriverError::Vm), "{op:?}");
            assert_eq!(fixture.space.0.lock().unflushed, 0);
            return;
        }
        Request::Batch(ops) => (ops, true),
        Request::TakenBack(ops) => (ops, false),
    };
    // What is refused stays out of the batch; what was not refused stays in.
    let mut after = pages.clone();
    let mut batch = guard.batch();
    for op in ops {
        assert_eq!(op.prepared(&mut batch, objects), after.apply(op, objects), "{op:?}");
        batch.guard().read().check().unwrap();
    }
    if stays {
        let steps = batch.commit();
        let mut tables = fixture.space.0.lock();
        steps.iter().for_each(|step| tables.carry_out(&step));
        tables.flush();
        *pages = after;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_requests_agree_with_pages(config in model::config(), requests in requests()) {
        run(config, requests);
    }
}
