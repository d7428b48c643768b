//! Buffers.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use ash::vk;

use super::{Context, Memory, Source};

/// A buffer and the memory bound to it. Clones are the same buffer.
#[derive(Clone)]
pub(crate) struct Buffer {
    shared: Rc<Shared>,
}

struct Shared {
    context: Context,
    handle: vk::Buffer,
    size: u64,
    /// What is bound: one piece for ordinary buffers, whatever was ever bound for sparse ones.
    memory: RefCell<Vec<Memory>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: commands that use the buffer hold it until they have ended.
        unsafe { self.context.device.destroy_buffer(self.handle, None) };
    }
}

/// What every buffer of this program may be used for.
fn transfer_usage() -> vk::BufferUsageFlags {
    vk::BufferUsageFlags::TRANSFER_SRC | vk::BufferUsageFlags::TRANSFER_DST
}

impl Buffer {
    /// A buffer without memory.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn unbound(
        context: &Context,
        size: u64,
        flags: vk::BufferCreateFlags,
        shared_as: vk::ExternalMemoryHandleTypeFlags,
    ) -> Result<Buffer> {
        let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(shared_as);
        let mut info = vk::BufferCreateInfo::default()
            .size(size)
            .flags(flags)
            .usage(transfer_usage())
            .sharing_mode(vk::SharingMode::EXCLUSIVE);
        if !shared_as.is_empty() {
            info = info.push_next(&mut external);
        }
        // SAFETY: the structures live through the call.
        let handle = unsafe { context.device.create_buffer(&info, None) }
            .with_context(|| format!("vkCreateBuffer of {size} bytes"))?;
        let shared = Shared { context: context.clone(), handle, size, memory: RefCell::default() };
        Ok(Buffer { shared: Rc::new(shared) })
    }

    /// A buffer in memory of one type.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn in_type(context: &Context, size: u64, type_index: u32) -> Result<Buffer> {
        let buffer = Buffer::unbound(context, size, Default::default(), Default::default())?;
        let memory = Memory::new(context, buffer.requirements().size, type_index, Source::Own)?;
        buffer.bind(&memory, 0)?;
        Ok(buffer)
    }

    /// A buffer near the device.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn device_local(context: &Context, size: u64) -> Result<Buffer> {
        Buffer::with_properties(context, size, vk::MemoryPropertyFlags::DEVICE_LOCAL)
    }

    /// A buffer that the program can read and write.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn staging(context: &Context, size: u64) -> Result<Buffer> {
        Buffer::with_properties(context, size, vk::MemoryPropertyFlags::HOST_VISIBLE)
    }

    /// A staging buffer that holds `bytes`.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn holding(context: &Context, bytes: &[u8]) -> Result<Buffer> {
        let buffer = Buffer::staging(context, bytes.len() as u64)?;
        buffer.write(0, bytes)?;
        Ok(buffer)
    }

    fn with_properties(context: &Context, size: u64, wanted: vk::MemoryPropertyFlags) -> Result<Buffer> {
        let buffer = Buffer::unbound(context, size, Default::default(), Default::default())?;
        let requirements = buffer.requirements();
        let type_index = context
            .memory_type(requirements.memory_type_bits, wanted)
            .context("no memory type suits the buffer")?;
        buffer.bind(&Memory::new(context, requirements.size, type_index, Source::Own)?, 0)?;
        Ok(buffer)
    }

    /// Binds memory, once.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn bind(&self, memory: &Memory, offset: u64) -> Result<()> {
        let Shared { context, handle, .. } = &*self.shared;
        // SAFETY: both are of the same device and alive; the buffer was not bound before (its makers bind once).
        unsafe { context.device.bind_buffer_memory(*handle, memory.handle(), offset) }
            .context("vkBindBufferMemory")?;
        self.keep(memory);
        Ok(())
    }

    /// Holds memory that was bound by a sparse binding.
    pub(super) fn keep(&self, memory: &Memory) {
        self.shared.memory.borrow_mut().push(memory.clone());
    }

    /// What its memory must be like.
    pub(crate) fn requirements(&self) -> vk::MemoryRequirements {
        // SAFETY: the buffer is alive.
        unsafe { self.shared.context.device.get_buffer_memory_requirements(self.shared.handle) }
    }

    /// The Vulkan handle, for structures that name the buffer.
    pub(crate) fn handle(&self) -> vk::Buffer {
        self.shared.handle
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.shared.size
    }

    /// Writes through the program's mapping.
    ///
    /// # Errors
    /// When the memory can't be mapped.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.first_memory()?.write(offset, bytes)
    }

    /// Reads through the program's mapping.
    ///
    /// # Errors
    /// When the memory can't be mapped.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.first_memory()?.read(offset, len)
    }

    /// All of it, read through the program's mapping.
    ///
    /// # Errors
    /// When the memory can't be mapped.
    pub(crate) fn contents(&self) -> Result<Vec<u8>> {
        self.read(0, usize::try_from(self.size()).context("size")?)
    }

    fn first_memory(&self) -> Result<Memory> {
        self.shared.memory.borrow().first().cloned().context("the buffer has no memory")
    }
}
