//! How long to spin before sleeping.
//!
//! Spinning for less than a sleep and a wake cost is worth it, more is waste. The bound follows what was seen: waits
//! that ended while spinning pull it towards twice their length; a wait that ended soon after going to sleep
//! raises it; one that took long halves it. If even the longest spin is missed, spinning is given up for a while. So a
//! client that pauses between calls, or calls that wait for the GPU, cost hardly any spinning, and back-to-back calls never
//! sleep.

/// The longest spin. About what going to sleep and being woken on another core costs.
pub const LONGEST_NS: u64 = 50_000;
/// A wait of this length may have ended within the longest spin: being woken takes the rest.
const SOON_NS: u64 = LONGEST_NS + 150_000;
/// For how many waits spinning is given up.
const PENALTY: u8 = 32;
/// The shortest bound: without any spinning nothing would be learned for free.
pub const SHORTEST_NS: u64 = 1_000;

/// The bound of one side of one channel.
#[derive(Debug, Clone, Copy)]
pub struct Spin {
    bound: u64,
    /// Waits for which the bound does not grow.
    penalty: u8,
}

impl Spin {
    /// A bound in the middle.
    pub const fn new() -> Self {
        Self { bound: 10_000, penalty: 0 }
    }

    /// How many nanoseconds to spin now.
    pub const fn bound_ns(&self) -> u64 {
        self.bound
    }

    /// A wait ended while spinning, after this many nanoseconds.
    pub fn hit(&mut self, ns: u64) {
        let wanted = (2 * ns.min(LONGEST_NS)).max(SHORTEST_NS);
        self.bound = ((7 * self.bound + wanted) / 8).clamp(SHORTEST_NS, LONGEST_NS);
    }

    /// A wait went to sleep and ended after this many nanoseconds in all.
    pub fn slept(&mut self, ns: u64) {
        self.penalty = self.penalty.saturating_sub(1);
        if self.bound == LONGEST_NS {
            self.bound = SHORTEST_NS;
            self.penalty = PENALTY;
            return;
        }
        let grows = ns <= SOON_NS && self.penalty == 0;
        self.bound = if grows { 2 * self.bound } else { self.bound / 2 };
        self.bound = self.bound.clamp(SHORTEST_NS, LONGEST_NS);
    }
}

impl Default for Spin {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_waits_end_spinning_and_short_ones_bring_it_back() {
        let mut spin = Spin::new();
        for _ in 0..10 {
            spin.slept(1_000_000);
        }
        assert_eq!(spin.bound_ns(), SHORTEST_NS);
        for _ in 0..6 {
            spin.slept(60_000);
        }
        assert_eq!(spin.bound_ns(), LONGEST_NS);
        for _ in 0..100 {
            spin.hit(600);
        }
        assert!(spin.bound_ns() < 2_000);
    }

    #[test]
    fn waits_just_beyond_the_longest_spin_cost_little() {
        let mut spin = Spin::new();
        let spun: u64 = (0..1000)
            .map(|_| {
                let bound = spin.bound_ns();
                spin.slept(150_000);
                bound
            })
            .sum();
        assert!(spun / 1000 < 5_000, "{}", spun / 1000);
    }
}
