//! Software timelines: fences that a program signals itself, for testing whatever takes fences.
//!
//! Each open of the device's nodes is a timeline of its own, which starts at 0. It makes fences, advances, and goes with
//! its last descriptor; fences that it has not come to then fail with `ENOENT`. There is no DRM device behind it.
//!
//! | file | what it is |
//! | --- | --- |
//! | `mod` | the device, its files and their ioctls |
//! | `timeline` | a timeline: its value, its fences, their order |
//!
//! Locks: the device's list of timelines, held for a lookup only, and each timeline's own (see there).

#[cfg(test)]
mod tests;
mod timeline;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use lapidary::fence::FenceContext;
use parking_lot::Mutex;

use crate::core::census::{Census, Kind, Live};
use crate::core::{Error, SyncFile, must_be_zero, with_argument};
use crate::transport::{Call, Errno, File, Process};
use crate::tree::{Node, NodeKind};
use crate::uapi::ioctl::Command;
use crate::uapi::sw_sync as uapi;
use timeline::Timeline;

/// The device's node as a character device.
const DEVICE_PATH: &str = "/dev/sw_sync";
/// Its node in debugfs, where kernels have it now.
const DEBUGFS_PATH: &str = "/sys/kernel/debug/sync/sw_sync";

/// The device's nodes.
#[must_use]
pub fn nodes() -> [Node; 2] {
    // The first of the numbers that kernels give to such devices as they come.
    let device = NodeKind::Device { major: 10, minor: 63 };
    [(DEVICE_PATH, device), (DEBUGFS_PATH, NodeKind::File)]
        .map(|(path, kind)| Node { path: path.to_owned(), kind })
}

/// Whether `path` is one of them.
#[must_use]
pub fn is_node(path: &str) -> bool {
    path == DEVICE_PATH || path == DEBUGFS_PATH
}

/// The device.
pub struct SwSync {
    timelines: Mutex<BTreeMap<FenceContext, Weak<Timeline>>>,
    timeline_kind: Kind,
    sync_file_kind: Kind,
}

impl SwSync {
    /// A device whose objects are counted in `census`.
    #[must_use]
    pub fn new(census: &Census) -> Arc<Self> {
        Arc::new(Self {
            timelines: Mutex::default(),
            timeline_kind: census.kind("software timelines"),
            sync_file_kind: census.kind("sync files"),
        })
    }

    /// Opens the device: a new timeline, called after the process.
    #[must_use]
    pub fn open(self: &Arc<Self>, process: &Process) -> Arc<dyn File> {
        let timeline = Arc::new(Timeline::new(process.name()));
        self.timelines.lock().insert(timeline.context(), Arc::downgrade(&timeline));
        Arc::new(TimelineFile { device: Arc::clone(self), timeline, _live: self.timeline_kind.enter() })
    }
}

/// An open of the device.
struct TimelineFile {
    device: Arc<SwSync>,
    timeline: Arc<Timeline>,
    _live: Live,
}

impl TimelineFile {
    fn create_fence(&self, call: &mut Call<'_>, args: &mut uapi::CreateFence) -> Result<(), Error> {
        let fence = self.timeline.fence(args.value)?;
        args.fence = SyncFile::new(fence, &self.device.sync_file_kind).install(call)?;
        Ok(())
    }

    /// The fence may be of any timeline, but must be a single one.
    fn deadline(&self, call: &mut Call<'_>, args: &mut uapi::GetDeadline) -> Result<(), Error> {
        must_be_zero("deadline", args.deadline_ns)?;
        must_be_zero("padding", args.pad)?;
        let file = SyncFile::from_descriptor(call, args.fence_fd, Errno::INVAL)?;
        let timeline = self.device.timelines.lock().get(&file.fence().context()).and_then(Weak::upgrade);
        let timeline =
            timeline.ok_or(Error::refused(Errno::INVAL, "the fence is of no timeline that is open"))?;
        let deadline = timeline.deadline(file.fence());
        let deadline = deadline.ok_or(Error::refused(Errno::NOENT, "nobody gave the fence a deadline"))?;
        args.deadline_ns = deadline.as_nanos();
        Ok(())
    }

    fn run(&self, call: &mut Call<'_>, command: Command, bytes: &mut [u8]) -> Result<(), Error> {
        match command {
            uapi::IOC_CREATE_FENCE => with_argument(command, bytes, |args| self.create_fence(call, args)),
            uapi::IOC_INC => with_argument(command, bytes, |by| {
                self.timeline.advance(*by);
                Ok(())
            }),
            uapi::GET_DEADLINE => with_argument(command, bytes, |args| self.deadline(call, args)),
            _ => Err(Error::refused(Errno::NOTTY, "not a software timeline's ioctl")),
        }
    }
}

impl File for TimelineFile {
    fn ioctl(&self, call: &mut Call<'_>, cmd: u32, arg: &mut [u8]) -> Result<u32, Errno> {
        let outcome = self.run(call, Command(cmd), arg);
        outcome.map(|()| 0).map_err(|error| {
            tracing::debug!(command = ?Command(cmd), %error, "sw_sync ioctl refused");
            error.errno()
        })
    }

    fn released(&self) {
        self.timeline.close();
    }
}

impl Drop for TimelineFile {
    fn drop(&mut self) {
        self.device.timelines.lock().remove(&self.timeline.context());
    }
}
