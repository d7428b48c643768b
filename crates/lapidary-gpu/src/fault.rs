//! What a GPU tells its driver when something goes wrong.
//!
//! * A *fault* stops one context at one access. The driver resolves it and has the access replayed, or bans the context. Other contexts of
//!   the engine go on meanwhile.
//! * A *ban* is final: the guilty job's fence fails with the reason, the fences of the jobs behind it with `Cancelled`, and
//!   nothing more is accepted.
//!
//! Calls back to the driver are made by engine threads with no lock of this crate held and the engine offline, so they may edit page
//! tables and invalidate. They must not wait for fences: the engine that would signal them is the one that calls.

use std::fmt;

use lapidary::{
    fence::{FenceError, Timestamp},
    sync::Arc,
};

use crate::{
    bus::{Fault, GpuVa},
    class::EngineClass,
    engine::Engine,
    memory::PhysAddr,
    pagetable::{Asid, Target},
};

/// Names a context in reports. Never reused by a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextId(pub(crate) u64);

impl ContextId {
    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ContextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "context {}", self.0)
    }
}

/// Names an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineId {
    /// What it can do.
    pub class: EngineClass,
    /// Its number among those of its class.
    pub instance: u16,
}

impl fmt::Display for EngineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} engine {}", self.class, self.instance)
    }
}

/// An access that failed, and who made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault} by {context} on {engine}, command at {command}")]
pub struct FaultReport {
    /// The engine that executed.
    pub engine: EngineId,
    /// The context that it executed for.
    pub context: ContextId,
    /// Address, access and cause.
    pub fault: Fault,
    /// Address of the command that made the access.
    pub command: GpuVa,
}

/// Why a context was banned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BanReason {
    /// A fault that the driver did not resolve.
    #[error("{0}")]
    Fault(FaultReport),
    /// A command that the hardware would hang on.
    #[error("invalid command {dword:#010x} at {address}: {reason}")]
    InvalidCommand {
        /// The command's header.
        dword: u32,
        /// Where it is.
        address: GpuVa,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A job did not end within the job timeout.
    #[error("a job ran for longer than {timeout_ms} ms")]
    Hang {
        /// The timeout.
        timeout_ms: u64,
    },
    /// The driver killed it.
    #[error("killed by the driver")]
    Killed,
    /// The GPU was shut down.
    #[error("the GPU was shut down")]
    Shutdown,
}

impl BanReason {
    /// What the fence of the guilty job fails with.
    pub fn fence_error(&self) -> FenceError {
        match self {
            Self::Fault(_) => FenceError::Fault,
            Self::InvalidCommand { .. } => FenceError::Device,
            Self::Hang { .. } => FenceError::TimedOut,
            Self::Killed => FenceError::Cancelled,
            Self::Shutdown => FenceError::DeviceLost,
        }
    }

    /// Whether the context's own doing is the reason.
    pub fn is_guilty(&self) -> bool {
        !matches!(self, Self::Killed | Self::Shutdown)
    }
}

/// When a job was worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobReport {
    /// The submission's cookie.
    pub cookie: u64,
    /// When it was submitted.
    pub submitted: Timestamp,
    /// When an engine began it.
    pub started: Timestamp,
    /// When its batch ended and its writes were visible.
    pub finished: Timestamp,
}

/// A driver's ears on a context. See the module's head for what the calls may do.
pub trait ContextEvents: Send + Sync {
    /// An access failed. Dropping `fault` bans the context; keeping it lets another thread resolve it.
    fn fault(&self, fault: PendingFault) {
        drop(fault);
    }

    /// The context was banned. Called before the fences fail.
    fn banned(&self, _reason: &BanReason) {}

    /// A job's batch ended. Called before its fence signals.
    fn completed(&self, _job: &JobReport) {}

    /// Commands asked for a user interrupt, or a job with a user fence completed: whoever waits for a value in memory should look again.
    fn user_interrupt(&self) {}
}

/// For contexts that nobody listens to.
impl ContextEvents for () {}

/// A context that stands at a faulting access. Dropping it bans the context.
#[must_use = "dropping it bans the context"]
pub struct PendingFault {
    report: FaultReport,
    engine: Option<Arc<Engine>>,
}

impl PendingFault {
    pub(crate) fn new(report: FaultReport, engine: Arc<Engine>) -> Self {
        Self { report, engine: Some(engine) }
    }

    /// What happened.
    pub fn report(&self) -> &FaultReport {
        &self.report
    }

    /// Has the access made again. Call it after the mapping is in place.
    pub fn replay(mut self) {
        if let Some(engine) = self.engine.take() {
            engine.replay(self.report.context);
        }
    }

    /// Bans the context; its fences have failed when this returns.
    pub fn ban(self) {
        drop(self);
    }
}

impl Drop for PendingFault {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.give_up(&self.report);
        }
    }
}

impl fmt::Debug for PendingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PendingFault").field(&self.report).finish()
    }
}

/// Use of a translation that the page tables no longer hold and that nobody is about to invalidate: a driver's bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleHit {
    /// Whose cache.
    pub engine: EngineId,
    /// Whose access.
    pub context: ContextId,
    /// In which address space.
    pub asid: Asid,
    /// The address.
    pub va: GpuVa,
    /// What the cache said, and the access used.
    pub cached: Target,
    /// What the tables say.
    pub current: Option<Target>,
}

/// Shows a target in a report.
impl fmt::Display for StaleHit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |target: Target| match target {
            Target::Null => "null".to_owned(),
            Target::Memory(at) => PhysAddr::to_string(&at),
        };
        let current = self.current.map_or_else(|| "nothing".to_owned(), show);
        write!(
            f,
            "{} used a stale translation of {} on {}: {} instead of {current}",
            self.context,
            self.va,
            self.engine,
            show(self.cached),
        )
    }
}
