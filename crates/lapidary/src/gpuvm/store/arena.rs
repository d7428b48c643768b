//! A slab of equal-sized things named by `u32`.
//!
//! Freed places are chained through the things themselves, so an arena costs nothing beside its contents.
//! [`Arena::reserve`] may fail; [`Arena::put`] after it may not.

use alloc::vec::Vec;

/// The index that names nothing.
pub const NONE: u32 = u32::MAX;

/// Something with room for an index while it is free.
pub trait Chained {
    /// The index last stored by [`set_chain`](Self::set_chain).
    fn chain(&self) -> u32;
    /// Stores an index. Only called on things that are not in use.
    fn set_chain(&mut self, next: u32);
}

/// A slab of things named by `u32`. See the module.
#[derive(Debug)]
pub struct Arena<N> {
    places: Vec<N>,
    first_free: u32,
    free: u32,
}

impl<N: Chained> Arena<N> {
    /// An arena with nothing in it and no memory.
    pub const fn new() -> Self {
        Arena { places: Vec::new(), first_free: NONE, free: 0 }
    }

    /// How many things are in use.
    pub fn live(&self) -> usize {
        self.places.len() - self.free as usize
    }

    /// How many more fit without asking for memory.
    #[inline]
    pub fn spare(&self) -> usize {
        self.places.capacity() - self.places.len() + self.free as usize
    }

    /// How many places [`reserve`](Self::reserve) would ask memory for.
    fn growth(&self, more: usize) -> usize {
        if self.spare() >= more {
            return 0;
        }
        (more - self.free as usize).max(self.places.len() / 4)
    }

    /// Bytes that [`reserve`](Self::reserve) would ask for.
    pub fn growth_bytes(&self, more: usize) -> usize {
        self.growth(more).saturating_mul(size_of::<N>())
    }

    /// Makes room for `more` things, or changes nothing. `false`: no memory.
    pub fn reserve(&mut self, more: usize) -> bool {
        let growth = self.growth(more);
        // The last index means "none".
        if self.places.len().saturating_add(growth) >= NONE as usize {
            return false;
        }
        growth == 0 || self.places.try_reserve_exact(growth).is_ok()
    }

    /// Stores `thing` in room that [`reserve`](Self::reserve) made.
    #[inline]
    pub fn put(&mut self, thing: N) -> u32 {
        debug_assert!(self.spare() > 0, "room is reserved before a change begins");
        if self.first_free == NONE {
            self.places.push(thing);
            return (self.places.len() - 1) as u32;
        }
        let index = self.first_free;
        let place = &mut self.places[index as usize];
        self.first_free = place.chain();
        *place = thing;
        self.free -= 1;
        index
    }

    /// Gives a place back.
    #[inline]
    pub fn free(&mut self, index: u32) {
        let next = self.first_free;
        self.places[index as usize].set_chain(next);
        self.first_free = index;
        self.free += 1;
    }

    /// The thing at `index`.
    ///
    /// # Panics
    /// If there never was one.
    #[inline]
    pub fn get(&self, index: u32) -> &N {
        &self.places[index as usize]
    }

    /// The thing at `index`, to be changed.
    ///
    /// # Panics
    /// If there never was one.
    #[inline]
    pub fn get_mut(&mut self, index: u32) -> &mut N {
        &mut self.places[index as usize]
    }

    /// Both of two different places.
    pub fn get_two(&mut self, a: u32, b: u32) -> (&mut N, &mut N) {
        debug_assert_ne!(a, b);
        let (a, b) = (a as usize, b as usize);
        if a < b {
            let (low, high) = self.places.split_at_mut(b);
            (&mut low[a], &mut high[0])
        } else {
            let (low, high) = self.places.split_at_mut(a);
            (&mut high[0], &mut low[b])
        }
    }

    /// Bytes of memory held, used or not.
    pub fn bytes(&self) -> usize {
        self.places.capacity() * size_of::<N>()
    }

    /// Gives all memory back. Nothing may be in use.
    pub fn release(&mut self) {
        debug_assert_eq!(self.live(), 0);
        *self = Arena::new();
    }
}

impl<N: Chained> Default for Arena<N> {
    fn default() -> Self {
        Self::new()
    }
}
