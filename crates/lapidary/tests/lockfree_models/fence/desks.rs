//! The library's desks, but made anew for each run of a model.

use super::{Fence, pins::Retired};
use crate::sync::atomic::AtomicU64;

pub(super) struct Desk {
    pub(super) word: AtomicU64,
    pub(super) retired: Retired<Fence>,
}

pub(super) const DESKS: usize = 1;

loom::lazy_static! {
    static ref DESK: Desk = Desk { word: AtomicU64::new(0), retired: Retired::new() };
}

pub(super) fn desk(_: u8) -> &'static Desk {
    &DESK
}
