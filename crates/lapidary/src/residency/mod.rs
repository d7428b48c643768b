//! Where buffers live: memory regions, their allocators, and who must leave when one is full.

mod bitmap;
pub mod buddy;
pub mod range;

pub use buddy::{Buddy, BuddyError, Extent, Shape};
pub use range::{RangeAllocator, RangeError};
