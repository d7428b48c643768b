//! Syncobjs: containers of fences that programs name.
//!
//! A [`Syncobj`] holds at most one fence, which can be replaced any number of times. Used as a *binary* syncobj it is one
//! event at a time: something is submitted, then signals, then the syncobj is reset or reused. Used as a *timeline* its fence
//! is the head of a [chain](crate::fence::Fence::chain), and each *point* is a link. What kind it is shows only in how it is
//! used; point 0 always means the binary view: whatever fence is there.
//!
//! # Vocabulary
//!
//! - *submitted*, *available*: a point has a fence, or a later point has one. Waiting may come before submission.
//! - *signalled*: the point's fence and those of all points before it have signalled.
//! - *out of order*: a point that is not above the last one starts a new context in the chain. It is legal, though a program
//!   that does so gets what it deserves from [`Syncobj::query`].
//!
//! # Locking
//!
//! Each syncobj has one small lock over its fence and its listeners. Listeners run in the thread that submits the point, or
//! that signals it, outside that lock. Waiting sleeps with no lock held.
//!
//! What this module leaves to others: handles and descriptors, and the numbers of errors.

mod wait;

use std::fmt;

use thiserror::Error;

use crate::{
    fence::{self, Deadline, Fence, Interrupt, Timestamp, WaitError},
    sync::{Arc, Mutex},
};

pub use wait::{WaitFlags, wait};

/// Why a syncobj gave no fence, or a wait for several ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SyncobjError {
    /// Nothing has been submitted for the point, and nobody asked to wait for that.
    #[error("nothing has been submitted for point {0} of the syncobj")]
    NotSubmitted(u64),
    /// The deadline passed.
    #[error("the deadline passed before the syncobjs got to where they were waited for")]
    TimedOut,
    /// The interrupt was raised.
    #[error("the wait for syncobjs was interrupted")]
    Interrupted,
}

impl From<WaitError> for SyncobjError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut => Self::TimedOut,
            WaitError::Interrupted => Self::Interrupted,
        }
    }
}

/// A place for a fence. Clones are handles to the same one.
#[derive(Clone, Default)]
pub struct Syncobj(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    fence: Option<Fence>,
    listeners: Vec<Listener>,
    next_listener: u64,
}

/// Names a listener of one syncobj.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListenerId(u64);

/// Who wants to know when a point has been submitted.
struct Listener {
    id: ListenerId,
    point: u64,
    submitted: Box<dyn FnOnce(Fence) + Send>,
}

impl Syncobj {
    /// A syncobj of its own: empty, or with a fence that has signalled.
    pub fn new(signalled: bool) -> Self {
        let fence = signalled.then(|| Fence::signalled_at(Timestamp::now()));
        Self(Arc::new(Mutex::new(State { fence, ..State::default() })))
    }

    /// Whether both are handles to the same syncobj.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The fence that is there now: for a timeline, the one of the last point.
    pub fn fence(&self) -> Option<Fence> {
        self.0.lock().fence.clone()
    }

    /// Puts `fence` in the place of what is there, points included.
    pub fn replace_fence(&self, fence: Option<Fence>) {
        let (old, ready) = {
            let mut state = self.0.lock();
            let same = match (&state.fence, &fence) {
                (Some(old), Some(new)) => old.ptr_eq(new),
                (old, new) => old.is_none() && new.is_none(),
            };
            let old = std::mem::replace(&mut state.fence, fence);
            (old, if same { Vec::new() } else { state.take_ready() })
        };
        drop(old);
        notify(ready);
    }

    /// Adds a point: it signals when `fence` and all points before have.
    pub fn add_point(&self, fence: Fence, point: u64) {
        let (prev, ready) = {
            let mut state = self.0.lock();
            let prev = state.fence.take();
            if prev.as_ref().is_some_and(|prev| prev.is_chain() && prev.seqno().get() >= point) {
                tracing::debug!(target: "lapidary::syncobj", point, "a point is added out of order");
            }
            state.fence = Some(Fence::chain(prev.clone(), fence, point));
            (prev, state.take_ready())
        };
        notify(ready);
        // Walking frees the finished links, so that the chain stays short however long the timeline lives.
        let mut link = prev;
        while let Some(current) = link {
            link = current.chain_prev();
        }
    }

    /// The fence that stands for `point`, one that has signalled if the point is past. `None` if nothing has been submitted
    /// for it. Point 0 is whatever fence is there.
    pub fn find_fence(&self, point: u64) -> Option<Fence> {
        self.fence()?.chain_point(point)
    }

    /// As [`find_fence`](Self::find_fence), waiting for the point to be submitted.
    ///
    /// # Errors
    /// [`SyncobjError::TimedOut`] or [`SyncobjError::Interrupted`].
    ///
    /// # Panics
    /// In debug builds, in a [signalling section](crate::fence::signalling()), unless the deadline is a poll.
    #[track_caller]
    pub fn wait_fence(
        &self,
        point: u64,
        deadline: Deadline,
        interrupt: &Interrupt,
    ) -> Result<Fence, SyncobjError> {
        wait::for_submit(self, point, deadline, interrupt)
    }

    /// Takes the fence away.
    pub fn reset(&self) {
        self.replace_fence(None);
    }

    /// Puts a fence in place that signals now.
    pub fn signal(&self) {
        self.replace_fence(Some(Fence::signalled_at(Timestamp::now())));
    }

    /// Adds a point that has nothing to wait for but the points before it.
    pub fn signal_point(&self, point: u64) {
        self.add_point(Fence::signalled_at(Timestamp::now()), point);
    }

    /// How far the timeline has come: the last point that has signalled, or, with `last_submitted`, the last that has a
    /// fence. 0 for a syncobj that is empty or binary.
    pub fn query(&self, last_submitted: bool) -> u64 {
        let Some(head) = self.fence().filter(Fence::is_chain) else { return 0 };
        if last_submitted {
            return head.seqno().get();
        }
        // The earliest link of the head's context that is not known to be done decides.
        let mut oldest = head;
        while let Some(prev) = oldest.chain_prev() {
            if prev.context() != oldest.context() {
                // Points were added out of order.
                break;
            }
            oldest = prev;
        }
        if oldest.is_signalled() {
            return oldest.seqno().get();
        }
        oldest.chain_prev_seqno().map_or(0, |prev| prev.get())
    }

    /// Makes `point` of this syncobj stand for what `source_point` of `source` stands for now. Point 0, of either, is the
    /// binary view; then the fence replaces what is there.
    ///
    /// # Errors
    /// [`SyncobjError::NotSubmitted`] if the source has no such fence; to wait for one instead there is
    /// [`transfer_when_submitted`](Self::transfer_when_submitted).
    pub fn transfer(&self, point: u64, source: &Syncobj, source_point: u64) -> Result<(), SyncobjError> {
        let fence = source.find_fence(source_point).ok_or(SyncobjError::NotSubmitted(source_point))?;
        self.put(point, fence);
        Ok(())
    }

    /// As [`transfer`](Self::transfer), waiting for the source's point to be submitted.
    ///
    /// # Errors
    /// [`SyncobjError::TimedOut`] or [`SyncobjError::Interrupted`]; nothing has changed then.
    ///
    /// # Panics
    /// As [`wait_fence`](Self::wait_fence).
    #[track_caller]
    pub fn transfer_when_submitted(
        &self,
        point: u64,
        source: &Syncobj,
        source_point: u64,
        deadline: Deadline,
        interrupt: &Interrupt,
    ) -> Result<(), SyncobjError> {
        let fence = source.wait_fence(source_point, deadline, interrupt)?;
        self.put(point, fence);
        Ok(())
    }

    /// Puts a fence in place: as a point, or, for point 0, as the binary view.
    fn put(&self, point: u64, fence: Fence) {
        match point {
            0 => self.replace_fence(Some(fence)),
            point => self.add_point(fence::merge([fence]), point),
        }
    }

    /// Calls `listener`, once, when `point` has signalled; or, with `available`, as soon as it has been submitted. That may be
    /// now, in this thread. Otherwise it runs in the thread that submits or signals, and must not block.
    ///
    /// The answer can be given to [`forget`](Self::forget) for as long as the point has not been submitted; `None` if it
    /// has been. A listener whose syncobj goes before that is dropped without being called.
    pub fn on_point(
        &self,
        point: u64,
        available: bool,
        listener: impl FnOnce() + Send + 'static,
    ) -> Option<ListenerId> {
        let submitted = move |fence: Fence| match available {
            true => listener(),
            false => fence.on_signal(move |_| listener()),
        };
        match self.listen(point, submitted) {
            Ok(id) => Some(id),
            Err((submitted, fence)) => {
                submitted(fence);
                None
            }
        }
    }

    /// Drops a listener whose point has not been submitted. True if it was there.
    pub fn forget(&self, id: ListenerId) -> bool {
        let mut state = self.0.lock();
        let place = state.listeners.iter().position(|listener| listener.id == id);
        let forgotten = place.map(|place| state.listeners.remove(place));
        drop(state);
        forgotten.is_some()
    }

    /// Has `submitted` called with the fence of `point` when there is one; gives it back, with the fence, if there is one
    /// already.
    fn listen<F>(&self, point: u64, submitted: F) -> Result<ListenerId, (F, Fence)>
    where
        F: FnOnce(Fence) + Send + 'static,
    {
        let mut state = self.0.lock();
        if let Some(fence) = state.find_fence(point) {
            drop(state);
            return Err((submitted, fence));
        }
        let id = ListenerId(state.next_listener);
        state.next_listener += 1;
        state.listeners.push(Listener { id, point, submitted: Box::new(submitted) });
        Ok(id)
    }
}

impl State {
    fn find_fence(&self, point: u64) -> Option<Fence> {
        self.fence.as_ref()?.chain_point(point)
    }

    /// Takes out the listeners whose points have been submitted, with their fences, in the order they came.
    fn take_ready(&mut self) -> Vec<(Listener, Fence)> {
        let mut ready = Vec::new();
        if self.listeners.is_empty() {
            return ready;
        }
        for listener in std::mem::take(&mut self.listeners) {
            match self.find_fence(listener.point) {
                Some(fence) => ready.push((listener, fence)),
                None => self.listeners.push(listener),
            }
        }
        ready
    }
}

fn notify(ready: Vec<(Listener, Fence)>) {
    for (listener, fence) in ready {
        (listener.submitted)(fence);
    }
}

impl fmt::Debug for Syncobj {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        f.debug_struct("Syncobj")
            .field("fence", &state.fence)
            .field("listeners", &state.listeners.len())
            .finish()
    }
}
