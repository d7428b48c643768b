//! The library that is loaded into programs with `LD_PRELOAD`, so that they see Lapidary's device.
//!
//! It is as dumb as it can be: it rewrites paths into the device tree, finds out which descriptors are the server's,
//! carries their calls to the server, and does for the server what only the program's own threads can do. What a call
//! means, the server knows.
//!
//! ```text
//!  program ── open, ioctl, … ──► hooks ──► paths      (is the path the tree's?)
//!                                  │  └──► identity   (is the descriptor the server's?)
//!                                  └─────► calls ──► connection, channel ──► server
//! ```
//!
//! Rules of the place:
//! - It runs in every program of a shell pipeline. Nothing happens before a program touches the device, and what is not
//!   the device's goes to the kernel with one comparison more.
//! - The standard library's and libc's own calls may come through the hooks. So everything below them makes raw system
//!   calls, allocates from the kernel, and uses no lock that a hook's caller could hold.
//! - `errno` after a success is what it was before.
//! - Fork: state that must not be shared is in a page that the kernel wipes in the child, which then starts anew.
//! - Signals: blocked only while this library sleeps or holds its lock; a handler may call any hook at any time.
#![allow(unsafe_code)]

mod calls;
mod channel;
mod config;
mod connection;
mod hooks;
mod identity;
mod paths;
mod sys;
mod thread;
mod watch;
