//! Semaphores, and binding memory to sparse buffers.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;

use anyhow::{Context as _, Result};
use ash::vk;

use super::{Buffer, Context, Memory, Queue};

/// A semaphore, binary or timeline. Clones are the same semaphore.
#[derive(Clone)]
pub(crate) struct Semaphore {
    shared: Rc<Shared>,
}

struct Shared {
    context: Context,
    handle: vk::Semaphore,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: submissions that use the semaphore hold it until they have ended.
        unsafe { self.context.device.destroy_semaphore(self.handle, None) };
    }
}

impl Semaphore {
    /// A timeline that begins at zero.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn timeline(context: &Context) -> Result<Semaphore> {
        Semaphore::new(context, vk::SemaphoreType::TIMELINE, Default::default())
    }

    /// A binary semaphore.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn binary(context: &Context) -> Result<Semaphore> {
        Semaphore::new(context, vk::SemaphoreType::BINARY, Default::default())
    }

    /// A semaphore that can be exported.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn new(
        context: &Context,
        kind: vk::SemaphoreType,
        shared_as: vk::ExternalSemaphoreHandleTypeFlags,
    ) -> Result<Semaphore> {
        let mut kind = vk::SemaphoreTypeCreateInfo::default().semaphore_type(kind);
        let mut export = vk::ExportSemaphoreCreateInfo::default().handle_types(shared_as);
        let mut info = vk::SemaphoreCreateInfo::default().push_next(&mut kind);
        if !shared_as.is_empty() {
            info = info.push_next(&mut export);
        }
        // SAFETY: the chain lives through the call.
        let handle = unsafe { context.device.create_semaphore(&info, None) }.context("vkCreateSemaphore")?;
        Ok(Semaphore { shared: Rc::new(Shared { context: context.clone(), handle }) })
    }

    pub(super) fn handle(&self) -> vk::Semaphore {
        self.shared.handle
    }

    /// Signals a timeline's value from the program.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn signal(&self, value: u64) -> Result<()> {
        let info = vk::SemaphoreSignalInfo::default().semaphore(self.shared.handle).value(value);
        // SAFETY: the semaphore is alive and a timeline; the checks signal rising values.
        unsafe { self.shared.context.device.signal_semaphore(&info) }.context("vkSignalSemaphore")
    }

    /// A timeline's value now.
    ///
    /// # Errors
    /// When the device is lost.
    pub(crate) fn value(&self) -> Result<u64> {
        // SAFETY: the semaphore is alive and a timeline.
        unsafe { self.shared.context.device.get_semaphore_counter_value(self.shared.handle) }
            .context("vkGetSemaphoreCounterValue")
    }

    /// Waits for a timeline's value; says whether it came within `nanoseconds`.
    ///
    /// # Errors
    /// When the device is lost.
    pub(crate) fn wait(&self, value: u64, nanoseconds: u64) -> Result<bool> {
        wait(&self.shared.context, &[(self, value)], vk::SemaphoreWaitFlags::empty(), nanoseconds)
    }

    /// Gives the semaphore away as a descriptor.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn export(&self, kind: vk::ExternalSemaphoreHandleTypeFlags) -> Result<OwnedFd> {
        let info = vk::SemaphoreGetFdInfoKHR::default().semaphore(self.shared.handle).handle_type(kind);
        // SAFETY: the semaphore is alive and was made exportable by its only user.
        let fd = unsafe { self.shared.context.semaphore_fd.get_semaphore_fd(&info) }
            .context("vkGetSemaphoreFdKHR")?;
        // SAFETY: the call returns a new descriptor that is ours.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Takes the payload of a descriptor.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn import(
        &self,
        fd: OwnedFd,
        kind: vk::ExternalSemaphoreHandleTypeFlags,
        flags: vk::SemaphoreImportFlags,
    ) -> Result<()> {
        let info = vk::ImportSemaphoreFdInfoKHR::default()
            .semaphore(self.shared.handle)
            .handle_type(kind)
            .flags(flags)
            .fd(fd.as_raw_fd());
        // SAFETY: the semaphore is alive and unused; the descriptor is open.
        unsafe { self.shared.context.semaphore_fd.import_semaphore_fd(&info) }
            .context("vkImportSemaphoreFdKHR")?;
        // A successful import has taken the descriptor.
        let _ = fd.into_raw_fd();
        Ok(())
    }
}

/// Waits until every timeline has reached its value.
///
/// # Errors
/// When the device is lost.
pub(crate) fn wait_all(context: &Context, points: &[(&Semaphore, u64)], nanoseconds: u64) -> Result<bool> {
    wait(context, points, vk::SemaphoreWaitFlags::empty(), nanoseconds)
}

/// Waits until one of the timelines has reached its value.
///
/// # Errors
/// When the device is lost.
pub(crate) fn wait_any(context: &Context, points: &[(&Semaphore, u64)], nanoseconds: u64) -> Result<bool> {
    wait(context, points, vk::SemaphoreWaitFlags::ANY, nanoseconds)
}

fn wait(
    context: &Context,
    points: &[(&Semaphore, u64)],
    flags: vk::SemaphoreWaitFlags,
    nanoseconds: u64,
) -> Result<bool> {
    let handles: Vec<_> = points.iter().map(|(semaphore, _)| semaphore.handle()).collect();
    let values: Vec<_> = points.iter().map(|(_, value)| *value).collect();
    let info = vk::SemaphoreWaitInfo::default().flags(flags).semaphores(&handles).values(&values);
    // SAFETY: the semaphores are alive and timelines; the slices live through the call.
    match unsafe { context.device.wait_semaphores(&info, nanoseconds) } {
        Ok(()) => Ok(true),
        Err(vk::Result::TIMEOUT) => Ok(false),
        Err(error) => Err(error).context("vkWaitSemaphores"),
    }
}

/// One range of a sparse buffer and what shall be behind it.
pub(crate) struct SparseBind<'a> {
    /// Where in the buffer, in bytes.
    pub(crate) offset: u64,
    /// How many bytes.
    pub(crate) size: u64,
    /// The memory and the offset in it; nothing unbinds.
    pub(crate) memory: Option<(&'a Memory, u64)>,
}

impl Context {
    /// Binds ranges of a sparse buffer on `queue`.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn bind_sparse(
        &self,
        queue: Queue,
        buffer: &Buffer,
        binds: &[SparseBind<'_>],
        waits: &[(&Semaphore, u64)],
        signals: &[(&Semaphore, u64)],
    ) -> Result<()> {
        let ranges: Vec<_> = binds
            .iter()
            .map(|bind| {
                let range = vk::SparseMemoryBind::default().resource_offset(bind.offset).size(bind.size);
                match bind.memory {
                    Some((memory, offset)) => range.memory(memory.handle()).memory_offset(offset),
                    None => range,
                }
            })
            .collect();
        // Bound memory must not be freed while a copy may still reach it through the buffer.
        binds.iter().filter_map(|bind| bind.memory).for_each(|(memory, _)| buffer.keep(memory));
        let handles = |points: &[(&Semaphore, u64)]| -> (Vec<vk::Semaphore>, Vec<u64>) {
            points.iter().map(|(semaphore, value)| (semaphore.handle(), *value)).unzip()
        };
        let (wait_handles, wait_values) = handles(waits);
        let (signal_handles, signal_values) = handles(signals);
        let mut values = vk::TimelineSemaphoreSubmitInfo::default()
            .wait_semaphore_values(&wait_values)
            .signal_semaphore_values(&signal_values);
        let buffer_binds = [vk::SparseBufferMemoryBindInfo::default().buffer(buffer.handle()).binds(&ranges)];
        let info = vk::BindSparseInfo::default()
            .buffer_binds(&buffer_binds)
            .wait_semaphores(&wait_handles)
            .signal_semaphores(&signal_handles)
            .push_next(&mut values);
        // SAFETY: everything named is alive; the caller waits for its signals before it lets go of buffer and memory.
        unsafe { self.device.queue_bind_sparse(queue.handle, &[info], vk::Fence::null()) }
            .context("vkQueueBindSparse")
    }
}
