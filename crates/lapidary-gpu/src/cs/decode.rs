//! From a command's header to what it is and how long it is.
//!
//! Every command of every engine has a length that follows from its header, so that those which are not executed can be
//! stepped over. A header outside the known encodings has none: [`decode`] answers `None`.

use crate::class::EngineClass;

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// What the command is.
    pub command: Command,
    /// Length of the whole command in dwords, header included.
    pub dwords: u32,
}

/// What a command is, as far as execution needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// An MI command.
    Mi(Mi),
    /// A blitter command.
    Blit(BlitOp),
    /// `PIPE_CONTROL`: flushes, and a write after them.
    PipeControl,
    /// State of units that do not exist here.
    State,
    /// A draw.
    Draw,
    /// A compute dispatch.
    Compute,
}

/// An MI command. Their names are the hardware's, without `MI_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of the hardware documentation")]
pub enum Mi {
    /// `NOOP` and every command whose effect is not observable here: arbitration, display waits, power, application ids, fences.
    Noop,
    /// Writes into the status page, which does not exist, or loads units that do not exist.
    Skipped,
    SetPredicate,
    UserInterrupt,
    BatchBufferEnd,
    Predicate,
    Math,
    SemaphoreWait,
    StoreDataImm,
    LoadRegisterImm,
    StoreRegisterMem,
    FlushDw,
    LoadRegisterMem,
    LoadRegisterReg,
    CopyMemMem,
    Atomic,
    BatchBufferStart,
    ConditionalBatchBufferEnd,
}

/// A blitter command. Their names are the hardware's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of the hardware documentation")]
pub enum BlitOp {
    BlockCopy,
    FastCopy,
    FastColor,
    XyColor,
    XySrcCopy,
    MemCopy,
    MemSet,
    /// Moves compression data, which does not exist here.
    CtrlSurfCopy,
}

/// Decodes `header` as an engine of `class` does. `None` if the encoding is unknown or reserved.
pub fn decode(header: u32, class: EngineClass) -> Option<Decoded> {
    match header >> 29 {
        0 => decode_mi(header),
        2 if class == EngineClass::Copy => decode_blit(header),
        3 => Some(decode_pipeline(header, class)),
        5 => Some(Decoded { command: Command::State, dwords: low_bits(header, 8) + 2 }),
        _ => None,
    }
}

fn low_bits(header: u32, bits: u32) -> u32 {
    header & ((1 << bits) - 1)
}

fn decode_mi(header: u32) -> Option<Decoded> {
    let opcode = (header >> 23) & 0x3f;
    let mi = match opcode {
        0x00 | 0x03..=0x09 | 0x0b | 0x0d..=0x0f => Mi::Noop,
        0x01 => Mi::SetPredicate,
        0x02 => Mi::UserInterrupt,
        0x0a => Mi::BatchBufferEnd,
        0x0c => Mi::Predicate,
        // Scan line loads, context switch, semaphore signal, forced wake-up, cache line flush.
        0x12 | 0x13 | 0x18 | 0x1b | 0x1d | 0x27 => Mi::Noop,
        // Display flip, status page writes, counter reports, resource streamer and URB transfers.
        0x14 | 0x21 | 0x28 | 0x2b | 0x2c | 0x2d => Mi::Skipped,
        0x1a => Mi::Math,
        0x1c => Mi::SemaphoreWait,
        0x20 => Mi::StoreDataImm,
        0x22 => Mi::LoadRegisterImm,
        0x24 => Mi::StoreRegisterMem,
        0x26 => Mi::FlushDw,
        0x29 => Mi::LoadRegisterMem,
        0x2a => Mi::LoadRegisterReg,
        0x2e => Mi::CopyMemMem,
        0x2f => Mi::Atomic,
        0x31 => Mi::BatchBufferStart,
        0x36 => Mi::ConditionalBatchBufferEnd,
        _ => return None,
    };
    let dwords = match opcode {
        0..0x10 => 1,
        0x20 | 0x27 => low_bits(header, 10) + 2,
        0x26 | 0x28 => low_bits(header, 6) + 2,
        _ => low_bits(header, 8) + 2,
    };
    Some(Decoded { command: Command::Mi(mi), dwords })
}

fn decode_blit(header: u32) -> Option<Decoded> {
    let op = match (header >> 22) & 0x7f {
        0x41 => BlitOp::BlockCopy,
        0x42 => BlitOp::FastCopy,
        0x44 => BlitOp::FastColor,
        0x48 => BlitOp::CtrlSurfCopy,
        0x50 => BlitOp::XyColor,
        0x53 => BlitOp::XySrcCopy,
        0x5a => BlitOp::MemCopy,
        0x5b => BlitOp::MemSet,
        _ => return None,
    };
    Some(Decoded { command: Command::Blit(op), dwords: low_bits(header, 8) + 2 })
}

fn decode_pipeline(header: u32, class: EngineClass) -> Decoded {
    let subtype = (header >> 27) & 3;
    let video = matches!(class, EngineClass::VideoDecode | EngineClass::VideoEnhance);
    let opcode = header >> 16;
    let dwords = match (subtype, opcode) {
        // Single dwords, vertex fetch statistics among them.
        (1, _) | (_, 0x780b) => 1,
        // Stream-out declarations and binding table edits.
        (_, 0x7917 | 0x7843..=0x7847) => low_bits(header, 9) + 2,
        (2, _) if video => low_bits(header, 12) + 2,
        _ => low_bits(header, 8) + 2,
    };
    let command = match opcode {
        0x7a00 => Command::PipeControl,
        // Primitives, meshes, indirect draws.
        0x7b00..=0x7c00 => Command::Draw,
        0x7c01 => Command::Compute,
        // The low two bits of a compute command's opcode are its variant.
        _ if !video && opcode & !3 == 0x7208 => Command::Compute,
        _ => Command::State,
    };
    Decoded { command, dwords }
}
