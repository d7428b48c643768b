//! What a request can fail with, and the one place where that becomes an errno.
//!
//! Handlers return [`Error`], which says what was wrong and with which value; the client gets a bare
//! number, as from a kernel, and the words go to the log. Errors of the layers below arrive by `?`.

use lapidary::exec::ExecError;
use lapidary::fence::{FenceError, WaitError};
use lapidary::gem::HandlesExhausted;
use lapidary::resv::ResvError;
use lapidary::syncobj::SyncobjError;

use crate::transport::Errno;

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument has a value that it can't have: `EINVAL`.
    #[error("{what} can't be {value:#x}")]
    Invalid {
        /// The argument.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// Something is named that isn't there: `ENOENT`.
    #[error("there is no {what} {value:#x}")]
    NotFound {
        /// The kind of thing.
        what: &'static str,
        /// Its name.
        value: u64,
    },
    /// The file may not do this: `EACCES`.
    #[error("{0} is not permitted to this file")]
    Denied(&'static str),
    /// The driver or device can't do this: `EOPNOTSUPP`.
    #[error("{0} is not supported by this device")]
    Unsupported(&'static str),
    /// A descriptor is of another kind than it must be, or none: the errno depends on the request.
    #[error("descriptor {fd} is not {what}")]
    BadDescriptor {
        /// What it should have been.
        what: &'static str,
        /// The number the client gave.
        fd: i32,
        /// The answer.
        errno: Errno,
    },
    /// The time was up before the wait was over: `ETIME`.
    #[error("the wait timed out")]
    TimedOut,
    /// A signal or the client's death ended the wait: `EINTR`.
    #[error("the wait was interrupted")]
    Interrupted,
    /// No memory, or a limit reached: `ENOMEM`.
    #[error("no memory for {0}")]
    OutOfMemory(&'static str),
    /// Anything with an errno of its own.
    #[error("{why}: {errno}")]
    Refused {
        /// The answer.
        errno: Errno,
        /// The reason, for the log.
        why: &'static str,
    },
    /// From the system or the client's memory.
    #[error("{0}")]
    System(#[from] Errno),
}

impl Error {
    /// `EINVAL`: `what` can't be `value`.
    pub fn invalid(what: &'static str, value: impl TryInto<u64>) -> Self {
        Self::Invalid { what, value: value.try_into().unwrap_or(u64::MAX) }
    }

    /// `ENOENT`: there is no `what` of the name `value`.
    pub fn not_found(what: &'static str, value: impl TryInto<u64>) -> Self {
        Self::NotFound { what, value: value.try_into().unwrap_or(u64::MAX) }
    }

    /// `errno`, because of `why`.
    #[must_use]
    pub const fn refused(errno: Errno, why: &'static str) -> Self {
        Self::Refused { errno, why }
    }

    /// What the client is told.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Invalid { .. } => Errno::INVAL,
            Self::NotFound { .. } => Errno::NOENT,
            Self::Denied(_) => Errno::ACCESS,
            Self::Unsupported(_) => Errno::OPNOTSUPP,
            Self::TimedOut => Errno::TIME,
            Self::Interrupted => Errno::INTR,
            Self::OutOfMemory(_) => Errno::NOMEM,
            Self::BadDescriptor { errno, .. } | Self::Refused { errno, .. } | Self::System(errno) => *errno,
        }
    }
}

impl From<HandlesExhausted> for Error {
    fn from(_: HandlesExhausted) -> Self {
        Self::OutOfMemory("another handle")
    }
}

impl From<WaitError> for Error {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut => Self::TimedOut,
            WaitError::Interrupted => Self::Interrupted,
        }
    }
}

impl From<SyncobjError> for Error {
    fn from(error: SyncobjError) -> Self {
        match error {
            SyncobjError::NotSubmitted(point) => {
                Self::Invalid { what: "the point of a syncobj that has no fence there", value: point }
            }
            SyncobjError::TimedOut => Self::TimedOut,
            SyncobjError::Interrupted => Self::Interrupted,
        }
    }
}

impl From<ResvError> for Error {
    fn from(error: ResvError) -> Self {
        ExecError::from(error).into()
    }
}

impl From<ExecError> for Error {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Contended => Self::refused(Errno::DEADLK, "an older operation is in the way"),
            ExecError::AlreadyLocked => Self::refused(Errno::ALREADY, "a buffer is named twice"),
            ExecError::Interrupted => Self::Interrupted,
            ExecError::OutOfMemory(_) => Self::OutOfMemory("a buffer's fences"),
        }
    }
}

/// How a fence's failure is told to a client.
#[must_use]
pub fn fence_errno(error: FenceError) -> Errno {
    match error {
        FenceError::Cancelled => Errno::CANCELED,
        FenceError::TimedOut => Errno::TIME,
        FenceError::Fault => Errno::FAULT,
        FenceError::Device => Errno::IO,
        FenceError::DeviceLost => Errno::NODEV,
        FenceError::NoMemory => Errno::NOMEM,
        // Drivers make these with `fence_error`.
        FenceError::Other(number @ 1..4096) => Errno::from_raw_os_error(number.into()),
        FenceError::Other(_) => Errno::IO,
    }
}

/// The failure of a fence that clients are told as `errno`, where none of the library's says it better.
#[must_use]
pub fn fence_error(errno: Errno) -> FenceError {
    FenceError::Other(errno.raw_os_error().unsigned_abs() as u16)
}

/// Refuses a field that must be zero and isn't.
///
/// # Errors
/// [`Error::Invalid`].
pub fn must_be_zero(what: &'static str, value: impl Into<u64>) -> Result<(), Error> {
    only_bits(what, value, 0_u64)
}

/// Refuses a field with bits set outside `allowed`.
///
/// # Errors
/// [`Error::Invalid`].
pub fn only_bits(what: &'static str, value: impl Into<u64>, allowed: impl Into<u64>) -> Result<(), Error> {
    let value = value.into();
    if value & !allowed.into() == 0 {
        return Ok(());
    }
    Err(Error::Invalid { what, value })
}
