//! Callbacks: where they wait, and the queue that runs them.
//!
//! When a fence signals, its callbacks move to a queue of the signalling thread and run from there, outside every
//! lock. Signalling another fence from a callback appends to the same queue. The outermost call empties it, so
//! the stack stays flat however long a cascade gets. A callback that panics does not keep the others from running;
//! the panic goes on when the queue is empty.

use std::{
    any::Any,
    cell::RefCell,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use crate::sync::{Arc, Weak};

use super::{
    Fence, Timestamp,
    core::{Body, Inner},
    park::Parker,
    signalling::signalling,
};

/// Names one callback of one fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallbackId(u64);

/// What to do when a fence signals.
pub(super) enum Action {
    /// Run a closure.
    Call(Box<dyn FnOnce(&Fence) + Send>),
    /// Wake a thread that waits.
    Wake(Arc<Parker>),
    /// Tell a container, if it still exists, that one of its members has signalled.
    Member(Weak<Inner>),
}

pub(super) type DeadlineHook = Arc<dyn Fn(Timestamp) + Send + Sync>;

/// The callbacks of a fence that has not signalled, behind the fence's lock.
///
/// # Invariants
/// `rest` is sorted by id; what was removed from it leaves a hole until half of it is holes. `keep` is set only on a
/// container, and only while there are callbacks.
pub(super) struct Callbacks {
    // Most fences have one callback: it needs no list.
    first: Option<(CallbackId, Action)>,
    rest: Vec<(CallbackId, Option<Action>)>,
    holes: usize,
    next: u64,
    /// Whether the container follows its members by itself.
    armed: bool,
    /// Keeps a container alive for its callbacks.
    keep: Option<Fence>,
    deadline: Option<Box<Deadlines>>,
}

struct Deadlines {
    hook: Option<DeadlineHook>,
    earliest: Option<Timestamp>,
}

/// What a fence lets go of when it signals.
pub(super) struct Released {
    pub(super) actions: Actions,
    /// To be dropped without the fence's lock.
    pub(super) keep: (Option<Fence>, Option<Box<dyn Any + Send>>),
}

/// Callbacks in the order they were added.
pub(super) struct Actions {
    first: Option<(CallbackId, Action)>,
    rest: Vec<(CallbackId, Option<Action>)>,
}

impl Actions {
    fn into_iter(self) -> impl Iterator<Item = Action> {
        let first = self.first.map(|(_, action)| action);
        first.into_iter().chain(self.rest.into_iter().filter_map(|(_, action)| action))
    }
}

impl Callbacks {
    pub(super) const fn new() -> Self {
        Self { first: None, rest: Vec::new(), holes: 0, next: 0, armed: false, keep: None, deadline: None }
    }

    pub(super) fn add(&mut self, action: Action) -> CallbackId {
        let id = CallbackId(self.next);
        self.next += 1;
        if self.first.is_none() && self.rest.is_empty() {
            self.first = Some((id, action));
        } else {
            self.rest.push((id, Some(action)));
        }
        id
    }

    /// Takes one callback out. The second value, which kept the fence alive, is to be dropped without the lock.
    pub(super) fn remove(&mut self, id: CallbackId) -> (Option<Action>, Option<Fence>) {
        let action = if self.first.as_ref().is_some_and(|(first, _)| *first == id) {
            self.first.take().map(|(_, action)| action)
        } else {
            self.remove_from_rest(id)
        };
        let keep = if self.first.is_none() && self.rest.is_empty() { self.keep.take() } else { None };
        (action, keep)
    }

    fn remove_from_rest(&mut self, id: CallbackId) -> Option<Action> {
        let place = self.rest.binary_search_by_key(&id.0, |(id, _)| id.0).ok()?;
        let action = self.rest[place].1.take()?;
        self.holes += 1;
        if self.holes * 2 >= self.rest.len() {
            self.rest.retain(|(_, action)| action.is_some());
            self.holes = 0;
        }
        Some(action)
    }

    /// Empties the list because the fence has signalled; `None` if there is nothing to do or drop.
    pub(super) fn release(&mut self) -> Option<Released> {
        if self.first.is_none() && self.rest.is_empty() && self.keep.is_none() && self.deadline.is_none() {
            return None;
        }
        let hook = self.deadline.take().and_then(|deadlines| deadlines.hook);
        Some(Released {
            actions: Actions { first: self.first.take(), rest: std::mem::take(&mut self.rest) },
            keep: (self.keep.take(), hook.map(|hook| Box::new(hook) as Box<dyn Any + Send>)),
        })
    }

    /// How many callbacks would run if the fence signalled now.
    #[cfg(test)]
    pub(super) fn pending_count(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len() - self.holes
    }

    /// Keeps the container alive while it has callbacks.
    pub(super) fn keep_alive(&mut self, fence: &Fence) {
        if self.keep.is_none() {
            self.keep = Some(fence.clone());
        }
    }

    /// Marks a container as following its members. True if the caller is to make that so.
    pub(super) fn follow_members(&mut self) -> bool {
        !std::mem::replace(&mut self.armed, true)
    }

    pub(super) fn set_deadline_hook(&mut self, hook: DeadlineHook) -> Option<DeadlineHook> {
        let deadlines =
            self.deadline.get_or_insert_with(|| Box::new(Deadlines { hook: None, earliest: None }));
        deadlines.hook.replace(hook)
    }

    /// The hook to call for a new hint; `None` if an earlier hint stands, or nobody listens.
    pub(super) fn deadline_hook(&mut self, time: Timestamp) -> Option<DeadlineHook> {
        let deadlines = self.deadline.as_mut()?;
        if deadlines.earliest.is_some_and(|earliest| earliest <= time) {
            return None;
        }
        deadlines.earliest = Some(time);
        deadlines.hook.clone()
    }
}

/// A unit of work for the queue.
enum Job {
    /// Carry out an action of this signalled fence.
    Run(Fence, Action),
    /// Have this container register with its members.
    Arm(Fence),
}

/// The work queue of a thread.
struct Queue {
    jobs: VecDeque<Job>,
    running: bool,
}

thread_local! {
    static QUEUE: RefCell<Queue> = const { RefCell::new(Queue { jobs: VecDeque::new(), running: false }) };
}

/// Has the actions of a signalled fence run: now, or after the callback that this is called from.
pub(super) fn post_actions(fence: &Arc<Inner>, actions: Actions) {
    post(actions.into_iter().map(|action| Job::Run(Fence(fence.clone()), action)));
}

/// Has a container register with its members: now, or after the callback that this is called from.
pub(super) fn post_arm(fence: Fence) {
    post(std::iter::once(Job::Arm(fence)));
}

fn post(jobs: impl Iterator<Item = Job>) {
    let mut jobs = Some(jobs);
    let queued = QUEUE.try_with(|queue| {
        let mut queue = queue.borrow_mut();
        queue.jobs.extend(jobs.take().into_iter().flatten());
        !std::mem::replace(&mut queue.running, true)
    });
    match queued {
        Ok(false) => {}
        Ok(true) => drain(|| {
            QUEUE.with(|queue| {
                let mut queue = queue.borrow_mut();
                let job = queue.jobs.pop_front();
                queue.running = job.is_some();
                job
            })
        }),
        // The thread's locals are gone: it is about to end. Work through a queue of this call.
        Err(_) => {
            let mut jobs: VecDeque<Job> = jobs.into_iter().flatten().collect();
            drain(|| jobs.pop_front());
        }
    }
}

/// Carries out jobs until there is none, then lets the first panic among them go on.
fn drain(mut next: impl FnMut() -> Option<Job>) {
    let _section = signalling();
    let mut panic = None;
    while let Some(job) = next() {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job.run())) {
            panic.get_or_insert(payload);
        }
    }
    if let Some(payload) = panic
        && !std::thread::panicking()
    {
        resume_unwind(payload);
    }
}

impl Job {
    fn run(self) {
        match self {
            Self::Run(fence, Action::Call(callback)) => callback(&fence),
            Self::Run(_, Action::Wake(parker)) => parker.unpark(),
            Self::Run(fence, Action::Member(container)) => {
                if let Some(container) = container.upgrade() {
                    member_signalled(&container, &fence);
                }
            }
            Self::Arm(fence) => match &fence.0.body {
                Body::Plain => {}
                Body::Array(array) => array.arm(&fence.0),
                Body::Chain(chain) => chain.advance(&fence.0),
            },
        }
    }
}

fn member_signalled(container: &Arc<Inner>, member: &Fence) {
    match &container.body {
        Body::Plain => {}
        Body::Array(array) => array.member_signalled(container, member),
        Body::Chain(chain) => chain.advance(container),
    }
}
