//! Chains of user extensions: `set_property` records that an ioctl's argument points to.

use super::uapi::{self, ExtSetProperty, UserExtension};
use crate::core::{Error, must_be_zero};
use crate::transport::{ClientMemory, Errno};

/// The longest chain that is followed; a longer one, or a cycle, is `E2BIG`, as in the kernel.
const MAX_CHAIN: usize = 16;

/// Calls `set` with every property of the chain at `head`, all of whose links must be named `name`.
///
/// # Errors
/// `EFAULT` for a link outside the client's memory, `EINVAL` for another extension or non-zero padding, `E2BIG` for a
/// chain that does not end, and whatever `set` answers.
pub(super) fn for_each_property(
    memory: &ClientMemory,
    head: u64,
    name: u32,
    mut set: impl FnMut(u32, u64) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut at = head;
    for _ in 0..MAX_CHAIN {
        if at == 0 {
            return Ok(());
        }
        let link: UserExtension = memory.read_pod(at)?;
        if link.name != name {
            return Err(Error::invalid("the name of an extension", link.name));
        }
        must_be_zero("an extension's padding", link.pad)?;
        let property: ExtSetProperty = memory.read_pod(at)?;
        must_be_zero("a property's padding", property.pad)?;
        must_be_zero("a property's reserved field", property.reserved[0] | property.reserved[1])?;
        set(property.property, property.value)?;
        at = link.next_extension;
    }
    if at == 0 { Ok(()) } else { Err(Error::refused(Errno::TOOBIG, "the chain of extensions does not end")) }
}

/// The property that asks for protected content, which this device does not have.
///
/// # Errors
/// `ENODEV` where it is asked for, `EINVAL` for an unknown kind of it.
pub(super) fn protected_content(kind: u64) -> Result<(), Error> {
    match kind {
        uapi::PXP_TYPE_NONE => Ok(()),
        uapi::PXP_TYPE_HWDRM => Err(Error::refused(Errno::NODEV, "the device has no protected content")),
        unknown => Err(Error::invalid("a kind of protected content", unknown)),
    }
}
