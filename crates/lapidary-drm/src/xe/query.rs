//! DEVICE_QUERY: what the device is, told in the interface's two steps (size, then data).

use bytemuck::bytes_of;

use super::profile::{ENGINES, REFERENCE_CLOCK, VA_BITS};
use super::uapi::{self, EngineClassInstance};
use super::{XeDriver, XeRequest, clock};
use crate::core::{Error, must_be_zero};
use crate::transport::Errno;

/// The instance numbers of the memory regions: bits of a placement mask.
pub(super) const SYSTEM_INSTANCE: u16 = 0;
/// See [`SYSTEM_INSTANCE`].
pub(super) const VRAM_INSTANCE: u16 = 1;

/// Bits in the timestamp that the engines and this query show.
const TIMESTAMP_BITS: u32 = 36;

/// `DRM_IOCTL_XE_DEVICE_QUERY`.
///
/// # Errors
/// `EINVAL` for an unknown query, a wrong size, an extension or a reserved field; `EFAULT` for a bad pointer; `ENODEV`
/// for firmware and features the device does not have.
pub(super) fn device_query(
    request: &mut XeRequest<'_, '_>,
    args: &mut uapi::DeviceQuery,
) -> Result<(), Error> {
    must_be_zero("extensions", args.extensions)?;
    must_be_zero("reserved", args.reserved[0] | args.reserved[1])?;
    let driver = request.file.driver();
    match args.query {
        uapi::query::ENGINE_CYCLES => return engine_cycles(request, args),
        uapi::query::UC_FW_VERSION => return firmware_version(request, args),
        uapi::query::PXP_STATUS => return protected_content(args),
        _ => {}
    }
    let answer = match args.query {
        uapi::query::ENGINES => engines(),
        uapi::query::MEM_REGIONS => mem_regions(driver),
        uapi::query::CONFIG => config(driver, request.file.is_privileged()),
        uapi::query::GT_LIST => gt_list(driver),
        // The hardware's own table of constants: everything a client needs of it is in the other queries.
        uapi::query::HWCONFIG => Vec::new(),
        uapi::query::GT_TOPOLOGY => topology(driver),
        // No observation units.
        uapi::query::OA_UNITS => counted(0),
        unknown => return Err(Error::invalid("a query", unknown)),
    };
    if size_matches(args, answer.len())? {
        request.call.memory().write(args.data, &answer)?;
    }
    Ok(())
}

/// First step: stores the size and says that nothing is to be copied; second step: checks it.
fn size_matches(args: &mut uapi::DeviceQuery, len: usize) -> Result<bool, Error> {
    if args.size == 0 {
        args.size = len as u32;
        return Ok(false);
    }
    if args.size as usize == len { Ok(true) } else { Err(Error::invalid("a query's size", args.size)) }
}

fn counted(count: usize) -> Vec<u8> {
    bytes_of(&uapi::QueryCount { count: count as u32, pad: 0 }).to_vec()
}

fn engines() -> Vec<u8> {
    let mut out = counted(ENGINES.len());
    for (class, _) in ENGINES {
        let instance = EngineClassInstance { engine_class: class, ..Default::default() };
        out.extend_from_slice(bytes_of(&uapi::Engine { instance, reserved: [0; 3] }));
    }
    out
}

fn mem_regions(driver: &XeDriver) -> Vec<u8> {
    let usage = driver.memory_usage();
    let mut regions = vec![uapi::MemRegion {
        mem_class: 0,
        instance: SYSTEM_INSTANCE,
        min_page_size: 4096,
        total_size: usage.system_total,
        used: usage.system_used,
        ..Default::default()
    }];
    if driver.profile().has_vram {
        regions.push(uapi::MemRegion {
            mem_class: 1,
            instance: VRAM_INSTANCE,
            min_page_size: driver.profile().min_page_size,
            total_size: usage.vram_total,
            used: usage.vram_used,
            cpu_visible_size: usage.vram_total,
            cpu_visible_used: usage.vram_used,
            ..Default::default()
        });
    }
    let mut out = counted(regions.len());
    regions.iter().for_each(|region| out.extend_from_slice(bytes_of(region)));
    out
}

fn config(driver: &XeDriver, privileged: bool) -> Vec<u8> {
    let profile = driver.profile();
    let mut flags = uapi::CONFIG_FLAG_HAS_LOW_LATENCY | uapi::CONFIG_FLAG_HAS_NO_COMPRESSION_HINT;
    if profile.has_vram {
        flags |= uapi::CONFIG_FLAG_HAS_VRAM;
    }
    let info: [u64; 5] = [
        u64::from(profile.device_id) | u64::from(profile.revision) << 16,
        flags,
        u64::from(profile.min_page_size),
        u64::from(VA_BITS),
        u64::from(super::exec_queue::max_priority(privileged)),
    ];
    let mut out = counted(info.len());
    out.extend_from_slice(bytes_of(&info));
    out
}

fn gt_list(driver: &XeDriver) -> Vec<u8> {
    let profile = driver.profile();
    let system = 1 << SYSTEM_INSTANCE;
    let (near, far) = if profile.has_vram { (1 << VRAM_INSTANCE, system) } else { (system, 0) };
    let (major, minor, rev) = profile.graphics_version;
    let gt = uapi::Gt {
        reference_clock: REFERENCE_CLOCK,
        near_mem_regions: near,
        far_mem_regions: far,
        ip_ver_major: major,
        ip_ver_minor: minor,
        ip_ver_rev: rev,
        ..Default::default()
    };
    let mut out = counted(1);
    out.extend_from_slice(bytes_of(&gt));
    out
}

fn topology(driver: &XeDriver) -> Vec<u8> {
    let profile = driver.profile();
    let masks = [
        (uapi::topology::DSS_GEOMETRY, profile.dss_mask),
        (uapi::topology::DSS_COMPUTE, profile.dss_mask),
        (uapi::topology::L3_BANK, profile.l3_bank_mask),
        (uapi::topology::SIMD16_EU_PER_DSS, profile.eu_mask),
    ];
    let mut out = Vec::new();
    for (kind, mask) in masks {
        let bytes = mask.to_le_bytes();
        out.extend_from_slice(bytes_of(&uapi::TopologyMask {
            gt_id: 0,
            kind,
            num_bytes: bytes.len() as u32,
        }));
        out.extend_from_slice(&bytes);
    }
    out
}

/// ENGINE_CYCLES: one moment on the GPU's timestamp and on a CPU clock of the caller's choice.
fn engine_cycles(request: &mut XeRequest<'_, '_>, args: &mut uapi::DeviceQuery) -> Result<(), Error> {
    if !size_matches(args, size_of::<uapi::EngineCycles>())? {
        return Ok(());
    }
    let memory = request.call.memory();
    let mut cycles: uapi::EngineCycles = memory.read_pod(args.data)?;
    let clock = cpu_clock(cycles.clockid)?;
    super::exec_queue::engine_class(&cycles.eci)?;
    let before = clock::nanoseconds(clock);
    let ticks = request.file.driver().gpu().timestamp();
    let after = clock::nanoseconds(clock);
    cycles.width = TIMESTAMP_BITS;
    cycles.engine_cycles = ticks & ((1 << TIMESTAMP_BITS) - 1);
    cycles.cpu_timestamp = before;
    cycles.cpu_delta = after.saturating_sub(before);
    memory.write_pod(args.data, &cycles)?;
    Ok(())
}

/// Checks a CPU clock's number.
fn cpu_clock(id: i32) -> Result<i32, Error> {
    match id {
        libc::CLOCK_MONOTONIC
        | libc::CLOCK_MONOTONIC_RAW
        | libc::CLOCK_REALTIME
        | libc::CLOCK_BOOTTIME
        | libc::CLOCK_TAI => Ok(id),
        _ => Err(Error::refused(Errno::INVAL, "a CPU clock that can't be correlated")),
    }
}

/// UC_FW_VERSION: the version of the submission interface that clients look for; there is no media firmware.
fn firmware_version(request: &mut XeRequest<'_, '_>, args: &mut uapi::DeviceQuery) -> Result<(), Error> {
    const GUC_SUBMISSION: u16 = 0;
    const HUC: u16 = 1;
    if !size_matches(args, size_of::<uapi::UcFwVersion>())? {
        return Ok(());
    }
    let memory = request.call.memory();
    let mut version: uapi::UcFwVersion = memory.read_pod(args.data)?;
    must_be_zero("pad", version.pad)?;
    must_be_zero("pad2", version.pad2)?;
    must_be_zero("reserved", version.reserved)?;
    match version.uc_type {
        GUC_SUBMISSION => {}
        HUC => return Err(Error::refused(Errno::NODEV, "the device has no media firmware")),
        unknown => return Err(Error::invalid("a kind of firmware", unknown)),
    }
    // Branch 0, at least 1.1.3: what Mesa asks for before it offers a compute queue.
    (version.branch_ver, version.major_ver, version.minor_ver, version.patch_ver) = (0, 1, 17, 0);
    memory.write_pod(args.data, &version)?;
    Ok(())
}

/// PXP_STATUS: there is no protected content.
fn protected_content(args: &mut uapi::DeviceQuery) -> Result<(), Error> {
    if !size_matches(args, uapi::PXP_STATUS_SIZE)? {
        return Ok(());
    }
    Err(Error::refused(Errno::NODEV, "the device has no protected content"))
}
