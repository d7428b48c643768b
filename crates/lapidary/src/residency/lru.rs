//! The objects of a region in the order of their last use.
//!
//! Using an object must cost next to nothing, and happens far more often than evicting one. So a use only stores the time in
//! the object's [`Recency`], or in that of its group; the list keeps each object where it was when somebody last looked, and
//! moves it to where it belongs when a walk comes by.

use std::{any::Any, collections::BTreeMap};

use crate::{
    gem::{Object, ObjectData, WeakObject},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use super::place::Recency;

/// The list of one region. Clones are handles to the same list.
pub(super) struct Lru<D: ObjectData>(Arc<Mutex<BTreeMap<Key, Entry<D>>>>);

/// Sorted by priority first, then by the last use as far as known. Unique by the object's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    priority: u8,
    last_use: u64,
    object: u64,
}

struct Entry<D: ObjectData> {
    object: WeakObject<D>,
    recency: Arc<Recency>,
    /// The key, where the seat finds it. Changes under the list's lock.
    seated: Arc<AtomicU64>,
}

/// An object's entry; the object owns it.
struct Seat<D: ObjectData> {
    list: Lru<D>,
    key: Key,
    last_use: Arc<AtomicU64>,
}

impl<D: ObjectData> Lru<D> {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// Puts an object on the list; it leaves when what this returns is dropped.
    pub(super) fn seat(&self, object: &Object<D>) -> Box<dyn Any + Send + Sync> {
        let place = object.place();
        let recency = place.recency.clone();
        let key = Key { priority: place.config.priority, last_use: recency.get(), object: object.id() };
        let seated = Arc::new(AtomicU64::new(key.last_use));
        let entry = Entry { object: object.downgrade(), recency, seated: seated.clone() };
        self.0.lock().insert(key, entry);
        Box::new(Seat { list: self.clone(), key, last_use: seated })
    }

    /// The object that was used longest ago among those after `after`, and its key. `now` is the time at which the walk began:
    /// what was used later is taken where it stands, so that a walk ends.
    pub(super) fn next(&self, after: Option<Key>, now: u64) -> Option<(Key, Object<D>)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut entries = self.0.lock();
        let mut after = after;
        loop {
            let from = after.map_or(Unbounded, Excluded);
            let (&key, entry) = entries.range((from, Unbounded)).next()?;
            let last_use = entry.recency.get();
            if key.last_use < now && last_use > key.last_use {
                if let Some(entry) = entries.remove(&key) {
                    entry.seated.store(last_use, Ordering::Relaxed);
                    entries.insert(Key { last_use, ..key }, entry);
                }
                continue;
            }
            // An object that is going away has no use for being evicted; its seat leaves by itself.
            if let Some(object) = entry.object.upgrade() {
                return Some((key, object));
            }
            after = Some(key);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

impl<D: ObjectData> Clone for Lru<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: ObjectData> Drop for Seat<D> {
    fn drop(&mut self) {
        let entry = {
            let mut entries = self.list.0.lock();
            let key = Key { last_use: self.last_use.load(Ordering::Relaxed), ..self.key };
            entries.remove(&key)
        };
        drop(entry);
    }
}
