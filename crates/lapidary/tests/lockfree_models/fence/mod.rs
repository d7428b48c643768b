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
mod pins_models;
mod shared_models;
mod slot_models;
mod word_models;

pub(crate) use core::{Fence, FenceContext, Seqno};
pub(crate) use pins::FenceRef;
