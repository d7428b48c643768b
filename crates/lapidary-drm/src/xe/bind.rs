//! VM_BIND: changes of an address space, one or many at once, now or when fences have signalled.
//!
//! ```text
//!  check arguments ─► look up buffers, syncs ─► lock the VM ─► lock reservations ─► make what is mapped resident
//!   ─► put the changes on record (a batch) ─► reserve page-table nodes ─► commit
//!   ─► fence on these reservations ─► bind job: page tables, TLB ─► install out-syncs
//! ```
//!
//! The reservations are the VM's own and those of what is mapped now or will be in the ranges concerned: others go on meanwhile.
//!
//! Up to the commit nothing has changed and any step may fail, the batch taking back what it did; from then on nothing
//! can. A client can have a call fail on purpose (`BIND_FLAG_FORCE_ERROR`) to see that. The job runs before the call returns if nothing is left to wait for: a bind without unsatisfied fences is in
//! effect when the ioctl returns. Otherwise it runs when the last of them signals, in the order of its queue.

use lapidary::exec::{Duplicates, Exec};
use lapidary::fence::Fence;
use lapidary::gpuvm::{Batch, MappingRef, VaRange, VmBo, VmGuard};
use lapidary::residency::RegionId;
use lapidary::resv::Usage;

use super::bind_args::{self, Attributes, CheckedOp};
use super::bind_queue::{BindJob, BindQueue};
use super::client_pages::ClientPages;
use super::object::Object;
use super::pat::Coherency;
use super::pending_binds::Place;
use super::sync::{Syncs, Use};
use super::uapi::{self, VmBindOp};
use super::vm::{Mode, Tag, Vm, XeTypes, XeVm};
use super::{XeRequest, region_id, tables};
use crate::core::{Error, must_be_zero};
use crate::transport::Errno;

/// Most operations in one call; more is `ENOBUFS`, which tells clients to bind in smaller steps.
const MAX_BINDS: u32 = 64 << 10;

/// Where a call fails that is asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failpoint {
    /// Reservations are locked, buffers in place.
    Locked,
    /// The changes are on record.
    Recorded,
    /// Page-table nodes are set aside.
    Reserved,
}

impl Failpoint {
    /// All there are.
    pub(super) const ALL: [Self; 3] = [Self::Locked, Self::Recorded, Self::Reserved];

    fn pass(self, fails_at: Option<Self>) -> Result<(), Error> {
        if fails_at == Some(self) {
            return Err(Error::refused(Errno::NOSPC, "a failure that was asked for"));
        }
        Ok(())
    }
}

/// One operation with everything looked up.
enum Op {
    Map { object: Object, offset: u64, range: VaRange, tag: Tag },
    MapNull { range: VaRange, tag: Tag },
    Unmap { range: VaRange },
    UnmapObject { object: Object },
    Prefetch { range: VaRange, region: Option<RegionId> },
}

impl Op {
    fn only_unmaps(&self) -> bool {
        matches!(self, Self::Unmap { .. } | Self::UnmapObject { .. })
    }
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
    let ops = read_ops(request, args)?;
    let checked = ops.iter().map(|op| check(request, op)).collect::<Result<Vec<_>, _>>()?;
    let forced = ops.iter().any(|op| op.flags & uapi::BIND_FLAG_FORCE_ERROR != 0);
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
        let armed = with_room(&vm, queue, || queue.arm())?;
        let done = armed.push(None, syncs.waits.iter().cloned());
        queue.catch_up_to(&done);
        syncs.install(&done);
        return Ok(());
    }
    let ops = checked.iter().map(|op| look_up(request, &vm, op)).collect::<Result<Vec<_>, _>>()?;
    let fails_at = forced.then(|| request.file.driver().next_failpoint());
    let submission = Submission { ops, fails_at, waits: &syncs.waits };
    let done = with_room(&vm, queue, || submit(request, &vm, queue, &submission))?;
    syncs.install(&done);
    Ok(())
}

/// The operations as the client gave them.
fn read_ops(request: &XeRequest<'_, '_>, args: &uapi::VmBind) -> Result<Vec<VmBindOp>, Error> {
    match args.num_binds {
        0 => Ok(Vec::new()),
        1 => Ok(vec![args.bind]),
        many if many > MAX_BINDS => Err(Error::refused(Errno::NOBUFS, "more operations than one call takes")),
        // The union's first eight bytes are the array's address.
        many => Ok(request.call.memory().read_array(args.bind.extensions, many as usize)?),
    }
}

fn check(request: &XeRequest<'_, '_>, op: &VmBindOp) -> Result<CheckedOp, Error> {
    let driver = request.file.driver();
    bind_args::check(op, driver.pat(), driver.region_mask())
}

fn look_up(request: &XeRequest<'_, '_>, vm: &Vm, op: &CheckedOp) -> Result<Op, Error> {
    let buffer = |handle| -> Result<Object, Error> {
        Ok(Object::Buffer(request.file.buffer(handle)?.object().clone()))
    };
    Ok(match *op {
        CheckedOp::MapObject { handle, offset, range, attributes } => {
            let object = buffer(handle)?;
            check_mapping(&object, vm, offset, range, attributes)?;
            Op::Map { object, offset, range, tag: tag(vm, attributes) }
        }
        CheckedOp::MapNull { range, attributes } => Op::MapNull { range, tag: tag(vm, attributes) },
        CheckedOp::MapHost { address, range, attributes } => {
            let driver = request.file.driver();
            let pages = ClientPages::new(driver, request.call, address, range.len(), vm.reservation())?;
            Op::Map { object: Object::Client(pages), offset: 0, range, tag: tag(vm, attributes) }
        }
        CheckedOp::Unmap { range } => Op::Unmap { range },
        CheckedOp::UnmapObject { handle } => Op::UnmapObject { object: buffer(handle)? },
        CheckedOp::Prefetch { range, region } => Op::Prefetch { range, region: region.map(region_id) },
    })
}

/// Where faults are resolved, entries are written when an access needs them, unless the client wants them at once.
fn tag(vm: &Vm, attributes: Attributes) -> Tag {
    let on_fault = vm.mode().resolves_faults() && !attributes.immediate;
    Tag { read_only: attributes.read_only, pat_index: attributes.pat_index, on_fault }
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

/// What a call wants done.
struct Submission<'a> {
    ops: Vec<Op>,
    fails_at: Option<Failpoint>,
    waits: &'a [Fence],
}

/// Puts the operations on record and hands their page-table work to the bind queue. Answers the fence of its end.
fn submit(
    request: &XeRequest<'_, '_>,
    vm: &Vm,
    queue: &BindQueue,
    submission: &Submission<'_>,
) -> Result<Fence, Error> {
    let &Submission { ref ops, fails_at, waits } = submission;
    let interrupt = request.call.interrupt();
    let mut guard = vm.lock()?;
    let ties = ops.iter().map(|op| tie(vm.gpu_vm(), op)).collect::<Result<Vec<_>, _>>()?;
    let (mut exec, ()) = Exec::run(Duplicates::Allow, interrupt, |exec| {
        lock(vm, &guard, ops, &ties, exec)?;
        put_in_place(request, vm, &guard, ops, exec)
    })?;
    Failpoint::Locked.pass(fails_at)?;
    vm.set_only_unmaps(&guard, ops.iter().all(Op::only_unmaps));
    let mut batch = guard.batch();
    record(&mut batch, ops, &ties)?;
    Failpoint::Recorded.pass(fails_at)?;
    let must_wait = waits.iter().any(|fence| !fence.is_signalled());
    let (mut entries, mut loan) = (0, None);
    let others_wait = !vm.pending().is_empty();
    if must_wait || others_wait {
        entries = tables::entries(batch.steps());
        if !vm.pending().has_room(entries) {
            return Err(Error::refused(Errno::NOBUFS, "more page-table work than may wait"));
        }
        let bytes = BindJob::bytes(batch.steps().len());
        loan = Some(vm.allowance().lend(bytes).ok_or(Error::OutOfMemory("one more bind that waits"))?);
    }
    let nodes = vm.reserve_nodes(batch.steps())?;
    Failpoint::Reserved.pass(fails_at)?;
    let armed = queue.arm()?;
    let steps = batch.commit();
    let place = Place::new(&vm.footprints(&steps), entries);
    // The VM is locked for changes, so the order of the calls is that of this list.
    let mut waits = waits.to_vec();
    waits.extend(vm.pending().add(place, armed.fence(), queue));
    guard.locked().add_fence(&mut exec, armed.fence(), Usage::Bookkeep, Usage::Bookkeep);
    drop(exec);
    drop(guard);
    // The page-table work takes none of these locks: others may bind and submit meanwhile.
    let done = armed.push(Some(BindJob::new(vm, steps, nodes, loan)), waits);
    if !must_wait {
        carry_out_what_is_ready(vm, queue, &done);
    }
    Ok(done)
}

/// Does something that may find too much waiting already. What only waits for a thread to carry it out is no reason to
/// refuse: it is carried out, and then there may be room.
fn with_room<T>(vm: &Vm, queue: &BindQueue, attempt: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    match attempt() {
        Err(error) if error.errno() == Errno::NOBUFS => {}
        outcome => return outcome,
    }
    let (queues, _) = vm.pending().queues();
    for (queue, latest) in queues {
        queue.catch_up_to(&latest);
    }
    queue.catch_up_to(&queue.latest());
    attempt()
}

/// A bind that waits for no fence is in effect when the call returns. It may come after one of another call: in the same
/// queue, or in another where they meet. If that has begun, or could, it is carried out first.
fn carry_out_what_is_ready(vm: &Vm, queue: &BindQueue, done: &Fence) {
    queue.catch_up_to(done);
    let mut before = usize::MAX;
    while !done.is_signalled() {
        let (queues, waiting) = vm.pending().queues();
        if waiting >= before {
            // The rest waits for fences.
            return;
        }
        before = waiting;
        for (queue, latest) in queues {
            queue.catch_up_to(&latest);
        }
    }
}

/// Locks the reservations of what the operations concern: what is mapped in their ranges, and what is going to be.
fn lock<'r>(
    vm: &'r Vm,
    guard: &VmGuard<'_, XeTypes>,
    ops: &[Op],
    ties: &'r [Option<VmBo<XeTypes>>],
    exec: &mut Exec<'r>,
) -> Result<(), Error> {
    let locked = guard.locked();
    if vm.mode() == Mode::LongRunning {
        // All of it: see `put_in_place`.
        locked.lock_in(exec, 1)?;
    }
    exec.prepare(vm.reservation(), 1)?;
    for (op, tie) in ops.iter().zip(ties) {
        if let Some(tie) = tie {
            exec.prepare(tie.object().reservation(), 1)?;
        }
        match op {
            Op::Map { range, .. }
            | Op::MapNull { range, .. }
            | Op::Unmap { range }
            | Op::Prefetch { range, .. } => {
                locked.lock_range_in(exec, *range, 1)?;
            }
            Op::UnmapObject { .. } => {}
        }
    }
    Ok(())
}

/// Gives what the operations map its memory. Jobs of a long-running VM need everything in place while they run: what was
/// evicted comes back with the next bind that maps, or the bind fails.
fn put_in_place(
    request: &XeRequest<'_, '_>,
    vm: &Vm,
    guard: &VmGuard<'_, XeTypes>,
    ops: &[Op],
    exec: &mut Exec<'_>,
) -> Result<(), Error> {
    let (driver, interrupt) = (request.file.driver(), request.call.interrupt());
    let companions = vm.companions_at_bind(ops.len());
    let mut maps = false;
    for op in ops {
        match op {
            Op::Map { object, tag, .. } if !tag.on_fault => {
                object.make_resident(driver.residency(), exec, companions, interrupt)?;
                maps = true;
            }
            Op::Prefetch { range, region } => vm.prefetch(guard, *range, *region, exec, interrupt)?,
            _ => {}
        }
    }
    if maps && vm.mode() == Mode::LongRunning {
        vm.validate(&guard.locked(), exec, interrupt)?;
    }
    Ok(())
}

/// Puts the operations on record, one after the other.
fn record(
    batch: &mut Batch<'_, '_, XeTypes>,
    ops: &[Op],
    ties: &[Option<VmBo<XeTypes>>],
) -> Result<(), Error> {
    for (op, tie) in ops.iter().zip(ties) {
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
    Ok(())
}

/// The tie of an operation's buffer to the address space. Unmapping a buffer that has none changes nothing.
fn tie(vm: &XeVm, op: &Op) -> Result<Option<VmBo<XeTypes>>, Error> {
    match op {
        Op::Map { object, .. } => Ok(Some(vm.obtain(object)?)),
        Op::UnmapObject { object } => Ok(vm.find(object)),
        Op::MapNull { .. } | Op::Unmap { .. } | Op::Prefetch { .. } => Ok(None),
    }
}
