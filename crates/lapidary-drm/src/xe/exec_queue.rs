//! Exec queues: what a client submits to. A queue of an engine class owns a context on the GPU; a queue of the VM_BIND
//! class orders binds of its address space.
//!
//! A queue holds its address space. Destroying an engine's queue, or closing its file, kills what it still has queued or
//! running: those fences fail, nobody waits for ever. Binds that a queue has taken are carried out in any case. A queue whose job faulted, hung or was nonsense is banned: it takes no
//! more work and says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lapidary_gpu::EngineClass;

use super::XeRequest;
use super::bind_queue::BindQueue;
use super::engine_queue::EngineQueue;
use super::extension;
use super::profile::ENGINES;
use super::uapi::{self, EngineClassInstance};
use super::vm::Vm;
use crate::core::census::Live;
use crate::core::{Error, must_be_zero, only_bits};
use crate::transport::Errno;

/// Highest priority there is.
const MAX_PRIORITY: u32 = 2;
/// The priority of a queue that asks for none.
const NORMAL_PRIORITY: u32 = 1;
/// Most entries in a queue's table of engines, as the kernel has it.
const MAX_PLACEMENTS: u32 = 9;
/// Bounds of a time slice, in microseconds.
const TIMESLICE_US: std::ops::RangeInclusive<u64> = 1..=10_000_000;

/// Highest priority that a client can ask for.
pub(super) fn max_priority(privileged: bool) -> u32 {
    if privileged { MAX_PRIORITY } else { NORMAL_PRIORITY }
}

/// A client's queue.
pub(super) struct ExecQueue {
    vm: Arc<Vm>,
    kind: Kind,
    banned: Arc<AtomicBool>,
    _live: Live,
}

enum Kind {
    Engine(EngineQueue),
    Bind(BindQueue),
}

impl ExecQueue {
    /// Its address space.
    pub(super) fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Whether it takes no more work.
    pub(super) fn is_banned(&self) -> bool {
        self.banned.load(Ordering::Acquire)
    }

    /// The queue of an engine.
    ///
    /// # Errors
    /// `EINVAL` for a bind queue.
    pub(super) fn engine(&self) -> Result<&EngineQueue, Error> {
        match &self.kind {
            Kind::Engine(queue) => Ok(queue),
            Kind::Bind(_) => Err(Error::refused(Errno::INVAL, "a bind queue runs no batches")),
        }
    }

    /// The queue of binds.
    ///
    /// # Errors
    /// `EINVAL` for an engine's queue.
    pub(super) fn bind(&self) -> Result<&BindQueue, Error> {
        match &self.kind {
            Kind::Bind(queue) => Ok(queue),
            Kind::Engine(_) => Err(Error::refused(Errno::INVAL, "an engine's queue carries out no binds")),
        }
    }

    /// Gives up what is queued or running on an engine. Idempotent; does not wait.
    pub(super) fn kill(&self) {
        if let Kind::Engine(queue) = &self.kind {
            queue.kill();
        }
    }
}

impl Drop for ExecQueue {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The engine class that a client's engine name means.
///
/// # Errors
/// `EINVAL` for an engine that the device does not have.
pub(super) fn engine_class(eci: &EngineClassInstance) -> Result<EngineClass, Error> {
    must_be_zero("an engine's padding", eci.pad)?;
    must_be_zero("an engine's GT", eci.gt_id)?;
    must_be_zero("an engine's instance", eci.engine_instance)?;
    ENGINES
        .iter()
        .find(|(class, _)| *class == eci.engine_class)
        .map(|(_, class)| *class)
        .ok_or_else(|| Error::invalid("an engine's class", eci.engine_class))
}

/// What a client asks of a new queue beyond its engines.
#[derive(Clone, Copy, Debug)]
struct Properties {
    priority: u32,
}

/// `DRM_IOCTL_XE_EXEC_QUEUE_CREATE`.
///
/// # Errors
/// `EINVAL` for a field that is wrong or an engine that isn't there, `EFAULT`, `ENOENT` for an unknown VM, `EPERM` for a
/// priority that takes privileges, `ENODEV` for protected content.
pub(super) fn create(request: &mut XeRequest<'_, '_>, args: &mut uapi::ExecQueueCreate) -> Result<(), Error> {
    only_bits("the flags of a queue", args.flags, uapi::EXEC_QUEUE_LOW_LATENCY_HINT)?;
    must_be_zero("reserved", args.reserved[0] | args.reserved[1])?;
    let count = u32::from(args.width) * u32::from(args.num_placements);
    if count == 0 || count > MAX_PLACEMENTS {
        return Err(Error::invalid("the number of engines", count));
    }
    let memory = request.call.memory();
    let engines = memory.read_array::<EngineClassInstance>(args.instances, count as usize)?;
    let mut properties = Properties { priority: NORMAL_PRIORITY };
    let name = uapi::EXEC_QUEUE_EXTENSION_SET_PROPERTY;
    let most = max_priority(request.file.is_privileged());
    extension::for_each_property(memory, args.extensions, name, |property, value| {
        set_property(&mut properties, property, value, most)
    })?;
    // Every engine class has one instance: a parallel queue would need as many engines as its width.
    if args.width != 1 {
        return Err(Error::invalid("the width of a queue", args.width));
    }
    let file = request.file;
    let driver = file.driver();
    let vm = file.data().vm(args.vm_id)?;
    let banned = Arc::new(AtomicBool::new(false));
    let kind = if engines[0].engine_class == uapi::engine_class::VM_BIND {
        let only = EngineClassInstance { engine_class: uapi::engine_class::VM_BIND, ..Default::default() };
        if engines != [only] {
            return Err(Error::refused(Errno::INVAL, "a bind queue has one placement, instance 0"));
        }
        Kind::Bind(BindQueue::new(driver.bind_scheduler()))
    } else {
        let class = one_class(&engines)?;
        Kind::Engine(EngineQueue::new(driver, &vm, class, properties.priority, &banned)?)
    };
    let queue = Arc::new(ExecQueue { vm, kind, banned, _live: driver.kinds().exec_queues.enter() });
    args.exec_queue_id = file.data().add_queue(queue)?;
    Ok(())
}

/// The class that all placements share.
fn one_class(engines: &[EngineClassInstance]) -> Result<EngineClass, Error> {
    let class = engine_class(&engines[0])?;
    for engine in &engines[1..] {
        if engine_class(engine)? != class {
            return Err(Error::invalid("an engine's class next to another", engine.engine_class));
        }
    }
    Ok(class)
}

/// `most` is the highest priority that the client can ask for.
fn set_property(properties: &mut Properties, property: u32, value: u64, most: u32) -> Result<(), Error> {
    match property {
        uapi::EXEC_QUEUE_PROPERTY_PRIORITY => {
            if value > u64::from(MAX_PRIORITY) {
                return Err(Error::invalid("a priority", value));
            }
            if value > u64::from(most) {
                return Err(Error::refused(Errno::PERM, "the priority takes privileges"));
            }
            properties.priority = value as u32;
        }
        uapi::EXEC_QUEUE_PROPERTY_TIMESLICE => {
            if !TIMESLICE_US.contains(&value) {
                return Err(Error::invalid("a time slice in microseconds", value));
            }
            // Engines slice by their own clock; a queue's wish is checked and has no further effect.
        }
        uapi::EXEC_QUEUE_PROPERTY_PXP_TYPE => extension::protected_content(value)?,
        unknown => return Err(Error::invalid("a property of a queue", unknown)),
    }
    Ok(())
}

/// `DRM_IOCTL_XE_EXEC_QUEUE_DESTROY`.
///
/// # Errors
/// `EINVAL` for a field that must be zero, `ENOENT` for an unknown queue.
pub(super) fn destroy(request: &mut XeRequest<'_, '_>, args: &mut uapi::Destroy) -> Result<(), Error> {
    must_be_zero("pad", args.pad)?;
    must_be_zero("reserved", args.reserved[0] | args.reserved[1])?;
    request.file.data().remove_queue(args.id)?.kill();
    Ok(())
}

/// `DRM_IOCTL_XE_EXEC_QUEUE_GET_PROPERTY`.
///
/// # Errors
/// `EINVAL` for an unknown property or a field that must be zero, `ENOENT` for an unknown queue.
pub(super) fn get_property(
    request: &mut XeRequest<'_, '_>,
    args: &mut uapi::ExecQueueGetProperty,
) -> Result<(), Error> {
    must_be_zero("extensions", args.extensions)?;
    must_be_zero("reserved", args.reserved[0] | args.reserved[1])?;
    let queue = request.file.data().queue(args.exec_queue_id)?;
    match args.property {
        uapi::EXEC_QUEUE_GET_PROPERTY_BAN => args.value = u64::from(queue.is_banned()),
        unknown => return Err(Error::invalid("a property to get", unknown)),
    }
    Ok(())
}
