//! A DRM device: a driver with all that its files share.
//!
//! Locks: the list of files and the name table have one each, held for a lookup only.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::buffer::Buffer;
use super::census::{Census, Kind};
use super::client::ClientRecord;
use super::driver::{Driver, Opening};
use super::error::Error;
use super::file::{ClientId, DrmFile, Node, OpenFile};
use super::ioctl::IoctlTable;
use super::master::Masters;
use super::names::NameTable;
use super::offsets::OffsetSpace;
use crate::transport::{File, Process};

/// A DRM device. Shared by its files; lives until the last of them and the server have let go.
pub struct DrmDevice<D: Driver> {
    driver: D,
    commands: IoctlTable<D>,
    census: Census,
    kinds: Kinds,
    masters: Masters,
    offsets: OffsetSpace<Buffer<D>>,
    names: NameTable<Buffer<D>>,
    files: Mutex<BTreeMap<ClientId, Weak<DrmFile<D>>>>,
}

/// The kinds of counted objects that the core itself makes.
#[derive(Debug)]
pub(super) struct Kinds {
    pub(super) files: Kind,
    pub(super) buffers: Kind,
    pub(super) dma_bufs: Kind,
    pub(super) syncobjs: Kind,
    pub(super) syncobj_files: Kind,
    pub(super) sync_files: Kind,
}

impl Kinds {
    fn of(census: &Census) -> Self {
        Self {
            files: census.kind("files"),
            buffers: census.kind("buffers"),
            dma_bufs: census.kind("dma-bufs"),
            syncobjs: census.kind("syncobjs"),
            syncobj_files: census.kind("syncobj files"),
            sync_files: census.kind("sync files"),
        }
    }
}

impl<D: Driver> DrmDevice<D> {
    /// A device that `driver` drives. Its objects are counted in `census`.
    pub fn new(driver: D, census: &Census) -> Arc<Self> {
        Arc::new(Self {
            driver,
            commands: D::commands(IoctlTable::with_core_commands()),
            census: census.clone(),
            kinds: Kinds::of(census),
            masters: Masters::default(),
            offsets: OffsetSpace::default(),
            names: NameTable::default(),
            files: Mutex::default(),
        })
    }

    /// Opens one of the device's nodes.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn open(self: &Arc<Self>, process: &Arc<Process>, node: Node) -> Result<Arc<dyn File>, Error> {
        Ok(Arc::new(OpenFile(self.open_file(process, node)?)))
    }

    /// As [`DrmDevice::open`], for those who want the file itself.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn open_file(self: &Arc<Self>, process: &Arc<Process>, node: Node) -> Result<Arc<DrmFile<D>>, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let client = ClientId(NEXT.fetch_add(1, Ordering::Relaxed));
        let process = Arc::clone(process);
        let file = DrmFile::open(self, Opening { client, process, node })?;
        self.files.lock().insert(client, Arc::downgrade(&file));
        Ok(file)
    }

    pub(super) fn forget(&self, client: ClientId) {
        self.files.lock().remove(&client);
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// Where its objects are counted.
    pub fn census(&self) -> &Census {
        &self.census
    }

    /// Every open file.
    pub fn files(&self) -> Vec<Arc<DrmFile<D>>> {
        self.files.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// A record of every open file.
    pub fn clients(&self) -> Vec<ClientRecord> {
        self.files().iter().map(|file| file.record()).collect()
    }

    /// Whether that process may do what takes privileges: it is root's, or of the user who started the device, whose
    /// it is.
    pub(super) fn trusts(&self, process: &Process) -> bool {
        let uid = process.uid();
        uid == 0 || uid == rustix::process::geteuid().as_raw()
    }

    pub(super) fn kinds(&self) -> &Kinds {
        &self.kinds
    }

    pub(super) fn commands(&self) -> &IoctlTable<D> {
        &self.commands
    }

    pub(super) fn masters(&self) -> &Masters {
        &self.masters
    }

    pub(super) fn offsets(&self) -> &OffsetSpace<Buffer<D>> {
        &self.offsets
    }

    pub(super) fn names(&self) -> &NameTable<Buffer<D>> {
        &self.names
    }
}
