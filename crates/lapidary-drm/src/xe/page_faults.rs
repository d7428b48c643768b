//! Page faults: accesses that find no translation, or one that forbids them.
//!
//! In an address space that resolves faults, a mapping's entries are written when an access needs them: what is mapped gets its
//! memory, others leave for it if need be, and the access is made again. Everywhere else, and where a fault can't be
//! resolved, the queue is banned, and the address space keeps a record that VM_GET_PROPERTY tells.
//!
//! ```text
//!   engine's thread            resolver                                      bind, eviction
//!   fault ──── queued ───────► lock the VM (shared) ─► find the mapping
//!   others run meanwhile       its bind is pending? ─► later ◄──────────────── bind's fence signals
//!                              lock its reservation ─► memory ─► entries ───► an eviction takes them away again
//!   access again ◄──────────── replay
//! ```
//!
//! An engine's thread may not wait, so a thread of the device's own resolves. It may wait for locks and for the fences that keep
//! victims where they are: jobs that leave fences never depend on one that faults, since those give no fences to
//! anybody.

use std::sync::{Arc, Weak};

use lapidary::exec::{Duplicates, Exec};
use lapidary::fence::{Fence, Interrupt};
use lapidary::gpuvm::{BackingRef, MappingRef, Va};
use lapidary::reaper::Reaper;
use lapidary_gpu::pagetable::AddressSpace;
use lapidary_gpu::{Access, Fault, FaultKind, GpuVa, PendingFault};
use parking_lot::Mutex;

use super::XeRequest;
use super::object::Object;
use super::stats::FaultLog;
use super::uapi::{self, VmFault};
use super::vm::{Vm, XeTypes};
use crate::core::{Error, must_be_zero};

/// How exactly a fault's address is told, in bytes.
const PRECISION: u32 = 4096;

/// The page faults of an address space that were not resolved: the first ones, so that a client that goes on after
/// an error still finds what began it.
#[derive(Debug, Default)]
pub(super) struct FaultRecords(Mutex<Vec<VmFault>>);

impl FaultRecords {
    /// How many are kept.
    const KEPT: usize = 50;

    fn note(&self, fault: &Fault, tables: &AddressSpace) {
        let mut records = self.0.lock();
        if records.len() < Self::KEPT {
            records.push(record(fault, tables));
        }
    }
}

fn record(fault: &Fault, tables: &AddressSpace) -> VmFault {
    let access_type = match fault.access {
        Access::Read => uapi::FAULT_ACCESS_READ,
        Access::Write => uapi::FAULT_ACCESS_WRITE,
        Access::Atomic => uapi::FAULT_ACCESS_ATOMIC,
    };
    let fault_type = match fault.kind {
        FaultKind::NotPresent | FaultKind::NoMemory | FaultKind::Host => uapi::FAULT_TYPE_NOT_PRESENT,
        FaultKind::ReadOnly => uapi::FAULT_TYPE_WRITE_ACCESS,
        FaultKind::Misaligned => uapi::FAULT_TYPE_ATOMIC_ACCESS,
    };
    VmFault {
        address: fault.va.get() & !u64::from(PRECISION - 1),
        address_precision: PRECISION,
        access_type,
        fault_type,
        fault_level: level(tables, fault.va),
        ..VmFault::default()
    }
}

/// The level of the page table whose entry ended a translation.
fn level(tables: &AddressSpace, va: GpuVa) -> u8 {
    const PAGE_BITS: u32 = 12;
    const LEVEL_BITS: u32 = 9;
    tables.absent_span(va).map_or(0, |span| ((span.len().ilog2() - PAGE_BITS) / LEVEL_BITS) as u8)
}

/// Why a fault is not resolved.
enum Unresolved {
    /// Not yet: the mapping's bind has still to be carried out.
    After(Fence),
    /// Nothing will ever resolve it.
    Never(&'static str),
}

/// What becomes of the faults of one queue.
pub(super) struct FaultHandler {
    vm: Weak<Vm>,
    resolver: Reaper,
    log: Arc<FaultLog>,
    latest: Mutex<Option<Latest>>,
}

/// The fault that was resolved last, and how often in a row.
struct Latest {
    fault: Fault,
    times: u32,
}

impl FaultHandler {
    /// How often one access is made again. Where memory is short, another may take away what it needs before it gets there;
    /// an access that can't succeed at all must end some time.
    const MOST_TIMES: u32 = 1000;

    /// For a queue of `vm`. `resolver` runs what may wait.
    pub(super) fn new(vm: &Arc<Vm>, resolver: &Reaper, log: &Arc<FaultLog>) -> Arc<Self> {
        Arc::new(Self {
            vm: Arc::downgrade(vm),
            resolver: resolver.clone(),
            log: Arc::clone(log),
            latest: Mutex::default(),
        })
    }

    /// Deals with a fault, at once or later. Never blocks.
    pub(super) fn handle(self: &Arc<Self>, fault: PendingFault) {
        match self.vm.upgrade() {
            Some(vm) if vm.mode().resolves_faults() => self.resolve_later(fault),
            vm => self.give_up(vm.as_deref(), fault, "no fault is resolved here"),
        }
    }

    fn resolve_later(self: &Arc<Self>, fault: PendingFault) {
        let handler = Arc::clone(self);
        self.resolver.queue(Box::new(move || handler.resolve(fault)));
    }

    fn resolve(self: &Arc<Self>, fault: PendingFault) {
        let Some(vm) = self.vm.upgrade() else { return self.give_up(None, fault, "the VM is gone") };
        match vm.resolve(&fault.report().fault) {
            Ok(()) if self.makes_progress(fault.report().fault) => fault.replay(),
            Ok(()) => self.give_up(Some(&vm), fault, "the access faults again and again"),
            Err(Unresolved::After(bind)) => {
                let handler = Arc::clone(self);
                bind.on_signal(move |_| handler.resolve_later(fault));
            }
            Err(Unresolved::Never(why)) => self.give_up(Some(&vm), fault, why),
        }
    }

    /// Whether it is worth making this access again.
    fn makes_progress(&self, fault: Fault) -> bool {
        let mut latest = self.latest.lock();
        let times =
            latest.as_ref().filter(|latest| latest.fault == fault).map_or(1, |latest| latest.times + 1);
        *latest = Some(Latest { fault, times });
        times <= Self::MOST_TIMES
    }

    /// Puts the fault on record and bans the queue.
    fn give_up(&self, vm: Option<&Vm>, fault: PendingFault, why: &'static str) {
        let report = *fault.report();
        tracing::info!(fault = %report, why, "fault");
        self.log.note(&report);
        if let Some(vm) = vm {
            vm.faults().note(&report.fault, vm.space());
        }
        fault.ban();
    }
}

impl Vm {
    /// Puts the mapping in place that an access needs. May wait.
    fn resolve(&self, fault: &Fault) -> Result<(), Unresolved> {
        let shared = self.lock_shared().map_err(|_| Unresolved::Never("the VM is closed"))?;
        let found = shared.read().at(Va::new(fault.va.get())).map(|mapping| mapping.to_owned());
        let mapping = found.ok_or(Unresolved::Never("nothing is mapped there"))?;
        if fault.access.writes() && mapping.as_ref().tag.read_only {
            return Err(Unresolved::Never("the mapping is read-only"));
        }
        if let Some(bind) = self.pending().end_of(mapping.as_ref().range) {
            return Err(Unresolved::After(bind));
        }
        match fault.kind {
            FaultKind::Misaligned => return Err(Unresolved::Never("an atomic access across a border")),
            FaultKind::Host => return still_there(&mapping.as_ref(), fault.va),
            FaultKind::NotPresent | FaultKind::ReadOnly | FaultKind::NoMemory => {}
        }
        let interrupt = Interrupt::none();
        let placed = Exec::run(Duplicates::Allow, &interrupt, |exec| {
            if let Some(vm_bo) = mapping.vm_bo() {
                exec.lock(vm_bo.object().reservation())?;
            }
            self.put_in_place(&mapping.as_ref(), exec, &interrupt)
        });
        placed.map(drop).map_err(|error| {
            tracing::debug!(%error, "fault");
            Unresolved::Never("no memory for what is mapped there")
        })
    }
}

/// Whether client memory that could not be accessed can be accessed now: the program may have replaced it meanwhile.
fn still_there(mapping: &MappingRef<'_, XeTypes>, va: GpuVa) -> Result<(), Unresolved> {
    let accessible = match mapping.backing {
        BackingRef::Object { vm_bo, offset } => match vm_bo.object() {
            Object::Client(pages) => pages.is_accessible(offset + (va.get() - mapping.start().raw())),
            Object::Buffer(_) => false,
        },
        BackingRef::Null | BackingRef::Host { .. } => false,
    };
    if accessible { Ok(()) } else { Err(Unresolved::Never("the client's memory is gone")) }
}

/// `DRM_IOCTL_XE_VM_GET_PROPERTY`.
///
/// # Errors
/// `ENOENT` for an unknown VM, `EFAULT` for a bad pointer, `EINVAL` for an unknown property, more than there is, or a field
/// that must be zero.
pub(super) fn get_property(
    request: &mut XeRequest<'_, '_>,
    args: &mut uapi::VmGetProperty,
) -> Result<(), Error> {
    must_be_zero("extensions", args.extensions)?;
    must_be_zero("pad", args.pad)?;
    must_be_zero("reserved", args.reserved[0] | args.reserved[1] | args.reserved[2])?;
    let vm = request.file.data().vm(args.vm_id)?;
    match args.property {
        uapi::VM_PROPERTY_FAULTS => faults(request, &vm, args),
        unknown => Err(Error::invalid("a property to get", unknown)),
    }
}

/// Tells how many faults there are, in bytes, or writes as many as are asked for. There may be more by the second call.
fn faults(request: &XeRequest<'_, '_>, vm: &Vm, args: &mut uapi::VmGetProperty) -> Result<(), Error> {
    const RECORD: usize = size_of::<VmFault>();
    let records = vm.faults().0.lock().clone();
    let size = args.size as usize;
    if size == 0 {
        args.size = (records.len() * RECORD) as u32;
        return Ok(());
    }
    if !size.is_multiple_of(RECORD) || size > records.len() * RECORD {
        return Err(Error::invalid("the size of an address space's faults", args.size));
    }
    Ok(request.call.memory().write_array(args.data, &records[..size / RECORD])?)
}
