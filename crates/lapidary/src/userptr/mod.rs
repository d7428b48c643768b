//! userptr: GPU use of memory that a program allocated for itself.
//!
//! The pages belong to the program, which may unmap or replace them at any time. Before it does, a *notifier* tells
//! ([`Mm::invalidate`]); the GPU's use ends, and the next submission looks at what is there then.
//!
//! # Vocabulary
//!
//! - *mm*: the address space of one program; it has one notifier for all its userptrs. See [`Mm`].
//! - *userptr*: a range of it that the GPU may use. See [`Userptr`].
//! - *pin job*: getting at the pages of a userptr, which may take long; see [`PinJob`].
//! - *source*: what learns of the program's changes: see [`NotifierSource`].
//!
//! # How a submission and an invalidation meet
//!
//! ```text
//!   submission                                invalidation
//!   ──────────                                ────────────
//!   start_pin: the number, e.g. 4             notifier lock, for writing:
//!     (waits while an invalidation is on)       number 4 → 5, pages dropped,
//!   get the pages, install them                 fences of the use collected
//!   notifier lock, for reading:               unlock
//!     retry(4)? then from the start           wait for the fences
//!     fence of the job on the reservation     users told that the use has ended
//!   unlock                                    the program's memory changes
//!                                             submissions may begin again
//! ```
//!
//! Either the submission sees the new number and starts over, or the invalidation sees its fence and waits for it.
//!
//! # Locking
//!
//! - *registration*: over first and last userptr of an mm, and the source. Not taken by invalidations.
//! - *notifier*: over the index of userptrs and over the step from checking the number to publishing the fence. Taken
//!   for reading under reservations; nothing is waited for and no reservation taken under it. It must not be taken twice by a thread.
//! - *state* of a userptr: innermost.
//!
//! An invalidation takes the notifier's lock and what is below; it may come from a thread that holds any other lock of a device.
//! The last reference to a userptr may be dropped anywhere: it leaves the index when the GPU's use has ended, on the reaper.
//!
//! What this module leaves to others: reaching the pages (the driver), learning of changes (sources, in the device server).

pub mod interval;

#[cfg(feature = "std")]
mod mm;
#[cfg(feature = "std")]
mod range;

pub use interval::{IntervalId, IntervalIndex};

#[cfg(feature = "std")]
pub use mm::{
    Blocking, Invalidation, ManualSource, Mm, NotifierGuard, NotifierSource, WatchError, WeakMm, WouldBlock,
};
#[cfg(feature = "std")]
pub use range::{Busy, Cancelled, Held, PinJob, ReadSeq, Userptr, UserptrUser};
