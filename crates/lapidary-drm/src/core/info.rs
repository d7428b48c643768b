//! The questions every client begins with: which driver, which version, what can it do, who am I.

use super::driver::{Driver, DriverInfo, Features};
use super::error::Error;
use super::ioctl::{IoctlTable, Permit, Request};
use crate::transport::Errno;
use crate::uapi::drm;

/// What a client is told as its own user id: the number that stands for "none of your business".
const OVERFLOW_UID: u64 = 65534;

pub(super) fn add_commands<D: Driver>(table: IoctlTable<D>) -> IoctlTable<D> {
    table
        .with("VERSION", drm::IOCTL_VERSION, Permit::RENDER, version)
        .with("GET_UNIQUE", drm::IOCTL_GET_UNIQUE, Permit::empty(), get_unique)
        .with("SET_UNIQUE", drm::IOCTL_SET_UNIQUE, Permit::AUTH | Permit::MASTER | Permit::ADMIN, set_unique)
        .with("GET_CLIENT", drm::IOCTL_GET_CLIENT, Permit::empty(), get_client)
        .with("GET_STATS", drm::IOCTL_GET_STATS, Permit::empty(), get_stats)
        .with("SET_VERSION", drm::IOCTL_SET_VERSION, Permit::MASTER, set_version)
        .with("GET_CAP", drm::IOCTL_GET_CAP, Permit::RENDER, get_cap)
        .with("SET_CLIENT_CAP", drm::IOCTL_SET_CLIENT_CAP, Permit::empty(), set_client_cap)
        .with("SET_CLIENT_NAME", drm::IOCTL_SET_CLIENT_NAME, Permit::RENDER, set_client_name)
        .with_quick(&[drm::IOCTL_VERSION, drm::IOCTL_GET_CAP])
}

/// Writes as much of `text` as there is room for and makes `room` the text's full length.
fn copy_text<D: Driver>(
    request: &mut Request<'_, '_, D>,
    text: &str,
    address: u64,
    room: &mut u64,
) -> Result<(), Error> {
    let length = usize::try_from(*room).unwrap_or(usize::MAX).min(text.len());
    *room = text.len() as u64;
    if length == 0 || address == 0 {
        return Ok(());
    }
    Ok(request.call.memory().write(address, &text.as_bytes()[..length])?)
}

fn version<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::Version) -> Result<(), Error> {
    let device = request.file.device().clone();
    let info = device.driver().info();
    let (major, minor, patch) = info.version;
    args.version_major = major;
    args.version_minor = minor;
    args.version_patchlevel = patch;
    copy_text(request, info.name, args.name, &mut args.name_len)?;
    copy_text(request, info.date, args.date, &mut args.date_len)?;
    copy_text(request, info.description, args.desc, &mut args.desc_len)
}

/// Unlike the texts of VERSION, a bus id is given whole or not at all.
fn get_unique<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::Unique) -> Result<(), Error> {
    let bus_id = request.file.membership().bus_id();
    let length = bus_id.len() as u64;
    if args.unique_len >= length && length > 0 {
        request.call.memory().write(args.unique, bus_id.as_bytes())?;
    }
    args.unique_len = length;
    Ok(())
}

fn set_unique<D: Driver>(_: &mut Request<'_, '_, D>, _: &mut drm::Unique) -> Result<(), Error> {
    Err(Error::refused(Errno::INVAL, "bus ids can't be chosen"))
}

/// There is one client to see: the caller.
fn get_client<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::Client) -> Result<(), Error> {
    if args.idx != 0 {
        return Err(Error::invalid("the client's index", args.idx));
    }
    args.auth = request.file.is_authenticated().into();
    args.pid = u64::from(request.call.pid());
    args.uid = OVERFLOW_UID;
    args.magic = 0;
    args.iocs = 0;
    Ok(())
}

fn get_stats<D: Driver>(_: &mut Request<'_, '_, D>, args: &mut drm::Stats) -> Result<(), Error> {
    *args = bytemuck::Zeroable::zeroed();
    Ok(())
}

/// Answers with what there is, whether or not what was asked for is accepted.
fn set_version<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::SetVersion) -> Result<(), Error> {
    let file = request.file;
    let info = file.device().driver().info();
    let outcome = agree_on_interface(args).and_then(|names_device| {
        if names_device {
            file.membership().set_bus_id(&info.bus_id);
        }
        agree_on_driver(args, info)
    });
    args.drm_di_major = drm::IF_MAJOR;
    args.drm_di_minor = drm::IF_MINOR;
    args.drm_dd_major = info.version.0;
    args.drm_dd_minor = info.version.1;
    outcome
}

/// Whether the version asked for is one in which the bus id is visible.
fn agree_on_interface(args: &drm::SetVersion) -> Result<bool, Error> {
    if args.drm_di_major == -1 {
        return Ok(false);
    }
    if args.drm_di_major != drm::IF_MAJOR || !(0..=drm::IF_MINOR).contains(&args.drm_di_minor) {
        return Err(Error::invalid("the interface's version", args.drm_di_major));
    }
    Ok(args.drm_di_minor >= 1)
}

fn agree_on_driver(args: &drm::SetVersion, info: &DriverInfo) -> Result<(), Error> {
    let (major, minor, _) = info.version;
    if args.drm_dd_major == -1 || (args.drm_dd_major == major && (0..=minor).contains(&args.drm_dd_minor)) {
        return Ok(());
    }
    Err(Error::invalid("the driver's version", args.drm_dd_major))
}

fn get_cap<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::GetCap) -> Result<(), Error> {
    let features = request.file.device().driver().info().features;
    args.value = 0;
    args.value = match args.capability {
        drm::CAP_TIMESTAMP_MONOTONIC => 1,
        drm::CAP_PRIME => drm::PRIME_CAP_IMPORT | drm::PRIME_CAP_EXPORT,
        drm::CAP_SYNCOBJ => features.contains(Features::SYNCOBJ).into(),
        drm::CAP_SYNCOBJ_TIMELINE => features.contains(Features::SYNCOBJ_TIMELINE).into(),
        drm::CAP_DUMB_BUFFER => features.contains(Features::DUMB).into(),
        _ => return Err(Error::Unsupported("a capability of mode-setting devices")),
    };
    Ok(())
}

/// All there are concern mode-setting.
fn set_client_cap<D: Driver>(_: &mut Request<'_, '_, D>, _: &mut drm::SetClientCap) -> Result<(), Error> {
    Err(Error::Unsupported("a client capability of mode-setting"))
}

fn set_client_name<D: Driver>(
    request: &mut Request<'_, '_, D>,
    args: &mut drm::SetClientName,
) -> Result<(), Error> {
    if args.name_len > drm::CLIENT_NAME_MAX_LEN {
        return Err(Error::invalid("the name's length", args.name_len));
    }
    let mut name = vec![0; args.name_len as usize];
    request.call.memory().read(args.name, &mut name)?;
    if !name.iter().all(u8::is_ascii_graphic) {
        return Err(Error::refused(Errno::INVAL, "a client's name is visible ASCII"));
    }
    let name = String::from_utf8(name).ok().filter(|name| !name.is_empty());
    request.file.set_name(name);
    Ok(())
}
