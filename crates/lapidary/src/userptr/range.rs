//! One userptr: its pages, who holds them, and the number that invalidations change.

use std::{any::Any, fmt, ops::Range};

use crate::{
    fence::{self, Deadline, Fence, Interrupt, WaitError, WaitQueue},
    sync::{Arc, Mutex},
};

use super::{IntervalId, Mm, NotifierGuard};

/// Who uses the pages: an address space's driver.
pub trait UserptrUser: Send + Sync {
    /// The fences of all work that may use the pages and has not completed: of the address space's reservation. Called under the
    /// notifier's lock; it must not block.
    fn fences(&self) -> Vec<Fence>;

    /// The pages in `range` are about to go: makes the next use look again, and work without end stop. Called under the notifier's
    /// lock; it may take locks of its own that are never held while taking the notifier's, and must not block.
    fn invalidated(&self, range: Range<u64>);

    /// All fences have signalled: makes page tables forget the pages, where no submission comes first that would.
    /// Called without locks.
    fn quiesced(&self, range: Range<u64>) {
        let _ = range;
    }
}

/// A range of a program's memory that a device may use, with `P` as the means to reach its pages.
///
/// The last reference may be dropped anywhere. The range stays in the index until its use has ended.
pub struct Userptr<P: Send + Sync + 'static>(Arc<Handle<P>>);

struct Handle<P: Send + Sync + 'static> {
    shared: Arc<Shared<P>>,
    mm: Mm,
    id: IntervalId,
}

/// What the index holds.
pub(super) struct Shared<P> {
    range: Range<u64>,
    user: Arc<dyn UserptrUser>,
    state: Mutex<State<P>>,
    /// Those that wait for an invalidation to end.
    ended: WaitQueue,
}

struct State<P> {
    /// Changes with each invalidation.
    seq: ReadSeq,
    /// How many invalidations are on.
    invalidating: usize,
    pages: Option<Arc<P>>,
    holds: usize,
}

/// A userptr as invalidations see it.
pub(super) trait Node: Send + Sync {
    fn is_busy(&self) -> bool;
    fn fences(&self) -> Vec<Fence>;
    /// Returns the pages that were installed: they may be used until the fences have signalled.
    fn begin_invalidation(&self, range: &Range<u64>) -> Option<Arc<dyn Any + Send + Sync>>;
    /// The fences have signalled.
    fn quiesced(&self, range: &Range<u64>);
    fn end_invalidation(&self);
}

/// The number of a userptr's state; an invalidation changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReadSeq(u64);

/// Getting at the pages of a userptr, begun or only queued. An invalidation that comes between cancels it.
pub struct PinJob<P: Send + Sync + 'static> {
    userptr: Userptr<P>,
    seq: ReadSeq,
}

/// A pin job was overtaken by an invalidation; its pages are not installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the program changed its memory while the pages were being pinned")]
pub struct Cancelled;

/// The pages can't be released: somebody holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the pages are held {0} times")]
pub struct Busy(pub usize);

/// Pages that can't be released until this is dropped.
pub struct Held<P: Send + Sync + 'static> {
    userptr: Userptr<P>,
    pages: Arc<P>,
}

impl<P: Send + Sync + 'static> Userptr<P> {
    pub(super) fn new(shared: Arc<Shared<P>>, mm: Mm, id: IntervalId) -> Self {
        Self(Arc::new(Handle { shared, mm, id }))
    }

    /// The addresses in the program.
    pub fn range(&self) -> Range<u64> {
        self.0.shared.range.clone()
    }

    /// The program's address space.
    pub fn mm(&self) -> &Mm {
        &self.0.mm
    }

    /// The number to check against later with [`retry`](Self::retry). Waits while an invalidation is on.
    ///
    /// # Errors
    /// [`WaitError`].
    pub fn begin(&self, deadline: Deadline, interrupt: &Interrupt) -> Result<ReadSeq, WaitError> {
        let quiet = || {
            let state = self.0.shared.state.lock();
            (state.invalidating == 0).then_some(state.seq)
        };
        self.0.shared.ended.wait(deadline, interrupt, quiet)
    }

    /// Whether what was read since [`begin`](Self::begin) is out of date. While the guard is held the answer stays.
    pub fn retry(&self, guard: &NotifierGuard<'_>, seq: ReadSeq) -> bool {
        debug_assert!(self.0.mm.guards(guard), "the lock is another notifier's");
        self.0.shared.state.lock().seq != seq
    }

    /// Begins to get at the pages; see [`PinJob::install`]. Waits while an invalidation is on.
    ///
    /// # Errors
    /// [`WaitError`].
    pub fn start_pin(&self, deadline: Deadline, interrupt: &Interrupt) -> Result<PinJob<P>, WaitError> {
        let seq = self.begin(deadline, interrupt)?;
        Ok(PinJob { userptr: self.clone(), seq })
    }

    /// Whether pages are installed. While the guard is held the answer stays.
    pub fn is_valid(&self, guard: &NotifierGuard<'_>) -> bool {
        debug_assert!(self.0.mm.guards(guard), "the lock is another notifier's");
        self.0.shared.state.lock().pages.is_some()
    }

    /// The installed pages, for use under the guard: the fence of any use that goes on must be published before it is
    /// dropped.
    pub fn pages(&self, guard: &NotifierGuard<'_>) -> Option<Arc<P>> {
        debug_assert!(self.0.mm.guards(guard), "the lock is another notifier's");
        self.0.shared.state.lock().pages.clone()
    }

    /// Holds the installed pages, if there are any: [`release`](Self::release) is refused until this is dropped.
    pub fn hold(&self) -> Option<Held<P>> {
        let mut state = self.0.shared.state.lock();
        let pages = state.pages.clone()?;
        state.holds += 1;
        drop(state);
        Some(Held { userptr: self.clone(), pages })
    }

    /// Takes the pages out to save memory. They come back with the next pin job. Takes the notifier's lock.
    ///
    /// # Errors
    /// [`Busy`] if they are held or in use; nothing waits, and nothing has changed.
    pub fn release(&self) -> Result<Option<Arc<P>>, Busy> {
        // A use begins under the notifier's lock and has published its fence when it lets go of it.
        let _no_use_begins = self.0.mm.exclusive();
        let in_use = self.0.shared.user.fences().len();
        let mut state = self.0.shared.state.lock();
        if state.holds + in_use > 0 {
            return Err(Busy(state.holds + in_use));
        }
        state.seq = state.seq.next();
        Ok(state.pages.take())
    }
}

impl<P: Send + Sync + 'static> PinJob<P> {
    /// The number the job began with, for [`Userptr::retry`].
    pub fn seq(&self) -> ReadSeq {
        self.seq
    }

    /// The userptr whose pages are wanted.
    pub fn userptr(&self) -> &Userptr<P> {
        &self.userptr
    }

    /// Installs the pages, unless an invalidation came since the job began. Returns the number they are valid for.
    ///
    /// # Errors
    /// [`Cancelled`]; the pages are dropped then.
    pub fn install(self, pages: P) -> Result<ReadSeq, Cancelled> {
        let pages = Arc::new(pages);
        let replaced = {
            let mut state = self.userptr.0.shared.state.lock();
            if state.seq != self.seq {
                return Err(Cancelled);
            }
            state.pages.replace(pages)
        };
        drop(replaced);
        Ok(self.seq)
    }
}

impl<P: Send + Sync + 'static> Held<P> {
    /// The pages.
    pub fn pages(&self) -> &P {
        &self.pages
    }
}

impl<P: Send + Sync + 'static> Drop for Held<P> {
    fn drop(&mut self) {
        self.userptr.0.shared.state.lock().holds -= 1;
    }
}

impl ReadSeq {
    const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl<P> Shared<P> {
    pub(super) fn new(range: Range<u64>, user: Arc<dyn UserptrUser>) -> Self {
        let state = State { seq: ReadSeq(0), invalidating: 0, pages: None, holds: 0 };
        Self { range, user, state: Mutex::new(state), ended: WaitQueue::new() }
    }

    fn common(&self, range: &Range<u64>) -> Range<u64> {
        self.range.start.max(range.start)..self.range.end.min(range.end)
    }
}

impl<P: Send + Sync + 'static> Node for Shared<P> {
    fn is_busy(&self) -> bool {
        self.state.lock().holds > 0 || !self.user.fences().is_empty()
    }

    fn fences(&self) -> Vec<Fence> {
        self.user.fences()
    }

    fn begin_invalidation(&self, range: &Range<u64>) -> Option<Arc<dyn Any + Send + Sync>> {
        let old = {
            let mut state = self.state.lock();
            state.seq = state.seq.next();
            state.invalidating += 1;
            state.pages.take()
        };
        self.user.invalidated(self.common(range));
        old.map(|pages| pages as Arc<dyn Any + Send + Sync>)
    }

    fn quiesced(&self, range: &Range<u64>) {
        self.user.quiesced(self.common(range));
    }

    fn end_invalidation(&self) {
        self.state.lock().invalidating -= 1;
        self.ended.wake_all();
    }
}

impl<P: Send + Sync + 'static> Drop for Handle<P> {
    fn drop(&mut self) {
        let (mm, id, range) = (self.mm.clone(), self.id, self.shared.range.clone());
        let reaper = mm.reaper().clone();
        // In the index for as long as the GPU may see the pages, and out of it on the reaper, which holds no locks.
        let in_use = fence::merge(self.shared.user.fences());
        in_use.on_signal(move |_| reaper.queue(Box::new(move || mm.unregister(id, range))));
    }
}

impl<P: Send + Sync + 'static> Clone for Userptr<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<P: Send + Sync + 'static> fmt::Debug for Userptr<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Userptr").field("range", &self.0.shared.range).finish()
    }
}

impl<P: Send + Sync + 'static> fmt::Debug for PinJob<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinJob").field("userptr", &self.userptr).field("seq", &self.seq).finish()
    }
}

impl<P: Send + Sync + 'static> fmt::Debug for Held<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("userptr", &self.userptr).finish()
    }
}
