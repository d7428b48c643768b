//! From a client's descriptor number to what of ours is behind it.

use std::sync::Arc;

use super::error::Error;
use crate::transport::{Call, Errno, File, downcast};

/// The file of type `T` behind descriptor `fd`.
///
/// # Errors
/// The transport's (`EBADF` for a descriptor that isn't open), and `otherwise` for one that is another kind of file.
pub(super) fn find<T: File>(
    call: &mut Call<'_>,
    fd: i32,
    what: &'static str,
    otherwise: Errno,
) -> Result<Arc<T>, Error> {
    downcast(call.file_of(fd)?).map_err(|_| Error::BadDescriptor { what, fd, errno: otherwise })
}
