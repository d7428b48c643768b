//! The syncs of EXEC and VM_BIND: fences to wait for, and places that learn of the work's end.
//!
//! In-fences are captured when the call is made, so a syncobj that is reset later changes nothing. Out-syncs are
//! looked up first and installed last, after nothing can fail any more: a refused call leaves every syncobj as it was.

use lapidary::fence::Fence;
use lapidary::syncobj::Syncobj;

use super::XeRequest;
use super::uapi;
use super::user_fence::UserFence;
use crate::core::{Error, must_be_zero, only_bits};
use crate::transport::Errno;

/// Which call the syncs belong to: a user fence's address means something else in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// A GPU address, written by the engine.
    Exec,
    /// A client address, written by the device server.
    Bind,
}

/// A value that the engine stores in GPU memory when a job is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct GpuFence {
    /// GPU address, a multiple of 8.
    pub(super) address: u64,
    /// What to store.
    pub(super) value: u64,
}

/// The syncs of one call, looked up.
#[derive(Default)]
pub(super) struct Syncs {
    /// What the work waits for.
    pub(super) waits: Vec<Fence>,
    signals: Vec<Signal>,
    gpu_fence: Option<GpuFence>,
    user_fence: Option<UserFence>,
}

/// A syncobj that is to hold the work's fence.
enum Signal {
    Binary(Syncobj),
    Point(Syncobj, u64),
}

impl Syncs {
    /// Reads and looks up `count` syncs at client address `at`. `long_running` address spaces give no fences to
    /// syncobjs, since their jobs may never end.
    ///
    /// # Errors
    /// `EFAULT` for a bad pointer, `ENOENT` for an unknown handle, `EOPNOTSUPP` for a kind of sync that can't be used
    /// this way, `EINVAL` for anything else that is wrong with a field, and for a wait on a syncobj without a fence.
    pub(super) fn read(
        request: &XeRequest<'_, '_>,
        at: u64,
        count: u32,
        purpose: Use,
        long_running: bool,
    ) -> Result<Self, Error> {
        if count > uapi::MAX_SYNCS {
            return Err(Error::invalid("the number of syncs", count));
        }
        let mut syncs = Self::default();
        if count == 0 {
            return Ok(syncs);
        }
        for entry in request.call.memory().read_array::<uapi::Sync>(at, count as usize)? {
            must_be_zero("a sync's extensions", entry.extensions)?;
            must_be_zero("a sync's reserved field", entry.reserved[0] | entry.reserved[1])?;
            only_bits("a sync's flags", entry.flags, uapi::SYNC_FLAG_SIGNAL)?;
            syncs.add(request, &entry, purpose, long_running)?;
        }
        Ok(syncs)
    }

    fn add(
        &mut self,
        request: &XeRequest<'_, '_>,
        entry: &uapi::Sync,
        purpose: Use,
        long_running: bool,
    ) -> Result<(), Error> {
        let signal = entry.flags & uapi::SYNC_FLAG_SIGNAL != 0;
        let timeline = match entry.kind {
            uapi::SYNC_TYPE_SYNCOBJ => false,
            uapi::SYNC_TYPE_TIMELINE_SYNCOBJ => true,
            uapi::SYNC_TYPE_USER_FENCE => return self.add_user_fence(request, entry, purpose, signal),
            unknown => return Err(Error::invalid("a kind of sync", unknown)),
        };
        if signal && long_running && purpose == Use::Exec {
            return Err(Error::Unsupported("a syncobj that a long-running job signals"));
        }
        if timeline && entry.timeline_value == 0 {
            return Err(Error::invalid("a timeline's point", 0u64));
        }
        // The upper half of the union belongs to addresses alone.
        let syncobj = request.file.syncobjs().get(entry.handle_or_addr as u32)?;
        let point = if timeline { entry.timeline_value } else { 0 };
        if signal {
            let syncobj = Syncobj::clone(&syncobj);
            self.signals.push(if timeline { Signal::Point(syncobj, point) } else { Signal::Binary(syncobj) });
            return Ok(());
        }
        let fence = syncobj
            .find_fence(point)
            .ok_or_else(|| Error::invalid("a syncobj that has no fence yet", point))?;
        self.waits.push(fence);
        Ok(())
    }

    fn add_user_fence(
        &mut self,
        request: &XeRequest<'_, '_>,
        entry: &uapi::Sync,
        purpose: Use,
        signal: bool,
    ) -> Result<(), Error> {
        if !signal {
            return Err(Error::Unsupported("waiting for a user fence"));
        }
        let address = entry.handle_or_addr;
        if !address.is_multiple_of(8) {
            return Err(Error::invalid("a user fence's address", address));
        }
        if self.gpu_fence.is_some() || self.user_fence.is_some() {
            return Err(Error::refused(Errno::INVAL, "more than one user fence"));
        }
        match purpose {
            Use::Exec => self.gpu_fence = Some(GpuFence { address, value: entry.timeline_value }),
            Use::Bind => self.user_fence = Some(UserFence::new(request, address, entry.timeline_value)?),
        }
        Ok(())
    }

    /// What the engine is to store when the job is done.
    pub(super) fn gpu_fence(&self) -> Option<GpuFence> {
        self.gpu_fence
    }

    /// Gives the work's fence to everybody who is to learn of its end.
    pub(super) fn install(self, fence: &Fence) {
        for signal in self.signals {
            match signal {
                Signal::Binary(syncobj) => syncobj.replace_fence(Some(fence.clone())),
                Signal::Point(syncobj, point) => syncobj.add_point(fence.clone(), point),
            }
        }
        if let Some(user_fence) = self.user_fence {
            user_fence.write_after(fence);
        }
    }
}
