//! One program's address space, and its notifier.

use std::{fmt, ops::Range};

use crate::{
    fence::{self, Deadline, Interrupt},
    reaper::Reaper,
    sync::{Arc, Mutex, RwLock, RwLockReadGuard, Weak},
};

use super::{
    IntervalId, IntervalIndex, Userptr, UserptrUser,
    range::{Node, Shared},
};

/// Learns when a program changes its memory, and calls [`Mm::invalidate`] before the change is in effect.
pub trait NotifierSource: Send + Sync {
    /// The first userptr is about to be registered.
    ///
    /// # Errors
    /// [`WatchError`]: no userptr is registered then.
    fn attach(&self, mm: WeakMm) -> Result<(), WatchError>;

    /// Changes of `range` are to be told from now on. Ranges may overlap; each is watched until it is unwatched.
    ///
    /// # Errors
    /// [`WatchError`]: the userptr is not registered then.
    fn watch(&self, range: Range<u64>) -> Result<(), WatchError>;

    /// Takes back one [`watch`](Self::watch).
    fn unwatch(&self, range: Range<u64>);

    /// The last userptr is gone. Another may come: [`attach`](Self::attach) is called again then.
    fn detach(&self);
}

/// Why a range can't be watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The range is empty or overflows.
    #[error("the range {0:#x}..{1:#x} is empty")]
    Empty(u64, u64),
    /// Nothing is mapped in a part of the range.
    #[error("the range {0:#x}..{1:#x} is not mapped")]
    NotMapped(u64, u64),
    /// The memory is of a kind that can't be used.
    #[error("the memory in {0:#x}..{1:#x} can't be used by a device")]
    Unsuitable(u64, u64),
    /// The source does not work.
    #[error("changes of the program's memory can't be seen")]
    Unavailable,
}

/// A source for hosts that see changes themselves, and for tests: it learns nothing; call [`Mm::invalidate`].
#[derive(Debug, Clone, Copy, Default)]
pub struct ManualSource;

impl NotifierSource for ManualSource {
    fn attach(&self, _: WeakMm) -> Result<(), WatchError> {
        Ok(())
    }

    fn watch(&self, _: Range<u64>) -> Result<(), WatchError> {
        Ok(())
    }

    fn unwatch(&self, _: Range<u64>) {}

    fn detach(&self) {}
}

/// Whether an invalidation may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blocking {
    /// Until the GPU's use has ended.
    May,
    /// Not at all.
    MayNot,
}

/// An invalidation would have had to wait. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the range is in use, and the invalidation may not wait")]
pub struct WouldBlock;

/// The address space of one program. Clones are handles to the same one.
#[derive(Clone)]
pub struct Mm(Arc<Inner>);

/// A reference that does not keep the address space's record alive.
#[derive(Clone)]
pub struct WeakMm(Weak<Inner>);

struct Inner {
    source: Arc<dyn NotifierSource>,
    reaper: Reaper,
    /// How many userptrs there are, those that go away included.
    registration: Mutex<usize>,
    notifier: RwLock<Notifier>,
}

/// Who is to be told, and of what.
///
/// # Invariants
/// A userptr that overlaps an invalidation that is on, and is in the index, is among those it ends for.
#[derive(Default)]
struct Notifier {
    index: IntervalIndex<Arc<dyn Node>>,
    /// The invalidations that are on.
    active: Vec<Active>,
    next: u64,
}

struct Active {
    id: u64,
    range: Range<u64>,
    /// Those that may begin again when it ends.
    held_up: Vec<Arc<dyn Node>>,
}

/// The notifier's lock, for reading: while it is held no invalidation begins.
pub struct NotifierGuard<'a> {
    _notifier: RwLockReadGuard<'a, Notifier>,
    of: &'a Inner,
}

/// An invalidation that is on: no use of the range begins until this is dropped. The program's change belongs in between.
#[must_use = "uses may begin again when this is dropped"]
pub struct Invalidation<'a> {
    mm: &'a Mm,
    id: u64,
    visited: usize,
}

impl Mm {
    /// An address space without userptrs. `reaper` takes userptrs out that were dropped.
    pub fn new(source: Arc<dyn NotifierSource>, reaper: Reaper) -> Self {
        Self(Arc::new(Inner { source, reaper, registration: Mutex::new(0), notifier: RwLock::default() }))
    }

    /// A record that does not keep this one alive.
    pub fn downgrade(&self) -> WeakMm {
        WeakMm(Arc::downgrade(&self.0))
    }

    /// Registers a range. From here on invalidations see it; its pages are not there yet.
    ///
    /// # Errors
    /// [`WatchError`]; nothing is registered then.
    pub fn register<P: Send + Sync + 'static>(
        &self,
        range: Range<u64>,
        user: Arc<dyn UserptrUser>,
    ) -> Result<Userptr<P>, WatchError> {
        if range.is_empty() {
            return Err(WatchError::Empty(range.start, range.end));
        }
        // Goes after the lock if the range is refused: what it refers to is the user's.
        let shared = Arc::new(Shared::new(range.clone(), user));
        let node: Arc<dyn Node> = shared.clone();
        let mut count = self.0.registration.lock();
        if *count == 0 {
            self.0.source.attach(self.downgrade())?;
        }
        let inserted = self.0.notifier.write().insert(range.clone(), node);
        let watched = match inserted {
            Some(id) => self.0.source.watch(range).map(|()| id),
            None => Err(WatchError::Empty(range.start, range.end)),
        };
        let id = match watched {
            Ok(id) => id,
            Err(error) => {
                let node = inserted.and_then(|id| self.0.notifier.write().index.remove(id));
                drop(node);
                if *count == 0 {
                    self.0.source.detach();
                }
                return Err(error);
            }
        };
        *count += 1;
        Ok(Userptr::new(shared, self.clone(), id))
    }

    /// The program changes its memory in `range`, and has done so already or does not mind what is used until it has: an
    /// [invalidation](Self::begin_invalidation) that ends as it begins. Returns how many userptrs were visited.
    ///
    /// # Errors
    /// [`WouldBlock`] if it would have to wait but may not.
    ///
    /// # Panics
    /// As [`begin_invalidation`](Self::begin_invalidation).
    pub fn invalidate(&self, range: Range<u64>, blocking: Blocking) -> Result<usize, WouldBlock> {
        Ok(self.begin_invalidation(range, blocking)?.visited())
    }

    /// The program is about to change its memory in `range`: ends the use of all userptrs that overlap it, each visited once.
    /// When this returns, nothing uses the old pages any more, and pin jobs that began before can't install theirs. Until the
    /// answer is dropped none begin, of userptrs that are registered meanwhile neither. Pages that are [held](Userptr::hold)
    /// stay with their holder.
    ///
    /// # Errors
    /// [`WouldBlock`] if it would have to wait, or pages are held, but it may not wait. Nothing has changed then.
    ///
    /// # Panics
    /// In debug builds, if it may wait, in a [signalling section](crate::fence::signalling()).
    pub fn begin_invalidation(
        &self,
        range: Range<u64>,
        blocking: Blocking,
    ) -> Result<Invalidation<'_>, WouldBlock> {
        let (mut fences, mut pages) = (Vec::new(), Vec::new());
        let (id, nodes) = {
            let mut notifier = self.0.notifier.write();
            let nodes = notifier.overlapping(&range);
            if blocking == Blocking::MayNot && nodes.iter().any(|node| node.is_busy()) {
                return Err(WouldBlock);
            }
            for node in &nodes {
                pages.extend(node.begin_invalidation(&range));
                fences.extend(node.fences());
            }
            (notifier.begin(range.clone(), nodes.clone()), nodes)
        };
        // From here on an unwinding thread ends it too.
        let invalidation = Invalidation { mm: self, id, visited: nodes.len() };
        if blocking == Blocking::May {
            // Neither deadline nor interrupt: the program can't go on before, and the fences signal by themselves.
            let _ = fence::wait_all(&fences, Deadline::never(), &Interrupt::none());
        }
        for node in &nodes {
            node.quiesced(&range);
        }
        drop(pages);
        Ok(invalidation)
    }

    /// Keeps invalidations from beginning, for as long as it takes to check numbers and publish a fence.
    pub fn notifier(&self) -> NotifierGuard<'_> {
        NotifierGuard { _notifier: self.0.notifier.read(), of: &self.0 }
    }

    /// How many userptrs are in the index, those that go away included.
    pub fn len(&self) -> usize {
        self.0.notifier.read().index.len()
    }

    /// Whether there are no userptrs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The notifier's lock, for writing: no use begins and none is being published.
    pub(super) fn exclusive(&self) -> impl Drop + '_ {
        self.0.notifier.write()
    }

    pub(super) fn reaper(&self) -> &Reaper {
        &self.0.reaper
    }

    pub(super) fn guards(&self, guard: &NotifierGuard<'_>) -> bool {
        std::ptr::eq(guard.of, &*self.0)
    }

    /// Takes a userptr out that nothing uses any more. Runs on the reaper.
    pub(super) fn unregister(&self, id: IntervalId, range: Range<u64>) {
        let mut count = self.0.registration.lock();
        let Some(node) = self.0.notifier.write().index.remove(id) else { return };
        self.0.source.unwatch(range);
        *count -= 1;
        if *count == 0 {
            self.0.source.detach();
        }
        drop(count);
        // Not under the lock: the pages may be anything.
        drop(node);
    }
}

impl Notifier {
    fn insert(&mut self, range: Range<u64>, node: Arc<dyn Node>) -> Option<IntervalId> {
        let id = self.index.insert(range.clone(), node.clone())?;
        let overlapping =
            |active: &&mut Active| active.range.start < range.end && range.start < active.range.end;
        for active in self.active.iter_mut().filter(overlapping) {
            // It has no pages and no use yet: all it needs is to wait.
            node.begin_invalidation(&active.range);
            active.held_up.push(node.clone());
        }
        Some(id)
    }

    fn overlapping(&self, range: &Range<u64>) -> Vec<Arc<dyn Node>> {
        self.index.overlapping(range.clone()).map(|(_, node)| node.clone()).collect()
    }

    fn begin(&mut self, range: Range<u64>, held_up: Vec<Arc<dyn Node>>) -> u64 {
        self.next += 1;
        self.active.push(Active { id: self.next, range, held_up });
        self.next
    }

    fn end(&mut self, id: u64) -> Option<Active> {
        let place = self.active.iter().position(|active| active.id == id)?;
        Some(self.active.swap_remove(place))
    }
}

impl Invalidation<'_> {
    /// How many userptrs it visited.
    pub fn visited(&self) -> usize {
        self.visited
    }
}

impl Drop for Invalidation<'_> {
    fn drop(&mut self) {
        let ended = self.mm.0.notifier.write().end(self.id);
        for node in ended.into_iter().flat_map(|active| active.held_up) {
            node.end_invalidation();
        }
    }
}

impl WeakMm {
    /// The address space's record, if it is still there.
    pub fn upgrade(&self) -> Option<Mm> {
        self.0.upgrade().map(Mm)
    }
}

impl fmt::Debug for Mm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mm").field("userptrs", &*self.0.registration.lock()).finish()
    }
}

impl fmt::Debug for WeakMm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakMm")
    }
}

impl fmt::Debug for NotifierGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NotifierGuard")
    }
}

impl fmt::Debug for Invalidation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invalidation").field("visited", &self.visited).finish()
    }
}
