//! `MI_ATOMIC`: read, modify and write in one go.
//!
//! Header: opcode in bits 15:8, return data 16, operands inline 18, size 20:19. Operands are inline, operand 1 and operand 2 taking turns
//! by the dword, or in registers: operand 1 in R0 (and R1), operand 2 in R2 (and R3). With "return data" the old value goes to R2.
//! Bits 6:5 of the opcode repeat the size: 4, 8 or 16 bytes; only the compare-and-write exists for 16.

use crate::{
    bus::{Bus, Fault, GpuVa},
    cs::regs::GPRS,
};

/// A decoded `MI_ATOMIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Atomic {
    operation: Operation,
    size: Size,
    address: GpuVa,
    operand1: u64,
    operand2: u64,
    returns: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Dword,
    Qword,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    And,
    Or,
    Xor,
    Move,
    Increment,
    Decrement,
    Add,
    Subtract,
    ReverseSubtract,
    SignedMax,
    SignedMin,
    UnsignedMax,
    UnsignedMin,
    CompareWrite,
    PreDecrement,
}

impl Operation {
    fn new(code: u32) -> Option<Self> {
        Some(match code {
            0x1 => Self::And,
            0x2 => Self::Or,
            0x3 => Self::Xor,
            0x4 => Self::Move,
            0x5 => Self::Increment,
            0x6 => Self::Decrement,
            0x7 => Self::Add,
            0x8 => Self::Subtract,
            0x9 => Self::ReverseSubtract,
            0xa => Self::SignedMax,
            0xb => Self::SignedMin,
            0xc => Self::UnsignedMax,
            0xd => Self::UnsignedMin,
            0xe => Self::CompareWrite,
            0xf => Self::PreDecrement,
            _ => return None,
        })
    }

    /// Whether the operation takes a first operand.
    fn has_operand(self) -> bool {
        !matches!(self, Self::Increment | Self::Decrement | Self::PreDecrement)
    }
}

impl Atomic {
    /// Decodes a whole command; `gpr` holds the operands that are not inline.
    ///
    /// # Errors
    /// What is reserved, or missing from a command too short.
    pub fn new(command: &[u32], gpr: &[u64; GPRS]) -> Result<Self, &'static str> {
        let [header, low, high, inline @ ..] = command else { return Err("too short") };
        let code = (header >> 8) & 0xff;
        let operation = Operation::new(code & 0x1f).ok_or("reserved atomic operation")?;
        let size = match (code >> 5, (header >> 19) & 3) {
            (0, 0) => Size::Dword,
            (1, 1) => Size::Qword,
            // Software that leaves one of the two fields at its default exists.
            (0, 1) | (1, 0) => Size::Qword,
            (2, 2) => return Err("16-byte atomics are not supported"),
            _ => return Err("reserved atomic size"),
        };
        let (operand1, operand2) = if header & (1 << 18) == 0 {
            (gpr[0], gpr[2])
        } else if !operation.has_operand() {
            (0, 0)
        } else {
            let dword = |index: usize| inline.get(index).map(|&dword| u64::from(dword)).unwrap_or(0);
            if inline.is_empty() {
                return Err("too short for inline operands");
            }
            (dword(0) | dword(2) << 32, dword(1) | dword(3) << 32)
        };
        let address = GpuVa::new(u64::from(low & !3) | u64::from(*high) << 32);
        Ok(Self { operation, size, address, operand1, operand2, returns: header & (1 << 16) != 0 })
    }

    /// Carries the operation out. If the command asks for the old value, it goes to `gpr`.
    ///
    /// # Errors
    /// The access that failed; nothing has changed then.
    pub fn execute(&self, bus: &(impl Bus + ?Sized), gpr: &mut [u64; GPRS]) -> Result<(), Fault> {
        let old = match self.size {
            Size::Dword => u64::from(bus.atomic_u32(self.address, &mut |old| self.dword(old))?),
            Size::Qword => bus.atomic_u64(self.address, &mut |old| self.qword(old))?,
        };
        if self.returns {
            gpr[2] = old;
        }
        Ok(())
    }

    fn dword(&self, old: u32) -> u32 {
        let operand = self.operand1 as u32;
        match self.operation {
            Operation::SignedMax => (old as i32).max(operand as i32) as u32,
            Operation::SignedMin => (old as i32).min(operand as i32) as u32,
            Operation::CompareWrite if old == operand => self.operand2 as u32,
            Operation::CompareWrite => old,
            // The other operations' low halves do not depend on the high ones.
            _ => self.common(u64::from(old), u64::from(operand)) as u32,
        }
    }

    fn qword(&self, old: u64) -> u64 {
        let operand = self.operand1;
        match self.operation {
            Operation::SignedMax => (old as i64).max(operand as i64) as u64,
            Operation::SignedMin => (old as i64).min(operand as i64) as u64,
            Operation::CompareWrite if old == operand => self.operand2,
            Operation::CompareWrite => old,
            _ => self.common(old, operand),
        }
    }

    fn common(&self, old: u64, operand: u64) -> u64 {
        match self.operation {
            Operation::And => old & operand,
            Operation::Or => old | operand,
            Operation::Xor => old ^ operand,
            Operation::Move => operand,
            Operation::Increment => old.wrapping_add(1),
            Operation::Decrement | Operation::PreDecrement => old.wrapping_sub(1),
            Operation::Add => old.wrapping_add(operand),
            Operation::Subtract => old.wrapping_sub(operand),
            Operation::ReverseSubtract => operand.wrapping_sub(old),
            Operation::UnsignedMax => old.max(operand),
            Operation::UnsignedMin => old.min(operand),
            Operation::SignedMax | Operation::SignedMin | Operation::CompareWrite => old,
        }
    }
}
