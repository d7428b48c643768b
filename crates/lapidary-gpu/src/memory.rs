//! Physical memory of the virtual GPU.
//!
//! * [`host`]: host memory that can stand behind device addresses.

pub mod host;

pub use host::{HostMemory, MemoryError, SharedRegion};
