//! A channel, as the server sees it: hand-overs and sleeping.
//!
//! One thread of the server drives each channel (see `serve`); the event loop reaches in to interrupt a call or
//! to close the channel. The order of memory accesses is told in [`lapidary_protocol::channel`].
//!
//! Locks: `current`, a leaf but for the interrupt's own.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lapidary::fence::Interrupt;
use lapidary_protocol::channel::{Identity, Kind, Op, Sleep, WAKE};
use lapidary_protocol::spin::Spin;
use parking_lot::Mutex;
use rustix::event::Timespec;
use rustix::thread::futex;

use super::page::MappedPage;
use super::{Errno, wire};

/// Longest sleep of a channel's thread. [`Channel::close`] wakes it by changing the turn, which a hostile client can change
/// back: then this is how long it takes to notice.
const LONGEST_SLEEP: Duration = Duration::from_secs(4);

/// A channel.
#[derive(Debug)]
pub(super) struct Channel {
    id: u64,
    page: MappedPage,
    socket: OwnedFd,
    interrupt: Interrupt,
    closing: AtomicBool,
    /// The client's turn that began the running call, if one runs.
    current: Mutex<Option<u32>>,
}

/// The channel is closed: the client is gone or broke the protocol.
#[derive(Debug, Clone, Copy)]
pub(super) struct Closed;

impl From<Closed> for Errno {
    /// What a call that can't go on returns; nobody is left to see it.
    fn from(_: Closed) -> Self {
        Errno::INTR
    }
}

/// A request, read from the page once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) op: Op,
    pub(super) identity: Option<Identity>,
    pub(super) cmd: u32,
    pub(super) arg: u64,
    pub(super) len: usize,
    pub(super) fd: i32,
    pub(super) extra: [u64; 3],
}

impl Channel {
    pub(super) fn new(id: u64, page: MappedPage, socket: OwnedFd) -> Self {
        Self {
            id,
            page,
            socket,
            interrupt: Interrupt::new(),
            closing: AtomicBool::new(false),
            current: Mutex::default(),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn page(&self) -> &MappedPage {
        &self.page
    }

    pub(super) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// A call begins.
    pub(super) fn begin(&self, turn: u32) {
        let mut current = self.current.lock();
        *current = Some(turn);
        // A closed channel stays interrupted.
        if self.interrupt.is_raised() && !self.is_closing() {
            self.interrupt.clear();
        }
    }

    /// The call is over: from now on nothing interrupts it.
    pub(super) fn finish(&self) {
        *self.current.lock() = None;
    }

    /// The client has a signal in the call that began with `turn`.
    pub(super) fn cancel(&self, turn: u32) {
        let current = self.current.lock();
        if *current == Some(turn) {
            self.interrupt.raise();
        }
    }

    /// Ends the channel: interrupts its call, wakes its thread.
    pub(super) fn close(&self) {
        {
            let _current = self.current.lock();
            self.closing.store(true, Ordering::SeqCst);
            self.interrupt.raise();
        }
        // Makes a wait that is just about to begin return, too.
        self.page.request.turn.fetch_add(1, Ordering::SeqCst);
        let _ = futex::wake(&self.page.request.turn, futex::Flags::empty(), u32::MAX >> 1);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Receives the one descriptor that the client sent.
    pub(super) fn receive_fd(&self) -> Result<OwnedFd, Errno> {
        let mut byte = [0];
        let (_, mut fds) = wire::receive(&self.socket, &mut byte)?.ok_or(Errno::BADF)?;
        if fds.len() != 1 {
            return Err(Errno::BADF);
        }
        fds.pop().ok_or(Errno::BADF)
    }

    /// Sends a descriptor, after the hand-over that announces it.
    pub(super) fn send_fd(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        wire::send(&self.socket, &[lapidary_protocol::channel::DESCRIPTOR], &[fd])
    }
}

/// The server thread's position in the conversation.
#[derive(Debug, Default)]
pub(super) struct Turns {
    theirs: u32,
    ours: u32,
    spin: Spin,
}

impl Turns {
    /// The client's turn that was taken last.
    pub(super) fn theirs(&self) -> u32 {
        self.theirs
    }

    /// Waits until the client hands over.
    pub(super) fn take(&mut self, channel: &Channel) -> Result<Request, Closed> {
        let page = &channel.page;
        let turn = &page.request.turn;
        let mut seen = turn.load(Ordering::Acquire);
        if seen == self.theirs {
            seen = self.wait(channel);
        }
        if channel.is_closing() {
            return Err(Closed);
        }
        self.theirs = seen;
        Request::read(page).ok_or(Closed)
    }

    fn wait(&mut self, channel: &Channel) -> u32 {
        let page = &channel.page;
        let turn = &page.request.turn;
        let start = Instant::now();
        let cpu = rustix::thread::sched_getcpu() as u32;
        let alone = !Sleep::is_shared_cpu(&page.sleep.server_cpu, &page.sleep.client_cpu, cpu);
        if alone && let Some(seen) = self.spin(turn, start) {
            return seen;
        }
        page.sleep.server.store(1, Ordering::SeqCst);
        let longest = Timespec { tv_sec: LONGEST_SLEEP.as_secs() as i64, tv_nsec: 0 };
        let seen = loop {
            let seen = turn.load(Ordering::SeqCst);
            // The client can write whatever it likes to its turn, but not keep a closed channel open with it.
            if seen != self.theirs || channel.is_closing() {
                break seen;
            }
            // Any return is a reason to look again.
            let _ = futex::wait(turn, futex::Flags::empty(), seen, Some(&longest));
        };
        page.sleep.server.store(0, Ordering::Relaxed);
        if alone {
            self.spin.slept(start.elapsed().as_nanos() as u64);
        }
        seen
    }

    /// Looks for a hand-over for as long as it is worth it.
    fn spin(&mut self, turn: &AtomicU32, start: Instant) -> Option<u32> {
        let bound = u128::from(self.spin.bound_ns());
        loop {
            for _ in 0..8 {
                let seen = turn.load(Ordering::Acquire);
                if seen != self.theirs {
                    self.spin.hit(start.elapsed().as_nanos() as u64);
                    return Some(seen);
                }
                std::hint::spin_loop();
            }
            if start.elapsed().as_nanos() >= bound {
                return None;
            }
        }
    }

    /// Hands over to the client.
    pub(super) fn give(&mut self, channel: &Channel, kind: Kind, result: i64, args: [u64; 6]) {
        let page = &channel.page;
        page.reply.kind.store(kind as u32, Ordering::Relaxed);
        page.reply.result.store(result as u64, Ordering::Relaxed);
        for (slot, arg) in page.reply.args.iter().zip(args) {
            // Most hand-overs leave them all zero, as they are.
            if slot.load(Ordering::Relaxed) != arg {
                slot.store(arg, Ordering::Relaxed);
            }
        }
        self.ours = self.ours.wrapping_add(1);
        page.reply.turn.store(self.ours, Ordering::SeqCst);
        if page.sleep.client.load(Ordering::SeqCst) != 0 && page.sleep.client.swap(0, Ordering::SeqCst) != 0 {
            // Fails only if the client is gone, or its queue is full and so wakes it anyway.
            let _ = wire::send(&channel.socket, &[WAKE], &[]);
        }
    }
}

impl Request {
    fn read(page: &MappedPage) -> Option<Self> {
        let request = &page.request;
        let kind = request.identity_kind.load(Ordering::Relaxed);
        let extra = &request.extra;
        Some(Self {
            op: Op::from_u32(request.op.load(Ordering::Relaxed))?,
            identity: Identity::from_raw(kind, request.identity.load(Ordering::Relaxed)),
            cmd: request.cmd.load(Ordering::Relaxed),
            arg: request.arg.load(Ordering::Relaxed),
            len: request.len.load(Ordering::Relaxed) as usize,
            fd: request.fd.load(Ordering::Relaxed).cast_signed(),
            extra: [0, 1, 2].map(|index: usize| extra[index].load(Ordering::Relaxed)),
        })
    }
}
