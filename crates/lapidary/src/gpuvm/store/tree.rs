//! The B+ tree over the mappings' ranges. How it looks and what its nodes do is drawn in [the folder's head](super).
//!
//! All edits go through [`Tree::splice`]: at a place found once, replace so many entries with up to three. The common case,
//! an edit within one leaf that has the room, does no more than that; everything else is out of line.

use super::arena::{Arena, NONE};
use super::node::{Entry, INNER, Inner, LEAF, Leaf};

/// Inner levels that 2^32 entries can need, at the lowest fill that merging allows, with some to spare.
const MAX_DEPTH: usize = 10;

const LEAF_LOW: usize = LEAF / 4;
const LEAF_MERGED: usize = LEAF * 3 / 4;
const INNER_LOW: usize = INNER / 4;
const INNER_MERGED: usize = INNER * 3 / 4;

/// The way from the root to a leaf: each inner node and which of its children was taken.
#[derive(Clone, Copy, Debug)]
struct Path {
    nodes: [u32; MAX_DEPTH],
    indices: [u8; MAX_DEPTH],
    leaf: u32,
}

/// A place in the tree: where the first entry that ends behind an address is, or would be.
///
/// Good until the tree changes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    at: u64,
    path: Path,
    pos: u32,
}

/// An ordered index of ranges that don't overlap. See the module.
#[derive(Debug)]
pub struct Tree {
    leaves: Arena<Leaf>,
    inners: Arena<Inner>,
    /// A leaf if `depth` is 0, else an inner node; `NONE` while nothing is mapped.
    root: u32,
    depth: u32,
    first: u32,
    last: u32,
    /// Where the last entry ends, or more in the midst of a change; 0 while there is none.
    end: u64,
    len: usize,
}

impl Tree {
    /// A tree with nothing in it and no memory.
    pub const fn new() -> Tree {
        Tree {
            leaves: Arena::new(),
            inners: Arena::new(),
            root: NONE,
            depth: 0,
            first: NONE,
            last: NONE,
            end: 0,
            len: 0,
        }
    }

    /// Number of entries.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.leaves.bytes() + self.inners.bytes()
    }

    /// Whether a splice that grows the tree by `entries` finds all the nodes it needs.
    #[inline]
    pub fn has_room(&self, entries: usize) -> bool {
        let (leaves, inners) = self.need(entries);
        self.leaves.spare() >= leaves && self.inners.spare() >= inners
    }

    /// Whether this one splice needs no further node: what is put in fits where it is put.
    #[inline]
    pub fn fits(&self, place: &Place, removed: usize, new: usize) -> bool {
        if self.root == NONE {
            return new == 0;
        }
        let len = self.leaves.get(place.path.leaf).len();
        len - removed.min(len - place.pos as usize) + new <= LEAF
    }

    /// Makes room for splices that grow the tree by `entries` in total. `false`: no memory, nothing changed.
    pub fn reserve(&mut self, entries: usize) -> bool {
        let (leaves, inners) = self.need(entries);
        self.leaves.reserve(leaves) && self.inners.reserve(inners)
    }

    /// Bytes that [`reserve`](Self::reserve) would ask for.
    pub fn growth_bytes(&self, entries: usize) -> usize {
        let (leaves, inners) = self.need(entries);
        self.leaves.growth_bytes(leaves).saturating_add(self.inners.growth_bytes(inners))
    }

    /// Nodes that growing by `entries` can take, however the entries and the fill are spread.
    ///
    /// Count what each leaf holds beyond half as tension. An entry adds at most one to the sum, a split takes
    /// half a leaf away from it, and a merge that adds tension has freed a leaf: so splits are bounded by half
    /// leaves of tension there is and comes. A single splice of three splits one leaf at most. Each leaf split
    /// can split one node per level, but more than the levels only as often as half a node has filled.
    fn need(&self, entries: usize) -> (usize, usize) {
        if self.depth == 0 && self.len + entries <= LEAF {
            // All in one leaf: a tree for a few entries costs no more.
            return (usize::from(self.root == NONE), 0);
        }
        if entries <= 3 {
            return (1, self.depth as usize + 1);
        }
        let leaves = entries.min((self.len + entries) / (LEAF / 2) + 1);
        let spread = (self.leaves.live() + leaves) / (INNER / 4) + self.depth as usize + 2;
        (leaves, spread.min(leaves * (self.depth as usize + 1)))
    }

    // ---- looking ----

    #[inline]
    fn leaf_for(&self, at: u64) -> u32 {
        let mut node = self.root;
        for _ in 0..self.depth {
            let inner = self.inners.get(node);
            node = inner.children[inner.seek(at)];
        }
        node
    }

    /// The first entry that ends behind `at`: the one that contains it, or the next.
    #[inline]
    pub fn first_behind(&self, at: u64) -> Option<Entry> {
        if self.is_behind_all(at) { None } else { self.walk_from(at).next() }
    }

    /// The last entry that begins before `at`.
    pub fn last_before(&self, at: u64) -> Option<Entry> {
        // Entries end where they begin or behind, so the first that ends behind what is before `at` is it, or comes after it.
        let leaf = self.leaf_for(at.checked_sub(1)?);
        if leaf == NONE {
            return None;
        }
        let found = self.leaves.get(leaf);
        match found.starts[..found.len()].partition_point(|start| *start < at) {
            0 if found.prev == NONE => None,
            0 => {
                let before = self.leaves.get(found.prev);
                Some(before.entry(before.len() - 1))
            }
            count => Some(found.entry(count - 1)),
        }
    }

    /// The entries in order, from the first that ends behind `at`.
    #[inline]
    pub fn walk_from(&self, at: u64) -> Walk<'_> {
        let leaf = self.leaf_for(at);
        let pos = if leaf == NONE { 0 } else { self.leaves.get(leaf).seek_ahead(at) };
        Walk { tree: self, leaf, pos }
    }

    /// All entries in order.
    pub fn walk(&self) -> Walk<'_> {
        Walk { tree: self, leaf: self.first, pos: 0 }
    }

    /// Finds where the first entry that ends behind `at` is or would be.
    #[inline]
    pub fn place(&self, at: u64) -> Place {
        let path = self.path(at);
        let pos = if path.leaf == NONE { 0 } else { self.leaves.get(path.leaf).seek_ahead(at) };
        Place { at, path, pos: pos as u32 }
    }

    /// The entries in order from a place on.
    #[inline]
    pub fn walk_place(&self, place: &Place) -> Walk<'_> {
        Walk { tree: self, leaf: place.path.leaf, pos: place.pos as usize }
    }

    #[inline]
    fn path(&self, at: u64) -> Path {
        // Ascending requests are common, and need no search.
        if self.is_behind_all(at) {
            self.path_by(|inner| inner.len() - 1)
        } else {
            self.path_by(|inner| inner.seek(at))
        }
    }

    /// Whether no entry ends behind `at`.
    #[inline]
    fn is_behind_all(&self, at: u64) -> bool {
        self.end <= at
    }

    #[inline]
    fn path_by(&self, choose: impl Fn(&Inner) -> usize) -> Path {
        let mut path = Path { nodes: [NONE; MAX_DEPTH], indices: [0; MAX_DEPTH], leaf: NONE };
        let mut node = self.root;
        for level in 0..self.depth as usize {
            let inner = self.inners.get(node);
            let index = choose(inner);
            path.nodes[level] = node;
            path.indices[level] = index as u8;
            node = inner.children[index];
        }
        path.leaf = node;
        path
    }

    /// The path to the leaf after `path`'s, which must not be the last.
    fn next_path(&self, path: &Path) -> Path {
        let mut next = *path;
        for level in (0..self.depth as usize).rev() {
            let index = path.indices[level] as usize + 1;
            let inner = self.inners.get(path.nodes[level]);
            if index == inner.len() {
                continue;
            }
            next.indices[level] = index as u8;
            let mut node = inner.children[index];
            for below in level + 1..self.depth as usize {
                next.nodes[below] = node;
                next.indices[below] = 0;
                node = self.inners.get(node).children[0];
            }
            next.leaf = node;
            return next;
        }
        next
    }

    // ---- changing ----

    /// Replaces the `removed` entries from `place` on with `new`, which must fit between their neighbours.
    ///
    /// Needs room for the growth (see [`reserve`](Self::reserve)); the place is no longer good afterwards.
    #[inline]
    pub fn splice(&mut self, place: &Place, removed: usize, new: &[Entry]) {
        debug_assert!(new.len() <= 3);
        if self.root == NONE {
            return self.plant(new);
        }
        let pos = place.pos as usize;
        let leaf = self.leaves.get_mut(place.path.leaf);
        let grown = leaf.len() + new.len();
        if pos + removed > leaf.len() || grown > LEAF + removed {
            return self.splice_wide(place, removed, new);
        }
        leaf.splice(pos, removed, new);
        let len = leaf.len();
        self.len = self.len + new.len() - removed;
        let at_end = pos + new.len() == len;
        let last = place.path.leaf == self.last;
        if let Some(new) = new.last()
            && at_end
        {
            self.raise_separator(&place.path, new.end);
        }
        if len <= LEAF_LOW && removed > new.len() {
            self.settle_leaf(&place.path);
        }
        if at_end && last {
            self.find_end();
        }
    }

    /// The first entries of an empty tree.
    fn plant(&mut self, new: &[Entry]) {
        if new.is_empty() {
            return;
        }
        let mut leaf = Leaf::new();
        leaf.splice(0, 0, new);
        self.len = new.len();
        self.root = self.leaves.put(leaf);
        self.first = self.root;
        self.last = self.root;
        self.depth = 0;
        self.find_end();
    }

    fn find_end(&mut self) {
        self.end = if self.len == 0 { 0 } else { self.leaves.get(self.last).end() };
    }

    /// A splice that reaches over several leaves or needs a split.
    #[cold]
    #[inline(never)]
    fn splice_wide(&mut self, place: &Place, removed: usize, new: &[Entry]) {
        let pos = place.pos as usize;
        let leaf = self.leaves.get_mut(place.path.leaf);
        let here = removed.min(leaf.len() - pos);
        leaf.splice(pos, here, &[]);
        self.len -= here;
        let trimmed = self.remove_following(place.at, removed - here);
        for entry in new {
            self.insert(*entry);
        }
        // What was edited may be nearly empty now; look it up afresh, since nodes may have split.
        let path = self.path(place.at);
        if self.root != NONE && self.leaves.get(path.leaf).len() <= LEAF_LOW {
            self.settle_leaf(&path);
        }
        if let Some(start) = trimmed {
            let path = self.path(start);
            if self.leaves.get(path.leaf).len() <= LEAF_LOW {
                self.settle_leaf(&path);
            }
        }
        self.find_end();
    }

    /// Removes `count` entries from the leaves after the one `at` leads to. Returns an address that leads to the
    /// leaf whose head was cut off, if one was.
    fn remove_following(&mut self, at: u64, mut count: usize) -> Option<u64> {
        while count > 0 {
            let path = self.next_path(&self.path(at));
            let leaf = self.leaves.get_mut(path.leaf);
            if leaf.len() > count {
                leaf.splice(0, count, &[]);
                self.len -= count;
                return Some(self.leaves.get(path.leaf).starts[0]);
            }
            count -= leaf.len();
            self.len -= leaf.len();
            self.remove_leaf(&path);
        }
        None
    }

    /// Puts one entry where nothing is.
    fn insert(&mut self, entry: Entry) {
        let mut path = self.path(entry.start);
        let mut pos = self.leaves.get(path.leaf).seek(entry.start);
        if self.leaves.get(path.leaf).len() == LEAF {
            self.split(&path, pos, entry.start);
            path = self.path(entry.start);
            pos = self.leaves.get(path.leaf).seek(entry.start);
        }
        let leaf = self.leaves.get_mut(path.leaf);
        leaf.splice(pos, 0, &[entry]);
        let at_end = pos + 1 == leaf.len();
        self.len += 1;
        self.end = self.end.max(entry.end);
        if at_end {
            self.raise_separator(&path, entry.end);
        }
    }

    /// Makes the separator to the right of a leaf at least `end`.
    #[inline]
    fn raise_separator(&mut self, path: &Path, end: u64) {
        for level in (0..self.depth as usize).rev() {
            let inner = self.inners.get_mut(path.nodes[level]);
            let index = path.indices[level] as usize;
            if index + 1 < inner.len() {
                inner.keys[index] = inner.keys[index].max(end);
                return;
            }
        }
    }

    /// Splits a full leaf, in which an entry that starts at `start` is to go to `pos`.
    fn split(&mut self, path: &Path, pos: usize, start: u64) {
        let left = path.leaf;
        let next = self.leaves.get(left).next;
        let right = self.leaves.put(Leaf::new());
        let (l, r) = self.leaves.get_two(left, right);
        // Ascending insertion: leave the old leaf full instead of moving half of it to no purpose.
        let separator = if pos == LEAF && next == NONE {
            start
        } else {
            l.move_tail(LEAF / 2, r);
            r.starts[0]
        };
        r.prev = left;
        r.next = next;
        l.next = right;
        match next {
            NONE => self.last = right,
            next => self.leaves.get_mut(next).prev = right,
        }
        self.add_child(path, separator, right, next == NONE);
    }

    /// Hangs `child` in behind the node that `path` ends at, splitting inner nodes upwards as needed.
    fn add_child(&mut self, path: &Path, mut key: u64, mut child: u32, rightmost: bool) {
        for level in (0..self.depth as usize).rev() {
            let (node, index) = (path.nodes[level], path.indices[level] as usize);
            if self.inners.get(node).len() < INNER {
                self.inners.get_mut(node).insert_after(index, key, child);
                return;
            }
            let twin = self.inners.put(Inner::new());
            let (l, r) = self.inners.get_two(node, twin);
            // As with leaves: the rightmost path stays full under ascending insertion.
            let at = if rightmost && index + 1 == INNER { INNER - 1 } else { INNER / 2 };
            let between = l.move_tail(at, r);
            if index < at {
                l.insert_after(index, key, child);
            } else {
                r.insert_after(index - at, key, child);
            }
            (key, child) = (between, twin);
        }
        debug_assert!((self.depth as usize) < MAX_DEPTH);
        self.root = self.inners.put(Inner::over(self.root, key, child));
        self.depth += 1;
    }

    // ---- shrinking ----

    /// Removes a leaf that is nearly empty, or merges it with a sibling if the two fit well into one.
    #[cold]
    #[inline(never)]
    fn settle_leaf(&mut self, path: &Path) {
        if self.leaves.get(path.leaf).len == 0 {
            return self.remove_leaf(path);
        }
        if self.depth == 0 {
            return;
        }
        let level = self.depth as usize - 1;
        let parent = self.inners.get(path.nodes[level]);
        let index = path.indices[level] as usize;
        let fits = |left: usize| {
            let (a, b) = (parent.children[left], parent.children[left + 1]);
            (self.leaves.get(a).len() + self.leaves.get(b).len() <= LEAF_MERGED).then_some((a, b))
        };
        let right = if index + 1 < parent.len() { fits(index).map(|pair| (index, pair)) } else { None };
        let left = if index > 0 { fits(index - 1).map(|pair| (index - 1, pair)) } else { None };
        let Some((at, (left, right))) = right.or(left) else { return };
        let (l, r) = self.leaves.get_two(left, right);
        r.move_tail(0, l);
        self.unlink_leaf(right);
        self.drop_child(path, level, at + 1);
    }

    /// Takes an empty (or to be forgotten) leaf out of the tree.
    fn remove_leaf(&mut self, path: &Path) {
        self.unlink_leaf(path.leaf);
        if self.depth == 0 {
            self.root = NONE;
            return;
        }
        let level = self.depth as usize - 1;
        self.drop_child(path, level, path.indices[level] as usize);
    }

    /// Takes a leaf out of the chain and frees it.
    fn unlink_leaf(&mut self, leaf: u32) {
        let (prev, next) = (self.leaves.get(leaf).prev, self.leaves.get(leaf).next);
        if prev == NONE {
            self.first = next;
        } else {
            self.leaves.get_mut(prev).next = next;
        }
        match next {
            NONE => self.last = prev,
            next => self.leaves.get_mut(next).prev = prev,
        }
        self.leaves.free(leaf);
    }

    /// Removes child `index` of the node at `level` and lets the nodes above shrink, merge or go.
    fn drop_child(&mut self, path: &Path, level: usize, index: usize) {
        let mut index = index;
        for level in (0..=level).rev() {
            let node = path.nodes[level];
            let inner = self.inners.get_mut(node);
            inner.remove(index);
            let len = inner.len();
            if level == 0 {
                return self.lower_root();
            }
            if len == 0 {
                self.inners.free(node);
                index = path.indices[level - 1] as usize;
                continue;
            }
            if len > INNER_LOW {
                return;
            }
            match self.merge_inner(path.nodes[level - 1], path.indices[level - 1] as usize) {
                Some(gone) => index = gone,
                None => return,
            }
        }
    }

    /// Merges child `index` of `parent` with a sibling if the two fit well; returns which child is to be removed.
    fn merge_inner(&mut self, parent: u32, index: usize) -> Option<usize> {
        let parent = self.inners.get(parent);
        let fits = |left: usize| {
            let (a, b) = (parent.children[left], parent.children[left + 1]);
            self.inners.get(a).len() + self.inners.get(b).len() <= INNER_MERGED
        };
        let left = if index + 1 < parent.len() && fits(index) {
            index
        } else if index > 0 && fits(index - 1) {
            index - 1
        } else {
            return None;
        };
        let (a, b, between) = (parent.children[left], parent.children[left + 1], parent.keys[left]);
        let (l, r) = self.inners.get_two(a, b);
        l.absorb(between, r);
        self.inners.free(b);
        Some(left + 1)
    }

    /// A root with a single child is none.
    fn lower_root(&mut self) {
        while self.depth > 0 {
            let inner = self.inners.get(self.root);
            if inner.len() > 1 {
                return;
            }
            let child = if inner.len == 1 { inner.children[0] } else { NONE };
            self.inners.free(self.root);
            self.root = child;
            self.depth = if child == NONE { 0 } else { self.depth - 1 };
        }
    }

    /// Gives all memory back if nothing is mapped.
    pub fn release_if_empty(&mut self) {
        if self.len == 0 && self.root == NONE {
            self.leaves.release();
            self.inners.release();
        }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

/// The entries of a tree in order.
#[derive(Clone, Debug)]
pub struct Walk<'a> {
    tree: &'a Tree,
    leaf: u32,
    pos: usize,
}

impl Iterator for Walk<'_> {
    type Item = Entry;

    #[inline]
    fn next(&mut self) -> Option<Entry> {
        while self.leaf != NONE {
            let leaf = self.tree.leaves.get(self.leaf);
            if self.pos < leaf.len() {
                self.pos += 1;
                return Some(leaf.entry(self.pos - 1));
            }
            self.leaf = leaf.next;
            self.pos = 0;
        }
        None
    }
}

/// What tests look at.
#[cfg(test)]
impl Tree {
    /// Nodes in use: leaves and inner ones.
    pub(super) fn nodes(&self) -> (usize, usize) {
        (self.leaves.live(), self.inners.live())
    }

    /// Inner levels.
    pub(super) fn depth(&self) -> usize {
        self.depth as usize
    }

    /// How many entries each leaf has, in order.
    pub(super) fn fill(&self) -> Vec<usize> {
        let first = (self.first != NONE).then_some(self.first);
        let next = |leaf: &u32| Some(self.leaves.get(*leaf).next).filter(|next| *next != NONE);
        core::iter::successors(first, next).map(|leaf| self.leaves.get(leaf).len()).collect()
    }

    /// The root's separators.
    pub(super) fn separators(&self) -> &[u64] {
        let inner = self.inners.get(self.root);
        &inner.keys[..inner.len() - 1]
    }
}

/// Checks of the tree's invariants.
impl Tree {
    /// Checks every invariant; the error names the first that is broken.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.root == NONE {
            let clean =
                self.len == 0 && self.depth == 0 && self.first == NONE && self.last == NONE && self.end == 0;
            let nodes = self.leaves.live() + self.inners.live();
            return if clean && nodes == 0 { Ok(()) } else { Err("an empty tree holds nodes") };
        }
        let mut seen = Seen { leaf: NONE, end: 0, len: 0, leaves: 0, inners: 0 };
        self.check_nodes(&mut seen)?;
        if seen.len != self.len {
            return Err("the tree's length is not the sum of its leaves'");
        }
        if seen.leaves != self.leaves.live() || seen.inners != self.inners.live() {
            return Err("a node in use is not in the tree");
        }
        if self.leaves.get(seen.leaf).next != NONE || self.last != seen.leaf {
            return Err("the last leaf has a next one, or is not known");
        }
        if self.end != seen.end {
            return Err("the last entry ends elsewhere");
        }
        Ok(())
    }

    /// Depth first with a stack of its own: (node, level, next child, lower bound, upper bound).
    fn check_nodes(&self, seen: &mut Seen) -> Result<(), &'static str> {
        let mut stack = [(NONE, 0usize, 0u64, 0u64); MAX_DEPTH + 1];
        let mut level = 0;
        stack[0] = (self.root, 0, 0, u64::MAX);
        loop {
            let (node, child, low, high) = stack[level];
            if level == self.depth as usize {
                self.check_leaf(node, low, high, seen)?;
            } else {
                let inner = self.inners.get(node);
                if child == 0 {
                    seen.inners += 1;
                }
                if inner.len() == 0 || (level == 0 && inner.len() == 1) {
                    return Err("an inner node without a choice at the root, or without children");
                }
                if inner.keys[inner.len() - 1..].iter().any(|key| *key != u64::MAX) {
                    return Err("an unused key is not at its resting value");
                }
                if child < inner.len() {
                    let from = if child == 0 { low } else { inner.keys[child - 1] };
                    let to = if child + 1 == inner.len() { high } else { inner.keys[child] };
                    if from > to || from < low || to > high {
                        return Err("separators are out of order");
                    }
                    stack[level].1 += 1;
                    level += 1;
                    stack[level] = (inner.children[child], 0, from, to);
                    continue;
                }
            }
            if level == 0 {
                return Ok(());
            }
            level -= 1;
        }
    }

    fn check_leaf(&self, index: u32, low: u64, high: u64, seen: &mut Seen) -> Result<(), &'static str> {
        let leaf = self.leaves.get(index);
        if leaf.prev != seen.leaf {
            return Err("a leaf's link back is wrong");
        }
        let from_left = if seen.leaf == NONE { self.first } else { self.leaves.get(seen.leaf).next };
        if from_left != index {
            return Err("a leaf's link forward is wrong");
        }
        if leaf.len() == 0 || leaf.len() > LEAF {
            return Err("a leaf is empty or overfull");
        }
        if leaf.ends[leaf.len()..].iter().any(|end| *end != u64::MAX) {
            return Err("an unused end is not at its resting value");
        }
        for pos in 0..leaf.len() {
            let Entry { start, end, .. } = leaf.entry(pos);
            if start >= end || start < seen.end {
                return Err("entries are empty, overlap or are out of order");
            }
            if start < low || end > high {
                return Err("an entry lies across a separator");
            }
            seen.end = end;
        }
        seen.leaf = index;
        seen.len += leaf.len();
        seen.leaves += 1;
        Ok(())
    }
}

/// What a check has come past.
struct Seen {
    leaf: u32,
    end: u64,
    len: usize,
    leaves: usize,
    inners: usize,
}
