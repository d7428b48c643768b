//! A buffer as clients see it, and a file's table of buffer handles.
//!
//! The driver's [`Driver::Object`] is what the GPU uses, and lives as long as mappings and jobs need it. A
//! [`Buffer`] around it is the clients' side: it exists while any file has a handle to it or it is shared as a dma-buf,
//! and carries what only clients need: an `mmap` offset, a device-wide name, the dma-buf it is shared as.
//!
//! ```text
//!  file A: handle 1 ─┐                        ┌─► driver's object ◄── mappings, jobs
//!  file B: handle 4 ─┼─► Buffer ──────────────┘
//!  dma-buf ──────────┘     └─ (weak) dma-buf
//! ```
//!
//! Locks: each buffer has one around its dma-buf link and name (`Sharing`), each file one around its
//! [`buffer_table`](super::buffer_table). Table before sharing; the driver is called under neither.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use super::census::Live;
use super::device::DrmDevice;
use super::dma_buf::DmaBuf;
use super::driver::{Driver, Object};
use super::error::Error;

/// A buffer's identity within the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(u64);

/// A buffer as clients see it. See the module's head.
pub struct Buffer<D: Driver> {
    id: BufferId,
    device: Arc<DrmDevice<D>>,
    object: D::Object,
    imported: Option<Arc<DmaBuf>>,
    offset: OnceLock<u64>,
    handles: AtomicU64,
    sharing: Mutex<Sharing>,
    _live: Live,
}

#[derive(Default)]
struct Sharing {
    dma_buf: Weak<DmaBuf>,
    name: Option<u32>,
}

impl<D: Driver> Buffer<D> {
    /// Wraps a driver's object that no client has seen yet.
    pub fn new(device: &Arc<DrmDevice<D>>, object: D::Object) -> Arc<Self> {
        Self::build(device, object, None)
    }

    /// Wraps the object that the driver made over another device's buffer, which stays alive with it.
    pub(super) fn imported(device: &Arc<DrmDevice<D>>, object: D::Object, from: Arc<DmaBuf>) -> Arc<Self> {
        Self::build(device, object, Some(from))
    }

    fn build(device: &Arc<DrmDevice<D>>, object: D::Object, imported: Option<Arc<DmaBuf>>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: BufferId(NEXT.fetch_add(1, Ordering::Relaxed)),
            device: Arc::clone(device),
            object,
            imported,
            offset: OnceLock::new(),
            handles: AtomicU64::new(0),
            sharing: Mutex::default(),
            _live: device.kinds().buffers.enter(),
        })
    }

    /// Its identity.
    pub fn id(&self) -> BufferId {
        self.id
    }

    /// The driver's object.
    pub fn object(&self) -> &D::Object {
        &self.object
    }

    /// The device it belongs to.
    pub fn device(&self) -> &Arc<DrmDevice<D>> {
        &self.device
    }

    /// How many handles it has, in all files.
    pub fn handle_count(&self) -> u64 {
        self.handles.load(Ordering::Relaxed)
    }

    /// Whether it is another device's buffer.
    pub fn is_imported(&self) -> bool {
        self.imported.is_some()
    }

    /// Whether somebody else may have it: through a dma-buf, a device-wide name, or another device.
    pub fn is_shared(&self) -> bool {
        let sharing = self.sharing.lock();
        self.is_imported() || sharing.name.is_some() || sharing.dma_buf.strong_count() != 0
    }

    /// The offset by which `mmap` finds it, the same at every call.
    ///
    /// # Errors
    /// When the device has no offsets left.
    pub fn mmap_offset(self: &Arc<Self>) -> Result<u64, Error> {
        if let Some(offset) = self.offset.get() {
            return Ok(*offset);
        }
        let _one_at_a_time = self.sharing.lock();
        if let Some(offset) = self.offset.get() {
            return Ok(*offset);
        }
        let space = self.device.offsets();
        let offset = space
            .insert(Arc::downgrade(self), self.object.size())
            .ok_or(Error::OutOfMemory("an mmap offset"))?;
        Ok(*self.offset.get_or_init(|| offset))
    }

    /// The dma-buf it is shared as, made at the first call and the same as long as it lives.
    ///
    /// # Errors
    /// When the buffer has no memory of its own to share.
    pub(super) fn dma_buf(self: &Arc<Self>) -> Result<Arc<DmaBuf>, Error> {
        if let Some(original) = &self.imported {
            return Ok(Arc::clone(original));
        }
        if let Some(existing) = self.sharing.lock().dma_buf.upgrade() {
            return Ok(existing);
        }
        let memory = self.object.memory()?;
        let mut sharing = self.sharing.lock();
        // Another thread may have shared it since we looked.
        if let Some(existing) = sharing.dma_buf.upgrade() {
            return Ok(existing);
        }
        let fresh = DmaBuf::export(self, memory);
        sharing.dma_buf = Arc::downgrade(&fresh);
        Ok(fresh)
    }

    /// Its device-wide name, given at the first call.
    pub(super) fn flink(self: &Arc<Self>) -> u32 {
        let mut sharing = self.sharing.lock();
        *sharing.name.get_or_insert_with(|| self.device.names().insert(Arc::downgrade(self)))
    }

    pub(super) fn handle_added(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    /// The last handle takes the device-wide name along.
    pub(super) fn handle_removed(&self) {
        if self.handles.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        if let Some(name) = self.sharing.lock().name.take() {
            self.device.names().remove(name);
        }
    }
}

impl<D: Driver> Drop for Buffer<D> {
    fn drop(&mut self) {
        if let Some(offset) = self.offset.get() {
            self.device.offsets().remove(*offset);
        }
        if let Some(name) = self.sharing.get_mut().name.take() {
            self.device.names().remove(name);
        }
    }
}
