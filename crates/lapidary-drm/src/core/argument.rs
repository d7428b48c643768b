//! Moving an ioctl's argument between the client's bytes and our structures, whatever their sizes.

use bytemuck::Pod;

use super::error::Error;
use crate::transport::{Call, Errno};
use crate::uapi::ioctl::Command;

/// The structure as the handler sees it: the client's bytes, then zeros.
pub(super) fn read_argument<T: Pod>(ours: Command, theirs: Command, bytes: &[u8]) -> T {
    let mut value = T::zeroed();
    if ours.takes_input() && theirs.takes_input() {
        let target = bytemuck::bytes_of_mut(&mut value);
        let common = target.len().min(bytes.len());
        target[..common].copy_from_slice(&bytes[..common]);
    }
    value
}

/// The structure as the client gets it back: as much of it as there is room for; of what a longer
/// argument has beyond it, what the client gave, or zeros if it gave nothing.
pub(super) fn write_argument<T: Pod>(ours: Command, theirs: Command, value: &T, bytes: &mut [u8]) {
    if !(ours.gives_output() && theirs.gives_output()) {
        return;
    }
    let source = bytemuck::bytes_of(value);
    let common = source.len().min(bytes.len());
    bytes[..common].copy_from_slice(&source[..common]);
    if !(ours.takes_input() && theirs.takes_input()) {
        bytes[common..].fill(0);
    }
}

/// Has `work` do what `command` says on the structure in `bytes`. It goes back to the client only if that went well.
///
/// # Errors
/// Those of `work`.
pub(crate) fn with_argument<T: Pod>(
    command: Command,
    bytes: &mut [u8],
    work: impl FnOnce(&mut T) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut value = read_argument(command, command, bytes);
    work(&mut value)?;
    write_argument(command, command, &value, bytes);
    Ok(())
}

/// A zero-terminated text of the client's, its zero included at most `limit` bytes long.
///
/// # Errors
/// `EFAULT` if it can't be read, `EINVAL` if it is longer.
pub(super) fn read_text(call: &Call<'_>, address: u64, limit: usize) -> Result<String, Error> {
    let mut text = Vec::with_capacity(limit);
    while text.len() < limit {
        let mut byte = [0];
        call.memory().read(address.wrapping_add(text.len() as u64), &mut byte)?;
        if byte[0] == 0 {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
        text.push(byte[0]);
    }
    Err(Error::refused(Errno::INVAL, "the name is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Command = Command::iowr::<[u32; 2]>(b'd', 0x40);

    #[test]
    fn a_shorter_argument_is_extended_with_zeros_and_copied_back_at_its_own_size() {
        let theirs = Command::iowr::<[u32; 1]>(b'd', 0x40);
        let mut bytes = 7_u32.to_ne_bytes();
        let mut value: [u32; 2] = read_argument(OURS, theirs, &bytes);
        assert_eq!(value, [7, 0]);
        value = [8, 9];
        write_argument(OURS, theirs, &value, &mut bytes);
        assert_eq!(u32::from_ne_bytes(bytes), 8);
    }

    #[test]
    fn a_longer_argument_keeps_what_is_beyond_ours() {
        let theirs = Command::iowr::<[u32; 3]>(b'd', 0x40);
        let mut words = [1_u32, 2, 3];
        let value: [u32; 2] = read_argument(OURS, theirs, bytemuck::cast_slice(&words));
        assert_eq!(value, [1, 2]);
        write_argument(OURS, theirs, &[4_u32, 5], bytemuck::cast_slice_mut(&mut words));
        assert_eq!(words, [4, 5, 3]);
    }

    #[test]
    fn directions_are_those_both_sides_agree_on() {
        let theirs = Command::ior::<[u32; 3]>(b'd', 0x40);
        let mut words = [1_u32, 2, 3];
        let value: [u32; 2] = read_argument(OURS, theirs, bytemuck::cast_slice(&words));
        assert_eq!(value, [0, 0], "the client hands nothing in");
        write_argument(OURS, theirs, &[4_u32, 5], bytemuck::cast_slice_mut(&mut words));
        assert_eq!(words, [4, 5, 0]);
        let theirs = Command::iow::<[u32; 2]>(b'd', 0x40);
        let mut words = [1_u32, 2];
        write_argument(OURS, theirs, &[4_u32, 5], bytemuck::cast_slice_mut(&mut words));
        assert_eq!(words, [1, 2], "the client wants nothing back");
    }
}
