//! Buffer objects and the handles that name them.

pub mod handle;

pub use handle::{Handle, HandleMap, HandlesExhausted};

#[cfg(feature = "std")]
pub use handle::HandleTable;
