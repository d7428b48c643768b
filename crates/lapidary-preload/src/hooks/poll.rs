//! Waiting for descriptors. All of the device's but dma-bufs are sockets, which the kernel knows how to wait for; for
//! a dma-buf the server says what is ready, or gives a descriptor to wait on instead.

use std::ffi::c_int;

use lapidary_protocol::channel::POLL_DESCRIPTOR;

use crate::calls;
use crate::connection;
use crate::sys::{self, Next};

/// Most descriptors of a poll in which dma-bufs are looked for.
const MOST_FDS: usize = 64;

type Poll = unsafe extern "C" fn(*mut libc::pollfd, libc::nfds_t, c_int) -> c_int;
type TimedPoll = unsafe extern "C" fn(
    *mut libc::pollfd,
    libc::nfds_t,
    *const libc::timespec,
    *const libc::sigset_t,
) -> c_int;

/// The descriptors of a poll with dma-bufs replaced.
struct Substitutes {
    fds: [libc::pollfd; MOST_FDS],
    /// What a place's dma-buf waits on.
    waits: [c_int; MOST_FDS],
    count: usize,
    ready: usize,
}

impl Substitutes {
    /// `None` if the kernel can do it all.
    ///
    /// # Safety
    /// As `poll`.
    unsafe fn of(fds: *const libc::pollfd, count: libc::nfds_t) -> Option<Self> {
        connection::connected()?;
        let count = usize::try_from(count).ok().filter(|count| *count <= MOST_FDS && !fds.is_null())?;
        // SAFETY: as the caller promised.
        let given = unsafe { std::slice::from_raw_parts(fds, count) };
        if !given.iter().any(|fd| is_memfd(fd.fd)) {
            return None;
        }
        let none = libc::pollfd { fd: -1, events: 0, revents: 0 };
        let mut this = Self { fds: [none; MOST_FDS], waits: [-1; MOST_FDS], count, ready: 0 };
        this.fds[..count].copy_from_slice(given);
        for place in 0..count {
            this.ask(place);
        }
        Some(this)
    }

    /// Asks the server about a place, if it is a dma-buf's.
    fn ask(&mut self, place: usize) {
        let fd = &mut self.fds[place];
        fd.revents = 0;
        let Some(answer) =
            Some(fd.fd).filter(|fd| is_memfd(*fd)).and_then(|n| calls::poll(n, fd.events as u32))
        else {
            return;
        };
        if answer >= POLL_DESCRIPTOR {
            self.waits[place] = (answer - POLL_DESCRIPTOR) as c_int;
            (fd.fd, fd.events) = (self.waits[place], libc::POLLIN);
            return;
        }
        fd.fd = -1;
        fd.revents = if answer < 0 { libc::POLLERR } else { answer as i16 };
        self.ready += usize::from(fd.revents != 0);
    }

    /// Carries the result back. The number of ready places; `None` if one that was woken is not ready after all.
    ///
    /// # Safety
    /// As `poll`.
    unsafe fn finish(&mut self, fds: *mut libc::pollfd, was_ready: [i16; MOST_FDS]) -> Option<c_int> {
        // SAFETY: as the caller promised.
        let given = unsafe { std::slice::from_raw_parts_mut(fds, self.count) };
        let mut ready = 0;
        let mut woken = false;
        for (place, given) in given.iter_mut().enumerate() {
            let mut events = self.fds[place].revents | was_ready[place];
            if self.waits[place] >= 0 && events != 0 {
                woken = true;
                events = match calls::poll(given.fd, given.events as u32) {
                    Some(answer) if (0..POLL_DESCRIPTOR).contains(&answer) => answer as i16,
                    Some(answer) if answer >= POLL_DESCRIPTOR => {
                        sys::close((answer - POLL_DESCRIPTOR) as c_int);
                        0
                    }
                    _ => libc::POLLERR,
                };
            }
            given.revents = events;
            ready += c_int::from(events != 0);
        }
        (ready != 0 || !woken).then_some(ready)
    }
}

impl Drop for Substitutes {
    fn drop(&mut self) {
        self.waits.iter().filter(|fd| **fd >= 0).for_each(|fd| sys::close(*fd));
    }
}

fn is_memfd(fd: c_int) -> bool {
    let arguments = [fd as usize, libc::F_GET_SEALS as usize, 0, 0, 0, 0];
    // SAFETY: touches no memory.
    fd >= 0 && unsafe { sys::quiet(libc::SYS_fcntl, arguments) } >= 0
}

/// Polls; `deadline` in nanoseconds of the monotonic clock.
///
/// # Safety
/// As `ppoll`.
unsafe fn poll_until(
    fds: *mut libc::pollfd,
    count: libc::nfds_t,
    deadline: Option<u64>,
    mask: *const libc::sigset_t,
) -> Option<c_int> {
    static NEXT: Next = Next::new(c"ppoll");
    loop {
        // SAFETY: as the caller promised.
        let mut substitutes = unsafe { Substitutes::of(fds, count) }?;
        // SAFETY: the type is the function's.
        let next = unsafe { NEXT.get::<TimedPoll>() }?;
        let left = match (substitutes.ready, deadline) {
            (0, None) => None,
            (0, Some(deadline)) => Some(deadline.saturating_sub(sys::now_ns())),
            _ => Some(0),
        };
        let time = left.map(|ns| libc::timespec {
            tv_sec: (ns / 1_000_000_000) as i64,
            tv_nsec: (ns % 1_000_000_000) as i64,
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let was_ready = substitutes.fds.map(|fd| if fd.fd < 0 { fd.revents } else { 0 });
        // SAFETY: the list is valid; the mask is the caller's.
        let result = unsafe { next(substitutes.fds.as_mut_ptr(), count, time, mask) };
        if result < 0 {
            return Some(result);
        }
        // SAFETY: as the caller promised.
        if let Some(ready) = unsafe { substitutes.finish(fds, was_ready) } {
            return Some(ready);
        }
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn poll(fds: *mut libc::pollfd, count: libc::nfds_t, timeout: c_int) -> c_int {
    static NEXT: Next = Next::new(c"poll");
    if connection::connected().is_some() {
        let deadline = u64::try_from(timeout).ok().map(|ms| sys::now_ns() + ms * 1_000_000);
        // SAFETY: as the caller promised.
        if let Some(result) = unsafe { poll_until(fds, count, deadline, std::ptr::null()) } {
            return result;
        }
    }
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<Poll>() } {
        // SAFETY: as the caller promised.
        Some(next) => unsafe { next(fds, count, timeout) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn ppoll(
    fds: *mut libc::pollfd,
    count: libc::nfds_t,
    timeout: *const libc::timespec,
    mask: *const libc::sigset_t,
) -> c_int {
    static NEXT: Next = Next::new(c"ppoll");
    if connection::connected().is_some() {
        // SAFETY: as the caller promised: null or valid.
        let timeout = unsafe { timeout.as_ref() };
        let deadline = timeout.map(|time| {
            let ns = (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64);
            sys::now_ns().saturating_add(ns)
        });
        // SAFETY: as the caller promised.
        if let Some(result) = unsafe { poll_until(fds, count, deadline, mask) } {
            return result;
        }
    }
    // SAFETY: the type is the function's.
    match unsafe { NEXT.get::<TimedPoll>() } {
        // SAFETY: as the caller promised.
        Some(next) => unsafe { next(fds, count, timeout, mask) },
        None => -1,
    }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __poll_chk(
    fds: *mut libc::pollfd,
    count: libc::nfds_t,
    timeout: c_int,
    _room: usize,
) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { poll(fds, count, timeout) }
}

/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn __ppoll_chk(
    fds: *mut libc::pollfd,
    count: libc::nfds_t,
    timeout: *const libc::timespec,
    mask: *const libc::sigset_t,
    _room: usize,
) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { ppoll(fds, count, timeout, mask) }
}
