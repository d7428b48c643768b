//! The list and the lock of a reservation, and stand-ins for what surrounds them.

#[path = "../../../src/resv/list.rs"]
mod list;
#[path = "../../../src/resv/ww.rs"]
mod ww;

mod common;
mod list_models;
mod lock_models;

/// As the library's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub enum Usage {
    Kernel = 0,
    Write,
    Read,
    Bookkeep,
}

/// What `list` links to in its documentation.
pub struct Reservation;
