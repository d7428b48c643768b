//! Why a fence failed, and why a wait ended early.

use thiserror::Error;

/// The error a fence signalled with.
///
/// An error does not keep waiters waiting: the fence has signalled, and [`Fence::status`](super::Fence::status)
/// says how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum FenceError {
    /// The work was given up before it was done; also what a dropped signaller means.
    #[error("the work behind the fence was cancelled")]
    Cancelled,
    /// The work ran for longer than it may and was stopped (a hang).
    #[error("the work behind the fence ran for too long and was stopped")]
    TimedOut,
    /// The work accessed memory that it may not.
    #[error("the work behind the fence accessed memory that is not mapped for it")]
    Fault,
    /// The device failed to carry out the work.
    #[error("the device failed to carry out the work behind the fence")]
    Device,
    /// The device is gone.
    #[error("the device that had the work behind the fence is gone")]
    DeviceLost,
    /// The work needed memory and got none.
    #[error("no memory for the work behind the fence")]
    NoMemory,
    /// A number that only the producer can explain.
    #[error("the work behind the fence failed with driver error {0}")]
    Other(u16),
}

impl FenceError {
    /// A number below 2^24 for the state word; never 0, which stands for success.
    pub(super) fn to_bits(self) -> u32 {
        match self {
            Self::Cancelled => 1,
            Self::TimedOut => 2,
            Self::Fault => 3,
            Self::Device => 4,
            Self::DeviceLost => 5,
            Self::NoMemory => 6,
            Self::Other(code) => 0x1_0000 | u32::from(code),
        }
    }

    /// The inverse of [`to_bits`](Self::to_bits); `None` for success.
    pub(super) fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits {
            0 => return None,
            1 => Self::Cancelled,
            2 => Self::TimedOut,
            3 => Self::Fault,
            4 => Self::Device,
            5 => Self::DeviceLost,
            6 => Self::NoMemory,
            other => Self::Other((other & 0xffff) as u16),
        })
    }
}

/// Why a wait returned before what it waited for had happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum WaitError {
    /// The deadline passed.
    #[error("the deadline passed before what was waited for happened")]
    TimedOut,
    /// The [`Interrupt`](super::Interrupt) given to the wait was raised.
    #[error("the wait was interrupted")]
    Interrupted,
}

#[cfg(test)]
mod tests {
    use super::FenceError;

    #[test]
    fn every_error_survives_the_state_word() {
        let errors = [
            FenceError::Cancelled,
            FenceError::TimedOut,
            FenceError::Fault,
            FenceError::Device,
            FenceError::DeviceLost,
            FenceError::NoMemory,
            FenceError::Other(0),
            FenceError::Other(u16::MAX),
        ];
        for error in errors {
            assert!(error.to_bits() < 1 << 24);
            assert_eq!(FenceError::from_bits(error.to_bits()), Some(error));
        }
        assert_eq!(FenceError::from_bits(0), None);
    }
}
