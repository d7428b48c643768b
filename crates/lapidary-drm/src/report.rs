//! What a device did, for people and programs: the numbers behind `lapidary run`'s closing report.

use std::collections::BTreeMap;

use serde::Serialize;

/// One device's life so far. Sizes are bytes, times seconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The profile's name.
    pub device: String,
    /// Seconds since the device started.
    pub seconds: f64,
    /// What clients did.
    pub clients: ClientCounts,
    /// What the GPU did.
    pub gpu: GpuCounts,
    /// Address spaces and mappings.
    pub address_spaces: AddressSpaceCounts,
    /// The memory regions.
    pub memory: Vec<MemoryCounts>,
    /// Commands whose work is not done here, by kind: shaders and the 3D state around them.
    pub skipped: BTreeMap<String, u64>,
    /// Objects alive now, by kind, beyond those the device itself keeps. Empty when every client is gone and nothing leaked.
    pub live: BTreeMap<String, u64>,
}

/// Clients and their calls.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ClientCounts {
    /// Processes that connected.
    pub processes: u64,
    /// DRM files opened.
    pub files: u64,
    /// Driver calls served.
    pub ioctls: u64,
}

/// Engines.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GpuCounts {
    /// Jobs that ran.
    pub submissions: u64,
    /// Commands executed.
    pub commands: u64,
    /// Bytes that copy and fill commands wrote.
    pub bytes_copied: u64,
    /// Accesses to unmapped or protected addresses.
    pub faults: u64,
    /// Queues banned for faults, invalid commands and hangs.
    pub bans: u64,
    /// Translation-cache invalidations.
    pub invalidations: u64,
    /// Stale translations used (checked with `--check-tlb` only): each one is a bug of the device's driver.
    pub stale_hits: u64,
    /// The latest faults, in words.
    pub latest_faults: Vec<String>,
}

/// GPU address spaces.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AddressSpaceCounts {
    /// Address spaces created.
    pub created: u64,
    /// Bind operations carried out.
    pub binds: u64,
    /// Mappings put in place again after an eviction.
    pub rebinds: u64,
}

/// One memory region.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MemoryCounts {
    /// `system` or `vram`.
    pub region: String,
    /// Its size.
    pub total: u64,
    /// In use now.
    pub used: u64,
    /// Most that was ever in use.
    pub peak: u64,
    /// Buffers moved out to make room.
    pub evictions: u64,
    /// Their bytes.
    pub evicted_bytes: u64,
}
