//! The fake offsets by which clients name a buffer in `mmap`.
//!
//! A DRM file has no bytes of its own: an offset into it is a name for a buffer, the same in all files
//! of the device. Offsets are handed out in ascending order and never again, so that one kept after its
//! buffer is gone can't name another. That a name exists doesn't mean that a file may use it: rights
//! are the file's business, see [`super::file`].
//!
//! One lock, held for a lookup only; nothing else is taken under it. The space holds weak references: it
//! keeps no buffer alive.

use std::collections::BTreeMap;
use std::sync::Weak;

use parking_lot::Mutex;

/// First offset handed out: above 32 bits, so that a truncated one is noticed, and above the windows
/// that drivers keep for themselves.
const FIRST: u64 = 1 << 40;
/// `off_t` is signed; nothing above this can be asked for.
const END: u64 = 1 << 62;
const PAGE: u64 = 4096;

/// The offset space of one device, over things of type `T`.
#[derive(Debug)]
pub(super) struct OffsetSpace<T> {
    entries: Mutex<Entries<T>>,
}

#[derive(Debug)]
struct Entries<T> {
    next: u64,
    by_start: BTreeMap<u64, Weak<T>>,
}

impl<T> Default for OffsetSpace<T> {
    fn default() -> Self {
        Self { entries: Mutex::new(Entries { next: FIRST, by_start: BTreeMap::new() }) }
    }
}

impl<T> OffsetSpace<T> {
    /// Names `thing`, which is `size` bytes long. `None` when the space is used up.
    pub(super) fn insert(&self, thing: Weak<T>, size: u64) -> Option<u64> {
        let mut entries = self.entries.lock();
        let start = entries.next;
        let length = size.checked_next_multiple_of(PAGE)?.max(PAGE);
        let next = start.checked_add(length).filter(|next| *next <= END)?;
        entries.next = next;
        entries.by_start.insert(start, thing);
        Some(start)
    }

    /// What the offset names. Only the very start of a buffer is a name.
    pub(super) fn find(&self, offset: u64) -> Option<std::sync::Arc<T>> {
        let entries = self.entries.lock();
        entries.by_start.get(&offset)?.upgrade()
    }

    /// Takes the name back.
    pub(super) fn remove(&self, offset: u64) {
        self.entries.lock().by_start.remove(&offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn an_offset_names_one_buffer_and_is_never_reused() {
        let space = OffsetSpace::default();
        let thing = Arc::new(7);
        let first = space.insert(Arc::downgrade(&thing), 5000).unwrap();
        assert_eq!(space.find(first).as_deref(), Some(&7));
        assert!(space.find(first + PAGE).is_none());
        space.remove(first);
        let second = space.insert(Arc::downgrade(&thing), 1).unwrap();
        assert_eq!(second, first + 2 * PAGE);
        assert!(space.find(first).is_none());
    }

    #[test]
    fn a_buffer_larger_than_the_space_gets_no_offset() {
        let space = OffsetSpace::default();
        let thing = Arc::new(());
        assert!(space.insert(Arc::downgrade(&thing), u64::MAX).is_none());
        assert!(space.insert(Arc::downgrade(&thing), END).is_none());
        assert!(space.insert(Arc::downgrade(&thing), PAGE).is_some());
    }

    #[test]
    fn a_dead_buffer_is_not_found() {
        let space = OffsetSpace::default();
        let thing = Arc::new(());
        let offset = space.insert(Arc::downgrade(&thing), PAGE).unwrap();
        drop(thing);
        assert!(space.find(offset).is_none());
    }
}
