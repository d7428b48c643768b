//! The device server: what a kernel would be to DRM clients, in user space.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`transport`] | client processes, their descriptors, and the channels their calls come through |
//! | [`uapi`] | structures and numbers that clients and drivers agree on, as plain data |
//! | [`core`] | what every DRM driver shares: files, handles, syncobjs, sharing, the entry of ioctls |
//! | [`xe`] | the driver for Intel's Xe2 GPUs |
//! | [`sw_sync`] | software timelines, whose fences a program signals itself |
//! | [`tree`] | the files by which programs discover the device |
//! | [`backing`] | the bytes behind buffers |
//! | [`server`], [`report`] | a device with its transport, and what it did |
//!
//! See each module's head for its vocabulary, locks and lifetimes.

pub mod backing;
pub mod core;
pub mod report;
pub mod server;
pub mod sw_sync;
pub mod transport;
pub mod tree;
pub mod uapi;
pub mod xe;

pub use report::Report;
pub use server::{DeviceConfig, Server, client_env, is_served};
pub use xe::Profile;
