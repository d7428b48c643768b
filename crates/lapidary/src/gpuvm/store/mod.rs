//! The mapping store: an ordered index of ranges that don't overlap, and a record for each.
//!
//! It is a B+ tree of ranges ([`Tree`]) whose values are indices into a slab of records ([`Arena`]). The store
//! knows nothing of objects or drivers; what a range stands for and what a record holds is its user's business: address
//! spaces keep their mappings in it, and it would do for the extents of a file or the free parts of a disk. `core` and
//! `alloc` suffice.
//!
//! # What it does
//!
//! - *Looking*: [`Tree::first_behind`] answers whether an address is in a range, and what comes next if not;
//!   [`Tree::walk_from`] goes on from there in order, [`Tree::walk`] from the start. All descend once.
//! - *Changing*: [`Tree::place`] finds where a change begins, [`Tree::walk_place`] what it meets there, and
//!   [`Tree::splice`] replaces so many entries by up to three others. Insert, remove, cut and overwrite are all that one
//!   operation, as the example shows.
//! - *Records*: [`Arena::put`], [`Arena::get`], [`Arena::free`], by the index that is an entry's `id`. A cut can share,
//!   move or copy a record: the store does not know.
//! - *Room*: [`Store::reserve`], or [`Store::has_room`] for a change that may do without.
//!
//! *Memory.* A range costs 20 bytes in a leaf, about 29 at the fill random insertion leads to, and its record.
//! Nothing is allocated before the first range is, and everything is given back when the last one goes.
//!
//! *Failure.* Only [`Store::reserve`] can fail, and it changes nothing that can be seen then. Everything else is given room
//! by it: a change that has begun can't fail halfway.
//!
//! *Places.* A change is made at a [`Place`], found by one descent from the root. A place is good until the next
//! change, and what is put there must fit between its neighbours: that is the caller's duty, as with an index into
//! a vector. One who fails in it gets wrong answers or a panic, [`Tree::check`] says what is broken.
//!
//! *Concurrency.* None: a store is a plain value, and whoever shares one has a lock of its own.
//!
//! ```
//! use lapidary::gpuvm::store::{Entry, Tree};
//!
//! /// Gives `start..end` to `owner`, whoever had it.
//! fn assign(tree: &mut Tree, start: u64, end: u64, owner: u32) -> Result<(), &'static str> {
//!     let place = tree.place(start);
//!     let met: Vec<Entry> = tree.walk_place(&place).take_while(|entry| entry.start < end).collect();
//!     let below = met.first().filter(|first| first.start < start).map(|first| Entry { end: start, ..*first });
//!     let above = met.last().filter(|last| last.end > end).map(|last| Entry { start: end, ..*last });
//!     let new: Vec<Entry> = below.into_iter().chain([Entry { start, end, id: owner }]).chain(above).collect();
//!     if !tree.fits(&place, met.len(), new.len()) && !tree.reserve(3) {
//!         return Err("no memory");
//!     }
//!     tree.splice(&place, met.len(), &new);
//!     Ok(())
//! }
//!
//! let mut tree = Tree::new();
//! assign(&mut tree, 0x1000, 0x9000, 7)?;
//! assign(&mut tree, 0x3000, 0x4000, 8)?; // in the midst of it
//! let owners: Vec<(u64, u32)> = tree.walk().map(|entry| (entry.start, entry.id)).collect();
//! assert_eq!(owners, [(0x1000, 7), (0x3000, 8), (0x4000, 7)]);
//! assert_eq!(tree.first_behind(0x3fff).map(|entry| entry.id), Some(8));
//! assert_eq!(tree.first_behind(0x9000), None);
//! # Ok::<(), &'static str>(())
//! ```
//!
//! # The tree
//!
//! ```text
//!                  inner   [ s0 . s1 . s2 ]           s: separators, each in a gap between entries
//!                         /    |    |     \
//!     leaf <-> leaf <-> leaf <-> leaf <-> leaf         leaves are linked in order
//! ```
//!
//! A leaf has up to 32 entries, an inner node up to 64 children. A separator lies in the gap between what is left and right
//! of it (touching either is fine), never inside an entry. So the entry that contains an address is in the leaf the address
//! leads to, and the first entry behind an address is in that leaf or first in the next. What changes a node beyond its
//! own entries is drawn here, with leaves of four.
//!
//! *A separator is raised* when an entry put at a leaf's end reaches over it. What is right of it begins behind that entry, so
//! the separator still lies in a gap. Removing entries never moves one.
//!
//! ```text
//!           ... 50 ...                         ... 70 ...
//!              /  \            + 40..70           /  \
//!    [10..40]        [80..90]   ──────▶   [10..40 40..70]  [80..90]
//! ```
//!
//! *A full leaf splits* in the middle, and the parent gets the first start of the upper half as separator. The new entry then
//! goes to whichever half its start leads to.
//!
//! ```text
//!       ... . ...                       ... 30 ...
//!           |          + 25..26            /  \
//!     [10 20 30 40]    ──────▶    [10 20 25]   [30 40]
//! ```
//!
//! *Behind all others* a full leaf is left as it is, and the entry begins a leaf of its own: ascending insertion fills leaves
//! instead of halving each. Inner nodes on the way along the right edge do likewise: all children but the last stay.
//!
//! ```text
//!           ... .                            ... 50
//!               |        + 50                   /  \
//!     [10 20 30 40]    ──────▶    [10 20 30 40]     [50]
//! ```
//!
//! *A full inner node splits* when a child comes in: the separator between the halves moves up, which may split the parent, and
//! so on. Over a root that splits comes a new one, and the tree is a level deeper.
//!
//! ```text
//!                                                      [ s1 ]         the new root
//!     [ s0 . s1 . s2 ]   + child e behind d            /    \
//!      a    b    c    d  ─────────────────▶    [ s0 ]          [ s2 . s3 ]
//!                                               a    b          c    d    e
//! ```
//!
//! *A leaf that is a quarter full or less is merged* with the sibling to its right, or else to its left, if the two together
//! are at most three quarters full: so a node that was just split is not merged by the next removal. The right one goes, and
//! the separator between them. Inner nodes merge in the same way, the separator coming down between their children.
//!
//! ```text
//!     ... s0 . s1 . s2 ...     30 goes       ... s0 . s2 ...
//!           /     \           ──────▶              |
//!        [10 30]  [50 60]                      [10 50 60]
//! ```
//!
//! *An empty leaf goes*, with the separator before it, or the one behind it if it was the parent's first child: what led to it
//! leads to its neighbour, where there is nothing in that range either. An inner node without children goes with it, and a root
//! with a single child gives way to that child.
//!
//! ```text
//!     [ s0 . s1 ]     b's last goes     [ s1 ]
//!      a    b    c    ────────────▶      a    c
//! ```
//!
//! *A wide splice* takes the tail of one leaf, whole leaves, and the head of another, and then puts its new entries in one by
//! one; what is left of the two leaves at its ends may be merged after that.
//!
//! ```text
//!     [10 20 30 40] [50 60] [70 80 90]    30..85 becomes X    [10 20 X] [85 90]
//!            └──────────────────┘         ──────────────▶
//! ```

mod arena;
mod node;
mod prefetch;
mod tree;

pub use arena::{Arena, Chained, NONE};
pub use node::Entry;
pub use tree::{Place, Tree, Walk};

/// Most entries one change can add: a map in the middle of a mapping replaces one with three.
pub const SPLICE: usize = 3;

/// An index of ranges and their records `R`. See the module.
#[derive(Debug)]
pub struct Store<R> {
    /// The ranges; each entry's `id` is the index of its record.
    pub tree: Tree,
    /// The records.
    pub records: Arena<R>,
}

impl<R: Chained> Store<R> {
    /// A store with nothing in it and no memory.
    pub const fn new() -> Self {
        Store { tree: Tree::new(), records: Arena::new() }
    }

    /// Whether replacing `removed` entries at `place` by `new` needs no memory.
    #[inline]
    pub fn has_room(&self, place: &Place, removed: usize, new: usize) -> bool {
        let records = new.saturating_sub(removed);
        let nodes = self.tree.fits(place, removed, new) || self.tree.has_room(SPLICE);
        nodes && self.records.spare() >= records
    }

    /// Whether there is room for one change and for `entries` more entries beside it.
    pub fn has_spare(&self, entries: usize) -> bool {
        let entries = SPLICE + entries;
        self.tree.has_room(entries) && self.records.spare() >= entries
    }

    /// Makes room for one change and for `entries` more entries beside it. `false`: no memory, nothing changed.
    pub fn reserve(&mut self, entries: usize) -> bool {
        self.records.reserve(SPLICE + entries) && self.tree.reserve(SPLICE + entries)
    }

    /// Bytes that [`reserve`](Self::reserve) would ask for.
    pub fn growth_bytes(&self, entries: usize) -> usize {
        let entries = SPLICE + entries;
        self.tree.growth_bytes(entries).saturating_add(self.records.growth_bytes(entries))
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.tree.bytes() + self.records.bytes()
    }

    /// Gives all memory back if nothing is mapped.
    pub fn release_if_empty(&mut self) {
        self.tree.release_if_empty();
        if self.records.live() == 0 {
            self.records.release();
        }
    }
}

impl<R: Chained> Default for Store<R> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
