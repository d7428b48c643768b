//! GPU memory management as the Linux DRM subsystem does it, as a library.
//!
//! The modules build on one another, downward only:
//!
//! | module | what it is |
//! | --- | --- |
//! | [`sync`] | the locks and atomics every other module uses |
//! | [`fence`] | one-shot completion events, their containers, waiting |
//!
//! The library knows no device, no file descriptor and no ioctl. Feature `std` (on by default) brings
//! everything that needs threads and clocks; without it the pure data structures remain, on `core` and
//! `alloc`.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(feature = "std")]
pub mod fence;
#[cfg(feature = "std")]
pub mod sync;
