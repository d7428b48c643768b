//! The structures and numbers that clients and kernel drivers agree on (the uAPI), as plain data.
//!
//! Every structure here has exactly the layout that 64-bit programs use: `#[repr(C)]`, no implicit
//! padding, [`bytemuck::Pod`], and a size that is checked when the crate is compiled. Field names are
//! the kernel's, so that a reader can hold a header file beside them.
//!
//! Nothing here has behaviour: who checks the fields and acts on them is `core` (what every DRM driver
//! shares) and the drivers.

pub mod dma_buf;
pub mod drm;
pub mod ioctl;
pub mod sw_sync;
pub mod sync_file;
