//! Changing page tables.
//!
//! An edit descends to each entry that a span touches:
//!
//! ```text
//!   mapping      whole entry, target aligned   -> a leaf; a node that was there goes with all below it
//!                otherwise                     -> into the node; an absent one is made, a large leaf is split into one
//!   unmapping    whole entry                   -> absent; a node that was there goes with all below it
//!                otherwise                     -> into the node; a large leaf is split; a node that became empty goes
//! ```
//!
//! A split leaf translates as before, so engines may walk either form. Nodes that went are freed after the invalidation.

use std::sync::atomic::Ordering::*;

use lapidary::sync::MutexGuard;

use super::{
    entry::{Decoded, Entry, GROUP_SHIFT},
    pool::{FANOUT, Node, NodeId, Nodes},
    space::{AddressSpace, LEAF_LEVEL, ROOT_LEVEL, index, level_shift},
    types::{PAGE_SHIFT, PageTableError, PteAttrs, Target, VaSpan},
};
use crate::{bus::GpuVa, tlb::Scope};

/// Small pages of a 64 KiB group.
const GROUP: usize = 1 << (GROUP_SHIFT - PAGE_SHIFT);

/// Changes to an address space, under its writer's lock. Dropping it is [`commit`](Self::commit).
pub struct Edit<'a> {
    space: &'a AddressSpace,
    /// Both are taken out where the edit ends, and only there.
    lock: Option<MutexGuard<'a, ()>>,
    stale: Option<Stale<'a>>,
}

/// What an edit left to be done: caches may still hold `span`, and engines may walk the detached nodes.
///
/// Dropping it without [`invalidate`](Self::invalidate) leaves stale translations to be used, as forgetting an invalidation does on
/// hardware; the GPU's check mode reports each use.
#[must_use = "engines go on using what they cached until it is invalidated"]
pub struct Stale<'a> {
    space: &'a AddressSpace,
    span: Option<VaSpan>,
    detached: Vec<NodeId>,
}

/// The piece of a mapping that is being written.
#[derive(Clone, Copy)]
struct Piece {
    span: VaSpan,
    /// What the first address of `span` is mapped to.
    target: Target,
    attrs: PteAttrs,
}

impl<'a> Edit<'a> {
    pub(super) fn begin(space: &'a AddressSpace) -> Self {
        let lock = space.writer.lock();
        // Before any entry changes: see `is_changing`.
        space.pending.fetch_add(1, SeqCst);
        let stale = Stale { space, span: None, detached: Vec::new() };
        Self { space, lock: Some(lock), stale: Some(stale) }
    }

    /// Maps `span` to `target` and what follows it, replacing what is mapped there.
    ///
    /// # Errors
    /// [`PageTableError::Misaligned`] and [`PageTableError::AddressTooLarge`] before anything changes.
    /// [`PageTableError::OutOfNodes`] if `nodes` was not reserved for this: the span is then mapped in part.
    pub fn map(
        &mut self,
        span: VaSpan,
        target: Target,
        attrs: PteAttrs,
        nodes: &mut Nodes,
    ) -> Result<(), PageTableError> {
        if !span.is_whole_pages() || !target.is_aligned(1 << PAGE_SHIFT) {
            return Err(misaligned(span, Some(target)));
        }
        if let Target::Memory(at) = target
            && !(Entry::fits(at) && Entry::fits(at.offset(span.len() - (1 << PAGE_SHIFT))))
        {
            return Err(PageTableError::AddressTooLarge(at));
        }
        self.map_in(self.space.root, ROOT_LEVEL, Piece { span, target, attrs }, nodes)
    }

    /// Unmaps `span`. What is not mapped there is no error.
    ///
    /// # Errors
    /// [`PageTableError::Misaligned`] before anything changes. [`PageTableError::OutOfNodes`] if `nodes` is empty and was needed: the span is then
    /// unmapped in part.
    pub fn unmap(&mut self, span: VaSpan, nodes: &mut Nodes) -> Result<(), PageTableError> {
        if !span.is_whole_pages() {
            return Err(misaligned(span, None));
        }
        self.unmap_in(self.space.root, ROOT_LEVEL, span, nodes)
    }

    /// Unmaps everything.
    pub fn clear(&mut self) {
        for index in 0..FANOUT {
            let root = self.node(self.space.root);
            let shift = level_shift(ROOT_LEVEL);
            let span = VaSpan::raw((index as u64) << shift, (index as u64 + 1) << shift);
            self.replace(root, index, span, Entry::ABSENT);
        }
    }

    /// Ends the edit: unlocks, invalidates what changed, frees nodes. When it returns, no engine uses what was replaced or unmapped.
    pub fn commit(self) {
        drop(self);
    }

    /// Ends the edit and leaves the invalidation to the caller.
    pub fn finish(mut self) -> Stale<'a> {
        self.end().expect("an edit ends once")
    }

    /// Unlocks, and gives what is left to be done; nothing if the edit has ended.
    fn end(&mut self) -> Option<Stale<'a>> {
        self.lock = None;
        self.stale.take()
    }

    fn detach(&mut self, node: NodeId) {
        self.stale.iter_mut().for_each(|stale| stale.detached.push(node));
    }

    fn map_in(
        &mut self,
        id: NodeId,
        level: u32,
        piece: Piece,
        nodes: &mut Nodes,
    ) -> Result<(), PageTableError> {
        let node = self.node(id);
        if level == 0 {
            self.map_pages(node, piece);
            return Ok(());
        }
        for part in entries(piece.span, level) {
            let target = piece.target.offset(part.start() - piece.span.start());
            let piece = Piece { span: part, target, ..piece };
            let at = index(part.start(), level);
            let size = 1 << level_shift(level);
            if part.len() == size && level <= LEAF_LEVEL && target.is_aligned(size) {
                self.replace(node, at, part, Entry::leaf(target, piece.attrs, false));
                continue;
            }
            let child = self.descend(node, at, level, nodes)?;
            self.map_in(child, level - 1, piece, nodes)?;
        }
        Ok(())
    }

    /// Writes 4 KiB entries, grouped to 64 KiB where possible.
    fn map_pages(&mut self, node: &Node, piece: Piece) {
        let size = 1 << GROUP_SHIFT;
        let mut at = piece.span.start();
        while at < piece.span.end() {
            let target = piece.target.offset(at - piece.span.start());
            let grouped = at.is_multiple_of(size) && piece.span.end() - at >= size && target.is_aligned(size);
            let count = if grouped { GROUP } else { 1 };
            if !grouped {
                Self::ungroup(node, index(at, 0));
            }
            for page in 0..count as u64 {
                let va = at + (page << PAGE_SHIFT);
                let entry = Entry::leaf(target.offset(page << PAGE_SHIFT), piece.attrs, grouped);
                self.replace(node, index(va, 0), VaSpan::raw(va, va + (1 << PAGE_SHIFT)), entry);
            }
            at += (count as u64) << PAGE_SHIFT;
        }
    }

    fn unmap_in(
        &mut self,
        id: NodeId,
        level: u32,
        span: VaSpan,
        nodes: &mut Nodes,
    ) -> Result<(), PageTableError> {
        let node = self.node(id);
        for part in entries(span, level) {
            let at = index(part.start(), level);
            if !node.load(at).is_present() {
                continue;
            }
            if level == 0 {
                Self::ungroup(node, at);
            }
            if part.len() == 1 << level_shift(level) {
                self.replace(node, at, part, Entry::ABSENT);
                continue;
            }
            let child = self.descend(node, at, level, nodes)?;
            self.unmap_in(child, level - 1, part, nodes)?;
            if self.node(child).is_empty() {
                node.store(at, Entry::ABSENT);
                self.detach(child);
            }
        }
        Ok(())
    }

    /// The node below entry `at` of a node at `level`; made, or made from a large leaf, if there is none.
    fn descend(
        &mut self,
        node: &Node,
        at: usize,
        level: u32,
        nodes: &mut Nodes,
    ) -> Result<NodeId, PageTableError> {
        let old = node.load(at);
        let child = match old.decode() {
            Decoded::Node(child) => return Ok(child),
            Decoded::Absent => self.take(nodes)?,
            Decoded::Leaf => {
                let child = self.take(nodes)?;
                split(old, self.node(child), level - 1);
                child
            }
        };
        node.store(at, Entry::node(child));
        Ok(child)
    }

    /// A new node for the tables.
    fn take(&self, nodes: &mut Nodes) -> Result<NodeId, PageTableError> {
        let node = nodes.take()?;
        self.space.held.fetch_add(1, Relaxed);
        Ok(node)
    }

    /// Writes an entry that spans `span` and notes what has become stale.
    fn replace(&mut self, node: &Node, at: usize, span: VaSpan, new: Entry) {
        let old = node.load(at);
        if old == new {
            return;
        }
        node.store(at, new);
        match old.decode() {
            Decoded::Absent => return,
            Decoded::Node(child) => self.detach(child),
            Decoded::Leaf => {}
        }
        if let Some(stale) = &mut self.stale {
            stale.span = Some(stale.span.map_or(span, |hull| hull.hull(span)));
        }
    }

    /// Makes the group that entry `at` is in, if any, single pages with the same translations.
    fn ungroup(node: &Node, at: usize) {
        if !node.load(at).is_grouped() {
            return;
        }
        let first = at / GROUP * GROUP;
        for at in first..first + GROUP {
            node.store(at, node.load(at).ungrouped());
        }
    }

    fn node(&self, id: NodeId) -> &'a Node {
        self.space.pool.node(id)
    }
}

impl Drop for Edit<'_> {
    fn drop(&mut self) {
        if let Some(stale) = self.end() {
            stale.invalidate();
        }
    }
}

impl Stale<'_> {
    /// What engines may still have cached, if anything was replaced or unmapped.
    pub fn span(&self) -> Option<VaSpan> {
        self.span
    }

    /// Drops it from all caches and frees the nodes. When it returns, no engine uses what was replaced or unmapped.
    pub fn invalidate(mut self) {
        if let Some(span) = self.span.take() {
            self.space.invalidate(span);
            self.free_nodes();
        }
    }

    fn free_nodes(&mut self) {
        for table in self.detached.drain(..) {
            self.space.free(table);
        }
    }
}

impl Drop for Stale<'_> {
    fn drop(&mut self) {
        if !self.detached.is_empty() {
            self.space.shootdown.invalidate(Scope::Checkpoint);
            self.free_nodes();
        }
        self.space.pending.fetch_sub(1, SeqCst);
    }
}

/// `span` cut at the borders of entries at `level`.
fn entries(span: VaSpan, level: u32) -> impl Iterator<Item = VaSpan> {
    let shift = level_shift(level);
    let (first, last) = (span.start() >> shift, (span.end() - 1) >> shift);
    (first..=last).map(move |entry| VaSpan::raw(entry << shift, (entry + 1) << shift).clip(span))
}

/// Fills `child`, at `level`, with the pieces of a leaf entry one level up.
fn split(leaf: Entry, child: &Node, level: u32) {
    let (target, attrs) = (leaf.target(), leaf.attrs());
    for at in 0..FANOUT {
        let target = target.offset((at as u64) << level_shift(level));
        child.store(at, Entry::leaf(target, attrs, level == 0));
    }
}

fn misaligned(span: VaSpan, target: Option<Target>) -> PageTableError {
    PageTableError::Misaligned { va: GpuVa::new(span.start()), len: span.len(), target }
}
