//! Physical memory of the virtual GPU.
//!
//! Two spaces of device addresses exist ([`Space`]): the device's own memory, and the system memory that it reaches by DMA. Neither has
//! bytes of its own: a driver attaches host memory to device addresses, and detaches it when it moves a buffer or lets it go.
//!
//! * [`host`]: host memory that can stand behind device addresses.
//! * [`phys`]: the two spaces: attach, detach, and the engines' constant-time lookup.

pub mod host;
pub mod phys;

pub use host::{HostMemory, MemoryError, SharedRegion};
pub use phys::{AttachError, DevAddr, PhysAddr, PhysMem, Space};
