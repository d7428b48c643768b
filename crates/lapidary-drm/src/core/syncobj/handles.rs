//! CREATE, DESTROY, HANDLE_TO_FD and FD_TO_HANDLE.

use std::sync::Arc;

use lapidary::syncobj::SyncobjError;

use super::{SyncobjRef, with_feature};
use crate::core::census::Live;
use crate::core::driver::{Driver, Features};
use crate::core::error::{Error, must_be_zero, only_bits};
use crate::core::ioctl::{IoctlTable, Permit, Request};
use crate::core::sync_file::SyncFile;
use crate::transport::{Call, Errno, File};
use crate::uapi::drm;

/// What a syncobj's descriptor stands for. It has no ioctls.
struct SyncobjFile {
    syncobj: SyncobjRef,
    _live: Live,
}

impl File for SyncobjFile {
    fn name(&self) -> String {
        "anon_inode:syncobj_file".to_owned()
    }

    fn ioctl(&self, _: &mut Call<'_>, _: u32, _: &mut [u8]) -> Result<u32, Errno> {
        Err(Errno::NOTTY)
    }
}

pub(super) fn add_commands<D: Driver>(table: IoctlTable<D>) -> IoctlTable<D> {
    let gate = Features::SYNCOBJ;
    table
        .with("SYNCOBJ_CREATE", drm::IOCTL_SYNCOBJ_CREATE, Permit::RENDER, with_feature(gate, create))
        .with("SYNCOBJ_DESTROY", drm::IOCTL_SYNCOBJ_DESTROY, Permit::RENDER, with_feature(gate, destroy))
        .with(
            "SYNCOBJ_HANDLE_TO_FD",
            drm::IOCTL_SYNCOBJ_HANDLE_TO_FD,
            Permit::RENDER,
            with_feature(gate, handle_to_fd),
        )
        .with(
            "SYNCOBJ_FD_TO_HANDLE",
            drm::IOCTL_SYNCOBJ_FD_TO_HANDLE,
            Permit::RENDER,
            with_feature(gate, fd_to_handle),
        )
        .with_quick(&[drm::IOCTL_SYNCOBJ_CREATE, drm::IOCTL_SYNCOBJ_DESTROY])
}

fn create<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::SyncobjCreate) -> Result<(), Error> {
    only_bits("flags", args.flags, drm::SYNCOBJ_CREATE_SIGNALED)?;
    let signalled = args.flags & drm::SYNCOBJ_CREATE_SIGNALED != 0;
    let kind = &request.file.device().kinds().syncobjs;
    args.handle = request.file.syncobjs().insert(SyncobjRef::new(signalled, kind))?;
    Ok(())
}

fn destroy<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::SyncobjDestroy) -> Result<(), Error> {
    must_be_zero("padding", args.pad)?;
    request.file.syncobjs().remove(args.handle)
}

/// The checks that both directions share. Answers the point that is meant.
fn check_handle_args(args: &drm::SyncobjHandle) -> Result<u64, Error> {
    must_be_zero("padding", args.pad)?;
    only_bits("flags", args.flags, drm::SYNCOBJ_FD_SYNC_FILE | drm::SYNCOBJ_FD_TIMELINE)?;
    let with_point = args.flags & drm::SYNCOBJ_FD_TIMELINE != 0;
    let point = if with_point { args.point } else { 0 };
    if args.flags & drm::SYNCOBJ_FD_SYNC_FILE == 0 {
        must_be_zero("a point of a whole syncobj", point)?;
    }
    Ok(point)
}

fn handle_to_fd<D: Driver>(
    request: &mut Request<'_, '_, D>,
    args: &mut drm::SyncobjHandle,
) -> Result<(), Error> {
    let point = check_handle_args(args)?;
    let file = request.file;
    let kinds = file.device().kinds();
    if args.flags & drm::SYNCOBJ_FD_SYNC_FILE != 0 {
        let fence = file.syncobjs().get(args.handle)?.find_fence(point);
        let fence = fence.ok_or(SyncobjError::NotSubmitted(point))?;
        args.fd = SyncFile::new(fence, &kinds.sync_files).install(request.call)?;
        return Ok(());
    }
    let found = file.syncobjs().get(args.handle);
    let syncobj = found.map_err(|_| Error::invalid("a syncobj's handle", args.handle))?;
    let descriptor = SyncobjFile { syncobj, _live: kinds.syncobj_files.enter() };
    args.fd = request.call.install_file(Arc::new(descriptor), true)?;
    Ok(())
}

fn fd_to_handle<D: Driver>(
    request: &mut Request<'_, '_, D>,
    args: &mut drm::SyncobjHandle,
) -> Result<(), Error> {
    let point = check_handle_args(args)?;
    if args.flags & drm::SYNCOBJ_FD_SYNC_FILE != 0 {
        return import_sync_file(request, args, point);
    }
    let bad = |_| Error::BadDescriptor { what: "a syncobj", fd: args.fd, errno: Errno::INVAL };
    let found =
        crate::core::descriptor::find::<SyncobjFile>(request.call, args.fd, "a syncobj", Errno::INVAL);
    let syncobj = found.map_err(bad)?.syncobj.clone();
    args.handle = request.file.syncobjs().insert(syncobj)?;
    Ok(())
}

fn import_sync_file<D: Driver>(
    request: &mut Request<'_, '_, D>,
    args: &drm::SyncobjHandle,
    point: u64,
) -> Result<(), Error> {
    let source = SyncFile::from_descriptor(request.call, args.fd, Errno::INVAL)?;
    let syncobj = request.file.syncobjs().get(args.handle)?;
    let fence = source.fence().clone();
    if point == 0 {
        syncobj.replace_fence(Some(fence));
    } else {
        syncobj.add_point(fence, point);
    }
    Ok(())
}
