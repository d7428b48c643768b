//! Images: written, copied and read back, in every format, tiling, size, level and layer that the device offers.

use anyhow::{Context as _, Result, bail, ensure};
use ash::vk;

use super::{Check, Outcome, passed, skipped};
use crate::gpu::{Buffer, Context, Image, Shape};
use crate::pattern::{self, compare};

/// A format and what its bytes are.
#[derive(Clone, Copy)]
struct Format {
    name: &'static str,
    format: vk::Format,
    block_bytes: u32,
    block_edge: u32,
}

const fn plain(name: &'static str, format: vk::Format, block_bytes: u32) -> Format {
    Format { name, format, block_bytes, block_edge: 1 }
}

const fn compressed(name: &'static str, format: vk::Format, block_bytes: u32) -> Format {
    Format { name, format, block_bytes, block_edge: 4 }
}

const FORMATS: [Format; 12] = [
    plain("r8_unorm", vk::Format::R8_UNORM, 1),
    plain("r8g8_unorm", vk::Format::R8G8_UNORM, 2),
    plain("r16_uint", vk::Format::R16_UINT, 2),
    plain("r8g8b8a8_unorm", vk::Format::R8G8B8A8_UNORM, 4),
    plain("b8g8r8a8_srgb", vk::Format::B8G8R8A8_SRGB, 4),
    plain("a2b10g10r10_unorm", vk::Format::A2B10G10R10_UNORM_PACK32, 4),
    plain("r32_sfloat", vk::Format::R32_SFLOAT, 4),
    plain("r16g16b16a16_sfloat", vk::Format::R16G16B16A16_SFLOAT, 8),
    plain("r32g32_uint", vk::Format::R32G32_UINT, 8),
    plain("r32g32b32a32_sfloat", vk::Format::R32G32B32A32_SFLOAT, 16),
    compressed("bc1_rgb_unorm", vk::Format::BC1_RGB_UNORM_BLOCK, 8),
    compressed("bc7_unorm", vk::Format::BC7_UNORM_BLOCK, 16),
];

/// Formats in which parts of images are copied, one for each size of texel that matters.
const PART_FORMATS: [usize; 5] = [0, 2, 3, 9, 10];

pub(super) fn checks() -> Vec<Check> {
    let mut checks = Vec::new();
    for (name, tiling) in [("optimal", vk::ImageTiling::OPTIMAL), ("linear", vk::ImageTiling::LINEAR)] {
        for format in FORMATS {
            let name = format!("images.{name}.{}", format.name);
            checks.push(Check::new(name, move |context| whole_images(context, format, tiling)));
        }
        for index in PART_FORMATS {
            let format = FORMATS[index];
            let name = format!("images.{name}_parts.{}", format.name);
            checks.push(Check::new(name, move |context| parts(context, format, tiling)));
        }
    }
    checks.push(Check::new("images.linear_mapped", linear_mapped));
    checks
}

/// Sizes, levels and layers. What a device can't have is cut to what it can.
fn shapes(format: Format) -> Vec<Shape> {
    let flat = |width, height, levels, layers| {
        shape(format, vk::ImageType::TYPE_2D, (width, height, 1), levels, layers)
    };
    let line = |width, levels, layers| shape(format, vk::ImageType::TYPE_1D, (width, 1, 1), levels, layers);
    let solid = |width, height, depth, levels| {
        shape(format, vk::ImageType::TYPE_3D, (width, height, depth), levels, 1)
    };
    vec![
        flat(1, 1, 1, 1),
        flat(3, 5, 1, 1),
        flat(64, 64, 1, 1),
        flat(129, 67, 1, 1),
        flat(1000, 3, 1, 1),
        flat(5, 700, 1, 1),
        flat(256, 256, 9, 1),
        flat(100, 60, 7, 3),
        flat(33, 33, 1, 6),
        flat(600, 500, 10, 2),
        line(300, 9, 4),
        solid(33, 17, 9, 1),
        solid(32, 16, 16, 6),
    ]
}

fn shape(
    format: Format,
    image_type: vk::ImageType,
    extent: (u32, u32, u32),
    levels: u32,
    layers: u32,
) -> Shape {
    Shape {
        format: format.format,
        block_bytes: format.block_bytes,
        block_edge: format.block_edge,
        image_type,
        extent: vk::Extent3D { width: extent.0, height: extent.1, depth: extent.2 },
        levels,
        layers,
    }
}

/// The shape, with as many levels and layers as the device offers; nothing when it can't have such an image.
fn fitted(context: &Context, shape: Shape, tiling: vk::ImageTiling) -> Option<Shape> {
    let limits = context.image_limits(&Image::info(&shape, tiling))?;
    let most = limits.max_extent;
    let extent = shape.extent;
    let fits = extent.width <= most.width && extent.height <= most.height && extent.depth <= most.depth;
    fits.then(|| Shape {
        levels: shape.levels.min(limits.max_mip_levels),
        layers: shape.layers.min(limits.max_array_layers),
        ..shape
    })
}

fn whole_images(context: &Context, format: Format, tiling: vk::ImageTiling) -> Result<Outcome> {
    let mut done = 0;
    let mut converted = 0;
    for wanted in shapes(format) {
        let Some(shape) = fitted(context, wanted, tiling) else { continue };
        round_trip(context, &shape, tiling, tiling).with_context(|| describe(&shape))?;
        done += 1;
        if tiling == vk::ImageTiling::OPTIMAL
            && let Some(shape) = fitted(context, shape, vk::ImageTiling::LINEAR)
        {
            let linear = vk::ImageTiling::LINEAR;
            round_trip(context, &shape, tiling, linear)
                .with_context(|| format!("to linear, {}", describe(&shape)))?;
            round_trip(context, &shape, linear, tiling)
                .with_context(|| format!("from linear, {}", describe(&shape)))?;
            converted += 1;
        }
    }
    match (done, converted) {
        (0, _) => skipped("the device has no such images"),
        (_, 0) => passed(format!("{done} shapes")),
        _ => passed(format!("{done} shapes, {converted} of them to linear and back")),
    }
}

/// Buffer to image to image to buffer, all levels and layers.
fn round_trip(
    context: &Context,
    shape: &Shape,
    first: vk::ImageTiling,
    second: vk::ImageTiling,
) -> Result<()> {
    let (regions, size) = shape.packed_regions();
    let bytes = pattern::bytes(size ^ u64::from(shape.block_bytes), usize::try_from(size)?);
    let source = Buffer::holding(context, &bytes)?;
    let result = Buffer::staging(context, size)?;
    let local = vk::MemoryPropertyFlags::DEVICE_LOCAL;
    let from = Image::new(context, shape, first, local)?;
    let to = Image::new(context, shape, second, local)?;
    context.run(|commands| {
        commands.transition(&from, vk::ImageLayout::UNDEFINED, vk::ImageLayout::TRANSFER_DST_OPTIMAL);
        commands.transition(&to, vk::ImageLayout::UNDEFINED, vk::ImageLayout::TRANSFER_DST_OPTIMAL);
        commands.upload(&source, &from, &regions);
        commands.transition(
            &from,
            vk::ImageLayout::TRANSFER_DST_OPTIMAL,
            vk::ImageLayout::TRANSFER_SRC_OPTIMAL,
        );
        commands.copy_image(&from, &to, &whole_copies(shape));
        commands.transition(
            &to,
            vk::ImageLayout::TRANSFER_DST_OPTIMAL,
            vk::ImageLayout::TRANSFER_SRC_OPTIMAL,
        );
        commands.download(&to, &result, &regions);
    })?;
    let found = result.contents()?;
    for (level, region) in (0..shape.levels).zip(&regions) {
        let slice = usize::try_from(shape.slice_bytes(level))?;
        let start = usize::try_from(region.buffer_offset)?;
        for layer in 0..shape.layers as usize {
            let range = start + layer * slice..start + (layer + 1) * slice;
            compare_slice(shape, level, layer, &bytes[range.clone()], &found[range])?;
        }
    }
    Ok(())
}

fn whole_copies(shape: &Shape) -> Vec<vk::ImageCopy> {
    let copy = |level| {
        vk::ImageCopy::default()
            .src_subresource(shape.layers_of(level))
            .dst_subresource(shape.layers_of(level))
            .extent(shape.level_extent(level))
    };
    (0..shape.levels).map(copy).collect()
}

/// Compares a layer of a level; where it differs is said in texels.
fn compare_slice(shape: &Shape, level: u32, layer: usize, expected: &[u8], found: &[u8]) -> Result<()> {
    let Err(error) = compare(&format!("level {level}, layer {layer}"), expected, found) else {
        return Ok(());
    };
    let first = expected.iter().zip(found).position(|(a, b)| a != b).unwrap_or(0);
    let blocks = shape.level_blocks(level);
    let (width, height) = (blocks.width as usize, blocks.height as usize);
    let block = first / shape.block_bytes as usize;
    let (x, y, z) = (block % width, block / width % height, block / width / height);
    bail!("{error}; that is byte {} of block ({x}, {y}, {z})", first % shape.block_bytes as usize)
}

fn describe(shape: &Shape) -> String {
    let vk::Extent3D { width, height, depth } = shape.extent;
    format!("{:?} {width}x{height}x{depth}, {} levels, {} layers", shape.format, shape.levels, shape.layers)
}

/// A rectangle, in blocks.
#[derive(Clone, Copy)]
struct Rectangle {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
}

/// A picture in the program's memory: rows of blocks.
struct Picture {
    block: usize,
    width: usize,
    bytes: Vec<u8>,
}

impl Picture {
    fn new(seed: u64, block: usize, width: usize, height: usize) -> Picture {
        Picture { block, width, bytes: pattern::bytes(seed, block * width * height) }
    }

    fn row(&self, x: usize, y: usize, width: usize) -> &[u8] {
        let start = (y * self.width + x) * self.block;
        &self.bytes[start..start + width * self.block]
    }

    /// Copies a rectangle of `from` to the place of `to` in this picture.
    fn paste(&mut self, from: &Picture, area: Rectangle, (x, y): (usize, usize)) {
        for line in 0..area.height {
            let start = ((y + line) * self.width + x) * self.block;
            let row = from.row(area.x, area.y + line, area.width);
            self.bytes[start..start + row.len()].copy_from_slice(row);
        }
    }
}

/// Rectangles of images, from and to buffers with longer rows; what lies beside them must stay.
fn parts(context: &Context, format: Format, tiling: vk::ImageTiling) -> Result<Outcome> {
    // In blocks: the images, the buffers' rows, what is copied.
    const WIDTH: usize = 97;
    const HEIGHT: usize = 61;
    const ROW: usize = 83;
    const ROWS: usize = 50;
    const AREA: Rectangle = Rectangle { x: 13, y: 7, width: 51, height: 33 };
    const MOVED: (usize, usize) = (29, 21);
    let edge = format.block_edge;
    let (width, height) = (WIDTH as u32 * edge, HEIGHT as u32 * edge);
    let wanted = shape(format, vk::ImageType::TYPE_2D, (width, height, 1), 1, 1);
    let Some(shape) = fitted(context, wanted, tiling) else {
        return skipped("the device has no such images");
    };
    let block = format.block_bytes as usize;
    let (mut first, mut second) =
        (Picture::new(1, block, WIDTH, HEIGHT), Picture::new(2, block, WIDTH, HEIGHT));
    let patch = Picture::new(3, block, ROW, ROWS);

    let local = vk::MemoryPropertyFlags::DEVICE_LOCAL;
    let images = [Image::new(context, &shape, tiling, local)?, Image::new(context, &shape, tiling, local)?];
    let buffers = [Buffer::holding(context, &first.bytes)?, Buffer::holding(context, &second.bytes)?];
    let patch_buffer = Buffer::holding(context, &patch.bytes)?;
    let result = Buffer::staging(context, second.bytes.len() as u64)?;
    let whole =
        vk::BufferImageCopy::default().image_subresource(shape.layers_of(0)).image_extent(shape.extent);
    let at = |(x, y): (usize, usize)| vk::Offset3D {
        x: (x as u32 * edge) as i32,
        y: (y as u32 * edge) as i32,
        z: 0,
    };
    let extent =
        vk::Extent3D { width: AREA.width as u32 * edge, height: AREA.height as u32 * edge, depth: 1 };
    // Into the first image at the area's place, from the same place of the patch.
    let upload = vk::BufferImageCopy::default()
        .buffer_offset(((AREA.y * ROW + AREA.x) * block) as u64)
        .buffer_row_length(ROW as u32 * edge)
        .buffer_image_height(ROWS as u32 * edge)
        .image_subresource(shape.layers_of(0))
        .image_offset(at((AREA.x, AREA.y)))
        .image_extent(extent);
    let moved = vk::ImageCopy::default()
        .src_subresource(shape.layers_of(0))
        .src_offset(at((AREA.x, AREA.y)))
        .dst_subresource(shape.layers_of(0))
        .dst_offset(at(MOVED))
        .extent(extent);
    ensure!(upload.buffer_offset % 4 == 0 || block < 4, "the buffer's offset is not allowed");
    context.run(|commands| {
        for (image, buffer) in images.iter().zip(&buffers) {
            commands.transition(image, vk::ImageLayout::UNDEFINED, vk::ImageLayout::TRANSFER_DST_OPTIMAL);
            commands.upload(buffer, image, &[whole]);
        }
        commands.barrier();
        commands.upload(&patch_buffer, &images[0], &[upload]);
        commands.transition(
            &images[0],
            vk::ImageLayout::TRANSFER_DST_OPTIMAL,
            vk::ImageLayout::TRANSFER_SRC_OPTIMAL,
        );
        commands.barrier();
        commands.copy_image(&images[0], &images[1], &[moved]);
        commands.transition(
            &images[1],
            vk::ImageLayout::TRANSFER_DST_OPTIMAL,
            vk::ImageLayout::TRANSFER_SRC_OPTIMAL,
        );
    })?;
    first.paste(&patch, AREA, (AREA.x, AREA.y));
    second.paste(&first, AREA, MOVED);
    for (image, picture) in images.iter().zip([&first, &second]) {
        context.run(|commands| commands.download(image, &result, &[whole]))?;
        compare_slice(&shape, 0, 0, &picture.bytes, &result.contents()?)?;
    }
    // A rectangle out of the second image into longer rows.
    let mut expected = Picture::new(4, block, ROW, ROWS);
    let rows = Buffer::holding(context, &expected.bytes)?;
    let download = vk::BufferImageCopy { image_offset: at(MOVED), ..upload };
    context.run(|commands| commands.download(&images[1], &rows, &[download]))?;
    let area = Rectangle { x: MOVED.0, y: MOVED.1, ..AREA };
    expected.paste(&second, area, (AREA.x, AREA.y));
    compare("a rectangle into longer rows", &expected.bytes, &rows.contents()?)?;
    passed("rectangles in, between and out")
}

/// A linear image seen by the program through its memory.
fn linear_mapped(context: &Context) -> Result<Outcome> {
    let tiling = vk::ImageTiling::LINEAR;
    let wanted = shape(FORMATS[3], vk::ImageType::TYPE_2D, (77, 45, 1), 1, 1);
    let Some(shape) = fitted(context, wanted, tiling) else {
        return skipped("the device has no such images");
    };
    let (regions, size) = shape.packed_regions();
    let row = shape.extent.width as usize * shape.block_bytes as usize;
    let bytes = pattern::bytes(31, usize::try_from(size)?);
    let source = Buffer::holding(context, &bytes)?;
    let image = Image::new(context, &shape, tiling, vk::MemoryPropertyFlags::HOST_VISIBLE)?;
    context.run(|commands| {
        commands.transition(&image, vk::ImageLayout::UNDEFINED, vk::ImageLayout::TRANSFER_DST_OPTIMAL);
        commands.upload(&source, &image, &regions);
        commands.transition(&image, vk::ImageLayout::TRANSFER_DST_OPTIMAL, vk::ImageLayout::GENERAL);
    })?;
    let layout = image.linear_layout();
    let place = |line: usize| layout.offset + line as u64 * layout.row_pitch;
    for (line, expected) in bytes.chunks_exact(row).enumerate() {
        compare(
            &format!("line {line}, read by the program"),
            expected,
            &image.memory().read(place(line), row)?,
        )?;
    }
    let bytes = pattern::bytes(37, bytes.len());
    for (line, content) in bytes.chunks_exact(row).enumerate() {
        image.memory().write(place(line), content)?;
    }
    let result = Buffer::staging(context, size)?;
    context.run(|commands| {
        commands.transition(&image, vk::ImageLayout::GENERAL, vk::ImageLayout::TRANSFER_SRC_OPTIMAL);
        commands.download(&image, &result, &regions);
    })?;
    compare_slice(&shape, 0, 0, &bytes, &result.contents()?)?;
    passed(format!("rows {} bytes apart", layout.row_pitch))
}
