//! What the server keeps for one client's address spaces, and the most that the device's owner allows it: page tables, records
//! of mappings, binds that wait. Without a limit a client could take all memory by mapping one page in many places.
//!
//! A call that only unmaps needs memory too, to be able to take back what it did: it may go beyond the limit, up to
//! [`TO_UNMAP`] times as far. So a client at its limit can always give back what it has. It gains nothing by it: to unmap in the
//! middle of a mapping takes page tables, which count as ever.
//!
//! Lock-free, since it is asked under locks of all kinds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lapidary_gpu::pagetable::NodeQuota;

/// Bytes of a page-table node.
const NODE: u64 = 4096;

/// How many times its limit a client may have for the time of a call that only unmaps.
const TO_UNMAP: u64 = 4;

/// One client's allowance, in bytes.
#[derive(Debug)]
pub(super) struct Allowance {
    limit: u64,
    taken: AtomicU64,
}

impl Allowance {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, taken: AtomicU64::new(0) })
    }

    /// Takes `bytes`, unless that is too much.
    pub(super) fn take(&self, bytes: u64) -> bool {
        self.take_up_to(self.limit, bytes)
    }

    /// Takes `bytes` for a call that only unmaps.
    pub(super) fn take_to_unmap(&self, bytes: u64) -> bool {
        self.take_up_to(self.limit.saturating_mul(TO_UNMAP), bytes)
    }

    fn take_up_to(&self, limit: u64, bytes: u64) -> bool {
        if bytes == 0 {
            return true;
        }
        let more = |taken: u64| taken.checked_add(bytes).filter(|taken| *taken <= limit);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Gives back what was taken.
    pub(super) fn give_back(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes `bytes` until the result is dropped.
    pub(super) fn lend(self: &Arc<Self>, bytes: u64) -> Option<Loan> {
        self.take(bytes).then(|| Loan { from: Arc::clone(self), bytes })
    }

    /// How much is taken.
    #[cfg(test)]
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl NodeQuota for Allowance {
    fn take(&self, count: u32) -> bool {
        Allowance::take(self, u64::from(count) * NODE)
    }

    fn give_back(&self, count: u32) {
        Allowance::give_back(self, u64::from(count) * NODE);
    }
}

/// Part of an allowance, for a while.
#[derive(Debug)]
pub(super) struct Loan {
    from: Arc<Allowance>,
    bytes: u64,
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.from.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_given_than_allowed_and_a_refusal_takes_nothing() {
        let allowance = Allowance::new(10_000);
        let loan = allowance.lend(6_000).unwrap();
        assert!(allowance.lend(4_001).is_none() && !allowance.take(u64::MAX));
        assert!(!NodeQuota::take(&*allowance, 1));
        drop(loan);
        assert!(NodeQuota::take(&*allowance, 2));
        assert_eq!(allowance.taken(), 8192);
        assert!(!allowance.take(2_000) && allowance.take_to_unmap(2_000) && !allowance.take_to_unmap(30_000));
        assert!(NodeQuota::take(&*allowance, 0), "nothing is never too much");
        allowance.give_back(2_000);
        NodeQuota::give_back(&*allowance, 2);
        assert_eq!(allowance.taken(), 0);
    }
}
