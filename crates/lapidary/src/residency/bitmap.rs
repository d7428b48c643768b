//! A bitmap that finds its first set bit quickly: each level has one bit per word of the level below that says
//! whether the word has any.

use alloc::{vec, vec::Vec};

/// A fixed number of bits, all clear at first.
///
/// # Invariants
/// A bit of `levels[n + 1]` is set exactly if its word of `levels[n]` is not zero. The last level is one word.
#[derive(Debug, Clone)]
pub(super) struct Bitmap {
    levels: Vec<Vec<u64>>,
}

impl Bitmap {
    pub(super) fn new(bits: usize) -> Self {
        let mut levels = Vec::new();
        let mut words = bits.div_ceil(64).max(1);
        loop {
            levels.push(vec![0; words]);
            if words == 1 {
                return Self { levels };
            }
            words = words.div_ceil(64);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.levels[self.levels.len() - 1][0] == 0
    }

    /// Whether a bit is set; bits beyond the end are clear.
    pub(super) fn get(&self, bit: usize) -> bool {
        self.levels[0].get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    pub(super) fn set(&mut self, bit: usize) {
        let mut at = bit;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            let before = *word;
            *word |= 1 << (at % 64);
            if before != 0 {
                return;
            }
            at /= 64;
        }
    }

    pub(super) fn clear(&mut self, bit: usize) {
        let mut at = bit;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            *word &= !(1 << (at % 64));
            if *word != 0 {
                return;
            }
            at /= 64;
        }
    }

    /// The lowest set bit.
    pub(super) fn first(&self) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        let mut at = 0;
        for level in self.levels.iter().rev() {
            at = at * 64 + level[at].trailing_zeros() as usize;
        }
        Some(at)
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        (0..self.levels[0].len() * 64).filter(|&bit| self.get(bit))
    }
}
