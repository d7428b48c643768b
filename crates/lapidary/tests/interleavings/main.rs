//! Fences, reservations, sets of locks, syncobjs, address spaces and the reaper under a scheduler that picks who goes on.
//!
//! The library's own files are included here with the primitives of `shuttle` in [`sync`]. Each model is run many times, in
//! orders that [`check`] draws; a model in which nobody can go on fails. What is read without a lock is read in one order here
//! that all agree on: the memory model's business is in `lockfree_models`.

#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    unused_imports,
    clippy::wrong_self_convention,
    reason = "the library's files are part of it"
)]

extern crate alloc;

#[path = "../../src/exec.rs"]
mod exec;
#[path = "../../src/fence/mod.rs"]
mod fence;
#[path = "../../src/gpuvm/mod.rs"]
mod gpuvm;
#[path = "../../src/sched/proto.rs"]
mod proto;
#[path = "../../src/reaper.rs"]
mod reaper;
#[path = "../../src/resv/mod.rs"]
mod resv;
#[path = "../../src/syncobj/mod.rs"]
mod syncobj;

mod address_space_models;
mod container_models;
mod fence_models;
mod lock_models;
mod poison;
mod proto_models;
mod reader_models;
mod rwlock;
mod sync;
mod syncobj_models;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use shuttle::{
    Config, Runner,
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
};

use fence::{Fence, FenceContext, Seqno, Signaller};

/// Runs `model` in `orders` orders drawn evenly, and in as many again with few switches at the worst places.
fn check(orders: usize, model: impl Fn() + Send + Sync + 'static) {
    let model = Arc::new(model);
    run(RandomScheduler::new_from_seed(1, orders), model.clone());
    for depth in [2, 4] {
        run(PctScheduler::new_from_seed(depth as u64, depth, orders / 2), model.clone());
    }
}

/// Runs a model of one thread.
fn check_alone(model: impl Fn() + Send + Sync + 'static) {
    run(RandomScheduler::new_from_seed(1, 1), Arc::new(model));
}

fn run(scheduler: impl Scheduler + 'static, model: Arc<impl Fn() + Send + Sync + 'static>) {
    /// What the library has in statics is of one model at a time.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut config = Config::new();
    config.stack_size = 1 << 17;
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(move || model());
}

fn fence() -> (Fence, Signaller) {
    Fence::new(FenceContext::alloc(), Seqno(1))
}

/// Counts how often the closures it hands out are called. Not seen by the scheduler.
#[derive(Clone, Default)]
struct Counter(Arc<AtomicUsize>);

impl Counter {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn callback(&self) -> impl FnOnce(&Fence) + Send + 'static {
        let counter = self.clone();
        move |_| counter.add()
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// Timelines by a name that lives as long as any of their fences: at a model's end nothing may keep one.
struct Names(Arc<str>);

impl Names {
    fn new() -> Self {
        Self("of the model".into())
    }

    fn timeline(&self) -> fence::Timeline {
        fence::Timeline::new(self.0.clone())
    }

    fn assert_all_freed(&self) {
        assert_eq!(Arc::strong_count(&self.0), 1, "a fence is kept though nobody has it");
    }
}
