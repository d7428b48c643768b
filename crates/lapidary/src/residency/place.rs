//! An object's place: where it may live and where it does.

use std::{any::Any, fmt};

use crate::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use super::{Account, Allocation, RegionId, Shape};

/// A region an object may live in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Placement {
    /// The region.
    pub region: RegionId,
    /// Whether others are evicted for it.
    pub role: Role,
}

/// What a placement is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Where the object belongs: others are evicted to make room.
    Preferred,
    /// Good enough if the preferred ones are full; nobody is evicted from them for it, and the object goes back
    /// to a preferred one when it is validated after an eviction and there is room.
    Fallback,
}

impl Placement {
    /// A region that others are evicted from.
    pub const fn preferred(region: RegionId) -> Self {
        Self { region, role: Role::Preferred }
    }

    /// A region that is good enough.
    pub const fn fallback(region: RegionId) -> Self {
        Self { region, role: Role::Fallback }
    }
}

/// Where an object is to live: what does not change while it exists.
#[derive(Debug, Clone, Default)]
pub struct PlaceConfig {
    /// The regions it may live in, best first. None for an object whose memory is another's, an import for instance.
    pub placements: Vec<Placement>,
    /// Of how many pieces its memory may be.
    pub shape: Shape,
    /// Whose memory it is.
    pub account: Option<Account>,
    /// Evicted after all objects of lower priority.
    pub priority: u8,
    /// Objects used together, touched together.
    pub group: Option<LruGroup>,
}

/// The last use of many objects at once: touching it touches all, at the price of one store. What the objects of an
/// address space share.
#[derive(Debug, Clone, Default)]
pub struct LruGroup(pub(super) Arc<AtomicU64>);

impl LruGroup {
    /// A group that was never touched.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Where an object is.
#[derive(Debug, Clone, Default)]
pub enum Residence {
    /// It has no memory: not yet, or none of its own.
    #[default]
    Nowhere,
    /// Where it is allowed to be.
    Resident(Arc<Allocation>),
    /// In a region it was evicted to: it must be validated before its next use.
    Evicted(Arc<Allocation>),
    /// Its memory was taken and its content is lost, which the client had allowed.
    Purged,
}

impl Residence {
    /// The memory, wherever it is.
    pub fn allocation(&self) -> Option<&Arc<Allocation>> {
        match self {
            Self::Nowhere | Self::Purged => None,
            Self::Resident(allocation) | Self::Evicted(allocation) => Some(allocation),
        }
    }
}

/// The residency part of an object. The manager changes it with the object's reservation locked; everybody may look.
pub struct Place {
    pub(super) config: PlaceConfig,
    residence: Mutex<Residence>,
    pins: AtomicU32,
    pub(super) recency: Arc<Recency>,
    /// The object's entry in the list of a region; leaves it when dropped.
    pub(super) seat: Mutex<Option<Box<dyn Any + Send + Sync>>>,
}

/// When an object was last used, in ticks of its manager's clock.
#[derive(Debug, Default)]
pub(super) struct Recency {
    last_use: AtomicU64,
    group: Option<LruGroup>,
}

impl Recency {
    pub(super) fn touch(&self, now: u64) {
        self.last_use.fetch_max(now, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        let group = self.group.as_ref().map_or(0, |group| group.0.load(Ordering::Relaxed));
        group.max(self.last_use.load(Ordering::Relaxed))
    }
}

impl Place {
    /// A place for an object that is nowhere yet.
    pub fn new(config: PlaceConfig) -> Self {
        let recency = Recency { last_use: AtomicU64::new(0), group: config.group.clone() };
        Self {
            config,
            residence: Mutex::default(),
            pins: AtomicU32::new(0),
            recency: Arc::new(recency),
            seat: Mutex::default(),
        }
    }

    /// Where the object may live, best first.
    pub fn placements(&self) -> &[Placement] {
        &self.config.placements
    }

    /// Whose memory it is.
    pub fn account(&self) -> Option<&Account> {
        self.config.account.as_ref()
    }

    /// Where the object is now. Without the reservation's lock it may be elsewhere the next moment; the memory itself
    /// stays allocated for as long as the answer is kept.
    pub fn residence(&self) -> Residence {
        self.residence.lock().clone()
    }

    /// Whether the object may live in a region, and as what.
    pub fn role_in(&self, region: RegionId) -> Option<Role> {
        self.config
            .placements
            .iter()
            .find(|placement| placement.region == region)
            .map(|placement| placement.role)
    }

    /// Keeps the object where it is until as many [`unpin`](Self::unpin)s.
    pub fn pin(&self) {
        self.pins.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes back one [`pin`](Self::pin).
    pub fn unpin(&self) {
        let before = self.pins.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "an object is unpinned more often than pinned");
    }

    /// Whether the object must stay where it is.
    pub fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Relaxed) > 0
    }

    /// Takes the memory away: the object goes.
    pub(crate) fn take_allocation(&self) -> Option<Arc<Allocation>> {
        self.set(Residence::Nowhere).allocation().cloned()
    }

    pub(super) fn set(&self, residence: Residence) -> Residence {
        std::mem::replace(&mut *self.residence.lock(), residence)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("placements", &self.config.placements)
            .field("residence", &self.residence())
            .field("pinned", &self.is_pinned())
            .finish()
    }
}
