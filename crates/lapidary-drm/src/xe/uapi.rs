//! The Xe interface as programs see it: argument structures, numbers and flags.
//!
//! Names and layouts are those of the kernel's public header `xe_drm.h` (Linux 7.2), without its prefixes. Every
//! structure is plain data without implicit padding, which `bytemuck::Pod` proves at compile time; sizes are asserted
//! below, since a program and the server must agree on every byte.

use bytemuck::{Pod, Zeroable};

/// Offsets of Xe's ioctls from `DRM_COMMAND_BASE`.
pub mod nr {
    #![allow(missing_docs)] // the header's own names
    pub const DEVICE_QUERY: u8 = 0x00;
    pub const GEM_CREATE: u8 = 0x01;
    pub const GEM_MMAP_OFFSET: u8 = 0x02;
    pub const VM_CREATE: u8 = 0x03;
    pub const VM_DESTROY: u8 = 0x04;
    pub const VM_BIND: u8 = 0x05;
    pub const EXEC_QUEUE_CREATE: u8 = 0x06;
    pub const EXEC_QUEUE_DESTROY: u8 = 0x07;
    pub const EXEC_QUEUE_GET_PROPERTY: u8 = 0x08;
    pub const EXEC: u8 = 0x09;
    pub const WAIT_USER_FENCE: u8 = 0x0a;
    pub const VM_GET_PROPERTY: u8 = 0x0f;
}

/// `drm_xe_user_extension`: the head of every extension.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct UserExtension {
    /// Client address of the next extension, 0 at the end.
    pub next_extension: u64,
    /// Which extension this is; the meaning depends on the ioctl.
    pub name: u32,
    /// Must be zero.
    pub pad: u32,
}

/// `drm_xe_ext_set_property`: an extension that sets one property.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct ExtSetProperty {
    /// The common head.
    pub base: UserExtension,
    /// Which property.
    pub property: u32,
    /// Must be zero.
    pub pad: u32,
    /// Its value.
    pub value: u64,
    /// Must be zero.
    pub reserved: [u64; 2],
}

/// `drm_xe_engine_class_instance`: names one engine.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct EngineClassInstance {
    /// One of [`engine_class`].
    pub engine_class: u16,
    /// Which engine of the class.
    pub engine_instance: u16,
    /// Which GT.
    pub gt_id: u16,
    /// Must be zero.
    pub pad: u16,
}

/// Values of [`EngineClassInstance::engine_class`].
pub mod engine_class {
    #![allow(missing_docs)] // the header's own names
    pub const RENDER: u16 = 0;
    pub const COPY: u16 = 1;
    pub const COMPUTE: u16 = 4;
    pub const VM_BIND: u16 = 5;
}

/// `drm_xe_engine`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Engine {
    /// The engine.
    pub instance: EngineClassInstance,
    /// Zero.
    pub reserved: [u64; 3],
}

/// The head of `drm_xe_query_engines`, `_mem_regions`, `_config` and `_gt_list`: a count and padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct QueryCount {
    /// How many records follow.
    pub count: u32,
    /// Zero.
    pub pad: u32,
}

/// `drm_xe_mem_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct MemRegion {
    /// 0 system memory, 1 VRAM.
    pub mem_class: u16,
    /// The bit of this region in a placement mask.
    pub instance: u16,
    /// Smallest page, bytes.
    pub min_page_size: u32,
    /// Usable size, bytes.
    pub total_size: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes the CPU can see (VRAM only).
    pub cpu_visible_size: u64,
    /// CPU-visible bytes in use (VRAM only).
    pub cpu_visible_used: u64,
    /// Zero.
    pub reserved: [u64; 6],
}

/// `drm_xe_gt`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Gt {
    /// 0 main, 1 media.
    pub kind: u16,
    /// Tile.
    pub tile_id: u16,
    /// GT.
    pub gt_id: u16,
    /// Zero.
    pub pad: [u16; 3],
    /// Timestamp clock, Hz.
    pub reference_clock: u32,
    /// Mask of near region instances.
    pub near_mem_regions: u64,
    /// Mask of far region instances.
    pub far_mem_regions: u64,
    /// Graphics IP version.
    pub ip_ver_major: u16,
    /// Graphics IP version.
    pub ip_ver_minor: u16,
    /// Graphics IP stepping.
    pub ip_ver_rev: u16,
    /// Zero.
    pub pad2: u16,
    /// Zero.
    pub reserved: [u64; 7],
}

/// The head of `drm_xe_query_topology_mask`; the mask's bytes follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct TopologyMask {
    /// GT.
    pub gt_id: u16,
    /// One of [`topology`].
    pub kind: u16,
    /// Bytes of mask that follow.
    pub num_bytes: u32,
}

/// Values of [`TopologyMask::kind`].
pub mod topology {
    #![allow(missing_docs)] // the header's own names
    pub const DSS_GEOMETRY: u16 = 1;
    pub const DSS_COMPUTE: u16 = 2;
    pub const L3_BANK: u16 = 3;
    pub const SIMD16_EU_PER_DSS: u16 = 5;
}

/// `drm_xe_query_engine_cycles`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct EngineCycles {
    /// In: the engine.
    pub eci: EngineClassInstance,
    /// In: the CPU clock, as for `clock_gettime`.
    pub clockid: i32,
    /// Out: bits in the counter.
    pub width: u32,
    /// Out: engine timestamp, in ticks of the reference clock.
    pub engine_cycles: u64,
    /// Out: CPU time just before the read, ns.
    pub cpu_timestamp: u64,
    /// Out: how long the read took, ns.
    pub cpu_delta: u64,
}

/// `drm_xe_query_uc_fw_version`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct UcFwVersion {
    /// In: 0 GuC submission, 1 HuC.
    pub uc_type: u16,
    /// Must be zero.
    pub pad: u16,
    /// Out.
    pub branch_ver: u32,
    /// Out.
    pub major_ver: u32,
    /// Out.
    pub minor_ver: u32,
    /// Out.
    pub patch_ver: u32,
    /// Must be zero.
    pub pad2: u32,
    /// Must be zero.
    pub reserved: u64,
}

/// `drm_xe_device_query`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct DeviceQuery {
    /// No extension is defined.
    pub extensions: u64,
    /// One of [`query`].
    pub query: u32,
    /// Bytes at `data`; 0 asks for the size.
    pub size: u32,
    /// Client address of the answer.
    pub data: u64,
    /// Must be zero.
    pub reserved: [u64; 2],
}

/// Values of [`DeviceQuery::query`].
pub mod query {
    #![allow(missing_docs)] // the header's own names
    pub const ENGINES: u32 = 0;
    pub const MEM_REGIONS: u32 = 1;
    pub const CONFIG: u32 = 2;
    pub const GT_LIST: u32 = 3;
    pub const HWCONFIG: u32 = 4;
    pub const GT_TOPOLOGY: u32 = 5;
    pub const ENGINE_CYCLES: u32 = 6;
    pub const UC_FW_VERSION: u32 = 7;
    pub const OA_UNITS: u32 = 8;
    pub const PXP_STATUS: u32 = 9;
}

/// Bytes of `drm_xe_query_pxp_status`.
pub const PXP_STATUS_SIZE: usize = 8;

/// `DRM_XE_QUERY_CONFIG_FLAG_HAS_VRAM`.
pub const CONFIG_FLAG_HAS_VRAM: u64 = 1 << 0;
/// `DRM_XE_QUERY_CONFIG_FLAG_HAS_LOW_LATENCY`.
pub const CONFIG_FLAG_HAS_LOW_LATENCY: u64 = 1 << 1;
/// `DRM_XE_QUERY_CONFIG_FLAG_HAS_NO_COMPRESSION_HINT`.
pub const CONFIG_FLAG_HAS_NO_COMPRESSION_HINT: u64 = 1 << 3;

/// `DRM_XE_GEM_CREATE_EXTENSION_SET_PROPERTY`.
pub const GEM_CREATE_EXTENSION_SET_PROPERTY: u32 = 0;
/// `DRM_XE_GEM_CREATE_SET_PROPERTY_PXP_TYPE`.
pub const GEM_CREATE_PROPERTY_PXP_TYPE: u32 = 0;
/// `DRM_XE_PXP_TYPE_NONE`.
pub const PXP_TYPE_NONE: u64 = 0;
/// `DRM_XE_PXP_TYPE_HWDRM`.
pub const PXP_TYPE_HWDRM: u64 = 1;

/// `drm_xe_gem_create`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct GemCreate {
    /// A chain of [`ExtSetProperty`].
    pub extensions: u64,
    /// Bytes.
    pub size: u64,
    /// Mask of region instances.
    pub placement: u32,
    /// `GEM_CREATE_*`.
    pub flags: u32,
    /// The VM the buffer belongs to, 0 for none.
    pub vm_id: u32,
    /// Out.
    pub handle: u32,
    /// `CPU_CACHING_*`.
    pub cpu_caching: u16,
    /// Must be zero.
    pub pad: [u16; 3],
    /// Must be zero.
    pub reserved: [u64; 2],
}

/// `DRM_XE_GEM_CREATE_FLAG_DEFER_BACKING`.
pub const GEM_CREATE_DEFER_BACKING: u32 = 1 << 0;
/// `DRM_XE_GEM_CREATE_FLAG_SCANOUT`.
pub const GEM_CREATE_SCANOUT: u32 = 1 << 1;
/// `DRM_XE_GEM_CREATE_FLAG_NEEDS_VISIBLE_VRAM`.
pub const GEM_CREATE_NEEDS_VISIBLE_VRAM: u32 = 1 << 2;
/// `DRM_XE_GEM_CREATE_FLAG_NO_COMPRESSION`.
pub const GEM_CREATE_NO_COMPRESSION: u32 = 1 << 3;
/// `DRM_XE_GEM_CPU_CACHING_WB`.
pub const CPU_CACHING_WB: u16 = 1;
/// `DRM_XE_GEM_CPU_CACHING_WC`.
pub const CPU_CACHING_WC: u16 = 2;

/// `drm_xe_gem_mmap_offset`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct GemMmapOffset {
    /// No extension is defined.
    pub extensions: u64,
    /// The buffer.
    pub handle: u32,
    /// `DRM_XE_MMAP_OFFSET_FLAG_*`.
    pub flags: u32,
    /// Out: for `mmap`.
    pub offset: u64,
    /// Must be zero.
    pub reserved: [u64; 2],
}

/// `drm_xe_vm_create`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct VmCreate {
    /// No extension is defined.
    pub extensions: u64,
    /// `VM_CREATE_*`.
    pub flags: u32,
    /// Out.
    pub vm_id: u32,
    /// Must be zero.
    pub reserved: [u64; 2],
}

/// `DRM_XE_VM_CREATE_FLAG_SCRATCH_PAGE`.
pub const VM_CREATE_SCRATCH_PAGE: u32 = 1 << 0;
/// `DRM_XE_VM_CREATE_FLAG_LR_MODE`.
pub const VM_CREATE_LR_MODE: u32 = 1 << 1;
/// `DRM_XE_VM_CREATE_FLAG_FAULT_MODE`.
pub const VM_CREATE_FAULT_MODE: u32 = 1 << 2;

/// `DRM_XE_VM_CREATE_FLAG_NO_VM_OVERCOMMIT`.
pub const VM_CREATE_NO_VM_OVERCOMMIT: u32 = 1 << 3;

/// `drm_xe_vm_get_property`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct VmGetProperty {
    /// No extension is defined.
    pub extensions: u64,
    /// The VM.
    pub vm_id: u32,
    /// Which property.
    pub property: u32,
    /// Bytes of `data`; out, if 0: how many there are.
    pub size: u32,
    /// Must be zero.
    pub pad: u32,
    /// Client address to write to, or out: the value of a property that is a number.
    pub data: u64,
    /// Must be zero.
    pub reserved: [u64; 3],
}

/// `DRM_XE_VM_GET_PROPERTY_FAULTS`: an array of [`VmFault`].
pub const VM_PROPERTY_FAULTS: u32 = 0;

/// `xe_vm_fault`: a page fault that was not resolved.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct VmFault {
    /// GPU virtual address.
    pub address: u64,
    /// Bytes from `address` on, somewhere in which the access was.
    pub address_precision: u32,
    /// `FAULT_ACCESS_*`.
    pub access_type: u8,
    /// `FAULT_TYPE_*`.
    pub fault_type: u8,
    /// Level of the page table where translation ended, 0 for the lowest.
    pub fault_level: u8,
    /// Zero.
    pub pad: u8,
    /// Zero.
    pub reserved: [u64; 4],
}

/// `FAULT_ACCESS_TYPE_READ`.
pub const FAULT_ACCESS_READ: u8 = 0;
/// `FAULT_ACCESS_TYPE_WRITE`.
pub const FAULT_ACCESS_WRITE: u8 = 1;
/// `FAULT_ACCESS_TYPE_ATOMIC`.
pub const FAULT_ACCESS_ATOMIC: u8 = 2;
/// `FAULT_TYPE_NOT_PRESENT`.
pub const FAULT_TYPE_NOT_PRESENT: u8 = 0;
/// `FAULT_TYPE_WRITE_ACCESS`.
pub const FAULT_TYPE_WRITE_ACCESS: u8 = 1;
/// `FAULT_TYPE_ATOMIC_ACCESS`.
pub const FAULT_TYPE_ATOMIC_ACCESS: u8 = 2;

/// `drm_xe_vm_destroy` and `drm_xe_exec_queue_destroy`: one handle.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Destroy {
    /// The VM or queue.
    pub id: u32,
    /// Must be zero.
    pub pad: u32,
    /// Must be zero.
    pub reserved: [u64; 2],
}

/// `drm_xe_vm_bind_op`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct VmBindOp {
    /// No extension is defined.
    pub extensions: u64,
    /// The buffer, where the operation has one.
    pub obj: u32,
    /// Index into the page attribute table.
    pub pat_index: u16,
    /// Must be zero.
    pub pad: u16,
    /// Offset into the buffer, or the client address of a userptr.
    pub obj_offset: u64,
    /// Bytes.
    pub range: u64,
    /// GPU virtual address.
    pub addr: u64,
    /// `BIND_OP_*`.
    pub op: u32,
    /// `BIND_FLAG_*`.
    pub flags: u32,
    /// Region instance for a prefetch.
    pub prefetch_mem_region_instance: u32,
    /// Must be zero.
    pub pad2: u32,
    /// Must be zero.
    pub reserved: [u64; 3],
}

/// `DRM_XE_VM_BIND_OP_MAP`.
pub const BIND_OP_MAP: u32 = 0;
/// `DRM_XE_VM_BIND_OP_UNMAP`.
pub const BIND_OP_UNMAP: u32 = 1;
/// `DRM_XE_VM_BIND_OP_MAP_USERPTR`.
pub const BIND_OP_MAP_USERPTR: u32 = 2;
/// `DRM_XE_VM_BIND_OP_UNMAP_ALL`.
pub const BIND_OP_UNMAP_ALL: u32 = 3;
/// `DRM_XE_VM_BIND_OP_PREFETCH`.
pub const BIND_OP_PREFETCH: u32 = 4;
/// `DRM_XE_VM_BIND_FLAG_READONLY`.
pub const BIND_FLAG_READONLY: u32 = 1 << 0;
/// `DRM_XE_VM_BIND_FLAG_IMMEDIATE`.
pub const BIND_FLAG_IMMEDIATE: u32 = 1 << 1;
/// `DRM_XE_VM_BIND_FLAG_NULL`.
pub const BIND_FLAG_NULL: u32 = 1 << 2;
/// `DRM_XE_VM_BIND_FLAG_DUMPABLE`.
pub const BIND_FLAG_DUMPABLE: u32 = 1 << 3;

/// `DRM_XE_VM_BIND_FLAG_CHECK_PXP`.
pub const BIND_FLAG_CHECK_PXP: u32 = 1 << 4;
/// An operation with it makes its call fail (`ENOSPC`), each time at another point: how clients test that nothing is left
/// of a call that fails. In the kernel's driver an option for debugging; not in its public header.
pub const BIND_FLAG_FORCE_ERROR: u32 = 1 << 31;
/// `DRM_XE_CONSULT_MEM_ADVISE_PREF_LOC`.
pub const CONSULT_MEM_ADVISE_PREF_LOC: u32 = u32::MAX;

/// `drm_xe_vm_bind`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct VmBind {
    /// No extension is defined.
    pub extensions: u64,
    /// The VM.
    pub vm_id: u32,
    /// A bind queue of that VM, 0 for its default one.
    pub exec_queue_id: u32,
    /// Must be zero.
    pub pad: u32,
    /// How many operations.
    pub num_binds: u32,
    /// The operation when there is one; its first eight bytes are the client address of the array when there are more.
    pub bind: VmBindOp,
    /// Must be zero.
    pub pad2: u32,
    /// How many syncs.
    pub num_syncs: u32,
    /// Client address of the syncs.
    pub syncs: u64,
    /// Must be zero.
    pub reserved: [u64; 2],
}

/// `drm_xe_exec_queue_create`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct ExecQueueCreate {
    /// A chain of [`ExtSetProperty`].
    pub extensions: u64,
    /// Batches per submission.
    pub width: u16,
    /// Engines it may run on.
    pub num_placements: u16,
    /// Its VM.
    pub vm_id: u32,
    /// `EXEC_QUEUE_LOW_LATENCY_HINT`.
    pub flags: u32,
    /// Out.
    pub exec_queue_id: u32,
    /// Client address of `width * num_placements` [`EngineClassInstance`].
    pub instances: u64,
    /// Must be zero.
    pub reserved: [u64; 2],
}

/// `DRM_XE_EXEC_QUEUE_LOW_LATENCY_HINT`.
pub const EXEC_QUEUE_LOW_LATENCY_HINT: u32 = 1 << 0;
/// `DRM_XE_EXEC_QUEUE_EXTENSION_SET_PROPERTY`.
pub const EXEC_QUEUE_EXTENSION_SET_PROPERTY: u32 = 0;
/// `DRM_XE_EXEC_QUEUE_SET_PROPERTY_PRIORITY`.
pub const EXEC_QUEUE_PROPERTY_PRIORITY: u32 = 0;
/// `DRM_XE_EXEC_QUEUE_SET_PROPERTY_TIMESLICE`.
pub const EXEC_QUEUE_PROPERTY_TIMESLICE: u32 = 1;
/// `DRM_XE_EXEC_QUEUE_SET_PROPERTY_PXP_TYPE`.
pub const EXEC_QUEUE_PROPERTY_PXP_TYPE: u32 = 2;
/// `DRM_XE_EXEC_QUEUE_GET_PROPERTY_BAN`.
pub const EXEC_QUEUE_GET_PROPERTY_BAN: u32 = 0;

/// `drm_xe_exec_queue_get_property`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct ExecQueueGetProperty {
    /// No extension is defined.
    pub extensions: u64,
    /// The queue.
    pub exec_queue_id: u32,
    /// Which property.
    pub property: u32,
    /// Out.
    pub value: u64,
    /// Must be zero.
    pub reserved: [u64; 2],
}

/// `drm_xe_sync`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Sync {
    /// No extension is defined.
    pub extensions: u64,
    /// `SYNC_TYPE_*`.
    pub kind: u32,
    /// `SYNC_FLAG_SIGNAL`.
    pub flags: u32,
    /// A syncobj's handle (low 32 bits), or a user fence's address.
    pub handle_or_addr: u64,
    /// The point of a timeline, or the value of a user fence.
    pub timeline_value: u64,
    /// Must be zero.
    pub reserved: [u64; 2],
}

/// `DRM_XE_SYNC_TYPE_SYNCOBJ`.
pub const SYNC_TYPE_SYNCOBJ: u32 = 0;
/// `DRM_XE_SYNC_TYPE_TIMELINE_SYNCOBJ`.
pub const SYNC_TYPE_TIMELINE_SYNCOBJ: u32 = 1;
/// `DRM_XE_SYNC_TYPE_USER_FENCE`.
pub const SYNC_TYPE_USER_FENCE: u32 = 2;
/// `DRM_XE_SYNC_FLAG_SIGNAL`.
pub const SYNC_FLAG_SIGNAL: u32 = 1 << 0;
/// `DRM_XE_MAX_SYNCS`.
pub const MAX_SYNCS: u32 = 1024;

/// `drm_xe_exec`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Exec {
    /// No extension is defined.
    pub extensions: u64,
    /// The queue.
    pub exec_queue_id: u32,
    /// How many syncs.
    pub num_syncs: u32,
    /// Client address of the syncs.
    pub syncs: u64,
    /// GPU address of the batch, or the client address of an array of such.
    pub address: u64,
    /// Number of batches: the queue's width, or 0 to wait for what is queued.
    pub num_batch_buffer: u16,
    /// Must be zero.
    pub pad: [u16; 3],
    /// Must be zero.
    pub reserved: [u64; 2],
}

/// `drm_xe_wait_user_fence`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct WaitUserFence {
    /// No extension is defined.
    pub extensions: u64,
    /// Client address of the fence's 64-bit value.
    pub addr: u64,
    /// Comparison, 0 to 5.
    pub op: u16,
    /// `UFENCE_ABSTIME`.
    pub flags: u16,
    /// Must be zero.
    pub pad: u32,
    /// Compared with.
    pub value: u64,
    /// Bits that count.
    pub mask: u64,
    /// Nanoseconds: relative, or absolute on `CLOCK_MONOTONIC`; negative is forever.
    pub timeout: i64,
    /// The queue whose failure ends the wait, 0 for none.
    pub exec_queue_id: u32,
    /// Must be zero.
    pub pad2: u32,
    /// Must be zero.
    pub reserved: [u64; 2],
}

/// `DRM_XE_UFENCE_WAIT_FLAG_ABSTIME`.
pub const UFENCE_ABSTIME: u16 = 1 << 0;

const _: () = {
    assert!(size_of::<ExtSetProperty>() == 48);
    assert!(size_of::<Engine>() == 32);
    assert!(size_of::<MemRegion>() == 88);
    assert!(size_of::<Gt>() == 96);
    assert!(size_of::<EngineCycles>() == 40);
    assert!(size_of::<UcFwVersion>() == 32);
    assert!(size_of::<DeviceQuery>() == 40);
    assert!(size_of::<GemCreate>() == 56);
    assert!(size_of::<GemMmapOffset>() == 40);
    assert!(size_of::<VmCreate>() == 32);
    assert!(size_of::<VmGetProperty>() == 56);
    assert!(size_of::<VmFault>() == 48);
    assert!(size_of::<Destroy>() == 24);
    assert!(size_of::<VmBindOp>() == 80);
    assert!(size_of::<VmBind>() == 136);
    assert!(size_of::<ExecQueueCreate>() == 48);
    assert!(size_of::<ExecQueueGetProperty>() == 40);
    assert!(size_of::<Sync>() == 48);
    assert!(size_of::<Exec>() == 56);
    assert!(size_of::<WaitUserFence>() == 72);
};
