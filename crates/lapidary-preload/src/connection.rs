//! This process's connection to the server, and its stock of channels.
//!
//! All of it is in one page that the kernel wipes in a forked child: the child finds nothing, and connects for itself when
//! it first calls. Its copies of the parent's sockets do no harm; the server watches the process itself.
//!
//! The lock is held with all signals blocked, so that no handler can want it from below. It is in the page as well:
//! a child never inherits it locked.

use std::ffi::{c_int, c_uint};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use lapidary_protocol::VERSION;
use lapidary_protocol::control::{self, Message};

use crate::channel::Channel;
use crate::config;
use crate::sys;

/// Channels of ended threads that are kept for new ones.
const STOCK: usize = 8;
/// Descriptors that can be told to be the library's own.
const OWN_FDS: usize = 8192;
const PAGE: usize = 4096;

/// The page.
pub(crate) struct Connection {
    lock: AtomicU32,
    /// Which connection of this program's memory this is: 0 for none. A thread's channel carries the number of the one
    /// it belongs to.
    generation: AtomicU32,
    control: AtomicI32,
    stock: [AtomicPtr<Channel>; STOCK],
    own: [AtomicU64; OWN_FDS / 64],
}

const _: () = assert!(size_of::<Connection>() <= PAGE);

static PAGE_AT: AtomicPtr<Connection> = AtomicPtr::new(ptr::null_mut());
/// Inherited by children, so that a child's numbers differ from its parent's.
static GENERATIONS: AtomicU32 = AtomicU32::new(0);

/// The page; `None` if it can't be had.
pub(crate) fn get() -> Option<&'static Connection> {
    // SAFETY: the page is never unmapped, and all-zero is a valid value.
    if let Some(page) = unsafe { PAGE_AT.load(Ordering::Acquire).as_ref() } {
        return Some(page);
    }
    let page = sys::map_memory(PAGE)?;
    let advice = [page.as_ptr() as usize, PAGE, libc::MADV_WIPEONFORK as usize];
    // SAFETY: the memory was just mapped.
    if unsafe { sys::quiet(libc::SYS_madvise, [advice[0], advice[1], advice[2], 0, 0, 0]) } < 0 {
        return None;
    }
    let fresh = page.cast::<Connection>().as_ptr();
    match PAGE_AT.compare_exchange(ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: as above.
        Ok(_) => unsafe { fresh.as_ref() },
        Err(first) => {
            // SAFETY: nobody else has seen it.
            unsafe { sys::unmap(page.as_ptr(), PAGE) };
            // SAFETY: as above.
            unsafe { first.as_ref() }
        }
    }
}

/// The page, if this process is connected.
pub(crate) fn connected() -> Option<&'static Connection> {
    // SAFETY: as in `get`.
    let page = unsafe { PAGE_AT.load(Ordering::Acquire).as_ref() }?;
    (page.generation() != 0).then_some(page)
}

/// Whether a descriptor is the library's own. Programs that close everything must not close these.
pub(crate) fn is_own(fd: c_int) -> bool {
    connected().is_some_and(|page| page.is_own(fd))
}

/// The first descriptor of the library's own from this number on.
pub(crate) fn first_own(from: c_uint) -> Option<c_uint> {
    let page = connected()?;
    (from as usize..OWN_FDS).map(|fd| fd as c_uint).find(|fd| page.is_own(fd.cast_signed()))
}

impl Connection {
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Sends without waiting for an answer.
    pub(crate) fn cancel(&self, channel: u64, turn: u32) {
        let message = Message::new(control::CANCEL, channel, u64::from(turn));
        send(self.control.load(Ordering::Relaxed), &message, None);
    }

    /// A channel of this process, from the stock or new; `None` if there is no server.
    pub(crate) fn channel(&self) -> Option<NonNull<Channel>> {
        self.stocked().or_else(|| self.locked(|| self.new_channel()))
    }

    fn stocked(&self) -> Option<NonNull<Channel>> {
        if self.generation() == 0 {
            return None;
        }
        let taken = self.stock.iter().find_map(|slot| {
            let seen = slot.load(Ordering::Relaxed);
            (!seen.is_null()).then(|| NonNull::new(slot.swap(ptr::null_mut(), Ordering::AcqRel))).flatten()
        });
        taken.filter(|channel| {
            // SAFETY: what is in the stock is nobody else's.
            unsafe { channel.as_ref() }.generation() == self.generation()
        })
    }

    /// Takes a channel back. False if there is no room.
    pub(crate) fn put_back(&self, channel: NonNull<Channel>) -> bool {
        self.stock.iter().any(|slot| {
            let place = (ptr::null_mut(), channel.as_ptr());
            slot.compare_exchange(place.0, place.1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// The server is gone: the next call tries to connect anew.
    pub(crate) fn lost(&self, generation: u32) {
        self.locked(|| {
            if self.generation() == generation {
                self.generation.store(0, Ordering::Release);
                self.disown(self.control.load(Ordering::Relaxed));
            }
        });
    }

    fn locked<R>(&self, work: impl FnOnce() -> R) -> R {
        let signals = sys::block_signals();
        // 1: locked; 2: locked, and somebody may wait.
        if self.lock.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while self.lock.swap(2, Ordering::Acquire) != 0 {
                sys::futex_wait(&self.lock, 2, false);
            }
        }
        let result = work();
        if self.lock.swap(0, Ordering::Release) != 1 {
            sys::futex_wake(&self.lock, false);
        }
        sys::restore_signals(signals);
        result
    }

    fn new_channel(&self) -> Option<NonNull<Channel>> {
        if self.generation() == 0 {
            self.connect()?;
        }
        let control = self.control.load(Ordering::Relaxed);
        let answer = send(control, &Message::new(control::NEW_CHANNEL, 0, 0), None)
            .then(|| receive(control))
            .flatten()
            .filter(|(message, _)| message.kind == control::CHANNEL);
        let Some((message, [page, socket])) = answer else {
            // The server is gone.
            self.generation.store(0, Ordering::Release);
            self.disown(control);
            return None;
        };
        let socket = out_of_the_way(socket);
        let channel = Channel::map(page, socket, message.a, self.generation());
        sys::close(page);
        match channel {
            Some(_) => self.own(socket),
            None => sys::close(socket),
        }
        channel
    }

    fn connect(&self) -> Option<()> {
        let control = out_of_the_way(connect_to(config::get()?.socket())?);
        let greeted = (|| {
            let memory = open_memory()?;
            let sent = send(control, &Message::new(control::HELLO, 0, 0), Some(memory));
            sys::close(memory);
            let (message, _) = sent.then(|| receive(control)).flatten()?;
            (message.kind == control::WELCOME).then_some(())
        })();
        if greeted.is_none() {
            sys::close(control);
            return None;
        }
        self.own(control);
        self.control.store(control, Ordering::Relaxed);
        let generation = GENERATIONS.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
        self.generation.store(generation, Ordering::Release);
        Some(())
    }

    fn is_own(&self, fd: c_int) -> bool {
        let word = usize::try_from(fd).ok().and_then(|fd| self.own.get(fd / 64));
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (fd % 64) & 1 != 0)
    }

    fn own(&self, fd: c_int) {
        if let Some(word) = usize::try_from(fd).ok().and_then(|fd| self.own.get(fd / 64)) {
            word.fetch_or(1 << (fd % 64), Ordering::Relaxed);
        }
    }

    /// Closes a descriptor of the library's.
    pub(crate) fn disown(&self, fd: c_int) {
        if let Some(word) = usize::try_from(fd).ok().and_then(|fd| self.own.get(fd / 64)) {
            word.fetch_and(!(1 << (fd % 64)), Ordering::Relaxed);
        }
        sys::close(fd);
    }
}

/// Moves a descriptor to a number where programs don't expect theirs.
fn out_of_the_way(fd: c_int) -> c_int {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let arguments = [libc::RLIMIT_NOFILE as usize, (&raw mut limit) as usize];
    // SAFETY: the structure is valid.
    unsafe { sys::quiet(libc::SYS_prlimit64, [0, arguments[0], 0, arguments[1], 0, 0]) };
    let limit = limit.rlim_cur.min(1024) as usize;
    let arguments = [fd as usize, libc::F_DUPFD_CLOEXEC as usize, limit - limit / 8];
    // SAFETY: touches no memory.
    let moved = unsafe { sys::quiet(libc::SYS_fcntl, [arguments[0], arguments[1], arguments[2], 0, 0, 0]) };
    if moved < 0 {
        return fd;
    }
    sys::close(fd);
    moved as c_int
}

fn connect_to(path: &[u8]) -> Option<c_int> {
    let kind = (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as usize;
    // SAFETY: touches no memory.
    let fd = unsafe { sys::quiet(libc::SYS_socket, [libc::AF_UNIX as usize, kind, 0, 0, 0, 0]) };
    let fd = c_int::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: zero bytes are a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as u16;
    let fits = path.len() < address.sun_path.len();
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = from.cast_signed();
    }
    let len = size_of::<libc::sockaddr_un>();
    // SAFETY: the address is valid for its length.
    let done =
        unsafe { sys::quiet(libc::SYS_connect, [fd as usize, (&raw const address) as usize, len, 0, 0, 0]) };
    if !fits || done < 0 {
        sys::close(fd);
        return None;
    }
    Some(fd)
}

fn open_memory() -> Option<c_int> {
    let path = c"/proc/self/mem".as_ptr() as usize;
    let flags = (libc::O_RDWR | libc::O_CLOEXEC) as usize;
    // SAFETY: the path is a C string.
    let fd = unsafe { sys::quiet(libc::SYS_openat, [libc::AT_FDCWD as usize, path, flags, 0, 0, 0]) };
    c_int::try_from(fd).ok().filter(|fd| *fd >= 0)
}

/// Room for a control message with two descriptors.
#[repr(C, align(8))]
pub(crate) struct Ancillary {
    pub(crate) header: libc::cmsghdr,
    pub(crate) fds: [c_int; 2],
}

impl Ancillary {
    pub(crate) const EMPTY: Self =
        Self { header: libc::cmsghdr { cmsg_len: 0, cmsg_level: 0, cmsg_type: 0 }, fds: [-1; 2] };

    /// Carrying one descriptor.
    pub(crate) fn with(fd: c_int) -> Self {
        let mut ancillary = Self::EMPTY;
        ancillary.header.cmsg_len = size_of::<libc::cmsghdr>() + size_of::<c_int>();
        ancillary.header.cmsg_level = libc::SOL_SOCKET;
        ancillary.header.cmsg_type = libc::SCM_RIGHTS;
        ancillary.fds[0] = fd;
        ancillary
    }

    /// What has arrived.
    pub(crate) fn received(&self) -> [Option<c_int>; 2] {
        let header = size_of::<libc::cmsghdr>();
        let count = self.header.cmsg_len.saturating_sub(header) / size_of::<c_int>();
        let ours = self.header.cmsg_level == libc::SOL_SOCKET && self.header.cmsg_type == libc::SCM_RIGHTS;
        [0, 1].map(|index| (ours && index < count).then(|| self.fds[index]))
    }
}

/// A message header over one buffer and room for descriptors.
pub(crate) fn header(
    buffer: &mut libc::iovec,
    ancillary: Option<&mut Ancillary>,
    ancillary_len: usize,
) -> libc::msghdr {
    // SAFETY: zero bytes are a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = buffer;
    header.msg_iovlen = 1;
    if let Some(ancillary) = ancillary {
        header.msg_control = ptr::from_mut(ancillary).cast();
        header.msg_controllen = ancillary_len as _;
    }
    header
}

fn send(control: c_int, message: &Message, fd: Option<c_int>) -> bool {
    let mut copy = *message;
    let mut buffer = libc::iovec { iov_base: (&raw mut copy).cast(), iov_len: size_of::<Message>() };
    let mut ancillary = fd.map(Ancillary::with);
    let len = size_of::<libc::cmsghdr>() + size_of::<c_int>();
    let header = header(&mut buffer, ancillary.as_mut(), len.next_multiple_of(size_of::<usize>()));
    let flags = libc::MSG_NOSIGNAL as usize;
    // SAFETY: the header points to what is alive here.
    let sent = unsafe {
        sys::quiet(libc::SYS_sendmsg, [control as usize, (&raw const header) as usize, flags, 0, 0, 0])
    };
    sent == size_of::<Message>() as isize
}

fn receive(control: c_int) -> Option<(Message, [c_int; 2])> {
    let mut message = Message::new(0, 0, 0);
    let mut buffer = libc::iovec { iov_base: (&raw mut message).cast(), iov_len: size_of::<Message>() };
    let mut ancillary = Ancillary::EMPTY;
    let mut header = header(&mut buffer, Some(&mut ancillary), size_of::<Ancillary>());
    let flags = libc::MSG_CMSG_CLOEXEC as usize;
    // SAFETY: as in `send`.
    let got = unsafe {
        sys::quiet(libc::SYS_recvmsg, [control as usize, (&raw mut header) as usize, flags, 0, 0, 0])
    };
    let fds = ancillary.received();
    let complete = match message.kind {
        control::CHANNEL => fds.iter().all(Option::is_some),
        _ => true,
    };
    if got != size_of::<Message>() as isize || message.version != VERSION || !complete {
        fds.into_iter().flatten().for_each(sys::close);
        return None;
    }
    Some((message, fds.map(|fd| fd.unwrap_or(-1))))
}
