//! Device memory: allocated, imported, exported, mapped.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use ash::vk;

use super::{Context, HostRegion};

/// Where a piece of memory comes from.
pub(crate) enum Source<'a> {
    /// The device's own, for this process alone.
    Own,
    /// The device's own, to be exported by handles of this kind.
    Exportable(vk::ExternalMemoryHandleTypeFlags),
    /// Another process's, or an export of our own.
    Descriptor(OwnedFd, vk::ExternalMemoryHandleTypeFlags),
    /// The program's own pages.
    Host(&'a HostRegion),
}

/// A piece of device memory. Clones are the same piece; the last one frees it.
#[derive(Clone)]
pub(crate) struct Memory {
    shared: Rc<Shared>,
}

struct Shared {
    context: Context,
    handle: vk::DeviceMemory,
    size: u64,
    flags: vk::MemoryPropertyFlags,
    /// The program's pages, if that is what it is made of.
    _region: Option<HostRegion>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: buffers and images bound to the memory hold it, so none is left; it is mapped only inside `with_mapping`.
        unsafe { self.context.device.free_memory(self.handle, None) };
    }
}

impl Memory {
    /// Allocates or imports `size` bytes of a memory type.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn new(context: &Context, size: u64, type_index: u32, source: Source<'_>) -> Result<Memory> {
        Memory::with_dedication(context, size, type_index, source, vk::MemoryDedicatedAllocateInfo::default())
    }

    /// As [`Memory::new`], for one buffer or image alone.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn with_dedication(
        context: &Context,
        size: u64,
        type_index: u32,
        source: Source<'_>,
        mut dedicated: vk::MemoryDedicatedAllocateInfo<'_>,
    ) -> Result<Memory> {
        let mut info = vk::MemoryAllocateInfo::default().allocation_size(size).memory_type_index(type_index);
        if dedicated.buffer != vk::Buffer::null() || dedicated.image != vk::Image::null() {
            info = info.push_next(&mut dedicated);
        }
        let mut export = vk::ExportMemoryAllocateInfo::default();
        let mut import_fd = vk::ImportMemoryFdInfoKHR::default();
        let mut import_host = vk::ImportMemoryHostPointerInfoEXT::default();
        let mut descriptor = None;
        let mut pages = None;
        match source {
            Source::Own => {}
            Source::Exportable(kinds) => {
                export = export.handle_types(kinds);
                info = info.push_next(&mut export);
            }
            Source::Descriptor(fd, kind) => {
                import_fd = import_fd.handle_type(kind).fd(fd.as_raw_fd());
                descriptor = Some(fd);
                info = info.push_next(&mut import_fd);
            }
            Source::Host(region) => {
                import_host = import_host
                    .handle_type(vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT)
                    .host_pointer(region.address().cast());
                pages = Some(region.clone());
                info = info.push_next(&mut import_host);
            }
        }
        // SAFETY: the chain lives through the call. A host region stays mapped as long as the memory, which holds it.
        let handle = unsafe { context.device.allocate_memory(&info, None) }
            .with_context(|| format!("vkAllocateMemory of {size} bytes, memory type {type_index}"))?;
        // A successful import has taken the descriptor.
        descriptor.map(OwnedFd::into_raw_fd);
        let flags = context.memory.memory_types[type_index as usize].property_flags;
        let shared = Shared { context: context.clone(), handle, size, flags, _region: pages };
        Ok(Memory { shared: Rc::new(shared) })
    }

    pub(super) fn handle(&self) -> vk::DeviceMemory {
        self.shared.handle
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.shared.size
    }

    /// Whether the program can map it.
    pub(crate) fn is_host_visible(&self) -> bool {
        self.shared.flags.contains(vk::MemoryPropertyFlags::HOST_VISIBLE)
    }

    /// Gives the memory away as a descriptor.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn export(&self, kind: vk::ExternalMemoryHandleTypeFlags) -> Result<OwnedFd> {
        let info = vk::MemoryGetFdInfoKHR::default().memory(self.shared.handle).handle_type(kind);
        // SAFETY: the memory is alive and was allocated as exportable by its only user.
        let fd = unsafe { self.shared.context.memory_fd.get_memory_fd(&info) }.context("vkGetMemoryFdKHR")?;
        // SAFETY: the call returns a new descriptor that is ours.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Copies bytes into the memory through a mapping.
    ///
    /// # Errors
    /// When it can't be mapped.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.with_mapping(offset, bytes.len(), |pointer| {
            // SAFETY: the mapping is `bytes.len()` long and writable; `bytes` is ordinary memory elsewhere.
            unsafe { pointer.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
            self.maintain(|device, range| {
                // SAFETY: the range is mapped now.
                unsafe { device.flush_mapped_memory_ranges(&[range]) }.context("vkFlushMappedMemoryRanges")
            })
        })
    }

    /// Copies bytes out of the memory through a mapping.
    ///
    /// # Errors
    /// When it can't be mapped.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.with_mapping(offset, len, |pointer| {
            self.maintain(|device, range| {
                // SAFETY: the range is mapped now.
                unsafe { device.invalidate_mapped_memory_ranges(&[range]) }
                    .context("vkInvalidateMappedMemoryRanges")
            })?;
            let mut bytes = vec![0; len];
            // SAFETY: the mapping is `len` bytes long and readable; `bytes` is as long and elsewhere.
            unsafe { pointer.copy_to_nonoverlapping(bytes.as_mut_ptr(), len) };
            Ok(bytes)
        })
    }

    fn with_mapping<T>(&self, offset: u64, len: usize, work: impl FnOnce(*mut u8) -> Result<T>) -> Result<T> {
        let end = offset.checked_add(len as u64);
        ensure!(end.is_some_and(|end| end <= self.size()), "{len} bytes at {offset} leave the memory");
        ensure!(self.is_host_visible(), "the memory can't be mapped");
        let device = &self.shared.context.device;
        let flags = vk::MemoryMapFlags::empty();
        // SAFETY: the memory is host-visible and not mapped: mappings exist only inside this function, on one thread.
        let base = unsafe { device.map_memory(self.shared.handle, 0, vk::WHOLE_SIZE, flags) }
            .context("vkMapMemory")?;
        let offset = usize::try_from(offset).context("offset")?;
        // SAFETY: the offset lies within the mapping, checked above.
        let result = work(unsafe { base.cast::<u8>().add(offset) });
        // SAFETY: mapped above; no pointer into it is kept.
        unsafe { device.unmap_memory(self.shared.handle) };
        result
    }

    /// Flushes or invalidates the mapping when the memory type needs it.
    fn maintain(
        &self,
        work: impl FnOnce(&ash::Device, vk::MappedMemoryRange<'_>) -> Result<()>,
    ) -> Result<()> {
        if self.shared.flags.contains(vk::MemoryPropertyFlags::HOST_COHERENT) {
            return Ok(());
        }
        let range = vk::MappedMemoryRange::default().memory(self.shared.handle).size(vk::WHOLE_SIZE);
        work(&self.shared.context.device, range)
    }
}

impl Context {
    /// The first memory type of those in `allowed` (a bit each) that has all of `wanted`.
    pub(crate) fn memory_type(&self, allowed: u32, wanted: vk::MemoryPropertyFlags) -> Option<u32> {
        let types = (0u32..).zip(self.memory.memory_types_as_slice());
        types
            .filter(|(index, _)| allowed & (1 << index) != 0)
            .find(|(_, kind)| kind.property_flags.contains(wanted))
            .map(|(index, _)| index)
    }

    /// Memory types that a descriptor can be imported as, a bit each.
    ///
    /// # Errors
    /// When the device does not know the descriptor.
    pub(crate) fn importable_types(&self, fd: &OwnedFd) -> Result<u32> {
        let mut properties = vk::MemoryFdPropertiesKHR::default();
        let kind = vk::ExternalMemoryHandleTypeFlags::DMA_BUF_EXT;
        // SAFETY: the descriptor is open; the structure lives through the call.
        unsafe { self.memory_fd.get_memory_fd_properties(kind, fd.as_raw_fd(), &mut properties) }
            .context("vkGetMemoryFdPropertiesKHR")?;
        Ok(properties.memory_type_bits)
    }

    /// Memory types that a host region can be imported as, a bit each.
    ///
    /// # Errors
    /// When the device refuses the region.
    pub(crate) fn importable_host_types(&self, region: &HostRegion) -> Result<u32> {
        let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
        let kind = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;
        // SAFETY: the region is mapped; the structure lives through the call.
        let result = unsafe {
            (self.memory_host.fp().get_memory_host_pointer_properties_ext)(
                self.device.handle(),
                kind,
                region.address().cast(),
                &mut properties,
            )
        };
        result.result().context("vkGetMemoryHostPointerPropertiesEXT")?;
        Ok(properties.memory_type_bits)
    }
}
