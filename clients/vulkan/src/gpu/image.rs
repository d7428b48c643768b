//! Images, and the shape of their parts in a buffer.

#![allow(unsafe_code)]

use std::rc::Rc;

use anyhow::{Context as _, Result};
use ash::vk;

use super::{Context, Memory, Source};

/// Everything that says how many bytes an image's parts have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) format: vk::Format,
    /// Bytes of a texel, or of a compressed block.
    pub(crate) block_bytes: u32,
    /// Texels along a block's edge: 1, or 4 for compressed formats.
    pub(crate) block_edge: u32,
    pub(crate) image_type: vk::ImageType,
    pub(crate) extent: vk::Extent3D,
    pub(crate) levels: u32,
    pub(crate) layers: u32,
}

impl Shape {
    /// Texels of a level in each direction.
    pub(crate) fn level_extent(&self, level: u32) -> vk::Extent3D {
        let at = |full: u32| (full >> level).max(1);
        vk::Extent3D {
            width: at(self.extent.width),
            height: at(self.extent.height),
            depth: at(self.extent.depth),
        }
    }

    /// Blocks of a level in each direction.
    pub(crate) fn level_blocks(&self, level: u32) -> vk::Extent3D {
        let extent = self.level_extent(level);
        vk::Extent3D {
            width: extent.width.div_ceil(self.block_edge),
            height: extent.height.div_ceil(self.block_edge),
            depth: extent.depth,
        }
    }

    /// Bytes of one layer of a level, tightly packed.
    pub(crate) fn slice_bytes(&self, level: u32) -> u64 {
        let blocks = self.level_blocks(level);
        [blocks.width, blocks.height, blocks.depth, self.block_bytes].into_iter().map(u64::from).product()
    }

    /// One copy region per level, all layers in it, one after the other in a buffer; and the buffer's size.
    pub(crate) fn packed_regions(&self) -> (Vec<vk::BufferImageCopy>, u64) {
        let mut end = 0;
        let regions = (0..self.levels).map(|level| {
            let region = vk::BufferImageCopy::default()
                .buffer_offset(end)
                .image_subresource(self.layers_of(level))
                .image_extent(self.level_extent(level));
            // Offsets of regions are multiples of the texel block and of four.
            let bytes = self.slice_bytes(level) * u64::from(self.layers);
            end = (end + bytes).next_multiple_of(u64::from(self.block_bytes.max(4)));
            region
        });
        (regions.collect(), end)
    }

    /// All layers of a level.
    pub(crate) fn layers_of(&self, level: u32) -> vk::ImageSubresourceLayers {
        vk::ImageSubresourceLayers {
            aspect_mask: vk::ImageAspectFlags::COLOR,
            mip_level: level,
            base_array_layer: 0,
            layer_count: self.layers,
        }
    }
}

/// An image and the memory bound to it. Clones are the same image.
#[derive(Clone)]
pub(crate) struct Image {
    shared: Rc<Shared>,
}

struct Shared {
    context: Context,
    handle: vk::Image,
    memory: Memory,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: commands that use the image hold it until they have ended.
        unsafe { self.context.device.destroy_image(self.handle, None) };
    }
}

impl Image {
    /// How an image of this shape is described to Vulkan.
    pub(crate) fn info(shape: &Shape, tiling: vk::ImageTiling) -> vk::ImageCreateInfo<'static> {
        vk::ImageCreateInfo::default()
            .image_type(shape.image_type)
            .format(shape.format)
            .extent(shape.extent)
            .mip_levels(shape.levels)
            .array_layers(shape.layers)
            .samples(vk::SampleCountFlags::TYPE_1)
            .tiling(tiling)
            .usage(vk::ImageUsageFlags::TRANSFER_SRC | vk::ImageUsageFlags::TRANSFER_DST)
            .sharing_mode(vk::SharingMode::EXCLUSIVE)
            .initial_layout(vk::ImageLayout::UNDEFINED)
    }

    /// Makes an image in memory that has `wanted` properties.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn new(
        context: &Context,
        shape: &Shape,
        tiling: vk::ImageTiling,
        wanted: vk::MemoryPropertyFlags,
    ) -> Result<Image> {
        let info = Image::info(shape, tiling);
        // SAFETY: the structure lives through the call; the caller asked the device whether it can have such an image.
        let handle = unsafe { context.device.create_image(&info, None) }.context("vkCreateImage")?;
        match Image::allocate_and_bind(context, handle, wanted) {
            Ok(memory) => Ok(Image { shared: Rc::new(Shared { context: context.clone(), handle, memory }) }),
            Err(error) => {
                // SAFETY: the image was made above and nothing uses it.
                unsafe { context.device.destroy_image(handle, None) };
                Err(error)
            }
        }
    }

    fn allocate_and_bind(
        context: &Context,
        handle: vk::Image,
        wanted: vk::MemoryPropertyFlags,
    ) -> Result<Memory> {
        // SAFETY: the image is alive.
        let requirements = unsafe { context.device.get_image_memory_requirements(handle) };
        let type_index = context
            .memory_type(requirements.memory_type_bits, wanted)
            .context("no memory type suits the image")?;
        let memory = Memory::new(context, requirements.size, type_index, Source::Own)?;
        // SAFETY: image and memory are of this device, new, and large enough for one another.
        unsafe { context.device.bind_image_memory(handle, memory.handle(), 0) }
            .context("vkBindImageMemory")?;
        Ok(memory)
    }

    pub(super) fn handle(&self) -> vk::Image {
        self.shared.handle
    }

    /// The memory behind it.
    pub(crate) fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    /// Where a linear image's only level lies in its memory.
    pub(crate) fn linear_layout(&self) -> vk::SubresourceLayout {
        let part =
            vk::ImageSubresource { aspect_mask: vk::ImageAspectFlags::COLOR, mip_level: 0, array_layer: 0 };
        // SAFETY: the image is alive; only linear images are asked, see the name.
        unsafe { self.shared.context.device.get_image_subresource_layout(self.shared.handle, part) }
    }
}
