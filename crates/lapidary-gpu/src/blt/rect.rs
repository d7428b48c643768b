//! Copies and fills of rectangles.
//!
//! Where a side is tiled, the rectangle is walked in that side's blocks of 4 KiB (the destination's, if both are), row by row within a block:
//! each block is translated once, and a row of it is a handful of runs. Between linear sides, rows are copied as they are.
//!
//! Blocks that are not one piece of mapped memory (a base that is not aligned, null pages, a client's memory) go run by run.

use super::{
    raw::Block,
    span::{Pattern, fill_line},
    surface::Surface,
    tiling::{BLOCK, Row, Swizzle},
    window::{self, Window},
};
use crate::bus::{Access, Bus, Fault, GpuVa};

/// Widest row of a block, in bytes.
const ROW: usize = 512;

/// Pieces in which a rectangle is walked, and how far the walk has come.
#[derive(Clone, Copy, Debug)]
struct Walk {
    width: u64,
    rows: u64,
    /// Size of a piece.
    step: (u64, u64),
    /// Where the rectangle's corner lies in a piece.
    phase: (u64, u64),
    at: (u64, u64),
}

/// A piece of a rectangle, relative to its corner.
#[derive(Clone, Copy, Debug)]
struct Piece {
    x: u64,
    y: u64,
    width: u64,
    rows: u64,
}

/// Longest part of a linear row in one piece.
const LINE: u64 = 64 << 10;

impl Walk {
    fn new(surface: &Surface, width: u64, rows: u64) -> Self {
        let (step, phase) = match &surface.swizzle {
            None => ((LINE, 1), (0, 0)),
            Some(swizzle) => {
                let step = (swizzle.block_width(), swizzle.block_height());
                (step, (surface.x % step.0, surface.y % step.1))
            }
        };
        Self { width, rows, step, phase, at: (0, 0) }
    }

    fn is_done(&self) -> bool {
        self.at.1 >= self.rows
    }

    fn piece(&self) -> Piece {
        let (x, y) = self.at;
        let left = |at: u64, phase: u64, step: u64, end: u64| (step - (at + phase) % step).min(end - at);
        let width = left(x, self.phase.0, self.step.0, self.width);
        let rows = left(y, self.phase.1, self.step.1, self.rows);
        Piece { x, y, width, rows }
    }

    fn advance(&mut self, piece: Piece) {
        self.at.0 += piece.width;
        if self.at.0 >= self.width {
            self.at = (0, self.at.1 + piece.rows);
        }
    }
}

/// A copy under way.
#[derive(Clone, Debug)]
pub(super) struct RectCopy {
    source: Surface,
    destination: Surface,
    walk: Walk,
}

impl RectCopy {
    /// A copy of `width` bytes by `rows`, both at least 1.
    pub(super) fn new(source: Surface, destination: Surface, width: u64, rows: u64) -> Self {
        let walked = if destination.swizzle.is_some() { &destination } else { &source };
        let walk = Walk::new(walked, width, rows);
        Self { source, destination, walk }
    }

    pub(super) fn run(
        &mut self,
        bus: &(impl Bus + ?Sized),
        budget: u64,
        done: &mut u64,
    ) -> Result<bool, Fault> {
        let mut from = Window::new(bus, Access::Read);
        let mut to = Window::new(bus, Access::Write);
        while !self.walk.is_done() && *done < budget {
            let piece = self.walk.piece();
            match (&self.source.swizzle, &self.destination.swizzle) {
                (None, None) => self.copy_line(&mut from, &mut to, piece)?,
                (_, Some(swizzle)) => self.copy_to_block(swizzle, &mut from, &mut to, piece)?,
                (Some(swizzle), None) => self.copy_from_block(swizzle, &mut from, &mut to, piece)?,
            }
            self.walk.advance(piece);
            *done += piece.width * piece.rows;
        }
        Ok(self.walk.is_done())
    }

    /// Copies a part of a row between linear surfaces.
    fn copy_line<B: Bus + ?Sized>(
        &self,
        from: &mut Window<'_, B>,
        to: &mut Window<'_, B>,
        piece: Piece,
    ) -> Result<(), Fault> {
        let source = self.source.address(piece.x, piece.y);
        let destination = self.destination.address(piece.x, piece.y);
        window::copy(from, source, to, destination, piece.width)
    }

    /// Copies a piece that lies in one block of the destination.
    fn copy_to_block<B: Bus + ?Sized>(
        &self,
        swizzle: &Swizzle,
        from: &mut Window<'_, B>,
        to: &mut Window<'_, B>,
        piece: Piece,
    ) -> Result<(), Fault> {
        let width = piece.width as usize;
        let mut buffer = [0; ROW];
        let row_bytes = &mut buffer[..width];
        let Some(block) = block_at(to, &self.destination, piece.x, piece.y)? else {
            for y in piece.y..piece.y + piece.rows {
                read_row(from, &self.source, piece.x, y, row_bytes)?;
                write_row(to, &self.destination, piece.x, y, row_bytes)?;
            }
            return Ok(());
        };
        for y in piece.y..piece.y + piece.rows {
            let row = row(swizzle, &self.destination, piece.x, y);
            if self.source.swizzle.is_none() {
                let (chunk, offset) = from.at(self.source.address(piece.x, y))?;
                if block.scatter_chunk(&row, chunk, offset, width) {
                    continue;
                }
            }
            read_row(from, &self.source, piece.x, y, row_bytes)?;
            block.scatter(&row, row_bytes);
        }
        Ok(())
    }

    /// Copies a piece that lies in one block of the source, to a linear destination.
    fn copy_from_block<B: Bus + ?Sized>(
        &self,
        swizzle: &Swizzle,
        from: &mut Window<'_, B>,
        to: &mut Window<'_, B>,
        piece: Piece,
    ) -> Result<(), Fault> {
        let width = piece.width as usize;
        let mut buffer = [0; ROW];
        let row_bytes = &mut buffer[..width];
        let Some(block) = block_at(from, &self.source, piece.x, piece.y)? else {
            for y in piece.y..piece.y + piece.rows {
                read_row(from, &self.source, piece.x, y, row_bytes)?;
                write_row(to, &self.destination, piece.x, y, row_bytes)?;
            }
            return Ok(());
        };
        for y in piece.y..piece.y + piece.rows {
            let row = row(swizzle, &self.source, piece.x, y);
            let target = self.destination.address(piece.x, y);
            let (chunk, offset) = to.at(target)?;
            if !block.gather_chunk(&row, chunk, offset, width) {
                block.gather(&row, row_bytes);
                to.write(target, row_bytes)?;
            }
        }
        Ok(())
    }
}

/// A fill under way.
#[derive(Clone, Debug)]
pub(super) struct RectFill {
    destination: Surface,
    pattern: Pattern,
    walk: Walk,
}

impl RectFill {
    /// A fill of `width` bytes by `rows`, both at least 1.
    pub(super) fn new(destination: Surface, pattern: Pattern, width: u64, rows: u64) -> Self {
        let walk = Walk::new(&destination, width, rows);
        Self { destination, pattern, walk }
    }

    pub(super) fn run(
        &mut self,
        bus: &(impl Bus + ?Sized),
        budget: u64,
        done: &mut u64,
    ) -> Result<bool, Fault> {
        let mut to = Window::new(bus, Access::Write);
        while !self.walk.is_done() && *done < budget {
            let piece = self.walk.piece();
            match &self.destination.swizzle {
                Some(swizzle) => self.fill_block(swizzle, &mut to, piece)?,
                None => {
                    let va = self.destination.address(piece.x, piece.y);
                    fill_line(&mut to, va, &self.pattern, piece.x, piece.width)?;
                }
            }
            self.walk.advance(piece);
            *done += piece.width * piece.rows;
        }
        Ok(self.walk.is_done())
    }

    /// Fills a piece that lies in one block.
    fn fill_block<B: Bus + ?Sized>(
        &self,
        swizzle: &Swizzle,
        to: &mut Window<'_, B>,
        piece: Piece,
    ) -> Result<(), Fault> {
        let data = self.pattern.at(piece.x, piece.width);
        let Some(block) = block_at(to, &self.destination, piece.x, piece.y)? else {
            return (piece.y..piece.y + piece.rows)
                .try_for_each(|y| write_row(to, &self.destination, piece.x, y, data));
        };
        for y in piece.y..piece.y + piece.rows {
            block.scatter(&row(swizzle, &self.destination, piece.x, y), data);
        }
        Ok(())
    }
}

/// A row of the block that holds byte `x` of row `y`.
fn row<'a>(swizzle: &'a Swizzle, surface: &Surface, x: u64, y: u64) -> Row<'a> {
    swizzle.row(surface.x + x, surface.y + y, surface.z)
}

/// The block that holds byte `x` of row `y`, if it is one piece of mapped memory.
fn block_at<'w, B: Bus + ?Sized>(
    window: &'w mut Window<'_, B>,
    surface: &Surface,
    x: u64,
    y: u64,
) -> Result<Option<Block<'w>>, Fault> {
    if !surface.base.get().is_multiple_of(BLOCK) {
        return Ok(None);
    }
    let va = GpuVa::new(surface.address(x, y).get() & !(BLOCK - 1));
    let (chunk, offset) = window.at(va)?;
    Ok(Block::new(chunk, offset))
}

/// Reads a part of a row of a surface.
fn read_row<B: Bus + ?Sized>(
    window: &mut Window<'_, B>,
    surface: &Surface,
    x: u64,
    y: u64,
    buf: &mut [u8],
) -> Result<(), Fault> {
    let Some(swizzle) = &surface.swizzle else { return window.read(surface.address(x, y), buf) };
    let mut done = 0;
    while done < buf.len() {
        let at = x + done as u64;
        let row = row(swizzle, surface, at, y);
        let part = row.len().min(buf.len() - done);
        let piece = &mut buf[done..done + part];
        match block_at(window, surface, at, y)? {
            Some(block) => block.gather(&row, piece),
            None => {
                for (from, len) in runs(swizzle, surface.x + at, part) {
                    window.read(surface.address(at + from, y), &mut piece[from as usize..][..len])?;
                }
            }
        }
        done += part;
    }
    Ok(())
}

/// Writes a part of a row of a tiled surface, run by run.
fn write_row<B: Bus + ?Sized>(
    window: &mut Window<'_, B>,
    surface: &Surface,
    x: u64,
    y: u64,
    data: &[u8],
) -> Result<(), Fault> {
    let Some(swizzle) = &surface.swizzle else { return window.write(surface.address(x, y), data) };
    for (from, len) in runs(swizzle, surface.x + x, data.len()) {
        window.write(surface.address(x + from, y), &data[from as usize..][..len])?;
    }
    Ok(())
}

/// Start and length of every run in `len` bytes from the surface's byte `x` on.
fn runs(swizzle: &Swizzle, x: u64, len: usize) -> impl Iterator<Item = (u64, usize)> + use<> {
    let run = swizzle.run_bytes();
    let mut done = 0;
    std::iter::from_fn(move || {
        let left = len as u64 - done;
        let start = done;
        let now = (run - (x + done) % run).min(left);
        done += now;
        (left > 0).then_some((start, now as usize))
    })
}
