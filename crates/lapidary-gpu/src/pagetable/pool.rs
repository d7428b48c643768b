//! The nodes of all page tables of a GPU.
//!
//! Nodes live in slabs that are made when first needed and stay; a node is named by its number, which is what entries hold. A change to
//! tables *reserves* a number of nodes first ([`Nodes`]), which may fail; taking one from a reservation can't. Whoever owns an address
//! space is asked for each node that is reserved, and told when it is free again ([`NodeQuota`]).
//!
//! Free nodes are all zero, so taking one costs nothing. Nodes go back with [`NodePool::free_tree`], when no engine walks them any more.

use std::{
    fmt, iter,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::*},
};

use lapidary::sync::{Arc, Mutex, OnceLock};

use super::{
    entry::{Decoded, Entry},
    types::PageTableError,
};

/// Entries of a node.
pub(super) const FANOUT: usize = 512;

/// Nodes of a slab: 256 KiB.
const SLAB: u32 = 64;

const NONE: u32 = u32::MAX;

/// Number of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeId(pub(super) u32);

/// A table.
pub(super) struct Node {
    entries: [AtomicU64; FANOUT],
    /// Present entries. Writers only.
    live: AtomicU32,
    /// Links nodes that are in no table: free ones, and roots that wait to be freed.
    next: AtomicU32,
}

impl Node {
    fn new() -> Self {
        Self {
            entries: [const { AtomicU64::new(0) }; FANOUT],
            live: AtomicU32::new(0),
            next: AtomicU32::new(NONE),
        }
    }

    #[inline]
    pub(super) fn load(&self, index: usize) -> Entry {
        Entry(self.entries[index].load(Acquire))
    }

    /// Changes an entry and keeps count. Writers only.
    pub(super) fn store(&self, index: usize, entry: Entry) {
        let old = self.load(index);
        // Release: whoever finds a child node sees its entries.
        self.entries[index].store(entry.0, Release);
        let live = self.live.load(Relaxed);
        self.live.store(live + u32::from(entry.is_present()) - u32::from(old.is_present()), Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live.load(Relaxed) == 0
    }

    fn clear(&self) {
        self.entries.iter().for_each(|entry| entry.store(0, Relaxed));
        self.live.store(0, Relaxed);
    }
}

/// What the owner of address spaces lets them have. Asked and told under any lock: it must not block.
pub trait NodeQuota: Send + Sync {
    /// Asks for `count` nodes more. `false`: they are not granted, and nothing is taken.
    fn take(&self, count: u32) -> bool;

    /// Gives `count` nodes back.
    fn give_back(&self, count: u32);
}

/// As many as there are.
pub(crate) struct Unlimited;

impl NodeQuota for Unlimited {
    fn take(&self, _count: u32) -> bool {
        true
    }

    fn give_back(&self, _count: u32) {}
}

/// The nodes of a GPU. Cheap to share.
pub struct NodePool {
    slabs: Box<[OnceLock<Box<[Node]>>]>,
    limit: u32,
    state: Mutex<State>,
}

struct State {
    /// First free node, then by `next`.
    free: u32,
    /// Length of that list.
    free_len: u32,
    /// Nodes below this number exist.
    made: u32,
    /// Free or unmade nodes that reservations may take.
    reserved: u32,
    /// First root whose address space was dropped, then by `next`.
    buried: u32,
}

impl NodePool {
    /// A pool of at most `limit` nodes of 4 KiB each.
    pub(crate) fn new(limit: u32) -> Self {
        let slabs = iter::repeat_with(OnceLock::new).take(limit.div_ceil(SLAB) as usize).collect();
        let state = State { free: NONE, free_len: 0, made: 0, reserved: 0, buried: NONE };
        Self { slabs, limit: limit.next_multiple_of(SLAB), state: Mutex::new(state) }
    }

    /// Nodes that are part of tables, dropped address spaces that wait for [`reap`](Self::reap) included.
    pub fn in_use(&self) -> u32 {
        let state = self.state.lock();
        state.made - state.free_len
    }

    /// Sets `count` nodes aside, which `quota` grants.
    ///
    /// # Errors
    /// [`PageTableError::OutOfNodes`], [`PageTableError::OverQuota`].
    pub(super) fn reserve(
        self: &Arc<Self>,
        count: u64,
        quota: &Arc<dyn NodeQuota>,
    ) -> Result<Nodes, PageTableError> {
        self.reap();
        let out = PageTableError::OutOfNodes { needed: count, limit: self.limit.into() };
        let granted = u32::try_from(count).map_err(|_| out.clone())?;
        if !quota.take(granted) {
            return Err(PageTableError::OverQuota { needed: count });
        }
        // From here on, dropping it gives back what was granted.
        let mut nodes = Nodes { pool: Arc::clone(self), quota: Arc::clone(quota), granted, left: 0 };
        let mut state = self.state.lock();
        if granted > state.free_len + (self.limit - state.made) - state.reserved {
            return Err(out);
        }
        state.reserved += granted;
        nodes.left = granted;
        while state.free_len < state.reserved {
            self.make_slab(&mut state);
        }
        drop(state);
        Ok(nodes)
    }

    /// An empty reservation.
    pub(super) fn none(self: &Arc<Self>, quota: &Arc<dyn NodeQuota>) -> Nodes {
        Nodes { pool: Arc::clone(self), quota: Arc::clone(quota), granted: 0, left: 0 }
    }

    /// Frees what dropped address spaces left. Done by every reservation as well.
    pub fn reap(&self) {
        loop {
            let mut state = self.state.lock();
            let root = state.buried;
            if root == NONE {
                return;
            }
            state.buried = self.node(NodeId(root)).next.load(Relaxed);
            drop(state);
            // Its address space gave them back to its owner.
            let _ = self.free_tree(NodeId(root));
        }
    }

    #[inline]
    pub(super) fn node(&self, id: NodeId) -> &Node {
        let slab = self.slabs[(id.0 / SLAB) as usize].get();
        &slab.expect("entries name nodes that exist")[(id.0 % SLAB) as usize]
    }

    /// Leaves a whole table to [`reap`](Self::reap): a push under a leaf lock, so it can be done anywhere.
    pub(super) fn bury(&self, root: NodeId) {
        let mut state = self.state.lock();
        self.node(root).next.store(state.buried, Relaxed);
        state.buried = root.0;
    }

    /// Frees `root` and every node below it; how many that were. No engine may walk them any more.
    #[must_use = "their owner is to be told"]
    pub(super) fn free_tree(&self, root: NodeId) -> u32 {
        let mut todo = vec![root];
        let mut count = 0;
        while let Some(id) = todo.pop() {
            count += 1;
            let node = self.node(id);
            if !node.is_empty() {
                todo.extend((0..FANOUT).filter_map(|index| match node.load(index).decode() {
                    Decoded::Node(child) => Some(child),
                    _ => None,
                }));
                node.clear();
            }
            let mut state = self.state.lock();
            Self::push_free(&mut state, node, id.0);
        }
        count
    }

    fn make_slab(&self, state: &mut State) {
        let first = state.made;
        let slab = self.slabs[(first / SLAB) as usize]
            .get_or_init(|| iter::repeat_with(Node::new).take(SLAB as usize).collect());
        for (id, node) in (first..).zip(slab) {
            Self::push_free(state, node, id);
        }
        state.made += SLAB;
    }

    fn push_free(state: &mut State, node: &Node, id: u32) {
        node.next.store(state.free, Relaxed);
        state.free = id;
        state.free_len += 1;
    }
}

impl fmt::Debug for NodePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodePool").field("in_use", &self.in_use()).field("limit", &self.limit).finish()
    }
}

/// Page-table nodes set aside for a change. What is not used goes back when dropped.
#[must_use]
pub struct Nodes {
    pool: Arc<NodePool>,
    quota: Arc<dyn NodeQuota>,
    /// Granted by the quota and part of no table.
    granted: u32,
    /// Reserved in the pool: all of them, but while the reservation is being made.
    left: u32,
}

impl Nodes {
    /// How many are left.
    pub fn len(&self) -> u32 {
        self.left
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Adds another reservation of the same owner to this one.
    pub fn merge(&mut self, mut other: Self) {
        debug_assert!(Arc::ptr_eq(&self.pool, &other.pool), "nodes of two GPUs");
        debug_assert!(Arc::ptr_eq(&self.quota, &other.quota), "nodes of two owners");
        self.left += std::mem::take(&mut other.left);
        self.granted += std::mem::take(&mut other.granted);
    }

    /// An empty node.
    ///
    /// # Errors
    /// [`PageTableError::OutOfNodes`] if the reservation is used up.
    pub(super) fn take(&mut self) -> Result<NodeId, PageTableError> {
        if self.left == 0 {
            return Err(PageTableError::OutOfNodes { needed: 1, limit: 0 });
        }
        let mut state = self.pool.state.lock();
        let id = NodeId(state.free);
        state.free = self.pool.node(id).next.load(Relaxed);
        state.free_len -= 1;
        state.reserved -= 1;
        self.left -= 1;
        self.granted -= 1;
        Ok(id)
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.pool.state.lock().reserved -= self.left;
        self.quota.give_back(self.granted);
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").field("left", &self.left).finish_non_exhaustive()
    }
}
