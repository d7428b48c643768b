//! Where buffers live: memory regions, their allocators, and who must leave when one is full.
//!
//! # Vocabulary
//!
//! - *region*: memory of one kind, system or device. See [`Region`].
//! - *allocation*: memory of a region, in one or more *extents*; free when dropped.
//! - *place*: where an object may live (its *placements*, best first) and where it does (its *residence*).
//! - *validate*: give an object memory where it may live, if it is not there; others are *evicted* for it.
//! - *evict*: move an object to system memory because another needs its place. It is validated before its next use.
//! - *mover*: the driver's part of a move: it stops users, rewrites page tables, tells importers.
//!
//! # Locking and order
//!
//! ```text
//!   reservation (of the object, of victims: one Exec)
//!      └─ list of a region (Lru)      held for a lookup
//!      └─ residence of an object      held for a copy
//!      └─ space of a region           held for one allocation
//! ```
//!
//! The inner three are never held together and no foreign code runs under them. An object moves only with its reservation
//! locked and after all of its fences have signalled; both happen in [`Manager`].
//!
//! [`Buddy`] and [`RangeAllocator`] are pure structures that need `alloc` alone.
//!
//! What this module leaves to others: the bytes and their copying (the driver), when an object is used
//! ([`gpuvm`](crate::gpuvm) and the driver's submissions).

mod bitmap;
pub mod buddy;
pub mod range;

#[cfg(feature = "std")]
mod account;
#[cfg(feature = "std")]
mod lru;
#[cfg(feature = "std")]
mod manager;
#[cfg(feature = "std")]
mod place;
#[cfg(feature = "std")]
mod region;

pub use buddy::{Buddy, BuddyError, Extent, Shape};
pub use range::{RangeAllocator, RangeError};

#[cfg(feature = "std")]
pub use account::Account;
#[cfg(feature = "std")]
pub use manager::{Manager, ManagerConfig, Move, Mover, ResidencyError};
#[cfg(feature = "std")]
pub use place::{LruGroup, Place, PlaceConfig, Placement, Residence, Role};
#[cfg(feature = "std")]
pub use region::{Allocation, Region, RegionConfig, RegionError, RegionId, RegionKind};
