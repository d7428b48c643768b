//! The blitter: fills and copies of linear and tiled surfaces.
//!
//! * [`tiling`]: where a byte of a tile lies. [`surface`]: where a rectangle of an image lies (levels, array slices, tiles).
//! * [`command`]: from a command's dwords to a [`Blit`].
//! * [`span`]: contiguous bytes. [`rect`]: rectangles. `window` and `raw`: how they get at memory fast.
//!
//! All geometry is in bytes and rows: a pixel is `depth` bytes wide, and nothing here knows colours. A blit is executed in bounded pieces
//! ([`Blit::run`]) and remembers how far it came, so that it can be preempted, and repeated from there after a fault.
//!
//! Overlapping copies go forward, from low addresses to high, a cache line or more at a time, as the hardware does.
//!
//! There is no compression: control surfaces, clear colours and resolves do nothing, and every surface is uncompressed.

mod command;
mod raw;
mod rect;
mod span;
pub mod surface;
#[cfg(test)]
mod tests;
pub mod tiling;
mod window;

use rect::{RectCopy, RectFill};
use span::{SpanCopy, SpanFill};

use crate::{
    bus::{Bus, Fault, Work},
    cs::{decode::BlitOp, regs::LegacyTiling},
};

/// A fill or copy under way.
#[derive(Clone, Debug)]
pub struct Blit {
    action: Action,
    command_bytes: u64,
}

#[derive(Clone, Debug)]
enum Action {
    CopySpan(SpanCopy),
    FillSpan(SpanFill),
    CopyRect(Box<RectCopy>),
    FillRect(Box<RectFill>),
}

impl Blit {
    /// Decodes a whole blitter command. `None` if it touches nothing.
    ///
    /// # Errors
    /// What is reserved, or not supported.
    pub fn new(op: BlitOp, command: &[u32], legacy: LegacyTiling) -> Result<Option<Self>, &'static str> {
        let action = command::action(op, command, legacy)?;
        Ok(action.map(|action| Self { action, command_bytes: 4 * command.len() as u64 }))
    }

    /// Length of the command, in bytes.
    pub fn command_bytes(&self) -> u64 {
        self.command_bytes
    }

    /// Goes on for about `budget` bytes. Returns whether the blit is complete.
    ///
    /// # Errors
    /// The access that failed; running again begins with it.
    pub fn run(&mut self, bus: &(impl Bus + ?Sized), budget: u64) -> Result<bool, Fault> {
        let mut done = 0;
        let result = match &mut self.action {
            Action::CopySpan(copy) => copy.run(bus, budget, &mut done),
            Action::FillSpan(fill) => fill.run(bus, budget, &mut done),
            Action::CopyRect(copy) => copy.run(bus, budget, &mut done),
            Action::FillRect(fill) => fill.run(bus, budget, &mut done),
        };
        bus.count(match self.action {
            Action::CopySpan(_) | Action::CopyRect(_) => Work::Copied(done),
            Action::FillSpan(_) | Action::FillRect(_) => Work::Filled(done),
        });
        result
    }
}
