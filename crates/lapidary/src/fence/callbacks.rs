//! Callbacks: where they wait, and the queue that runs them.
//!
//! When a fence signals, its callbacks run in the signalling thread, outside every lock. Signalling another fence from a
//! callback appends to a queue of the thread instead of nesting; the outermost call empties it, so the stack stays flat
//! however long a cascade gets. A callback that panics does not keep the others from running; the panic goes on when
//! all have, unless the thread was panicking already.
//!
//! A fence signalled outside any callback, which is the common case, runs its callbacks without that queue.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::VecDeque,
    mem,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use crate::sync::{Arc, thread_local};

use super::{
    Fence, Timestamp,
    core::{Body, Inner},
    shared::{Shared, WeakShared},
    signalling::{SignallingSection, signalling},
};

/// Names one callback of one fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallbackId(u64);

/// What to do when a fence signals.
pub(super) type Action = Box<dyn FnOnce(&Fence) + Send>;

pub(super) type DeadlineHook = Arc<dyn Fn(Timestamp) + Send + Sync>;

/// The callbacks of a fence that has not signalled, behind the fence's lock.
///
/// # Invariants
/// Ids ascend from `first` through `more`. There is no `more` without need: most fences have one callback.
pub(super) struct Callbacks {
    first: Option<Action>,
    first_id: u64,
    next: u64,
    more: Option<Box<More>>,
}

/// What most fences need no room for.
///
/// # Invariants
/// `rest` is sorted by id; what was removed from it leaves a hole until half of it is holes. `keep` is set only on a
/// container, and only while there are callbacks.
#[derive(Default)]
struct More {
    rest: Vec<(CallbackId, Option<Action>)>,
    holes: usize,
    /// Whether the container follows its members by itself.
    armed: bool,
    /// Keeps a container alive for its callbacks.
    keep: Option<Fence>,
    hook: Option<DeadlineHook>,
    earliest_deadline: Option<Timestamp>,
}

/// What a fence lets go of when it signals: callbacks in the order they were added, and what is to be dropped without the
/// fence's lock.
pub(super) struct Released {
    first: Option<Action>,
    more: Option<Box<More>>,
}

impl Callbacks {
    pub(super) const fn new() -> Self {
        Self { first: None, first_id: 0, next: 0, more: None }
    }

    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    #[inline]
    pub(super) fn add(&mut self, action: Action) -> CallbackId {
        let id = CallbackId(self.next);
        self.next += 1;
        let only = self.more.as_ref().is_none_or(|more| more.rest.is_empty());
        if only && self.first.is_none() {
            self.first = Some(action);
            self.first_id = id.0;
        } else {
            self.more().rest.push((id, Some(action)));
        }
        id
    }

    /// Takes one callback out. The second value, which kept the fence alive, is to be dropped without the lock.
    #[inline]
    pub(super) fn remove(&mut self, id: CallbackId) -> (Option<Action>, Option<Fence>) {
        let found = if self.first_id == id.0 { self.first.take() } else { None };
        let Some(more) = &mut self.more else { return (found, None) };
        let action = found.or_else(|| more.remove(id));
        let keep = if self.first.is_none() && more.rest.is_empty() { more.keep.take() } else { None };
        (action, keep)
    }

    /// Empties the list because the fence has signalled.
    #[inline]
    pub(super) fn release(&mut self) -> Released {
        Released { first: self.first.take(), more: self.more.take() }
    }

    /// How many callbacks would run if the fence signalled now.
    #[cfg(test)]
    pub(super) fn pending_count(&self) -> usize {
        let rest = self.more.as_ref().map_or(0, |more| more.rest.len() - more.holes);
        usize::from(self.first.is_some()) + rest
    }

    /// Keeps the container alive while it has callbacks.
    pub(super) fn keep_alive(&mut self, fence: &Fence) {
        self.more().keep.get_or_insert_with(|| fence.clone());
    }

    /// Marks a container as following its members. True if the caller is to make that so.
    pub(super) fn follow_members(&mut self) -> bool {
        !mem::replace(&mut self.more().armed, true)
    }

    pub(super) fn set_deadline_hook(&mut self, hook: DeadlineHook) -> Option<DeadlineHook> {
        self.more().hook.replace(hook)
    }

    /// The hook to call for a new hint; `None` if an earlier hint stands, or nobody listens.
    pub(super) fn deadline_hook(&mut self, time: Timestamp) -> Option<DeadlineHook> {
        let more = self.more.as_mut().filter(|more| more.hook.is_some())?;
        if more.earliest_deadline.is_some_and(|earliest| earliest <= time) {
            return None;
        }
        more.earliest_deadline = Some(time);
        more.hook.clone()
    }
}

impl More {
    fn remove(&mut self, id: CallbackId) -> Option<Action> {
        let place = self.rest.binary_search_by_key(&id.0, |(id, _)| id.0).ok()?;
        let action = self.rest[place].1.take()?;
        self.holes += 1;
        if self.holes * 2 >= self.rest.len() {
            self.rest.retain(|(_, action)| action.is_some());
            self.holes = 0;
        }
        Some(action)
    }
}

/// A unit of work for the queue.
enum Job {
    /// Carry out the actions of this signalled fence.
    Run(Fence, Released),
    /// Have this container register with its members.
    Arm(Fence),
}

/// What a thread is at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Activity {
    Other,
    /// It is running callbacks, so that others have to be queued.
    Callbacks,
    /// And some have been.
    Queued,
}

thread_local! {
    static ACTIVITY: Cell<Activity> = const { Cell::new(Activity::Other) };
    static QUEUE: RefCell<VecDeque<Job>> = const { RefCell::new(VecDeque::new()) };
}

/// Has the callbacks of a signalled fence run: now, or after the callback that this is called from.
#[inline]
pub(super) fn run_callbacks(fence: Fence, released: Released) {
    match released {
        Released { first: None, more: None } => {}
        // The common case.
        Released { first: Some(action), more: None } if ACTIVITY.with(Cell::get) == Activity::Other => {
            let _running = Running::begin();
            action(&fence);
        }
        released => post(Job::Run(fence, released)),
    }
}

/// Has a container register with its members: now, or after the callback that this is called from.
pub(super) fn post_arm(fence: Fence) {
    post(Job::Arm(fence));
}

#[cold]
fn post(job: Job) {
    if ACTIVITY.with(Cell::get) == Activity::Other {
        let _running = Running::begin();
        return job.run();
    }
    // Where the thread's queue is gone the thread is about to end, and nesting is the only way left.
    let mut job = Some(job);
    match QUEUE.try_with(|queue| queue.borrow_mut().extend(job.take())) {
        Ok(()) => ACTIVITY.with(|activity| activity.set(Activity::Queued)),
        Err(_) => job.into_iter().for_each(Job::run),
    }
}

/// The outermost run of callbacks. At its end, or when one panics, what was queued meanwhile is carried out.
struct Running {
    _section: SignallingSection,
}

impl Running {
    #[inline]
    fn begin() -> Self {
        ACTIVITY.with(|activity| activity.set(Activity::Callbacks));
        Self { _section: signalling() }
    }
}

impl Drop for Running {
    #[inline]
    fn drop(&mut self) {
        let panic = if ACTIVITY.with(Cell::get) == Activity::Queued { drain() } else { Panic::default() };
        ACTIVITY.with(|activity| activity.set(Activity::Other));
        panic.go_on();
    }
}

/// Carries out what is queued, until nothing is.
#[cold]
fn drain() -> Panic {
    let mut panic = Panic::default();
    // The borrow ends before the job begins.
    while let Ok(Some(job)) = QUEUE.try_with(|queue| queue.borrow_mut().pop_front()) {
        panic.catch(|| job.run());
    }
    panic
}

/// The first panic of foreign code that others must not suffer from. What it carries is foreign code to drop, which may
/// panic again: what does not go on is never dropped.
#[derive(Default)]
struct Panic(Option<Box<dyn Any + Send>>);

impl Panic {
    fn catch(&mut self, work: impl FnOnce()) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(work)) {
            match self.0 {
                None => self.0 = Some(payload),
                Some(_) => mem::forget(payload),
            }
        }
    }

    #[inline]
    fn go_on(self) {
        if let Some(payload) = self.0 {
            go_on(payload);
        }
    }
}

#[cold]
fn go_on(payload: Box<dyn Any + Send>) {
    if std::thread::panicking() {
        mem::forget(payload);
    } else {
        resume_unwind(payload);
    }
}

/// Does `work`, which runs callbacks, in a thread that may be panicking: a panic of theirs, on top, would end the process.
pub(super) fn while_panicking(work: impl FnOnce()) {
    if !std::thread::panicking() {
        return work();
    }
    let mut panic = Panic::default();
    panic.catch(work);
    panic.go_on();
}

impl Job {
    /// Carries the job out. A panic of one callback goes on after the others.
    fn run(self) {
        match self {
            Self::Run(fence, Released { first, more }) => {
                let _more = RunMore { fence: &fence, more };
                if let Some(action) = first {
                    action(&fence);
                }
            }
            Self::Arm(fence) => match fence.0.body() {
                Body::Plain => {}
                Body::Array(array) => array.arm(&fence.0),
                Body::Chain(chain) => chain.advance(&fence.0),
            },
        }
    }
}

/// Runs the callbacks behind the first, even if that panics.
struct RunMore<'a> {
    fence: &'a Fence,
    more: Option<Box<More>>,
}

impl Drop for RunMore<'_> {
    fn drop(&mut self) {
        let Some(More { rest, keep, hook, .. }) = self.more.take().map(|more| *more) else { return };
        let mut panic = Panic::default();
        for action in rest.into_iter().filter_map(|(_, action)| action) {
            panic.catch(|| action(self.fence));
        }
        // The hook is foreign code to drop.
        panic.catch(|| drop((keep, hook)));
        panic.go_on();
    }
}

/// What a container leaves with a member: tells the container, if it still exists, that the member has signalled.
pub(super) fn tell(container: &Shared<Inner>) -> impl FnOnce(&Fence) + Send + 'static {
    let container: WeakShared<Inner> = Shared::downgrade(container);
    move |member| {
        let Some(container) = container.upgrade() else { return };
        match container.body() {
            Body::Plain => {}
            Body::Array(array) => array.member_signalled(&container, member),
            Body::Chain(chain) => chain.advance(&container),
        }
    }
}
