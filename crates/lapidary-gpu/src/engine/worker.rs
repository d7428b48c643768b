//! The thread of an engine.

use std::{
    cell::RefCell,
    sync::atomic::Ordering::*,
    time::{Duration, Instant},
};

use lapidary::{
    fence::{Timestamp, signalling},
    sync::{Arc, MutexGuard},
};

use super::{
    Engine,
    queue::{Queue, Return, Task},
    slice::{self, Core, End},
};
use crate::{
    cs::Streamer,
    fault::{FaultReport, JobReport, PendingFault},
    stats::Counters,
    tlb::Tlb,
};

/// Waits up to this long are spun: going to sleep would take longer.
const SPIN: Duration = Duration::from_micros(5);

/// The shortest slice, even if a parked context becomes due.
const MIN_SLICE: Duration = Duration::from_micros(100);

/// Runs contexts until the engine is stopped. All fences of its jobs have signalled when it returns, or panics in foreign code.
pub(crate) fn run(engine: &Arc<Engine>) {
    let _end = LastWill(engine);
    let mut core = Core { tlb: RefCell::new(Tlb::new()), generation: 0 };
    while let Some((task, streamer, slice)) = next(engine) {
        run_task(engine, &mut core, task, streamer, slice);
    }
}

/// Fails what is left when the thread ends, however it ends.
struct LastWill<'a>(&'a Engine);

impl Drop for LastWill<'_> {
    fn drop(&mut self) {
        let aborted = self.0.queue.lock().end();
        aborted.into_iter().for_each(|aborted| self.0.part(aborted));
    }
}

/// The next context to run and for how long; none when the engine is stopped.
fn next(engine: &Engine) -> Option<(Task, Box<Streamer>, Duration)> {
    let mut queue = engine.queue.lock();
    loop {
        engine.attention.store(false, Relaxed);
        if queue.stopping {
            return None;
        }
        let now = Instant::now();
        if let Some((task, streamer)) = queue.pick(now) {
            let slice = engine.shared.timeslice;
            let slice = match queue.next_due() {
                Some(due) => slice.min(due.saturating_duration_since(now)).max(MIN_SLICE.min(slice)),
                None => slice,
            };
            return Some((task, streamer, slice));
        }
        rest(engine, &mut queue, now);
    }
}

/// Waits until there may be something to run.
fn rest(engine: &Engine, queue: &mut MutexGuard<'_, Queue>, now: Instant) {
    match queue.next_due() {
        None => engine.wake.wait(queue),
        Some(due) if due.saturating_duration_since(now) <= SPIN => {
            MutexGuard::unlocked(queue, || {
                while Instant::now() < due {
                    std::hint::spin_loop();
                }
            });
        }
        Some(due) => {
            engine.wake.wait_until(queue, due);
        }
    }
}

/// Runs a task for a slice, and puts it back.
fn run_task(engine: &Arc<Engine>, core: &mut Core, task: Task, mut streamer: Box<Streamer>, slice: Duration) {
    let end = slice::run(engine, core, &task, &mut streamer, slice);
    let fault = match end {
        End::Fault(fault, command) => {
            Some(FaultReport { engine: engine.id, context: task.id, fault, command })
        }
        _ => None,
    };
    let how = match end {
        End::Done => return complete(engine, task, streamer),
        End::Preempted => {
            Counters::add(&engine.shared.counters.preemptions, 1);
            Return::Preempted
        }
        End::Waits { progressed } => Return::Waits { progressed },
        End::Fault(..) => Return::Faulted,
        End::Failed(reason) => Return::Failed(reason),
    };
    let Task { id, job, events, .. } = task;
    let (aborted, forgotten) = engine.queue.lock().put_back(id, streamer, Some(job), how);
    drop(forgotten);
    if let Some(aborted) = aborted {
        engine.part(aborted);
    } else if let Some(report) = fault {
        tracing::debug!(%report, "page fault");
        events.fault(PendingFault::new(report, Arc::clone(engine)));
    }
}

/// A job's batch has ended: tells the driver, signals, goes on.
fn complete(engine: &Engine, task: Task, streamer: Box<Streamer>) {
    let Task { id, job, events, started, .. } = task;
    let finished = Timestamp::now();
    let report =
        JobReport { cookie: job.submission.cookie, submitted: job.submitted, started: started.at, finished };
    Counters::add(&engine.shared.counters.completions, 1);
    {
        let _section = signalling();
        events.completed(&report);
        // The batch's writes are before this in program order, and the fence's state is stored with release ordering.
        job.submission.done.signal_at(finished);
    }
    drop(events);
    let (aborted, forgotten) = engine.queue.lock().put_back(id, streamer, None, Return::Done);
    drop(forgotten);
    if let Some(aborted) = aborted {
        engine.part(aborted);
    }
}
