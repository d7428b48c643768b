//! The words that page tables are spoken of in.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::{bus::GpuVa, memory::PhysAddr};

/// log2 of the smallest page.
pub const PAGE_SHIFT: u32 = 12;

/// Names an address space in translation caches. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asid(u64);

impl Asid {
    pub(crate) fn alloc() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Relaxed))
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A range of GPU virtual addresses: not empty, inside 48 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaSpan {
    start: u64,
    end: u64,
}

impl VaSpan {
    /// All addresses.
    pub const ALL: Self = Self { start: 0, end: 1 << GpuVa::BITS };

    /// `len` bytes at `start`; none if the range is empty or leaves the 48 bits.
    pub const fn new(start: GpuVa, len: u64) -> Option<Self> {
        let start = start.get();
        match start.checked_add(len) {
            Some(end) if len > 0 && end <= Self::ALL.end => Some(Self { start, end }),
            _ => None,
        }
    }

    /// The range `start..end`, which the caller knows to be valid.
    pub(super) const fn raw(start: u64, end: u64) -> Self {
        debug_assert!(start < end && end <= Self::ALL.end);
        Self { start, end }
    }

    /// First address.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Address behind the last; up to 1 << 48.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Number of bytes.
    #[expect(clippy::len_without_is_empty, reason = "a span is never empty")]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether the two have an address in common.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether all of `other` is inside.
    pub const fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The smallest span that covers both.
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// The common part of two spans that overlap.
    pub(super) fn clip(self, other: Self) -> Self {
        Self::raw(self.start.max(other.start), self.end.min(other.end))
    }

    /// Whether start and end are multiples of the page size.
    pub(super) const fn is_whole_pages(self) -> bool {
        (self.start | self.end) & ((1 << PAGE_SHIFT) - 1) == 0
    }
}

impl fmt::Debug for VaSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

impl fmt::Display for VaSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Index of a page attribute: how caches treat the memory. Kept, reported, without effect on a GPU without data caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pat(u8);

impl Pat {
    /// The index `index`; none above 31.
    pub const fn new(index: u8) -> Option<Self> {
        if index < 32 { Some(Self(index)) } else { None }
    }

    /// The index.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// What a page-table entry carries beside its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PteAttrs {
    /// Whether writes are allowed.
    pub writable: bool,
    /// Cache attribute.
    pub pat: Pat,
}

impl Default for PteAttrs {
    fn default() -> Self {
        Self { writable: true, pat: Pat::default() }
    }
}

/// What addresses are mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Nothing: reads give zero, writes are dropped.
    Null,
    /// Contiguous device addresses from here on.
    Memory(PhysAddr),
}

impl Target {
    /// What lies `bytes` further on.
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        match self {
            Self::Null => Self::Null,
            Self::Memory(at) => Self::Memory(at.offset(bytes)),
        }
    }

    /// Whether a leaf of `size` (a power of two) can begin here.
    pub(super) const fn is_aligned(self, size: u64) -> bool {
        match self {
            Self::Null => true,
            Self::Memory(at) => at.addr.0 & (size - 1) == 0,
        }
    }
}

/// A translation: one leaf of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub(super) start: u64,
    pub(super) shift: u8,
    /// What the first address of the leaf is mapped to.
    pub target: Target,
    /// Write permission and cache attribute.
    pub attrs: PteAttrs,
}

impl Leaf {
    /// The addresses that it translates.
    pub const fn span(&self) -> VaSpan {
        VaSpan::raw(self.start, self.start + (1 << self.shift))
    }

    /// Bytes: 4 KiB, 64 KiB, 2 MiB or 1 GiB.
    pub const fn size(&self) -> u64 {
        1 << self.shift
    }

    /// What `va`, an address inside, is mapped to.
    pub const fn target_of(&self, va: GpuVa) -> Target {
        self.target.offset(va.get() - self.start)
    }
}

/// Why a change of page tables was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageTableError {
    /// The range is empty or leaves the address space.
    #[error("{len:#x} bytes at {va} leave the 48-bit address space")]
    OutsideSpace {
        /// Start.
        va: GpuVa,
        /// Length in bytes.
        len: u64,
    },
    /// Addresses that must be multiples of the page size are not.
    #[error("{len:#x} bytes at {va} to {target:?} are not whole pages")]
    Misaligned {
        /// Start.
        va: GpuVa,
        /// Length in bytes.
        len: u64,
        /// What to map there, if anything.
        target: Option<Target>,
    },
    /// A device address does not fit in an entry (48 bits).
    #[error("device address {0} does not fit in a page-table entry")]
    AddressTooLarge(PhysAddr),
    /// No nodes are left.
    #[error("{needed} page-table nodes needed, {limit} exist and are in use or reserved")]
    OutOfNodes {
        /// How many were asked for.
        needed: u64,
        /// The pool's limit.
        limit: u64,
    },
    /// The owner of the address space may have no more.
    #[error("the owner of the address space may not have {needed} page-table nodes more")]
    OverQuota {
        /// How many were asked for.
        needed: u64,
    },
}
