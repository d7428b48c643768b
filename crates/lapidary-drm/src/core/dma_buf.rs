//! Shared buffers: what a dma-buf descriptor in a client stands for.
//!
//! The descriptor *is* the buffer's memfd, so a client maps, seeks and passes it on without us. What only a
//! dma-buf can do comes here: bracketing CPU accesses, naming, and moving fences between the buffer and sync_files.
//!
//! A [`DmaBuf`] knows nothing of the driver whose buffer it is: another device imports it through
//! [`Object`] alone. It lives as long as a descriptor of it or a buffer that was imported from it, and keeps the
//! exporter's buffer alive.
//!
//! # Fences
//! Implicit synchronisation reads the reservation: who wants to *read* waits for writers ([`Usage::Write`]), who
//! wants to *write* for everybody ([`Usage::Read`] and below). A fence that is put in for reading is a reader's, one
//! for writing a writer's.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lapidary::fence::{self, Deadline, Fence, Interrupt};
use lapidary::resv::{Reservation, Usage};
use parking_lot::Mutex;
use rustix::event::PollFlags;

use super::argument::with_argument;
use super::buffer::Buffer;
use super::census::{Kind, Live};
use super::device::DrmDevice;
use super::driver::{Driver, Memory, Object};
use super::error::{Error, only_bits};
use super::pollers::Pollers;
use super::sync_file::SyncFile;
use crate::transport::{Call, Errno, File, Poll, Process};
use crate::uapi::dma_buf as uapi;
use crate::uapi::ioctl::Command;

/// A dma-buf's identity within the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DmaBufId(u64);

/// A shared buffer. See the module's head.
pub struct DmaBuf {
    id: DmaBufId,
    buffer: Arc<dyn Shared>,
    memory: Memory,
    name: Mutex<String>,
    pollers: Pollers,
    sync_files: Kind,
    _live: Live,
}

/// An exporter's buffer without its driver's type.
trait Shared: Send + Sync {
    fn object(&self) -> &dyn Object;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<D: Driver> Shared for Buffer<D> {
    fn object(&self) -> &dyn Object {
        Self::object(self)
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl DmaBuf {
    /// Shares a buffer, which must not be shared already, and whose bytes are `memory`.
    pub(super) fn export<D: Driver>(buffer: &Arc<Buffer<D>>, memory: Memory) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let kinds = buffer.device().kinds();
        Arc::new(Self {
            id: DmaBufId(NEXT.fetch_add(1, Ordering::Relaxed)),
            memory,
            buffer: Arc::clone(buffer) as Arc<dyn Shared>,
            name: Mutex::default(),
            pollers: Pollers::default(),
            sync_files: kinds.sync_files.clone(),
            _live: kinds.dma_bufs.enter(),
        })
    }

    /// The dma-buf behind a client's descriptor.
    ///
    /// # Errors
    /// `EBADF` for a descriptor that isn't open, `EINVAL` for one that isn't a dma-buf.
    pub fn from_descriptor(call: &mut Call<'_>, fd: i32) -> Result<Arc<Self>, Error> {
        super::descriptor::find(call, fd, "a dma-buf", Errno::INVAL)
    }

    /// Its identity.
    pub fn id(&self) -> DmaBufId {
        self.id
    }

    /// The exporter's object: size, fences and bytes.
    pub fn object(&self) -> &dyn Object {
        self.buffer.object()
    }

    /// Its bytes.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The name that a client gave it, or nothing.
    pub fn name(&self) -> String {
        self.name.lock().clone()
    }

    /// The buffer behind it, if it is one of that device's.
    pub(super) fn own_buffer<D: Driver>(&self, device: &Arc<DrmDevice<D>>) -> Option<Arc<Buffer<D>>> {
        let buffer = Arc::clone(&self.buffer).into_any().downcast::<Buffer<D>>().ok()?;
        Arc::ptr_eq(buffer.device(), device).then_some(buffer)
    }

    /// Gives the client a descriptor of it.
    pub(super) fn install(
        self: &Arc<Self>,
        call: &mut Call<'_>,
        cloexec: bool,
        writable: bool,
    ) -> Result<i32, Error> {
        let file = Arc::clone(self) as Arc<dyn File>;
        Ok(call.install_dma_buf(&self.memory.fd, file, writable, cloexec)?)
    }

    fn reservation(&self) -> &Reservation {
        self.object().reservation()
    }

    /// Before the CPU touches the bytes, what the GPU does with them must be done. Afterwards there is nothing to
    /// do: both see the same bytes.
    fn sync(&self, args: &uapi::Sync, interrupt: &Interrupt) -> Result<(), Error> {
        only_bits("flags", args.flags, uapi::SYNC_RW | uapi::SYNC_END)?;
        let usage = usage_to_wait_for(args.flags)?;
        if args.flags & uapi::SYNC_END != 0 {
            return Ok(());
        }
        Ok(self.reservation().wait(usage, Deadline::never(), interrupt)?)
    }

    fn set_name(&self, call: &mut Call<'_>, address: u64) -> Result<(), Error> {
        let name = super::argument::read_text(call, address, uapi::NAME_LEN)?;
        *self.name.lock() = name;
        Ok(())
    }

    fn export_sync_file(&self, call: &mut Call<'_>, args: &mut uapi::ExportSyncFile) -> Result<(), Error> {
        only_bits("flags", args.flags, uapi::SYNC_RW)?;
        let usage = usage_to_wait_for(args.flags.into())?;
        let fence = self.reservation().merged(usage);
        args.fd = SyncFile::new(fence, &self.sync_files).install(call)?;
        Ok(())
    }

    fn import_sync_file(&self, call: &mut Call<'_>, args: &uapi::ImportSyncFile) -> Result<(), Error> {
        only_bits("flags", args.flags, uapi::SYNC_RW)?;
        usage_to_wait_for(args.flags.into())?;
        let writes = u64::from(args.flags) & uapi::SYNC_WRITE != 0;
        let usage = if writes { Usage::Write } else { Usage::Read };
        let file = SyncFile::from_descriptor(call, args.fd, Errno::INVAL)?;
        self.add_fences(file.fence(), usage, call.interrupt())
    }

    fn add_fences(&self, fence: &Fence, usage: Usage, interrupt: &Interrupt) -> Result<(), Error> {
        let fences: Vec<Fence> = fence::unwrap(fence).collect();
        let mut guard = self.reservation().lock_interruptible(interrupt)?;
        guard.reserve(fences.len())?;
        for fence in fences {
            guard.add_fence(fence, usage);
        }
        Ok(())
    }
}

/// The fences that somebody who reads, or writes, must wait for.
fn usage_to_wait_for(flags: u64) -> Result<Usage, Error> {
    match flags & uapi::SYNC_RW {
        0 => Err(Error::invalid("flags", flags)),
        access => Ok(Usage::for_access(access & uapi::SYNC_WRITE != 0)),
    }
}

impl DmaBuf {
    /// Ready for reading means: for a reader, that is when the writers are done; for writing likewise. While nothing is
    /// ready the answer is what to wait on.
    fn poll_fences(&self, process: &Arc<Process>, events: u32) -> Result<Poll, Errno> {
        let directions = [(PollFlags::IN, false), (PollFlags::OUT, true)];
        let asked = directions
            .map(|(flag, write)| (u32::from(flag.bits()) & events, Usage::for_access(write)))
            .into_iter()
            .filter(|(event, _)| *event != 0);
        // Readers wait for a part of what writers wait for: the first direction that is asked for is ready first.
        let Some((_, first)) = asked.clone().next() else { return Ok(Poll::Ready(0)) };
        loop {
            let idle = |(event, usage): (u32, Usage)| self.reservation().is_idle(usage).then_some(event);
            let ready = asked.clone().filter_map(idle).fold(0, |events, event| events | event);
            if ready != 0 {
                return Ok(Poll::Ready(ready));
            }
            if let Some(descriptor) = self.pollers.wait(process, self.reservation(), first)? {
                return Ok(Poll::Wait(descriptor));
            }
        }
    }

    fn run(&self, call: &mut Call<'_>, command: Command, bytes: &mut [u8]) -> Result<(), Error> {
        match command {
            uapi::IOCTL_SYNC => with_argument(command, bytes, |args| self.sync(args, call.interrupt())),
            uapi::SET_NAME_A | uapi::SET_NAME_B => {
                let address = call.arg_value();
                self.set_name(call, address)
            }
            uapi::IOCTL_EXPORT_SYNC_FILE => {
                with_argument(command, bytes, |args| self.export_sync_file(call, args))
            }
            uapi::IOCTL_IMPORT_SYNC_FILE => {
                with_argument(command, bytes, |args| self.import_sync_file(call, args))
            }
            _ => Err(Error::refused(Errno::NOTTY, "not a dma-buf's ioctl")),
        }
    }
}

impl File for DmaBuf {
    fn ioctl(&self, call: &mut Call<'_>, cmd: u32, arg: &mut [u8]) -> Result<u32, Errno> {
        let outcome = self.run(call, Command(cmd), arg);
        outcome.map(|()| 0).map_err(|error| {
            tracing::debug!(dma_buf = self.id.0, command = ?Command(cmd), %error, "ioctl refused");
            error.errno()
        })
    }

    fn poll(&self, call: &mut Call<'_>, events: u32) -> Result<Poll, Errno> {
        self.poll_fences(call.process(), events)
    }
}
