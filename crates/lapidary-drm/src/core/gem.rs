//! Closing buffer handles, device-wide names, and dumb buffers.

use super::driver::{Driver, Features, Object};
use super::error::{Error, must_be_zero};
use super::ioctl::{IoctlTable, Permit, Request};
use crate::uapi::drm;

pub(super) fn add_commands<D: Driver>(table: IoctlTable<D>) -> IoctlTable<D> {
    table
        .with("GEM_CLOSE", drm::IOCTL_GEM_CLOSE, Permit::RENDER, close)
        .with("GEM_FLINK", drm::IOCTL_GEM_FLINK, Permit::AUTH, flink)
        .with("GEM_OPEN", drm::IOCTL_GEM_OPEN, Permit::AUTH, open)
        .with("MODE_CREATE_DUMB", drm::IOCTL_MODE_CREATE_DUMB, Permit::empty(), create_dumb)
        .with("MODE_MAP_DUMB", drm::IOCTL_MODE_MAP_DUMB, Permit::empty(), map_dumb)
        .with("MODE_DESTROY_DUMB", drm::IOCTL_MODE_DESTROY_DUMB, Permit::empty(), destroy_dumb)
        .with_quick(&[drm::IOCTL_GEM_CLOSE])
}

fn close<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::GemClose) -> Result<(), Error> {
    request.file.close_buffer(args.handle)
}

fn flink<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::GemFlink) -> Result<(), Error> {
    let buffer = request.file.buffer(args.handle)?;
    request.file.driver().may_share(buffer.object())?;
    args.name = buffer.flink();
    Ok(())
}

fn open<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::GemOpen) -> Result<(), Error> {
    let found = request.file.device().names().find(args.name);
    let buffer = found.ok_or_else(|| Error::not_found("buffer named", args.name))?;
    args.handle = request.file.add_buffer(&buffer)?;
    args.size = buffer.object().size();
    Ok(())
}

fn require_dumb<D: Driver>(request: &Request<'_, '_, D>) -> Result<(), Error> {
    let features = request.file.driver().info().features;
    if features.contains(Features::DUMB) {
        return Ok(());
    }
    Err(Error::refused(crate::transport::Errno::NOSYS, "no dumb buffers here"))
}

/// What the core checks of a picture, so that no driver's arithmetic can overflow.
fn check_picture(picture: &drm::ModeCreateDumb) -> Result<(), Error> {
    must_be_zero("flags", picture.flags)?;
    for (what, value) in [
        ("a picture's width", picture.width),
        ("a picture's height", picture.height),
        ("a picture's bits per pixel", picture.bpp),
    ] {
        if value == 0 {
            return Err(Error::invalid(what, value));
        }
    }
    let bytes_per_pixel = picture.bpp.div_ceil(8);
    let stride = bytes_per_pixel.checked_mul(picture.width);
    let size = stride.and_then(|stride| stride.checked_mul(picture.height));
    match size.and_then(|size| size.checked_next_multiple_of(4096)) {
        Some(_) => Ok(()),
        None => Err(Error::invalid("a picture's height", picture.height)),
    }
}

fn create_dumb<D: Driver>(
    request: &mut Request<'_, '_, D>,
    args: &mut drm::ModeCreateDumb,
) -> Result<(), Error> {
    require_dumb(request)?;
    check_picture(args)?;
    let object = request.file.driver().create_dumb(request.file, args)?;
    args.handle = request.file.add_object(object)?.0;
    Ok(())
}

fn map_dumb<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::ModeMapDumb) -> Result<(), Error> {
    require_dumb(request)?;
    let buffer = request.file.buffer(args.handle)?;
    if buffer.is_imported() {
        return Err(Error::invalid("another device's buffer", args.handle));
    }
    args.offset = buffer.mmap_offset()?;
    Ok(())
}

fn destroy_dumb<D: Driver>(
    request: &mut Request<'_, '_, D>,
    args: &mut drm::ModeDestroyDumb,
) -> Result<(), Error> {
    require_dumb(request)?;
    request.file.close_buffer(args.handle)
}
