//! What every DRM driver shares: files, handles, syncobjs, buffer sharing, and the entry of their ioctls.
//!
//! # Vocabulary
//! - *Device*: a driver with what its files share ([`DrmDevice`]). *Driver*: implements [`Driver`].
//! - *File*: what one `open` of a node gave ([`DrmFile`]). *Node*: primary (`card0`) or render (`renderD128`).
//! - *Handle*: a number that names a buffer or a syncobj within one file.
//! - *Buffer*: the clients' side of a driver's object ([`Buffer`]).
//!
//! # Who calls whom
//! ```text
//!  transport ──► file ──► ioctl table ──► info, master, gem, prime, syncobj   (core)
//!                                    └──► the driver's own commands           (driver)
//! ```
//! The transport hands descriptors' calls in; the driver is reached through [`Driver`] and its part of the
//! table. The library below (`lapidary`) has the fences, syncobjs and reservations themselves.
//!
//! # Lifetimes
//! A file goes with its last descriptor, in whatever process, and takes its handles along. A buffer goes with its
//! last handle or dma-buf; the driver's object inside when the GPU is done. Every object a client can make is
//! counted in the [`census`].
//!
//! # Errors
//! Handlers answer with [`Error`], which says why; the number that the client gets comes from [`Error::errno`]
//! alone.

mod argument;
mod buffer;
mod buffer_table;
pub mod census;
mod client;
mod descriptor;
mod device;
mod dma_buf;
mod driver;
mod error;
mod fence_names;
mod file;
mod gem;
mod info;
mod ioctl;
mod master;
mod names;
mod offsets;
mod pollers;
mod prime;
mod sync_file;
mod syncobj;
#[cfg(test)]
mod tests;

pub(crate) use argument::with_argument;
pub use buffer::{Buffer, BufferId};
pub use census::Census;
pub use client::{ClientRecord, NodeName};
pub use device::DrmDevice;
pub use dma_buf::{DmaBuf, DmaBufId};
pub use driver::{Driver, DriverInfo, Features, Memory, MmapRequest, Object, Opening};
pub use error::{Error, fence_errno, fence_error, must_be_zero, only_bits};
pub use fence_names::NamedContext;
pub use file::{ClientId, DrmFile, Node};
pub use ioctl::{IoctlTable, Permit, Request};
pub use sync_file::SyncFile;
pub use syncobj::{SyncobjRef, SyncobjTable};
