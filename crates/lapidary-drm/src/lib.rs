//! The device server: what a kernel would be to DRM clients, in user space.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`core`](crate::core) | what every DRM driver shares: files, handles, syncobjs, buffer sharing, ioctl entry |
//! | [`transport`] | client processes, their descriptors, and the channels their calls come through |
//! | [`tree`] | the files that stand for `/dev/dri` and sysfs |
//! | [`uapi`] | structures and numbers that clients and drivers agree on, as plain data |
//!
//! See each module's head for its vocabulary, locks and lifetimes.

pub mod core;
pub mod transport;
pub mod tree;
pub mod uapi;
