//! sync_files: a fence as a descriptor.
//!
//! The descriptor becomes readable when the fence signals, so a client polls it without us. Its own ioctls
//! merge two of them into a third, say what is inside, and hint at a deadline.

use std::sync::Arc;

use bytemuck::Zeroable;
use lapidary::fence::{self, CallbackId, Fence, Timestamp};
use parking_lot::Mutex;

use super::argument::with_argument;
use super::census::{Kind, Live};
use super::error::{Error, fence_errno, must_be_zero};
use super::fence_names::FenceNames;
use crate::transport::{Call, Errno, File, FileHandle};
use crate::uapi::ioctl::Command;
use crate::uapi::sync_file as uapi;

/// A fence with a descriptor.
pub struct SyncFile {
    fence: Fence,
    /// The name a merge gave it; without one it is called after its fence.
    name: [u8; uapi::NAME_LEN],
    /// What makes the descriptor readable.
    callback: Mutex<Option<CallbackId>>,
    kind: Kind,
    _live: Live,
}

impl SyncFile {
    /// A sync_file for `fence`, counted as one of `kind`.
    #[must_use]
    pub fn new(fence: Fence, kind: &Kind) -> Self {
        let (name, callback) = ([0; uapi::NAME_LEN], Mutex::default());
        Self { fence, name, callback, kind: kind.clone(), _live: kind.enter() }
    }

    /// The sync_file behind a client's descriptor.
    ///
    /// # Errors
    /// `otherwise`, whether the descriptor is something else or not open: that is how kernels answer here.
    pub fn from_descriptor(call: &mut Call<'_>, fd: i32, otherwise: Errno) -> Result<Arc<Self>, Error> {
        let found = super::descriptor::find(call, fd, "a sync_file", otherwise);
        found.map_err(|_| Error::BadDescriptor { what: "a sync_file", fd, errno: otherwise })
    }

    /// The fence.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Gives the client a descriptor of it, which closes on `exec`.
    ///
    /// # Errors
    /// When the client has no descriptor left.
    pub fn install(self, call: &mut Call<'_>) -> Result<i32, Error> {
        Ok(call.install_file(Arc::new(self), true)?)
    }

    fn merge(&self, call: &mut Call<'_>, args: &mut uapi::MergeData) -> Result<(), Error> {
        must_be_zero("flags", args.flags)?;
        must_be_zero("padding", args.pad)?;
        let other = Self::from_descriptor(call, args.fd2, Errno::NOENT)?;
        let both = fence::merge([self.fence.clone(), other.fence.clone()]);
        let mut merged = Self::new(both, &self.kind);
        args.name[uapi::NAME_LEN - 1] = 0;
        merged.name = args.name;
        args.fence = merged.install(call)?;
        Ok(())
    }

    /// With no room for the fences it only counts them.
    fn info(&self, call: &mut Call<'_>, args: &mut uapi::FileInfo) -> Result<(), Error> {
        must_be_zero("flags", args.flags)?;
        must_be_zero("padding", args.pad)?;
        let fences = self.members();
        if args.num_fences == 0 {
            args.status = status(&self.fence);
        } else if (args.num_fences as usize) < fences.len() {
            return Err(Error::invalid("the room for fences", args.num_fences));
        } else {
            call.memory().write_array(args.sync_fence_info, &fences)?;
            args.status = overall_status(&fences);
        }
        args.name = if self.name[0] == 0 { name_after(&self.fence) } else { self.name };
        args.num_fences = fences.len() as u32;
        Ok(())
    }

    /// The plain fences inside.
    fn members(&self) -> Vec<uapi::FenceInfo> {
        fence::unwrap(&self.fence).map(|fence| describe(&fence)).collect()
    }

    fn set_deadline(&self, args: &uapi::SetDeadline) -> Result<(), Error> {
        must_be_zero("padding", args.pad)?;
        self.fence.set_deadline(Timestamp::from_nanos(args.deadline_ns));
        Ok(())
    }

    fn run(&self, call: &mut Call<'_>, command: Command, bytes: &mut [u8]) -> Result<(), Error> {
        match command {
            uapi::IOC_MERGE => with_argument(command, bytes, |args| self.merge(call, args)),
            uapi::IOC_FILE_INFO => with_argument(command, bytes, |args| self.info(call, args)),
            uapi::IOC_SET_DEADLINE => with_argument(command, bytes, |args| self.set_deadline(args)),
            _ => Err(Error::refused(Errno::NOTTY, "not a sync_file's ioctl")),
        }
    }
}

impl File for SyncFile {
    fn name(&self) -> String {
        "anon_inode:sync_file".to_owned()
    }

    fn attached(&self, handle: &FileHandle) {
        let handle = handle.clone();
        match self.fence.add_callback(move |_| handle.set_readable()) {
            Ok(id) => *self.callback.lock() = Some(id),
            Err(set_readable) => set_readable(&self.fence),
        }
    }

    /// The fence may live on, and others have descriptors of it: it keeps nothing of this one.
    fn released(&self) {
        if let Some(id) = self.callback.lock().take() {
            self.fence.remove_callback(id);
        }
    }

    fn ioctl(&self, call: &mut Call<'_>, cmd: u32, arg: &mut [u8]) -> Result<u32, Errno> {
        let outcome = self.run(call, Command(cmd), arg);
        outcome.map(|()| 0).map_err(|error| {
            tracing::debug!(command = ?Command(cmd), %error, "sync_file ioctl refused");
            error.errno()
        })
    }
}

/// 0 active, 1 signalled, negative: why it failed.
fn status(fence: &Fence) -> i32 {
    match fence.status() {
        None => 0,
        Some(Ok(())) => 1,
        Some(Err(error)) => -fence_errno(error).raw_os_error(),
    }
}

/// Signalled if all are; otherwise what the first one says that isn't.
fn overall_status(fences: &[uapi::FenceInfo]) -> i32 {
    let unfinished = |status: &i32| *status <= 0;
    let first = fences.iter().map(|info| info.status).find(unfinished);
    first.unwrap_or(1)
}

fn describe(fence: &Fence) -> uapi::FenceInfo {
    let FenceNames { driver, timeline } = FenceNames::of(fence);
    uapi::FenceInfo {
        obj_name: name_bytes(&timeline),
        driver_name: name_bytes(&driver),
        status: status(fence),
        timestamp_ns: fence.timestamp().map_or(0, Timestamp::as_nanos),
        ..Zeroable::zeroed()
    }
}

fn name_after(fence: &Fence) -> [u8; uapi::NAME_LEN] {
    let FenceNames { driver, timeline } = FenceNames::of(fence);
    name_bytes(&format!("{driver}-{timeline}{}-{}", fence.context().get(), fence.seqno().get()))
}

/// A name cut to its field, with a zero at the end.
fn name_bytes(name: &str) -> [u8; uapi::NAME_LEN] {
    let mut bytes = [0; uapi::NAME_LEN];
    let length = name.len().min(uapi::NAME_LEN - 1);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

#[cfg(test)]
mod tests {
    use lapidary::fence::Timeline;

    use super::*;
    use crate::core::Census;
    use crate::transport::downcast;
    use crate::transport::testing::TestClient;

    #[test]
    fn a_descriptor_that_is_closed_leaves_nothing_with_its_fence() {
        let (mut client, kind) = (TestClient::new(), Census::new().kind("sync files"));
        let (fence, _signaller) = Timeline::new("t").next();
        let fd = client.call(0, |call| SyncFile::new(fence.clone(), &kind).install(call)).unwrap();
        let file = client.call(0, |call| call.file_of(fd)).unwrap();
        let file = downcast::<SyncFile>(file).ok().unwrap();
        let callback = file.callback.lock().unwrap();
        client.close(fd);
        assert!(!fence.remove_callback(callback), "it was taken back");
    }
}
