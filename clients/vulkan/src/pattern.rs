//! Bytes that are easy to tell apart, and finding the first that differs.

use anyhow::{Result, bail};

/// `len` bytes that depend on `seed` and on their place: a copy from the wrong place never fits.
pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len.next_multiple_of(8));
    while bytes.len() < len {
        bytes.extend_from_slice(&next(&mut state).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The next number of a SplitMix64 sequence.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Compares and names the first byte that differs.
///
/// # Errors
/// When the two are not equal.
pub(crate) fn compare(what: &str, expected: &[u8], found: &[u8]) -> Result<()> {
    if expected.len() != found.len() {
        bail!("{what}: {} bytes expected, {} found", expected.len(), found.len());
    }
    let Some(first) = expected.iter().zip(found).position(|(a, b)| a != b) else { return Ok(()) };
    let differing = expected.iter().zip(found).filter(|(a, b)| a != b).count();
    let end = (first + 8).min(expected.len());
    bail!(
        "{what}: {differing} of {} bytes differ, the first at {first} ({first:#x}): expected {}, found {}",
        expected.len(),
        hex(&expected[first..end]),
        hex(&found[first..end])
    )
}

fn hex(bytes: &[u8]) -> String {
    let words: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_differing_byte_is_named() {
        let error = compare("copy", &[1, 2, 3], &[1, 9, 9]).unwrap_err().to_string();
        assert_eq!(error, "copy: 2 of 3 bytes differ, the first at 1 (0x1): expected 02 03, found 09 09");
        assert!(compare("copy", &[1], &[1]).is_ok());
    }

    #[test]
    fn bytes_depend_on_seed_and_place() {
        assert_ne!(bytes(1, 64), bytes(2, 64));
        assert_ne!(bytes(1, 64)[..32], bytes(1, 64)[32..]);
        assert_eq!(bytes(3, 13).len(), 13);
        assert_eq!(bytes(3, 13)[..5], bytes(3, 5));
    }
}
