//! Points in time: when a fence signalled, and until when to wait.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// A point of the system's monotonic clock (`CLOCK_MONOTONIC`), in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The current time.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        // The monotonic clock is never negative.
        Self(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }

    /// The time `ns` nanoseconds after the clock's zero.
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns)
    }

    /// Nanoseconds since the clock's zero.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
}

/// Until when to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Poll,
    At(Instant),
    Never,
}

impl Deadline {
    /// Wait for as long as it takes.
    pub const fn never() -> Self {
        Self(Kind::Never)
    }

    /// Wait until `instant`.
    pub const fn at(instant: Instant) -> Self {
        Self(Kind::At(instant))
    }

    /// Do not wait: look once.
    pub const fn poll() -> Self {
        Self(Kind::Poll)
    }

    /// Wait for `duration` from now; for ever where the clock can't express the end.
    pub fn after(duration: Duration) -> Self {
        if duration.is_zero() {
            return Self::poll();
        }
        Instant::now().checked_add(duration).map_or(Self::never(), Self::at)
    }

    /// Wait until the monotonic clock shows `time`; a time that has passed polls.
    pub fn at_timestamp(time: Timestamp) -> Self {
        Self::after(Duration::from_nanos(time.as_nanos().saturating_sub(Timestamp::now().as_nanos())))
    }

    /// Whether this deadline only looks and never sleeps.
    pub const fn is_poll(&self) -> bool {
        matches!(self.0, Kind::Poll)
    }

    /// Whether the deadline has passed.
    pub fn has_passed(&self) -> bool {
        match self.0 {
            Kind::Poll => true,
            Kind::At(instant) => Instant::now() >= instant,
            Kind::Never => false,
        }
    }

    /// When to wake up; `None` for never. A poll answers the present.
    pub fn instant(&self) -> Option<Instant> {
        match self.0 {
            Kind::Poll => Some(Instant::now()),
            Kind::At(instant) => Some(instant),
            Kind::Never => None,
        }
    }
}
