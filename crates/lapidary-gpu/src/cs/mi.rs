//! What the MI commands do, and `PIPE_CONTROL`'s write.
//!
//! Each command is a function of the whole command to a [`Flow`]: what the instruction pointer does next. A command that fails has changed
//! nothing that repeating it would not change again in the same way; that is what makes replay after a fault possible.

use crate::{
    bus::{Bus, Fault, GpuVa},
    class::EngineClass,
    cs::{
        atomic::Atomic,
        decode::Mi,
        math::MathError,
        regs::{Reg, Registers},
    },
};

/// Where execution goes after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// To the next command.
    Next,
    /// To another place on the same level.
    Jump(GpuVa),
    /// To a nested batch, which returns behind this command.
    Call(GpuVa),
    /// Back to the batch that called this one, or to the end.
    Return,
    /// To the end, from whatever level.
    End,
    /// Nowhere: the same command again later.
    Wait,
}

/// Why a command did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// An access failed.
    Fault(Fault),
    /// The command is malformed.
    Invalid(&'static str),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<&'static str> for Stop {
    fn from(reason: &'static str) -> Self {
        Self::Invalid(reason)
    }
}

const TOO_SHORT: Stop = Stop::Invalid("too short");

/// State that MI commands work on.
#[derive(Clone, Debug)]
pub struct Core {
    /// What kind of engine executes.
    pub class: EngineClass,
    /// The context's registers.
    pub registers: Registers,
    /// `MI_SET_PREDICATE_RESULT`: commands other than flow control do nothing while it is set.
    pub predicated_off: bool,
}

impl Core {
    /// A fresh state.
    pub fn new(class: EngineClass) -> Self {
        Self { class, registers: Registers::default(), predicated_off: false }
    }

    /// Executes `command`, which is `mi`.
    ///
    /// # Errors
    /// Why it could not be executed.
    pub fn execute(&mut self, mi: Mi, command: &[u32], bus: &(impl Bus + ?Sized)) -> Result<Flow, Stop> {
        let header = command[0];
        match mi {
            Mi::SetPredicate => return self.set_predicate(header),
            Mi::BatchBufferStart => return self.batch_buffer_start(command),
            Mi::BatchBufferEnd => return Ok(self.batch_buffer_end(header)),
            _ if self.predicated_off => return Ok(Flow::Next),
            Mi::SemaphoreWait => return self.semaphore_wait(command, bus),
            Mi::ConditionalBatchBufferEnd => return conditional_batch_buffer_end(command, bus),
            Mi::Noop | Mi::Skipped => {}
            Mi::UserInterrupt => bus.user_interrupt(),
            Mi::Predicate => self.predicate(header)?,
            Mi::Math => self.math(command, bus)?,
            Mi::StoreDataImm => store_data_imm(command, bus)?,
            Mi::LoadRegisterImm => self.load_register_imm(command)?,
            Mi::StoreRegisterMem => self.store_register_mem(command, bus)?,
            Mi::LoadRegisterMem => self.load_register_mem(command, bus)?,
            Mi::LoadRegisterReg => self.load_register_reg(command, bus)?,
            Mi::CopyMemMem => copy_mem_mem(command, bus)?,
            Mi::FlushDw => flush_dw(command, bus)?,
            Mi::Atomic => {
                Atomic::new(command, &self.registers.alu.gpr)?.execute(bus, &mut self.registers.alu.gpr)?;
            }
        }
        Ok(Flow::Next)
    }

    /// Executes a `PIPE_CONTROL`: of its effects only the write after the flush and the interrupt can be seen.
    ///
    /// # Errors
    /// Why it could not be executed.
    pub fn pipe_control(&mut self, command: &[u32], bus: &(impl Bus + ?Sized)) -> Result<(), Stop> {
        if self.predicated_off {
            return Ok(());
        }
        let [_, flags, low, high, data @ ..] = command else { return Err(TOO_SHORT) };
        let value = data.first().map_or(0, |&low| qword(low, data.get(1).copied().unwrap_or(0)));
        if flags & (1 << 23) != 0 {
            // The write goes to a register instead.
            self.registers.write(Reg::new(*low, false, self.class), value as u32);
        } else {
            let address = address(low & !3, *high);
            let dropped = flags & STORE_DATA_INDEX != 0;
            match (flags >> 14) & 3 {
                _ if dropped => {}
                0 => {}
                1 => bus.write_u64(address, value)?,
                // Nothing is drawn, so no sample passes the depth test.
                2 => bus.write_u64(address, 0)?,
                _ => bus.write_u64(address, bus.timestamp())?,
            }
        }
        if flags & NOTIFY != 0 {
            bus.user_interrupt();
        }
        Ok(())
    }

    fn reg(&self, offset: u32, relative: bool) -> Reg {
        Reg::new(offset, relative, self.class)
    }

    fn set_predicate(&mut self, header: u32) -> Result<Flow, Stop> {
        let bit = |value: u32| value & 1 != 0;
        self.predicated_off = match header & 0xf {
            0 => false,
            1 => !bit(self.registers.predicate_result_2),
            2 => bit(self.registers.predicate_result_2),
            3 => !bit(self.registers.predicate_result),
            4 => bit(self.registers.predicate_result),
            15 => true,
            _ => return Err(Stop::Invalid("reserved predicate")),
        };
        Ok(Flow::Next)
    }

    fn batch_buffer_start(&self, command: &[u32]) -> Result<Flow, Stop> {
        let &[header, low, ref rest @ ..] = command else { return Err(TOO_SHORT) };
        if header & PREDICATION_ENABLE != 0 && self.predicated_off {
            return Ok(Flow::Next);
        }
        let target = address(low & !3, rest.first().copied().unwrap_or(0));
        let nested = header & (1 << 22) != 0;
        Ok(if nested { Flow::Call(target) } else { Flow::Jump(target) })
    }

    fn batch_buffer_end(&self, header: u32) -> Flow {
        if header & PREDICATION_ENABLE != 0 && self.predicated_off { Flow::Next } else { Flow::Return }
    }

    fn semaphore_wait(&self, command: &[u32], bus: &(impl Bus + ?Sized)) -> Result<Flow, Stop> {
        let &[header, expected, low, ref rest @ ..] = command else { return Err(TOO_SHORT) };
        if header & (1 << 17) != 0 {
            return Err(Stop::Invalid("indirect semaphore data is not supported"));
        }
        let value = if header & (1 << 16) != 0 {
            self.registers.read(self.reg(low, false), bus)
        } else {
            bus.read_u32(address(low & !3, rest.first().copied().unwrap_or(0)))?
        };
        Ok(if Compare::new(header)?.holds(value, expected) { Flow::Next } else { Flow::Wait })
    }

    fn predicate(&mut self, header: u32) -> Result<(), Stop> {
        let registers = &mut self.registers;
        let [src0, src1, data] = registers.predicate;
        let compared = match header & 3 {
            0 => true,
            1 => false,
            2 => src0 == src1,
            _ => src1.wrapping_sub(src0) == data,
        };
        let loaded = match (header >> 6) & 3 {
            0 => return Ok(()),
            2 => compared,
            3 => !compared,
            _ => return Err(Stop::Invalid("reserved predicate load operation")),
        };
        let old = registers.predicate_result & 1 != 0;
        let new = match (header >> 3) & 3 {
            0 => loaded,
            1 => old & loaded,
            2 => old | loaded,
            _ => old ^ loaded,
        };
        registers.predicate_result = u32::from(new);
        Ok(())
    }

    fn math(&mut self, command: &[u32], bus: &(impl Bus + ?Sized)) -> Result<(), Stop> {
        // On a copy: a fault half-way must leave the registers as they were, for the replay.
        let mut alu = self.registers.alu;
        alu.run(&command[1..], bus).map_err(|error| match error {
            MathError::Fault(fault) => Stop::Fault(fault),
            MathError::Reserved(reason) => Stop::Invalid(reason),
        })?;
        self.registers.alu = alu;
        Ok(())
    }

    fn load_register_imm(&mut self, command: &[u32]) -> Result<(), Stop> {
        let header = command[0];
        let relative = header & ENGINE_RELATIVE != 0;
        let pairs = command[1..].chunks_exact(2);
        if !pairs.remainder().is_empty() || command.len() < 3 {
            return Err(Stop::Invalid("registers and values do not pair up"));
        }
        for pair in pairs {
            self.registers.write(self.reg(pair[0], relative), pair[1]);
        }
        Ok(())
    }

    fn store_register_mem(&self, command: &[u32], bus: &(impl Bus + ?Sized)) -> Result<(), Stop> {
        let &[header, offset, low, high, ..] = command else { return Err(TOO_SHORT) };
        let predicated = header & (1 << 21) != 0;
        if predicated && self.registers.predicate_result & 1 == 0 {
            return Ok(());
        }
        let value = self.registers.read(self.reg(offset, header & ENGINE_RELATIVE != 0), bus);
        Ok(bus.write_u32(address(low & !3, high), value)?)
    }

    fn load_register_mem(&mut self, command: &[u32], bus: &(impl Bus + ?Sized)) -> Result<(), Stop> {
        let &[header, offset, low, high, ..] = command else { return Err(TOO_SHORT) };
        let value = bus.read_u32(address(low & !3, high))?;
        self.registers.write(self.reg(offset, header & ENGINE_RELATIVE != 0), value);
        Ok(())
    }

    fn load_register_reg(&mut self, command: &[u32], bus: &(impl Bus + ?Sized)) -> Result<(), Stop> {
        let &[header, source, destination, ..] = command else { return Err(TOO_SHORT) };
        let value = self.registers.read(self.reg(source, header & (1 << 18) != 0), bus);
        self.registers.write(self.reg(destination, header & ENGINE_RELATIVE != 0), value);
        Ok(())
    }
}

/// Bit 19 of the register commands: the offset counts from the engine's block.
const ENGINE_RELATIVE: u32 = 1 << 19;
/// Bit 15 of batch start and end.
const PREDICATION_ENABLE: u32 = 1 << 15;
/// Bit 21 of the flushes: the address is an index into the status page.
const STORE_DATA_INDEX: u32 = 1 << 21;
/// Bit 8 of the flushes: interrupt when done.
const NOTIFY: u32 = 1 << 8;

/// Comparison of a value in memory with one in the command, bits 14:12 of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    Equal,
    NotEqual,
}

impl Compare {
    fn new(header: u32) -> Result<Self, Stop> {
        Ok(match (header >> 12) & 7 {
            0 => Self::Greater,
            1 => Self::GreaterOrEqual,
            2 => Self::Less,
            3 => Self::LessOrEqual,
            4 => Self::Equal,
            5 => Self::NotEqual,
            _ => return Err(Stop::Invalid("reserved comparison")),
        })
    }

    fn holds(self, memory: u32, inline: u32) -> bool {
        match self {
            Self::Greater => memory > inline,
            Self::GreaterOrEqual => memory >= inline,
            Self::Less => memory < inline,
            Self::LessOrEqual => memory <= inline,
            Self::Equal => memory == inline,
            Self::NotEqual => memory != inline,
        }
    }
}

fn address(low: u32, high: u32) -> GpuVa {
    GpuVa::new(qword(low, high))
}

fn qword(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Goes on while the comparison holds, and ends the batch when it fails.
fn conditional_batch_buffer_end(command: &[u32], bus: &(impl Bus + ?Sized)) -> Result<Flow, Stop> {
    let &[header, inline, low, ref rest @ ..] = command else { return Err(TOO_SHORT) };
    let compare = Compare::new(header)?;
    if header & (1 << 21) == 0 {
        // Nothing to compare.
        return Ok(Flow::Next);
    }
    let masked = header & (1 << 19) != 0;
    // A mask and its value make a qword; a plain compare reads the one dword, in either half of a qword.
    let alignment = if masked { 7 } else { 3 };
    let address = address(low & !alignment, rest.first().copied().unwrap_or(0));
    let memory = if masked {
        let pair = bus.read_u64(address)?;
        (pair >> 32) as u32 & pair as u32
    } else {
        bus.read_u32(address)?
    };
    let this_level_only = header & (1 << 18) != 0;
    Ok(match (compare.holds(memory, inline), this_level_only) {
        (true, _) => Flow::Next,
        (false, true) => Flow::Return,
        (false, false) => Flow::End,
    })
}

fn store_data_imm(command: &[u32], bus: &(impl Bus + ?Sized)) -> Result<(), Stop> {
    let &[header, low, high, ref data @ ..] = command else { return Err(TOO_SHORT) };
    let target = address(low & !3, high);
    let qwords = header & (1 << 21) != 0;
    match *data {
        [] => Err(TOO_SHORT),
        [value] => Ok(bus.write_u32(target, value)?),
        [low, high] if qwords => Ok(bus.write_u64(target, qword(low, high))?),
        _ => {
            for (index, &value) in data.iter().enumerate() {
                bus.write_u32(target.offset(4 * index as u64), value)?;
            }
            Ok(())
        }
    }
}

fn copy_mem_mem(command: &[u32], bus: &(impl Bus + ?Sized)) -> Result<(), Stop> {
    let &[_, to_low, to_high, from_low, from_high, ..] = command else { return Err(TOO_SHORT) };
    let value = bus.read_u32(address(from_low & !3, from_high))?;
    Ok(bus.write_u32(address(to_low & !3, to_high), value)?)
}

fn flush_dw(command: &[u32], bus: &(impl Bus + ?Sized)) -> Result<(), Stop> {
    let &[header, low, high, ref data @ ..] = command else { return Err(TOO_SHORT) };
    let target = address(low & !7, high);
    let dropped = header & STORE_DATA_INDEX != 0;
    match ((header >> 14) & 3, data) {
        (0, _) => {}
        (2, _) => return Err(Stop::Invalid("reserved post-sync operation")),
        _ if dropped => {}
        (1, [low, high, ..]) => bus.write_u64(target, qword(*low, *high))?,
        (1, _) => bus.write_u32(target, data.first().copied().unwrap_or(0))?,
        _ => bus.write_u64(target, bus.timestamp())?,
    }
    if header & NOTIFY != 0 {
        bus.user_interrupt();
    }
    Ok(())
}
