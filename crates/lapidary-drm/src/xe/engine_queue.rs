//! Queues of batches for an engine: a context on the GPU, fed by the scheduler.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lapidary::fence::{Fence, FenceError, Signaller};
use lapidary::sched::{Armed, Backend, Priority, Queue, QueueConfig};
use lapidary_gpu::{
    BanReason, Context, ContextEvents, EngineClass, EngineId, GpuVa, PendingFault, Submission,
    fault::JobReport,
};

use parking_lot::Mutex;

use super::XeDriver;
use super::page_faults::FaultHandler;
use super::sync::GpuFence;
use super::user_fence::UserFenceWaiters;
use super::vm::Vm;
use crate::core::Error;

/// Jobs of one queue that may wait at a time; a client that queues more gets an error.
const MAX_PENDING: usize = 16 << 10;

/// What a job runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    /// Its first command.
    pub(super) address: GpuVa,
    /// What the engine stores when it is done.
    pub(super) fence: Option<GpuFence>,
}

/// A job of a queue.
pub(super) struct EngineJob {
    lane: Arc<Lane>,
    /// Nothing, for a call that only wants to know when those before it are done.
    batch: Option<Batch>,
}

/// A queue's context, with what was handed to it last.
struct Lane {
    context: Context,
    /// Jobs of a long-running VM may take for ever.
    endless: bool,
    /// The fence of the latest batch. Jobs of a queue are handed over one at a time, in order.
    latest: Mutex<Fence>,
}

impl Lane {
    fn run(&self, batch: Batch, done: Signaller) {
        *self.latest.lock() = done.fence().clone();
        let user_fence = batch.fence.map(|fence| (GpuVa::new(fence.address), fence.value));
        let submission =
            Submission { user_fence, endless: self.endless, ..Submission::new(batch.address, done) };
        if let Err(error) = self.context.submit(submission) {
            // Its fence has failed, which is all that anybody waits for.
            tracing::debug!(%error, "job refused");
        }
    }

    /// Signals `done` when all batches so far have ended.
    fn mark(&self, done: Signaller) {
        let latest = self.latest.lock().clone();
        latest.on_signal(move |latest| match latest.status() {
            Some(Err(error)) => done.fail(error),
            _ => done.signal(),
        });
    }
}

/// Hands jobs to their contexts, which complete them on their engines' threads.
pub(super) struct EngineBackend;

impl Backend for EngineBackend {
    type Work = EngineJob;

    fn run(&self, job: EngineJob, done: Signaller) {
        match job.batch {
            Some(batch) => job.lane.run(batch, done),
            None => job.lane.mark(done),
        }
    }
}

/// A client's queue on an engine.
pub(super) struct EngineQueue {
    queue: Queue<EngineBackend>,
    lane: Arc<Lane>,
}

impl EngineQueue {
    /// A queue on the engine of `class`. `banned` is set when a job of it fails for good.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(super) fn new(
        driver: &XeDriver,
        vm: &Arc<Vm>,
        class: EngineClass,
        priority: u32,
        banned: &Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        let (priority, on_engine) = match priority {
            0 => (Priority::Low, lapidary_gpu::Priority::Low),
            1 => (Priority::Normal, lapidary_gpu::Priority::Normal),
            _ => (Priority::High, lapidary_gpu::Priority::High),
        };
        let config =
            QueueConfig { name: "xe-engine".into(), priority, max_pending: MAX_PENDING, inline: true };
        let queue = driver.engine_scheduler().queue(config);
        let events = Arc::new(Events {
            banned: Arc::clone(banned),
            queue: queue.clone(),
            waiters: Arc::clone(driver.user_fence_waiters()),
            faults: FaultHandler::new(vm, driver.fault_resolver(), driver.fault_log()),
        });
        let engine = EngineId { class, instance: 0 };
        let context = driver.gpu().create_context(engine, Arc::clone(vm.space()), on_engine, events)?;
        let latest = Mutex::new(Fence::signalled());
        Ok(Self { queue, lane: Arc::new(Lane { context, endless: vm.is_long_running(), latest }) })
    }

    /// Takes the next place in the queue.
    ///
    /// # Errors
    /// `ECANCELED` when the queue is banned, `ENOBUFS` when too many jobs wait.
    pub(super) fn arm(&self) -> Result<Armed<EngineBackend>, Error> {
        Ok(self.queue.arm()?)
    }

    /// What to push in that place: a batch, or a mere mark that signals when all before it has ended.
    pub(super) fn job(&self, batch: Option<Batch>) -> EngineJob {
        EngineJob { lane: Arc::clone(&self.lane), batch }
    }

    /// Gives up what is queued or running. Does not wait.
    pub(super) fn kill(&self) {
        self.lane.context.kill();
        self.queue.kill(FenceError::Cancelled);
    }
}

/// What a context tells its queue.
struct Events {
    banned: Arc<AtomicBool>,
    queue: Queue<EngineBackend>,
    waiters: Arc<UserFenceWaiters>,
    faults: Arc<FaultHandler>,
}

impl ContextEvents for Events {
    fn fault(&self, fault: PendingFault) {
        self.faults.handle(fault);
    }

    fn banned(&self, reason: &BanReason) {
        tracing::info!(%reason, "queue banned");
        self.banned.store(true, Ordering::Release);
        self.queue.kill(FenceError::Cancelled);
        self.waiters.wake_all();
    }

    fn completed(&self, _job: &JobReport) {
        self.waiters.wake_all();
    }

    fn user_interrupt(&self) {
        self.waiters.wake_all();
    }
}
