//! A file's buffer handles, and which of them a dma-buf is known by.
//!
//! Sharing a handle and importing a dma-buf both leave a note (dma-buf → handle), so that importing gives the
//! handle that is there already. The note goes with the handle.
//!
//! No lock of its own: [`super::file`] has one around it.

use std::collections::HashMap;
use std::sync::Arc;

use lapidary::gem::{Handle, HandleMap};

use super::buffer::{Buffer, BufferId};
use super::dma_buf::DmaBufId;
use super::driver::{Driver, Object};
use super::error::Error;

/// See the module's head.
pub(super) struct BufferTable<D: Driver> {
    handles: HandleMap<Arc<Buffer<D>>>,
    /// How many handles a buffer has here.
    counts: HashMap<BufferId, u32>,
    shared: HashMap<DmaBufId, u32>,
    /// The other direction.
    notes: HashMap<u32, DmaBufId>,
}

impl<D: Driver> Default for BufferTable<D> {
    fn default() -> Self {
        Self {
            handles: HandleMap::new(),
            counts: HashMap::new(),
            shared: HashMap::new(),
            notes: HashMap::new(),
        }
    }
}

impl<D: Driver> BufferTable<D> {
    pub(super) fn insert(&mut self, buffer: &Arc<Buffer<D>>) -> Result<u32, Error> {
        let handle = self.handles.insert(Arc::clone(buffer))?.get();
        *self.counts.entry(buffer.id()).or_insert(0) += 1;
        buffer.handle_added();
        Ok(handle)
    }

    pub(super) fn get(&self, handle: u32) -> Option<Arc<Buffer<D>>> {
        self.handles.get(Handle(handle)).cloned()
    }

    /// Also says whether it was the buffer's last handle here.
    pub(super) fn remove(&mut self, handle: u32) -> Option<(Arc<Buffer<D>>, bool)> {
        let buffer = self.handles.remove(Handle(handle))?;
        self.forget_note(handle);
        let was_last = self.uncount(&buffer);
        Some((buffer, was_last))
    }

    fn uncount(&mut self, buffer: &Buffer<D>) -> bool {
        buffer.handle_removed();
        let Some(count) = self.counts.get_mut(&buffer.id()) else {
            return true;
        };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.counts.remove(&buffer.id());
        true
    }

    pub(super) fn contains(&self, buffer: BufferId) -> bool {
        self.counts.contains_key(&buffer)
    }

    /// From now on the dma-buf is known as that handle, unless it is known already or the handle isn't that
    /// buffer's any more.
    pub(super) fn note(&mut self, dma_buf: DmaBufId, handle: u32, buffer: &Buffer<D>) {
        let named = self.handles.get(Handle(handle)).map(|named| named.id());
        if named != Some(buffer.id()) || self.shared.contains_key(&dma_buf) {
            return;
        }
        self.forget_note(handle);
        self.shared.insert(dma_buf, handle);
        self.notes.insert(handle, dma_buf);
    }

    fn forget_note(&mut self, handle: u32) {
        if let Some(dma_buf) = self.notes.remove(&handle) {
            self.shared.remove(&dma_buf);
        }
    }

    /// The handle a dma-buf is known as.
    pub(super) fn known(&self, dma_buf: DmaBufId) -> Option<u32> {
        self.shared.get(&dma_buf).copied()
    }

    /// Number of handles, and bytes of the buffers behind them, each counted once.
    pub(super) fn totals(&self) -> (u64, u64) {
        let mut seen = std::collections::HashSet::new();
        let mut bytes = 0;
        for (_, buffer) in self.handles.iter() {
            if seen.insert(buffer.id()) {
                bytes += buffer.object().size();
            }
        }
        (self.handles.len() as u64, bytes)
    }

    /// Takes all handles back, each with whether it was its buffer's last.
    pub(super) fn into_closed(mut self) -> Vec<(Arc<Buffer<D>>, bool)> {
        let buffers = self.handles.take_all().into_iter();
        let close = |(_, buffer): (Handle, Arc<Buffer<D>>)| {
            let was_last = self.uncount(&buffer);
            (buffer, was_last)
        };
        buffers.map(close).collect()
    }
}
