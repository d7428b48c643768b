//! GEM_CREATE and GEM_MMAP_OFFSET: buffers.

use std::sync::Arc;

use lapidary::gem::ObjectConfig;
use lapidary::residency::{PlaceConfig, Placement, Shape};

use super::object::{Buffer, BufferData, Traits};
use super::query::{SYSTEM_INSTANCE, VRAM_INSTANCE};
use super::vm::Vm;
use super::{XeDriver, XeRequest, extension, uapi};
use crate::backing::Backing;
use crate::core::{Error, must_be_zero, only_bits};
use crate::transport::Errno;

const FLAGS: u32 = uapi::GEM_CREATE_DEFER_BACKING
    | uapi::GEM_CREATE_SCANOUT
    | uapi::GEM_CREATE_NEEDS_VISIBLE_VRAM
    | uapi::GEM_CREATE_NO_COMPRESSION;

/// `DRM_IOCTL_XE_GEM_CREATE`.
///
/// # Errors
/// `EINVAL` for a field that is wrong, `ENOENT` for an unknown VM, `ENOSPC` for a buffer that is larger than the memory it
/// is to live in, `ENODEV` for protected content, `ENOMEM` when there is no room, `EINTR`, `EFAULT`.
pub(super) fn create(request: &mut XeRequest<'_, '_>, args: &mut uapi::GemCreate) -> Result<(), Error> {
    let name = uapi::GEM_CREATE_EXTENSION_SET_PROPERTY;
    extension::for_each_property(request.call.memory(), args.extensions, name, |property, value| {
        match property {
            uapi::GEM_CREATE_PROPERTY_PXP_TYPE => extension::protected_content(value),
            unknown => Err(Error::invalid("a property of a buffer", unknown)),
        }
    })?;
    must_be_zero("pad", args.pad[0] | args.pad[1] | args.pad[2])?;
    must_be_zero("reserved", args.reserved[0] | args.reserved[1])?;
    must_be_zero("handle", args.handle)?;
    only_bits("the flags of a buffer", args.flags, FLAGS)?;
    let driver = request.file.driver();
    only_bits("the placement of a buffer", args.placement, driver.region_mask())?;
    let wants_vram = args.placement & (1 << VRAM_INSTANCE) != 0;
    check(args, wants_vram, driver)?;
    let vm = match args.vm_id {
        0 => None,
        id => Some(request.file.data().vm(id)?),
    };
    check_size(args, driver)?;
    let buffer = make(driver, args, vm.as_deref())?;
    if args.flags & uapi::GEM_CREATE_DEFER_BACKING == 0 {
        driver.residency().populate(&buffer, request.call.interrupt())?;
    }
    let (handle, _) = request.file.add_object(buffer)?;
    args.handle = handle;
    Ok(())
}

fn check(args: &uapi::GemCreate, wants_vram: bool, driver: &XeDriver) -> Result<(), Error> {
    if args.placement == 0 {
        return Err(Error::invalid("the placement of a buffer", 0u64));
    }
    match args.cpu_caching {
        // Device memory is never cached by the CPU, nor is what a display reads.
        uapi::CPU_CACHING_WB if wants_vram || args.flags & uapi::GEM_CREATE_SCANOUT != 0 => {
            return Err(Error::invalid("the CPU caching of a buffer", args.cpu_caching));
        }
        uapi::CPU_CACHING_WB | uapi::CPU_CACHING_WC => {}
        unknown => return Err(Error::invalid("the CPU caching of a buffer", unknown)),
    }
    if args.flags & uapi::GEM_CREATE_NEEDS_VISIBLE_VRAM != 0 && !wants_vram {
        return Err(Error::invalid("visible device memory for a buffer in none", args.flags));
    }
    if args.size == 0 || !args.size.is_multiple_of(alignment(args.placement, driver)) {
        return Err(Error::invalid("the size of a buffer", args.size));
    }
    Ok(())
}

/// A buffer may not be larger than the largest region it may live in.
fn check_size(args: &uapi::GemCreate, driver: &XeDriver) -> Result<(), Error> {
    let usage = driver.memory_usage();
    let allowed = |instance: u16, total: u64| if args.placement & (1 << instance) != 0 { total } else { 0 };
    let most = allowed(SYSTEM_INSTANCE, usage.system_total).max(allowed(VRAM_INSTANCE, usage.vram_total));
    if args.size > most {
        return Err(Error::refused(Errno::NOSPC, "the buffer is larger than the memory it may live in"));
    }
    Ok(())
}

/// The alignment of a buffer's size and mappings.
fn alignment(placement: u32, driver: &XeDriver) -> u64 {
    if placement & (1 << VRAM_INSTANCE) != 0 { driver.profile().min_page_size.into() } else { 4096 }
}

fn make(driver: &XeDriver, args: &uapi::GemCreate, vm: Option<&Vm>) -> Result<Buffer, Error> {
    let bytes = Backing::new("lapidary-buffer", args.size)?;
    let live = driver.kinds().backings.enter();
    let traits = Traits {
        alignment: alignment(args.placement, driver),
        cached: args.cpu_caching == uapi::CPU_CACHING_WB,
        uncompressed: args.flags & uapi::GEM_CREATE_NO_COMPRESSION != 0,
    };
    let data = BufferData::new(driver.gpu(), bytes, traits, live);
    let mut placements = Vec::new();
    if args.placement & (1 << VRAM_INSTANCE) != 0 {
        placements.push(Placement::preferred(driver.vram_region()));
    }
    if args.placement & (1 << SYSTEM_INSTANCE) != 0 {
        let only = placements.is_empty();
        let system = driver.system_region();
        placements.push(if only { Placement::preferred(system) } else { Placement::fallback(system) });
    }
    let config = ObjectConfig {
        size: args.size,
        resv: vm.map(|vm| vm.reservation().clone()),
        place: PlaceConfig {
            placements,
            shape: Shape::default(),
            group: vm.map(|vm| vm.lru().clone()),
            ..PlaceConfig::default()
        },
    };
    Ok(Buffer::new(driver.graveyard(), config, data))
}

/// `DRM_IOCTL_XE_GEM_MMAP_OFFSET`.
///
/// # Errors
/// `ENOENT` for an unknown buffer, `EINVAL` for a field that is wrong, the barrier page included, which this device
/// does not have.
pub(super) fn mmap_offset(
    request: &mut XeRequest<'_, '_>,
    args: &mut uapi::GemMmapOffset,
) -> Result<(), Error> {
    must_be_zero("extensions", args.extensions)?;
    must_be_zero("reserved", args.reserved[0] | args.reserved[1])?;
    must_be_zero("flags", args.flags)?;
    let buffer = request.file.buffer(args.handle)?;
    args.offset = Arc::clone(&buffer).mmap_offset()?;
    Ok(())
}
