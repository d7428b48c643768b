//! The registers that commands can read and write.
//!
//! An engine's own block is 4 KiB at a base that differs per class; commands name a register by its offset in the whole
//! register space, or relative to the engine's block. Registers with a meaning here:
//!
//! | offset in the block | register |
//! | --- | --- |
//! | `0x200` | the blitter's software control: whether "tiled" means Y in the legacy commands; the high half masks writes |
//! | `0x358`, `0x35c` | `TIMESTAMP`: low and high half of the device's clock |
//! | `0x3a8`, `0x3ac` | `CTX_TIMESTAMP`: time this context has run |
//! | `0x400..0x418` | `MI_PREDICATE_SRC0`, `SRC1`, `DATA` (64 bit each) |
//! | `0x418`, `0x41c`, `0x3bc` | `MI_PREDICATE_RESULT`, `RESULT_1`, `RESULT_2` |
//! | `0x600..0x680` | `CS_GPR` 0 to 15 (64 bit each) |
//!
//! All others keep what was written to them, as far as there is room ([`MAX_OTHERS`]): batches set up units that do not exist here. Registers
//! belong to the context; they live as long as its streamer.

use std::collections::BTreeMap;

use crate::{bus::Bus, class::EngineClass, cs::math::Alu};

/// Registers without a meaning whose values are kept. Writes to more are dropped, so that a client can't use up memory.
pub const MAX_OTHERS: usize = 4096;

/// Number of general-purpose registers.
pub const GPRS: usize = 16;

const BLOCK: u32 = 0x1000;
const RENDER_BASE: u32 = 0x2000;

const SOFTWARE_CONTROL: u32 = 0x200;
const TIMESTAMP: u32 = 0x358;
const CTX_TIMESTAMP: u32 = 0x3a8;
const PREDICATE_RESULT_2: u32 = 0x3bc;
const PREDICATE_SRC0: u32 = 0x400;
const PREDICATE_RESULT: u32 = 0x418;
const PREDICATE_RESULT_1: u32 = 0x41c;
const GPR0: u32 = 0x600;
const GPR_END: u32 = GPR0 + 8 * GPRS as u32;

/// A register, found by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reg {
    /// In the executing engine's block, at this offset.
    Engine(u32),
    /// Elsewhere, at this offset in the whole register space.
    Mmio(u32),
}

impl Reg {
    /// The register that a command names by `offset` (bits 22:2 count), on an engine of `class`; `relative` to the engine's block or not.
    /// Render registers that every engine has at the same place in its block may be named on any engine.
    pub fn new(offset: u32, relative: bool, class: EngineClass) -> Self {
        let offset = offset & 0x7f_fffc;
        let own = base(class);
        match offset {
            _ if relative => Self::Engine(offset),
            _ if (own..own + BLOCK).contains(&offset) => Self::Engine(offset - own),
            _ if (RENDER_BASE..RENDER_BASE + BLOCK).contains(&offset) => Self::Engine(offset - RENDER_BASE),
            _ => Self::Mmio(offset),
        }
    }
}

/// Start of the first engine's block of a class.
fn base(class: EngineClass) -> u32 {
    match class {
        EngineClass::Render => RENDER_BASE,
        EngineClass::Copy => 0x2_2000,
        EngineClass::Compute => 0x1_a000,
        EngineClass::VideoDecode => 0x1c_0000,
        EngineClass::VideoEnhance => 0x1c_8000,
    }
}

/// What "tiled" means in the blitter's legacy commands: X, or Y where set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LegacyTiling {
    /// The source is Y-tiled.
    pub source_y: bool,
    /// The destination is Y-tiled.
    pub destination_y: bool,
}

/// The register file of a context.
#[derive(Clone, Debug, Default)]
pub struct Registers {
    /// The arithmetic unit; it holds `CS_GPR`.
    pub alu: Alu,
    /// `MI_PREDICATE_SRC0`, `SRC1`, `DATA`.
    pub predicate: [u64; 3],
    /// `MI_PREDICATE_RESULT`: bit 0 counts.
    pub predicate_result: u32,
    /// `MI_PREDICATE_RESULT_1`.
    pub predicate_result_1: u32,
    /// `MI_PREDICATE_RESULT_2`: bit 0 counts.
    pub predicate_result_2: u32,
    others: BTreeMap<Reg, u32>,
}

impl Registers {
    /// Reads `reg`; the clocks come from `bus`. Registers never written are zero.
    pub fn read(&self, reg: Reg, bus: &(impl Bus + ?Sized)) -> u32 {
        let Reg::Engine(offset) = reg else { return self.other(reg) };
        match offset {
            TIMESTAMP => low(bus.timestamp()),
            _ if offset == TIMESTAMP + 4 => high(bus.timestamp()),
            CTX_TIMESTAMP => low(bus.context_timestamp()),
            _ if offset == CTX_TIMESTAMP + 4 => high(bus.context_timestamp()),
            PREDICATE_SRC0..PREDICATE_RESULT => half(&self.predicate, offset - PREDICATE_SRC0),
            PREDICATE_RESULT => self.predicate_result,
            PREDICATE_RESULT_1 => self.predicate_result_1,
            PREDICATE_RESULT_2 => self.predicate_result_2,
            GPR0..GPR_END => half(&self.alu.gpr, offset - GPR0),
            _ => self.other(reg),
        }
    }

    /// Writes `reg`. The clocks can't be set: such a write is dropped.
    pub fn write(&mut self, reg: Reg, value: u32) {
        let Reg::Engine(offset) = reg else { return self.set_other(reg, value) };
        match offset & !4 {
            TIMESTAMP | CTX_TIMESTAMP => return,
            _ => {}
        }
        match offset {
            PREDICATE_SRC0..PREDICATE_RESULT => set_half(&mut self.predicate, offset - PREDICATE_SRC0, value),
            PREDICATE_RESULT => self.predicate_result = value,
            PREDICATE_RESULT_1 => self.predicate_result_1 = value,
            PREDICATE_RESULT_2 => self.predicate_result_2 = value,
            GPR0..GPR_END => set_half(&mut self.alu.gpr, offset - GPR0, value),
            _ => self.set_other(reg, value),
        }
    }

    /// The blitter's choice of what its legacy commands mean by "tiled".
    pub fn legacy_y_tiling(&self) -> LegacyTiling {
        let control = self.other(Reg::Engine(SOFTWARE_CONTROL));
        LegacyTiling { source_y: control & 1 != 0, destination_y: control & 2 != 0 }
    }

    fn other(&self, reg: Reg) -> u32 {
        self.others.get(&reg).copied().unwrap_or(0)
    }

    fn set_other(&mut self, reg: Reg, value: u32) {
        let value = if reg == Reg::Engine(SOFTWARE_CONTROL) {
            // The high half says which bits of the low half to write.
            let mask = value >> 16;
            self.other(reg) & !mask | value & mask
        } else {
            value
        };
        if self.others.len() < MAX_OTHERS || self.others.contains_key(&reg) {
            self.others.insert(reg, value);
        }
    }
}

fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

/// The dword at byte `offset` of a row of 64-bit registers.
fn half(registers: &[u64], offset: u32) -> u32 {
    (registers[offset as usize / 8] >> (8 * (offset & 4))) as u32
}

fn set_half(registers: &mut [u64], offset: u32, value: u32) {
    let register = &mut registers[offset as usize / 8];
    let shift = 8 * (offset & 4);
    *register = *register & !(0xffff_ffff << shift) | u64::from(value) << shift;
}
