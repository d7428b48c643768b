//! What a driver side implements: files, and how they are opened.

use std::any::Any;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Call, FileHandle, Process};

pub use rustix::io::Errno;

/// Opens files by path. One per transport.
pub trait Service: Send + Sync + 'static {
    /// A client opens a device node, say `/dev/dri/renderD128`, with `open` flags.
    ///
    /// Runs on the thread of the client's channel.
    ///
    /// # Errors
    /// What the client's `open` fails with.
    fn open(&self, process: &Arc<Process>, path: &str, flags: u32) -> Result<Arc<dyn File>, Errno>;

    /// A client that is [watched](Process::watch_memory) is about to unmap or replace its memory in `range`. It goes on when
    /// this returns. Runs on the thread of the client's channel.
    fn memory_changes(&self, _process: &Arc<Process>, _range: Range<u64>) {}

    /// A client process has ended or disconnected. Its files follow on their own, each when its last descriptor
    /// is closed, before or after this.
    fn process_gone(&self, _process: &Arc<Process>) {}
}

/// What a descriptor stands for.
///
/// Methods that take a [`Call`] run on the thread of the calling client thread's channel and may block, as long as
/// they end soon after [`Call::interrupt`] is raised.
pub trait File: Any + Send + Sync {
    /// What `/proc/self/fd/N` shows for a descriptor made by [`Call::install_file`]. A file that was opened through a
    /// device node shows the node's path instead.
    fn name(&self) -> String {
        "anon_inode:[lapidary]".to_owned()
    }

    /// A new descriptor stands for this file from now on. Comes before the client has the descriptor. A file that is
    /// installed several times gets this, and later [`released`](Self::released), several times.
    fn attached(&self, _handle: &FileHandle) {}

    /// An ioctl. `arg` has the size that `cmd` says, filled from the client if `cmd` has the write direction (else
    /// zero), and goes back to the client, even on error, if it has the read direction.
    ///
    /// # Errors
    /// What the client's `ioctl` fails with.
    fn ioctl(&self, call: &mut Call<'_>, cmd: u32, arg: &mut [u8]) -> Result<u32, Errno>;

    /// Whether no call of this command ever waits for the GPU, another client or anything else that takes long. The client
    /// then spares itself the preparation for signals, which costs two system calls; a signal that arrives meanwhile is
    /// handled after the call.
    fn is_quick(&self, _cmd: u32) -> bool {
        false
    }

    /// A mapping of this file. `offset` and `length` in bytes, `prot` and `flags` as the client gave them.
    ///
    /// # Errors
    /// What the client's `mmap` fails with.
    fn mmap(
        &self,
        _call: &mut Call<'_>,
        _offset: u64,
        _length: u64,
        _prot: i32,
        _flags: i32,
    ) -> Result<Mmap, Errno> {
        Err(Errno::NODEV)
    }

    /// What is ready of the poll events asked for. Only asked for dma-bufs: other descriptors are sockets and
    /// tell readiness by themselves, see [`FileHandle::set_readable`].
    ///
    /// # Errors
    /// Is reported to the client as `POLLERR`.
    fn poll(&self, _call: &mut Call<'_>, events: u32) -> Result<Poll, Errno> {
        Ok(Poll::Ready(events))
    }

    /// Text of `/proc/self/fdinfo/N` after the lines that every file has; `None` for none.
    fn fdinfo(&self) -> Option<String> {
        None
    }

    /// The last copy of the descriptor is closed, in whatever process, and no call on it runs any more. Once for each
    /// [`attached`](Self::attached).
    fn released(&self) {}
}

/// The file as the type it was made with; the file itself if it is another.
///
/// # Errors
/// The file given.
pub fn downcast<T: File>(file: Arc<dyn File>) -> Result<Arc<T>, Arc<dyn File>> {
    let any: &dyn Any = &*file;
    if !any.is::<T>() {
        return Err(file);
    }
    let any: Arc<dyn Any + Send + Sync> = file;
    // The type was just looked at.
    Ok(any.downcast::<T>().unwrap_or_else(|_| unreachable!("the type of a value does not change")))
}

/// The answer to a request for a mapping: the client maps this descriptor natively.
///
/// It must be sealed against shrinking, or a hostile client could make the server's own accesses fault.
#[derive(Debug, Clone)]
pub struct Mmap {
    /// What to map.
    pub fd: Arc<OwnedFd>,
    /// From which byte on.
    pub offset: u64,
}

/// The answer to a poll.
#[derive(Debug)]
pub enum Poll {
    /// These events are ready now (none: poll again when any copy of the descriptor changes state).
    Ready(u32),
    /// None is ready; this descriptor becomes readable when one may be.
    Wait(OwnedFd),
}
