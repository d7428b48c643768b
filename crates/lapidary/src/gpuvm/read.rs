//! Looking at an address space: lookups, iteration, free ranges.

use std::fmt;

use super::VmTypes;
use super::book::{Book, Recorded};
use super::mapping::MappingRef;
use super::va::{Va, VaRange};
use super::vm::VmInner;
use super::vm_bo::VmBo;
use crate::sync::RwLockReadGuard;

/// The mappings of an address space, at rest while this is held. Changes wait meanwhile, so keep it short.
///
/// Taking one while the same thread holds another is fine.
pub struct VmRead<'a, T: VmTypes> {
    vm: &'a VmInner<T>,
    book: RwLockReadGuard<'a, Book<T>>,
}

impl<'a, T: VmTypes> VmRead<'a, T> {
    pub(super) fn new(vm: &'a VmInner<T>) -> Self {
        // Recursive: steps and validation look things up while the book is held for reading.
        VmRead { vm, book: vm.book.read_recursive() }
    }

    /// How many mappings there are.
    pub fn len(&self) -> usize {
        self.book.len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.book.len() == 0
    }

    /// Bytes of memory that tracking mappings and objects takes, room for more included.
    pub fn bytes(&self) -> usize {
        self.book.bytes()
    }

    /// The part of [`bytes`](Self::bytes) that is the mappings': index, records and the objects' lists of them.
    pub fn mapping_bytes(&self) -> usize {
        self.book.mapping_bytes()
    }

    /// The mapping that contains `va`.
    pub fn at(&self, va: Va) -> Option<MappingRef<'_, T>> {
        let found = self.book.first_behind(va.raw()).filter(|mapping| mapping.range().contains(va));
        found.map(|mapping| mapping.get())
    }

    /// The first mapping that overlaps `range`.
    #[inline]
    pub fn find_first(&self, range: VaRange) -> Option<Recorded<'_, T>> {
        self.book.first_behind(range.start().raw()).filter(|mapping| mapping.range().overlaps(range))
    }

    /// The mapping of exactly `range`.
    #[inline]
    pub fn find(&self, range: VaRange) -> Option<MappingRef<'_, T>> {
        let found = self.find_first(range).filter(|mapping| mapping.range() == range);
        found.map(|mapping| mapping.get())
    }

    /// The mappings that overlap `range`, in order.
    pub fn range(&self, range: VaRange) -> impl Iterator<Item = MappingRef<'_, T>> {
        self.book.overlapping(range)
    }

    /// All mappings, in order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = Recorded<'_, T>> {
        self.book.recorded()
    }

    /// The mappings of one object, newest first.
    pub fn mappings_of(&self, vm_bo: &VmBo<T>) -> impl Iterator<Item = MappingRef<'_, T>> {
        self.book.mappings_of(vm_bo)
    }

    /// Objects that are mapped and have a reservation of their own.
    pub fn external(&self) -> impl Iterator<Item = &VmBo<T>> {
        self.book.external()
    }

    /// The mappings next to `va` that do not contain it: the last that ends at or below it and the first that
    /// starts above it. For reports on faults.
    pub fn neighbours(&self, va: Va) -> (Option<MappingRef<'_, T>>, Option<MappingRef<'_, T>>) {
        let containing = self.find_first_behind(va).filter(|mapping| mapping.range().contains(va));
        let from = containing.as_ref().map_or(va, Recorded::start);
        let to = containing.map_or(va, |mapping| mapping.range().end());
        let below = self.book.last_before(from.raw());
        let above = self.find_first_behind(to);
        (below.map(|mapping| mapping.get()), above.map(|mapping| mapping.get()))
    }

    fn find_first_behind(&self, va: Va) -> Option<Recorded<'_, T>> {
        self.book.first_behind(va.raw())
    }

    /// Whether nothing is mapped in `range`.
    pub fn is_free(&self, range: VaRange) -> bool {
        self.find_first(range).is_none()
    }

    /// The lowest `len` bytes within `within` that are free and aligned to `align`, a power of two, outside the
    /// kernel's part. `None` if there are none, or if `len` is 0 or `align` no power of two.
    pub fn find_empty(&self, len: u64, align: u64, within: VaRange) -> Option<Va> {
        if len == 0 || !align.is_power_of_two() {
            return None;
        }
        let config = self.vm.config();
        let within = within.intersection(config.range)?;
        let aligned = |at: u64| Some(at.checked_add(align - 1)? & !(align - 1));
        let mut at = aligned(within.start().raw())?;
        let mut mappings = self.book.mappings_from(at).map(|mapping| mapping.range).peekable();
        loop {
            let wanted = VaRange::new(Va::new(at), len)?;
            if !within.covers(wanted) {
                return None;
            }
            while mappings.next_if(|mapping| mapping.end() <= wanted.start()).is_some() {}
            let kernel = config.kernel.filter(|kernel| kernel.overlaps(wanted));
            let mapped = mappings.peek().copied().filter(|mapping| mapping.overlaps(wanted));
            match kernel.or(mapped) {
                Some(taken) => at = aligned(taken.end().raw())?,
                None => return Some(wanted.start()),
            }
        }
    }

    /// Checks the invariants of the book and its index; the error names the first that is broken. For tests and
    /// for debugging: it goes through everything.
    pub fn check(&self) -> Result<(), &'static str> {
        self.book.check()
    }
}

impl<T: VmTypes> fmt::Debug for VmRead<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
