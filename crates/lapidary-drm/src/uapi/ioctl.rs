//! How an ioctl number is made: direction, size of the argument, type letter, number.
//!
//! ```text
//!  31 30 29               16 15       8 7        0
//! +-----+-------------------+----------+----------+
//! | dir |  argument size    |   type   |  number  |
//! +-----+-------------------+----------+----------+
//! ```
//!
//! The direction is the client's: *write* means that the client hands bytes in, *read* that it gets bytes out.

use std::fmt;

const NR_BITS: u32 = 8;
const TYPE_BITS: u32 = 8;
const SIZE_BITS: u32 = 14;
const TYPE_SHIFT: u32 = NR_BITS;
const SIZE_SHIFT: u32 = TYPE_SHIFT + TYPE_BITS;
const DIR_SHIFT: u32 = SIZE_SHIFT + SIZE_BITS;
const DIR_WRITE: u32 = 1;
const DIR_READ: u32 = 2;

/// An ioctl command number as a client passes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Command(pub u32);

impl Command {
    /// A command without argument (`_IO`).
    #[must_use]
    pub const fn io(kind: u8, nr: u8) -> Self {
        Self::make(0, kind, nr, 0)
    }

    /// A command whose argument the client only reads (`_IOR`).
    #[must_use]
    pub const fn ior<T>(kind: u8, nr: u8) -> Self {
        Self::make(DIR_READ, kind, nr, size_of::<T>())
    }

    /// A command whose argument the client only writes (`_IOW`).
    #[must_use]
    pub const fn iow<T>(kind: u8, nr: u8) -> Self {
        Self::make(DIR_WRITE, kind, nr, size_of::<T>())
    }

    /// A command whose argument goes both ways (`_IOWR`).
    #[must_use]
    pub const fn iowr<T>(kind: u8, nr: u8) -> Self {
        Self::make(DIR_READ | DIR_WRITE, kind, nr, size_of::<T>())
    }

    const fn make(dir: u32, kind: u8, nr: u8, size: usize) -> Self {
        assert!(size < 1 << SIZE_BITS, "an ioctl argument is smaller than 16 KiB");
        Self(dir << DIR_SHIFT | (size as u32) << SIZE_SHIFT | (kind as u32) << TYPE_SHIFT | nr as u32)
    }

    /// The number within the type.
    #[must_use]
    pub const fn nr(self) -> u8 {
        self.0 as u8
    }

    /// The type letter, which names the subsystem.
    #[must_use]
    pub const fn kind(self) -> u8 {
        (self.0 >> TYPE_SHIFT) as u8
    }

    /// The argument's size in bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        (self.0 >> SIZE_SHIFT) as usize & ((1 << SIZE_BITS) - 1)
    }

    /// Whether the client hands bytes in.
    #[must_use]
    pub const fn takes_input(self) -> bool {
        self.0 >> DIR_SHIFT & DIR_WRITE != 0
    }

    /// Whether the client gets bytes out.
    #[must_use]
    pub const fn gives_output(self) -> bool {
        self.0 >> DIR_SHIFT & DIR_READ != 0
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:#010x} ({:?} {:#04x}, {} bytes)",
            self.0,
            char::from(self.kind()),
            self.nr(),
            self.size()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_takes_apart_into_what_it_was_made_of() {
        let command = Command::iowr::<[u8; 40]>(b'd', 0xc3);
        assert_eq!(command.0, 0xc028_64c3);
        assert_eq!((command.kind(), command.nr(), command.size()), (b'd', 0xc3, 40));
        assert!(command.takes_input() && command.gives_output());
        let input = Command::iow::<u64>(b'b', 0);
        assert!(input.takes_input() && !input.gives_output());
    }
}
