//! The list of a reservation, and stand-ins for what surrounds it.

#[path = "../../../src/resv/list.rs"]
mod list;
mod list_models;

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
