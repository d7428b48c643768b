//! VM_BIND: changes of an address space, one or many at once, now or when fences have signalled.
//!
//! ```text
//!  check arguments ─► look up buffers, syncs ─► lock the VM ─► lock reservations ─► make what is mapped resident
//!   ─► put the changes on record (a batch) ─► reserve page-table nodes ─► commit
//!   ─► fence on every reservation ─► bind job: page tables, TLB ─► install out-syncs
//! ```
//!
//! Up to the commit nothing has changed and any step may fail, the batch taking back what it did; from then on nothing
//! can. The job runs before the call returns if nothing is left to wait for: a bind without unsatisfied fences is in
//! effect when the ioctl returns. Otherwise it runs when the last of them signals, in the order of its queue.

use lapidary::exec::{Duplicates, Exec};
use lapidary::fence::Fence;
use lapidary::gpuvm::{MappingRef, VaRange, VmBo};
use lapidary::residency::RegionId;
use lapidary::resv::Usage;

use super::bind_args::{self, Attributes, CheckedOp};
use super::bind_queue::BindJob;
use super::client_pages::ClientPages;
use super::object::Object;
use super::pat::Coherency;
use super::sync::{Syncs, Use};
use super::uapi::{self, VmBindOp};
use super::vm::{Tag, Vm, XeVm};
use super::{XeRequest, region_id, tables};
use crate::core::{Error, must_be_zero};
use crate::transport::Errno;

/// Most operations in one call; more is `ENOBUFS`, which tells clients to bind in smaller steps.
const MAX_BINDS: u32 = 64 << 10;

/// Most page-table entries that a bind may be going to write when it has to wait: on the kernel's driver they come from a
/// pool of so many, and programs count on `ENOBUFS` where it is used up.
const MAX_WAITING_ENTRIES: u64 = 192 << 10;

/// One operation with everything looked up.
enum Op {
    Map { object: Object, offset: u64, range: VaRange, tag: Tag },
    MapNull { range: VaRange, tag: Tag },
    Unmap { range: VaRange },
    UnmapObject { object: Object },
    Prefetch { range: VaRange, region: Option<RegionId> },
}

/// `DRM_IOCTL_XE_VM_BIND`.
///
/// # Errors
/// `ENOENT` for an unknown VM, queue, buffer or syncobj, `EFAULT` for a bad pointer or a userptr that isn't there,
/// `ENOMEM` and `ENOBUFS` for want of memory, `EINTR`, `EINVAL` for anything wrong with a field.
pub(super) fn vm_bind(request: &mut XeRequest<'_, '_>, args: &mut uapi::VmBind) -> Result<(), Error> {
    must_be_zero("extensions", args.extensions)?;
    must_be_zero("pad", args.pad)?;
    must_be_zero("pad2", args.pad2)?;
    must_be_zero("reserved", args.reserved[0] | args.reserved[1])?;
    let checked = read_ops(request, args)?;
    let file = request.file.data();
    let vm = file.vm(args.vm_id)?;
    let queue = match args.exec_queue_id {
        0 => None,
        id => Some(file.queue(id)?),
    };
    let queue = match &queue {
        None => vm.bind_queue(),
        Some(queue) if std::sync::Arc::ptr_eq(queue.vm(), &vm) => queue.bind()?,
        Some(_) => return Err(Error::refused(Errno::INVAL, "the bind queue belongs to another VM")),
    };
    let syncs = Syncs::read(request, args.syncs, args.num_syncs, Use::Bind, vm.is_long_running())?;
    if checked.is_empty() {
        if args.num_syncs == 0 {
            return Err(Error::refused(Errno::INVAL, "neither operations nor syncs"));
        }
        let done = queue.arm()?.push(None, syncs.waits.iter().cloned());
        queue.catch_up();
        syncs.install(&done);
        return Ok(());
    }
    let ops = checked.iter().map(|op| look_up(request, &vm, op)).collect::<Result<Vec<_>, _>>()?;
    let done = submit(request, &vm, queue, ops, &syncs)?;
    syncs.install(&done);
    Ok(())
}

/// The operations as the client gave them, each checked by itself.
fn read_ops(request: &XeRequest<'_, '_>, args: &uapi::VmBind) -> Result<Vec<CheckedOp>, Error> {
    let driver = request.file.driver();
    let regions = driver.region_mask();
    let check = |op: &VmBindOp| bind_args::check(op, driver.pat(), regions);
    match args.num_binds {
        0 => Ok(Vec::new()),
        1 => Ok(vec![check(&args.bind)?]),
        many if many > MAX_BINDS => Err(Error::refused(Errno::NOBUFS, "more operations than one call takes")),
        many => {
            // The union's first eight bytes are the array's address.
            let vector = args.bind.extensions;
            let ops = request.call.memory().read_array::<VmBindOp>(vector, many as usize)?;
            ops.iter().map(check).collect()
        }
    }
}

fn look_up(request: &XeRequest<'_, '_>, vm: &Vm, op: &CheckedOp) -> Result<Op, Error> {
    let buffer = |handle| -> Result<Object, Error> {
        Ok(Object::Buffer(request.file.buffer(handle)?.object().clone()))
    };
    Ok(match *op {
        CheckedOp::MapObject { handle, offset, range, attributes } => {
            let object = buffer(handle)?;
            check_mapping(&object, vm, offset, range, attributes)?;
            Op::Map { object, offset, range, tag: tag(attributes) }
        }
        CheckedOp::MapNull { range, attributes } => Op::MapNull { range, tag: tag(attributes) },
        CheckedOp::MapHost { address, range, attributes } => {
            let driver = request.file.driver();
            let pages = ClientPages::new(driver, request.call, address, range.len(), vm.reservation())?;
            Op::Map { object: Object::Client(pages), offset: 0, range, tag: tag(attributes) }
        }
        CheckedOp::Unmap { range } => Op::Unmap { range },
        CheckedOp::UnmapObject { handle } => Op::UnmapObject { object: buffer(handle)? },
        CheckedOp::Prefetch { range, region } => Op::Prefetch { range, region: region.map(region_id) },
    })
}

fn tag(attributes: Attributes) -> Tag {
    Tag { read_only: attributes.read_only, pat_index: attributes.pat_index }
}

/// Whether this part of the buffer may be mapped there.
fn check_mapping(
    object: &Object,
    vm: &Vm,
    offset: u64,
    range: VaRange,
    attributes: Attributes,
) -> Result<(), Error> {
    let Object::Buffer(buffer) = object else { return Ok(()) };
    if !buffer.owns_resv() && !buffer.resv().ptr_eq(vm.reservation()) {
        return Err(Error::refused(Errno::INVAL, "the buffer belongs to another VM"));
    }
    if offset.checked_add(range.len()).is_none_or(|end| end > buffer.size()) {
        return Err(Error::invalid("the part of the buffer to map", offset));
    }
    let traits = buffer.data().traits();
    must_be_zero(
        "the alignment of a mapping of device memory",
        (offset | range.start().raw() | range.len()) % traits.alignment,
    )?;
    if traits.cached && attributes.pat.coherency == Coherency::None {
        return Err(Error::invalid(
            "the PAT index of a CPU-cached buffer (it must be coherent)",
            attributes.pat_index,
        ));
    }
    if traits.uncompressed && attributes.pat.compressed {
        return Err(Error::invalid("the PAT index of a buffer without compression", attributes.pat_index));
    }
    Ok(())
}

/// Puts the operations on record and hands their page-table work to the bind queue. Answers the fence of its end.
fn submit(
    request: &XeRequest<'_, '_>,
    vm: &Vm,
    queue: &super::bind_queue::BindQueue,
    ops: Vec<Op>,
    syncs: &Syncs,
) -> Result<Fence, Error> {
    let interrupt = request.call.interrupt();
    let mut guard = vm.lock()?;
    let ties = ops.iter().map(|op| tie(vm.gpu_vm(), op)).collect::<Result<Vec<_>, _>>()?;
    let (mut exec, ()) = Exec::run(Duplicates::Allow, interrupt, |exec| -> Result<(), Error> {
        guard.locked().lock_in(exec, 1)?;
        for (op, tie) in ops.iter().zip(&ties) {
            match (op, tie) {
                (Op::Map { object, .. }, Some(tie)) => {
                    if tie.is_external() {
                        exec.prepare(object.reservation(), 1)?;
                    }
                    object.make_resident(request.file.driver().residency(), exec, interrupt)?;
                }
                (Op::Prefetch { range, region }, _) => {
                    vm.prefetch(&guard, *range, *region, exec, interrupt)?;
                }
                _ => {}
            }
        }
        Ok(())
    })?;
    let mut batch = guard.batch();
    for (op, tie) in ops.iter().zip(&ties) {
        match (op, tie) {
            (Op::Map { offset, range, tag, .. }, Some(tie)) => {
                batch.map(&MappingRef::object(*range, tie, *offset, *tag))?;
            }
            (Op::MapNull { range, tag }, _) => batch.map(&MappingRef::null(*range, *tag))?,
            (Op::Unmap { range }, _) => batch.unmap(*range)?,
            (Op::UnmapObject { .. }, Some(tie)) => batch.unmap_object(tie)?,
            _ => {}
        }
    }
    let must_wait = syncs.waits.iter().any(|fence| !fence.is_signalled());
    if must_wait && tables::entries(batch.steps()) > MAX_WAITING_ENTRIES {
        return Err(Error::refused(Errno::NOBUFS, "a bind that is too large to wait"));
    }
    let nodes = vm.reserve_nodes(batch.steps())?;
    let armed = queue.arm()?;
    let steps = batch.commit();
    let places = vm.footprints(&steps);
    let mut waits = syncs.waits.clone();
    // The VM is locked for changes, so the order of the calls is that of this list.
    waits.extend(vm.pending().before(&places));
    guard.locked().add_fence(&mut exec, armed.fence(), Usage::Bookkeep, Usage::Bookkeep);
    let done = armed.push(Some(BindJob::new(vm, steps, nodes)), waits);
    vm.pending().add(&places, &done);
    drop(exec);
    drop(guard);
    // If a worker happened to be in the middle of this queue, it runs what is ready before the call returns.
    queue.catch_up();
    Ok(done)
}

/// The tie of an operation's buffer to the address space. Unmapping a buffer that has none changes nothing.
fn tie(vm: &XeVm, op: &Op) -> Result<Option<VmBo<super::vm::XeTypes>>, Error> {
    match op {
        Op::Map { object, .. } => Ok(Some(vm.obtain(object)?)),
        Op::UnmapObject { object } => Ok(vm.find(object)),
        Op::MapNull { .. } | Op::Unmap { .. } | Op::Prefetch { .. } => Ok(None),
    }
}
