//! Handles: the numbers by which a client names what it owns.
//!
//! [`HandleMap`] is the pure structure; [`HandleTable`] puts a lock around it. A number is given out lowest first and
//! is free again as soon as its entry is removed, as programs expect of the DRM interface. Lookups return full
//! references (clones): what is found stays alive however soon the handle is closed, and what is being closed is
//! not found.

use core::{cmp::Reverse, fmt};

use alloc::{collections::BinaryHeap, vec::Vec};

/// A number that names an object within one client. Valid ones start at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u32);

impl Handle {
    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The table has no number left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {0} handles are in use")]
pub struct HandlesExhausted(pub u32);

/// A map from handles to values that gives out the lowest free number.
///
/// # Invariants
/// `free` holds exactly the indices of the empty slots, and no slot beyond `limit` exists. Slot *i* is handle *i*+1.
#[derive(Debug, Clone)]
pub struct HandleMap<T> {
    slots: Vec<Option<T>>,
    free: BinaryHeap<Reverse<u32>>,
    limit: u32,
}

impl<T> HandleMap<T> {
    /// An empty map for handles from 1 to `u32::MAX`.
    pub const fn new() -> Self {
        Self::with_limit(u32::MAX)
    }

    /// An empty map for handles from 1 to `limit`.
    pub const fn with_limit(limit: u32) -> Self {
        Self { slots: Vec::new(), free: BinaryHeap::new(), limit }
    }

    /// Stores what `make` gives for the lowest free handle.
    pub fn insert_with(&mut self, make: impl FnOnce(Handle) -> T) -> Result<Handle, HandlesExhausted> {
        if let Some(&Reverse(index)) = self.free.peek() {
            let handle = Handle(index + 1);
            let value = make(handle);
            self.free.pop();
            self.slots[index as usize] = Some(value);
            return Ok(handle);
        }
        if self.slots.len() >= self.limit as usize {
            return Err(HandlesExhausted(self.limit));
        }
        // Below the limit, so it fits.
        let handle = Handle(self.slots.len() as u32 + 1);
        self.slots.push(Some(make(handle)));
        Ok(handle)
    }

    /// Stores `value` under the lowest free handle.
    pub fn insert(&mut self, value: T) -> Result<Handle, HandlesExhausted> {
        self.insert_with(|_| value)
    }

    /// The value of a handle.
    pub fn get(&self, handle: Handle) -> Option<&T> {
        self.slots.get(handle.0.checked_sub(1)? as usize)?.as_ref()
    }

    /// The value of a handle, to change.
    pub fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        self.slots.get_mut(handle.0.checked_sub(1)? as usize)?.as_mut()
    }

    /// Takes a value out; its number is free from now on.
    pub fn remove(&mut self, handle: Handle) -> Option<T> {
        let index = handle.0.checked_sub(1)?;
        let value = self.slots.get_mut(index as usize)?.take()?;
        self.free.push(Reverse(index));
        Some(value)
    }

    /// Handles and values, in the order of the handles.
    pub fn iter(&self) -> impl Iterator<Item = (Handle, &T)> {
        let handles = (1..).map(Handle);
        handles.zip(&self.slots).filter_map(|(handle, slot)| Some((handle, slot.as_ref()?)))
    }

    /// How many handles are in use.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether no handle is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes everything out.
    pub fn take_all(&mut self) -> Vec<(Handle, T)> {
        self.free.clear();
        let slots = core::mem::take(&mut self.slots);
        (1..).map(Handle).zip(slots).filter_map(|(handle, slot)| Some((handle, slot?))).collect()
    }
}

impl<T> Default for HandleMap<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(feature = "std")]
pub use table::HandleTable;

#[cfg(feature = "std")]
mod table {
    use super::{Handle, HandleMap, HandlesExhausted};
    use crate::sync::RwLock;

    /// A [`HandleMap`] that threads share.
    ///
    /// Its lock is held for the length of one operation, and no value is dropped under it.
    #[derive(Debug, Default)]
    pub struct HandleTable<T>(RwLock<HandleMap<T>>);

    impl<T> HandleTable<T> {
        /// An empty table.
        pub const fn new() -> Self {
            Self(RwLock::new(HandleMap::new()))
        }

        /// An empty table for handles from 1 to `limit`.
        pub const fn with_limit(limit: u32) -> Self {
            Self(RwLock::new(HandleMap::with_limit(limit)))
        }

        /// Stores `value` under the lowest free handle. From here on other threads of the client find it.
        pub fn insert(&self, value: T) -> Result<Handle, HandlesExhausted> {
            // Moved in by reference, so that a refused value is dropped after the lock.
            let mut value = Some(value);
            self.0.write().insert_with(|_| value.take().expect("the closure runs once"))
        }

        /// Stores what `make` gives for the lowest free handle. `make` runs under the table's lock.
        pub fn insert_with(&self, make: impl FnOnce(Handle) -> T) -> Result<Handle, HandlesExhausted> {
            self.0.write().insert_with(make)
        }

        /// Takes a value out. It is not found any more, whoever still uses it.
        pub fn remove(&self, handle: Handle) -> Option<T> {
            self.0.write().remove(handle)
        }

        /// Puts another value in the place of one that exists, and gives the old one back.
        pub fn replace(&self, handle: Handle, value: T) -> Result<T, T> {
            match self.0.write().get_mut(handle) {
                Some(slot) => Ok(std::mem::replace(slot, value)),
                None => Err(value),
            }
        }

        /// Takes everything out: what a closed file does.
        pub fn take_all(&self) -> Vec<(Handle, T)> {
            self.0.write().take_all()
        }

        /// How many handles are in use.
        pub fn len(&self) -> usize {
            self.0.read().len()
        }

        /// Whether no handle is in use.
        pub fn is_empty(&self) -> bool {
            self.len() == 0
        }
    }

    impl<T: Clone> HandleTable<T> {
        /// A full reference to what the handle names now.
        pub fn get(&self, handle: Handle) -> Option<T> {
            self.0.read().get(handle).cloned()
        }

        /// Full references to what the handles name, all looked up at one moment; the first unknown handle
        /// otherwise.
        pub fn get_many(&self, handles: &[Handle]) -> Result<Vec<T>, Handle> {
            let map = self.0.read();
            handles.iter().map(|&handle| map.get(handle).cloned().ok_or(handle)).collect()
        }

        /// Everything in the table at one moment, in the order of the handles.
        pub fn snapshot(&self) -> Vec<(Handle, T)> {
            self.0.read().iter().map(|(handle, value)| (handle, value.clone())).collect()
        }

        /// The lowest handle whose value satisfies `wanted`, which runs under the table's lock.
        pub fn find(&self, mut wanted: impl FnMut(&T) -> bool) -> Option<Handle> {
            self.0.read().iter().find(|(_, value)| wanted(value)).map(|(handle, _)| handle)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number_is_given_out() {
        let mut map = HandleMap::new();
        let handles: Vec<u32> = (0..4).map(|n| map.insert(n).unwrap().get()).collect();
        assert_eq!(handles, [1, 2, 3, 4]);

        map.remove(Handle(3));
        map.remove(Handle(2));
        assert_eq!(map.insert(20), Ok(Handle(2)));
        assert_eq!(map.insert(30), Ok(Handle(3)));
        assert_eq!(map.insert(50), Ok(Handle(5)));
        assert_eq!(map.len(), 5);
    }

    #[test]
    fn numbers_that_name_nothing_are_refused() {
        let mut map = HandleMap::new();
        map.insert(()).unwrap();
        assert_eq!(map.get(Handle(0)), None);
        assert_eq!(map.remove(Handle(0)), None);
        assert_eq!(map.remove(Handle(2)), None);
        assert_eq!(map.remove(Handle(u32::MAX)), None);
        assert_eq!(map.remove(Handle(1)), Some(()));
        assert_eq!(map.remove(Handle(1)), None);
        assert!(map.is_empty());
    }

    #[test]
    fn a_full_map_says_so() {
        let mut map = HandleMap::with_limit(2);
        map.insert('a').unwrap();
        map.insert('b').unwrap();
        assert_eq!(map.insert('c'), Err(HandlesExhausted(2)));
        map.remove(Handle(1));
        assert_eq!(map.insert('c'), Ok(Handle(1)));
    }
}
