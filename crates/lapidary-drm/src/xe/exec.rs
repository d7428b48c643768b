//! EXEC: a batch buffer for an engine.
//!
//! ```text
//!  check arguments ─► look up queue, syncs ─► lock the VM (shared) ─► lock reservations ─► bring evicted buffers back
//!   ─► make the job ─► its fence on every reservation ─► install out-syncs ─► queue it
//! ```
//!
//! Up to the job nothing has changed and any step may fail; from then on nothing can. Where page faults are resolved, no
//! reservation is locked: what a job needs is brought when it is accessed.

use lapidary::exec::{Duplicates, Exec};
use lapidary::fence::Fence;
use lapidary::resv::Usage;
use lapidary::sched::Armed;
use lapidary_gpu::GpuVa;

use super::XeRequest;
use super::engine_queue::{Batch, EngineBackend, EngineQueue};
use super::exec_queue::ExecQueue;
use super::sync::{Syncs, Use};
use super::uapi;
use crate::core::{Error, must_be_zero};
use crate::transport::Errno;

/// `DRM_IOCTL_XE_EXEC`.
///
/// # Errors
/// `ECANCELED` when the queue is banned, `ENOENT` for an unknown queue, syncobj or a closed VM, `ENOMEM` when evicted
/// buffers can't be brought back, `EOPNOTSUPP` for a sync that can't be used this way, `ENOBUFS` when too many jobs of the
/// queue wait, `EINTR`, `EFAULT`, `EINVAL` for a field that is wrong.
pub(super) fn exec(request: &mut XeRequest<'_, '_>, args: &mut uapi::Exec) -> Result<(), Error> {
    must_be_zero("extensions", args.extensions)?;
    must_be_zero("pad", args.pad[0] | args.pad[1] | args.pad[2])?;
    must_be_zero("reserved", args.reserved[0] | args.reserved[1])?;
    let queue = request.file.data().queue(args.exec_queue_id)?;
    let engine = queue.engine()?;
    if args.num_batch_buffer > 1 {
        return Err(Error::invalid("the number of batches for a queue of width 1", args.num_batch_buffer));
    }
    if queue.is_banned() {
        return Err(Error::refused(Errno::CANCELED, "the queue is banned"));
    }
    let syncs = Syncs::read(request, args.syncs, args.num_syncs, Use::Exec, queue.vm().is_long_running())?;
    if args.num_batch_buffer == 0 {
        return mark(engine, syncs);
    }
    let batch = Batch { address: GpuVa::new(args.address), fence: syncs.gpu_fence() };
    let job = prepare(request, &queue, &syncs.waits)?;
    let done = job.armed.push(engine.job(Some(batch)), job.waits);
    syncs.install(&done);
    Ok(())
}

/// A submission without a batch: its syncs learn when what is queued so far is done. It has its place in the queue like
/// any other, so calls complete in their order.
fn mark(engine: &EngineQueue, syncs: Syncs) -> Result<(), Error> {
    if syncs.gpu_fence().is_some() {
        return Err(Error::Unsupported("a user fence without a batch that writes it"));
    }
    let done = engine.arm()?.push(engine.job(None), syncs.waits.iter().cloned());
    syncs.install(&done);
    Ok(())
}

/// A job's place in its queue, and what it waits for.
struct Prepared {
    armed: Armed<EngineBackend>,
    waits: Vec<Fence>,
}

/// Makes everything that is mapped resident, and takes a place in the queue whose fence keeps it so. Where faults are
/// resolved, a job needs nothing in place and keeps nothing there.
fn prepare(request: &XeRequest<'_, '_>, queue: &ExecQueue, waits: &[Fence]) -> Result<Prepared, Error> {
    let vm = queue.vm();
    let interrupt = request.call.interrupt();
    let shared = vm.lock_shared()?;
    if vm.mode().resolves_faults() {
        return Ok(Prepared { armed: queue.engine()?.arm()?, waits: waits.to_vec() });
    }
    let (mut exec, ()) = Exec::run(Duplicates::Allow, interrupt, |exec| {
        shared.locked().lock_in(exec, 1)?;
        vm.validate(&shared.locked(), exec, interrupt)
    })?;
    // What the kernel's side does with the buffers comes first.
    let mut waits = waits.to_vec();
    exec.guards().for_each(|guard| waits.extend(guard.fences(Usage::Kernel)));
    let armed = queue.engine()?.arm()?;
    shared.locked().add_fence(&mut exec, armed.fence(), Usage::Bookkeep, Usage::Bookkeep);
    Ok(Prepared { armed, waits })
}
