//! The shared page of a channel, and how a call travels through it.
//!
//! ```text
//!  client thread                       page                        server thread of this channel
//!  ─────────────                       ────                        ─────────────────────────────
//!  fill request, arg ──────► request.turn += 1 ──────────────────► runs the call
//!                            reply.turn   += 1 (Done | NotOurs) ◄── result, arg
//!  or, any number of times before that:
//!                            reply.turn   += 1 (upcall kind)   ◄── wants something of the client
//!  does it ────────────────► request.turn += 1 (op = Answer) ────► goes on
//! ```
//!
//! Exactly one side owns the page at any time. A side hands it over by storing its own turn counter with `SeqCst`
//! after everything else was written; the other side reads the counter with `Acquire` and then reads the rest
//! relaxed. `SeqCst` makes the usual pair of store-then-load with the sleep flags sound: a side that is about to sleep
//! sets its flag, then looks at the counter again; a side that hands over stores the counter, then looks at the flag.
//!
//! All fields are atomics because the other side may be hostile: whatever it does to the page, each access is a
//! defined one, and the server reads every field once.
//!
//! The server sleeps in `FUTEX_WAIT` on `request.turn`. The client sleeps in `ppoll` on the channel's socket, since
//! that alone can let signals in atomically; it is woken by a [`WAKE`] message. A descriptor follows its
//! [`Kind::ReceiveFd`] hand-over as a [`DESCRIPTOR`] message.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes of argument a call can carry: the most that an ioctl number can express, rounded up.
pub const ARG_BYTES: usize = 16 * 1024;
/// Bytes of a page as both sides map it.
pub const PAGE_BYTES: usize = 20 * 1024;
/// First byte of a message on a channel's socket: look at the page.
pub const WAKE: u8 = b'w';
/// First byte of a message on a channel's socket: a descriptor comes with it.
pub const DESCRIPTOR: u8 = b'f';

/// What the client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// The answer to an upcall: `arg` is the value, or a negative errno.
    Answer = 1,
    /// Open the device path in the argument area. `len`: its bytes; `cmd`: the open flags. Result: a descriptor.
    Open = 2,
    /// `cmd`, `identity`, `fd`; `arg`: the third argument as the program gave it; `len` argument bytes in and out.
    Ioctl = 3,
    /// Map the file. `arg`: address; `extra`: length, protection in the low and flags in the high half, offset.
    Mmap = 4,
    /// A descriptor of this identity was closed. Answered when the server has taken note.
    Closed = 5,
    /// Wants a descriptor whose content is the file's `fdinfo` text. Result: a descriptor.
    FdInfo = 6,
    /// `cmd`: poll events. Result: the events that are ready, or [`POLL_DESCRIPTOR`] added to a descriptor to
    /// wait on.
    Poll = 7,
    /// The client gives the channel up; there is no reply.
    Bye = 8,
    /// The program is about to unmap or replace memory from `arg` on; `extra`: length. Answered when the device no longer
    /// uses what is there.
    MemoryChange = 9,
}

/// Added to a descriptor number in the result of [`Op::Poll`].
pub const POLL_DESCRIPTOR: i64 = 1 << 32;

impl Op {
    /// The operation with this number.
    pub const fn from_u32(value: u32) -> Option<Self> {
        Some(match value {
            1 => Self::Answer,
            2 => Self::Open,
            3 => Self::Ioctl,
            4 => Self::Mmap,
            5 => Self::Closed,
            6 => Self::FdInfo,
            7 => Self::Poll,
            8 => Self::Bye,
            9 => Self::MemoryChange,
            _ => return None,
        })
    }
}

/// What the server says when it hands the page back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// The call is over: `result` is its value, or a negative errno; `args[0]` is 1 if the server wants to be told of
    /// [`Op::MemoryChange`]s, by all threads, until it says otherwise; `args[1]` is 1 if calls of this command are quick.
    Done = 1,
    /// The descriptor is not the server's: do what would have been done without it.
    NotOurs = 2,
    /// Upcall: send the descriptor whose number is `args[0]` over the channel's socket.
    SendFd = 3,
    /// Upcall: receive a descriptor from the channel's socket; `args[0]` = 1 if it is to close on exec.
    ReceiveFd = 4,
    /// Upcall: make system call `result` with `args`.
    Syscall = 5,
}

impl Kind {
    /// The kind with this number.
    pub const fn from_u32(value: u32) -> Option<Self> {
        Some(match value {
            1 => Self::Done,
            2 => Self::NotOurs,
            3 => Self::SendFd,
            4 => Self::ReceiveFd,
            5 => Self::Syscall,
            _ => return None,
        })
    }
}

/// How the client tells which open file a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Identity {
    /// `SO_COOKIE` of a socket.
    Socket(u64),
    /// Inode number of a memfd.
    Memfd(u64),
}

impl Identity {
    /// As the two fields of a request.
    pub const fn to_raw(self) -> (u32, u64) {
        match self {
            Self::Socket(cookie) => (1, cookie),
            Self::Memfd(inode) => (2, inode),
        }
    }

    /// From the two fields of a request.
    pub const fn from_raw(kind: u32, value: u64) -> Option<Self> {
        match kind {
            1 => Some(Self::Socket(value)),
            2 => Some(Self::Memfd(value)),
            _ => None,
        }
    }
}

/// Written by the client, read by the server. One cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Request {
    /// Counts the client's hand-overs.
    pub turn: AtomicU32,
    /// An [`Op`].
    pub op: AtomicU32,
    /// First half of an [`Identity`].
    pub identity_kind: AtomicU32,
    /// The ioctl's number, or what the operation says.
    pub cmd: AtomicU32,
    /// Second half of an [`Identity`].
    pub identity: AtomicU64,
    /// See [`Op`].
    pub arg: AtomicU64,
    /// Bytes in the argument area.
    pub len: AtomicU32,
    /// The descriptor's number, which the server uses to ask for it, never to name a file.
    pub fd: AtomicU32,
    /// See [`Op`].
    pub extra: [AtomicU64; 3],
}

/// Written by the server, read by the client. One cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Reply {
    /// Counts the server's hand-overs.
    pub turn: AtomicU32,
    /// A [`Kind`].
    pub kind: AtomicU32,
    /// See [`Kind`].
    pub result: AtomicU64,
    /// See [`Kind`].
    pub args: [AtomicU64; 6],
}

/// Who sleeps, or is about to, and who runs where. One cache line, which stays shared between the cores while nobody
/// sleeps or moves.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Sleep {
    /// Not 0: the server must be woken after a hand-over.
    pub server: AtomicU32,
    /// Not 0: the client must be woken after a hand-over.
    pub client: AtomicU32,
    /// The processor the server's thread last ran on. For a side that waits on the same one, spinning only keeps the other
    /// from running.
    pub server_cpu: AtomicU32,
    /// The processor the client's thread last ran on.
    pub client_cpu: AtomicU32,
}

impl Sleep {
    /// Notes where a side runs, and tells whether the other last ran there, too.
    pub fn is_shared_cpu(own: &AtomicU32, other: &AtomicU32, cpu: u32) -> bool {
        if own.load(Ordering::Relaxed) != cpu {
            own.store(cpu, Ordering::Relaxed);
        }
        other.load(Ordering::Relaxed) == cpu
    }
}

/// The shared page.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Page {
    /// The client's half.
    pub request: Request,
    /// The server's half.
    pub reply: Reply,
    /// Sleep flags.
    pub sleep: Sleep,
    reserved: [AtomicU64; 8],
    /// The argument bytes of the call, both ways.
    pub arg: [AtomicU64; ARG_BYTES / 8],
}

const _: () = assert!(size_of::<Request>() == 64 && size_of::<Reply>() == 64);
const _: () = assert!(size_of::<Page>() <= PAGE_BYTES);

impl Page {
    /// Copies bytes into the argument area. What does not fit is left out.
    pub fn store_arg(&self, bytes: &[u8]) {
        for (word, chunk) in self.arg.iter().zip(bytes.chunks(8)) {
            let mut value = [0; 8];
            value[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(value), Ordering::Relaxed);
        }
    }

    /// Fills `bytes` from the argument area. What is beyond the area is left as it was.
    pub fn load_arg(&self, bytes: &mut [u8]) {
        for (word, chunk) in self.arg.iter().zip(bytes.chunks_mut(8)) {
            let value = word.load(Ordering::Relaxed).to_ne_bytes();
            chunk.copy_from_slice(&value[..chunk.len()]);
        }
    }
}
