//! Queues and the jobs in them.

use std::{
    collections::VecDeque,
    fmt,
    thread::{self, ThreadId},
    time::Duration,
};

use crate::{
    fence::{self, CallbackId, Fence, FenceContext, FenceError, Seqno, Signaller, Timeline, signalling},
    sync::{Arc, Condvar, Mutex, MutexGuard},
};

use super::{
    ArmError, Backend, Priority,
    watch::{Look, Watch},
    worker::Scheduler,
};

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
    /// Wakes those who wait for the runner to come to an end, or for the first job to be pushed.
    rested: Condvar,
}

/// # Invariants
/// `entries` are in the order of their fences' numbers. Only the first has a callback registered.
pub(super) struct State<W> {
    entries: VecDeque<Entry<W>>,
    /// The thread that hands jobs to the backend now.
    runner: Option<ThreadId>,
    /// Whether the queue is on the list of ready queues.
    listed: bool,
    killed: Option<FenceError>,
    priority: Priority,
    watch: Watch,
    /// The job that left the entries last: handed to the backend, or failing.
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
    awaited: Option<Awaited>,
}

/// The dependency that the first job waits for.
struct Awaited {
    fence: Fence,
    /// `None` while it is being registered.
    callback: Option<CallbackId>,
}

/// What to do with the first job, without the lock.
enum Step<W> {
    Run(W, Signaller),
    Fail { after: Option<Fence>, done: Signaller },
    Await { job: Seqno, fence: Fence },
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
            runner: None,
            listed: false,
            killed: None,
            priority: config.priority,
            watch: Watch::default(),
            in_flight: None,
            last: None,
        };
        let timeline = Timeline::new(config.name.clone());
        Self(Arc::new(Inner {
            scheduler,
            timeline,
            config,
            state: Mutex::new(state),
            rested: Condvar::new(),
        }))
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
        self.0.rested.notify_all();
        let mut failing = Vec::with_capacity(entries.len());
        for Entry { done, stage } in entries {
            failing.push(done);
            if let Stage::Waiting(Job { awaited: Some(Awaited { fence, callback: Some(id) }), .. }) = &stage {
                fence.remove_callback(*id);
            }
        }
        fail_after(in_flight, failing, error);
    }

    /// Returns when every job whose turn has come has been handed to the backend: runs those that a worker has not come to
    /// yet, and waits while another thread runs some. What still waits is behind a fence, or behind a job that was armed and
    /// not pushed.
    ///
    /// Pushing to an inline queue does this too, but does not wait for another thread.
    ///
    /// # Panics
    /// In debug builds, in a [signalling section](crate::fence::signalling()).
    #[track_caller]
    pub fn catch_up(&self) {
        fence::assert_may_block("catching up with a queue");
        self.0.run_ready(self.0.at_rest(), usize::MAX);
    }

    /// The scheduler that the queue feeds.
    pub fn scheduler(&self) -> &Scheduler<B> {
        &self.0.scheduler
    }

    /// Changes which queues go first on the workers. One that waits for a worker already keeps its turn.
    pub fn set_priority(&self, priority: Priority) {
        self.0.state.lock().priority = priority;
    }

    /// Has the jobs that are handed over from now on watched: [`Backend::timed_out`] is called, on a worker, for one that
    /// takes longer than `timeout`, not counting the time that the one before it took. `None`, as at first: none is watched.
    pub fn set_timeout(&self, timeout: Option<Duration>) {
        self.0.state.lock().watch.set_timeout(timeout);
    }

    /// Has a worker call [`Backend::timed_out`] now for the job in flight, if it is watched: for a driver that has learned
    /// that it hangs. Allowed anywhere, in the device's interrupt too.
    pub fn time_out(&self) {
        let look = self.0.state.lock().watch.give_up();
        self.0.list_look(look);
    }

    /// How the job that was handed over last has failed, if it has ended and did.
    pub fn last_error(&self) -> Option<FenceError> {
        self.0.state.lock().in_flight.as_ref()?.status()?.err()
    }

    /// [`catch_up`](Self::catch_up), which also waits for whoever has armed a job before `job`, of this queue, and is about to
    /// push it: for queues whose users push soon after they arm. The caller may not be such a user.
    ///
    /// # Panics
    /// In debug builds, in a [signalling section](crate::fence::signalling()).
    #[track_caller]
    pub fn catch_up_to(&self, job: &Fence) {
        fence::assert_may_block("catching up with a queue");
        let mut state = self.0.state.lock();
        loop {
            let elsewhere = state.runner.is_some_and(|runner| runner != thread::current().id());
            if elsewhere || state.is_armed_before(job.seqno()) {
                self.0.rested.wait(&mut state);
                continue;
            }
            drop(self.0.drain(state, usize::MAX));
            state = self.0.state.lock();
            if !state.is_armed_before(job.seqno()) {
                return;
            }
        }
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
        let job = Job { work, dependencies, awaited: None };
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
                true => self.run_ready(state, usize::MAX),
                false => self.list(state),
            }
        } else if self.config.inline && state.runner.is_none() {
            // Earlier jobs may be ready, and listed for a worker that has not come to them yet.
            self.run_ready(state, usize::MAX);
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
        if state.runner.is_some() || state.listed {
            return;
        }
        state.listed = true;
        let priority = state.priority;
        drop(state);
        self.scheduler.ready(self.clone(), priority);
    }

    /// Has a worker look at the job in flight when its time may be up.
    fn list_look(self: &Arc<Self>, look: Option<Look>) {
        if let Some(look) = look {
            self.scheduler.watch(self.clone(), look);
        }
    }

    /// What a worker does when the time of the job in flight may be up.
    pub(super) fn look(self: &Arc<Self>, generation: u64) {
        let found = {
            let mut state = self.state.lock();
            match self.scheduler.is_paused() {
                // When it goes on, its time starts anew.
                true => return state.watch.rest(),
                false => state.watch.look(generation),
            }
        };
        match found {
            Ok(next) => self.list_look(next),
            Err(job) => {
                let _watched_on = WatchOn(self);
                let _section = signalling();
                self.scheduler.backend().timed_out(&Queue(self.clone()), &job);
            }
        }
    }

    /// Waits until no other thread is handing over jobs of the queue, and keeps it so.
    pub(super) fn at_rest(&self) -> MutexGuard<'_, State<B::Work>> {
        let mut state = self.state.lock();
        while state.runner.is_some_and(|runner| runner != thread::current().id()) {
            self.rested.wait(&mut state);
        }
        state
    }

    /// Gives the job in flight its whole time again.
    pub(super) fn watch_anew(self: &Arc<Self>) {
        let look = self.state.lock().watch.start_anew();
        self.list_look(look);
    }

    /// What a worker does with a listed queue: runs a few jobs and lets others have their turn.
    pub(super) fn work(self: &Arc<Self>) {
        const TURN: usize = 16;
        let mut state = self.state.lock();
        state.listed = false;
        self.run_ready(state, TURN);
    }

    /// Hands ready jobs to the backend, at most `turn`; the rest is for a worker, when its turn comes.
    fn run_ready<'a>(self: &'a Arc<Self>, state: MutexGuard<'a, State<B::Work>>, turn: usize) {
        if let Some(state) = self.drain(state, turn) {
            self.list(state);
        }
    }

    /// Hands ready jobs to the backend, at most `turn`. Gives the lock back if the turn, or a pause, came before their end.
    fn drain<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State<B::Work>>,
        mut turn: usize,
    ) -> Option<MutexGuard<'a, State<B::Work>>> {
        if state.runner.is_some() {
            return None;
        }
        state.runner = Some(thread::current().id());
        let mut runner = Runner { queue: self, unwinding: true };
        let ended = loop {
            if turn == 0 {
                break false;
            }
            // Under the lock, so that a pause either is seen here or waits for this thread.
            if self.scheduler.is_paused() {
                break state.entries.is_empty();
            }
            let Some(step) = state.next_step() else { break true };
            turn -= 1;
            let look = match &step {
                Step::Run(_, done) => state.watch.hand_over(done.fence()),
                Step::Fail { .. } | Step::Await { .. } => None,
            };
            drop(state);
            self.list_look(look);
            match step {
                Step::Run(work, done) => {
                    let _section = signalling();
                    self.scheduler.backend().run(work, done);
                }
                Step::Fail { after, done } => fail_after(after, vec![done], FenceError::Cancelled),
                Step::Await { job, fence } => self.register(job, fence),
            }
            state = self.state.lock();
        };
        runner.unwinding = false;
        state.runner = None;
        self.rested.notify_all();
        (!ended).then_some(state)
    }

    /// Has `fence` wake the queue for the sake of `job`. Not under the lock: a container that signals meanwhile runs its
    /// callbacks in this thread.
    fn register(self: &Arc<Self>, job: Seqno, fence: Fence) {
        let queue = self.clone();
        let registered = fence.add_callback(move |_| queue.wake());
        let mut state = self.state.lock();
        let awaited = state.awaited(job);
        match (registered, awaited) {
            (Ok(id), Some(awaited)) => awaited.callback = Some(id),
            (Ok(id), None) => {
                // The queue was killed.
                drop(state);
                fence.remove_callback(id);
            }
            // The next look finds it signalled.
            (Err(_), _) => {}
        }
    }
}

impl<W> State<W> {
    /// Whether the next job is none after `job`, and somebody is still to push it.
    fn is_armed_before(&self, job: Seqno) -> bool {
        let first = self.entries.front();
        first.is_some_and(|first| matches!(first.stage, Stage::Armed) && first.done.fence().seqno() <= job)
    }

    /// Takes the first job out if its turn has come, or what is to be done to that end. `None` if there is nothing to do until
    /// something happens.
    fn next_step(&mut self) -> Option<Step<W>> {
        let first = self.entries.front_mut()?;
        match &mut first.stage {
            Stage::Armed => return None,
            Stage::Abandoned => {}
            Stage::Waiting(job) => {
                if !job.look() {
                    let Awaited { fence, callback } = job.awaited.as_ref()?;
                    let fence = callback.is_none().then(|| fence.clone())?;
                    return Some(Step::Await { job: first.done.fence().seqno(), fence });
                }
            }
        }
        let Entry { done, stage } = self.entries.pop_front()?;
        // One that fails counts as well: what a kill fails from now on comes after it.
        let before = self.in_flight.replace(done.fence().clone());
        match stage {
            Stage::Waiting(job) => Some(Step::Run(job.work, done)),
            Stage::Armed | Stage::Abandoned => Some(Step::Fail { after: before, done }),
        }
    }

    /// What the first job waits for, if that job is `job`.
    fn awaited(&mut self, job: Seqno) -> Option<&mut Awaited> {
        let first = self.entries.front_mut().filter(|first| first.done.fence().seqno() == job)?;
        match &mut first.stage {
            Stage::Waiting(job) => job.awaited.as_mut(),
            Stage::Armed | Stage::Abandoned => None,
        }
    }
}

impl<W> Job<W> {
    /// Whether all dependencies have signalled. If not, the first that has not is the one to wait for.
    fn look(&mut self) -> bool {
        // The callback of one that has signalled finds nothing to do, or has run.
        self.awaited.take_if(|awaited| awaited.fence.is_signalled());
        while self.awaited.is_none() {
            let Some(fence) = self.dependencies.pop() else { return true };
            if !fence.is_signalled() {
                self.awaited = Some(Awaited { fence, callback: None });
            }
        }
        false
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
            state.runner = None;
            self.queue.rested.notify_all();
            self.queue.list(state);
        }
    }
}

/// Has the watch go on after a job's time was up, even if the backend panics.
struct WatchOn<'a, B: Backend>(&'a Arc<Inner<B>>);

impl<B: Backend> Drop for WatchOn<'_, B> {
    fn drop(&mut self) {
        let look = self.0.state.lock().watch.was_reported();
        self.0.list_look(look);
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
