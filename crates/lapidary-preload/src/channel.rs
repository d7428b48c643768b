//! The client's side of a channel: making a call and doing what the server wants in between.
//!
//! A wait spins for a bounded time, then sleeps in `ppoll` on the channel's socket. A signal must end the wait, also
//! one that arrives before the sleep; so signals are blocked before a call begins and let in by `ppoll` alone. Commands of
//! which the server has said that they are quick go without: their calls end soon whatever arrives.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use lapidary_protocol::channel::{Identity, Kind, Op, PAGE_BYTES, Page, Sleep, WAKE};
use lapidary_protocol::spin::Spin;

use crate::connection::{self, Ancillary, header};
use crate::sys::{self, SignalSet};
use crate::watch;

/// Memory of a channel's private part.
const PRIVATE_BYTES: usize = 4096;
/// How many looks at the page go between two looks at the clock.
const LOOKS: u32 = 8;

/// A channel.
///
/// # Invariants
/// `page` is mapped for as long as the value exists, but not in forked children, where no thread gets at it: its
/// generation is not theirs. One thread uses it at a time.
pub(crate) struct Channel {
    page: NonNull<Page>,
    socket: c_int,
    id: u64,
    generation: u32,
    ours: u32,
    theirs: u32,
    spin: Spin,
}

/// What to ask the server.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) op: Op,
    pub(crate) identity: Option<Identity>,
    pub(crate) cmd: u32,
    pub(crate) arg: u64,
    pub(crate) len: usize,
    pub(crate) fd: c_int,
    pub(crate) extra: [u64; 3],
}

impl Request {
    pub(crate) const fn new(op: Op) -> Self {
        Self { op, identity: None, cmd: 0, arg: 0, len: 0, fd: -1, extra: [0; 3] }
    }
}

/// How a call ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// With a value or negative errno.
    Done(i64),
    /// The descriptor is not the server's.
    NotOurs,
    /// The server is gone.
    Lost,
}

/// Quick commands, each at a place that its number gives.
static QUICK: [AtomicU32; 64] = [const { AtomicU32::new(0) }; 64];

fn quick_place(cmd: u32) -> &'static AtomicU32 {
    &QUICK[cmd as usize % QUICK.len()]
}

/// The signals of a call: as the program has them, or blocked.
struct Signals {
    before: Option<SignalSet>,
    /// One has arrived, and the server knows.
    interrupted: bool,
}

impl Signals {
    fn block(&mut self) -> SignalSet {
        *self.before.get_or_insert_with(sys::block_signals)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            sys::restore_signals(before);
        }
    }
}

impl Channel {
    /// Takes a channel that the server made into use.
    pub(crate) fn map(page: c_int, socket: c_int, id: u64, generation: u32) -> Option<NonNull<Self>> {
        let place = sys::map_memory(PRIVATE_BYTES)?.cast::<Self>();
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as usize;
        let arguments = [0, PAGE_BYTES, prot, libc::MAP_SHARED as usize, page as usize, 0];
        // SAFETY: a new mapping touches no existing memory.
        let at = unsafe { sys::quiet(libc::SYS_mmap, arguments) };
        let Some(page) = NonNull::new(at as *mut Page).filter(|_| at > 0) else {
            // SAFETY: nobody else has seen it.
            unsafe { sys::unmap(place.as_ptr().cast(), PRIVATE_BYTES) };
            return None;
        };
        let advice = libc::MADV_DONTFORK as usize;
        // SAFETY: the memory was just mapped.
        unsafe { sys::quiet(libc::SYS_madvise, [at as usize, PAGE_BYTES, advice, 0, 0, 0]) };
        let channel = Self { page, socket, id, generation, ours: 0, theirs: 0, spin: Spin::new() };
        // SAFETY: fresh memory, large enough.
        unsafe { place.write(channel) };
        Some(place)
    }

    /// Gives a channel back to the system, and tells the server.
    ///
    /// # Safety
    /// Nobody uses it any more. It is of this process.
    pub(crate) unsafe fn destroy(mut this: NonNull<Self>) {
        // SAFETY: the caller vouches for it.
        let channel = unsafe { this.as_mut() };
        channel.give(&Request::new(Op::Bye));
        if let Some(page) = connection::get() {
            page.disown(channel.socket);
        }
        // SAFETY: the mappings are the channel's own.
        unsafe {
            sys::unmap(channel.page.as_ptr().cast(), PAGE_BYTES);
            sys::unmap(this.as_ptr().cast(), PRIVATE_BYTES);
        }
    }

    /// Which connection it belongs to.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// The shared page.
    pub(crate) fn page(&self) -> &Page {
        // SAFETY: by the invariant it is mapped; all of it is atomics.
        unsafe { self.page.as_ref() }
    }

    /// Makes a call. The argument area is filled before and read after by the caller.
    pub(crate) fn call(&mut self, request: &Request) -> Reply {
        let mut signals = Signals { before: None, interrupted: false };
        if request.op != Op::Ioctl || quick_place(request.cmd).load(Ordering::Relaxed) != request.cmd {
            signals.block();
        }
        self.give(request);
        let begin = self.ours;
        loop {
            if self.wait(begin, &mut signals).is_err() {
                return Reply::Lost;
            }
            let page = self.page();
            let result = page.reply.result.load(Ordering::Relaxed).cast_signed();
            let arguments = [0, 1, 2, 3, 4, 5].map(|i: usize| page.reply.args[i].load(Ordering::Relaxed));
            let value = match Kind::from_u32(page.reply.kind.load(Ordering::Relaxed)) {
                Some(Kind::Done) => {
                    watch::set(arguments[0] != 0);
                    if arguments[1] != 0 && signals.before.is_some() {
                        quick_place(request.cmd).store(request.cmd, Ordering::Relaxed);
                    }
                    return Reply::Done(result);
                }
                Some(Kind::NotOurs) => return Reply::NotOurs,
                Some(Kind::SendFd) => self.send_fd(arguments[0] as c_int),
                Some(Kind::ReceiveFd) => self.receive_fd(arguments[0] != 0),
                // SAFETY: the server stands in for the kernel; what it asks for is what an ioctl may do.
                Some(Kind::Syscall) => unsafe { sys::quiet(result as _, arguments.map(|a| a as usize)) },
                None => return Reply::Lost,
            };
            self.give(&Request { arg: value as u64, ..Request::new(Op::Answer) });
        }
    }

    /// Hands over to the server.
    fn give(&mut self, request: &Request) {
        self.ours = self.ours.wrapping_add(1);
        let page = self.page();
        let slots = &page.request;
        let (kind, identity) = request.identity.map_or((0, 0), Identity::to_raw);
        slots.op.store(request.op as u32, Ordering::Relaxed);
        slots.identity_kind.store(kind, Ordering::Relaxed);
        slots.identity.store(identity, Ordering::Relaxed);
        slots.cmd.store(request.cmd, Ordering::Relaxed);
        slots.arg.store(request.arg, Ordering::Relaxed);
        slots.len.store(request.len as u32, Ordering::Relaxed);
        slots.fd.store(request.fd.cast_unsigned(), Ordering::Relaxed);
        for (slot, value) in slots.extra.iter().zip(request.extra) {
            slot.store(value, Ordering::Relaxed);
        }
        slots.turn.store(self.ours, Ordering::SeqCst);
        if page.sleep.server.load(Ordering::SeqCst) != 0 {
            sys::futex_wake(&slots.turn, true);
        }
    }

    /// Waits until the server hands over; an error if it is gone.
    fn wait(&mut self, begin: u32, signals: &mut Signals) -> Result<(), ()> {
        let start = sys::now_ns();
        let places = &self.page().sleep;
        let alone = !Sleep::is_shared_cpu(&places.client_cpu, &places.server_cpu, sys::cpu());
        if alone && self.spin(start) {
            return Ok(());
        }
        let slept = self.sleep(begin, signals);
        if alone {
            self.spin.slept(sys::now_ns() - start);
        }
        slept
    }

    /// Looks for a hand-over for as long as it is worth it. Whether it came.
    fn spin(&mut self, start: u64) -> bool {
        let bound = self.spin.bound_ns();
        loop {
            for _ in 0..LOOKS {
                if self.is_our_turn(Ordering::Acquire) {
                    self.spin.hit(sys::now_ns() - start);
                    return true;
                }
                std::hint::spin_loop();
            }
            if sys::now_ns() - start >= bound {
                return false;
            }
        }
    }

    /// Looks whether the server has handed over, and takes note.
    fn is_our_turn(&mut self, order: Ordering) -> bool {
        let seen = self.page().reply.turn.load(order);
        let changed = seen != self.theirs;
        self.theirs = seen;
        changed
    }

    fn sleep(&mut self, begin: u32, signals: &mut Signals) -> Result<(), ()> {
        let open = signals.block();
        loop {
            self.page().sleep.client.store(1, Ordering::SeqCst);
            if self.is_our_turn(Ordering::SeqCst) {
                break;
            }
            let mask = if signals.interrupted { !0 } else { open };
            match poll_readable(self.socket, mask) {
                Polled::Interrupted if signals.interrupted => {}
                Polled::Interrupted => {
                    signals.interrupted = true;
                    if let Some(page) = connection::connected() {
                        page.cancel(self.id, begin);
                    }
                }
                Polled::Readable => self.take_wake(),
                Polled::Ended if self.is_our_turn(Ordering::SeqCst) => break,
                Polled::Ended => return Err(()),
            }
        }
        self.page().sleep.client.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn take_wake(&self) {
        let mut byte = 0_u8;
        let arguments = [self.socket as usize, (&raw mut byte) as usize, 1, libc::MSG_DONTWAIT as usize];
        // SAFETY: the buffer is valid.
        unsafe {
            sys::quiet(libc::SYS_recvfrom, [arguments[0], arguments[1], arguments[2], arguments[3], 0, 0])
        };
    }

    fn send_fd(&self, fd: c_int) -> isize {
        let mut byte = 0_u8;
        let mut buffer = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut ancillary = Ancillary::with(fd);
        let header = header(&mut buffer, Some(&mut ancillary), size_of::<Ancillary>());
        let arguments = [self.socket as usize, (&raw const header) as usize, libc::MSG_NOSIGNAL as usize];
        // SAFETY: the header points to what is alive here.
        let sent =
            unsafe { sys::quiet(libc::SYS_sendmsg, [arguments[0], arguments[1], arguments[2], 0, 0, 0]) };
        sent.min(0)
    }

    /// Receives the descriptor that follows the hand-over, behind wake messages that nobody took.
    fn receive_fd(&self, cloexec: bool) -> isize {
        let flags = if cloexec { libc::MSG_CMSG_CLOEXEC } else { 0 };
        loop {
            let mut byte = 0_u8;
            let mut buffer = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
            let mut ancillary = Ancillary::EMPTY;
            let mut header = header(&mut buffer, Some(&mut ancillary), size_of::<Ancillary>());
            let arguments = [self.socket as usize, (&raw mut header) as usize, flags as usize];
            // SAFETY: the header points to what is alive here.
            let got =
                unsafe { sys::quiet(libc::SYS_recvmsg, [arguments[0], arguments[1], arguments[2], 0, 0, 0]) };
            match (got, ancillary.received()[0]) {
                (_, Some(fd)) => return fd as isize,
                (got, None) if got == -(libc::EINTR as isize) => {}
                (1, None) if byte == WAKE => {}
                // The descriptor was there, and no number was free for it.
                (1, None) => return -(libc::EMFILE as isize),
                (got, None) => return got.min(-(libc::EPIPE as isize)),
            }
        }
    }
}

enum Polled {
    Readable,
    Interrupted,
    Ended,
}

/// Sleeps until the socket is readable, with only these signals blocked.
fn poll_readable(socket: c_int, mask: SignalSet) -> Polled {
    let mut poll = libc::pollfd { fd: socket, events: libc::POLLIN, revents: 0 };
    let arguments = [(&raw mut poll) as usize, 1, 0, (&raw const mask) as usize, size_of::<SignalSet>()];
    let [fds, count, time, mask, len] = arguments;
    // SAFETY: all that is pointed to is valid.
    let result = unsafe { sys::quiet(libc::SYS_ppoll, [fds, count, time, mask, len, 0]) };
    if result == -(libc::EINTR as isize) {
        return Polled::Interrupted;
    }
    // The end of the connection is readable, too.
    match poll.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) {
        0 => Polled::Readable,
        _ => Polled::Ended,
    }
}
