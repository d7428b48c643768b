//! Where a byte of a tile lies.
//!
//! A tile is 4 KiB or 64 KiB of memory that holds a small rectangle (or box) of an image. The offset of a byte in its tile interleaves the bits of
//! its position: x in bytes, y in rows, z in slices. A [`Swizzle`] says which bit of the offset comes from which coordinate:
//!
//! ```text
//!            bit 11                 0
//!   X        y y y x x x x x x x x x      512 bytes x 8 rows
//!   Y        x x x y y y y y x x x x      128 bytes x 32 rows
//!   Tile4    y y x y x x y y x x x x      128 bytes x 32 rows
//! ```
//!
//! Tile64 puts 16 Tile4 blocks together; how depends on the pixel size, and its volumes (3D) have an interleaving of their own.

/// How a surface is tiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tiling {
    /// Not at all.
    Linear,
    /// Legacy X: rows of 512 bytes.
    X,
    /// Legacy Y: columns of 16 bytes.
    Y,
    /// Tile4: cells of 16 bytes by 4 rows.
    Tile4,
    /// Tile64.
    Tile64,
}

impl Tiling {
    /// The interleaving for pixels of `depth` bytes; `volume` for 3D surfaces. `None` for linear surfaces.
    ///
    /// # Errors
    /// Where the hardware has none: Tile64 of 12-byte pixels.
    pub fn swizzle(self, depth: u64, volume: bool) -> Result<Option<Swizzle>, &'static str> {
        const NO_TILE64: &str = "Tile64 does not exist for this colour depth";
        Ok(Some(match (self, volume, depth) {
            (Self::Linear, ..) => return Ok(None),
            (Self::X, ..) => Swizzle::parse("yyyxxxxxxxxx"),
            (Self::Y, ..) => Swizzle::parse("xxxyyyyyxxxx"),
            (Self::Tile4, ..) => Swizzle::parse("yyxyxxyyxxxx"),
            (Self::Tile64, false, 1) => Swizzle::parse("yyyxyyxyxxyyxxxx"),
            (Self::Tile64, false, 2 | 4) => Swizzle::parse("yyxxyyxyxxyyxxxx"),
            (Self::Tile64, false, 8 | 16) => Swizzle::parse("yxxxyyxyxxyyxxxx"),
            (Self::Tile64, true, 1 | 2) => Swizzle::parse("zzzyyyzzxxyyxxxx"),
            (Self::Tile64, true, 4) => Swizzle::parse("zzyxyyzzxxyyxxxx"),
            (Self::Tile64, true, 8 | 16) => Swizzle::parse("zzyxxyzzxxyyxxxx"),
            (Self::Tile64, ..) => return Err(NO_TILE64),
        }))
    }
}

/// Low bits of an offset that always lie in one page: a block.
const BLOCK_BITS: u32 = 12;

/// Bytes of a block. Every page is at least that long, and so is every tile.
pub const BLOCK: u64 = 1 << BLOCK_BITS;

const BLOCK_MASK: u32 = (1 << BLOCK_BITS) - 1;

/// Most runs in a row of a block.
const MAX_RUNS: usize = 8;

/// An interleaving of coordinates. Disjoint masks of the bits of an offset in a tile; together they are all its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swizzle {
    x: u32,
    y: u32,
    z: u32,
    /// Offset in its block of each run of a row.
    runs: [u16; MAX_RUNS],
}

impl Swizzle {
    /// From a picture: a letter per bit, the highest bit first.
    const fn parse(pattern: &str) -> Self {
        let letters = pattern.as_bytes();
        let (mut x, mut y, mut z) = (0_u32, 0_u32, 0_u32);
        let mut at = 0;
        while at < letters.len() {
            let bit = 1 << (letters.len() - 1 - at);
            match letters[at] {
                b'x' => x |= bit,
                b'y' => y |= bit,
                _ => z |= bit,
            }
            at += 1;
        }
        let mut runs = [0; MAX_RUNS];
        let run_bytes = 1 << x.trailing_ones();
        let mut run = 0;
        while run < MAX_RUNS {
            runs[run] = deposit(run as u32 * run_bytes, x & BLOCK_MASK) as u16;
            run += 1;
        }
        Self { x, y, z, runs }
    }

    /// Width of a tile in bytes.
    pub const fn width(&self) -> u64 {
        1 << self.x.count_ones()
    }

    /// Height of a tile in rows.
    pub const fn height(&self) -> u64 {
        1 << self.y.count_ones()
    }

    /// Depth of a tile in slices.
    pub const fn depth(&self) -> u64 {
        1 << self.z.count_ones()
    }

    /// Size of a tile in bytes.
    pub const fn size(&self) -> u64 {
        self.width() * self.height() * self.depth()
    }

    /// Width of a block in bytes.
    pub const fn block_width(&self) -> u64 {
        1 << (self.x & BLOCK_MASK).count_ones()
    }

    /// Height of a block in rows.
    pub const fn block_height(&self) -> u64 {
        1 << (self.y & BLOCK_MASK).count_ones()
    }

    /// Bytes that lie side by side both in the image and in memory.
    pub const fn run_bytes(&self) -> u64 {
        1 << self.x.trailing_ones()
    }

    /// Offset of a byte in its tile. The coordinates count from the tile's corner; higher bits are ignored.
    pub const fn offset(&self, x: u64, y: u64, z: u64) -> u64 {
        (deposit(x as u32, self.x) | deposit(y as u32, self.y) | deposit(z as u32, self.z)) as u64
    }

    /// Offsets of the runs of a row, in the block and relative to the row's first run.
    pub fn runs(&self) -> &[u16; MAX_RUNS] {
        &self.runs
    }
}

/// Spreads the low bits of `value` over the bits of `mask`.
const fn deposit(value: u32, mask: u32) -> u32 {
    let (mut rest, mut result, mut bit) = (mask, 0, 0);
    while rest != 0 {
        let lowest = rest & rest.wrapping_neg();
        if value >> bit & 1 != 0 {
            result |= lowest;
        }
        rest &= rest - 1;
        bit += 1;
    }
    result
}
