//! What a descriptor is, by asking the kernel each time: programs close and reuse numbers behind our back.

use std::ffi::c_int;

use lapidary_protocol::channel::Identity;
use lapidary_protocol::name;

use crate::sys;

const SO_COOKIE: c_int = 57;

/// What the server may know this descriptor by; `None` if it can't be the server's.
pub(crate) fn identity_of(fd: c_int) -> Option<Identity> {
    if let Some(cookie) = cookie_of(fd) {
        return Some(Identity::Socket(cookie));
    }
    // Only memfds (and their kin) have seals.
    // SAFETY: touches no memory.
    let seals = unsafe { sys::quiet(libc::SYS_fcntl, [fd as usize, libc::F_GET_SEALS as usize, 0, 0, 0, 0]) };
    if seals < 0 {
        return None;
    }
    Some(Identity::Memfd(raw_fstat(fd)?.st_ino))
}

/// The cookie of a socket.
pub(crate) fn cookie_of(fd: c_int) -> Option<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    let out = [(&raw mut cookie) as usize, (&raw mut len) as usize];
    let option = [libc::SOL_SOCKET as usize, SO_COOKIE as usize];
    // SAFETY: value and length are valid.
    let result =
        unsafe { sys::quiet(libc::SYS_getsockopt, [fd as usize, option[0], option[1], out[0], out[1], 0]) };
    (result == 0).then_some(cookie)
}

/// What the kernel says about a descriptor.
pub(crate) fn raw_fstat(fd: c_int) -> Option<libc::stat> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the structure is valid.
    let result =
        unsafe { sys::quiet(libc::SYS_fstat, [fd as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    // SAFETY: zero bytes are a value, and the kernel has filled it in.
    (result == 0).then(|| unsafe { stat.assume_init() })
}

/// The name that the server gave to the other end of a descriptor: what its `/proc/self/fd` link shall show.
pub(crate) struct Name {
    address: libc::sockaddr_un,
    len: usize,
}

impl Name {
    /// The name of a descriptor; `None` unless it is a socket of the server's.
    pub(crate) fn of(fd: c_int) -> Option<Self> {
        // SAFETY: zero bytes are a value.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        let mut len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        let out = [(&raw mut address) as usize, (&raw mut len) as usize];
        // SAFETY: address and length are valid.
        let result = unsafe { sys::quiet(libc::SYS_getpeername, [fd as usize, out[0], out[1], 0, 0, 0]) };
        let len = (len as usize).checked_sub(std::mem::offset_of!(libc::sockaddr_un, sun_path))?;
        let name = Self { address, len };
        (result == 0 && name.address.sun_family == libc::AF_UNIX as u16 && name.find().is_some())
            .then_some(name)
    }

    fn find(&self) -> Option<&[u8]> {
        let path = &self.address.sun_path;
        let len = self.len.min(path.len());
        // SAFETY: chars are bytes, and `len` is within the array.
        let bytes = unsafe { std::slice::from_raw_parts(path.as_ptr().cast::<u8>(), len) };
        name::text(bytes)
    }

    /// The text.
    pub(crate) fn text(&self) -> &[u8] {
        self.find().unwrap_or_default()
    }

    /// The path of the node, if the descriptor is one's.
    pub(crate) fn node_path(&self) -> Option<&[u8]> {
        Some(self.text()).filter(|text| text.starts_with(b"/"))
    }
}
