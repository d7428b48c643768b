//! Timestamps, fences and semaphores.

use anyhow::{Result, ensure};
use ash::{khr, vk};

use super::{Check, Outcome, missing, passed, skipped};
use crate::gpu::{
    Buffer, CommandBuffer, Context, PATIENCE, Semaphore, Submission, TimestampQueries, wait_all, wait_any,
};
use crate::pattern::{self, compare};

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new("sync.timestamps", timestamps),
        Check::new("sync.empty_submission", empty_submission),
        Check::new("sync.host_signal", host_signal),
        Check::new("sync.host_wait", host_wait),
        Check::new("sync.wait_before_signal", wait_before_signal),
        Check::new("sync.wait_any_and_all", wait_any_and_all),
        Check::new("sync.timeline_orders_copies", timeline_orders_copies),
        Check::new("sync.binary_between_queues", binary_between_queues),
        Check::new("sync.timeline_as_descriptor", timeline_as_descriptor),
        Check::new("sync.fence_as_descriptor", fence_as_descriptor),
    ]
}

/// Long enough to see that something does not happen; nothing depends on its length.
const MOMENT: u64 = 2_000_000;

fn timestamps(context: &Context) -> Result<Outcome> {
    let bits = context.transfer.timestamp_bits;
    if bits == 0 {
        return skipped("the queue writes no timestamps");
    }
    const SIZE: u64 = 8 << 20;
    let (from, to) = (Buffer::device_local(context, SIZE)?, Buffer::device_local(context, SIZE)?);
    let queries = TimestampQueries::new(context, 4)?;
    for round in [0, 2] {
        context.run(|commands| {
            commands.timestamp(&queries, round);
            commands.copy_all(&from, &to);
            commands.barrier();
            commands.timestamp(&queries, round + 1);
        })?;
    }
    let ticks = queries.read()?;
    let most = u64::MAX >> (64 - bits.min(64));
    ensure!(ticks.iter().all(|&tick| tick <= most), "a timestamp has more than {bits} bits: {ticks:x?}");
    // A counter of that many bits may pass its end in between.
    let later = |a: u64, b: u64| b.wrapping_sub(a) & most <= most / 2;
    ensure!(ticks.windows(2).all(|pair| later(pair[0], pair[1])), "time goes back: {ticks:?}");
    ensure!(ticks[0] != ticks[3], "time stands still: {ticks:?}");
    let period = context.properties.limits.timestamp_period;
    ensure!(period > 0.0, "a tick takes {period} ns");
    let copy = (ticks[1].wrapping_sub(ticks[0]) & most) as f64 * f64::from(period);
    passed(format!("{bits} bits, a tick is {period:.1} ns, {} MiB took {:.0} µs", SIZE >> 20, copy / 1000.0))
}

fn empty_submission(context: &Context) -> Result<Outcome> {
    for _ in 0..10 {
        Submission::new(context, context.transfer, None, &[], &[])?.wait()?;
    }
    passed("fences of submissions without commands")
}

fn host_signal(context: &Context) -> Result<Outcome> {
    let timeline = Semaphore::timeline(context)?;
    ensure!(timeline.value()? == 0, "a new timeline is at {}", timeline.value()?);
    for value in [1, 2, 10, 1 << 40] {
        ensure!(!timeline.wait(value, 0)?, "the timeline has {value} before it was signalled");
        timeline.signal(value)?;
        ensure!(timeline.value()? == value, "signalled {value}, is at {}", timeline.value()?);
        ensure!(timeline.wait(value, 0)?, "a wait for the signalled value {value} does not end");
        ensure!(timeline.wait(value - 1, 0)?, "a wait for less than {value} does not end");
    }
    passed("values up to 2^40")
}

fn host_wait(context: &Context) -> Result<Outcome> {
    let timeline = Semaphore::timeline(context)?;
    let mut submissions = Vec::new();
    for value in 1..=20 {
        submissions.push(Submission::new(context, context.transfer, None, &[], &[(&timeline, value)])?);
        ensure!(timeline.wait(value, PATIENCE)?, "the device does not signal {value}");
        ensure!(timeline.value()? == value, "after {value} the timeline is at {}", timeline.value()?);
    }
    passed("20 values signalled by the device")
}

fn wait_before_signal(context: &Context) -> Result<Outcome> {
    let bytes = pattern::bytes(41, 5000);
    let source = Buffer::staging(context, 5000)?;
    let target = Buffer::staging(context, 5000)?;
    let timeline = Semaphore::timeline(context)?;
    let copy = CommandBuffer::record(context, context.transfer, |commands| {
        commands.copy_all(&source, &target);
        commands.barrier();
        Ok(())
    })?;
    // 1 is the program's, 2 another queue's, and the copy, submitted first, waits for it and signals 3.
    let mut last = copy.submit(context.transfer, &[(&timeline, 2)], &[(&timeline, 3)])?;
    let between = match context.other {
        Some(queue) => Some(Submission::new(context, queue, None, &[(&timeline, 1)], &[(&timeline, 2)])?),
        None => None,
    };
    ensure!(!last.wait_for(MOMENT)?, "the copy ended before what it waits for");
    ensure!(!last.has_ended()?, "the copy's fence is signalled before what it waits for");
    ensure!(timeline.value()? == 0, "the timeline is at {}", timeline.value()?);
    source.write(0, &bytes)?;
    timeline.signal(if between.is_some() { 1 } else { 2 })?;
    ensure!(timeline.wait(3, PATIENCE)?, "the timeline stays at {}", timeline.value()?);
    compare("copied after the signal", &bytes, &target.contents()?)?;
    last.wait()?;
    passed(if between.is_some() { "program to other queue to copy" } else { "program to copy" })
}

fn wait_any_and_all(context: &Context) -> Result<Outcome> {
    let (first, second) = (Semaphore::timeline(context)?, Semaphore::timeline(context)?);
    let points = [(&first, 1), (&second, 1)];
    ensure!(!wait_any(context, &points, MOMENT)?, "one of two is said to be signalled");
    second.signal(1)?;
    ensure!(wait_any(context, &points, PATIENCE)?, "none of two is said to be signalled");
    ensure!(!wait_all(context, &points, MOMENT)?, "both are said to be signalled");
    let work = Submission::new(context, context.transfer, None, &[(&second, 1)], &[(&first, 1)])?;
    ensure!(wait_all(context, &points, PATIENCE)?, "not both are said to be signalled");
    work.wait()?;
    passed("two timelines")
}

fn timeline_orders_copies(context: &Context) -> Result<Outcome> {
    const STEPS: u64 = 50;
    const PIECE: usize = 1001;
    let bytes = pattern::bytes(43, PIECE);
    let chain = Buffer::staging(context, PIECE as u64 * (STEPS + 1))?;
    let timeline = Semaphore::timeline(context)?;
    let mut submissions = Vec::new();
    for step in 0..STEPS {
        let (src_offset, dst_offset) = (step * PIECE as u64, (step + 1) * PIECE as u64);
        let copy = CommandBuffer::record(context, context.transfer, |commands| {
            commands.copy(&chain, &chain, &[vk::BufferCopy { src_offset, dst_offset, size: PIECE as u64 }]);
            commands.barrier();
            Ok(())
        })?;
        let (waits, signals) = ([(&timeline, step + 1)], [(&timeline, step + 2)]);
        submissions.push(copy.submit(context.transfer, &waits, &signals)?);
    }
    chain.write(0, &bytes)?;
    timeline.signal(1)?;
    ensure!(timeline.wait(STEPS + 1, PATIENCE)?, "the timeline stays at {}", timeline.value()?);
    compare("the chain", &bytes.repeat(STEPS as usize + 1), &chain.contents()?)?;
    passed(format!("{STEPS} submissions, each after the one before"))
}

fn binary_between_queues(context: &Context) -> Result<Outcome> {
    let Some(other) = context.other else { return skipped("the device has one queue family") };
    for _ in 0..10 {
        let (there, back) = (Semaphore::binary(context)?, Semaphore::binary(context)?);
        let first = Submission::new(context, context.transfer, None, &[], &[(&there, 0)])?;
        let second = Submission::new(context, other, None, &[(&there, 0)], &[(&back, 0)])?;
        let third = Submission::new(context, context.transfer, None, &[(&back, 0)], &[])?;
        third.wait()?;
        ensure!(first.has_ended()? && second.has_ended()?, "a later submission ended before an earlier one");
    }
    passed(format!("families {} and {}, there and back", context.transfer.family, other.family))
}

fn timeline_as_descriptor(context: &Context) -> Result<Outcome> {
    if let Some(reason) = missing(context, &[khr::external_semaphore_fd::NAME]) {
        return skipped(reason);
    }
    let kind = vk::ExternalSemaphoreHandleTypeFlags::OPAQUE_FD;
    let original = Semaphore::new(context, vk::SemaphoreType::TIMELINE, kind)?;
    let copy = Semaphore::timeline(context)?;
    copy.import(original.export(kind)?, kind, vk::SemaphoreImportFlags::empty())?;
    original.signal(5)?;
    ensure!(copy.wait(5, PATIENCE)?, "the copy does not see what the original was signalled");
    let work = Submission::new(context, context.transfer, None, &[(&original, 7)], &[(&original, 9)])?;
    copy.signal(7)?;
    ensure!(copy.wait(9, PATIENCE)?, "the copy does not see what the device signalled");
    work.wait()?;
    passed("two semaphores, one timeline")
}

fn fence_as_descriptor(context: &Context) -> Result<Outcome> {
    if let Some(reason) = missing(context, &[khr::external_semaphore_fd::NAME]) {
        return skipped(reason);
    }
    let kind = vk::ExternalSemaphoreHandleTypeFlags::SYNC_FD;
    let gate = Semaphore::timeline(context)?;
    let original = Semaphore::new(context, vk::SemaphoreType::BINARY, kind)?;
    // A sync file is a fence: it can be taken only of work that can end. So open the gate first.
    gate.signal(1)?;
    let first = Submission::new(context, context.transfer, None, &[(&gate, 1)], &[(&original, 0)])?;
    let fence = original.export(kind)?;
    let copy = Semaphore::binary(context)?;
    copy.import(fence, kind, vk::SemaphoreImportFlags::TEMPORARY)?;
    let second = Submission::new(context, context.transfer, None, &[(&copy, 0)], &[])?;
    second.wait()?;
    ensure!(first.has_ended()?, "the wait for a sync file ended before its work");
    passed("a sync file made, passed on and waited for")
}
