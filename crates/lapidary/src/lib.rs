//! GPU memory management as the Linux DRM subsystem does it, as a library.
//!
//! The modules build on one another, downward only:
//!
//! | module | what it is |
//! | --- | --- |
//! | [`sync`] | the locks and atomics every other module uses |
//! | [`fence`] | one-shot completion events, their containers, waiting |
//! | [`reaper`] | a thread that lets go of what can't be let go where it is dropped |
//! | [`gem`] | buffer objects and the handles that name them |
//! | [`residency`] | memory regions, their allocators, eviction |
//! | [`dma_buf`] | sharing buffers between devices |
//! | [`userptr`] | GPU use of memory that a program allocated for itself |
//! | [`sched`] | jobs that wait for fences, in queues |
//! | [`syncobj`] | containers of fences that programs name: binary and timeline |
//! | [`resv`] | the fences of a buffer, behind a wound/wait lock |
//! | [`exec`] | locking many reservations at once |
//! | [`gpuvm`] | GPU address spaces: what is mapped where, and the steps by which that changes |
//!
//! The library knows no device, no file descriptor and no ioctl. Feature `std` (on by default) brings
//! everything that needs threads and clocks; without it the pure data structures remain, on `core` and
//! `alloc`.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(feature = "std")]
pub mod dma_buf;
#[cfg(feature = "std")]
pub mod exec;
#[cfg(feature = "std")]
pub mod fence;
pub mod gem;
pub mod gpuvm;
#[cfg(feature = "std")]
pub mod reaper;
pub mod residency;
#[cfg(feature = "std")]
pub mod resv;
#[cfg(feature = "std")]
pub mod sched;
#[cfg(feature = "std")]
pub mod sync;
#[cfg(feature = "std")]
pub mod syncobj;
pub mod userptr;
