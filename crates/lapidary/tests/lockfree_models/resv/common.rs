//! The library's, but made anew for each run of a model.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU64, Ordering};

use crate::{fence::Parker, sync::Mutex};

use super::ww::Ticket;

pub(super) type Sleepers = Vec<(Ticket, Arc<Parker>)>;

loom::lazy_static! {
    static ref SLEEPERS: Mutex<Sleepers> = Mutex::new(Vec::new());
    static ref NEXT_TICKET: AtomicU64 = AtomicU64::new(1);
}

pub(super) fn sleepers() -> &'static Mutex<Sleepers> {
    &SLEEPERS
}

pub(super) fn next_ticket() -> u64 {
    NEXT_TICKET.fetch_add(1, Ordering::Relaxed)
}
