//! `MI_MATH`: a small 64-bit arithmetic unit over the general-purpose registers.
//!
//! An instruction is one dword: opcode in bits 31:20, operand 1 in 19:10, operand 2 in 9:0. Operands: 0 to 15 are registers, then the unit's own
//! two sources, its accumulator, and its two flags, which read as all zeros or all ones.

use crate::{
    bus::{Bus, Fault, GpuVa},
    cs::regs::GPRS,
};

const SRCA: u32 = 0x20;
const SRCB: u32 = 0x21;
const ACCU: u32 = 0x31;
const ZF: u32 = 0x32;
const CF: u32 = 0x33;

/// The unit: registers, sources, result, flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alu {
    /// The general-purpose registers.
    pub gpr: [u64; GPRS],
    a: u64,
    b: u64,
    accumulator: u64,
    zero: bool,
    carry: bool,
}

/// Why an instruction did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MathError {
    /// An access of an indirect load or store failed.
    Fault(Fault),
    /// A reserved opcode or operand.
    Reserved(&'static str),
}

impl From<Fault> for MathError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Alu {
    /// Runs `instructions` in order.
    ///
    /// # Errors
    /// The first that can't run; those before it have taken effect.
    pub fn run(&mut self, instructions: &[u32], bus: &(impl Bus + ?Sized)) -> Result<(), MathError> {
        instructions.iter().try_for_each(|&instruction| self.execute(instruction, bus))
    }

    fn execute(&mut self, instruction: u32, bus: &(impl Bus + ?Sized)) -> Result<(), MathError> {
        let (first, second) = ((instruction >> 10) & 0x3ff, instruction & 0x3ff);
        match instruction >> 20 {
            // No operation, and fences between indirect accesses: accesses are in order anyway.
            0x000..=0x002 => {}
            0x080 => self.set(first, self.get(second)?)?,
            0x480 => self.set(first, !self.get(second)?)?,
            0x081 => self.set(first, 0)?,
            0x481 => self.set(first, u64::MAX)?,
            0x082 => {
                let address = GpuVa::new(self.get(second)?);
                self.set(first, bus.read_u64(address)?)?;
            }
            0x100 => {
                let (sum, carry) = self.a.overflowing_add(self.b);
                self.finish(sum, carry);
            }
            0x101 => {
                let (difference, borrow) = self.a.overflowing_sub(self.b);
                self.finish(difference, borrow);
            }
            0x102 => self.finish(self.a & self.b, false),
            0x103 => self.finish(self.a | self.b, false),
            0x104 => self.finish(self.a ^ self.b, false),
            0x105 => self.finish(self.a.checked_shl(self.shift()).unwrap_or(0), false),
            0x106 => self.finish(self.a.checked_shr(self.shift()).unwrap_or(0), false),
            0x107 => self.finish(((self.a as i64) >> self.shift().min(63)) as u64, false),
            0x180 => self.set(first, self.get(second)?)?,
            0x580 => self.set(first, !self.get(second)?)?,
            0x181 => bus.write_u64(GpuVa::new(self.get(first)?), self.get(second)?)?,
            _ => return Err(MathError::Reserved("reserved arithmetic opcode")),
        }
        Ok(())
    }

    fn shift(&self) -> u32 {
        self.b.min(64) as u32
    }

    fn finish(&mut self, result: u64, carry: bool) {
        self.accumulator = result;
        self.zero = result == 0;
        self.carry = carry;
    }

    fn get(&self, operand: u32) -> Result<u64, MathError> {
        Ok(match operand {
            0..16 => self.gpr[operand as usize],
            SRCA => self.a,
            SRCB => self.b,
            ACCU => self.accumulator,
            ZF => all_bits(self.zero),
            CF => all_bits(self.carry),
            _ => return Err(MathError::Reserved("reserved arithmetic operand")),
        })
    }

    fn set(&mut self, operand: u32, value: u64) -> Result<(), MathError> {
        match operand {
            0..16 => self.gpr[operand as usize] = value,
            SRCA => self.a = value,
            SRCB => self.b = value,
            ACCU => self.accumulator = value,
            ZF => self.zero = value & 1 != 0,
            CF => self.carry = value & 1 != 0,
            _ => return Err(MathError::Reserved("reserved arithmetic operand")),
        }
        Ok(())
    }
}

fn all_bits(flag: bool) -> u64 {
    if flag { u64::MAX } else { 0 }
}
