//! The functions that stand in front of libc's.
//!
//! Signatures are libc's. Variadic functions are defined with the optional arguments fixed, which the calling conventions
//! of x86-64 and aarch64 allow. Each hook decides whether the call is the device's, and otherwise does what libc would.

mod descriptor;
mod folder;
mod link;
mod memory;
mod open;
mod path;
mod poll;
mod stat;
