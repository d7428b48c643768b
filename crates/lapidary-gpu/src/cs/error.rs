//! Why a batch can't go on.

use crate::bus::{Fault, GpuVa};

/// Why a step failed. The streamer stays at the command that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsError {
    /// A memory access failed. If the cause is removed, stepping again repeats the access and goes on.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The hardware would hang on this command. Stepping again fails again.
    #[error("invalid command {dword:#010x} at {address}: {reason}")]
    InvalidCommand {
        /// The command's header.
        dword: u32,
        /// Where the command is.
        address: GpuVa,
        /// What is wrong with it.
        reason: &'static str,
    },
}
