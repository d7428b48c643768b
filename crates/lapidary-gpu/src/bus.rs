//! What a command streamer sees of the world: memory at GPU virtual addresses, a clock, counters.
//!
//! An engine lends a [`Bus`] to its streamer for one step at a time. A translation that an access used, and every
//! [`Chunk`] handed out, stays good until that step ends, because engines acknowledge TLB invalidations between steps only.
//! Hence a step must be short (see [`STEP_BYTES`]), and the borrow in `Chunk<'_>` keeps a streamer from storing one.
//!
//! The bytes are shared with client processes and other engines, which write them at any time. Nothing here hands out a
//! reference to them; aligned accesses of 4 and 8 bytes are single-copy atomic, longer ones may tear.

use std::fmt;

use crate::chunk::Chunk;

/// Most bytes that one step of a streamer should read or write, so that preemption and TLB invalidations stay prompt.
pub const STEP_BYTES: u64 = 1 << 20;

/// Ticks per second of [`Bus::timestamp`] and [`Bus::context_timestamp`].
pub const TIMESTAMP_HZ: u64 = 19_200_000;

/// A virtual address in a 48-bit GPU address space, zero-extended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpuVa(u64);

impl GpuVa {
    /// Bits of a GPU virtual address.
    pub const BITS: u32 = 48;
    const MASK: u64 = (1 << Self::BITS) - 1;

    /// The address in the low 48 bits of `raw`: canonical (sign-extended) and zero-extended forms mean the same.
    pub const fn new(raw: u64) -> Self {
        Self(raw & Self::MASK)
    }

    /// The address, zero-extended.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address, sign-extended from bit 47.
    pub const fn canonical(self) -> u64 {
        (((self.0 << 16) as i64) >> 16) as u64
    }

    /// The address `bytes` further on; wraps at 48 bits, as the hardware's adders do.
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        Self::new(self.0.wrapping_add(bytes))
    }
}

impl fmt::Display for GpuVa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#014x}", self.0)
    }
}

/// What an access wanted to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Data or commands are read.
    Read,
    /// Data is written.
    Write,
    /// Read, modified and written in one go.
    Atomic,
}

impl Access {
    /// Whether the access needs a writable mapping.
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Read)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Atomic => "atomic",
        })
    }
}

/// Why an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// No page-table entry is present for the address.
    NotPresent,
    /// The mapping is read-only.
    ReadOnly,
    /// The translation leads to a device address where no memory is attached: the driver took the memory away but left the
    /// entry, or did not invalidate the TLB.
    NoMemory,
    /// The memory is there but the host could not read or write it (a client's page that is gone).
    Host,
    /// An atomic on an address that is not a multiple of its size.
    Misaligned,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPresent => "not present",
            Self::ReadOnly => "read-only",
            Self::NoMemory => "no memory at the device address",
            Self::Host => "host memory not accessible",
            Self::Misaligned => "misaligned",
        })
    }
}

/// An access that failed. The engine adds who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{access} at {va}: {kind}")]
pub struct Fault {
    /// First address that could not be accessed (within the first bad page; not necessarily its start).
    pub va: GpuVa,
    /// What was tried.
    pub access: Access,
    /// Why it failed.
    pub kind: FaultKind,
}

/// Something worth counting that a streamer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// A command was executed.
    Command,
    /// A command that only sets 3D, compute or media state was skipped by its length.
    SkippedState,
    /// A draw (`3DPRIMITIVE` and the like) was skipped: a shader would have run.
    SkippedDraw,
    /// A compute walker was skipped: a shader would have run.
    SkippedCompute,
    /// Bytes were copied from memory to memory (counted once, at the destination).
    Copied(u64),
    /// Bytes were filled with a constant.
    Filled(u64),
}

/// A streamer's access to memory and to its engine, for the duration of one step.
///
/// Every method that takes an address translates it through the context's address space. Accesses may cross pages; addresses
/// wrap at 48 bits. Where a fault is returned, bytes before the faulting page may have been transferred.
/// Unmapped addresses of an address space with a scratch page read as zero and swallow writes, as null mappings do.
pub trait Bus {
    /// Copies memory at `va` into `buf`.
    ///
    /// # Errors
    /// The first access that failed.
    fn read(&self, va: GpuVa, buf: &mut [u8]) -> Result<(), Fault>;

    /// Copies `buf` to memory at `va`.
    ///
    /// # Errors
    /// The first access that failed.
    fn write(&self, va: GpuVa, buf: &[u8]) -> Result<(), Fault>;

    /// Reads a little-endian dword; one atomic access if `va` is a multiple of 4.
    ///
    /// # Errors
    /// The access that failed.
    fn read_u32(&self, va: GpuVa) -> Result<u32, Fault>;

    /// Reads a little-endian qword; one atomic access if `va` is a multiple of 8.
    ///
    /// # Errors
    /// The access that failed.
    fn read_u64(&self, va: GpuVa) -> Result<u64, Fault>;

    /// Writes a little-endian dword; one atomic access with release ordering if `va` is a multiple of 4.
    ///
    /// # Errors
    /// The access that failed.
    fn write_u32(&self, va: GpuVa, value: u32) -> Result<(), Fault>;

    /// Writes a little-endian qword; one atomic access with release ordering if `va` is a multiple of 8.
    ///
    /// # Errors
    /// The access that failed.
    fn write_u64(&self, va: GpuVa, value: u64) -> Result<(), Fault>;

    /// Replaces the dword at `va` by `update` of it, and returns the old one. A real CPU atomic on mapped memory: `update` may
    /// then run more than once.
    ///
    /// # Errors
    /// The access that failed; [`FaultKind::Misaligned`] unless `va` is a multiple of 4.
    fn atomic_u32(&self, va: GpuVa, update: &mut dyn FnMut(u32) -> u32) -> Result<u32, Fault>;

    /// Replaces the qword at `va` by `update` of it, and returns the old one. A real CPU atomic on mapped memory: `update` may
    /// then run more than once.
    ///
    /// # Errors
    /// The access that failed; [`FaultKind::Misaligned`] unless `va` is a multiple of 8.
    fn atomic_u64(&self, va: GpuVa, update: &mut dyn FnMut(u64) -> u64) -> Result<u64, Fault>;

    /// The longest piece of memory at `va`, at least 1 and at most `len` bytes, that is contiguous on the host. `len` must not be 0.
    /// Several chunks may be held at once. A null mapping gives a chunk that reads as zero.
    ///
    /// # Errors
    /// The access that failed.
    fn chunk(&self, va: GpuVa, len: u64, access: Access) -> Result<Chunk<'_>, Fault>;

    /// Time since the device started, in ticks of [`TIMESTAMP_HZ`]; the same clock for all engines.
    fn timestamp(&self) -> u64;

    /// Time that this context has run, in ticks of [`TIMESTAMP_HZ`].
    fn context_timestamp(&self) -> u64;

    /// Counts `work` for statistics.
    fn count(&self, work: Work);

    /// The commands asked for a user interrupt: whoever waits for a value in memory should look again.
    fn user_interrupt(&self);
}
