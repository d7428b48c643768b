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

/// Most rows of a block.
const MAX_ROWS: usize = 32;

/// An interleaving of coordinates.
///
/// # Invariants
/// The masks are disjoint and together are all bits of an offset in a tile. Hence offsets in a block are below [`BLOCK`], whatever is combined: a
/// run, a row, a slice, and a byte of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swizzle {
    x: u32,
    y: u32,
    z: u32,
    /// Size of a tile in powers of two: bytes of a row, rows, slices.
    bits: [u32; 3],
    /// The same of a block, but for the slices.
    block_bits: [u32; 2],
    run_bits: u32,
    /// Offset in a block of each run of its first row, and of each row.
    runs: [u16; MAX_RUNS],
    rows: [u16; MAX_ROWS],
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
        let run_bits = x.trailing_ones();
        let mut runs = [0; MAX_RUNS];
        let mut run = 0;
        while run < MAX_RUNS {
            runs[run] = deposit((run as u32) << run_bits, x & BLOCK_MASK) as u16;
            run += 1;
        }
        let mut rows = [0; MAX_ROWS];
        let mut row = 0;
        while row < MAX_ROWS {
            rows[row] = deposit(row as u32, y & BLOCK_MASK) as u16;
            row += 1;
        }
        let bits = [x.count_ones(), y.count_ones(), z.count_ones()];
        let block_bits = [(x & BLOCK_MASK).count_ones(), (y & BLOCK_MASK).count_ones()];
        Self { x, y, z, bits, block_bits, run_bits, runs, rows }
    }

    /// Width of a tile in bytes.
    pub const fn width(&self) -> u64 {
        1 << self.bits[0]
    }

    /// Height of a tile in rows.
    pub const fn height(&self) -> u64 {
        1 << self.bits[1]
    }

    /// Depth of a tile in slices.
    pub const fn depth(&self) -> u64 {
        1 << self.bits[2]
    }

    /// Size of a tile in bytes.
    pub const fn size(&self) -> u64 {
        1 << (self.bits[0] + self.bits[1] + self.bits[2])
    }

    /// Width of a block in bytes.
    pub const fn block_width(&self) -> u64 {
        1 << self.block_bits[0]
    }

    /// Height of a block in rows.
    pub const fn block_height(&self) -> u64 {
        1 << self.block_bits[1]
    }

    /// Bytes that lie side by side both in the image and in memory.
    pub const fn run_bytes(&self) -> u64 {
        1 << self.run_bits
    }

    /// Offset of a byte in a surface of such tiles, whose rows are `pitch` bytes apart. `z` is a slice of the tiles.
    pub const fn surface_offset(&self, pitch: u64, x: u64, y: u64, z: u64) -> u64 {
        let row = (y >> self.bits[1]) * (pitch << (self.bits[1] + self.bits[2]));
        let column = (x >> self.bits[0]) << (self.bits[0] + self.bits[1] + self.bits[2]);
        row + column + self.offset(x, y, z)
    }

    /// Offset of a byte in its tile. The coordinates count from the tile's corner; higher bits are ignored.
    pub const fn offset(&self, x: u64, y: u64, z: u64) -> u64 {
        (deposit(x as u32, self.x) | deposit(y as u32, self.y) | deposit(z as u32, self.z)) as u64
    }

    /// A row of a block, from its byte `x` on. The coordinates may count from the surface's corner.
    pub fn row(&self, x: u64, y: u64, z: u64) -> Row<'_> {
        let row = self.rows[(y & (self.block_height() - 1)) as usize];
        let slice = deposit(z as u32, self.z) & BLOCK_MASK;
        Row {
            start: usize::from(row) + slice as usize,
            runs: &self.runs,
            run_bits: self.run_bits,
            x: (x & (self.block_width() - 1)) as usize,
            width: 1 << self.block_bits[0],
        }
    }
}

/// A part of a row of a block, from some byte to the block's edge.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    start: usize,
    runs: &'a [u16; MAX_RUNS],
    run_bits: u32,
    x: usize,
    width: usize,
}

impl Row<'_> {
    /// Bytes up to the block's edge.
    #[expect(clippy::len_without_is_empty, reason = "a row has at least one byte")]
    pub fn len(&self) -> usize {
        self.width - self.x
    }

    /// Calls `each` with the offset in the block, the offset in the row's wanted part, and the length of each run of the first `len` bytes.
    /// Offset plus length never exceed [`BLOCK`].
    ///
    /// # Panics
    /// If the row is not that long.
    #[inline(always)]
    pub fn for_each(&self, len: usize, mut each: impl FnMut(usize, usize, usize)) {
        assert!(len <= self.len(), "{len} bytes from {} on leave a row of {}", self.x, self.width);
        let run_bytes = 1 << self.run_bits;
        if self.run_bits == 4 && (self.x | len) & 15 == 0 {
            // Whole runs of the usual length: known to the compiler, each becomes one load and one store.
            for (index, &run) in self.runs[self.x / 16..(self.x + len) / 16].iter().enumerate() {
                each(self.start + usize::from(run), 16 * index, 16);
            }
            return;
        }
        let mut done = 0;
        while done < len {
            let x = self.x + done;
            let within = x & (run_bytes - 1);
            let now = (run_bytes - within).min(len - done);
            each(self.start + usize::from(self.runs[x >> self.run_bits]) + within, done, now);
            done += now;
        }
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
