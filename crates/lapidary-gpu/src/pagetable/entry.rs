//! One page-table entry.
//!
//! ```text
//!   63   57 56  52 51 48 47                       12 11   10 9  8     7      6 3 2    1     0
//!  ┌───────┬──────┬─────┬──────────────────────────┬─────┬────┬──────┬──────┬───┬────┬─────┬───────┐
//!  │   0   │ PAT  │  0  │ device address / node    │vram │ 0  │64 KiB│ leaf │ 0 │null│write│present│
//!  └───────┴──────┴─────┴──────────────────────────┴─────┴────┴──────┴──────┴───┴────┴─────┴───────┘
//! ```

use super::{
    pool::NodeId,
    types::{Leaf, Pat, PteAttrs, Target},
};
use crate::memory::{DevAddr, PhysAddr, Space};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const NULL: u64 = 1 << 2;
const LEAF: u64 = 1 << 7;
const GROUP: u64 = 1 << 8;
const VRAM: u64 = 1 << 11;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const PAT_SHIFT: u32 = 52;

/// log2 of what a group of small pages spans.
pub(super) const GROUP_SHIFT: u32 = 16;

/// An entry as it is in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry(pub(super) u64);

/// What an entry means.
pub(super) enum Decoded {
    Absent,
    Node(NodeId),
    Leaf,
}

impl Entry {
    pub(super) const ABSENT: Self = Self(0);

    /// Whether `at` fits.
    pub(super) fn fits(at: PhysAddr) -> bool {
        at.addr.0 & !ADDRESS == 0
    }

    pub(super) fn node(node: NodeId) -> Self {
        Self(u64::from(node.0) << 12 | PRESENT)
    }

    pub(super) fn leaf(target: Target, attrs: PteAttrs, grouped: bool) -> Self {
        let target = match target {
            Target::Null => NULL,
            Target::Memory(at) => (at.addr.0 & ADDRESS) | if at.space == Space::Vram { VRAM } else { 0 },
        };
        let write = if attrs.writable { WRITE } else { 0 };
        let group = if grouped { GROUP } else { 0 };
        Self(target | write | group | u64::from(attrs.pat.get()) << PAT_SHIFT | LEAF | PRESENT)
    }

    pub(super) fn decode(self) -> Decoded {
        match self.0 & (PRESENT | LEAF) {
            0 | LEAF => Decoded::Absent,
            PRESENT => Decoded::Node(NodeId(((self.0 & ADDRESS) >> 12) as u32)),
            _ => Decoded::Leaf,
        }
    }

    pub(super) fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// Whether it belongs to a group of 16 that form a 64 KiB leaf.
    pub(super) fn is_grouped(self) -> bool {
        self.0 & GROUP != 0
    }

    #[must_use]
    pub(super) fn ungrouped(self) -> Self {
        Self(self.0 & !GROUP)
    }

    pub(super) fn target(self) -> Target {
        if self.0 & NULL != 0 {
            return Target::Null;
        }
        let space = if self.0 & VRAM != 0 { Space::Vram } else { Space::System };
        Target::Memory(PhysAddr { space, addr: DevAddr(self.0 & ADDRESS) })
    }

    pub(super) fn attrs(self) -> PteAttrs {
        let pat = Pat::new((self.0 >> PAT_SHIFT) as u8 & 31).unwrap_or_default();
        PteAttrs { writable: self.0 & WRITE != 0, pat }
    }

    /// The translation that this leaf entry, found at a level of `shift` for an address `va`, is part of.
    pub(super) fn to_leaf(self, va: u64, shift: u32) -> Leaf {
        let page = va >> shift << shift;
        let shift = if self.is_grouped() { GROUP_SHIFT } else { shift };
        let start = va >> shift << shift;
        let target = match self.target() {
            Target::Null => Target::Null,
            Target::Memory(at) => {
                Target::Memory(PhysAddr { addr: DevAddr(at.addr.0 - (page - start)), ..at })
            }
        };
        Leaf { start, shift: shift as u8, target, attrs: self.attrs() }
    }
}
