//! RESET, SIGNAL, TIMELINE_SIGNAL, QUERY and TRANSFER: what is in syncobjs, without waiting for it.

use std::time::Duration;

use lapidary::fence::Deadline;

use super::{SyncobjRef, read_handles, read_points, with_feature};
use crate::core::driver::{Driver, Features};
use crate::core::error::{Error, must_be_zero, only_bits};
use crate::core::ioctl::{IoctlTable, Permit, Request};
use crate::uapi::drm;

/// How long a fence that isn't there yet is waited for where the client gives no time.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn add_commands<D: Driver>(table: IoctlTable<D>) -> IoctlTable<D> {
    let binary = Features::SYNCOBJ;
    let timeline = Features::SYNCOBJ_TIMELINE;
    table
        .with("SYNCOBJ_RESET", drm::IOCTL_SYNCOBJ_RESET, Permit::RENDER, with_feature(binary, reset))
        .with("SYNCOBJ_SIGNAL", drm::IOCTL_SYNCOBJ_SIGNAL, Permit::RENDER, with_feature(binary, signal))
        .with(
            "SYNCOBJ_TIMELINE_SIGNAL",
            drm::IOCTL_SYNCOBJ_TIMELINE_SIGNAL,
            Permit::RENDER,
            with_feature(timeline, timeline_signal),
        )
        .with("SYNCOBJ_QUERY", drm::IOCTL_SYNCOBJ_QUERY, Permit::RENDER, with_feature(timeline, query))
        .with(
            "SYNCOBJ_TRANSFER",
            drm::IOCTL_SYNCOBJ_TRANSFER,
            Permit::RENDER,
            with_feature(timeline, transfer),
        )
        .with_quick(&[
            drm::IOCTL_SYNCOBJ_RESET,
            drm::IOCTL_SYNCOBJ_SIGNAL,
            drm::IOCTL_SYNCOBJ_TIMELINE_SIGNAL,
            drm::IOCTL_SYNCOBJ_QUERY,
        ])
}

/// The syncobjs of a command that changes all of them or, if one doesn't exist, none.
fn all_of<D: Driver>(
    request: &Request<'_, '_, D>,
    address: u64,
    count: u32,
) -> Result<Vec<SyncobjRef>, Error> {
    if count == 0 {
        return Err(Error::invalid("the number of syncobjs", count));
    }
    read_handles(request, address, count)
}

fn reset<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::SyncobjArray) -> Result<(), Error> {
    must_be_zero("padding", args.pad)?;
    for syncobj in all_of(request, args.handles, args.count_handles)? {
        syncobj.reset();
    }
    Ok(())
}

fn signal<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::SyncobjArray) -> Result<(), Error> {
    must_be_zero("padding", args.pad)?;
    for syncobj in all_of(request, args.handles, args.count_handles)? {
        syncobj.signal();
    }
    Ok(())
}

fn timeline_signal<D: Driver>(
    request: &mut Request<'_, '_, D>,
    args: &mut drm::SyncobjTimelineArray,
) -> Result<(), Error> {
    must_be_zero("flags", args.flags)?;
    let syncobjs = all_of(request, args.handles, args.count_handles)?;
    let points = read_points(request, args.points, syncobjs.len())?;
    for (syncobj, point) in syncobjs.iter().zip(points) {
        syncobj.signal_point(point);
    }
    Ok(())
}

fn query<D: Driver>(
    request: &mut Request<'_, '_, D>,
    args: &mut drm::SyncobjTimelineArray,
) -> Result<(), Error> {
    only_bits("flags", args.flags, drm::SYNCOBJ_QUERY_LAST_SUBMITTED)?;
    let last_submitted = args.flags & drm::SYNCOBJ_QUERY_LAST_SUBMITTED != 0;
    let syncobjs = all_of(request, args.handles, args.count_handles)?;
    let points: Vec<u64> = syncobjs.iter().map(|syncobj| syncobj.query(last_submitted)).collect();
    Ok(request.call.memory().write_array(args.points, &points)?)
}

/// Point 0, on either side, is a binary syncobj's one fence. One that isn't there yet is waited for, if asked, for a
/// limited time.
fn transfer<D: Driver>(
    request: &mut Request<'_, '_, D>,
    args: &mut drm::SyncobjTransfer,
) -> Result<(), Error> {
    must_be_zero("padding", args.pad)?;
    only_bits("flags", args.flags, drm::SYNCOBJ_WAIT_FOR_SUBMIT)?;
    let table = request.file.syncobjs();
    let (target, source) = (table.get(args.dst_handle)?, table.get(args.src_handle)?);
    if args.flags & drm::SYNCOBJ_WAIT_FOR_SUBMIT == 0 {
        return Ok(target.transfer(args.dst_point, &source, args.src_point)?);
    }
    let deadline = Deadline::after(SUBMIT_TIMEOUT);
    let interrupt = request.call.interrupt();
    Ok(target.transfer_when_submitted(args.dst_point, &source, args.src_point, deadline, interrupt)?)
}
