//! Sharing buffers between files and devices: handle to dma-buf descriptor and back.
//!
//! One buffer is one dma-buf, whoever shares it and how often; and in one file, a dma-buf is one
//! handle: importing what the file shared or imported before gives the handle it has already.

use std::sync::Arc;

use super::buffer::Buffer;
use super::dma_buf::DmaBuf;
use super::driver::Driver;
use super::error::{Error, only_bits};
use super::ioctl::{IoctlTable, Permit, Request};
use crate::uapi::drm;

pub(super) fn add_commands<D: Driver>(table: IoctlTable<D>) -> IoctlTable<D> {
    table.with("PRIME_HANDLE_TO_FD", drm::IOCTL_PRIME_HANDLE_TO_FD, Permit::RENDER, handle_to_fd).with(
        "PRIME_FD_TO_HANDLE",
        drm::IOCTL_PRIME_FD_TO_HANDLE,
        Permit::RENDER,
        fd_to_handle,
    )
}

fn handle_to_fd<D: Driver>(
    request: &mut Request<'_, '_, D>,
    args: &mut drm::PrimeHandle,
) -> Result<(), Error> {
    only_bits("flags", args.flags, drm::PRIME_CLOEXEC | drm::PRIME_RDWR)?;
    let file = Arc::clone(request.file);
    let buffer = file.buffer(args.handle)?;
    if !buffer.is_imported() {
        file.driver().may_share(buffer.object())?;
    }
    let dma_buf = buffer.dma_buf()?;
    let cloexec = args.flags & drm::PRIME_CLOEXEC != 0;
    let writable = args.flags & drm::PRIME_RDWR != 0;
    args.fd = dma_buf.install(request.call, cloexec, writable)?;
    file.with_open_table(|table| {
        table.note(dma_buf.id(), args.handle, &buffer);
        Ok(())
    })
}

fn fd_to_handle<D: Driver>(
    request: &mut Request<'_, '_, D>,
    args: &mut drm::PrimeHandle,
) -> Result<(), Error> {
    let file = Arc::clone(request.file);
    let dma_buf = DmaBuf::from_descriptor(request.call, args.fd)?;
    let known = file.with_open_table(|table| Ok(table.known(dma_buf.id())))?;
    if let Some(handle) = known {
        args.handle = handle;
        return Ok(());
    }
    let buffer = match dma_buf.own_buffer(file.device()) {
        Some(own) => own,
        None => {
            let object = file.driver().import(&file, &dma_buf)?;
            Buffer::imported(file.device(), object, Arc::clone(&dma_buf))
        }
    };
    args.handle = file.with_open_table(|table| {
        // Another thread may have imported it since we looked.
        if let Some(handle) = table.known(dma_buf.id()) {
            return Ok(handle);
        }
        let handle = table.insert(&buffer)?;
        table.note(dma_buf.id(), handle, &buffer);
        Ok(handle)
    })?;
    Ok(())
}
