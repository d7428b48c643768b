//! GPU virtual addresses and ranges of them.
//!
//! [`Va`] is a place, [`VaRange`] a non-empty half-open stretch of places. A range can't be empty and can't
//! wrap around, so nothing behind its constructor checks for either again. Addresses are zero-extended, as the
//! bind interfaces of the drivers have them; a canonical (sign-extended) one is brought into that form by
//! whoever takes it from a client.

use core::fmt;

/// An address in a GPU address space, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Va(u64);

impl Va {
    /// The first address.
    pub const ZERO: Va = Va(0);

    /// The address `raw` bytes from the start of the space.
    #[inline]
    pub const fn new(raw: u64) -> Va {
        Va(raw)
    }

    /// The address as a number of bytes.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// `self + bytes`, or `None` where that leaves 64 bits.
    #[inline]
    pub const fn checked_add(self, bytes: u64) -> Option<Va> {
        match self.0.checked_add(bytes) {
            Some(raw) => Some(Va(raw)),
            None => None,
        }
    }

    /// Whether the address is a multiple of `align`, which must be a power of two.
    #[inline]
    pub const fn is_aligned(self, align: u64) -> bool {
        self.0 & (align - 1) == 0
    }
}

impl From<u64> for Va {
    fn from(raw: u64) -> Va {
        Va(raw)
    }
}

impl fmt::Debug for Va {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Va {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#014x}", self.0)
    }
}

impl fmt::LowerHex for Va {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// A stretch of addresses: from `start` up to, not including, `end`.
///
/// # Invariants
/// `start < end`. The last byte of the 64-bit space can't be part of a range.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaRange {
    start: u64,
    end: u64,
}

impl VaRange {
    /// `len` bytes from `start` on, or `None` if `len` is 0 or the end leaves 64 bits.
    #[inline]
    pub const fn new(start: Va, len: u64) -> Option<VaRange> {
        match start.0.checked_add(len) {
            Some(end) if end > start.0 => Some(VaRange { start: start.0, end }),
            _ => None,
        }
    }

    /// From `start` up to `end`, or `None` if that is empty or backwards.
    #[inline]
    pub const fn between(start: Va, end: Va) -> Option<VaRange> {
        if start.0 < end.0 { Some(VaRange { start: start.0, end: end.0 }) } else { None }
    }

    /// For callers within the folder that know `start < end`.
    #[cfg(feature = "std")]
    #[inline]
    pub(super) const fn from_raw(start: u64, end: u64) -> VaRange {
        debug_assert!(start < end);
        VaRange { start, end }
    }

    /// The first address.
    #[inline]
    pub const fn start(self) -> Va {
        Va(self.start)
    }

    /// The first address behind the range.
    #[inline]
    pub const fn end(self) -> Va {
        Va(self.end)
    }

    /// The length in bytes; never 0.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether `va` lies inside.
    #[inline]
    pub const fn contains(self, va: Va) -> bool {
        self.start <= va.0 && va.0 < self.end
    }

    /// Whether all of `other` lies inside.
    #[inline]
    pub const fn covers(self, other: VaRange) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether the two share an address.
    #[inline]
    pub const fn overlaps(self, other: VaRange) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// What the two share.
    pub const fn intersection(self, other: VaRange) -> Option<VaRange> {
        let start = if self.start > other.start { self.start } else { other.start };
        let end = if self.end < other.end { self.end } else { other.end };
        VaRange::between(Va(start), Va(end))
    }

    /// The part of `self` below `other`'s start.
    pub const fn below(self, other: VaRange) -> Option<VaRange> {
        let end = if self.end < other.start { self.end } else { other.start };
        VaRange::between(Va(self.start), Va(end))
    }

    /// The part of `self` from `other`'s end on.
    pub const fn above(self, other: VaRange) -> Option<VaRange> {
        let start = if self.start > other.end { self.start } else { other.end };
        VaRange::between(Va(start), Va(self.end))
    }
}

impl fmt::Debug for VaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

impl fmt::Display for VaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#014x}..{:#014x}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> VaRange {
        VaRange::between(Va(start), Va(end)).unwrap()
    }

    #[test]
    fn an_empty_or_wrapping_range_does_not_exist() {
        assert_eq!(VaRange::new(Va(0x1000), 0), None);
        assert_eq!(VaRange::new(Va(u64::MAX - 1), 2), None);
        assert_eq!(VaRange::between(Va(2), Va(2)), None);
        assert_eq!(VaRange::between(Va(3), Va(2)), None);
        assert_eq!(VaRange::new(Va(u64::MAX - 1), 1).unwrap().end(), Va(u64::MAX));
    }

    #[test]
    fn below_and_above_are_what_a_cut_leaves() {
        let whole = range(0x1000, 0x9000);
        let cut = range(0x3000, 0x5000);
        assert_eq!(whole.below(cut), Some(range(0x1000, 0x3000)));
        assert_eq!(whole.above(cut), Some(range(0x5000, 0x9000)));
        assert_eq!(cut.below(whole), None);
        assert_eq!(cut.above(whole), None);
        assert_eq!(whole.intersection(cut), Some(cut));
        assert_eq!(range(0, 1).intersection(range(1, 2)), None);
    }
}
