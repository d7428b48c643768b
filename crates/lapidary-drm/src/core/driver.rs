//! What a driver gives to the core: its name and commands, its buffers, and what to do when a file comes and goes.
//!
//! The core calls a driver with none of its own locks held, so a driver may call back into the file or device
//! from anywhere; [`Object::size`] alone is asked for under a lock, and takes none.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use lapidary::resv::Reservation;

use super::buffer::Buffer;
use super::dma_buf::DmaBuf;
use super::error::Error;
use super::file::{ClientId, DrmFile, Node};
use super::ioctl::IoctlTable;
use crate::transport::{Call, Mmap, Process};
use crate::uapi::drm::ModeCreateDumb;

bitflags::bitflags! {
    /// What a driver has of what is optional.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u32 {
        /// Binary syncobjs.
        const SYNCOBJ = 1 << 0;
        /// Timeline syncobjs.
        const SYNCOBJ_TIMELINE = 1 << 1;
        /// Dumb buffers: [`Driver::create_dumb`].
        const DUMB = 1 << 2;
    }
}

/// How a driver introduces itself.
#[derive(Clone, Debug)]
pub struct DriverInfo {
    /// The name by which clients choose their half of the driver.
    pub name: &'static str,
    /// One line for people.
    pub description: &'static str,
    /// A date, as `YYYYMMDD`.
    pub date: &'static str,
    /// Major, minor, patch level of the driver's interface.
    pub version: (i32, i32, i32),
    /// The bus id, like `pci:0000:03:00.0`.
    pub bus_id: String,
    /// What it has of what is optional.
    pub features: Features,
}

/// The bytes of a buffer: a memfd, from its first byte on.
#[derive(Clone, Debug)]
pub struct Memory {
    /// The memfd. A buffer that can be shared has it for itself.
    pub fd: Arc<OwnedFd>,
}

/// A driver's buffer object, as far as the core must know it.
pub trait Object: Send + Sync + 'static {
    /// Its size in bytes, a multiple of the page size.
    fn size(&self) -> u64;

    /// Where its fences are.
    fn reservation(&self) -> &Reservation;

    /// Its bytes.
    ///
    /// # Errors
    /// When it has none, or they can't be had now.
    fn memory(&self) -> Result<Memory, Error>;
}

/// Who opens a file, and how.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The file's number among all files of the server.
    pub client: ClientId,
    /// The process that opens it. The file may outlive it.
    pub process: Arc<Process>,
    /// Through which node.
    pub node: Node,
}

/// A request to map a part of the offset space that is the driver's own.
#[derive(Clone, Copy, Debug)]
pub struct MmapRequest {
    /// The offset in bytes.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// `PROT_*`.
    pub prot: i32,
    /// `MAP_*`.
    pub flags: i32,
}

/// A DRM driver.
pub trait Driver: Send + Sync + Sized + 'static {
    /// Its buffers: a cheap handle.
    type Object: Object + Clone;
    /// What it keeps per file.
    type File: Send + Sync + 'static;

    /// How it introduces itself.
    fn info(&self) -> &DriverInfo;

    /// Its commands, added to the core's.
    fn commands(table: IoctlTable<Self>) -> IoctlTable<Self>;

    /// A file is opened.
    ///
    /// # Errors
    /// What `open` answers.
    fn open(&self, opening: &Opening) -> Result<Self::File, Error>;

    /// The file's last descriptor is closed. Its buffers and syncobjs still have their handles, which are closed
    /// right after.
    fn close(&self, file: &DrmFile<Self>);

    /// A buffer of this file is about to lose its last handle there.
    fn last_handle_closed(&self, _file: &DrmFile<Self>, _buffer: &Buffer<Self>) {}

    /// Adds the driver's own lines, `key:\tvalue\n`, to a file's `fdinfo`.
    fn fdinfo(&self, _file: &DrmFile<Self>, _text: &mut String) {}

    /// The client maps an offset that no buffer has.
    /// `None`: the driver doesn't know it either.
    ///
    /// # Errors
    /// What `mmap` answers.
    fn mmap(
        &self,
        _file: &DrmFile<Self>,
        _call: &mut Call<'_>,
        _request: MmapRequest,
    ) -> Option<Result<Mmap, Error>> {
        None
    }

    /// May this buffer be shared with others?
    ///
    /// # Errors
    /// What `PRIME_HANDLE_TO_FD` and `GEM_FLINK` answer if not.
    fn may_share(&self, _object: &Self::Object) -> Result<(), Error> {
        Ok(())
    }

    /// Makes a buffer over another device's.
    ///
    /// # Errors
    /// When the driver can't use other devices' buffers, or not this one.
    fn import(&self, _file: &DrmFile<Self>, _shared: &Arc<DmaBuf>) -> Result<Self::Object, Error> {
        Err(Error::Unsupported("importing another device's buffer"))
    }

    /// Makes a linear buffer for a picture and fills in pitch and size.
    ///
    /// # Errors
    /// When there are no dumb buffers, or the picture's size is nonsense.
    fn create_dumb(
        &self,
        _file: &DrmFile<Self>,
        _picture: &mut ModeCreateDumb,
    ) -> Result<Self::Object, Error> {
        Err(Error::Unsupported("a dumb buffer"))
    }
}
