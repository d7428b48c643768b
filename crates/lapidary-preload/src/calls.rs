//! What the hooks ask of the server.

use std::ffi::{c_int, c_void};

use lapidary_protocol::channel::{ARG_BYTES, Identity, Op, Page};

use crate::channel::{Reply, Request};
use crate::config;
use crate::connection;
use crate::identity::{Name, cookie_of, identity_of};
use crate::sys;
use crate::thread::with_channel;
use crate::watch;

/// The result of something that may turn out not to be the server's business.
pub(crate) type Ours<T> = Option<T>;

/// Opens a device node. A descriptor, or -1 and `errno`.
pub(crate) fn open(path: &[u8], flags: c_int) -> c_int {
    let request = Request { cmd: flags.cast_unsigned(), len: path.len(), ..Request::new(Op::Open) };
    let reply = call(&request, |page| page.store_arg(path));
    match reply {
        Reply::Done(fd) => sys::finish(fd) as c_int,
        Reply::NotOurs | Reply::Lost => sys::fail(libc::ENODEV),
    }
}

/// Whether an ioctl is of a kind that the server may know.
fn is_known_kind(cmd: u32) -> bool {
    matches!((cmd >> 8) as u8, b'd' | b'b' | b'>' | b'W')
}

/// An ioctl. `None`: the kernel's business.
///
/// # Safety
/// `argument` is what the program gave: nothing is assumed about it.
pub(crate) unsafe fn ioctl(fd: c_int, cmd: u32, argument: *mut c_void) -> Ours<c_int> {
    if !is_known_kind(cmd) {
        return None;
    }
    let identity = our_identity(fd)?;
    let size = ((cmd >> 16 & 0x3fff) as usize).min(ARG_BYTES);
    let (reads, writes) = (cmd >> 31 & 1 != 0, cmd >> 30 & 1 != 0);
    let request = Request {
        identity: Some(identity),
        cmd,
        arg: argument as u64,
        fd,
        len: size,
        ..Request::new(Op::Ioctl)
    };
    let result = with_channel(|channel| {
        if writes && !copy_in(channel.page(), argument as usize, size) {
            return Reply::Done(-i64::from(libc::EFAULT));
        }
        let reply = channel.call(&request);
        if reads
            && let Reply::Done(_) = reply
            && !copy_out(channel.page(), argument as usize, size)
        {
            return Reply::Done(-i64::from(libc::EFAULT));
        }
        lost_is_lost(reply, channel.generation())
    });
    match result? {
        Reply::Done(value) => Some(sys::finish(value) as c_int),
        Reply::NotOurs => None,
        Reply::Lost => Some(sys::fail(libc::ENODEV)),
    }
}

/// A mapping. `None`: the kernel's business.
pub(crate) fn mmap(address: usize, length: usize, modes: [c_int; 2], fd: c_int, offset: i64) -> Ours<isize> {
    // dma-bufs are memfds, and the kernel maps them.
    let identity = Identity::Socket(cookie_of(fd)?);
    if connection::connected().is_none() && Name::of(fd).is_none() {
        return None;
    }
    let modes = u64::from(modes[0].cast_unsigned()) | u64::from(modes[1].cast_unsigned()) << 32;
    let extra = [length as u64, modes, offset.cast_unsigned()];
    let request =
        Request { identity: Some(identity), arg: address as u64, fd, extra, ..Request::new(Op::Mmap) };
    match call(&request, |_| ()) {
        Reply::Done(value) => Some(sys::finish(value) as isize),
        Reply::NotOurs => None,
        Reply::Lost => Some(sys::fail(libc::ENODEV) as isize),
    }
}

/// Tells that memory is about to be unmapped or replaced, if the server wants to know; returns when the device no longer
/// uses what is there.
pub(crate) fn memory_changes(address: usize, length: usize) {
    if !watch::is_wanted() {
        return;
    }
    let kept = sys::errno();
    let request =
        Request { arg: address as u64, extra: [length as u64, 0, 0], ..Request::new(Op::MemoryChange) };
    call(&request, |_| ());
    sys::set_errno(kept);
}

/// Tells that a descriptor was closed that may have been the server's; returns when what that ended has ended.
pub(crate) fn closed(identity: Identity) {
    let kept = sys::errno();
    call(&Request { identity: Some(identity), ..Request::new(Op::Closed) }, |_| ());
    sys::set_errno(kept);
}

/// Whether the closing of this descriptor is to be told.
pub(crate) fn watched_identity(fd: c_int) -> Option<Identity> {
    connection::connected()?;
    match identity_of(fd)? {
        Identity::Socket(cookie) => Name::of(fd).map(|_| Identity::Socket(cookie)),
        memfd => Some(memfd),
    }
}

/// A descriptor of a file's `fdinfo` text. `None`: the kernel's business.
pub(crate) fn fdinfo(fd: c_int, flags: c_int) -> Ours<c_int> {
    let identity = our_identity(fd)?;
    let cmd = flags.cast_unsigned();
    match call(&Request { identity: Some(identity), cmd, fd, ..Request::new(Op::FdInfo) }, |_| ()) {
        Reply::Done(value) => Some(sys::finish(value) as c_int),
        Reply::NotOurs | Reply::Lost => None,
    }
}

/// What is ready of a memfd that may be a dma-buf. `None`: the kernel's business.
pub(crate) fn poll(fd: c_int, events: u32) -> Ours<i64> {
    let identity = identity_of(fd).filter(|identity| matches!(identity, Identity::Memfd(_)))?;
    let request = Request { identity: Some(identity), cmd: events, fd, ..Request::new(Op::Poll) };
    match call(&request, |_| ()) {
        Reply::Done(value) => Some(value),
        Reply::NotOurs | Reply::Lost => None,
    }
}

/// The identity of a descriptor that the server may know. A process that has no connection makes none for a descriptor
/// that does not look like the server's.
fn our_identity(fd: c_int) -> Option<Identity> {
    config::get()?;
    let identity = identity_of(fd)?;
    let known =
        connection::connected().is_some() || matches!(identity, Identity::Memfd(_)) || Name::of(fd).is_some();
    known.then_some(identity)
}

fn call(request: &Request, prepare: impl FnOnce(&Page)) -> Reply {
    with_channel(|channel| {
        prepare(channel.page());
        let reply = channel.call(request);
        lost_is_lost(reply, channel.generation())
    })
    .unwrap_or(Reply::Lost)
}

fn lost_is_lost(reply: Reply, generation: u32) -> Reply {
    if reply == Reply::Lost
        && let Some(page) = connection::get()
    {
        page.lost(generation);
    }
    reply
}

/// Copies argument bytes to the page. False if they can't be read.
fn copy_in(page: &Page, from: usize, len: usize) -> bool {
    if is_on_stack(from, len) {
        // SAFETY: the stack between here and its top is readable.
        page.store_arg(unsafe { std::slice::from_raw_parts(from as *const u8, len) });
        return true;
    }
    copy(libc::SYS_process_vm_readv, page.arg.as_ptr() as usize, from, len)
}

/// Copies argument bytes back from the page. False if they can't be written.
fn copy_out(page: &Page, to: usize, len: usize) -> bool {
    if is_on_stack(to, len) {
        // SAFETY: the stack between here and its top is writable, and what is copied is what the program gave to be
        // written.
        page.load_arg(unsafe { std::slice::from_raw_parts_mut(to as *mut u8, len) });
        return true;
    }
    copy(libc::SYS_process_vm_writev, page.arg.as_ptr() as usize, to, len)
}

/// Copies between the page and any address, through the kernel: a bad address is no fault.
fn copy(number: std::ffi::c_long, page: usize, address: usize, len: usize) -> bool {
    if len == 0 {
        return true;
    }
    let local = libc::iovec { iov_base: page as *mut c_void, iov_len: len };
    let remote = libc::iovec { iov_base: address as *mut c_void, iov_len: len };
    let vectors = [(&raw const local) as usize, (&raw const remote) as usize];
    // SAFETY: touches no memory.
    let pid = unsafe { sys::quiet(libc::SYS_getpid, [0; 6]) } as usize;
    // SAFETY: the page is valid for any argument's length; the kernel checks the other address.
    let copied = unsafe { sys::quiet(number, [pid, vectors[0], 1, vectors[1], 1, 0]) };
    if copied == -(libc::EPERM as isize) || copied == -(libc::ENOSYS as isize) {
        // A sandbox forbids it. Then a bad address is the program's fault, in both senses.
        let (to, from) = if number == libc::SYS_process_vm_readv { (page, address) } else { (address, page) };
        // SAFETY: the page is valid for any argument's length; for the other address the program answers.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, len) };
        return true;
    }
    copied == len as isize
}

/// The top of the largest stack that is believed.
const STACK_BYTES: usize = 16 << 20;

/// Whether these bytes are between here and the top of this thread's stack, where most arguments are.
fn is_on_stack(at: usize, len: usize) -> bool {
    let here = 0_u8;
    let here = (&raw const here) as usize;
    if at < here {
        return false;
    }
    let Some(end) = at.checked_add(len) else { return false };
    // glibc keeps a thread's descriptor at the top of its stack; above the first thread's the kernel put random bytes.
    // SAFETY: touches no memory.
    let tops = unsafe { [libc::pthread_self() as usize, libc::getauxval(libc::AT_RANDOM) as usize] };
    tops.into_iter().any(|top| top > here && top - here <= STACK_BYTES && end <= top)
}
