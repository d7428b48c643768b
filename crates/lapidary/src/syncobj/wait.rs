//! Waiting for points of several syncobjs.

use crate::{
    fence::{self, Deadline, Fence, Interrupt, Parker, Timestamp, Wakes, park_until},
    sync::{Arc, OnceLock},
};

use super::{ListenerId, Syncobj, SyncobjError};

/// How to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WaitFlags {
    /// For all of them instead of any.
    pub all: bool,
    /// Points nothing has been submitted for are waited for; without this they are an error.
    pub for_submit: bool,
    /// For points to be submitted, not signalled. Includes `for_submit`.
    pub available: bool,
    /// When the caller would like the fences to have signalled: a hint to their producers.
    pub deadline: Option<Timestamp>,
}

impl WaitFlags {
    fn waits_for_submit(self) -> bool {
        self.for_submit || self.available
    }
}

/// Waits until one, or with [`WaitFlags::all`] each, of the given points has signalled or is available, and returns the index
/// of the first in the list that has. For an empty list that is 0, at once.
///
/// What has happened by the time of the call counts even with a deadline that has passed. A fence counts once it was seen: a
/// syncobj that is reset while it is waited for keeps the waiter waiting for the fence it had, or counts as submitted.
///
/// # Errors
/// - [`SyncobjError::NotSubmitted`] with the first point that has no fence, unless the flags allow for that.
/// - [`SyncobjError::TimedOut`], [`SyncobjError::Interrupted`].
///
/// # Panics
/// In debug builds, in a [signalling section](crate::fence::signalling()), unless the deadline is a poll.
#[track_caller]
pub fn wait(
    points: &[(Syncobj, u64)],
    flags: WaitFlags,
    deadline: Deadline,
    interrupt: &Interrupt,
) -> Result<usize, SyncobjError> {
    if !deadline.is_poll() {
        fence::assert_may_block("syncobj wait");
    }
    let waited: Vec<Waited> = points.iter().map(Waited::find).collect::<Vec<_>>();
    if !flags.waits_for_submit()
        && let Some(missing) = waited.iter().position(|waited| waited.fence().is_none())
    {
        return Err(SyncobjError::NotSubmitted(points[missing].1));
    }
    if let Some(first) = progress(&waited, flags) {
        return Ok(first);
    }
    // Also for who only looks: it may come back later.
    if let Some(hint) = flags.deadline {
        waited.iter().filter_map(Waited::fence).for_each(|fence| fence.set_deadline(hint));
    }
    if deadline.is_poll() {
        return Err(SyncobjError::TimedOut);
    }
    sleep(&waited, flags, deadline, interrupt)
}

/// Waits for a point to be submitted and returns its fence.
#[track_caller]
pub(super) fn for_submit(
    syncobj: &Syncobj,
    point: u64,
    deadline: Deadline,
    interrupt: &Interrupt,
) -> Result<Fence, SyncobjError> {
    if !deadline.is_poll() {
        fence::assert_may_block("syncobj wait");
    }
    if let Some(fence) = syncobj.find_fence(point) {
        return Ok(fence);
    }
    if deadline.is_poll() {
        return Err(SyncobjError::TimedOut);
    }
    let parker = Parker::current();
    let slot = Slot::default();
    let _listening = Listening::begin(syncobj, point, &slot, &parker, None);
    Ok(park_until(&parker, deadline, interrupt, || slot.get().cloned())?)
}

/// Where the fence of a point arrives, once.
type Slot = Arc<OnceLock<Fence>>;

/// One point that is waited for.
struct Waited<'a> {
    syncobj: &'a Syncobj,
    point: u64,
    slot: Slot,
}

impl<'a> Waited<'a> {
    /// The point with the fence it has at this moment, if any.
    fn find((syncobj, point): &'a (Syncobj, u64)) -> Self {
        let slot = syncobj.find_fence(*point).map(OnceLock::from).unwrap_or_default();
        Self { syncobj, point: *point, slot: Arc::new(slot) }
    }

    fn fence(&self) -> Option<&Fence> {
        self.slot.get()
    }

    fn is_done(&self, flags: WaitFlags) -> bool {
        self.fence().is_some_and(|fence| flags.available || fence.is_signalled())
    }
}

/// The index of the first point that is done, if that is enough to end the wait.
fn progress(waited: &[Waited<'_>], flags: WaitFlags) -> Option<usize> {
    let mut done = waited.iter().enumerate().filter(|(_, waited)| waited.is_done(flags));
    if flags.all {
        return (done.count() == waited.len()).then_some(0);
    }
    match done.next() {
        Some((first, _)) => Some(first),
        None => waited.is_empty().then_some(0),
    }
}

#[track_caller]
fn sleep(
    waited: &[Waited<'_>],
    flags: WaitFlags,
    deadline: Deadline,
    interrupt: &Interrupt,
) -> Result<usize, SyncobjError> {
    let parker = Parker::current();
    let _listening: Vec<Listening<'_>> = waited
        .iter()
        .filter(|waited| waited.fence().is_none())
        .filter_map(|waited| {
            Listening::begin(waited.syncobj, waited.point, &waited.slot, &parker, flags.deadline)
        })
        .collect();
    // Fences are waited for from when they are known.
    let mut wakes: Vec<Option<Wakes<'_>>> = waited.iter().map(|_| None).collect();
    let done = || {
        for (waited, wake) in waited.iter().zip(&mut wakes) {
            if flags.available || wake.is_some() {
                continue;
            }
            if let Some(fence) = waited.fence() {
                *wake = Some(Wakes::register(std::slice::from_ref(fence), &parker));
            }
        }
        progress(waited, flags)
    };
    Ok(park_until(&parker, deadline, interrupt, done)?)
}

/// A thread's interest in the submission of a point, given up when dropped.
struct Listening<'a> {
    syncobj: &'a Syncobj,
    id: ListenerId,
}

impl<'a> Listening<'a> {
    /// Has the fence put into `slot` when it is submitted, and given the deadline `hint`; now, and without an answer, if it
    /// is there.
    fn begin(
        syncobj: &'a Syncobj,
        point: u64,
        slot: &Slot,
        parker: &Arc<Parker>,
        hint: Option<Timestamp>,
    ) -> Option<Self> {
        let (arrived, parker) = (slot.clone(), parker.clone());
        let submitted = move |fence: Fence| {
            if let Some(hint) = hint {
                fence.set_deadline(hint);
            }
            // Each slot is filled by one listener, once.
            let _ = arrived.set(fence);
            parker.unpark();
        };
        match syncobj.listen(point, submitted) {
            Ok(id) => Some(Self { syncobj, id }),
            Err((submitted, fence)) => {
                submitted(fence);
                None
            }
        }
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.syncobj.forget(self.id);
    }
}
