//! The GPU as a whole.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::*},
    thread::{self, JoinHandle},
    time::Duration,
};

use lapidary::{
    fence::Timestamp,
    sync::{Arc, Mutex},
};

use crate::{
    class::EngineClass,
    clock::Clock,
    context::Context,
    engine::{self, Engine, Priority, Shared},
    fault::{ContextEvents, ContextId, EngineId, StaleHit},
    memory::PhysMem,
    pagetable::{AddressSpace, NodePool, NodeQuota, PageTableError, Unlimited},
    stats::{Counters, Stats},
    tlb::Shootdown,
};

/// What kind of GPU to make.
#[derive(Clone, Debug)]
pub struct GpuConfig {
    /// Bytes of device memory; 0 for none.
    pub vram_size: u64,
    /// Bytes of the space of system addresses.
    pub system_size: u64,
    /// Engines: class and how many of it.
    pub engines: Vec<(EngineClass, u16)>,
    /// Most page-table nodes (4 KiB each) that all address spaces may have together.
    pub page_table_nodes: u32,
    /// A job that has not ended this long after an engine began it is a hang.
    pub job_timeout: Duration,
    /// How long a context runs before another of the same priority gets its turn.
    pub timeslice: Duration,
    /// Compare every use of a cached translation with the page tables, and report stale ones.
    pub tlb_check: bool,
}

impl Default for GpuConfig {
    /// 8 GiB of device memory, one engine each of render, copy and compute; 5 s to a hang, slices of 1 ms.
    fn default() -> Self {
        Self {
            vram_size: 8 << 30,
            system_size: 1 << 40,
            engines: vec![(EngineClass::Render, 1), (EngineClass::Copy, 1), (EngineClass::Compute, 1)],
            page_table_nodes: 1 << 20,
            job_timeout: Duration::from_secs(5),
            timeslice: Duration::from_millis(1),
            tlb_check: false,
        }
    }
}

/// Why a GPU or a part of it could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// No thread for an engine.
    #[error("no thread for {engine}: {source}")]
    Thread {
        /// The engine.
        engine: EngineId,
        /// The host's reason.
        source: std::io::Error,
    },
    /// There is no such engine.
    #[error("there is no {0}")]
    NoEngine(EngineId),
}

/// A virtual GPU. Clones are handles to the same one; the last one shuts it down.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    pool: Arc<NodePool>,
    engines: Vec<Arc<Engine>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    contexts: AtomicU64,
}

impl Gpu {
    /// A GPU with its engines' threads running.
    ///
    /// # Errors
    /// [`GpuError::Thread`].
    pub fn new(config: GpuConfig) -> Result<Self, GpuError> {
        let ids: Vec<_> = config
            .engines
            .iter()
            .flat_map(|&(class, count)| (0..count).map(move |instance| EngineId { class, instance }))
            .collect();
        let shootdown = Arc::new(Shootdown::new(ids.len()));
        let shared = Arc::new(Shared {
            phys: PhysMem::new(Arc::clone(&shootdown), config.system_size, config.vram_size),
            shootdown,
            counters: Counters::default(),
            clock: Clock::start(),
            job_timeout: config.job_timeout,
            timeslice: config.timeslice,
            tlb_check: config.tlb_check,
            stale: Mutex::default(),
        });
        let engine = |(index, id)| Arc::new(Engine::new(id, index, Arc::clone(&shared)));
        let engines: Vec<_> = ids.into_iter().enumerate().map(engine).collect();
        let gpu = Self(Arc::new(Inner {
            shared,
            pool: Arc::new(NodePool::new(config.page_table_nodes)),
            engines,
            threads: Mutex::default(),
            contexts: AtomicU64::new(1),
        }));
        // On an error the threads that run already are joined by the drop.
        for engine in &gpu.0.engines {
            let thread = start(engine).map_err(|source| GpuError::Thread { engine: engine.id, source })?;
            gpu.0.threads.lock().push(thread);
        }
        Ok(gpu)
    }

    /// Its physical memory.
    pub fn memory(&self) -> &PhysMem {
        &self.0.shared.phys
    }

    /// Its page-table nodes.
    pub fn nodes(&self) -> &NodePool {
        &self.0.pool
    }

    /// Its engines.
    pub fn engines(&self) -> impl Iterator<Item = EngineId> + '_ {
        self.0.engines.iter().map(|engine| engine.id)
    }

    /// A new, empty address space. With `scratch`, unmapped addresses read as zero and swallow writes.
    ///
    /// # Errors
    /// [`PageTableError::OutOfNodes`].
    pub fn create_space(&self, scratch: bool) -> Result<Arc<AddressSpace>, PageTableError> {
        self.create_space_within(Arc::new(Unlimited), scratch)
    }

    /// [`create_space`](Self::create_space), with page tables that `quota` has to grant.
    ///
    /// # Errors
    /// [`PageTableError::OutOfNodes`], [`PageTableError::OverQuota`].
    pub fn create_space_within(
        &self,
        quota: Arc<dyn NodeQuota>,
        scratch: bool,
    ) -> Result<Arc<AddressSpace>, PageTableError> {
        let (pool, shootdown) = (Arc::clone(&self.0.pool), Arc::clone(&self.0.shared.shootdown));
        AddressSpace::new(pool, shootdown, quota, scratch).map(Arc::new)
    }

    /// A new context on `engine`, in `space` for good.
    ///
    /// # Errors
    /// [`GpuError::NoEngine`].
    pub fn create_context(
        &self,
        engine: EngineId,
        space: Arc<AddressSpace>,
        priority: Priority,
        events: Arc<dyn ContextEvents>,
    ) -> Result<Context, GpuError> {
        let engine = self.engine(engine)?;
        let id = ContextId(self.0.contexts.fetch_add(1, Relaxed));
        Ok(Context::new(id, Arc::clone(engine), space, priority, events))
    }

    /// Kills every context that has work on `engine`, and returns how many: what a reset of the engine does.
    ///
    /// # Errors
    /// [`GpuError::NoEngine`].
    pub fn reset_engine(&self, engine: EngineId) -> Result<usize, GpuError> {
        Ok(self.engine(engine)?.reset())
    }

    /// How long `engine` has executed commands.
    ///
    /// # Errors
    /// [`GpuError::NoEngine`].
    pub fn engine_busy(&self, engine: EngineId) -> Result<Duration, GpuError> {
        Ok(self.engine(engine)?.busy())
    }

    /// The GPU's clock, in ticks of [`TIMESTAMP_HZ`](crate::bus::TIMESTAMP_HZ) since it started.
    pub fn timestamp(&self) -> u64 {
        self.timestamp_at(Timestamp::now())
    }

    /// What the GPU's clock shows, or showed, at `time`; 0 before the start.
    pub fn timestamp_at(&self, time: Timestamp) -> u64 {
        self.0.shared.clock.ticks_at(time)
    }

    /// What has been counted. Work of a slice that is under way is added when the slice is over.
    pub fn stats(&self) -> Stats {
        let mut stats = self.0.shared.counters.snapshot();
        stats.invalidations = self.0.shared.shootdown.issued();
        stats
    }

    /// The first uses of stale translations that check mode found.
    pub fn stale_hits(&self) -> Vec<StaleHit> {
        self.0.shared.stale.lock().clone()
    }

    /// Stops the engines: running jobs end at the next step, all fences of jobs fail with `DeviceLost`, nothing more is accepted. Returns when
    /// the threads have ended. Must not be called with a lock that a fence callback or a [`ContextEvents`] takes.
    pub fn shutdown(&self) {
        self.0.shutdown();
    }

    fn engine(&self, id: EngineId) -> Result<&Arc<Engine>, GpuError> {
        self.0.engines.iter().find(|engine| engine.id == id).ok_or(GpuError::NoEngine(id))
    }
}

fn start(engine: &Arc<Engine>) -> std::io::Result<JoinHandle<()>> {
    let engine = Arc::clone(engine);
    let name = format!("gpu-{:?}-{}", engine.id.class, engine.id.instance).to_lowercase();
    thread::Builder::new().name(name).spawn(move || engine::run_thread(&engine))
}

impl Inner {
    fn shutdown(&self) {
        self.engines.iter().for_each(|engine| engine.stop());
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // The last handle may be dropped by a callback on an engine's thread, which then ends by itself.
            if thread.thread().id() != thread::current().id() && thread.join().is_err() {
                tracing::error!("an engine's thread panicked");
            }
        }
        self.pool.reap();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("memory", self.memory()).finish_non_exhaustive()
    }
}
