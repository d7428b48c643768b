//! One engine's translation cache.
//!
//! Direct-mapped, by address space and 4 KiB page; an entry holds the whole leaf that the page lies in, whatever its size. Absent
//! entries are not cached, so mapping what was unmapped needs no invalidation.

use crate::{
    bus::GpuVa,
    pagetable::{Asid, Leaf, PAGE_SHIFT, VaSpan},
    tlb::shootdown::Invalidate,
};

const ENTRIES: usize = 1024;

#[derive(Clone, Copy)]
struct Entry {
    asid: Asid,
    page: u64,
    leaf: Leaf,
}

/// The cache.
pub(crate) struct Tlb {
    entries: Box<[Option<Entry>]>,
}

impl Tlb {
    pub(crate) fn new() -> Self {
        Self { entries: vec![None; ENTRIES].into_boxed_slice() }
    }

    /// The cached leaf for `va`.
    #[inline]
    pub(crate) fn lookup(&self, asid: Asid, va: GpuVa) -> Option<Leaf> {
        let page = va.get() >> PAGE_SHIFT;
        match &self.entries[Self::slot(asid, page)] {
            Some(entry) if entry.page == page && entry.asid == asid => Some(entry.leaf),
            _ => None,
        }
    }

    /// Caches the leaf that a walk found for `va`.
    pub(crate) fn insert(&mut self, asid: Asid, va: GpuVa, leaf: Leaf) {
        let page = va.get() >> PAGE_SHIFT;
        self.entries[Self::slot(asid, page)] = Some(Entry { asid, page, leaf });
    }

    #[inline]
    fn slot(asid: Asid, page: u64) -> usize {
        // Large surfaces start at equal low bits: fold higher ones in.
        (page ^ (page >> 10) ^ asid.get().wrapping_mul(0x9e37)) as usize % ENTRIES
    }
}

impl Invalidate for Tlb {
    fn drop_range(&mut self, asid: Asid, span: VaSpan) {
        for slot in &mut self.entries {
            if slot.is_some_and(|entry| entry.asid == asid && entry.leaf.span().overlaps(span)) {
                *slot = None;
            }
        }
    }

    fn drop_all(&mut self) {
        self.entries.fill(None);
    }
}
