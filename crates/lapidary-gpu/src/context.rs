//! Contexts: what a driver submits jobs to.

use std::{fmt, time::Duration};

use lapidary::{fence::Signaller, sync::Arc};

use crate::{
    bus::GpuVa,
    clock,
    engine::{ContextInfo, Engine, Priority},
    fault::{BanReason, ContextEvents, ContextId, EngineId},
    pagetable::AddressSpace,
};

/// A job: one batch.
#[derive(Debug)]
pub struct Submission {
    /// Where the batch begins.
    pub batch: GpuVa,
    /// Signalled when the batch has ended and all its writes are visible; failed if the context is banned before. See
    /// [`BanReason::fence_error`].
    pub done: Signaller,
    /// A qword to be written through the context's address space when the batch has ended, before `done` signals.
    pub user_fence: Option<(GpuVa, u64)>,
    /// Whether it may run for ever: it is never taken for a hang.
    pub endless: bool,
    /// Comes back in the [`JobReport`](crate::fault::JobReport).
    pub cookie: u64,
}

impl Submission {
    /// A batch and its fence.
    pub fn new(batch: GpuVa, done: Signaller) -> Self {
        Self { batch, done, user_fence: None, endless: false, cookie: 0 }
    }
}

/// Why a job was not accepted. Its fence has failed with `Cancelled`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The context is banned.
    #[error("the context is banned: {0}")]
    Banned(BanReason),
    /// The GPU was shut down.
    #[error("the GPU was shut down")]
    Shutdown,
}

/// A context on one engine: runs its jobs in order. Dropping the handle lets queued jobs finish; [`kill`](Self::kill) does not.
///
/// All methods may be called under any lock, except `kill`, which may signal fences.
pub struct Context {
    id: ContextId,
    engine: Arc<Engine>,
    info: Arc<ContextInfo>,
}

impl Context {
    pub(crate) fn new(
        id: ContextId,
        engine: Arc<Engine>,
        space: Arc<AddressSpace>,
        priority: Priority,
        events: Arc<dyn ContextEvents>,
    ) -> Self {
        let info = Arc::<ContextInfo>::default();
        engine.add_context(id, space, priority, events, Arc::clone(&info));
        Self { id, engine, info }
    }

    /// Its name in reports.
    pub fn id(&self) -> ContextId {
        self.id
    }

    /// The engine that it runs on.
    pub fn engine(&self) -> EngineId {
        self.engine.id
    }

    /// Queues a job behind those that were queued before. Never blocks. A refused submission's fence fails in the calling thread.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub fn submit(&self, submission: Submission) -> Result<(), SubmitError> {
        self.engine.submit(self.id, submission)
    }

    /// Bans the context. A running job ends at the next step; fences of all its jobs fail, in order: on return if none was running,
    /// else soon after, by the engine's thread. Never blocks.
    pub fn kill(&self) {
        self.engine.kill(self.id);
    }

    /// Why the context is banned, if it is. Set before the fences fail.
    pub fn banned(&self) -> Option<BanReason> {
        *self.info.banned.lock()
    }

    /// Changes how it competes with others from now on.
    pub fn set_priority(&self, priority: Priority) {
        self.engine.set_priority(self.id, priority);
    }

    /// How long it has run. A slice counts when it is over.
    pub fn run_time(&self) -> Duration {
        Duration::from_nanos(self.info.run_ns.load(std::sync::atomic::Ordering::Relaxed))
    }

    /// [`run_time`](Self::run_time) in ticks of [`TIMESTAMP_HZ`](crate::bus::TIMESTAMP_HZ).
    pub fn run_ticks(&self) -> u64 {
        clock::ticks(self.run_time().as_nanos() as u64)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.engine.close(self.id);
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("id", &self.id.get())
            .field("engine", &self.engine.id)
            .field("banned", &self.banned())
            .finish_non_exhaustive()
    }
}
