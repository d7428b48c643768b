//! A virtual GPU: what a driver over the `lapidary` library programs instead of hardware.
//!
//! From the bottom up:
//!
//! * [`memory`]: physical address spaces (device memory and system memory) onto host memory.
//! * [`bus`]: what a command streamer sees of the world: GPU virtual addresses, accesses, faults.
//! * [`cs`] and [`blt`]: the command streamer and the blitter.
//!
//! What it leaves to others: who may map what (a driver), buffers and their placement (`lapidary`), everything a
//! shader would do (counted, reported, skipped).

pub mod blt;
pub mod bus;
mod chunk;
mod class;
pub mod cs;
pub mod memory;
pub mod pagetable;
mod tlb;

pub use bus::{Access, Bus, Fault, FaultKind, GpuVa, Work};
pub use chunk::Chunk;
pub use class::EngineClass;
