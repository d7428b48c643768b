//! The scheduler: jobs that wait for fences, in queues, given to a backend when they are ready.
//!
//! # Vocabulary
//!
//! - *job*: work for the backend, the fences it depends on, and the fence that says it is done.
//! - *queue*: jobs that run in the order they were armed. A context's submissions, or an address space's binds.
//! - *arm*: take a job's place in the queue, and its fence, before anything else is known of it; pushing the armed job can't
//!   fail. Between the two, the fence can be put on reservations and in syncobjs.
//! - *backend*: what carries out jobs: an engine that is handed them and signals later, or code that edits page tables and is
//!   done when it returns.
//! - *in flight*: handed to the backend, not signalled.
//! - *context*: what a program's submissions share: state of engines, an address space, queues. A driver's own type; what the
//!   library has is the way it comes to be, [`ProtoContext`].
//!
//! # The life of a job
//!
//! ```text
//!   arm ──▶ armed ──push──▶ waiting ──dependencies signalled──▶ ready ──▶ in flight ──▶ signalled
//!             │ drop           │ kill                             │ kill                    ▲
//!             └────────────────┴──────────────────────────────────┴── fails, after those ───┘
//!                                                                      in flight before it
//! ```
//!
//! Only the first job of a queue waits for its dependencies, one after the other, through callbacks; no thread blocks. When
//! they have signalled, with or without an error, the job is ready, and so on with the next. Fences of a queue signal in order
//! whatever happens: a reservation keeps only the latest of them.
//!
//! # Who runs a job
//!
//! The thread that pushes it, before [`Armed::push`] returns, if it is ready then and nobody runs jobs of this queue at the
//! moment. So a bind whose dependencies are satisfied is in effect when the call returns; where a worker may be at an earlier
//! one, [`Queue::catch_up`] makes sure, or [`Queue::catch_up_to`] where several threads arm and push. Everything else runs on the scheduler's workers, higher priorities first. Both ways the backend runs in a
//! [signalling section](crate::fence::signalling()): it may not take reservations, nor wait for fences.
//!
//! # Time, and resets
//!
//! A queue can have a [timeout](Queue::set_timeout): a job that is in flight for longer is reported to the backend, which alone can
//! tell slow from stuck, and end it. [`Scheduler::pause`] keeps jobs away from a device that is being reset. What was in flight
//! is the backend's: it holds the work and the signaller, and can start the job over, let it fail, and [kill](Queue::kill) the
//! queue of a job that has done it too often.
//!
//! # Locking
//!
//! One lock per queue, one for the list of queues that are ready, never held together and never while foreign code runs: callbacks
//! are registered without them too, as a container that signals meanwhile runs them. Arming, pushing and killing are allowed under
//! any reservation and in callbacks.
//!
//! What this module leaves to others: what a job does, and how to end one (the backend), which fences it must wait
//! for ([`Reservation::fences`](crate::resv::Reservation::fences) and the syncobjs of the submission).

mod proto;
mod queue;
mod watch;
mod worker;

use crate::fence::{Fence, FenceError, Signaller};

pub use proto::{ProtoContext, ProtoError};
pub use queue::{Armed, PushError, Queue, QueueConfig};
pub use worker::{Paused, Scheduler};

/// Carries out jobs.
pub trait Backend: Send + Sync + 'static {
    /// What a job consists of. Dropped instead of being run if its queue is killed, in whatever thread does that.
    type Work: Send + 'static;

    /// Starts, or does, a job. `done` is to be signalled when it is complete; dropping it fails the job. Jobs of one queue
    /// come in order, one at a time, and must complete in that order. Runs in a signalling section, and under the locks of
    /// the thread that pushes if the job is ready then: it may not take those either.
    fn run(&self, work: Self::Work, done: Signaller);

    /// `job`, the first in flight of a queue with a [timeout](Queue::set_timeout), has had its time. For the backend to find out
    /// what is wrong, to end the job, or to let it be: it is called again if the job is in flight for as long once more. The
    /// queue can be killed here, the scheduler paused, the device reset.
    ///
    /// Runs on a worker, in a signalling section. Without an implementation the queue is killed; the job itself goes on.
    fn timed_out(&self, queue: &Queue<Self>, job: &Fence)
    where
        Self: Sized,
    {
        tracing::warn!(?job, "a job does not end; its queue is killed");
        queue.kill(FenceError::TimedOut);
    }
}

/// Which ready queue a worker takes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// When nothing else is ready.
    Low,
    /// What programs use.
    #[default]
    Normal,
    /// Before what programs use.
    High,
    /// The driver's own jobs.
    Kernel,
}

impl Priority {
    pub(crate) const COUNT: usize = 4;
}

/// Why a job can't be armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ArmError {
    /// Too many jobs of the queue have not started.
    #[error("{0} jobs of the queue are waiting already")]
    Full(usize),
    /// The queue takes no more jobs.
    #[error("the queue was killed: {0}")]
    Killed(FenceError),
}
