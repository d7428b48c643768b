//! The page attribute table: which indices a device has, and which are coherent with CPU caches.
//!
//! The virtual GPU has no caches of its own, so an entry's cache policy changes nothing; its coherency decides which
//! buffers may be mapped with it. Facts: the Xe2 table, as Mesa and the kernel program it.

/// Whether accesses through an entry see the CPU's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coherency {
    /// The GPU may miss what the CPU has cached.
    None,
    /// The GPU sees the CPU's caches, at least one way.
    AtLeastOneWay,
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PatEntry {
    pub(super) coherency: Coherency,
    /// Whether the GPU may compress what it writes.
    pub(super) compressed: bool,
}

/// A device's table.
#[derive(Clone, Copy, Debug)]
pub(super) struct PatTable {
    entries: u16,
}

/// Entries that hardware reserves.
const RESERVED: std::ops::RangeInclusive<u16> = 16..=19;
/// Entries that are coherent one or two ways.
const COHERENT: [u16; 11] = [1, 2, 4, 5, 7, 22, 23, 26, 27, 30, 31];
/// Entries that compress.
const COMPRESSED: [u16; 9] = [9, 10, 11, 12, 14, 15, 21, 25, 29];

impl PatTable {
    /// The first `entries` entries of the Xe2 table.
    pub(super) fn xe2(entries: u16) -> Self {
        Self { entries }
    }

    /// What entry `index` says, `None` where the device has no such entry.
    pub(super) fn get(&self, index: u16) -> Option<PatEntry> {
        if index >= self.entries || RESERVED.contains(&index) {
            return None;
        }
        let coherent = COHERENT.contains(&index);
        Some(PatEntry {
            coherency: if coherent { Coherency::AtLeastOneWay } else { Coherency::None },
            compressed: COMPRESSED.contains(&index),
        })
    }
}
