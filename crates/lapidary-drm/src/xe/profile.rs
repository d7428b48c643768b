//! The devices that the Xe driver can be: what their queries answer and which memory they have.
//!
//! Facts: PCI ids and graphics versions from the kernel's and Mesa's device tables (Battlemage G21 is graphics 20.1,
//! Lunar Lake 20.4, both with a 19.2 MHz timestamp clock); topology as those products are sold (Arc B580: 20 Xe
//! cores, Lunar Lake: 8, with 8 SIMD16 EUs each).

use lapidary_gpu::EngineClass;

use super::uapi::engine_class;

/// Which GPU the device shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Arc B580: system memory and VRAM.
    Battlemage,
    /// Core Ultra 200V: one memory, the system's.
    LunarLake,
}

/// What a profile fixes; sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub struct ProfileInfo {
    /// As the command line names it.
    pub name: &'static str,
    /// PCI device id.
    pub device_id: u16,
    /// PCI revision.
    pub revision: u8,
    /// Graphics IP version and stepping.
    pub graphics_version: (u16, u16, u16),
    /// Whether there is device memory.
    pub has_vram: bool,
    /// Smallest page of device memory, and the alignment that programs must keep for everything.
    pub min_page_size: u32,
    /// One bit per Xe core.
    pub dss_mask: u64,
    /// One bit per L3 bank.
    pub l3_bank_mask: u64,
    /// One bit per SIMD16 EU of an Xe core.
    pub eu_mask: u64,
    /// Number of entries in the page attribute table.
    pub pat_entries: u16,
}

/// Timestamp clock of all supported GPUs, Hz.
pub(super) const REFERENCE_CLOCK: u32 = 19_200_000;

/// Bits of a GPU virtual address.
pub(super) const VA_BITS: u32 = 48;

/// The engines that every profile has: class as the interface names it, and as the GPU does.
pub(super) const ENGINES: [(u16, EngineClass); 3] = [
    (engine_class::RENDER, EngineClass::Render),
    (engine_class::COPY, EngineClass::Copy),
    (engine_class::COMPUTE, EngineClass::Compute),
];

impl Profile {
    /// All profiles, the default one first.
    pub const ALL: [Self; 2] = [Self::Battlemage, Self::LunarLake];

    /// The profile's facts.
    pub fn info(self) -> &'static ProfileInfo {
        match self {
            Self::Battlemage => &BATTLEMAGE,
            Self::LunarLake => &LUNAR_LAKE,
        }
    }
}

const BATTLEMAGE: ProfileInfo = ProfileInfo {
    name: "battlemage",
    device_id: 0xe20b,
    revision: 0,
    graphics_version: (20, 1, 4),
    has_vram: true,
    min_page_size: 64 << 10,
    dss_mask: 0xf_ffff,
    l3_bank_mask: 0xff_ffff,
    eu_mask: 0xff,
    pat_entries: 28,
};

const LUNAR_LAKE: ProfileInfo = ProfileInfo {
    name: "lunarlake",
    device_id: 0x64a0,
    revision: 4,
    graphics_version: (20, 4, 4),
    has_vram: false,
    min_page_size: 4 << 10,
    dss_mask: 0xff,
    l3_bank_mask: 0xff,
    eu_mask: 0xff,
    pat_entries: 32,
};
