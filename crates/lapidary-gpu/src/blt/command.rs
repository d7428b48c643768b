//! From a blitter command's dwords to what it does.
//!
//! Layouts are those of the hardware generations that clients of the virtual GPU program for. Fields that choose caches, memory types,
//! encryption and compression are ignored.

use super::{
    Action,
    rect::{RectCopy, RectFill},
    span::{Pattern, SpanCopy, SpanFill},
    surface::{Image, Kind, Surface},
    tiling::Tiling,
};
use crate::{
    bus::GpuVa,
    cs::{decode::BlitOp, regs::LegacyTiling},
};

type Parsed = Result<Option<Action>, &'static str>;

/// Decodes a whole command. `None` if it touches nothing.
pub(super) fn action(op: BlitOp, command: &[u32], legacy: LegacyTiling) -> Parsed {
    let command = Dwords(command);
    match op {
        BlitOp::BlockCopy => block_copy(&command),
        BlitOp::FastCopy => fast_copy(&command),
        BlitOp::FastColor => fast_color(&command),
        BlitOp::XySrcCopy => xy_src_copy(&command, legacy),
        BlitOp::XyColor => xy_color(&command, legacy),
        BlitOp::MemCopy => mem_copy(&command),
        BlitOp::MemSet => mem_set(&command),
        BlitOp::CtrlSurfCopy => Ok(None),
    }
}

/// A command's dwords.
struct Dwords<'a>(&'a [u32]);

impl Dwords<'_> {
    /// Bits `low..=high` of dword `index`.
    fn bits(&self, index: usize, low: u32, high: u32) -> u64 {
        let mask = (1 << (high - low + 1)) - 1;
        u64::from(self.0[index]) >> low & mask
    }

    fn bit(&self, index: usize, bit: u32) -> bool {
        self.bits(index, bit, bit) != 0
    }

    fn address(&self, index: usize) -> GpuVa {
        GpuVa::new(u64::from(self.0[index]) | u64::from(self.0[index + 1]) << 32)
    }

    /// A position: x in the low half of the dword, y in the high half.
    fn point(&self, index: usize) -> Result<(u64, u64), &'static str> {
        let coordinate = |value: u64| u64::try_from(value as u16 as i16).map_err(|_| "negative coordinate");
        Ok((coordinate(self.bits(index, 0, 15))?, coordinate(self.bits(index, 16, 31))?))
    }

    /// An offset: 14 bits each of x and y.
    fn offset(&self, index: usize) -> (u64, u64) {
        (self.bits(index, 0, 13), self.bits(index, 16, 29))
    }

    fn need(&self, dwords: usize) -> Result<(), &'static str> {
        if self.0.len() < dwords { Err("too short") } else { Ok(()) }
    }
}

/// A rectangle of pixels.
#[derive(Clone, Copy)]
struct Rect {
    x: u64,
    y: u64,
    width: u64,
    height: u64,
}

impl Rect {
    /// The rectangle between the points in dwords `index` and `index + 1`; `None` if it is empty.
    fn new(command: &Dwords<'_>, index: usize) -> Result<Option<Self>, &'static str> {
        let ((x1, y1), (x2, y2)) = (command.point(index)?, command.point(index + 1)?);
        let empty = x2 <= x1 || y2 <= y1;
        Ok((!empty).then(|| Self { x: x1, y: y1, width: x2 - x1, height: y2 - y1 }))
    }
}

/// Bytes of a pixel by the code of the block commands.
fn block_depth(code: u64) -> Result<u64, &'static str> {
    match code {
        0..=3 => Ok(1 << code),
        4 => Ok(12),
        5 => Ok(16),
        _ => Err("reserved colour depth"),
    }
}

fn block_tiling(code: u64) -> Tiling {
    match code {
        0 => Tiling::Linear,
        1 => Tiling::X,
        2 => Tiling::Tile4,
        _ => Tiling::Tile64,
    }
}

/// A pitch field: linear surfaces count bytes, tiled ones dwords.
fn pitch(tiling: Tiling, field: u64) -> u64 {
    if tiling == Tiling::Linear { field } else { 4 * field }
}

/// The image that three dwords from `index` on describe; the plain image if the command does not have them.
fn image(command: &Dwords<'_>, index: usize, depth: u64) -> Result<Image, &'static str> {
    if command.0.len() < index + 3 {
        return Ok(Image {
            kind: Kind::Two,
            width: 0,
            height: 0,
            level: 0,
            slice: 0,
            slice_pitch: 0,
            align_x: 1,
            align_y: 1,
            tail: u32::MAX,
        });
    }
    let kind = match command.bits(index, 29, 31) {
        0 => Kind::One,
        1 | 3 => Kind::Two,
        2 => Kind::Three,
        _ => return Err("reserved surface type"),
    };
    // Horizontal alignment is in bytes, but in pixels where a pixel's size is not a power of two.
    let align = 16 << command.bits(index + 2, 0, 1);
    let align_x = if depth.is_power_of_two() { (align / depth).max(1) } else { align };
    let align_y = match command.bits(index + 2, 3, 4) {
        0 | 1 => 4,
        2 => 8,
        _ => 16,
    };
    Ok(Image {
        kind,
        width: command.bits(index, 14, 27) + 1,
        height: command.bits(index, 0, 13) + 1,
        level: command.bits(index + 1, 0, 3) as u32,
        slice: command.bits(index + 2, 21, 31),
        slice_pitch: command.bits(index + 1, 4, 18) << 2,
        align_x,
        align_y,
        tail: command.bits(index + 2, 8, 11) as u32,
    })
}

fn block_copy(command: &Dwords<'_>) -> Parsed {
    command.need(12)?;
    if command.bits(0, 12, 13) == 3 {
        return Err("reserved mode of operation");
    }
    let depth = block_depth(command.bits(0, 19, 21))?;
    let Some(rect) = Rect::new(command, 2)? else { return Ok(None) };
    let side = |control: usize, base: usize, description: usize| {
        let tiling = block_tiling(command.bits(control, 30, 31));
        let pitch = pitch(tiling, command.bits(control, 0, 17) + 1);
        image(command, description, depth)?.place(command.address(base), pitch, tiling, depth)
    };
    let (source_x, source_y) = command.point(7)?;
    let (offset_x, offset_y) = command.offset(11);
    let source = side(8, 9, 19)?.moved(source_x + offset_x, source_y + offset_y, depth);
    let (offset_x, offset_y) = command.offset(6);
    let destination = side(1, 4, 16)?.moved(rect.x + offset_x, rect.y + offset_y, depth);
    Ok(copy(source, destination, rect.width * depth, rect.height))
}

fn fast_color(command: &Dwords<'_>) -> Parsed {
    command.need(11)?;
    if command.bits(0, 12, 13) > 1 {
        return Err("reserved mode of operation");
    }
    if command.bits(0, 9, 11) != 0 {
        return Err("multisampled fills are not supported");
    }
    let depth = block_depth(command.bits(0, 19, 21))?;
    let Some(rect) = Rect::new(command, 2)? else { return Ok(None) };
    let tiling = block_tiling(command.bits(1, 30, 31));
    let pitch = pitch(tiling, command.bits(1, 0, 17) + 1);
    let (offset_x, offset_y) = command.offset(6);
    let destination = image(command, 13, depth)?.place(command.address(4), pitch, tiling, depth)?.moved(
        rect.x + offset_x,
        rect.y + offset_y,
        depth,
    );
    let mut pixel = [0; 16];
    for (bytes, colour) in pixel.chunks_exact_mut(4).zip(&command.0[7..11]) {
        bytes.copy_from_slice(&colour.to_le_bytes());
    }
    Ok(fill(destination, Pattern::new(&pixel[..depth as usize]), rect.width * depth, rect.height))
}

fn fast_copy(command: &Dwords<'_>) -> Parsed {
    command.need(10)?;
    let depth = match command.bits(1, 24, 26) {
        0 => 1,
        1 | 2 => 2,
        3 => 4,
        4 => 8,
        5 => 16,
        _ => return Err("reserved colour depth"),
    };
    let tiling = |code: u64, tile4: bool| match code {
        0 => Tiling::Linear,
        1 => Tiling::X,
        2 if tile4 => Tiling::Tile4,
        2 => Tiling::Y,
        _ => Tiling::Tile64,
    };
    let Some(rect) = Rect::new(command, 2)? else { return Ok(None) };
    let side = |control: usize, base: usize, tiling: Tiling, (x, y): (u64, u64)| {
        let swizzle = tiling.swizzle(depth, false)?;
        let pitch = pitch(tiling, command.bits(control, 0, 15));
        let surface = Surface { swizzle, ..Surface::linear(command.address(base), pitch) };
        Ok::<_, &'static str>(surface.moved(x, y, depth))
    };
    let source = side(7, 8, tiling(command.bits(0, 20, 21), command.bit(1, 31)), command.point(6)?)?;
    let destination = side(1, 4, tiling(command.bits(0, 13, 14), command.bit(1, 30)), (rect.x, rect.y))?;
    Ok(copy(source, destination, rect.width * depth, rect.height))
}

/// Depth of the legacy commands, and whether their write masks let everything through. `None` if they let nothing through.
fn legacy_depth(command: &Dwords<'_>) -> Result<Option<u64>, &'static str> {
    if command.bit(1, 30) {
        return Err("clipping is not supported");
    }
    match command.bits(1, 24, 25) {
        0 => Ok(Some(1)),
        1 | 2 => Ok(Some(2)),
        _ => match command.bits(0, 20, 21) {
            0 => Ok(None),
            3 => Ok(Some(4)),
            _ => Err("partial write masks are not supported"),
        },
    }
}

fn legacy_surface(
    command: &Dwords<'_>,
    pitch_index: usize,
    base: usize,
    tiling: Tiling,
    depth: u64,
) -> Result<Surface, &'static str> {
    let field = command.bits(pitch_index, 0, 15);
    if field & 0x8000 != 0 {
        return Err("negative pitch");
    }
    let swizzle = tiling.swizzle(depth, false)?;
    Ok(Surface { swizzle, ..Surface::linear(command.address(base), pitch(tiling, field)) })
}

fn legacy_tiling(tiled: bool, y: bool) -> Tiling {
    match (tiled, y) {
        (false, _) => Tiling::Linear,
        (true, false) => Tiling::X,
        (true, true) => Tiling::Y,
    }
}

fn xy_src_copy(command: &Dwords<'_>, legacy: LegacyTiling) -> Parsed {
    command.need(10)?;
    let Some(depth) = legacy_depth(command)? else { return Ok(None) };
    let Some(rect) = Rect::new(command, 2)? else { return Ok(None) };
    let destination_tiling = legacy_tiling(command.bit(0, 11), legacy.destination_y);
    let destination = legacy_surface(command, 1, 4, destination_tiling, depth)?.moved(rect.x, rect.y, depth);
    let width = rect.width * depth;
    match command.bits(1, 16, 23) {
        0xcc => {
            let (x, y) = command.point(6)?;
            let source_tiling = legacy_tiling(command.bit(0, 15), legacy.source_y);
            let source = legacy_surface(command, 7, 8, source_tiling, depth)?.moved(x, y, depth);
            Ok(copy(source, destination, width, rect.height))
        }
        0x00 => Ok(fill(destination, Pattern::new(&[0x00]), width, rect.height)),
        0xff => Ok(fill(destination, Pattern::new(&[0xff]), width, rect.height)),
        _ => Err("this raster operation is not supported"),
    }
}

fn xy_color(command: &Dwords<'_>, legacy: LegacyTiling) -> Parsed {
    command.need(7)?;
    let Some(depth) = legacy_depth(command)? else { return Ok(None) };
    let Some(rect) = Rect::new(command, 2)? else { return Ok(None) };
    let tiling = legacy_tiling(command.bit(0, 11), legacy.destination_y);
    let destination = legacy_surface(command, 1, 4, tiling, depth)?.moved(rect.x, rect.y, depth);
    let colour = command.0[6].to_le_bytes();
    let pattern = match command.bits(1, 16, 23) {
        0xf0 => Pattern::new(&colour[..depth as usize]),
        0x00 => Pattern::new(&[0x00]),
        0xff => Pattern::new(&[0xff]),
        _ => return Err("this raster operation is not supported"),
    };
    Ok(fill(destination, pattern, rect.width * depth, rect.height))
}

/// Bytes of a page in page mode.
const COPY_PAGE: u64 = 256;

fn mem_copy(command: &Dwords<'_>) -> Parsed {
    command.need(10)?;
    let (source, destination) = (command.address(5), command.address(7));
    let width = command.bits(1, 0, 23) + 1;
    match (command.bits(0, 17, 18), command.bit(0, 19)) {
        (0, false) => Ok(Some(Action::CopySpan(SpanCopy::new(source, destination, width)))),
        (0, true) => Ok(Some(Action::CopySpan(SpanCopy::new(source, destination, width * COPY_PAGE)))),
        (1, false) => {
            let source = Surface::linear(source, command.bits(3, 0, 17) + 1);
            let destination = Surface::linear(destination, command.bits(4, 0, 17) + 1);
            Ok(copy(source, destination, command.bits(1, 0, 17) + 1, command.bits(2, 0, 17) + 1))
        }
        _ => Err("reserved copy type"),
    }
}

fn mem_set(command: &Dwords<'_>) -> Parsed {
    command.need(7)?;
    let pattern = Pattern::new(&[command.bits(6, 24, 31) as u8]);
    let destination = command.address(4);
    match command.bits(0, 17, 18) {
        0 => Ok(Some(Action::FillSpan(SpanFill::new(destination, command.bits(1, 0, 23) + 1, pattern)))),
        1 => {
            let destination = Surface::linear(destination, command.bits(3, 0, 17) + 1);
            Ok(fill(destination, pattern, command.bits(1, 0, 17) + 1, command.bits(2, 0, 17) + 1))
        }
        _ => Err("reserved fill type"),
    }
}

/// A copy of `width` bytes by `rows`; of one piece, if it is one in memory.
fn copy(source: Surface, destination: Surface, width: u64, rows: u64) -> Option<Action> {
    if is_span(&source, width, rows) && is_span(&destination, width, rows) {
        let (from, to) = (source.address(0, 0), destination.address(0, 0));
        return Some(Action::CopySpan(SpanCopy::new(from, to, width * rows)));
    }
    Some(Action::CopyRect(Box::new(RectCopy::new(source, destination, width, rows))))
}

/// A fill of `width` bytes by `rows`; of one piece, if it is one in memory.
fn fill(destination: Surface, pattern: Pattern, width: u64, rows: u64) -> Option<Action> {
    if is_span(&destination, width, rows) {
        return Some(Action::FillSpan(SpanFill::new(destination.address(0, 0), width * rows, pattern)));
    }
    Some(Action::FillRect(Box::new(RectFill::new(destination, pattern, width, rows))))
}

fn is_span(surface: &Surface, width: u64, rows: u64) -> bool {
    surface.swizzle.is_none() && (surface.pitch == width || rows == 1)
}
