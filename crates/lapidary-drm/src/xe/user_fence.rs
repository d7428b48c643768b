//! User fences: 64-bit values in memory that tell a client of the end of work.
//!
//! A bind's user fence lies in the client's own memory and is written here, by a worker of its own, since the bind may end in a
//! thread that must not touch a client's memory (a page of it can take any time to come). A job's user fence lies in GPU
//! memory and is written by its engine. WAIT_USER_FENCE looks at client memory; whoever may have changed it wakes the
//! device's [`UserFenceWaiters`], and because a batch or another process can change it unnoticed, waits look again at
//! intervals as well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lapidary::fence::{Deadline, Fence, WaitError, WaitQueue};
use lapidary::reaper::Reaper;

use super::uapi;
use super::{XeRequest, exec_queue::ExecQueue};
use crate::core::{Error, must_be_zero, only_bits};
use crate::transport::{ClientMemory, Errno};

/// Longest time between two looks at a value that nobody announced a change of.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Everybody who waits for a user fence of one device.
#[derive(Default)]
pub(super) struct UserFenceWaiters {
    queue: WaitQueue,
}

impl UserFenceWaiters {
    /// Has all waiters look at their values again. Never blocks.
    pub(super) fn wake_all(&self) {
        self.queue.wake_all();
    }
}

/// A value to store in client memory when a bind is done.
pub(super) struct UserFence {
    memory: Arc<ClientMemory>,
    address: u64,
    value: u64,
    waiters: Arc<UserFenceWaiters>,
    announcer: Reaper,
}

impl UserFence {
    /// # Errors
    /// `EFAULT` if the address can't be read now.
    pub(super) fn new(request: &XeRequest<'_, '_>, address: u64, value: u64) -> Result<Self, Error> {
        let memory = request.call.memory();
        memory.read_pod::<u64>(address)?;
        let driver = request.file.driver();
        Ok(Self {
            memory: Arc::clone(memory),
            address,
            value,
            waiters: Arc::clone(driver.user_fence_waiters()),
            announcer: driver.announcer().clone(),
        })
    }

    /// Stores the value once `fence` has signalled: before this returns if it has already, from a worker otherwise.
    pub(super) fn write_after(self, fence: &Fence) {
        if fence.is_signalled() {
            return self.write();
        }
        let announcer = self.announcer.clone();
        fence.on_signal(move |_| announcer.queue(Box::new(move || self.write())));
    }

    fn write(self) {
        if let Err(error) = self.memory.write_pod(self.address, &self.value) {
            // The client unmapped its own fence, or is gone: nobody is left to tell.
            tracing::debug!(address = self.address, %error, "user fence not written");
        }
        self.waiters.wake_all();
    }
}

/// How a value is compared.
#[derive(Clone, Copy)]
enum Comparison {
    Equal,
    NotEqual,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

impl Comparison {
    fn from_raw(op: u16) -> Result<Self, Error> {
        Ok(match op {
            0 => Self::Equal,
            1 => Self::NotEqual,
            2 => Self::Greater,
            3 => Self::GreaterOrEqual,
            4 => Self::Less,
            5 => Self::LessOrEqual,
            unknown => return Err(Error::invalid("a comparison", unknown)),
        })
    }

    fn holds(self, left: u64, right: u64) -> bool {
        match self {
            Self::Equal => left == right,
            Self::NotEqual => left != right,
            Self::Greater => left > right,
            Self::GreaterOrEqual => left >= right,
            Self::Less => left < right,
            Self::LessOrEqual => left <= right,
        }
    }
}

/// `DRM_IOCTL_XE_WAIT_USER_FENCE`.
///
/// # Errors
/// `ETIME` when the time is up, `EIO` when the queue named is banned, `EINTR`, `EFAULT`, `ENOENT` for an unknown queue,
/// `EINVAL` for a field that is wrong.
pub(super) fn wait_user_fence(
    request: &mut XeRequest<'_, '_>,
    args: &mut uapi::WaitUserFence,
) -> Result<(), Error> {
    must_be_zero("extensions", args.extensions)?;
    must_be_zero("pad", args.pad)?;
    must_be_zero("pad2", args.pad2)?;
    must_be_zero("reserved", args.reserved[0] | args.reserved[1])?;
    only_bits("the flags of a wait", args.flags, uapi::UFENCE_ABSTIME)?;
    must_be_zero("the address within a qword", args.addr % 8)?;
    let comparison = Comparison::from_raw(args.op)?;
    let queue = match args.exec_queue_id {
        0 => None,
        id => Some(request.file.data().queue(id)?),
    };
    let started = Instant::now();
    let (deadline, relative) = deadline(args, started);
    let outcome = wait(request, args, comparison, queue.as_deref(), deadline);
    if let Some(timeout) = relative {
        let left = timeout.saturating_sub(started.elapsed());
        args.timeout = i64::try_from(left.as_nanos()).unwrap_or(i64::MAX);
    }
    outcome
}

/// When the wait ends, and the whole time allowed if it is relative and ends at all.
fn deadline(args: &uapi::WaitUserFence, now: Instant) -> (Deadline, Option<Duration>) {
    let Ok(nanos) = u64::try_from(args.timeout) else { return (Deadline::never(), None) };
    if args.flags & uapi::UFENCE_ABSTIME != 0 {
        return (Deadline::at_timestamp(lapidary::fence::Timestamp::from_nanos(nanos)), None);
    }
    let timeout = Duration::from_nanos(nanos);
    let deadline = now.checked_add(timeout).map_or_else(Deadline::never, Deadline::at);
    (deadline, Some(timeout))
}

fn wait(
    request: &XeRequest<'_, '_>,
    args: &uapi::WaitUserFence,
    comparison: Comparison,
    queue: Option<&ExecQueue>,
    deadline: Deadline,
) -> Result<(), Error> {
    let memory = request.call.memory();
    let waiters = request.file.driver().user_fence_waiters();
    // A signal or a failure decides the wait as much as the value does; the value has the last word.
    let look = || match memory.read_pod::<u64>(args.addr) {
        Err(error) => Some(Err(Error::from(error))),
        Ok(value) if comparison.holds(value & args.mask, args.value & args.mask) => Some(Ok(())),
        Ok(_) if queue.is_some_and(ExecQueue::is_banned) => {
            Some(Err(Error::refused(Errno::IO, "the queue that should write the fence is banned")))
        }
        Ok(_) => None,
    };
    loop {
        let next_look = Instant::now() + LOOK_AGAIN;
        let slice = match deadline.instant() {
            Some(end) if end < next_look => deadline,
            None if deadline.is_poll() => deadline,
            _ => Deadline::at(next_look),
        };
        match waiters.queue.wait(slice, request.call.interrupt(), look) {
            Ok(outcome) => return outcome,
            Err(WaitError::Interrupted) => return Err(Error::Interrupted),
            Err(WaitError::TimedOut) if deadline.is_poll() || deadline.has_passed() => {
                return Err(Error::TimedOut);
            }
            Err(WaitError::TimedOut) => {}
        }
    }
}
