//! An address space: its tables, walks, reservations.

use std::{
    fmt,
    sync::atomic::{AtomicU32, Ordering::*},
};

use lapidary::sync::{Arc, Mutex};

use super::{
    edit::Edit,
    entry::Decoded,
    needs::Needs,
    pool::{FANOUT, NodeId, NodePool, NodeQuota, Nodes},
    types::{Asid, Leaf, PAGE_SHIFT, PageTableError, PteAttrs, Target, VaSpan},
};
use crate::{
    bus::GpuVa,
    tlb::{Scope, Shootdown},
};

/// Levels of nodes; the root is the highest.
pub(super) const LEVELS: u32 = 4;

/// log2 of what an entry at `level` spans (0: 4 KiB, 1: 2 MiB, 2: 1 GiB, 3: 512 GiB).
pub(super) const fn level_shift(level: u32) -> u32 {
    PAGE_SHIFT + 9 * level
}

/// The highest level.
pub(super) const ROOT_LEVEL: u32 = LEVELS - 1;

/// The highest level that can hold leaves.
pub(super) const LEAF_LEVEL: u32 = 2;

/// A GPU virtual address space: page tables, and the right to invalidate what caches hold of them.
///
/// A change goes through four steps, of which only the first can fail for want of memory:
///
/// ```text
///   let mut nodes = space.reserve_map(span, target)?;       reserve nodes; for many changes, see [`Needs`]
///   let mut edit = space.edit();                            writer's lock
///   edit.map(span, target, attrs, &mut nodes)?;             any number of pieces
///   edit.commit();                                          unlock, invalidate, free nodes
///   // only now: detach and reuse the memory that was mapped there
/// ```
///
/// Dropping the last reference never blocks: the tables are left to [`NodePool::reap`]. Contexts hold references.
pub struct AddressSpace {
    pub(super) asid: Asid,
    pub(super) root: NodeId,
    pub(super) pool: Arc<NodePool>,
    pub(super) shootdown: Arc<Shootdown>,
    pub(super) writer: Mutex<()>,
    /// Edits that are not invalidated yet.
    pub(super) pending: AtomicU32,
    /// Who is asked for nodes.
    quota: Arc<dyn NodeQuota>,
    /// Nodes that are part of the tables, those included that wait to be freed.
    pub(super) held: AtomicU32,
    scratch: bool,
}

impl AddressSpace {
    pub(crate) fn new(
        pool: Arc<NodePool>,
        shootdown: Arc<Shootdown>,
        quota: Arc<dyn NodeQuota>,
        scratch: bool,
    ) -> Result<Self, PageTableError> {
        let root = pool.reserve(1, &quota)?.take()?;
        let (asid, writer, pending) = (Asid::alloc(), Mutex::new(()), AtomicU32::new(0));
        Ok(Self { asid, root, pool, shootdown, writer, pending, quota, held: AtomicU32::new(1), scratch })
    }

    /// Its name in translation caches.
    pub fn asid(&self) -> Asid {
        self.asid
    }

    /// Whether unmapped addresses read as zero and swallow writes instead of faulting.
    pub fn has_scratch(&self) -> bool {
        self.scratch
    }

    /// Sets nodes aside for changes of this address space.
    ///
    /// # Errors
    /// [`PageTableError::OutOfNodes`], [`PageTableError::OverQuota`].
    pub fn reserve(&self, needs: &Needs) -> Result<Nodes, PageTableError> {
        self.pool.reserve(needs.count(), &self.quota)
    }

    /// No nodes at all: enough for unmapping whole pieces as they were mapped.
    pub fn no_nodes(&self) -> Nodes {
        self.pool.none(&self.quota)
    }

    /// Sets nodes aside for mapping `span` to `target`, whatever is mapped there when it happens.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn reserve_map(&self, span: VaSpan, target: Target) -> Result<Nodes, PageTableError> {
        let mut needs = Needs::new();
        needs.map(span, target);
        self.reserve(&needs)
    }

    /// Sets nodes aside for unmapping `span`: large leaves at its ends may have to be split.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn reserve_unmap(&self, span: VaSpan) -> Result<Nodes, PageTableError> {
        let mut needs = Needs::new();
        needs.unmap(span);
        self.reserve(&needs)
    }

    /// Begins an edit. Waits for other edits of this space, which are short.
    pub fn edit(&self) -> Edit<'_> {
        Edit::begin(self)
    }

    /// Maps one contiguous piece, in one go: reserves, edits, invalidates.
    ///
    /// # Errors
    /// See [`PageTableError`]; nothing has changed then.
    pub fn map(&self, va: GpuVa, len: u64, target: Target, attrs: PteAttrs) -> Result<(), PageTableError> {
        let span = VaSpan::new(va, len).ok_or(PageTableError::OutsideSpace { va, len })?;
        let mut nodes = self.reserve_map(span, target)?;
        let mut edit = self.edit();
        edit.map(span, target, attrs, &mut nodes)?;
        edit.commit();
        Ok(())
    }

    /// Unmaps a range, in one go: reserves, edits, invalidates. What is not mapped there is no error.
    ///
    /// # Errors
    /// See [`PageTableError`]; nothing has changed then.
    pub fn unmap(&self, va: GpuVa, len: u64) -> Result<(), PageTableError> {
        let span = VaSpan::new(va, len).ok_or(PageTableError::OutsideSpace { va, len })?;
        let mut nodes = self.reserve_unmap(span)?;
        let mut edit = self.edit();
        edit.unmap(span, &mut nodes)?;
        edit.commit();
        Ok(())
    }

    /// Unmaps everything and invalidates. Needs no reservation and can't fail.
    pub fn clear(&self) {
        let mut edit = self.edit();
        edit.clear();
        edit.commit();
    }

    /// Drops what engines cache of `span`. [`Edit::commit`] does it by itself; this is for what was left out on purpose.
    pub fn invalidate(&self, span: VaSpan) {
        self.shootdown.invalidate(Scope::Range(self.asid, span));
    }

    /// What `va` is mapped to. None where nothing is, scratch or not.
    pub fn translate(&self, va: GpuVa) -> Option<Leaf> {
        let _lock = self.writer.lock();
        self.walk(va)
    }

    /// What the highest absent entry on the way to `va` spans: mapping there makes tables for all of it. None where something
    /// is mapped.
    pub fn absent_span(&self, va: GpuVa) -> Option<VaSpan> {
        let _lock = self.writer.lock();
        let mut node = self.pool.node(self.root);
        for level in (0..LEVELS).rev() {
            match node.load(index(va.get(), level)).decode() {
                Decoded::Absent => {
                    let size = 1 << level_shift(level);
                    let start = va.get() & !(size - 1);
                    return Some(VaSpan::raw(start, start + size));
                }
                Decoded::Node(child) => node = self.pool.node(child),
                Decoded::Leaf => return None,
            }
        }
        None
    }

    /// [`translate`](Self::translate) without the lock, for engines: while one is online, no node that it can reach is freed.
    pub(crate) fn walk(&self, va: GpuVa) -> Option<Leaf> {
        self.walk_or_skip(va.get()).ok()
    }

    /// Whether an edit is under way or waits for its invalidation: caches may differ from the tables.
    pub(crate) fn is_changing(&self) -> bool {
        self.pending.load(Acquire) > 0
    }

    /// The first `max` leaves that touch `span`, in order; for reports.
    pub fn leaves(&self, span: VaSpan, max: usize) -> Vec<Leaf> {
        let _lock = self.writer.lock();
        let mut found = Vec::new();
        let mut at = span.start();
        while at < span.end() && found.len() < max {
            at = match self.walk_or_skip(at) {
                Ok(leaf) => {
                    found.push(leaf);
                    leaf.span().end()
                }
                Err(next) => next,
            };
        }
        found
    }

    /// The leaf at `va`, or the next address that may have one.
    fn walk_or_skip(&self, va: u64) -> Result<Leaf, u64> {
        let mut node = self.pool.node(self.root);
        for level in (0..LEVELS).rev() {
            let shift = level_shift(level);
            let entry = node.load(index(va, level));
            match entry.decode() {
                Decoded::Absent => return Err(((va >> shift) + 1) << shift),
                Decoded::Node(child) => node = self.pool.node(child),
                Decoded::Leaf => return Ok(entry.to_leaf(va, shift)),
            }
        }
        Err(va + (1 << PAGE_SHIFT))
    }
}

impl AddressSpace {
    /// Frees tables that no engine can reach any more.
    pub(super) fn free(&self, table: NodeId) {
        let count = self.pool.free_tree(table);
        self.held.fetch_sub(count, Relaxed);
        self.quota.give_back(count);
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        self.pool.bury(self.root);
        self.quota.give_back(*self.held.get_mut());
    }
}

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace")
            .field("asid", &self.asid)
            .field("scratch", &self.scratch)
            .finish_non_exhaustive()
    }
}

/// Index of the entry for `va` in a node at `level`.
#[inline]
pub(super) const fn index(va: u64, level: u32) -> usize {
    (va >> level_shift(level)) as usize % FANOUT
}
