//! The Xe driver: the kernel's interface to Intel GPUs of the Xe2 generation, over the library and the virtual GPU.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`uapi`] | structures and numbers |
//! | `profile` | the GPUs that the device can be |
//! | `query` | DEVICE_QUERY |
//! | `gem`, `object` | buffers: making them, where their bytes are |
//! | `client_pages`, `notifier` | client memory on the GPU (userptr), and who is told before it changes |
//! | `vm`, `bind_args`, `bind`, `bind_queue`, `pending_binds`, `tables` | address spaces and VM_BIND, from arguments to page tables |
//! | `exec_queue`, `engine_queue`, `exec` | queues and EXEC |
//! | `page_faults` | accesses without a translation: resolved, or kept on record |
//! | `sync`, `user_fence` | what calls wait for, and who learns of their end |
//! | `mover` | evictions |
//! | `allowance` | what a client may have the server keep for it |
//! | `extension`, `pat`, `file`, `stats` | small things that the others share |
//!
//! What a kernel driver has and this one does not, because no client that it serves needs it yet: parallel
//! queues, media engines, observation streams, protected content, memory advice. Asking for one of them is refused with
//! the errno for a device that lacks it.
//!
//! # Errors
//! Handlers answer [`Error`]; library and GPU errors become one in `errors`.

mod allowance;
mod bind;
mod bind_args;
mod bind_queue;
mod client_pages;
mod clock;
mod engine_queue;
mod errors;
mod exec;
mod exec_queue;
mod extension;
mod file;
mod gem;
mod mover;
mod notifier;
mod object;
mod page_faults;
mod pat;
mod pending_binds;
mod profile;
mod query;
mod stats;
mod sync;
mod tables;
#[cfg(test)]
mod tests;
pub mod uapi;
mod user_fence;
mod vm;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapidary::gem::Graveyard;
use lapidary::reaper::Reaper;
use lapidary::residency::{Extent, Manager, ManagerConfig, RegionConfig, RegionId, RegionKind};
use lapidary::sched::Scheduler;
use lapidary_gpu::{Gpu, GpuConfig};

use crate::core::census::Census;
use crate::core::{Driver, DriverInfo, DrmFile, Error, Features, IoctlTable, Opening, Permit, Request};
use crate::report::{AddressSpaceCounts, GpuCounts, MemoryCounts, Report};
use crate::server::DeviceConfig;
use crate::transport::{Errno, Process};
use crate::tree::{Bus, Card, PciFunction};
use crate::uapi::ioctl::Command;
use bind::Failpoint;
use bind_queue::BindBackend;
use client_pages::ClientWindow;
use engine_queue::EngineBackend;
use file::XeFile;
use mover::XeMover;
use notifier::Notifiers;
use object::{Buffer, BufferData};
use pat::PatTable;
use profile::ProfileInfo;
use stats::{Counters, FaultLog, Kinds};
use uapi::nr;
use user_fence::UserFenceWaiters;

pub use object::{Buffer as XeBuffer, Remains};
pub use profile::Profile;
pub use vm::{Tag, XeTypes};

/// Who gives buffers their memory.
type Residency = Manager<BufferData>;
/// A call to one of the driver's commands.
type XeRequest<'r, 'c> = Request<'r, 'c, XeDriver>;

/// First driver-specific command (`DRM_COMMAND_BASE`).
const COMMAND_BASE: u8 = 0x40;
/// Where the device sits on its bus.
const PCI_SLOT: &str = "0000:03:00.0";
/// PCI vendor id of Intel, and the class of a display controller that speaks VGA.
const INTEL: u16 = 0x8086;
const VGA_CONTROLLER: u32 = 0x03_0000;
/// Device addresses for client memory: above those of the system region, 64 TiB.
const CLIENT_WINDOW: Extent = Extent { start: 1 << 45, len: 1 << 46 };
/// At least so long a buffer that finds no room waits for others to be idle, if their jobs may not take longer.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(10);
/// Threads that carry out binds that had to wait, and that hand waiting jobs to their engines.
const WORKERS: usize = 1;

/// Bytes of memory, by region.
pub(crate) struct MemoryUsage {
    pub(crate) system_total: u64,
    pub(crate) system_used: u64,
    pub(crate) vram_total: u64,
    pub(crate) vram_used: u64,
}

/// The driver of one device.
pub struct XeDriver {
    info: DriverInfo,
    profile: &'static ProfileInfo,
    /// Most mappings of one address space.
    max_mappings: u32,
    /// Bytes that one client may have kept for its address spaces.
    client_memory: u64,
    pat: PatTable,
    gpu: Gpu,
    residency: Residency,
    graveyard: Graveyard,
    /// Lets go of things. What it runs touches no client's memory.
    worker: Reaper,
    /// Writes user fences, which touches clients' memory.
    announcer: Reaper,
    /// Resolves page faults, which may wait for buffers to become idle.
    fault_resolver: Reaper,
    bind_scheduler: Scheduler<BindBackend>,
    engine_scheduler: Scheduler<EngineBackend>,
    client_window: Arc<ClientWindow>,
    notifiers: Notifiers,
    user_fence_waiters: Arc<UserFenceWaiters>,
    counters: Arc<Counters>,
    fault_log: Arc<FaultLog>,
    /// How many binds were asked to fail.
    forced_failures: AtomicUsize,
    kinds: Kinds,
}

impl XeDriver {
    /// A driver with a virtual GPU of its own. Its objects are counted in `census`.
    ///
    /// # Errors
    /// When the configuration makes no device, or a thread can't be started.
    pub fn new(config: &DeviceConfig, census: &Census) -> io::Result<Self> {
        let profile = config.profile.info();
        let vram = if profile.has_vram { config.vram_size } else { 0 };
        let gpu = Gpu::new(GpuConfig {
            vram_size: vram,
            system_size: CLIENT_WINDOW.start + CLIENT_WINDOW.len,
            job_timeout: config.job_timeout,
            tlb_check: config.check_tlb,
            ..GpuConfig::default()
        })
        .map_err(io::Error::other)?;
        let worker = Reaper::new();
        let graveyard = Graveyard::new(worker.clone());
        let patience = SHORTEST_PATIENCE.max(config.job_timeout.saturating_mul(2));
        let residency = manager(profile, vram, &graveyard, patience)?;
        let counters = Arc::new(Counters::default());
        let bind_backend = Arc::new(BindBackend::new(&counters));
        Ok(Self {
            info: info(),
            profile,
            max_mappings: config.max_mappings,
            client_memory: config.client_memory,
            pat: PatTable::xe2(profile.pat_entries),
            residency,
            graveyard,
            bind_scheduler: Scheduler::new("xe-bind", bind_backend, WORKERS),
            engine_scheduler: Scheduler::new("xe-submit", Arc::new(EngineBackend), WORKERS),
            client_window: ClientWindow::new(&gpu, &worker, CLIENT_WINDOW),
            notifiers: Notifiers::new(&worker),
            gpu,
            worker,
            announcer: Reaper::new(),
            fault_resolver: Reaper::new(),
            user_fence_waiters: Arc::default(),
            counters,
            fault_log: Arc::default(),
            forced_failures: AtomicUsize::new(0),
            kinds: Kinds::of(census),
        })
    }

    fn profile(&self) -> &'static ProfileInfo {
        self.profile
    }

    fn max_mappings(&self) -> u32 {
        self.max_mappings
    }

    fn pat(&self) -> &PatTable {
        &self.pat
    }

    fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn residency(&self) -> &Residency {
        &self.residency
    }

    fn graveyard(&self) -> &Graveyard {
        &self.graveyard
    }

    fn worker(&self) -> &Reaper {
        &self.worker
    }

    fn announcer(&self) -> &Reaper {
        &self.announcer
    }

    fn fault_resolver(&self) -> &Reaper {
        &self.fault_resolver
    }

    fn bind_scheduler(&self) -> &Scheduler<BindBackend> {
        &self.bind_scheduler
    }

    fn engine_scheduler(&self) -> &Scheduler<EngineBackend> {
        &self.engine_scheduler
    }

    fn client_window(&self) -> &Arc<ClientWindow> {
        &self.client_window
    }

    fn notifiers(&self) -> &Notifiers {
        &self.notifiers
    }

    /// A process is about to change its memory in `range`: returns when no job uses it any more.
    pub(crate) fn memory_changes(&self, process: &Process, range: std::ops::Range<u64>) {
        self.notifiers.memory_changes(process, range);
    }

    fn user_fence_waiters(&self) -> &Arc<UserFenceWaiters> {
        &self.user_fence_waiters
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn fault_log(&self) -> &Arc<FaultLog> {
        &self.fault_log
    }

    /// Where the next bind fails that is asked to: each at another point.
    fn next_failpoint(&self) -> Failpoint {
        let count = self.forced_failures.fetch_add(1, Ordering::Relaxed);
        Failpoint::ALL[count % Failpoint::ALL.len()]
    }

    fn kinds(&self) -> &Kinds {
        &self.kinds
    }

    /// The region of system memory.
    fn system_region(&self) -> RegionId {
        region_id(query::SYSTEM_INSTANCE)
    }

    /// The region of device memory, which the profile has.
    fn vram_region(&self) -> RegionId {
        region_id(query::VRAM_INSTANCE)
    }

    /// The instances of the regions there are, as a mask.
    fn region_mask(&self) -> u32 {
        let vram = u32::from(self.profile.has_vram) << query::VRAM_INSTANCE;
        1 << query::SYSTEM_INSTANCE | vram
    }

    fn memory_usage(&self) -> MemoryUsage {
        let of = |id| self.residency.region(id).map_or((0, 0), |region| (region.size(), region.used()));
        let (system_total, system_used) = of(self.system_region());
        let (vram_total, vram_used) = of(self.vram_region());
        MemoryUsage { system_total, system_used, vram_total, vram_used }
    }

    /// The address spaces of open files as text: what a kernel shows as `gpuvas` in its debug file system.
    pub(crate) fn gpuvas(files: &[Arc<DrmFile<Self>>]) -> String {
        let of = |file: &Arc<DrmFile<Self>>| {
            let record = file.record();
            format!("client {} ({}, {})\n{}", record.client, record.process, record.pid, file.data().dump())
        };
        files.iter().map(of).collect()
    }

    /// How programs find the device.
    pub(crate) fn card(&self) -> Card {
        let function = PciFunction {
            slot: PCI_SLOT.to_owned(),
            vendor: INTEL,
            device: self.profile.device_id,
            subsystem_vendor: INTEL,
            subsystem_device: self.profile.device_id,
            revision: self.profile.revision,
            class: VGA_CONTROLLER,
        };
        Card { index: 0, render: true, driver: self.info.name.to_owned(), bus: Bus::Pci(function) }
    }

    /// Lets go of everything that is waiting to be let go of, and ends the GPU's threads.
    pub(crate) fn shut_down(&self) {
        self.engine_scheduler.shutdown();
        // Engines first: binds that are dropped by their scheduler leave entries behind.
        self.gpu.shutdown();
        self.bind_scheduler.shutdown();
        self.fault_resolver.flush();
        self.announcer.flush();
        self.worker.flush();
    }

    /// Adds the driver's numbers to a report.
    pub(crate) fn fill(&self, report: &mut Report) {
        report.device = self.profile.name.to_owned();
        report.clients.ioctls += self.counters.ioctls.load(Ordering::Relaxed);
        let stats = self.gpu.stats();
        report.gpu = GpuCounts {
            submissions: stats.submissions,
            commands: stats.commands,
            bytes_copied: stats.bytes_copied + stats.bytes_filled,
            faults: stats.faults,
            bans: stats.bans,
            invalidations: stats.invalidations,
            stale_hits: stats.stale_hits,
            latest_faults: self.fault_log.latest(),
        };
        report.address_spaces = AddressSpaceCounts {
            created: self.counters.vms_created.load(Ordering::Relaxed),
            binds: self.counters.binds.load(Ordering::Relaxed),
            rebinds: self.counters.rebinds.load(Ordering::Relaxed),
        };
        let (evictions, evicted_bytes) = self.residency.evictions();
        for region in self.residency.regions() {
            let vram = region.kind() == RegionKind::Vram;
            report.memory.push(MemoryCounts {
                region: if vram { "vram" } else { "system" }.to_owned(),
                total: region.size(),
                used: region.used(),
                peak: region.peak(),
                evictions: if vram { evictions } else { 0 },
                evicted_bytes: if vram { evicted_bytes } else { 0 },
            });
        }
        let skipped = [
            ("3D state commands", stats.skipped_state),
            ("draws", stats.skipped_draws),
            ("compute walkers", stats.skipped_compute),
        ];
        let skipped = skipped.into_iter().filter(|(_, count)| *count > 0);
        report.skipped = skipped.map(|(kind, count)| (kind.to_owned(), count)).collect();
    }
}

fn info() -> DriverInfo {
    DriverInfo {
        name: "xe",
        description: "Intel Xe2 Graphics",
        date: "20201103",
        version: (1, 1, 0),
        bus_id: format!("pci:{PCI_SLOT}"),
        features: Features::SYNCOBJ | Features::SYNCOBJ_TIMELINE,
    }
}

fn region_id(instance: u16) -> RegionId {
    RegionId::new(instance as u8).expect("a constant below the limit")
}

/// The memory regions of a profile.
fn manager(
    profile: &ProfileInfo,
    vram: u64,
    graveyard: &Graveyard,
    patience: Duration,
) -> io::Result<Residency> {
    let system = RegionConfig {
        id: region_id(query::SYSTEM_INSTANCE),
        kind: RegionKind::System,
        size: system_size(),
        chunk: 4096,
    };
    let mut regions = vec![system];
    if profile.has_vram {
        regions.push(RegionConfig {
            id: region_id(query::VRAM_INSTANCE),
            kind: RegionKind::Vram,
            size: vram,
            chunk: profile.min_page_size.into(),
        });
    }
    let config = ManagerConfig { regions, evict_to: system.id, patience };
    Manager::new(config, graveyard.clone(), Arc::new(XeMover)).map_err(io::Error::other)
}

/// What clients may take of the machine's memory: half of it, as the kernel's driver does.
fn system_size() -> u64 {
    let info = rustix::system::sysinfo();
    let bytes = info.totalram as u64 * u64::from(info.mem_unit.max(1));
    (bytes / 2).max(1 << 30) & !0xf_ffff
}

impl Driver for XeDriver {
    type Object = Buffer;
    type File = XeFile;

    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn commands(table: IoctlTable<Self>) -> IoctlTable<Self> {
        use uapi::{
            Destroy, DeviceQuery, Exec, ExecQueueCreate, ExecQueueGetProperty, GemCreate, GemMmapOffset,
            VmBind, VmCreate, VmGetProperty, WaitUserFence,
        };
        const fn iowr<T>(nr: u8) -> Command {
            Command::iowr::<T>(b'd', COMMAND_BASE + nr)
        }
        const fn iow<T>(nr: u8) -> Command {
            Command::iow::<T>(b'd', COMMAND_BASE + nr)
        }
        let render = Permit::RENDER;
        table
            .with("XE_DEVICE_QUERY", iowr::<DeviceQuery>(nr::DEVICE_QUERY), render, query::device_query)
            .with("XE_GEM_CREATE", iowr::<GemCreate>(nr::GEM_CREATE), render, gem::create)
            .with("XE_GEM_MMAP_OFFSET", iowr::<GemMmapOffset>(nr::GEM_MMAP_OFFSET), render, gem::mmap_offset)
            .with("XE_VM_CREATE", iowr::<VmCreate>(nr::VM_CREATE), render, vm::create)
            .with("XE_VM_DESTROY", iow::<Destroy>(nr::VM_DESTROY), render, vm::destroy)
            .with("XE_VM_BIND", iow::<VmBind>(nr::VM_BIND), render, bind::vm_bind)
            .with(
                "XE_EXEC_QUEUE_CREATE",
                iowr::<ExecQueueCreate>(nr::EXEC_QUEUE_CREATE),
                render,
                exec_queue::create,
            )
            .with(
                "XE_EXEC_QUEUE_DESTROY",
                iow::<Destroy>(nr::EXEC_QUEUE_DESTROY),
                render,
                exec_queue::destroy,
            )
            .with(
                "XE_EXEC_QUEUE_GET_PROPERTY",
                iowr::<ExecQueueGetProperty>(nr::EXEC_QUEUE_GET_PROPERTY),
                render,
                exec_queue::get_property,
            )
            .with("XE_EXEC", iow::<Exec>(nr::EXEC), render, exec::exec)
            .with(
                "XE_WAIT_USER_FENCE",
                iowr::<WaitUserFence>(nr::WAIT_USER_FENCE),
                render,
                user_fence::wait_user_fence,
            )
            .with(
                "XE_VM_GET_PROPERTY",
                iowr::<VmGetProperty>(nr::VM_GET_PROPERTY),
                render,
                page_faults::get_property,
            )
            .with_quick(&[
                iowr::<DeviceQuery>(nr::DEVICE_QUERY),
                iowr::<GemMmapOffset>(nr::GEM_MMAP_OFFSET),
                iowr::<ExecQueueGetProperty>(nr::EXEC_QUEUE_GET_PROPERTY),
            ])
    }

    fn open(&self, _opening: &Opening) -> Result<XeFile, Error> {
        Ok(XeFile::new(self.client_memory))
    }

    fn close(&self, file: &DrmFile<Self>) {
        self.counters.ioctls.fetch_add(file.record().ioctls, Ordering::Relaxed);
        file.data().close();
    }

    /// A buffer that belongs to a VM has its fences with the VM's, which another process must not wait for.
    fn may_share(&self, object: &Buffer) -> Result<(), Error> {
        if object.owns_resv() {
            return Ok(());
        }
        Err(Error::refused(Errno::PERM, "the buffer belongs to a VM"))
    }
}
