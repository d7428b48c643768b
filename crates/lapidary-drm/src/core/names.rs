//! Device-wide names of buffers (`GEM_FLINK`): any file that may ask can open a buffer by its number.
//!
//! One lock, held for a lookup only. The table keeps no buffer alive.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Names of things of type `T`, from 1; the lowest free one is given first.
#[derive(Debug)]
pub(super) struct NameTable<T> {
    names: Mutex<BTreeMap<u32, Weak<T>>>,
}

impl<T> Default for NameTable<T> {
    fn default() -> Self {
        Self { names: Mutex::default() }
    }
}

impl<T> NameTable<T> {
    /// Names a thing.
    pub(super) fn insert(&self, thing: Weak<T>) -> u32 {
        let mut names = self.names.lock();
        let gap = (1..).zip(names.keys()).find(|(expected, taken)| expected != *taken);
        let name = gap.map_or_else(|| names.len() as u32 + 1, |(expected, _)| expected);
        names.insert(name, thing);
        name
    }

    /// What has that name.
    pub(super) fn find(&self, name: u32) -> Option<Arc<T>> {
        self.names.lock().get(&name)?.upgrade()
    }

    /// Takes a name back.
    pub(super) fn remove(&self, name: u32) {
        self.names.lock().remove(&name);
    }
}
