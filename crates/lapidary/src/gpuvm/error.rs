//! What can be wrong with a request to an address space.

use super::va::VaRange;

/// Why an address space refused a request. Nothing has changed where one of these is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// The range leaves the address space.
    #[error("range {range} leaves the address space {space}")]
    OutsideSpace {
        /// What was asked for.
        range: VaRange,
        /// What the address space covers.
        space: VaRange,
    },
    /// The range touches what is reserved for the kernel.
    #[error("range {range} touches the kernel's {reserved}")]
    KernelReserved {
        /// What was asked for.
        range: VaRange,
        /// What is reserved.
        reserved: VaRange,
    },
    /// The backing does not reach to the end of the range: its offset or address would wrap around.
    #[error("offset {offset:#x} plus {len:#x} bytes overflows")]
    OffsetOverflow {
        /// The offset into the object, or the host address.
        offset: u64,
        /// Length of the range in bytes.
        len: u64,
    },
    /// The address space would hold more mappings than it may.
    #[error("the address space is at its limit of {limit} mappings")]
    TooManyMappings {
        /// The limit.
        limit: u32,
    },
    /// No memory for the records, the index or the list of steps, or none that the owner may have.
    #[error("out of memory for an address space's records")]
    OutOfMemory,
    /// The `VmBo` belongs to another address space.
    #[error("the object was tied to another address space")]
    ForeignVmBo,
    /// The address space was closed.
    #[error("the address space is closed")]
    Closed,
}
