//! Queues of binds, and what a bind job does.
//!
//! A bind that is on record is carried out, whoever destroys its queue, VM or file meanwhile: until its entries and
//! translations are gone, the job holds what it unmaps. So a bind queue is never killed, only left behind; it goes with the
//! last bind that waits in it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use lapidary::fence::{Fence, Signaller};
use lapidary::gpuvm::StepList;
use lapidary::sched::{Armed, Backend, Priority, Queue, QueueConfig, Scheduler};
use lapidary_gpu::pagetable::{AddressSpace, Nodes};

use super::allowance::Loan;
use super::stats::Counters;
use super::tables;
use super::vm::{Vm, XeTypes};
use crate::core::Error;

/// Binds of one queue that may wait for fences at a time.
const MAX_PENDING: usize = 4096;

/// Page-table work that is on record already and only waits for its turn.
pub(super) struct BindJob {
    space: Arc<AddressSpace>,
    steps: StepList<XeTypes>,
    nodes: Nodes,
    /// For the memory of what waits.
    _loan: Option<Loan>,
}

impl BindJob {
    /// `nodes` were reserved for `steps`.
    pub(super) fn new(vm: &Vm, steps: StepList<XeTypes>, nodes: Nodes, loan: Option<Loan>) -> Self {
        Self { space: Arc::clone(vm.space()), steps, nodes, _loan: loan }
    }

    /// About how much memory a job of so many steps takes while it waits, with what is noted of it.
    pub(super) fn bytes(steps: usize) -> u64 {
        const JOB: u64 = 512;
        const STEP: u64 = 384;
        JOB + steps as u64 * STEP
    }
}

/// Carries out bind jobs.
pub(super) struct BindBackend {
    counters: Arc<Counters>,
}

impl BindBackend {
    pub(super) fn new(counters: &Arc<Counters>) -> Self {
        Self { counters: Arc::clone(counters) }
    }
}

impl Backend for BindBackend {
    /// Nothing, for a call that only wants to know when those before it are done.
    type Work = Option<BindJob>;

    fn run(&self, job: Option<BindJob>, done: Signaller) {
        if let Some(job) = job {
            tables::carry_out(&job.space, &job.steps, job.nodes);
            self.counters.binds.fetch_add(1, Ordering::Relaxed);
            // Entries and translations are gone: what was unmapped may go, before anybody is told.
            drop(job.steps);
        }
        done.signal();
    }
}

/// A queue of binds. Clones are handles to the same one.
#[derive(Clone)]
pub(super) struct BindQueue {
    queue: Queue<BindBackend>,
}

impl BindQueue {
    pub(super) fn new(scheduler: &Scheduler<BindBackend>) -> Self {
        let config = QueueConfig {
            name: "xe-bind".into(),
            priority: Priority::Kernel,
            max_pending: MAX_PENDING,
            inline: true,
        };
        Self { queue: scheduler.queue(config) }
    }

    /// Whether both are the same queue.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.queue.context() == other.queue.context()
    }

    /// Takes the next place in the queue. Who holds it may not wait for anything before it is filled.
    ///
    /// # Errors
    /// `ENOBUFS` when too many binds wait.
    pub(super) fn arm(&self) -> Result<Armed<BindBackend>, Error> {
        Ok(self.queue.arm()?)
    }

    /// The end of the latest bind that has a place in the queue.
    pub(super) fn latest(&self) -> Fence {
        self.queue.last_fence()
    }

    /// Runs what is ready up to `bind`, and waits for whoever is in the middle of one, or about to hand one in. Must not be called
    /// with a lock held that a bind takes, nor with a place in this queue, nor from a fence's callback.
    pub(super) fn catch_up_to(&self, bind: &Fence) {
        self.queue.catch_up_to(bind);
    }
}
