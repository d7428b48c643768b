//! Buffer objects, and the handles that name them.
//!
//! An [`Object`] is a driver's data with a size, a [reservation](crate::resv) and a [place](crate::residency::Place)
//! in memory. References are counted; nothing is released by hand.
//!
//! # Vocabulary
//!
//! - *private object*: one that shares the reservation of an address space. Locking the space locks all of them. The
//!   reservation lives as long as any of its users, the space need not.
//! - *handle*: a client's number for an object. See [`HandleTable`].
//! - *busy*: some fence of the reservation has not signalled.
//! - *graveyard*: where the memory of an object waits that went while it was busy. See [`Graveyard`].
//!
//! # Locking
//!
//! The place changes only under the reservation. Everything else about an object is atomic or behind a lock of its own
//! that is held for a few instructions, so references can be looked up, cloned and dropped under any lock.
//!
//! What this module leaves to others: where the bytes are (the driver's data), which region they are in
//! ([`residency`](crate::residency)), sharing between devices ([`dma_buf`](crate::dma_buf)), descriptors and ioctls
//! (the device server).

#[cfg(feature = "std")]
mod graveyard;
pub mod handle;
#[cfg(feature = "std")]
mod object;

pub use handle::{Handle, HandleMap, HandlesExhausted};

#[cfg(feature = "std")]
pub use graveyard::Graveyard;
#[cfg(feature = "std")]
pub use handle::HandleTable;
#[cfg(feature = "std")]
pub use object::{Advice, Object, ObjectConfig, ObjectData, WeakObject};
