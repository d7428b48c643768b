//! The library's files, and stand-ins for what surrounds them.

#[path = "../../../src/fence/pins.rs"]
pub(crate) mod pins;
#[path = "../../../src/fence/shared.rs"]
mod shared;
#[path = "../../../src/fence/slot.rs"]
mod slot;
#[path = "../../../src/fence/word.rs"]
mod word;

mod core;
mod desks;
mod park;
mod pins_models;
mod shared_models;
mod slot_models;
mod word_models;

pub(crate) use core::{Fence, FenceContext, Seqno};
pub(crate) use park::{Deadline, Interrupt, Parker, WaitError, park_until};
pub(crate) use pins::FenceRef;

/// Whether nothing is kept for readers.
pub(crate) fn keeps_nothing<T>(retired: &pins::Retired<T>) -> bool {
    retired.0.lock().is_empty()
}
