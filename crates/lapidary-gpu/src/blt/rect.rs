//! Copies and fills of rectangles.
//!
//! Where a side is tiled, the rectangle is walked in that side's blocks of 4 KiB (the destination's, if both are), row by row within a block:
//! each block is translated once, and a row of it is a handful of runs. Between linear sides, rows are copied as they are.

use super::{
    raw::{self, Row},
    span::{Pattern, fill_line},
    surface::Surface,
    tiling::{BLOCK, Swizzle},
    window::{self, Window},
};
use crate::bus::{Access, Bus, Fault};

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
            for y in piece.y..piece.y + piece.rows {
                self.copy_row(&mut from, &mut to, piece.x, y, piece.width)?;
            }
            self.walk.advance(piece);
            *done += piece.width * piece.rows;
        }
        Ok(self.walk.is_done())
    }

    fn copy_row<B: Bus + ?Sized>(
        &self,
        from: &mut Window<'_, B>,
        to: &mut Window<'_, B>,
        x: u64,
        y: u64,
        width: u64,
    ) -> Result<(), Fault> {
        if self.source.swizzle.is_none() && self.destination.swizzle.is_none() {
            return window::copy(from, self.source.address(x, y), to, self.destination.address(x, y), width);
        }
        let mut buffer = [0; ROW];
        let row = &mut buffer[..width as usize];
        read_row(from, &self.source, x, y, row)?;
        write_row(to, &self.destination, x, y, row)
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
            for y in piece.y..piece.y + piece.rows {
                if self.destination.swizzle.is_some() {
                    let row = self.pattern.at(piece.x, piece.width);
                    write_row(&mut to, &self.destination, piece.x, y, row)?;
                } else {
                    let va = self.destination.address(piece.x, y);
                    fill_line(&mut to, va, &self.pattern, piece.x, piece.width)?;
                }
            }
            self.walk.advance(piece);
            *done += piece.width * piece.rows;
        }
        Ok(self.walk.is_done())
    }
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
        let part = row_part(surface, swizzle, at, buf.len() - done);
        let piece = &mut buf[done..done + part];
        if !in_block(window, surface, swizzle, at, y, |chunk, row| raw::gather(chunk, row, piece))? {
            for_each_run(swizzle, surface.x + at, part, |from, len| {
                let address = surface.address(at + from as u64, y);
                window.read(address, &mut piece[from..from + len])
            })?;
        }
        done += part;
    }
    Ok(())
}

/// Writes a part of a row of a surface.
fn write_row<B: Bus + ?Sized>(
    window: &mut Window<'_, B>,
    surface: &Surface,
    x: u64,
    y: u64,
    data: &[u8],
) -> Result<(), Fault> {
    let Some(swizzle) = &surface.swizzle else { return window.write(surface.address(x, y), data) };
    let mut done = 0;
    while done < data.len() {
        let at = x + done as u64;
        let part = row_part(surface, swizzle, at, data.len() - done);
        let piece = &data[done..done + part];
        if !in_block(window, surface, swizzle, at, y, |chunk, row| raw::scatter(chunk, row, piece))? {
            for_each_run(swizzle, surface.x + at, part, |from, len| {
                let address = surface.address(at + from as u64, y);
                window.write(address, &piece[from..from + len])
            })?;
        }
        done += part;
    }
    Ok(())
}

/// How many of `len` bytes from the `x`th on lie in the same block.
fn row_part(surface: &Surface, swizzle: &Swizzle, x: u64, len: usize) -> usize {
    let width = swizzle.block_width();
    ((width - (surface.x + x) % width) as usize).min(len)
}

/// Hands the block that holds byte `x` of row `y` to `work`, if it lies in one piece of mapped memory. Returns whether the work is done.
fn in_block<'a, B: Bus + ?Sized>(
    window: &mut Window<'a, B>,
    surface: &Surface,
    swizzle: &Swizzle,
    x: u64,
    y: u64,
    work: impl FnOnce(&crate::chunk::Chunk<'a>, &Row<'_>) -> bool,
) -> Result<bool, Fault> {
    let within = (surface.x + x) % swizzle.block_width();
    // The row's first byte. It lies as far into the page as into the block only if the surface is aligned.
    let first = crate::bus::GpuVa::new(
        surface.address(x, y).get().wrapping_sub(u64::from(run_offset(swizzle, within))),
    );
    if !surface.base.get().is_multiple_of(BLOCK) {
        return Ok(false);
    }
    let block = crate::bus::GpuVa::new(first.get() & !(BLOCK - 1));
    let (chunk, offset) = window.at(block)?;
    if chunk.len() - offset < BLOCK as usize {
        return Ok(false);
    }
    let row = Row {
        start: offset + (first.get() - block.get()) as usize,
        runs: swizzle.runs(),
        run_bytes: swizzle.run_bytes() as usize,
        x: within as usize,
    };
    Ok(work(chunk, &row))
}

/// Offset of byte `x` of a row in its block, relative to the row's first byte.
fn run_offset(swizzle: &Swizzle, x: u64) -> u16 {
    let run = swizzle.run_bytes();
    swizzle.runs()[(x / run) as usize] + (x % run) as u16
}

/// Calls `each` with start and length of every run in `len` bytes from `x` on.
fn for_each_run(
    swizzle: &Swizzle,
    x: u64,
    len: usize,
    mut each: impl FnMut(usize, usize) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let run = swizzle.run_bytes() as usize;
    let mut done = 0;
    while done < len {
        let now = (run - (x as usize + done) % run).min(len - done);
        each(done, now)?;
        done += now;
    }
    Ok(())
}
