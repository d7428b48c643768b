//! Signals eventfds that clients hold, and never blocks in it.
//!
//! A `write` to an eventfd waits while its count is full, unless the open is non-blocking; both are the client's to change, at
//! any moment, so no look beforehand helps. A kernel driver has no such trouble: it adds to the count where there is room and
//! leaves a full one as it is. The one thing that does the same for a process without privileges is Linux AIO, which
//! signals an eventfd (`aio_resfd`) when an operation completes. So we have an operation complete:
//!
//! ```text
//!  signal ──► io_submit(read nothing of an empty memfd) ──► completes at once ──► the eventfd's count goes up
//!                                                                └──► an event in the ring ──► io_getevents
//! ```
//!
//! The read has no buffer and no byte to wait for. Linux carries it out inside `io_submit`.
//!
//! # The ring
//! Each completion leaves an event in the context's ring, and without a free place `io_submit` refuses. So whoever submits
//! takes the event out again before the next may submit (the lock): there is one event at most. Should a system complete
//! reads later than in `io_submit`, an event is taken out by one of the next calls, which have room for several.
//!
//! # Where there is no AIO
//! Kernels can be built without it, sandboxes refuse it, and the system's contexts are limited in number (`fs.aio-max-nr`).
//! There is no second way then: a thread that does nothing but write to one client's eventfds could block for ever, and
//! nothing of ours could end that. What needs a context is refused before it begins. A context is made on first need and
//! stays; a failure is not remembered.
//!
//! The lock is a leaf, held for two system calls that don't wait.
#![allow(unsafe_code)]

use std::ffi::c_long;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::OnceLock;

use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::transport::Errno;

/// Operations that the context is made for; the kernel rounds up.
const OPERATIONS: usize = 1;
/// Most events that are taken out at once.
const EVENTS: usize = 8;

/// `struct iocb`: an operation as `io_submit` takes it. Key and flags change places with the byte order; both are zero here.
#[repr(C)]
#[derive(Default)]
struct ControlBlock {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// `IOCB_CMD_PREAD`.
const READ: u16 = 0;
/// `IOCB_FLAG_RESFD`: completion signals `eventfd`.
const SIGNAL_EVENTFD: u32 = 1;

/// `struct io_event`: what is known of a completed operation. All of ours are alike.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Completion {
    data: u64,
    operation: u64,
    results: [i64; 2],
}

const _: () = assert!(size_of::<ControlBlock>() == 64 && size_of::<Completion>() == 32);

/// What signals eventfds without blocking.
///
/// # Invariants
/// `context` is an AIO context of this process that is this value's own. No operation in it ever has a buffer.
#[derive(Debug)]
pub(super) struct Aio {
    context: libc::c_ulong,
    /// Empty, for ever: nobody else has it.
    nothing: OwnedFd,
    /// Held from an operation to its event.
    one_event: Mutex<()>,
}

impl Aio {
    /// The process's own, made if there is none yet.
    ///
    /// # Errors
    /// The system's, if it gives no context or has no descriptor left.
    pub(super) fn get() -> Result<&'static Self, Errno> {
        static AIO: OnceLock<Aio> = OnceLock::new();
        if let Some(aio) = AIO.get() {
            return Ok(aio);
        }
        let new = Self::new()?;
        Ok(AIO.get_or_init(|| new))
    }

    fn new() -> Result<Self, Errno> {
        let nothing = memfd_create("lapidary-nothing", MemfdFlags::CLOEXEC)?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: `context` is a valid place for the answer, and zero as it must be.
        answer(unsafe { libc::syscall(libc::SYS_io_setup, OPERATIONS, &raw mut context) })?;
        Ok(Self { context, nothing, one_event: Mutex::new(()) })
    }

    /// Adds one to the eventfd's count; a full one stays as it is. Never blocks; may be called from a fence's callback.
    ///
    /// # Errors
    /// `EINVAL` if it is no eventfd; the system's, if it has no memory for an operation.
    pub(super) fn signal(&self, eventfd: impl AsFd) -> Result<(), Errno> {
        let mut read = ControlBlock {
            opcode: READ,
            file: self.nothing.as_raw_fd().unsigned_abs(),
            flags: SIGNAL_EVENTFD,
            eventfd: eventfd.as_fd().as_raw_fd().unsigned_abs(),
            ..ControlBlock::default()
        };
        let mut list = [&raw mut read];
        let _one_event = self.one_event.lock();
        // SAFETY: `list` holds as many valid operations as the call is told. The kernel copies them, writes to `read` at most
        // its key, and to no other memory, as the operation has no buffer. Both descriptors are borrowed.
        let submitted = answer(unsafe {
            libc::syscall(libc::SYS_io_submit, self.context, list.len(), list.as_mut_ptr())
        });
        self.take_events();
        submitted.map(drop)
    }

    /// Takes out what has completed, up to [`EVENTS`]. What isn't there isn't waited for. How many there were.
    fn take_events(&self) -> usize {
        let mut events = [Completion::default(); EVENTS];
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let (least, most): (c_long, c_long) = (0, EVENTS as c_long);
        // SAFETY: `events` has room for `most` events, and `now` is a valid time; both outlive the call.
        let taken = answer(unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                least,
                most,
                events.as_mut_ptr(),
                &raw mut now,
            )
        });
        taken.unwrap_or(0)
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: the context is this value's own, and nobody uses it any more.
        let destroyed = answer(unsafe { libc::syscall(libc::SYS_io_destroy, self.context) });
        debug_assert!(destroyed.is_ok());
    }
}

/// What a system call answered.
fn answer(result: c_long) -> Result<usize, Errno> {
    usize::try_from(result)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn count(eventfd: &OwnedFd) -> u64 {
        let mut value = [0; 8];
        rustix::io::read(eventfd, &mut value).unwrap();
        u64::from_ne_bytes(value)
    }

    #[test]
    fn each_signal_adds_one_however_many_there_are() {
        let aio = Aio::new().unwrap();
        let eventfd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let (threads, signals) = (4, 5_000_u64);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| (0..signals).for_each(|_| aio.signal(&eventfd).unwrap()));
            }
        });
        assert_eq!(count(&eventfd), threads * signals);
        assert_eq!(aio.take_events(), 0, "no event stays in the ring");
    }

    #[test]
    fn a_full_eventfd_that_blocks_its_writers_does_not_block_us() {
        let aio = Aio::new().unwrap();
        let eventfd = eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        (0..3).for_each(|_| aio.signal(&eventfd).unwrap());
        assert_eq!(count(&eventfd), u64::MAX, "as full as a kernel's signals make it");
        aio.signal(&eventfd).unwrap();
        assert_eq!(count(&eventfd), 1);
    }

    #[test]
    fn what_is_no_eventfd_is_refused_and_leaves_no_event() {
        let aio = Aio::new().unwrap();
        assert_eq!(aio.signal(&aio.nothing), Err(Errno::INVAL));
        assert_eq!(aio.take_events(), 0);
    }

    #[test]
    fn the_process_has_one() {
        assert!(std::ptr::eq(Aio::get().unwrap(), Aio::get().unwrap()));
    }
}
