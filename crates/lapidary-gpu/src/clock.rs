//! The GPU's clock.

use lapidary::fence::Timestamp;

use crate::bus::TIMESTAMP_HZ;

/// Converts the monotonic clock to ticks since the GPU started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Timestamp,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Timestamp::now() }
    }

    /// Ticks at `time`; 0 before the start.
    pub(crate) fn ticks_at(&self, time: Timestamp) -> u64 {
        ticks(time.as_nanos().saturating_sub(self.start.as_nanos()))
    }
}

/// Ticks in `ns` nanoseconds.
pub(crate) fn ticks(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(TIMESTAMP_HZ) / 1_000_000_000) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_the_advertised_number_of_ticks_even_after_years() {
        assert_eq!(ticks(1_000_000_000), TIMESTAMP_HZ);
        let year = 365 * 24 * 3600;
        assert_eq!(ticks(10 * year * 1_000_000_000), 10 * year * TIMESTAMP_HZ);
    }
}
