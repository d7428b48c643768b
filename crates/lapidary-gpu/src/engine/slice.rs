//! Running one context until something happens: its job ends or fails, it waits, its slice is over, somebody wants attention.

use std::{
    cell::RefCell,
    sync::atomic::Ordering::*,
    time::{Duration, Instant},
};

use lapidary::fence::Timestamp;

use super::{
    Engine,
    port::{Notes, Port, PortTask},
    queue::Task,
};
use crate::{
    bus::{Bus, Fault, GpuVa},
    cs::{CsError, Progress, Streamer},
    fault::BanReason,
    stats::Counters,
    tlb::Tlb,
};

/// Jumps back without any change, in a row, before a batch is taken for one that waits.
const LOOPS: u32 = 256;

/// The same for a batch that was parked for this before: it gets a short look.
const LOOPS_PARKED: u32 = 2;

/// How a slice ended.
pub(super) enum End {
    /// The batch ended, and the user fence is written.
    Done,
    /// The slice is over, or the thread is wanted.
    Preempted,
    /// The batch waits for memory to change; whether it did anything before in this slice.
    Waits { progressed: bool },
    /// An access failed: what, and at which command.
    Fault(Fault, GpuVa),
    /// It can't go on.
    Failed(BanReason),
}

/// What belongs to the thread of an engine and outlives a slice.
pub(super) struct Core {
    pub(super) tlb: RefCell<Tlb>,
    /// The generation that the cache is good for.
    pub(super) generation: u64,
}

/// Runs `task` for at most `slice`, and accounts for it.
pub(super) fn run(
    engine: &Engine,
    core: &mut Core,
    task: &Task,
    streamer: &mut Streamer,
    slice: Duration,
) -> End {
    let begin = Timestamp::now();
    let notes = Notes::default();
    let mut run = Run { task, streamer, notes: &notes, loops: Loops::new(task.was_parked) };
    let end = run.execute(engine, core, slice, begin);
    let ns = Timestamp::now().as_nanos().saturating_sub(begin.as_nanos());
    task.info.run_ns.fetch_add(ns, Relaxed);
    engine.busy_ns.fetch_add(ns, Relaxed);
    let counters = &engine.shared.counters;
    counters.add_work(&notes.tally.get());
    Counters::add(&counters.busy_ns, ns);
    end
}

/// Times that bound a slice.
struct Limits {
    slice_end: Instant,
    hang: Option<Instant>,
}

impl Limits {
    fn new(engine: &Engine, task: &Task, slice: Duration) -> Self {
        let timeout = (!task.job.submission.endless).then_some(engine.shared.job_timeout);
        let hang = timeout.and_then(|timeout| task.started.charged_from.checked_add(timeout));
        Self { slice_end: Instant::now() + slice, hang }
    }

    fn exceeded(&self, engine: &Engine) -> Option<End> {
        let now = Instant::now();
        if self.hang.is_some_and(|hang| now >= hang) {
            let timeout_ms = engine.shared.job_timeout.as_millis() as u64;
            return Some(End::Failed(BanReason::Hang { timeout_ms }));
        }
        (now >= self.slice_end).then_some(End::Preempted)
    }
}

/// A slice under way.
struct Run<'a> {
    task: &'a Task,
    streamer: &'a mut Streamer,
    notes: &'a Notes,
    loops: Loops,
}

impl Run<'_> {
    fn execute(&mut self, engine: &Engine, core: &mut Core, slice: Duration, begin: Timestamp) -> End {
        let limits = Limits::new(engine, self.task, slice);
        let context = PortTask::new(self.task, begin);
        let shootdown = &*engine.shared.shootdown;
        let mut online = shootdown.online(engine.index, &mut core.generation, core.tlb.get_mut());
        let end = loop {
            let port = Port { engine, online: &online, tlb: &core.tlb, task: &context, notes: self.notes };
            if let Some(end) = self.step(engine, &port) {
                break end;
            }
            online.checkpoint(&mut *core.tlb.borrow_mut());
            if engine.attention.load(Relaxed) {
                break End::Preempted;
            }
            if let Some(end) = limits.exceeded(engine) {
                break end;
            }
            if self.notes.interrupt.get() {
                break End::Preempted;
            }
        };
        drop(online);
        if self.notes.interrupt.get() {
            self.task.events.user_interrupt();
        }
        match (end, limits.exceeded(engine)) {
            // A batch that waits is as subject to the timeout as one that runs.
            (End::Waits { .. }, Some(hang @ End::Failed(_))) => hang,
            (end, _) => end,
        }
    }

    /// One step of the streamer; how the slice ends if it does.
    fn step(&mut self, engine: &Engine, port: &Port<'_>) -> Option<End> {
        let here = self.streamer.place();
        match self.streamer.step(port) {
            Ok(Progress::Ran) => {
                self.loops.ran = true;
                None
            }
            Ok(Progress::JumpedBack) => {
                let idle = self.loops.jumped_back(self.streamer, self.notes);
                idle.then_some(End::Waits { progressed: self.loops.progressed })
            }
            Ok(Progress::Waiting) => {
                let progressed = self.loops.moved() || self.streamer.place() != here;
                Some(End::Waits { progressed })
            }
            Ok(Progress::BatchEnd) => Some(finish(port, self.task)),
            Err(CsError::Fault(fault)) => {
                Counters::add(&engine.shared.counters.faults, 1);
                let command = self.streamer.place().or(here).unwrap_or(self.task.job.submission.batch);
                Some(End::Fault(fault, command))
            }
            Err(CsError::InvalidCommand { dword, address, reason }) => {
                Some(End::Failed(BanReason::InvalidCommand { dword, address, reason }))
            }
        }
    }
}

/// Writes the user fence behind the batch.
fn finish(port: &Port<'_>, task: &Task) -> End {
    let Some((va, value)) = task.job.submission.user_fence else { return End::Done };
    match port.write_u64(va, value) {
        Ok(()) => {
            port.notes.interrupt.set(true);
            End::Done
        }
        Err(fault) => End::Fault(fault, va),
    }
}

/// Tells a batch that works in a loop from one that waits in it: the latter changes neither memory nor its general-purpose registers.
struct Loops {
    limit: u32,
    /// Jumps back in a row without a change.
    idle: u32,
    registers: Option<u64>,
    /// Something changed in this slice.
    progressed: bool,
    /// Commands ran in this slice that may not be part of a loop.
    ran: bool,
}

impl Loops {
    fn new(was_parked: bool) -> Self {
        let limit = if was_parked { LOOPS_PARKED } else { LOOPS };
        Self { limit, idle: 0, registers: None, progressed: false, ran: false }
    }

    /// Whether the batch waits.
    fn jumped_back(&mut self, streamer: &Streamer, notes: &Notes) -> bool {
        let registers = Some(fingerprint(&streamer.registers().alu.gpr));
        let differ = self.registers.is_some() && self.registers != registers;
        self.registers = registers;
        if notes.changed.take() || differ {
            self.idle = 0;
            self.limit = LOOPS;
            self.progressed = true;
        }
        self.idle += 1;
        self.idle > self.limit
    }

    /// Whether anything ran before the batch came to wait at a semaphore.
    fn moved(&self) -> bool {
        self.progressed || self.ran || self.idle > 0
    }
}

/// A number that differs when registers differ, but for rare accidents.
fn fingerprint(registers: &[u64]) -> u64 {
    registers
        .iter()
        .fold(0, |sum: u64, &value| (sum.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95))
}
