//! The core's rules, seen by a client: a small driver over memfds, and a [`TestClient`] that calls its files.

mod dma_bufs;
mod prime;
mod races;
mod surface;
mod sync_files;
mod syncobjs;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lapidary::resv::Reservation;
use rustix::fs::{MemfdFlags, SealFlags};

use super::file::OpenFile;
use super::*;
use crate::transport::testing::TestClient;
use crate::transport::{Errno, File, Mmap};
use crate::uapi::drm;
use crate::uapi::ioctl::Command;

const MEBIBYTE: u64 = 1 << 20;

/// The driver's one command: a buffer of `size` bytes, private if `flags` is 1.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Create {
    size: u64,
    handle: u32,
    flags: u32,
}

const IOCTL_CREATE: Command = Command::iowr::<Create>(drm::BASE, drm::COMMAND_BASE);

struct MemfdDriver {
    info: DriverInfo,
    last_handles: AtomicU64,
}

#[derive(Clone)]
struct MemfdObject(Arc<Bytes>);

struct Bytes {
    memory: Memory,
    size: u64,
    reservation: Reservation,
    private: bool,
}

impl MemfdObject {
    fn new(size: u64, private: bool) -> Self {
        let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&fd, size).unwrap();
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        let memory = Memory { fd: Arc::new(fd) };
        Self(Arc::new(Bytes { memory, size, reservation: Reservation::new(), private }))
    }
}

impl Object for MemfdObject {
    fn size(&self) -> u64 {
        self.0.size
    }

    fn reservation(&self) -> &Reservation {
        &self.0.reservation
    }

    fn memory(&self) -> Result<Memory, Error> {
        Ok(self.0.memory.clone())
    }
}

impl Driver for MemfdDriver {
    type Object = MemfdObject;
    type File = ();

    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn commands(table: IoctlTable<Self>) -> IoctlTable<Self> {
        table.with(
            "TEST_CREATE",
            IOCTL_CREATE,
            Permit::RENDER,
            |request: &mut Request<'_, '_, Self>, args: &mut Create| {
                let object = MemfdObject::new(args.size, args.flags == 1);
                args.handle = request.file.add_object(object)?.0;
                Ok(())
            },
        )
    }

    fn open(&self, _: &Opening) -> Result<(), Error> {
        Ok(())
    }

    fn close(&self, _: &DrmFile<Self>) {}

    fn last_handle_closed(&self, _: &DrmFile<Self>, _: &Buffer<Self>) {
        self.last_handles.fetch_add(1, Ordering::Relaxed);
    }

    fn may_share(&self, object: &MemfdObject) -> Result<(), Error> {
        match object.0.private {
            true => Err(Error::refused(Errno::PERM, "the buffer is private")),
            false => Ok(()),
        }
    }

    fn import(&self, _: &DrmFile<Self>, shared: &Arc<DmaBuf>) -> Result<MemfdObject, Error> {
        let (memory, object) = (shared.memory().clone(), shared.object());
        let reservation = object.reservation().clone();
        Ok(MemfdObject(Arc::new(Bytes { memory, size: object.size(), reservation, private: false })))
    }
}

/// A device, a client, and what the client opened.
struct Bench {
    client: TestClient,
    census: Census,
    device: Arc<DrmDevice<MemfdDriver>>,
}

fn driver() -> MemfdDriver {
    let info = DriverInfo {
        name: "memfd",
        description: "a driver for tests",
        date: "20240101",
        version: (1, 2, 3),
        bus_id: "pci:0000:03:00.0".to_owned(),
        features: Features::SYNCOBJ | Features::SYNCOBJ_TIMELINE,
    };
    MemfdDriver { info, last_handles: AtomicU64::new(0) }
}

impl Bench {
    fn new() -> Self {
        let census = Census::new();
        let device = DrmDevice::new(driver(), &census);
        Self { client: TestClient::new(), census, device }
    }

    /// A render node's file.
    fn file(&self) -> OpenFile<MemfdDriver> {
        self.open(Node::Render)
    }

    fn open(&self, node: Node) -> OpenFile<MemfdDriver> {
        OpenFile(self.device.open_file(self.client.process(), node).unwrap())
    }

    /// An ioctl; the structure as it comes back, or the errno.
    fn run<T: bytemuck::Pod>(&mut self, file: &dyn File, command: Command, args: T) -> Result<T, Errno> {
        let mut args = args;
        self.client.ioctl(file, command.0, &mut args)?;
        Ok(args)
    }

    fn create(&mut self, file: &dyn File, size: u64) -> u32 {
        self.run(file, IOCTL_CREATE, Create { size, handle: 0, flags: 0 }).unwrap().handle
    }

    fn close_handle(&mut self, file: &dyn File, handle: u32) -> Result<(), Errno> {
        self.run(file, drm::IOCTL_GEM_CLOSE, drm::GemClose { handle, pad: 0 }).map(drop)
    }

    fn mmap(&mut self, file: &dyn File, offset: u64, length: u64) -> Result<Mmap, Errno> {
        self.client.call(0, |call| file.mmap(call, offset, length, 3, 1))
    }

    /// The file behind one of the client's descriptors.
    fn behind(&mut self, descriptor: i32) -> Arc<dyn File> {
        self.client.call(0, |call| call.file_of(descriptor)).unwrap()
    }

    fn live(&self, kind: &'static str) -> u64 {
        self.census.kind(kind).count().live
    }
}
