//! An engine's contexts: their states, and which one runs next.
//!
//! All of this is under the engine's lock. Nothing here signals, calls back or drops foreign references: what must be done outside is
//! returned ([`Aborted`], [`Forgotten`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::atomic::AtomicU64,
    time::{Duration, Instant},
};

use lapidary::{
    fence::Timestamp,
    sync::{Arc, Mutex},
};

use crate::{
    class::EngineClass,
    context::{Submission, SubmitError},
    cs::Streamer,
    fault::{BanReason, ContextEvents, ContextId},
    pagetable::AddressSpace,
};

/// First and longest time that a parked context waits before it is looked at again.
pub(super) const PARK_MIN: Duration = Duration::from_micros(1);
/// See [`PARK_MIN`].
pub(super) const PARK_MAX: Duration = Duration::from_micros(100);

/// How contexts of an engine compete: a ready context of higher priority runs first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Runs when nothing else does.
    Low,
    /// The usual.
    #[default]
    Normal,
    /// Before the usual.
    High,
    /// The driver's own.
    Kernel,
}

/// What a context's handle can see without the engine's lock.
#[derive(Debug, Default)]
pub(crate) struct ContextInfo {
    pub(crate) run_ns: AtomicU64,
    pub(crate) banned: Mutex<Option<BanReason>>,
}

/// A job that was accepted.
pub(super) struct Job {
    pub(super) submission: Submission,
    pub(super) submitted: Timestamp,
    pub(super) started: Option<Started>,
}

/// When an engine began a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Started {
    pub(super) at: Timestamp,
    /// The same by another clock, moved on by the time that the job had to wait for its turn or for a fault to be resolved: the time since
    /// then is what counts against the job timeout.
    pub(super) charged_from: Instant,
}

/// Where a context stands; see the picture in [`super`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Ready { since: Instant },
    Running,
    Parked { due: Instant },
    Faulted { since: Instant },
}

/// Everything about a context.
struct Slot {
    phase: Phase,
    priority: Priority,
    jobs: VecDeque<Job>,
    space: Arc<AddressSpace>,
    events: Arc<dyn ContextEvents>,
    info: Arc<ContextInfo>,
    /// With the engine's thread while it runs.
    streamer: Option<Box<Streamer>>,
    /// How long it is parked next time.
    park: Duration,
    /// Set while it runs: why it is to be ended.
    doomed: Option<BanReason>,
    /// The handle is gone.
    closed: bool,
}

/// References of a context that is no more, to be dropped outside the lock.
pub(super) struct Forgotten(#[expect(dead_code, reason = "kept to be dropped")] Slot);

/// A context that was banned, and what is to be done about it outside the lock.
pub(super) struct Aborted {
    pub(super) id: ContextId,
    pub(super) reason: BanReason,
    pub(super) jobs: VecDeque<Job>,
    pub(super) events: Arc<dyn ContextEvents>,
    pub(super) forgotten: Option<Forgotten>,
}

/// What came of ending a context.
pub(super) enum Parting {
    /// It is banned; these are its jobs.
    Gone(Box<Aborted>),
    /// It runs; its thread will see to it.
    Running,
    /// It is not known, or banned already.
    Unknown,
}

/// A context that the thread took to run it.
pub(super) struct Task {
    pub(super) id: ContextId,
    pub(super) space: Arc<AddressSpace>,
    pub(super) events: Arc<dyn ContextEvents>,
    pub(super) info: Arc<ContextInfo>,
    pub(super) job: Job,
    pub(super) started: Started,
    /// Whether it was parked before: then it is given a short look only, if it still has no progress.
    pub(super) was_parked: bool,
}

/// How a task came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Return {
    /// Its job is done and signalled.
    Done,
    /// It could go on.
    Preempted,
    /// It waits for memory to change; `progressed` if it did anything since it was looked at last.
    Waits { progressed: bool },
    /// It stands at a fault.
    Faulted,
    /// It can't go on.
    Failed(BanReason),
}

/// An engine's contexts.
#[derive(Default)]
pub(super) struct Queue {
    slots: HashMap<ContextId, Slot>,
    ready: BTreeMap<Priority, VecDeque<ContextId>>,
    /// The contexts that are parked, by when they are due.
    parked: BTreeSet<(Instant, ContextId)>,
    running: Option<(ContextId, Priority)>,
    /// The thread is to fail everything and end.
    pub(super) stopping: bool,
}

impl Queue {
    pub(super) fn add(
        &mut self,
        id: ContextId,
        class: EngineClass,
        space: Arc<AddressSpace>,
        priority: Priority,
        events: Arc<dyn ContextEvents>,
        info: Arc<ContextInfo>,
    ) {
        let slot = Slot {
            phase: Phase::Idle,
            priority,
            jobs: VecDeque::new(),
            space,
            events,
            info,
            streamer: Some(Box::new(Streamer::new(class))),
            park: PARK_MIN,
            doomed: None,
            closed: false,
        };
        self.slots.insert(id, slot);
    }

    /// Accepts a job, or gives it back.
    pub(super) fn submit(
        &mut self,
        id: ContextId,
        submission: Submission,
    ) -> Result<(), (SubmitError, Submission)> {
        if self.stopping {
            return Err((SubmitError::Shutdown, submission));
        }
        let Some(slot) = self.slots.get_mut(&id) else { return Err((SubmitError::Shutdown, submission)) };
        if let Some(reason) = slot.doomed.or(*slot.info.banned.lock()) {
            return Err((SubmitError::Banned(reason), submission));
        }
        slot.jobs.push_back(Job { submission, submitted: Timestamp::now(), started: None });
        if slot.phase == Phase::Idle {
            self.make_ready(id, Instant::now());
        }
        Ok(())
    }

    /// Whether a context should run at once in place of the one that runs.
    pub(super) fn preempts_running(&self) -> bool {
        let best = self.ready.iter().rev().find(|(_, ids)| !ids.is_empty()).map(|(&priority, _)| priority);
        matches!((best, self.running), (Some(best), Some((_, running))) if best > running)
    }

    pub(super) fn set_priority(&mut self, id: ContextId, priority: Priority) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let old = std::mem::replace(&mut slot.priority, priority);
        match slot.phase {
            Phase::Ready { since } => {
                self.unqueue(id, old);
                self.make_ready(id, since);
            }
            Phase::Running => self.running = Some((id, priority)),
            _ => {}
        }
    }

    /// Bans a context for `reason`.
    pub(super) fn abort(&mut self, id: ContextId, reason: BanReason) -> Parting {
        let Some(slot) = self.slots.get_mut(&id) else { return Parting::Unknown };
        if slot.info.banned.lock().is_some() {
            return Parting::Unknown;
        }
        if slot.phase == Phase::Running {
            slot.doomed.get_or_insert(reason);
            return Parting::Running;
        }
        match (slot.phase, slot.priority) {
            (Phase::Ready { .. }, priority) => self.unqueue(id, priority),
            (Phase::Parked { due }, _) => {
                self.parked.remove(&(due, id));
            }
            _ => {}
        }
        self.ban(id, reason).map_or(Parting::Unknown, |aborted| Parting::Gone(Box::new(aborted)))
    }

    /// Bans a context if it still stands at a fault.
    pub(super) fn abort_faulted(&mut self, id: ContextId, reason: BanReason) -> Option<Aborted> {
        match self.slots.get(&id)?.phase {
            Phase::Faulted { .. } => self.ban(id, reason),
            _ => None,
        }
    }

    /// Lets a context go on that stands at a fault.
    pub(super) fn resume(&mut self, id: ContextId) {
        if let Some(Phase::Faulted { since }) = self.slots.get(&id).map(|slot| slot.phase) {
            self.make_ready(id, since);
        }
    }

    /// Notes that the handle is gone.
    pub(super) fn close(&mut self, id: ContextId) -> Option<Forgotten> {
        let slot = self.slots.get_mut(&id)?;
        slot.closed = true;
        self.forget_if_done(id)
    }

    /// Contexts with jobs.
    pub(super) fn busy(&self) -> Vec<ContextId> {
        self.slots.iter().filter(|(_, slot)| slot.phase != Phase::Idle).map(|(&id, _)| id).collect()
    }

    /// Makes parked contexts ready that are due, and takes the next context to run, with its streamer.
    pub(super) fn pick(&mut self, now: Instant) -> Option<(Task, Box<Streamer>)> {
        self.wake_parked(now);
        let id = self.ready.values_mut().rev().find_map(VecDeque::pop_front)?;
        let slot = self.slots.get_mut(&id).expect("ready contexts are known");
        let mut job = slot.jobs.pop_front().expect("ready contexts have a job");
        let mut streamer = slot.streamer.take().expect("only a running context has lent its streamer");
        let mut started = job.started.unwrap_or_else(|| {
            streamer.start(job.submission.batch);
            Started { at: Timestamp::now(), charged_from: now }
        });
        if let (Phase::Ready { since }, Some(_)) = (slot.phase, job.started) {
            started.charged_from += now.saturating_duration_since(since);
        }
        job.started = Some(started);
        slot.phase = Phase::Running;
        self.running = Some((id, slot.priority));
        let task = Task {
            id,
            space: Arc::clone(&slot.space),
            events: Arc::clone(&slot.events),
            info: Arc::clone(&slot.info),
            job,
            started,
            was_parked: slot.park > PARK_MIN,
        };
        Some((task, streamer))
    }

    /// When the next parked context is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.parked.first().map(|&(due, _)| due)
    }

    /// Takes a task back. `job` is its job, unless that is done.
    pub(super) fn put_back(
        &mut self,
        id: ContextId,
        streamer: Box<Streamer>,
        job: Option<Job>,
        how: Return,
    ) -> (Option<Aborted>, Option<Forgotten>) {
        self.running = None;
        let Some(slot) = self.slots.get_mut(&id) else { return (None, None) };
        slot.streamer = Some(streamer);
        if let Some(job) = job {
            slot.jobs.push_front(job);
        }
        slot.phase = Phase::Idle;
        let failed = match how {
            Return::Failed(reason) => Some(reason),
            _ => slot.doomed.take(),
        };
        if let Some(reason) = failed {
            return (self.ban(id, reason), None);
        }
        match how {
            Return::Faulted => slot.phase = Phase::Faulted { since: Instant::now() },
            Return::Waits { progressed } => {
                slot.park = if progressed { PARK_MIN } else { (slot.park * 2).min(PARK_MAX) };
                let due = Instant::now() + slot.park;
                slot.phase = Phase::Parked { due };
                self.parked.insert((due, id));
            }
            _ => {
                slot.park = PARK_MIN;
                if slot.jobs.is_empty() {
                    return (None, self.forget_if_done(id));
                }
                self.make_ready(id, Instant::now());
            }
        }
        (None, None)
    }

    /// Accepts nothing more and bans every context: there is no thread any more. A context that was running when the thread panicked has lost
    /// the job and the streamer that the thread had.
    pub(super) fn end(&mut self) -> Vec<Aborted> {
        self.stopping = true;
        if let Some((id, _)) = self.running.take()
            && let Some(slot) = self.slots.get_mut(&id)
        {
            slot.phase = Phase::Idle;
        }
        let ids: Vec<_> = self.slots.keys().copied().collect();
        let gone = |parting| match parting {
            Parting::Gone(aborted) => Some(*aborted),
            _ => None,
        };
        ids.into_iter().filter_map(|id| gone(self.abort(id, BanReason::Shutdown))).collect()
    }

    fn ban(&mut self, id: ContextId, reason: BanReason) -> Option<Aborted> {
        let slot = self.slots.get_mut(&id)?;
        slot.info.banned.lock().get_or_insert(reason);
        slot.phase = Phase::Idle;
        let (jobs, events) = (std::mem::take(&mut slot.jobs), Arc::clone(&slot.events));
        let forgotten = self.forget_if_done(id);
        Some(Aborted { id, reason, jobs, events, forgotten })
    }

    fn forget_if_done(&mut self, id: ContextId) -> Option<Forgotten> {
        let done = |slot: &Slot| slot.closed && slot.phase == Phase::Idle && slot.jobs.is_empty();
        if self.slots.get(&id).is_some_and(done) { self.slots.remove(&id).map(Forgotten) } else { None }
    }

    fn wake_parked(&mut self, now: Instant) {
        while let Some(&(due, id)) = self.parked.first()
            && due <= now
        {
            self.parked.pop_first();
            self.make_ready(id, now);
        }
    }

    /// Queues a context. `since`: from when on it is not its own fault that it does not run.
    fn make_ready(&mut self, id: ContextId, since: Instant) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.phase = Phase::Ready { since };
            self.ready.entry(slot.priority).or_default().push_back(id);
        }
    }

    fn unqueue(&mut self, id: ContextId, priority: Priority) {
        if let Some(ids) = self.ready.get_mut(&priority) {
            ids.retain(|&other| other != id);
        }
    }
}
