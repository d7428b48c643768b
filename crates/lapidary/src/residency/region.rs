//! Regions, and the memory allocated from them.

use std::fmt;

use crate::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use super::{Account, Buddy, BuddyError, Extent, RangeAllocator, Shape};

/// Names a region of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(u8);

impl RegionId {
    /// How many regions a device can have.
    pub const MAX: usize = 16;

    /// The id of the given number; `None` from [`MAX`](Self::MAX) up.
    pub const fn new(number: u8) -> Option<Self> {
        if (number as usize) < Self::MAX { Some(Self(number)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }

    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a region is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RegionKind {
    /// The host's memory: addresses are the device's own view of it and cost nothing, bytes are limited.
    System,
    /// The device's memory: addresses are the memory.
    Vram,
}

/// How a region is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionConfig {
    /// Its id, unique in the device.
    pub id: RegionId,
    /// What it is made of.
    pub kind: RegionKind,
    /// How many bytes it has; a multiple of `chunk`.
    pub size: u64,
    /// The smallest unit of allocation in bytes, a power of two.
    pub chunk: u64,
}

/// A stretch of memory that objects live in. Clones are handles to the same region.
#[derive(Clone)]
pub struct Region(Arc<Inner>);

struct Inner {
    config: RegionConfig,
    space: Mutex<Space>,
    /// Most bytes ever allocated; changes under the space's lock.
    peak: AtomicU64,
}

/// System addresses are allocated from a space this much larger than the memory, so that there is always a
/// contiguous range.
const SYSTEM_SPACE_FACTOR: u64 = 64;

/// The lowest system address, so that none is 0.
const SYSTEM_SPACE_START: u64 = 1 << 30;

enum Space {
    System { ranges: RangeAllocator, left: u64 },
    Vram(Buddy),
}

impl Space {
    fn available(&self) -> u64 {
        match self {
            Self::System { left, .. } => *left,
            Self::Vram(buddy) => buddy.available(),
        }
    }
}

/// Why a region gave no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// Not enough is free.
    #[error("region {region} has no {size:#x} bytes: {free:#x} bytes are free")]
    Full {
        /// The region asked.
        region: RegionId,
        /// The bytes asked for.
        size: u64,
        /// The bytes free.
        free: u64,
    },
    /// No bytes were asked for.
    #[error("an allocation of no bytes")]
    Empty,
}

impl Region {
    /// A region of free memory.
    ///
    /// # Errors
    /// [`BuddyError::BadGeometry`] if size and chunk don't fit together.
    pub fn new(config: RegionConfig) -> Result<Self, BuddyError> {
        // The geometry is checked for both kinds by the allocator that has an opinion on it.
        let RegionConfig { size, chunk, .. } = config;
        let space = match config.kind {
            RegionKind::Vram => Space::Vram(Buddy::new(size, chunk)?),
            RegionKind::System => {
                if !chunk.is_power_of_two() || size == 0 || !size.is_multiple_of(chunk) {
                    return Err(BuddyError::BadGeometry { size, chunk });
                }
                let len =
                    size.checked_next_power_of_two().and_then(|size| size.checked_mul(SYSTEM_SPACE_FACTOR));
                let len = len.unwrap_or(1 << 62);
                let ranges = RangeAllocator::new(Extent { start: SYSTEM_SPACE_START, len });
                Space::System { ranges, left: size }
            }
        };
        Ok(Self(Arc::new(Inner { config, space: Mutex::new(space), peak: AtomicU64::new(0) })))
    }

    /// The region's id.
    pub fn id(&self) -> RegionId {
        self.0.config.id
    }

    /// What the region is made of.
    pub fn kind(&self) -> RegionKind {
        self.0.config.kind
    }

    /// All bytes.
    pub fn size(&self) -> u64 {
        self.0.config.size
    }

    /// The smallest unit of allocation, in bytes.
    pub fn chunk(&self) -> u64 {
        self.0.config.chunk
    }

    /// The bytes that are free.
    pub fn available(&self) -> u64 {
        self.0.space.lock().available()
    }

    /// The bytes that are allocated.
    pub fn used(&self) -> u64 {
        self.size() - self.available()
    }

    /// The most bytes that were ever allocated at one time.
    pub fn peak(&self) -> u64 {
        self.0.peak.load(Ordering::Relaxed)
    }

    /// Allocates at least `size` bytes, rounded up to chunks, on `account`. Evicts nothing.
    ///
    /// # Errors
    /// [`RegionError`]; nothing has changed then.
    pub fn allocate(
        &self,
        size: u64,
        shape: Shape,
        account: Option<&Account>,
    ) -> Result<Allocation, RegionError> {
        if size == 0 {
            return Err(RegionError::Empty);
        }
        let full = |free| RegionError::Full { region: self.id(), size, free };
        let mut space = self.0.space.lock();
        let extents = match &mut *space {
            Space::Vram(buddy) => buddy.allocate(size, shape).map_err(|_| full(buddy.available()))?,
            Space::System { ranges, left } => {
                let bytes = size.checked_next_multiple_of(self.chunk()).filter(|bytes| bytes <= left);
                let bytes = bytes.ok_or(full(*left))?;
                let align = natural_alignment(bytes).max(self.chunk());
                let range = ranges.allocate(bytes, align).map_err(|_| full(*left))?;
                *left -= bytes;
                vec![range]
            }
        };
        self.0.peak.fetch_max(self.size() - space.available(), Ordering::Relaxed);
        drop(space);
        let allocation = Allocation {
            region: self.clone(),
            extents: extents.into_boxed_slice(),
            account: account.cloned(),
        };
        if let Some(account) = account {
            account.charge(self.id(), allocation.size());
        }
        Ok(allocation)
    }

    fn free(&self, extents: &[Extent]) {
        let mut space = self.0.space.lock();
        for &extent in extents {
            match &mut *space {
                Space::Vram(buddy) => buddy.free(extent),
                Space::System { ranges, left } => {
                    ranges.free(extent);
                    *left += extent.len;
                }
            }
        }
    }
}

/// The alignment that lets a page table use the largest leaves for `bytes`.
const fn natural_alignment(bytes: u64) -> u64 {
    const LEAVES: [u64; 3] = [1 << 30, 1 << 21, 1 << 16];
    let mut at = 0;
    while at < LEAVES.len() {
        if bytes >= LEAVES[at] {
            return LEAVES[at];
        }
        at += 1;
    }
    1 << 12
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RegionConfig { id, kind, size, .. } = self.0.config;
        f.debug_struct("Region")
            .field("id", &id)
            .field("kind", &kind)
            .field("size", &size)
            .field("used", &self.used())
            .finish()
    }
}

/// Memory of a region; free again when dropped, which takes the region's own lock only.
#[derive(Debug)]
pub struct Allocation {
    region: Region,
    extents: Box<[Extent]>,
    account: Option<Account>,
}

impl Allocation {
    /// The region the memory is of.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The pieces, in the order of the object's bytes.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// All bytes: the size asked for, rounded up to chunks.
    pub fn size(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len).sum()
    }

    /// The pieces that hold bytes `[offset, offset + len)`, cut to them; less if the memory ends before.
    pub fn slice(&self, offset: u64, len: u64) -> impl Iterator<Item = Extent> {
        let (mut skip, mut left) = (offset, len);
        self.extents.iter().filter_map(move |extent| {
            if skip >= extent.len {
                skip -= extent.len;
                return None;
            }
            let len = (extent.len - skip).min(left);
            let piece = Extent { start: extent.start + skip, len };
            skip = 0;
            left -= len;
            (len > 0).then_some(piece)
        })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some(account) = &self.account {
            account.refund(self.region.id(), self.size());
        }
        self.region.free(&self.extents);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(kind: RegionKind) -> Region {
        Region::new(RegionConfig { id: RegionId(1), kind, size: 1 << 20, chunk: 1 << 16 }).unwrap()
    }

    #[test]
    fn memory_is_accounted_to_region_and_client_until_dropped() {
        for kind in [RegionKind::System, RegionKind::Vram] {
            let region = region(kind);
            let account = Account::new();
            let memory = region.allocate(70_000, Shape::default(), Some(&account)).unwrap();
            assert_eq!((region.used(), account.resident(region.id())), (1 << 17, 1 << 17));
            assert!(matches!(
                region.allocate(1 << 20, Shape::default(), None),
                Err(RegionError::Full { .. })
            ));
            drop(memory);
            assert_eq!((region.used(), account.total()), (0, 0));
        }
    }

    #[test]
    fn a_slice_crosses_pieces() {
        let region = region(RegionKind::Vram);
        let extents = vec![Extent { start: 0, len: 0x10000 }, Extent { start: 0x40000, len: 0x20000 }];
        let memory =
            std::mem::ManuallyDrop::new(Allocation { region, extents: extents.into(), account: None });
        let slice: Vec<_> = memory.slice(0x8000, 0x10000).collect();
        assert_eq!(slice, [Extent { start: 0x8000, len: 0x8000 }, Extent { start: 0x40000, len: 0x8000 }]);
        assert_eq!(memory.slice(0x30000, 1).count(), 0);
        assert_eq!(memory.slice(0, 0).count(), 0);
    }
}
