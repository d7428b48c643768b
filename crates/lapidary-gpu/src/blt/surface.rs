//! Where a rectangle of an image lies in memory.
//!
//! An image has levels (each half the size of the one before) and slices (array elements, faces, or slices of a volume). All levels of a slice
//! share one rectangle; slices follow each other at a distance of "QPitch" rows:
//!
//! ```text
//!   +---------------------+
//!   |       level 0       |
//!   |                     |
//!   +-----------+---------+
//!   |  level 1  | level 2 |     width and height of a level
//!   |           +----+----+     are rounded up to the alignment
//!   |           | 3  |
//!   +-----------+----+
//! ```
//!
//! One-dimensional linear images put their levels side by side. Tile64 aligns levels to tiles, and packs the small ones into one tile, the mip tail.

use crate::{
    blt::tiling::{Swizzle, Tiling},
    bus::GpuVa,
};

/// A rectangle's place: from a corner on, over rows of tiles or plain rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surface {
    /// Address of the image.
    pub base: GpuVa,
    /// Bytes from one row to the next (in tiles: from one row of the first tile to the next, as if it were not tiled).
    pub pitch: u64,
    /// How it is tiled; `None` if it is linear.
    pub swizzle: Option<Swizzle>,
    /// Left edge of the rectangle, in bytes.
    pub x: u64,
    /// Upper edge of the rectangle, in rows.
    pub y: u64,
    /// Slice in the tile, for volumes.
    pub z: u64,
}

impl Surface {
    /// A linear surface.
    pub fn linear(base: GpuVa, pitch: u64) -> Self {
        Self { base, pitch, swizzle: None, x: 0, y: 0, z: 0 }
    }

    /// Address of the byte that is `x` bytes and `y` rows from the rectangle's corner.
    pub fn address(&self, x: u64, y: u64) -> GpuVa {
        let (x, y) = (self.x + x, self.y + y);
        self.base.offset(match &self.swizzle {
            None => y * self.pitch + x,
            Some(swizzle) => swizzle.surface_offset(self.pitch, x, y, self.z),
        })
    }

    /// Moves the rectangle's corner by `x` pixels of `depth` bytes and `y` rows.
    #[must_use]
    pub fn moved(self, x: u64, y: u64, depth: u64) -> Self {
        Self { x: self.x + x * depth, y: self.y + y, ..self }
    }
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One dimension.
    One,
    /// Two dimensions, faces of a cube included.
    Two,
    /// A volume.
    Three,
}

/// A level and slice of an image. Sizes are those of level 0 in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// What it is.
    pub kind: Kind,
    /// Width in pixels.
    pub width: u64,
    /// Height in pixels.
    pub height: u64,
    /// Which level.
    pub level: u32,
    /// Which array element or slice.
    pub slice: u64,
    /// Rows from one slice to the next; pixels in one-dimensional linear images.
    pub slice_pitch: u64,
    /// Width alignment of levels, in pixels. Tile64 aligns to tiles instead.
    pub align_x: u64,
    /// Height alignment of levels, in rows. Tile64 aligns to tiles instead.
    pub align_y: u64,
    /// First level of the mip tail.
    pub tail: u32,
}

impl Image {
    /// The place of this level and slice in an image at `base`, of pixels of `depth` bytes.
    ///
    /// # Errors
    /// Levels or tilings that do not exist.
    pub fn place(
        &self,
        base: GpuVa,
        pitch: u64,
        tiling: Tiling,
        depth: u64,
    ) -> Result<Surface, &'static str> {
        let volume = self.kind == Kind::Three;
        let swizzle = tiling.swizzle(depth, volume)?;
        let surface = Surface { base, pitch, swizzle, x: 0, y: 0, z: 0 };
        Ok(match (swizzle, tiling, self.kind) {
            (Some(swizzle), Tiling::Tile64, _) => self.place_tile64(surface, &swizzle, depth)?,
            (None, _, Kind::One) => {
                let x =
                    self.levels_before(self.level).map(|l| self.level_width(l, self.align_x)).sum::<u64>();
                surface.moved(x + self.slice * self.slice_pitch, 0, depth)
            }
            _ => {
                let (x, y) = self.corner(self.level, self.align_x, self.align_y);
                surface.moved(x, y + self.slice * self.slice_pitch, depth)
            }
        })
    }

    fn place_tile64(&self, surface: Surface, swizzle: &Swizzle, depth: u64) -> Result<Surface, &'static str> {
        let (tile_width, tile_height) = (swizzle.width() / depth, swizzle.height());
        let (x, y) = self.corner(self.level.min(self.tail), tile_width, tile_height);
        let (tail_x, tail_y, tail_z) = match self.level.checked_sub(self.tail) {
            None => (0, 0, 0),
            Some(index) if self.kind == Kind::Three => tail_3d(index, swizzle, depth)?,
            Some(index) => tail_2d(index, swizzle, depth)?,
        };
        // Slices of a volume share a tile; others each begin at a new one.
        let z = self.slice + tail_z;
        let rows = z / swizzle.depth() * (self.slice_pitch / tile_height * tile_height);
        let z = z % swizzle.depth();
        Ok(Surface { z, ..surface }.moved(x + tail_x, y + tail_y + rows, depth))
    }

    /// Upper left corner of a level in its slice.
    fn corner(&self, level: u32, align_x: u64, align_y: u64) -> (u64, u64) {
        self.levels_before(level).fold((0, 0), |(x, y), before| match before {
            1 => (x + self.level_width(1, align_x), y),
            _ => (x, y + minify(self.height, before).next_multiple_of(align_y)),
        })
    }

    fn levels_before(&self, level: u32) -> std::ops::Range<u32> {
        0..level
    }

    fn level_width(&self, level: u32, align: u64) -> u64 {
        minify(self.width, level).next_multiple_of(align)
    }
}

fn minify(size: u64, level: u32) -> u64 {
    (size >> level).max(1)
}

/// Corner of the `index`th level of a mip tail, in pixels: the tile is halved again and again, the lower or right half being the larger level,
/// until cells of 256 bytes are left; the last ones share a cell.
fn tail_2d(index: u32, swizzle: &Swizzle, depth: u64) -> Result<(u64, u64, u64), &'static str> {
    let (width, height) = (swizzle.width() / depth, swizzle.height());
    let (cell_width, cell_height) = (width / 16, height / 16);
    let last = match depth {
        1 => [(0, 4), (0, 8), (0, 12)],
        2 => [(0, 4), (8, 0), (8, 4)],
        4 => [(0, 4), (4, 0), (4, 4)],
        8 => [(2, 0), (4, 0), (6, 0)],
        _ => [(1, 0), (2, 0), (3, 0)],
    };
    let (x, y) = match index {
        0 => (width / 2, 0),
        1 => (0, height / 2),
        2 => (width / 4, 0),
        3 => (0, height / 4),
        4 => (width / 8, 0),
        5 => (cell_width, 2 * cell_height),
        6 => (0, 3 * cell_height),
        7 => (0, 2 * cell_height),
        8 => (cell_width, cell_height),
        9 => (cell_width, 0),
        10 => (0, cell_height),
        11 => (0, 0),
        12..15 => last[index as usize - 12],
        _ => return Err("level beyond the mip tail"),
    };
    Ok((x, y, 0))
}

/// The same for a volume.
fn tail_3d(index: u32, swizzle: &Swizzle, depth: u64) -> Result<(u64, u64, u64), &'static str> {
    let (width, height, slices) = (swizzle.width() / depth, swizzle.height(), swizzle.depth());
    // Below a sixteenth of the tile: x and y in one of these cells, which differ by pixel size.
    let cells = match depth {
        1 | 2 => [(0, 4, 0), (0, 0, 4)],
        4 => [(4, 0, 0), (0, 4, 0)],
        8 => [(4, 0, 0), (2, 0, 0)],
        _ => [(2, 0, 0), (1, 0, 0)],
    };
    let add = |a: (u64, u64, u64), b: (u64, u64, u64)| (a.0 + b.0, a.1 + b.1, a.2 + b.2);
    let quarter = (0, 0, slices / 4);
    Ok(match index {
        0 => (width / 2, 0, 0),
        1 => (0, height / 2, 0),
        2 => (0, 0, slices / 2),
        3 => (width / 4, 0, 0),
        4 => (0, height / 4, 0),
        5 => add(quarter, cells[0]),
        6 => add(quarter, cells[1]),
        7 => quarter,
        8 => add(cells[0], cells[1]),
        9 => cells[0],
        10 => cells[1],
        11 => (0, 0, 0),
        12..15 => (0, 0, u64::from(index) - 11),
        _ => return Err("level beyond the mip tail"),
    })
}
