//! Accounts: how much memory of each region belongs to a client.

use crate::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::RegionId;

/// What a client's objects take up now. Clones are handles to the same account.
///
/// The numbers change with allocation, eviction and release, without a lock: read together they may be from
/// different moments.
#[derive(Debug, Clone, Default)]
pub struct Account(Arc<[AtomicU64; RegionId::MAX]>);

impl Account {
    /// An account with nothing on it.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes in one region.
    pub fn resident(&self, region: RegionId) -> u64 {
        self.counter(region).load(Ordering::Relaxed)
    }

    /// The bytes in all regions.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn charge(&self, region: RegionId, bytes: u64) {
        self.counter(region).fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn refund(&self, region: RegionId, bytes: u64) {
        self.counter(region).fetch_sub(bytes, Ordering::Relaxed);
    }

    fn counter(&self, region: RegionId) -> &AtomicU64 {
        &self.0[region.index()]
    }
}
