//! What all [wound/wait locks](super::ww) share.

use crate::{
    fence::Parker,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use super::ww::Ticket;

/// Operations that sleep while they hold locks.
pub(super) type Sleepers = Vec<(Ticket, Arc<Parker>)>;

static SLEEPERS: Mutex<Sleepers> = Mutex::new(Vec::new());
static NEXT_TICKET: AtomicU64 = AtomicU64::new(1);

pub(super) fn sleepers() -> &'static Mutex<Sleepers> {
    &SLEEPERS
}

/// The numbers of tickets, from 1.
pub(super) fn next_ticket() -> u64 {
    NEXT_TICKET.fetch_add(1, Ordering::Relaxed)
}
