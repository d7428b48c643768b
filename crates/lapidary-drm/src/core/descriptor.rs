//! From a client's descriptor number to what of ours is behind it.

use std::any::Any;
use std::sync::Arc;

use super::error::Error;
use crate::transport::{Call, Errno};

/// The file of type `T` behind descriptor `fd`.
///
/// # Errors
/// The transport's (`EBADF` for a descriptor that isn't open), and `otherwise` for one that is another kind of file.
pub(super) fn find<T: Any + Send + Sync>(
    call: &mut Call<'_>,
    fd: i32,
    what: &'static str,
    otherwise: Errno,
) -> Result<Arc<T>, Error> {
    let file: Arc<dyn Any + Send + Sync> = call.file_of(fd)?;
    file.downcast().map_err(|_| Error::BadDescriptor {
        what,
        fd,
        errno: otherwise,
    })
}
