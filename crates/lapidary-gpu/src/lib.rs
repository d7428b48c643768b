//! A virtual GPU: what a driver over the `lapidary` library programs instead of hardware.
//!
//! From the bottom up:
//!
//! * [`memory`]: physical address spaces (device memory and system memory) onto host memory.
//! * [`pagetable`]: address spaces of 48 bits; the engines' caches of them are inside, see [`pagetable::Stale`].
//! * [`bus`]: what a command streamer sees of the world: GPU virtual addresses, accesses, faults.
//! * [`cs`] and [`blt`]: the command streamer and the blitter.
//! * [`context`]: jobs in order; engines run them. [`fault`]: what a driver is told.
//! * [`device`]: the GPU as a whole.
//!
//! What it leaves to others: who may map what (a driver), buffers and their placement (`lapidary`), everything a
//! shader would do (counted, reported, skipped).
//!
//! Locks, all leaves: none is held while another of this crate is taken, but for the queue's, under which a context's `banned` is; while
//! waiting for an engine, a fence or a callback; or while foreign code runs.

pub mod blt;
pub mod bus;
mod chunk;
mod class;
mod clock;
pub mod context;
pub mod cs;
pub mod device;
mod engine;
pub mod fault;
pub mod memory;
pub mod pagetable;
mod stats;
mod tlb;

pub use bus::{Access, Bus, Fault, FaultKind, GpuVa, Work};
pub use chunk::Chunk;
pub use class::EngineClass;
pub use context::{Context, Submission, SubmitError};
pub use device::{Gpu, GpuConfig, GpuError};
pub use engine::Priority;
pub use fault::{BanReason, ContextEvents, ContextId, EngineId, FaultReport, PendingFault};
pub use stats::Stats;
