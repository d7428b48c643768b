//! How errors of the library and the GPU read to a client.

use lapidary::gpuvm::VmError;
use lapidary::residency::ResidencyError;
use lapidary::sched::ArmError;
use lapidary_gpu::GpuError;
use lapidary_gpu::pagetable::PageTableError;

use crate::core::Error;
use crate::transport::Errno;

impl From<VmError> for Error {
    fn from(error: VmError) -> Self {
        tracing::debug!(%error, "address space");
        match error {
            VmError::Closed => Self::refused(Errno::NOENT, "the VM is closed"),
            VmError::OutOfMemory => Self::OutOfMemory("an address space's records"),
            VmError::TooManyMappings { .. } => Self::OutOfMemory("one more mapping"),
            _ => Self::refused(Errno::INVAL, "a range that can't be mapped"),
        }
    }
}

impl From<ResidencyError> for Error {
    fn from(error: ResidencyError) -> Self {
        match error {
            ResidencyError::Exec(error) => error.into(),
            ResidencyError::Interrupted => Self::Interrupted,
            ResidencyError::NoSpace { .. } => Self::OutOfMemory("a buffer in any region it may live in"),
            other => {
                tracing::debug!(error = %other, "residency");
                Self::refused(Errno::INVAL, "a buffer that can't be placed")
            }
        }
    }
}

impl From<ArmError> for Error {
    fn from(error: ArmError) -> Self {
        match error {
            ArmError::Full(_) => Self::refused(Errno::NOBUFS, "too many jobs of the queue are waiting"),
            ArmError::Killed(_) => Self::refused(Errno::CANCELED, "the queue is banned or destroyed"),
        }
    }
}

impl From<PageTableError> for Error {
    fn from(error: PageTableError) -> Self {
        match error {
            PageTableError::OutOfNodes { .. } => Self::OutOfMemory("page-table nodes"),
            PageTableError::OverQuota { .. } => Self::OutOfMemory("more page tables of one client"),
            other => {
                tracing::debug!(error = %other, "page tables");
                Self::refused(Errno::INVAL, "a range that page tables can't hold")
            }
        }
    }
}

impl From<GpuError> for Error {
    fn from(error: GpuError) -> Self {
        tracing::debug!(%error, "GPU");
        Self::refused(Errno::NODEV, "an engine that the device does not have")
    }
}
