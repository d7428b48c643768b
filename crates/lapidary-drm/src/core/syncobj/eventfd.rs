//! EVENTFD: the client's eventfd is signalled when a point is reached, or has a fence.

use std::os::fd::OwnedFd;

use super::aio::Aio;
use super::with_feature;
use crate::core::driver::{Driver, Features};
use crate::core::error::{Error, must_be_zero, only_bits};
use crate::core::ioctl::{IoctlTable, Permit, Request};
use crate::transport::Errno;
use crate::uapi::drm;

pub(super) fn add_commands<D: Driver>(table: IoctlTable<D>) -> IoctlTable<D> {
    let gate = Features::SYNCOBJ_TIMELINE;
    table.with("SYNCOBJ_EVENTFD", drm::IOCTL_SYNCOBJ_EVENTFD, Permit::RENDER, with_feature(gate, eventfd))
}

fn eventfd<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::SyncobjEventfd) -> Result<(), Error> {
    // First of all: clients find out with a handle that isn't there whether they have the command.
    let aio = Aio::get().map_err(|error| {
        tracing::debug!(%error, "the system gives no AIO context");
        Error::Unsupported("signalling an eventfd")
    })?;
    only_bits("flags", args.flags, drm::SYNCOBJ_WAIT_AVAILABLE)?;
    must_be_zero("padding", args.pad)?;
    let syncobj = request.file.syncobjs().get(args.handle)?;
    let descriptor = request.call.take_fd(args.fd)?;
    if !is_eventfd(&descriptor) {
        return Err(Error::BadDescriptor { what: "an eventfd", fd: args.fd, errno: Errno::INVAL });
    }
    let available = args.flags & drm::SYNCOBJ_WAIT_AVAILABLE != 0;
    syncobj.on_point(args.point, available, move || {
        if let Err(error) = aio.signal(&descriptor) {
            tracing::warn!(%error, "an eventfd could not be signalled");
        }
    });
    Ok(())
}

/// The kernel says what a descriptor is only by the name of its link in `/proc`.
fn is_eventfd(descriptor: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let target = std::fs::read_link(link);
    target.is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}
