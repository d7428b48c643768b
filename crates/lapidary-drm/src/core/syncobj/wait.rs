//! WAIT and TIMELINE_WAIT.

use lapidary::fence::{Deadline, Interrupt, Timestamp};
use lapidary::syncobj::{self, Syncobj, WaitFlags};

use super::{SyncobjRef, read_handles, read_points, with_feature};
use crate::core::driver::{Driver, Features};
use crate::core::error::{Error, only_bits};
use crate::core::ioctl::{IoctlTable, Permit, Request};
use crate::uapi::drm;

/// What the answer holds when all were waited for and none is the first.
const NONE_FIRST: u32 = u32::MAX;

pub(super) fn add_commands<D: Driver>(table: IoctlTable<D>) -> IoctlTable<D> {
    let binary = Features::SYNCOBJ;
    let timeline = Features::SYNCOBJ_TIMELINE;
    table.with("SYNCOBJ_WAIT", drm::IOCTL_SYNCOBJ_WAIT, Permit::RENDER, with_feature(binary, wait)).with(
        "SYNCOBJ_TIMELINE_WAIT",
        drm::IOCTL_SYNCOBJ_TIMELINE_WAIT,
        Permit::RENDER,
        with_feature(timeline, timeline_wait),
    )
}

fn wait<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::SyncobjWait) -> Result<(), Error> {
    let known = drm::SYNCOBJ_WAIT_ALL | drm::SYNCOBJ_WAIT_FOR_SUBMIT | drm::SYNCOBJ_WAIT_DEADLINE;
    only_bits("flags", args.flags, known)?;
    if args.count_handles == 0 {
        return Ok(());
    }
    let syncobjs = read_handles(request, args.handles, args.count_handles)?;
    let points = vec![0; syncobjs.len()];
    let how = How { flags: args.flags, timeout: args.timeout_nsec, hint: args.deadline_nsec };
    args.first_signaled = wait_for(&syncobjs, &points, how, request.call.interrupt())?;
    Ok(())
}

fn timeline_wait<D: Driver>(
    request: &mut Request<'_, '_, D>,
    args: &mut drm::SyncobjTimelineWait,
) -> Result<(), Error> {
    let known = drm::SYNCOBJ_WAIT_ALL
        | drm::SYNCOBJ_WAIT_FOR_SUBMIT
        | drm::SYNCOBJ_WAIT_AVAILABLE
        | drm::SYNCOBJ_WAIT_DEADLINE;
    only_bits("flags", args.flags, known)?;
    if args.count_handles == 0 {
        return Ok(());
    }
    let syncobjs = read_handles(request, args.handles, args.count_handles)?;
    let points = read_points(request, args.points, syncobjs.len())?;
    let how = How { flags: args.flags, timeout: args.timeout_nsec, hint: args.deadline_nsec };
    args.first_signaled = wait_for(&syncobjs, &points, how, request.call.interrupt())?;
    Ok(())
}

/// What both commands say about a wait.
#[derive(Clone, Copy)]
struct How {
    flags: u32,
    timeout: i64,
    hint: u64,
}

fn wait_for(syncobjs: &[SyncobjRef], points: &[u64], how: How, interrupt: &Interrupt) -> Result<u32, Error> {
    let all = how.flags & drm::SYNCOBJ_WAIT_ALL != 0;
    let flags = WaitFlags {
        all,
        for_submit: how.flags & drm::SYNCOBJ_WAIT_FOR_SUBMIT != 0,
        available: how.flags & drm::SYNCOBJ_WAIT_AVAILABLE != 0,
        deadline: (how.flags & drm::SYNCOBJ_WAIT_DEADLINE != 0).then(|| Timestamp::from_nanos(how.hint)),
    };
    let plain = syncobjs.iter().map(|syncobj| Syncobj::clone(syncobj));
    let targets: Vec<(Syncobj, u64)> = plain.zip(points.iter().copied()).collect();
    let first = syncobj::wait(&targets, flags, deadline(how.timeout), interrupt)?;
    Ok(if all { NONE_FIRST } else { first as u32 })
}

/// A client's absolute time: 0 and what is past, negative times included, only look.
fn deadline(absolute: i64) -> Deadline {
    match u64::try_from(absolute) {
        Ok(nanoseconds @ 1..) => Deadline::at_timestamp(Timestamp::from_nanos(nanoseconds)),
        _ => Deadline::poll(),
    }
}
