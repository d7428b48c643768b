//! Engines: jobs, turns, waiting, faults, bans, the end.

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::*;
use lapidary::fence::FenceError;
use lapidary_gpu::{
    Access, BanReason, ContextEvents, FaultKind, GpuConfig, GpuVa, Priority, Submission, SubmitError,
    fault::JobReport,
    memory::{AttachError, HostMemory, MemoryError, PhysAddr, SharedRegion},
    pagetable::{PteAttrs, Target, VaSpan},
};

/// Offset of data that batches write, away from the batches.
const DATA: u64 = 1 << 20;

/// A batch at `offset` that writes `DATA + 4` and then loops while `DATA` is 0.
fn spinner(rig: &Rig, offset: u64) -> GpuVa {
    rig.poke(DATA, 0);
    rig.poke(DATA + 4, 0);
    let place = va(offset);
    rig.batch(offset, &[&store(va(DATA + 4), 1), &end_unless(va(DATA), 0), &jump(place)])
}

#[test]
fn a_batch_has_written_when_its_fence_signals() {
    let rig = Rig::new();
    let context = rig.context(RENDER);
    for value in 1..200 {
        let batch = rig.batch(0, &[&store(va(DATA), value), &END]);
        assert_eq!(outcome(&rig.run(&context, batch)), Ok(()));
        assert_eq!(rig.peek(DATA), value);
    }
    let stats = rig.gpu.stats();
    assert_eq!((stats.submissions, stats.completions, stats.failures), (199, 199, 0));
    assert_eq!(stats.commands, 2 * 199);
}

#[test]
fn jobs_of_a_context_run_in_order_and_report_their_times() {
    let rig = Rig::new();
    let (events, received) = Recorder::new();
    let context = rig.context_with(RENDER, Priority::Normal, events);
    let batches: Vec<_> = (0..20_u32)
        .map(|job| {
            rig.batch(u64::from(job) * 64, &[&end_unless(va(DATA), job), &store(va(DATA), job + 1), &END])
        })
        .collect();
    let fences: Vec<_> = (0_u64..)
        .zip(&batches)
        .map(|(cookie, &batch)| {
            let (fence, done) = rig.timeline.next();
            context.submit(Submission { cookie, ..Submission::new(batch, done) }).unwrap();
            fence
        })
        .collect();
    fences.iter().for_each(|fence| assert_eq!(outcome(fence), Ok(())));
    assert_eq!(rig.peek(DATA), 20);
    for cookie in 0..20 {
        let Ok(Event::Completed(job)) = received.recv() else { panic!("no report of job {cookie}") };
        assert_eq!(job.cookie, cookie);
        assert!(job.submitted <= job.started && job.started <= job.finished);
    }
    assert!(context.run_time() > Duration::ZERO);
}

#[test]
fn a_user_fence_is_written_before_the_fence_signals_and_announced() {
    let rig = Rig::new();
    let (events, received) = Recorder::new();
    let context = rig.context_with(RENDER, Priority::Normal, events);
    let (fence, done) = rig.timeline.next();
    let user_fence = Some((va(DATA), 0xfeed_0000_beef));
    let batch = rig.batch(0, &[&END]);
    context.submit(Submission { user_fence, ..Submission::new(batch, done) }).unwrap();
    assert_eq!(outcome(&fence), Ok(()));
    assert_eq!((rig.peek(DATA), rig.peek(DATA + 4)), (0xbeef, 0xfeed));
    assert!(matches!(received.recv(), Ok(Event::Interrupt)));
}

#[test]
fn a_fault_bans_the_guilty_context_only() {
    let rig = Rig::new();
    let (events, received) = Recorder::new();
    let guilty = rig.context_with(RENDER, Priority::Normal, events);
    let innocent = rig.context(RENDER);
    let hole = va(SIZE + 0x123 * 4);
    let bad = rig.batch(0, &[&store(va(DATA), 7), &store(hole, 1), &END]);
    let good = rig.batch(0x100, &[&store(va(DATA + 8), 9), &END]);
    // Held back, so that the jobs behind it are queued when it faults.
    let gate = rig.batch(0x200, &[&wait_for(va(DATA + 4), 1), &END]);

    let gate = rig.run(&guilty, gate);
    let fences = [rig.run(&guilty, bad), rig.run(&guilty, good)];
    let other = rig.run(&innocent, good);
    rig.poke(DATA + 4, 1);

    assert_eq!(outcome(&gate), Ok(()));
    assert!(matches!(received.recv(), Ok(Event::Completed(_))));
    let Ok(Event::Fault(fault)) = received.recv() else { panic!("no fault reported") };
    let report = *fault.report();
    assert_eq!(
        (report.fault.va, report.fault.access, report.fault.kind),
        (hole, Access::Write, FaultKind::NotPresent)
    );
    assert_eq!((report.engine, report.context, report.command), (RENDER, guilty.id(), bad.offset(16)));
    fault.ban();
    assert_eq!(fences.map(|fence| outcome(&fence)), [Err(FenceError::Fault), Err(FenceError::Cancelled)]);
    assert_eq!(guilty.banned(), Some(BanReason::Fault(report)));
    assert!(matches!(received.recv(), Ok(Event::Banned(_))));
    assert_eq!(rig.peek(DATA), 7, "what came before the fault has happened");

    assert_eq!(outcome(&other), Ok(()));
    assert_eq!(outcome(&rig.run(&innocent, good)), Ok(()));
    let (fence, done) = rig.timeline.next();
    assert!(matches!(guilty.submit(Submission::new(good, done)), Err(SubmitError::Banned(_))));
    assert_eq!(outcome(&fence), Err(FenceError::Cancelled));
    assert_eq!((rig.gpu.stats().faults, rig.gpu.stats().bans), (1, 1));
}

#[test]
fn a_resolved_fault_is_replayed_while_others_run() {
    let rig = Rig::new();
    let (events, received) = Recorder::new();
    let context = rig.context_with(RENDER, Priority::Normal, events);
    let hole = va(SIZE);
    let batch = rig.batch(0, &[&store(hole, 5), &store(va(DATA), 6), &END]);
    let fence = rig.run(&context, batch);
    let Ok(Event::Fault(fault)) = received.recv() else { panic!("no fault reported") };

    let other = rig.context(RENDER);
    let good = rig.batch(0x100, &[&store(va(DATA + 8), 9), &END]);
    assert_eq!(outcome(&rig.run(&other, good)), Ok(()));
    assert!(!fence.is_signalled());

    let fresh = Arc::new(SharedRegion::heap(4096));
    rig.gpu.memory().attach(PhysAddr::system(0x7000), fresh.clone(), 0, 4096).unwrap();
    rig.space.map(hole, 4096, Target::Memory(PhysAddr::system(0x7000)), rw()).unwrap();
    fault.replay();
    assert_eq!(outcome(&fence), Ok(()));
    assert_eq!((read_u32(&fresh, 0), rig.peek(DATA)), (5, 6));
    assert_eq!(context.banned(), None);
}

#[test]
fn writing_to_a_read_only_mapping_is_a_fault_and_reading_is_none() {
    let rig = Rig::new();
    let attrs = PteAttrs { writable: false, ..rw() };
    rig.space.map(va(0), 4096, Target::Memory(PhysAddr::vram(0)), attrs).unwrap();
    let context = rig.context(RENDER);
    let reads = rig.batch(0, &[&store(va(DATA), 3), &END]);
    assert_eq!(outcome(&rig.run(&context, reads)), Ok(()));
    let writes = rig.batch(0, &[&store(va(0x800), 3), &END]);
    assert_eq!(outcome(&rig.run(&context, writes)), Err(FenceError::Fault));
    let Some(BanReason::Fault(report)) = context.banned() else { panic!("not banned for a fault") };
    assert_eq!((report.fault.kind, report.fault.va), (FaultKind::ReadOnly, va(0x800)));
    assert_eq!(rig.peek(0x800), 0);
}

#[test]
fn null_mappings_and_scratch_read_zero_and_swallow_writes() {
    let rig = Rig::new();
    let space = rig.gpu.create_space(true).unwrap();
    space.map(va(0), SIZE, Target::Memory(PhysAddr::vram(0)), rw()).unwrap();
    space.map(GpuVa::new(0x1000), 4096, Target::Null, rw()).unwrap();
    let context = rig.gpu.create_context(COPY, space, Priority::Normal, Arc::new(())).unwrap();
    rig.poke(DATA, 1);
    rig.poke(DATA + 4, 2);
    let (null, scratch) = (GpuVa::new(0x1000), GpuVa::new(0x5_0000_0ffc));
    let batch = rig.batch(
        0,
        &[
            &store(null, 9),
            &store(scratch, 9),
            &copy(null, va(DATA), 4),
            &copy(scratch, va(DATA + 4), 4),
            &END,
        ],
    );
    assert_eq!(outcome(&rig.run(&context, batch)), Ok(()));
    assert_eq!((rig.peek(DATA), rig.peek(DATA + 4)), (0, 0));
}

#[test]
fn an_entry_without_memory_behind_it_faults() {
    let rig = Rig::new();
    rig.space.map(va(SIZE), 4096, Target::Memory(PhysAddr::system(0x9000)), rw()).unwrap();
    let context = rig.context(RENDER);
    let batch = rig.batch(0, &[&store(va(SIZE), 1), &END]);
    assert_eq!(outcome(&rig.run(&context, batch)), Err(FenceError::Fault));
    let Some(BanReason::Fault(report)) = context.banned() else { panic!("not banned for a fault") };
    assert_eq!(report.fault.kind, FaultKind::NoMemory);
}

#[test]
fn an_invalid_command_bans_with_a_device_error() {
    let rig = Rig::new();
    let context = rig.context(RENDER);
    let batch = rig.batch(0, &[&store(va(DATA), 1), &[0xdead_beef]]);
    assert_eq!(outcome(&rig.run(&context, batch)), Err(FenceError::Device));
    assert_eq!(rig.peek(DATA), 1);
    let Some(BanReason::InvalidCommand { dword, address, .. }) = context.banned() else {
        panic!("not banned")
    };
    assert_eq!((dword, address), (0xdead_beef, va(16)));
}

#[test]
fn a_semaphore_is_handed_over_between_engines() {
    let rig = Rig::new();
    let (render, copies) = (rig.context(RENDER), rig.context(COPY));
    let mut ping = Vec::new();
    let mut pong = Vec::new();
    for round in 0..50 {
        ping.extend_from_slice(&store(va(DATA), 2 * round + 1));
        ping.extend_from_slice(&wait_for(va(DATA), 2 * round + 2));
        pong.extend_from_slice(&wait_for(va(DATA), 2 * round + 1));
        pong.extend_from_slice(&store(va(DATA), 2 * round + 2));
    }
    let pong = rig.run(&copies, rig.batch(0x8000, &[&pong, &END]));
    let ping = rig.run(&render, rig.batch(0, &[&ping, &END]));
    assert_eq!((outcome(&ping), outcome(&pong)), (Ok(()), Ok(())));
    assert_eq!(rig.peek(DATA), 100);
}

#[test]
fn a_context_that_waits_at_a_semaphore_gives_way_to_others_of_its_engine() {
    let rig = Rig::new();
    let (first, second) = (rig.context(RENDER), rig.context(RENDER));
    let waits = rig.run(&first, rig.batch(0, &[&wait_for(va(DATA), 1), &store(va(DATA + 4), 2), &END]));
    let signals = rig.run(&second, rig.batch(0x100, &[&store(va(DATA), 1), &END]));
    assert_eq!((outcome(&signals), outcome(&waits)), (Ok(()), Ok(())));
    assert_eq!(rig.peek(DATA + 4), 2);
}

#[test]
fn an_endless_batch_shares_its_engine_and_ends_when_the_cpu_says_so() {
    let rig = Rig::new();
    let (spins, works) = (rig.context(RENDER), rig.context(RENDER));
    let spin = rig.run(&spins, spinner(&rig, 0));
    rig.await_value(DATA + 4, 1);
    for value in 1..20 {
        let batch = rig.batch(0x100, &[&store(va(DATA + 8), value), &END]);
        assert_eq!(outcome(&rig.run(&works, batch)), Ok(()));
    }
    assert!(!spin.is_signalled());
    rig.poke(DATA, 1);
    assert_eq!(outcome(&spin), Ok(()));
}

#[test]
fn a_loop_that_works_is_not_taken_for_one_that_waits() {
    // Counts DATA + 8 down with an atomic: 2^16 rounds, each a jump back.
    let rig = Rig::new();
    let context = rig.context(RENDER);
    rig.poke(DATA + 8, 1 << 16);
    let counter = va(DATA + 8);
    let decrement = [0x2f << 23 | 0x06 << 8 | 1, counter.get() as u32, (counter.get() >> 32) as u32];
    // Goes on while the counter is above 0.
    let go_on = [0x36 << 23 | 1 << 21 | 2, 0, counter.get() as u32, (counter.get() >> 32) as u32];
    let batch = rig.batch(0, &[&decrement, &go_on, &jump(va(0))]);
    assert_eq!(outcome(&rig.run(&context, batch)), Ok(()));
    assert_eq!(rig.peek(DATA + 8), 0);
}

#[test]
fn a_higher_priority_preempts_an_endless_batch() {
    let rig = Rig::with(GpuConfig { timeslice: Duration::from_secs(3600), ..GpuConfig::default() });
    let low = rig.context_with(RENDER, Priority::Low, Arc::new(()));
    let high = rig.context_with(RENDER, Priority::High, Arc::new(()));
    let spin = rig.run(&low, spinner(&rig, 0));
    rig.await_value(DATA + 4, 1);
    let batch = rig.batch(0x100, &[&store(va(DATA + 8), 1), &END]);
    assert_eq!(outcome(&rig.run(&high, batch)), Ok(()));
    assert!(!spin.is_signalled());
    low.kill();
    assert_eq!(outcome(&spin), Err(FenceError::Cancelled));
}

#[test]
fn a_hang_is_banned_after_the_timeout_and_others_go_on() {
    for waits in [false, true] {
        let job_timeout = Duration::from_millis(30);
        let rig = Rig::with(GpuConfig { job_timeout, ..GpuConfig::default() });
        let (hangs, works) = (rig.context(RENDER), rig.context(RENDER));
        let batch = if waits { rig.batch(0, &[&wait_for(va(DATA), 1), &END]) } else { spinner(&rig, 0) };
        let hang = rig.run(&hangs, batch);
        let good = rig.batch(0x100, &[&store(va(DATA + 8), 1), &END]);
        let behind = rig.run(&hangs, good);
        assert_eq!(outcome(&hang), Err(FenceError::TimedOut));
        assert_eq!(outcome(&behind), Err(FenceError::Cancelled));
        assert_eq!(hangs.banned(), Some(BanReason::Hang { timeout_ms: 30 }));
        assert_eq!(outcome(&rig.run(&works, good)), Ok(()));
        assert_eq!((rig.gpu.stats().hangs, rig.gpu.stats().bans), (1, 1));
    }
}

#[test]
fn h23_a_kill_fails_the_fences_of_running_and_queued_jobs() {
    let rig = Rig::new();
    let context = rig.context(RENDER);
    let mut fences = vec![rig.run(&context, spinner(&rig, 0))];
    rig.await_value(DATA + 4, 1);
    let good = rig.batch(0x100, &[&store(va(DATA + 8), 1), &END]);
    fences.extend((0..5).map(|_| rig.run(&context, good)));
    context.kill();
    context.kill();
    fences.iter().for_each(|fence| assert_eq!(outcome(fence), Err(FenceError::Cancelled)));
    assert_eq!(context.banned(), Some(BanReason::Killed));
    assert_eq!(rig.peek(DATA + 8), 0);
    assert_eq!(outcome(&rig.run(&rig.context(RENDER), good)), Ok(()));
}

#[test]
fn a_kill_ends_a_context_that_waits_or_stands_at_a_fault() {
    let rig = Rig::new();
    let (events, received) = Recorder::new();
    let (waits, faults) = (rig.context(RENDER), rig.context_with(RENDER, Priority::Normal, events));
    let wait = rig.run(&waits, rig.batch(0, &[&wait_for(va(DATA), 1), &END]));
    let fault = rig.run(&faults, rig.batch(0x100, &[&store(va(SIZE), 1), &END]));
    let Ok(Event::Fault(pending)) = received.recv() else { panic!("no fault reported") };
    waits.kill();
    faults.kill();
    assert_eq!((outcome(&wait), outcome(&fault)), (Err(FenceError::Cancelled), Err(FenceError::Cancelled)));
    pending.replay();
    assert_eq!(faults.banned(), Some(BanReason::Killed));
}

#[test]
fn an_engine_reset_kills_what_has_work_and_nothing_else() {
    let rig = Rig::new();
    let (busy, idle) = (rig.context(RENDER), rig.context(RENDER));
    let spin = rig.run(&busy, spinner(&rig, 0));
    assert_eq!(rig.gpu.reset_engine(RENDER).unwrap(), 1);
    assert!(outcome(&spin).is_err());
    let good = rig.batch(0x100, &[&store(va(DATA + 8), 1), &END]);
    assert_eq!(outcome(&rig.run(&idle, good)), Ok(()));
}

#[test]
fn a_dropped_context_finishes_its_jobs_and_lets_go_of_its_address_space() {
    let rig = Rig::new();
    let context = rig.context(RENDER);
    let spin = rig.run(&context, spinner(&rig, 0));
    let good = rig.run(&context, rig.batch(0x100, &[&store(va(DATA + 8), 1), &END]));
    drop(context);
    rig.poke(DATA, 1);
    assert_eq!((outcome(&spin), outcome(&good)), (Ok(()), Ok(())));
    // Its thread lets go after the fence.
    while Arc::strong_count(&rig.space) > 1 {
        std::thread::yield_now();
    }
}

#[test]
fn h02_h23_a_shutdown_with_work_queued_fails_it_and_joins_the_threads() {
    let rig = Rig::new();
    let (spins, copies) = (rig.context(RENDER), rig.context(COPY));
    let good = rig.batch(0x100, &[&store(va(DATA + 8), 1), &END]);
    let waiting = rig.batch(0x200, &[&wait_for(va(DATA + 16), 1), &END]);
    let mut fences = vec![rig.run(&spins, spinner(&rig, 0)), rig.run(&copies, waiting)];
    fences.extend((0..5).map(|_| rig.run(&spins, good)));
    rig.gpu.shutdown();
    for fence in &fences {
        assert!(fence.is_signalled(), "shutdown returns after the last fence");
        assert_eq!(outcome(fence), Err(FenceError::DeviceLost));
    }
    let (fence, done) = rig.timeline.next();
    assert_eq!(spins.submit(Submission::new(good, done)), Err(SubmitError::Shutdown));
    assert!(fence.is_signalled());
    rig.gpu.shutdown();
}

/// Device memory beside the rig's, at `SIZE`.
fn second_memory(rig: &Rig) -> Arc<SharedRegion> {
    let memory = Arc::new(SharedRegion::heap(SIZE as usize));
    rig.gpu.memory().attach(PhysAddr::vram(SIZE), memory.clone(), 0, SIZE).unwrap();
    memory
}

#[test]
fn a_missing_invalidation_is_a_wrong_access_and_reported_as_a_stale_hit() {
    for forget in [true, false] {
        let mut rig = Rig::new();
        rig.forgetful = forget;
        let second = second_memory(&rig);
        let context = rig.context(RENDER);
        let target = va(DATA);
        let page = VaSpan::new(target, 4096).unwrap();
        let write = |value| {
            assert_eq!(outcome(&rig.run(&context, rig.batch(0, &[&store(target, value), &END]))), Ok(()));
        };
        write(1);

        let moved = Target::Memory(PhysAddr::vram(SIZE));
        let mut nodes = rig.space.reserve_map(page, moved).unwrap();
        let mut edit = rig.space.edit();
        edit.map(page, moved, rw(), &mut nodes).unwrap();
        match forget {
            true => drop(edit.finish()),
            false => edit.commit(),
        }
        write(2);

        let hits = rig.gpu.stale_hits();
        if forget {
            assert_eq!((rig.peek(DATA), read_u32(&second, 0)), (2, 0), "the old page was written");
            let hit = hits.iter().find(|hit| hit.va == target).expect("a stale hit is reported");
            assert_eq!((hit.engine, hit.context), (RENDER, context.id()));
            assert_eq!((hit.cached, hit.current), (Target::Memory(PhysAddr::vram(DATA)), Some(moved)));
        } else {
            assert_eq!((rig.peek(DATA), read_u32(&second, 0)), (1, 2), "the new page was written");
            assert_eq!(hits, []);
        }
    }
}

#[test]
fn memory_can_be_taken_from_a_running_batch_after_an_unmap() {
    let rig = Rig::new();
    let second = second_memory(&rig);
    rig.space.map(va(SIZE), SIZE, Target::Memory(PhysAddr::vram(SIZE)), rw()).unwrap();
    let context = rig.context(RENDER);
    let batch = rig.batch(0, &[&store(va(SIZE), 1), &store(va(SIZE + 8), 2), &jump(va(0))]);
    let fence = rig.run(&context, batch);
    while read_u32(&second, 8) != 2 {
        std::thread::yield_now();
    }
    rig.space.unmap(va(SIZE), SIZE).unwrap();
    rig.gpu.memory().detach(PhysAddr::vram(SIZE)).unwrap();
    assert_eq!(Arc::strong_count(&second), 1, "the GPU has let go of the memory");
    assert_eq!(outcome(&fence), Err(FenceError::Fault));
    assert_eq!(rig.gpu.stale_hits(), []);
}

#[test]
fn copies_never_see_a_wrong_page_while_their_source_moves_to_and_fro() {
    let rig = Rig::new();
    let second = second_memory(&rig);
    let context = rig.context(COPY);
    // Both places hold the same bytes; everywhere else is something different.
    let (source, page) = (va(SIZE), 64 << 10);
    for (memory, offset) in [(&rig.memory, 2 << 20), (&second, 0)] {
        for at in (0..page).step_by(4) {
            lapidary_gpu::memory::HostMemory::write_at(
                &**memory,
                offset + at,
                &0x5a5a_5a5a_u32.to_le_bytes(),
            )
            .unwrap();
        }
    }
    let places = [PhysAddr::vram(2 << 20), PhysAddr::vram(SIZE)];
    rig.space.map(source, page, Target::Memory(places[0]), rw()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut turn = 0;
            while !stop.load(Ordering::Relaxed) {
                turn += 1;
                rig.space.map(source, page, Target::Memory(places[turn % 2]), rw()).unwrap();
                // The place that was left is taken away and comes back with other bytes, then its own.
                if turn % 2 == 0 {
                    rig.gpu.memory().detach(places[1]).unwrap();
                    let other = Arc::new(SharedRegion::heap(page as usize));
                    rig.gpu.memory().attach(places[1], other, 0, page).unwrap();
                    rig.gpu.memory().detach(places[1]).unwrap();
                    rig.gpu.memory().attach(places[1], second.clone(), 0, SIZE).unwrap();
                }
            }
        });
        for round in 0..100 {
            let batch = rig.batch(0, &[&copy(source, va(DATA), page as u32), &END]);
            assert_eq!(outcome(&rig.run(&context, batch)), Ok(()), "round {round}");
            for at in (0..page).step_by(4) {
                assert_eq!(rig.peek(DATA + at), 0x5a5a_5a5a, "round {round} at {at:#x}");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(rig.gpu.stale_hits(), []);
    assert!(rig.gpu.stats().bytes_copied >= 100 * page);
}

#[test]
fn memory_is_attached_once_and_whole() {
    let rig = Rig::new();
    let memory = rig.gpu.memory();
    let region = || Arc::new(SharedRegion::heap(0x1_0000));
    let page = 0x1_0000;
    let attach = |at, len| memory.attach(at, region(), 0, len).unwrap_err();
    assert!(matches!(attach(PhysAddr::vram(0), page), AttachError::InUse { .. }));
    assert!(matches!(attach(PhysAddr::vram(SIZE - page), page), AttachError::InUse { .. }));
    assert!(matches!(attach(PhysAddr::vram(SIZE), page / 2), AttachError::Misaligned { .. }));
    assert!(matches!(attach(PhysAddr::vram(SIZE), 2 * page), AttachError::OutsideMemory { .. }));
    assert!(matches!(attach(PhysAddr::vram(8 << 30), page), AttachError::OutsideSpace { .. }));
    assert!(matches!(attach(PhysAddr::system(u64::MAX - 0xfff), 4096), AttachError::OutsideSpace { .. }));
    assert_eq!(memory.detach(PhysAddr::vram(page)), Err(AttachError::NotAttached(PhysAddr::vram(page))));
    memory.attach(PhysAddr::vram(SIZE), region(), 0, page).unwrap();
}

/// A client's memory that is not mapped here and can go away.
struct Remote {
    bytes: Mutex<Option<Vec<u8>>>,
}

impl Remote {
    fn access(&self, offset: u64, act: impl FnOnce(&mut [u8])) -> Result<(), MemoryError> {
        let mut bytes = self.bytes.lock().unwrap();
        let bytes = bytes.as_mut().ok_or(MemoryError::Inaccessible { offset })?;
        act(&mut bytes[offset as usize..]);
        Ok(())
    }
}

impl HostMemory for Remote {
    fn mapped(&self) -> Option<&SharedRegion> {
        None
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.access(offset, |bytes| buf.copy_from_slice(&bytes[..buf.len()]))
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), MemoryError> {
        self.access(offset, |bytes| bytes[..buf.len()].copy_from_slice(buf))
    }
}

#[test]
fn unmapped_memory_is_read_written_and_faults_when_it_is_gone() {
    let rig = Rig::new();
    let remote = Arc::new(Remote { bytes: Mutex::new(Some(vec![0; 0x3000])) });
    let at = PhysAddr::system(0x4000);
    rig.gpu.memory().attach(at, remote.clone(), 0x1000, 0x2000).unwrap();
    rig.space.map(va(SIZE), 0x2000, Target::Memory(at), rw()).unwrap();
    let increment = [0x2f << 23 | 0x05 << 8 | 1, va(SIZE).get() as u32, (va(SIZE).get() >> 32) as u32];
    let context = rig.context(COPY);
    let batch = rig.batch(
        0,
        &[
            &store(va(SIZE), 7),
            &increment,
            &copy(va(SIZE), va(SIZE + 0xffe), 4),
            &copy(va(SIZE + 0xffe), va(DATA), 4),
            &END,
        ],
    );
    assert_eq!(outcome(&rig.run(&context, batch)), Ok(()));
    assert_eq!(rig.peek(DATA), 8);
    assert_eq!(remote.bytes.lock().unwrap().as_ref().unwrap()[0x1000..0x1004], [8, 0, 0, 0]);

    *remote.bytes.lock().unwrap() = None;
    assert_eq!(outcome(&rig.run(&context, batch)), Err(FenceError::Fault));
    let Some(BanReason::Fault(report)) = context.banned() else { panic!("not banned for a fault") };
    assert_eq!((report.fault.kind, report.fault.va), (FaultKind::Host, va(SIZE)));
}

/// A driver with a bug.
struct Panics;

impl ContextEvents for Panics {
    fn completed(&self, _: &JobReport) {
        panic!("a driver's bug, on purpose");
    }
}

#[test]
fn h23_an_engine_whose_thread_dies_fails_all_its_jobs_and_takes_no_more() {
    let rig = Rig::new();
    let (works, panics) = (rig.context(RENDER), rig.context_with(RENDER, Priority::Normal, Arc::new(Panics)));
    let gate = rig.batch(0x100, &[&wait_for(va(DATA), 1), &END]);
    let good = rig.batch(0, &[&END]);
    let fences = [rig.run(&panics, gate), rig.run(&panics, good), rig.run(&works, gate)];
    // The other context must still wait when the thread dies.
    let bad = rig.context_with(RENDER, Priority::High, Arc::new(Panics));
    let dies = rig.run(&bad, good);
    assert_eq!(outcome(&dies), Err(FenceError::Cancelled));
    for fence in &fences {
        assert!(outcome(fence).is_err());
    }
    // The thread's last act is to refuse all that comes later.
    let refused = || works.submit(Submission::new(good, rig.timeline.next().1)).is_err();
    while !refused() {
        std::thread::yield_now();
    }
}
