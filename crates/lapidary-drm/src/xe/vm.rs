//! VMs: a client's address space. The set of its mappings (`lapidary::gpuvm`) and its page tables
//! (`lapidary_gpu::pagetable`) together, with the queue for binds that name none.
//!
//! What is mapped may be more than there is memory for. When that is noticed depends on the [`Mode`]:
//!
//! | mode | VM_BIND | EXEC | an access |
//! | --- | --- | --- | --- |
//! | fenced | a single operation may evict others of its VM | brings everything back, or fails | |
//! | long-running | brings everything back, or fails | brings everything back, or fails | |
//! | faulting | nothing, unless immediate | needs nothing | faults, and evicts others of its VM if need be |
//!
//! An immediate bind where faults are resolved is like one of fenced mode, but evicts none of its VM where over-commitment
//! is ruled out: so a client can find out how much memory there is.
//!
//! A fenced job's fence is in the reservations of all that is mapped, so nothing moves while it runs. So is a long-running
//! one's, which may never signal. In faulting mode jobs are in no reservation: what moves leaves no entry behind, and the
//! next access faults (see [`page_faults`](super::page_faults)).
//!
//! A VM lives as long as a handle, a queue or a job needs it. VM_DESTROY and the end of its file close it: nothing new
//! begins, and what is mapped is unmapped, on the worker, once the jobs that were submitted have ended; those of faulting
//! mode, whose queues are gone by then, find nothing mapped any more. Binds that wait
//! for fences are jobs like others: they hold what they are going to unmap, which must not be another's while page
//! tables still lead there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lapidary::exec::Exec;
use lapidary::fence::{self, Interrupt};
use lapidary::gpuvm::{
    GpuVm, Locked, MappingRef, ObjectId, StepList, Steps, VaRange, VmBo, VmBoList, VmConfig, VmGuard,
    VmSharedGuard, VmTypes,
};
use lapidary::residency::{Companions, LruGroup, RegionId};
use lapidary::resv::{Reservation, Usage};
use lapidary_gpu::pagetable::{AddressSpace, Nodes};
use parking_lot::{Mutex, MutexGuard};

use super::allowance::Allowance;
use super::bind_queue::BindQueue;
use super::object::Object;
use super::page_faults::FaultRecords;
use super::pending_binds::PendingBinds;
use super::profile::VA_BITS;
use super::stats::Counters;
use super::tables::Footprint;
use super::{XeDriver, XeRequest, tables, uapi};
use crate::core::census::Live;
use crate::core::{Error, must_be_zero, only_bits};
use crate::transport::Errno;

/// Flags of VM_CREATE.
const FLAGS: u32 = uapi::VM_CREATE_SCRATCH_PAGE
    | uapi::VM_CREATE_LR_MODE
    | uapi::VM_CREATE_FAULT_MODE
    | uapi::VM_CREATE_NO_VM_OVERCOMMIT;

/// The types of Xe's address spaces.
pub struct XeTypes;

/// What a mapping says beyond its place and its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Writes fault.
    pub(super) read_only: bool,
    /// Index into the page attribute table.
    pub(super) pat_index: u16,
    /// Entries are written when an access faults.
    pub(super) on_fault: bool,
}

/// How jobs of an address space, and the memory of what it maps, go together. See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Jobs end, and their fences keep what is mapped where it is.
    Fenced,
    /// Jobs may run without end; what is mapped is in place while they do.
    LongRunning,
    /// Jobs may run without end; what is mapped gets its place when an access faults.
    Faulting {
        /// Whether an immediate bind may evict what is bound already.
        overcommit: bool,
    },
}

impl Mode {
    /// # Errors
    /// `EINVAL` for flags that don't go together.
    fn of(flags: u32) -> Result<Self, Error> {
        let has = |flag| flags & flag != 0;
        let faulting = has(uapi::VM_CREATE_FAULT_MODE);
        let contradiction = faulting && (has(uapi::VM_CREATE_SCRATCH_PAGE) || !has(uapi::VM_CREATE_LR_MODE))
            || has(uapi::VM_CREATE_NO_VM_OVERCOMMIT) && !faulting;
        if contradiction {
            return Err(Error::invalid("the flags of a VM, together", flags));
        }
        Ok(match (faulting, has(uapi::VM_CREATE_LR_MODE)) {
            (true, _) => Self::Faulting { overcommit: !has(uapi::VM_CREATE_NO_VM_OVERCOMMIT) },
            (false, true) => Self::LongRunning,
            (false, false) => Self::Fenced,
        })
    }

    /// Whether accesses that fault are made again once their mapping is in place.
    pub(super) fn resolves_faults(self) -> bool {
        matches!(self, Self::Faulting { .. })
    }
}

/// The driver's part of an address space.
pub struct Space {
    /// The page tables.
    pub(super) tables: Arc<AddressSpace>,
    /// How it deals with memory.
    pub(super) mode: Mode,
    /// Whose it is.
    pub(super) allowance: Arc<Allowance>,
    /// Whether the call that changes it only unmaps. Written and read with the VM locked for changes.
    only_unmaps: AtomicBool,
}

/// Xe's address spaces.
pub(super) type XeVm = GpuVm<XeTypes>;

impl VmTypes for XeTypes {
    type Object = Object;
    type Tag = Tag;
    type Space = Space;

    fn id(object: &Object) -> ObjectId {
        object.id()
    }

    fn reservation(object: &Object) -> Option<&Reservation> {
        Some(object.reservation())
    }

    fn vm_bos(object: &Object) -> Option<&VmBoList<Self>> {
        match object {
            Object::Buffer(buffer) => Some(buffer.data().vm_bos()),
            Object::Client(_) => None,
        }
    }

    fn teardown(space: &Space) -> impl Steps<Self> {
        tables::Teardown { space: Arc::clone(&space.tables) }
    }

    fn charge(space: &Space, bytes: usize) -> bool {
        match space.only_unmaps.load(Ordering::Relaxed) {
            true => space.allowance.take_to_unmap(bytes as u64),
            false => space.allowance.take(bytes as u64),
        }
    }

    fn credit(space: &Space, bytes: usize) {
        space.allowance.give_back(bytes as u64);
    }
}

/// A client's address space.
pub(super) struct Vm {
    gpu_vm: XeVm,
    bind_queue: BindQueue,
    residency: super::Residency,
    counters: Arc<Counters>,
    worker: lapidary::reaper::Reaper,
    lru: LruGroup,
    pending: Mutex<PendingBinds>,
    faults: FaultRecords,
    closed: AtomicBool,
    _live: Live,
}

impl Vm {
    fn new(driver: &XeDriver, allowance: &Arc<Allowance>, flags: u32) -> Result<Arc<Self>, Error> {
        let mode = Mode::of(flags)?;
        let scratch = flags & uapi::VM_CREATE_SCRATCH_PAGE != 0;
        let tables = driver.gpu().create_space_within(allowance.clone(), scratch)?;
        let (allowance, only_unmaps) = (Arc::clone(allowance), AtomicBool::new(false));
        let space = Space { tables, mode, allowance, only_unmaps };
        let config = VmConfig { limit: driver.max_mappings(), ..VmConfig::bits(VA_BITS) };
        let gpu_vm = GpuVm::new(config, Reservation::new(), space, driver.worker());
        driver.counters().vms_created.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Self {
            gpu_vm,
            bind_queue: BindQueue::new(driver.bind_scheduler()),
            residency: driver.residency().clone(),
            counters: Arc::clone(driver.counters()),
            worker: driver.worker().clone(),
            lru: LruGroup::new(),
            pending: Mutex::default(),
            faults: FaultRecords::default(),
            closed: AtomicBool::new(false),
            _live: driver.kinds().vms.enter(),
        }))
    }

    /// The set of mappings.
    pub(super) fn gpu_vm(&self) -> &XeVm {
        &self.gpu_vm
    }

    /// Takes the right to change the set of mappings.
    ///
    /// # Errors
    /// `ENOENT` when the VM is closed.
    pub(super) fn lock(&self) -> Result<VmGuard<'_, XeTypes>, Error> {
        let guard = self.gpu_vm.lock()?;
        self.check_open()?;
        Ok(guard)
    }

    /// Keeps the set of mappings as it is, for a submission.
    ///
    /// # Errors
    /// `ENOENT` when the VM is closed.
    pub(super) fn lock_shared(&self) -> Result<VmSharedGuard<'_, XeTypes>, Error> {
        let guard = self.gpu_vm.lock_shared()?;
        self.check_open()?;
        Ok(guard)
    }

    /// See [`close`](Self::close), which counts on this being looked at under the lock.
    fn check_open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::refused(Errno::NOENT, "the VM is destroyed"));
        }
        Ok(())
    }

    /// The page tables.
    pub(super) fn space(&self) -> &Arc<AddressSpace> {
        &self.gpu_vm.space().tables
    }

    /// How it deals with memory.
    pub(super) fn mode(&self) -> Mode {
        self.gpu_vm.space().mode
    }

    /// What its client may have.
    pub(super) fn allowance(&self) -> &Arc<Allowance> {
        &self.gpu_vm.space().allowance
    }

    /// Says of what follows, until `_guard` is given back, whether it only unmaps.
    pub(super) fn set_only_unmaps(&self, _guard: &VmGuard<'_, XeTypes>, only: bool) {
        self.gpu_vm.space().only_unmaps.store(only, Ordering::Relaxed);
    }

    /// The page faults that were not resolved.
    pub(super) fn faults(&self) -> &FaultRecords {
        &self.faults
    }

    /// The reservation that buffers of this VM share.
    pub(super) fn reservation(&self) -> &Reservation {
        self.gpu_vm.reservation()
    }

    /// The order of use that buffers of this VM share.
    pub(super) fn lru(&self) -> &LruGroup {
        &self.lru
    }

    /// The queue for binds that name none.
    pub(super) fn bind_queue(&self) -> &BindQueue {
        &self.bind_queue
    }

    /// Whether its jobs may run without end, and so give no fences to syncobjs.
    pub(super) fn is_long_running(&self) -> bool {
        self.mode() != Mode::Fenced
    }

    /// What becomes of other buffers of the VM when a bind of `operations` operations needs memory. Several may need one
    /// another's.
    pub(super) fn companions_at_bind(&self, operations: usize) -> Companions {
        match self.mode() {
            Mode::Fenced | Mode::Faulting { overcommit: true } if operations == 1 => Companions::MayGo,
            _ => Companions::MayMove,
        }
    }

    /// Binds whose page-table work may not be done yet. A leaf lock.
    pub(super) fn pending(&self) -> MutexGuard<'_, PendingBinds> {
        self.pending.lock()
    }

    /// Where `steps` will edit page tables.
    pub(super) fn footprints(&self, steps: &StepList<XeTypes>) -> Vec<Footprint> {
        steps.iter().map(|step| tables::footprint(self.space(), &step)).collect()
    }

    /// Sets page-table nodes aside for `steps`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(super) fn reserve_nodes(&self, steps: &StepList<XeTypes>) -> Result<Nodes, Error> {
        Ok(tables::reserve(self.space(), steps)?)
    }

    /// Brings back what was evicted since the last time, and marks everything as used now. `exec` has all the VM's
    /// reservations locked.
    ///
    /// # Errors
    /// `ENOMEM`, `EINTR`, and a lock that has to be waited for, which [`Exec::run`] takes care of.
    pub(super) fn validate(
        &self,
        locked: &Locked<'_, XeTypes>,
        exec: &mut Exec<'_>,
        interrupt: &Interrupt,
    ) -> Result<(), Error> {
        self.residency.touch_group(&self.lru);
        locked.validate(|vm_bo| self.bring_back(vm_bo, exec, interrupt))
    }

    /// Brings what is mapped in `range` to `region`, or to where it belongs, and writes its entries there.
    ///
    /// # Errors
    /// As [`validate`](Self::validate), and `EINVAL` for a buffer that may not live in the region.
    pub(super) fn prefetch(
        &self,
        guard: &VmGuard<'_, XeTypes>,
        range: VaRange,
        region: Option<RegionId>,
        exec: &mut Exec<'_>,
        interrupt: &Interrupt,
    ) -> Result<(), Error> {
        let ties: Vec<VmBo<XeTypes>> =
            guard.read().range(range).filter_map(|mapping| mapping.vm_bo().cloned()).collect();
        for tie in &ties {
            if let (Object::Buffer(buffer), Some(region)) = (tie.object(), region) {
                self.residency.migrate(exec, buffer, region, interrupt)?;
            }
            if tie.is_evicted() || self.mode().resolves_faults() {
                self.bring_back(tie, exec, interrupt)?;
            }
        }
        Ok(())
    }

    /// Makes what `mapping` shows resident and writes its entries. The VM is locked, `exec` has the reservation of what is
    /// mapped.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub(super) fn put_in_place(
        &self,
        mapping: &MappingRef<'_, XeTypes>,
        exec: &mut Exec<'_>,
        interrupt: &Interrupt,
    ) -> Result<(), Error> {
        if let Some(vm_bo) = mapping.vm_bo() {
            vm_bo.object().make_resident(&self.residency, exec, Companions::MayGo, interrupt)?;
        }
        let nodes = tables::reserve_mapping(self.space(), mapping)?;
        tables::write_mapping(self.space(), mapping, nodes);
        Ok(())
    }

    fn bring_back(
        &self,
        vm_bo: &VmBo<XeTypes>,
        exec: &mut Exec<'_>,
        interrupt: &Interrupt,
    ) -> Result<(), Error> {
        // What is only held by a bind that is going to unmap it has nothing to be brought back, and its reservation is none
        // of those that are locked. A bind that maps it again makes it resident itself.
        if self.gpu_vm.read().mappings_of(vm_bo).next().is_none() {
            return Ok(());
        }
        vm_bo.object().make_resident(&self.residency, exec, Companions::MayMove, interrupt)?;
        let pending = self.pending();
        let book = self.gpu_vm.read();
        // Where a bind is still to come, the old mapping is none of the book's any more, and the new one's time has not come.
        for mapping in book.mappings_of(vm_bo).filter(|mapping| !pending.touches(mapping.range)) {
            let nodes = tables::reserve_mapping(self.space(), &mapping)?;
            tables::write_mapping(self.space(), &mapping, nodes);
            self.counters.rebinds.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ends the VM: no new work can use it. Its mappings go, on the worker, when what was submitted has ended. Does not wait;
    /// idempotent.
    pub(super) fn close(self: &Arc<Self>) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let vm = Arc::clone(self);
        self.worker.queue(Box::new(move || {
            // Whoever was about to submit something has left its fence when this lock is had.
            drop(vm.gpu_vm.lock());
            // Everything that uses the address space has its fence in the VM's own reservation.
            let idle = fence::merge(vm.reservation().fences(Usage::Bookkeep));
            let worker = vm.worker.clone();
            idle.on_signal(move |_| worker.queue(Box::new(move || vm.gpu_vm.close())));
        }));
    }
}

/// `DRM_IOCTL_XE_VM_CREATE`.
///
/// # Errors
/// `EINVAL` for a field that is wrong or modes that don't go together, `ENOMEM`.
pub(super) fn create(request: &mut XeRequest<'_, '_>, args: &mut uapi::VmCreate) -> Result<(), Error> {
    must_be_zero("extensions", args.extensions)?;
    must_be_zero("reserved", args.reserved[0] | args.reserved[1])?;
    only_bits("the flags of a VM", args.flags, FLAGS)?;
    let file = request.file.data();
    let vm = Vm::new(request.file.driver(), file.allowance(), args.flags)?;
    args.vm_id = file.add_vm(vm)?;
    Ok(())
}

/// `DRM_IOCTL_XE_VM_DESTROY`.
///
/// # Errors
/// `EINVAL` for a field that must be zero, `ENOENT` for an unknown VM, `EBUSY` for a long-running one with queues.
pub(super) fn destroy(request: &mut XeRequest<'_, '_>, args: &mut uapi::Destroy) -> Result<(), Error> {
    must_be_zero("pad", args.pad)?;
    must_be_zero("reserved", args.reserved[0] | args.reserved[1])?;
    let file = request.file.data();
    let vm = file.vm(args.id)?;
    if vm.is_long_running() && file.has_queues_of(&vm) {
        return Err(Error::refused(Errno::BUSY, "the VM is long-running and has queues"));
    }
    file.remove_vm(args.id)?.close();
    Ok(())
}
