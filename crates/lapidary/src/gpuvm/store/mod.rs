//! The mapping store: an ordered index of ranges that don't overlap, and a record for each.
//!
//! It is a B+ tree of ranges ([`Tree`]) whose values are indices into a slab of records ([`Arena`]). The store
//! knows nothing of objects or drivers; what a record holds is its user's business. `core` and `alloc` suffice.
//!
//! *Memory.* A range costs 20 bytes in a leaf, about 29 at the fill random insertion leads to, and its record.
//! Nothing is allocated before the first range is, and everything is given back when the last one goes.
//!
//! *Failure.* Only [`Store::reserve`] can fail, and it changes nothing then. Everything else is given room by it:
//! a change that has begun can't fail halfway.
//!
//! *Places.* A change is made at a [`Place`], found by one descent from the root. A place is good until the next
//! change, and what is put there must fit between its neighbours: that is the caller's duty, as with an index into
//! a vector. One who fails in it gets wrong answers or a panic, [`Tree::check`] says what is broken.
//!
//! ```
//! use lapidary::gpuvm::store::{Entry, Tree};
//!
//! let mut tree = Tree::new();
//! assert!(tree.reserve(1), "no memory");
//! let place = tree.place(0x1000);
//! tree.splice(&place, 0, &[Entry { start: 0x1000, end: 0x3000, id: 7 }]);
//! assert_eq!(tree.first_behind(0x2fff).map(|entry| entry.id), Some(7));
//! assert_eq!(tree.first_behind(0x3000), None);
//! ```

mod arena;
mod node;
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
