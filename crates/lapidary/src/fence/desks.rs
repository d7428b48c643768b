//! Readers' desks: where the [readers](super::pins) of many [places](super::slot) are counted.
//!
//! Desks are few and live for ever, so a place costs no more than its pointer and its desk's number.

use crate::sync::{Mutex, atomic::AtomicU64};

use super::{Fence, pins::Retired};

/// The readers of some places, and what was taken out of those while there were any.
pub(super) struct Desk {
    pub(super) word: AtomicU64,
    pub(super) retired: Retired<Fence>,
}

pub(super) const DESKS: usize = 64;

static READERS: [Desk; DESKS] =
    [const { Desk { word: AtomicU64::new(0), retired: Retired(Mutex::new(Vec::new())) } }; DESKS];

/// The desk with a number below [`DESKS`].
#[inline]
pub(super) fn desk(number: u8) -> &'static Desk {
    &READERS[usize::from(number)]
}
