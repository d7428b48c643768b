//! Engines: threads that execute contexts.
//!
//! * *Context*: jobs in order, with an address space and a streamer's state. At most one engine knows it.
//! * *Slice*: how long a context runs before another of the same priority gets its turn.
//! * *Parked*: a context that waits for memory to change (a semaphore, or a batch that only loops) gives way to others and is looked at
//!   again later, at intervals that grow to [`queue::PARK_MAX`].
//!
//! ```text
//!              submit             pick
//!      Idle ───────────▶ Ready ────────▶ Running ──▶ job done: next job, or Idle
//!                         ▲  ▲ slice over │  │  │
//!                         │  └────────────┘  │  └──▶ banned or killed: all jobs fail, nothing more is accepted
//!                         │ due              │ waits
//!                         └──────── Parked ◀─┤
//!                         │ replay           │ page fault
//!                         └──────── Faulted ◀┘
//! ```
//!
//! * [`queue`]: contexts and their states, what to run next.
//! * [`port`]: the bus that a streamer executes through.
//! * [`slice`](mod@slice): running one context until something happens.
//! * `worker`: the thread that ties them together.
//!
//! Locking: one lock per engine over its queue, a leaf. No code outside this module runs under it: fences are signalled, callbacks
//! made and references dropped after it is released. While it executes commands an engine holds no lock at all; see
//! [`tlb`](crate::tlb) for how drivers wait for it.
//!
//! Dispatch: the highest priority that has a ready context, in turn within it. A context of higher priority that becomes ready preempts at
//! the next step.

mod port;
mod queue;
mod slice;
mod worker;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::*},
    time::Duration,
};

use lapidary::sync::{Arc, Condvar, Mutex};

use crate::{
    clock::Clock,
    context::{Submission, SubmitError},
    fault::{BanReason, ContextEvents, ContextId, EngineId, FaultReport, StaleHit},
    memory::PhysMem,
    pagetable::AddressSpace,
    stats::Counters,
    tlb::Shootdown,
};
use queue::{Aborted, Parting, Queue};

pub(crate) use queue::ContextInfo;
pub use queue::Priority;
pub(crate) use worker::run as run_thread;

/// Stale hits kept for reports.
const STALE_KEPT: usize = 64;

/// What all engines of a GPU share.
pub(crate) struct Shared {
    pub(crate) phys: PhysMem,
    pub(crate) shootdown: Arc<Shootdown>,
    pub(crate) counters: Counters,
    pub(crate) clock: Clock,
    pub(crate) job_timeout: Duration,
    pub(crate) timeslice: Duration,
    pub(crate) tlb_check: bool,
    pub(crate) stale: Mutex<Vec<StaleHit>>,
}

impl Shared {
    fn report_stale(&self, hit: StaleHit) {
        Counters::add(&self.counters.stale_hits, 1);
        tracing::warn!(%hit, "stale translation used");
        let mut kept = self.stale.lock();
        if kept.len() < STALE_KEPT {
            kept.push(hit);
        }
    }
}

/// One engine, as everybody but its thread sees it.
pub(crate) struct Engine {
    pub(crate) id: EngineId,
    /// Its number in the GPU, for [`Shootdown`].
    index: usize,
    shared: Arc<Shared>,
    queue: Mutex<Queue>,
    /// Wakes the thread: there is something to do.
    wake: Condvar,
    /// Asks the thread to come back to the queue at the next step.
    attention: AtomicBool,
    busy_ns: AtomicU64,
}

impl Engine {
    pub(crate) fn new(id: EngineId, index: usize, shared: Arc<Shared>) -> Self {
        Self {
            id,
            index,
            shared,
            queue: Mutex::default(),
            wake: Condvar::new(),
            attention: AtomicBool::new(false),
            busy_ns: AtomicU64::new(0),
        }
    }

    /// How long it executed commands.
    pub(crate) fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy_ns.load(Relaxed))
    }

    /// Makes a context known.
    pub(crate) fn add_context(
        &self,
        id: ContextId,
        space: Arc<AddressSpace>,
        priority: Priority,
        events: Arc<dyn ContextEvents>,
        info: Arc<ContextInfo>,
    ) {
        self.queue.lock().add(id, self.id.class, space, priority, events, info);
    }

    /// Queues a job.
    pub(crate) fn submit(&self, id: ContextId, submission: Submission) -> Result<(), SubmitError> {
        let mut queue = self.queue.lock();
        let result = queue.submit(id, submission);
        let preempts = queue.preempts_running();
        drop(queue);
        // A refused submission is dropped here, with its signaller, outside the lock.
        result.map_err(|(error, _refused)| error)?;
        Counters::add(&self.shared.counters.submissions, 1);
        if preempts {
            self.attention.store(true, Release);
        }
        self.wake.notify_one();
        Ok(())
    }

    /// Bans a context from outside. If it runs, its thread ends it at the next step; otherwise its fences have failed on return.
    pub(crate) fn kill(&self, id: ContextId) {
        let aborted = self.queue.lock().abort(id, BanReason::Killed);
        match aborted {
            Parting::Gone(aborted) => self.part(*aborted),
            Parting::Running => self.attention.store(true, Release),
            Parting::Unknown => {}
        }
    }

    /// The context's handle is gone: forget it as soon as it has nothing to do.
    pub(crate) fn close(&self, id: ContextId) {
        let forgotten = self.queue.lock().close(id);
        drop(forgotten);
    }

    /// Changes a context's priority.
    pub(crate) fn set_priority(&self, id: ContextId, priority: Priority) {
        let mut queue = self.queue.lock();
        queue.set_priority(id, priority);
        if queue.preempts_running() {
            self.attention.store(true, Release);
        }
    }

    /// A fault was resolved.
    pub(crate) fn replay(&self, id: ContextId) {
        let mut queue = self.queue.lock();
        queue.resume(id);
        if queue.preempts_running() {
            self.attention.store(true, Release);
        }
        drop(queue);
        self.wake.notify_one();
    }

    /// A fault will not be resolved.
    pub(crate) fn give_up(&self, report: &FaultReport) {
        let aborted = self.queue.lock().abort_faulted(report.context, BanReason::Fault(*report));
        if let Some(aborted) = aborted {
            self.part(aborted);
        }
    }

    /// Bans every context that has work on this engine, as a reset of the engine would. Returns how many.
    pub(crate) fn reset(&self) -> usize {
        let busy = self.queue.lock().busy();
        busy.iter().for_each(|&id| self.kill(id));
        busy.len()
    }

    /// Asks the thread to fail all jobs and end.
    pub(crate) fn stop(&self) {
        self.queue.lock().stopping = true;
        self.attention.store(true, Release);
        self.wake.notify_one();
    }

    /// Tells the driver, then fails the fences, of a context that was banned. Without locks.
    fn part(&self, aborted: Aborted) {
        let Aborted { id, reason, jobs, events, forgotten } = aborted;
        let counters = &self.shared.counters;
        if reason.is_guilty() {
            Counters::add(&counters.bans, 1);
            tracing::info!(engine = %self.id, context = id.get(), %reason, "context banned");
        }
        if matches!(reason, BanReason::Hang { .. }) {
            Counters::add(&counters.hangs, 1);
        }
        Counters::add(&counters.failures, jobs.len() as u64);
        events.banned(&reason);
        let behind = match reason {
            BanReason::Shutdown => reason,
            _ => BanReason::Killed,
        };
        for (position, job) in jobs.into_iter().enumerate() {
            let reason = if position == 0 { reason } else { behind };
            job.submission.done.fail(reason.fence_error());
        }
        drop(forgotten);
    }
}
