//! An open DRM file: what one `open` of a device node gave a client.
//!
//! It holds handles: small numbers that name buffers and syncobjs in this file only. Everything a
//! client made through the file goes when the last descriptor of it is closed, in whatever process;
//! what the GPU still uses stays with those who use it.
//!
//! Locks: the buffer table's, the syncobj table's, the name's; none is held while a driver or another table is
//! called.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::buffer::Buffer;
use super::buffer_table::BufferTable;
use super::census::Live;
use super::client::ClientRecord;
use super::device::DrmDevice;
use super::driver::{Driver, MmapRequest, Object, Opening};
use super::error::Error;
use super::master::Membership;
use super::syncobj::SyncobjTable;
use crate::transport::{Call, Errno, File, Mmap, Process};
use crate::uapi::ioctl::Command;

/// A DRM file's number, never used twice while the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// Which of a device's nodes a file was opened through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// `card0`: masters, authentication, and everything else for those who are authenticated.
    Primary,
    /// `renderD128`: rendering only, for everybody.
    Render,
}

/// An open DRM file. See the module's head.
pub struct DrmFile<D: Driver> {
    opening: Opening,
    device: Arc<DrmDevice<D>>,
    membership: Membership,
    name: Mutex<Option<String>>,
    buffers: Mutex<BufferTable<D>>,
    syncobjs: SyncobjTable,
    data: D::File,
    ioctls: AtomicU64,
    closed: AtomicBool,
    _live: Live,
}

impl<D: Driver> DrmFile<D> {
    pub(super) fn open(device: &Arc<DrmDevice<D>>, opening: Opening) -> Result<Arc<Self>, Error> {
        let live = device.kinds().files.enter();
        let data = device.driver().open(&opening)?;
        let membership = Membership::open(device.masters(), opening.node, device.trusts(&opening.process));
        Ok(Arc::new(Self {
            opening,
            device: Arc::clone(device),
            membership,
            name: Mutex::default(),
            buffers: Mutex::default(),
            syncobjs: SyncobjTable::default(),
            data,
            ioctls: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            _live: live,
        }))
    }

    /// Its number.
    pub fn id(&self) -> ClientId {
        self.opening.client
    }

    /// The node it was opened through.
    pub fn node(&self) -> Node {
        self.opening.node
    }

    /// The process that opened it, which may be gone.
    pub fn process(&self) -> &Arc<Process> {
        &self.opening.process
    }

    /// The device.
    pub fn device(&self) -> &Arc<DrmDevice<D>> {
        &self.device
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        self.device.driver()
    }

    /// What the driver keeps for this file.
    pub fn data(&self) -> &D::File {
        &self.data
    }

    /// Its syncobjs.
    pub fn syncobjs(&self) -> &SyncobjTable {
        &self.syncobjs
    }

    /// May it use commands for authenticated files?
    pub fn is_authenticated(&self) -> bool {
        self.membership.is_authenticated()
    }

    /// Did a process open it that may do anything?
    pub fn is_privileged(&self) -> bool {
        self.membership.is_privileged()
    }

    /// Is it master of the device now?
    pub fn is_current_master(&self) -> bool {
        self.membership.is_current_master(self.device.masters())
    }

    pub(super) fn membership(&self) -> &Membership {
        &self.membership
    }

    pub(super) fn count_ioctl(&self) {
        self.ioctls.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_name(&self, name: Option<String>) {
        *self.name.lock() = name;
    }

    /// What an onlooker may know of it.
    pub fn record(&self) -> ClientRecord {
        let (buffers, bytes) = self.buffers.lock().totals();
        ClientRecord {
            client: self.id().0,
            pid: self.process().pid(),
            process: self.process().name().to_owned(),
            node: self.node().into(),
            name: self.name.lock().clone(),
            ioctls: self.ioctls.load(Ordering::Relaxed),
            buffers,
            buffer_bytes: bytes,
            syncobjs: self.syncobjs.len() as u64,
        }
    }

    /// What `/proc/PID/fdinfo` says of it: the keys every driver has, then the driver's.
    fn fdinfo(&self) -> String {
        let info = self.driver().info();
        let mut text = format!(
            "drm-driver:\t{}\ndrm-client-id:\t{}\ndrm-pdev:\t{}\n",
            info.name,
            self.id().0,
            info.bus_id.trim_start_matches("pci:")
        );
        if let Some(name) = &*self.name.lock() {
            text += &format!("drm-client-name:\t{name}\n");
        }
        self.driver().fdinfo(self, &mut text);
        text
    }

    /// Wraps a new object of the driver's and gives it a handle here.
    ///
    /// # Errors
    /// When there is no handle left, or the file is closed already.
    pub fn add_object(&self, object: D::Object) -> Result<(u32, Arc<Buffer<D>>), Error> {
        let buffer = Buffer::new(&self.device, object);
        let handle = self.add_buffer(&buffer)?;
        Ok((handle, buffer))
    }

    /// Gives a buffer one more handle here.
    ///
    /// # Errors
    /// As [`DrmFile::add_object`].
    pub fn add_buffer(&self, buffer: &Arc<Buffer<D>>) -> Result<u32, Error> {
        self.with_open_table(|table| table.insert(buffer))
    }

    /// The buffer of that handle.
    ///
    /// # Errors
    /// `ENOENT` without one.
    pub fn buffer(&self, handle: u32) -> Result<Arc<Buffer<D>>, Error> {
        let found = self.buffers.lock().get(handle);
        found.ok_or_else(|| Error::not_found("buffer", handle))
    }

    /// Takes a handle back. The buffer goes when nobody else has it.
    ///
    /// # Errors
    /// `EINVAL` without such a handle.
    pub fn close_buffer(&self, handle: u32) -> Result<(), Error> {
        let removed = self.buffers.lock().remove(handle);
        let (buffer, was_last) = removed.ok_or_else(|| Error::invalid("a buffer's handle", handle))?;
        if was_last {
            self.driver().last_handle_closed(self, &buffer);
        }
        Ok(())
    }

    /// Has this file a handle to that buffer?
    pub fn has_buffer(&self, buffer: &Buffer<D>) -> bool {
        self.buffers.lock().contains(buffer.id())
    }

    /// Something with the table, unless the file is closed: nothing may be added then, for nobody would take it
    /// away again.
    pub(super) fn with_open_table<R>(
        &self,
        work: impl FnOnce(&mut BufferTable<D>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let mut table = self.buffers.lock();
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::refused(Errno::BADF, "the file is closed"));
        }
        work(&mut table)
    }

    fn map(&self, call: &mut Call<'_>, request: MmapRequest) -> Result<Mmap, Error> {
        let Some(buffer) = self.device.offsets().find(request.offset) else {
            let own = self.driver().mmap(self, call, request);
            return own.unwrap_or_else(|| Err(Error::invalid("an mmap offset", request.offset)));
        };
        if !self.has_buffer(&buffer) {
            return Err(Error::Denied("mapping another file's buffer"));
        }
        if request.length > buffer.object().size() {
            return Err(Error::invalid("the length of a mapping", request.length));
        }
        Ok(Mmap { fd: buffer.object().memory()?.fd, offset: 0 })
    }

    /// The last descriptor is gone. Happens once.
    fn close(&self) {
        {
            let _table = self.buffers.lock();
            if self.closed.swap(true, Ordering::Relaxed) {
                return;
            }
        }
        self.driver().close(self);
        let buffers = std::mem::take(&mut *self.buffers.lock());
        for (buffer, was_last) in buffers.into_closed() {
            if was_last {
                self.driver().last_handle_closed(self, &buffer);
            }
        }
        self.syncobjs.clear();
        self.membership.close(self.device.masters());
        self.device.forget(self.id());
    }
}

impl<D: Driver> Drop for DrmFile<D> {
    /// A file that was never handed to a client is closed by whoever drops it.
    fn drop(&mut self) {
        self.close();
    }
}

/// The descriptor's side of a [`DrmFile`].
pub(super) struct OpenFile<D: Driver>(pub(super) Arc<DrmFile<D>>);

impl<D: Driver> File for OpenFile<D> {
    fn ioctl(&self, call: &mut Call<'_>, cmd: u32, arg: &mut [u8]) -> Result<u32, Errno> {
        let file = &self.0;
        file.device().commands().run(call, file, Command(cmd), arg)
    }

    fn is_quick(&self, cmd: u32) -> bool {
        self.0.device().commands().is_quick(Command(cmd))
    }

    fn mmap(
        &self,
        call: &mut Call<'_>,
        offset: u64,
        length: u64,
        prot: i32,
        flags: i32,
    ) -> Result<Mmap, Errno> {
        let request = MmapRequest { offset, length, prot, flags };
        self.0.map(call, request).map_err(|error| {
            tracing::debug!(client = self.0.id().0, offset, length, %error, "mmap refused");
            error.errno()
        })
    }

    fn fdinfo(&self) -> Option<String> {
        Some(self.0.fdinfo())
    }

    fn released(&self) {
        self.0.close();
    }
}
