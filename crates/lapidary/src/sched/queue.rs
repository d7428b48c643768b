//! Queues and the jobs in them.

use std::{collections::VecDeque, fmt};

use crate::{
    fence::{CallbackId, Fence, FenceContext, FenceError, Signaller, Timeline, signalling},
    sync::{Arc, Mutex, MutexGuard},
};

use super::{ArmError, Backend, Priority, worker::Scheduler};

/// How a queue is made.
#[derive(Debug, Clone)]
pub struct QueueConfig {
    /// The name of its timeline.
    pub name: Arc<str>,
    /// Which queues go first on the workers.
    pub priority: Priority,
    /// How many jobs may wait to be started.
    pub max_pending: usize,
    /// Whether a job that is ready when pushed runs in the pushing thread.
    pub inline: bool,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { name: "queue".into(), priority: Priority::Normal, max_pending: 1024, inline: true }
    }
}

/// Jobs that run in order. Clones are handles to the same queue; jobs that were pushed run even when no handle is
/// left.
pub struct Queue<B: Backend>(Arc<Inner<B>>);

pub(super) struct Inner<B: Backend> {
    scheduler: Scheduler<B>,
    timeline: Timeline,
    config: QueueConfig,
    state: Mutex<State<B::Work>>,
}

/// # Invariants
/// `entries` are in the order of their fences' numbers. Only the first has a callback registered.
struct State<W> {
    entries: VecDeque<Entry<W>>,
    /// Whether some thread hands jobs to the backend.
    running: bool,
    /// Whether the queue is on the list of ready queues.
    listed: bool,
    killed: Option<FenceError>,
    /// The job handed to the backend last.
    in_flight: Option<Fence>,
    /// The job armed last.
    last: Option<Fence>,
}

struct Entry<W> {
    done: Signaller,
    stage: Stage<W>,
}

enum Stage<W> {
    Armed,
    Waiting(Job<W>),
    /// Dropped before it was pushed: fails when its turn comes.
    Abandoned,
}

struct Job<W> {
    work: W,
    /// What has not been looked at yet, last one first.
    dependencies: Vec<Fence>,
    registered: Option<(Fence, CallbackId)>,
}

/// What to do with the first job, without the lock.
enum Step<W> {
    Run(W, Signaller),
    Fail { after: Option<Fence>, done: Signaller },
}

/// A job's place in its queue. Dropping it fails the job.
#[must_use = "dropping an armed job fails it"]
pub struct Armed<B: Backend> {
    queue: Arc<Inner<B>>,
    fence: Fence,
    pushed: bool,
}

/// A job that was not taken, with its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PushError<W> {
    /// Why.
    pub error: ArmError,
    /// What was to be done.
    pub work: W,
}

impl<B: Backend> Queue<B> {
    pub(super) fn new(scheduler: Scheduler<B>, config: QueueConfig) -> Self {
        let state = State {
            entries: VecDeque::new(),
            running: false,
            listed: false,
            killed: None,
            in_flight: None,
            last: None,
        };
        let timeline = Timeline::new(config.name.clone());
        Self(Arc::new(Inner { scheduler, timeline, config, state: Mutex::new(state) }))
    }

    /// Takes the next place in the queue.
    ///
    /// # Errors
    /// [`ArmError`] if too many jobs wait, or the queue was killed.
    pub fn arm(&self) -> Result<Armed<B>, ArmError> {
        let mut state = self.0.state.lock();
        if let Some(error) = state.killed {
            return Err(ArmError::Killed(error));
        }
        if state.entries.len() >= self.0.config.max_pending {
            return Err(ArmError::Full(state.entries.len()));
        }
        // Under the lock, so that the order of the numbers is that of the entries.
        let (fence, done) = self.0.timeline.next();
        state.entries.push_back(Entry { done, stage: Stage::Armed });
        state.last = Some(fence.clone());
        Ok(Armed { queue: self.0.clone(), fence, pushed: false })
    }

    /// Arms and pushes a job at once. Returns the fence of its end.
    ///
    /// # Errors
    /// As [`arm`](Self::arm), with the work given back.
    pub fn push(
        &self,
        work: B::Work,
        dependencies: impl IntoIterator<Item = Fence>,
    ) -> Result<Fence, PushError<B::Work>> {
        match self.arm() {
            Ok(armed) => Ok(armed.push(work, dependencies)),
            Err(error) => Err(PushError { error, work }),
        }
    }

    /// Takes no more jobs, and fails those that were not handed to the backend yet: with `error`, and after those that were.
    /// Their work is dropped before this returns. Only the first call counts.
    pub fn kill(&self, error: FenceError) {
        let (entries, in_flight) = {
            let mut state = self.0.state.lock();
            if state.killed.is_some() {
                return;
            }
            state.killed = Some(error);
            (std::mem::take(&mut state.entries), state.in_flight.clone())
        };
        let mut failing = Vec::with_capacity(entries.len());
        for Entry { done, stage } in entries {
            failing.push(done);
            if let Stage::Waiting(Job { registered: Some((fence, callback)), .. }) = &stage {
                fence.remove_callback(*callback);
            }
        }
        fail_after(in_flight, failing, error);
    }

    /// Why the queue takes no more jobs, if it does not.
    pub fn killed(&self) -> Option<FenceError> {
        self.0.state.lock().killed
    }

    /// How many jobs were armed or pushed and not handed to the backend yet.
    pub fn pending(&self) -> usize {
        self.0.state.lock().entries.len()
    }

    /// The fence of the job armed last: when it has signalled, so have all before. A signalled one if there was none.
    pub fn last_fence(&self) -> Fence {
        self.0.state.lock().last.clone().unwrap_or_else(Fence::signalled)
    }

    /// Whether all jobs armed so far are done.
    pub fn is_idle(&self) -> bool {
        self.last_fence().is_signalled()
    }

    /// The context of the queue's fences.
    pub fn context(&self) -> FenceContext {
        self.0.timeline.context()
    }

    pub(super) fn downgrade(&self) -> crate::sync::Weak<Inner<B>> {
        Arc::downgrade(&self.0)
    }

    pub(super) fn from_inner(inner: Arc<Inner<B>>) -> Self {
        Self(inner)
    }
}

impl<B: Backend> Armed<B> {
    /// The fence that signals when the job is done.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Says what the job is. It runs when all `dependencies` have signalled, whatever their status; those of the same queue
    /// are satisfied by the order of the queue. Runs it before returning if it can run now; see the [module](super).
    ///
    /// If the queue was killed meanwhile, the fence fails and the work is dropped.
    pub fn push(mut self, work: B::Work, dependencies: impl IntoIterator<Item = Fence>) -> Fence {
        let own = self.queue.timeline.context();
        let pending = |fence: &Fence| fence.context() != own && !fence.is_signalled();
        let mut dependencies: Vec<Fence> = dependencies.into_iter().filter(pending).collect();
        dependencies.reverse();
        self.pushed = true;
        let job = Job { work, dependencies, registered: None };
        let refused = self.queue.settle(&self.fence, Stage::Waiting(job));
        drop(refused);
        self.fence.clone()
    }
}

impl<B: Backend> Drop for Armed<B> {
    fn drop(&mut self) {
        if !self.pushed {
            self.queue.settle(&self.fence, Stage::Abandoned);
        }
    }
}

impl<B: Backend> Inner<B> {
    /// Decides what becomes of an armed job, and lets the queue go on. Gives the stage back if the queue was killed.
    fn settle(self: &Arc<Self>, fence: &Fence, stage: Stage<B::Work>) -> Option<Stage<B::Work>> {
        let mut state = self.state.lock();
        // The entries before it may have left, or all of them with a kill.
        let found = state.entries.binary_search_by_key(&fence.seqno(), |entry| entry.done.fence().seqno());
        let Ok(place) = found else { return Some(stage) };
        state.entries[place].stage = stage;
        if place == 0 {
            match self.config.inline {
                true => drop(self.drain(state, usize::MAX)),
                false => self.list(state),
            }
        } else if self.config.inline && !state.running {
            // Earlier jobs may be ready, and listed for a worker that has not come to them yet.
            drop(self.drain(state, usize::MAX));
        }
        None
    }

    /// A dependency of the first job has signalled: a worker should look.
    fn wake(self: &Arc<Self>) {
        let state = self.state.lock();
        self.list(state);
    }

    /// Has a worker run what is ready, unless somebody does already.
    fn list(self: &Arc<Self>, mut state: MutexGuard<'_, State<B::Work>>) {
        if state.running || state.listed {
            return;
        }
        state.listed = true;
        drop(state);
        self.scheduler.ready(self.clone(), self.config.priority);
    }

    /// What a worker does with a listed queue: runs a few jobs and lets others have their turn.
    pub(super) fn work(self: &Arc<Self>) {
        const TURN: usize = 16;
        let mut state = self.state.lock();
        state.listed = false;
        if let Some(state) = self.drain(state, TURN) {
            self.list(state);
        }
    }

    /// Hands ready jobs to the backend, at most `turn`. Gives the lock back if the turn ended before the jobs.
    fn drain<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State<B::Work>>,
        mut turn: usize,
    ) -> Option<MutexGuard<'a, State<B::Work>>> {
        if state.running {
            return None;
        }
        state.running = true;
        let mut runner = Runner { queue: self, unwinding: true };
        loop {
            if turn == 0 {
                runner.unwinding = false;
                state.running = false;
                return Some(state);
            }
            let Some(step) = self.next_step(&mut state) else {
                runner.unwinding = false;
                state.running = false;
                return None;
            };
            turn -= 1;
            drop(state);
            match step {
                Step::Run(work, done) => {
                    let _section = signalling();
                    self.scheduler.backend().run(work, done);
                }
                Step::Fail { after, done } => fail_after(after, vec![done], FenceError::Cancelled),
            }
            state = self.state.lock();
        }
    }

    /// Takes the first job out if its turn has come; otherwise sees to it that its dependencies wake the queue.
    fn next_step(self: &Arc<Self>, state: &mut State<B::Work>) -> Option<Step<B::Work>> {
        let ready = match &mut state.entries.front_mut()?.stage {
            Stage::Armed => false,
            Stage::Abandoned => true,
            Stage::Waiting(job) => self.is_ready(job),
        };
        if !ready {
            return None;
        }
        let Entry { done, stage } = state.entries.pop_front()?;
        let Stage::Waiting(job) = stage else {
            return Some(Step::Fail { after: state.in_flight.clone(), done });
        };
        state.in_flight = Some(done.fence().clone());
        Some(Step::Run(job.work, done))
    }

    /// Whether all dependencies have signalled. If not, the first that has not will wake the queue.
    fn is_ready(self: &Arc<Self>, job: &mut Job<B::Work>) -> bool {
        if let Some((fence, _)) = &job.registered {
            if !fence.is_signalled() {
                return false;
            }
            // Its callback finds nothing to do, or has run.
            job.registered = None;
        }
        while let Some(fence) = job.dependencies.pop() {
            let queue = self.clone();
            if let Ok(callback) = fence.add_callback(move |_| queue.wake()) {
                job.registered = Some((fence, callback));
                return false;
            }
        }
        true
    }
}

/// Lets the queue go on if the backend panics.
struct Runner<'a, B: Backend> {
    queue: &'a Arc<Inner<B>>,
    unwinding: bool,
}

impl<B: Backend> Drop for Runner<'_, B> {
    fn drop(&mut self) {
        if self.unwinding {
            let mut state = self.queue.state.lock();
            state.running = false;
            self.queue.list(state);
        }
    }
}

/// Fails jobs in order, once the one before them is done.
fn fail_after(before: Option<Fence>, jobs: Vec<Signaller>, error: FenceError) {
    let fail = move || {
        for done in jobs {
            done.fail(error);
        }
    };
    match before {
        Some(before) => before.on_signal(move |_| fail()),
        None => fail(),
    }
}

impl<B: Backend> Clone for Queue<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend> fmt::Debug for Queue<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("name", &self.0.config.name)
            .field("pending", &self.pending())
            .field("killed", &self.killed())
            .finish()
    }
}

impl<B: Backend> fmt::Debug for Armed<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Armed").field("fence", &self.fence).finish()
    }
}
