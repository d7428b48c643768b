//! A small DRM client: buffers, an address space and a copy queue over raw ioctls, as a program without any library
//! would write them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context as _, Result, bail};
use bytemuck::{Pod, Zeroable};
use lapidary_drm::xe::uapi::{self, nr};

use super::sys::{Mapping, drm_ioctl, owned};

/// First driver-specific ioctl number (`DRM_COMMAND_BASE`).
const COMMAND_BASE: u8 = 0x40;

/// Core DRM ioctls and their arguments (`drm.h`).
mod core {
    use super::{Pod, Zeroable};

    pub(super) const GEM_CLOSE: u8 = 0x09;
    pub(super) const PRIME_HANDLE_TO_FD: u8 = 0x2d;
    pub(super) const PRIME_FD_TO_HANDLE: u8 = 0x2e;
    pub(super) const SYNCOBJ_CREATE: u8 = 0xbf;
    pub(super) const SYNCOBJ_TIMELINE_WAIT: u8 = 0xca;
    pub(super) const PRIME_RDWR_CLOEXEC: u32 = 0o2_000_002;
    pub(super) const WAIT_FOR_SUBMIT: u32 = 1 << 1;

    #[repr(C)]
    #[derive(Clone, Copy, Default, Pod, Zeroable)]
    pub(super) struct GemClose {
        pub(super) handle: u32,
        pub(super) pad: u32,
    }

    #[repr(C)]
    #[derive(Clone, Copy, Default, Pod, Zeroable)]
    pub(super) struct PrimeHandle {
        pub(super) handle: u32,
        pub(super) flags: u32,
        pub(super) fd: i32,
    }

    #[repr(C)]
    #[derive(Clone, Copy, Default, Pod, Zeroable)]
    pub(super) struct SyncobjCreate {
        pub(super) handle: u32,
        pub(super) flags: u32,
    }

    #[repr(C)]
    #[derive(Clone, Copy, Default, Pod, Zeroable)]
    pub(super) struct SyncobjTimelineWait {
        pub(super) handles: u64,
        pub(super) points: u64,
        pub(super) timeout_nsec: i64,
        pub(super) count_handles: u32,
        pub(super) flags: u32,
        pub(super) first_signaled: u32,
        pub(super) pad: u32,
        pub(super) deadline_nsec: u64,
    }
}

/// Where a buffer may live: bits of the placement mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    System,
    Vram,
}

/// An open device with one address space and one copy queue.
pub(super) struct Gpu {
    file: File,
    vm: u32,
    queue: u32,
    timeline: u32,
    point: std::cell::Cell<u64>,
    batch: Buffer,
    batch_map: Mapping,
    regions: Vec<uapi::MemRegion>,
}

/// A buffer object; [`Gpu::close`] gives it back, and so does the end of the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    pub(super) handle: u32,
    pub(super) size: u64,
}

/// Where the batch buffer is mapped; buffers of the scenario live above.
const BATCH_ADDRESS: u64 = 0x10_0000;
const BATCH_SIZE: u64 = 64 << 10;
/// Coherent write-back, valid for every buffer (Xe2).
const PAT_COHERENT: u16 = 1;
/// `DRM_XE_MEM_REGION_CLASS_VRAM`.
const CLASS_VRAM: u16 = 1;

impl Gpu {
    /// Opens the render node and sets up the address space, the queue and the batch buffer.
    pub(super) fn open() -> Result<Self> {
        let path = "/dev/dri/renderD128";
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("can't open {path}"))?;
        let regions = query_regions(&file)?;
        let mut vm = uapi::VmCreate::zeroed();
        xe(&file, nr::VM_CREATE, &mut vm).context("VM_CREATE")?;
        let copy = uapi::EngineClassInstance { engine_class: uapi::engine_class::COPY, ..Zeroable::zeroed() };
        let mut queue = uapi::ExecQueueCreate {
            width: 1,
            num_placements: 1,
            vm_id: vm.vm_id,
            instances: std::ptr::from_ref(&copy) as u64,
            ..Zeroable::zeroed()
        };
        xe(&file, nr::EXEC_QUEUE_CREATE, &mut queue).context("EXEC_QUEUE_CREATE")?;
        let mut syncobj = core::SyncobjCreate::zeroed();
        drm_ioctl(&file, core::SYNCOBJ_CREATE, &mut syncobj).context("SYNCOBJ_CREATE")?;
        let batch = create(&file, &regions, Place::System, BATCH_SIZE, vm.vm_id)?;
        let batch_map = map(&file, batch)?;
        let gpu = Self {
            file,
            vm: vm.vm_id,
            queue: queue.exec_queue_id,
            timeline: syncobj.handle,
            point: std::cell::Cell::new(0),
            batch,
            batch_map,
            regions,
        };
        gpu.bind(gpu.batch, 0, BATCH_ADDRESS, BATCH_SIZE)?;
        Ok(gpu)
    }

    /// Whether the device has memory of its own.
    pub(super) fn has_vram(&self) -> bool {
        self.regions.iter().any(|region| region.mem_class == CLASS_VRAM)
    }

    /// A new buffer that belongs to this address space, or, where `shared`, one that can be exported.
    pub(super) fn create(&self, place: Place, size: u64, shared: bool) -> Result<Buffer> {
        create(&self.file, &self.regions, place, size, if shared { 0 } else { self.vm })
    }

    /// Maps the whole buffer into this process.
    pub(super) fn map(&self, buffer: Buffer) -> Result<Mapping> {
        map(&self.file, buffer)
    }

    /// Gives the buffer back; the GPU's use of it goes on until it is unbound.
    pub(super) fn close(&self, buffer: Buffer) -> Result<()> {
        let mut close = core::GemClose { handle: buffer.handle, pad: 0 };
        drm_ioctl(&self.file, core::GEM_CLOSE, &mut close).context("GEM_CLOSE")
    }

    /// Maps `len` bytes of `buffer` from `offset` at GPU address `address`.
    pub(super) fn bind(&self, buffer: Buffer, offset: u64, address: u64, len: u64) -> Result<()> {
        self.vm_bind(uapi::VmBindOp {
            obj: buffer.handle,
            obj_offset: offset,
            op: uapi::BIND_OP_MAP,
            ..range(address, len)
        })
    }

    /// Makes a range sparse: reads give zero, writes vanish.
    pub(super) fn bind_null(&self, address: u64, len: u64) -> Result<()> {
        let flags = uapi::BIND_FLAG_NULL;
        self.vm_bind(uapi::VmBindOp { op: uapi::BIND_OP_MAP, flags, ..range(address, len) })
    }

    /// Unmaps a range.
    pub(super) fn unbind(&self, address: u64, len: u64) -> Result<()> {
        self.vm_bind(uapi::VmBindOp { op: uapi::BIND_OP_UNMAP, ..range(address, len) })
    }

    /// Maps a whole buffer without asking to be told of it: a bind that waits for nothing is in effect on return.
    pub(super) fn bind_now(&self, buffer: Buffer, address: u64) -> Result<()> {
        let obj = buffer.handle;
        self.vm_bind_now(uapi::VmBindOp { obj, op: uapi::BIND_OP_MAP, ..range(address, buffer.size) })
    }

    /// Maps the whole buffer `count` times, one after the other from `address` on, with one call.
    pub(super) fn bind_array_now(&self, buffer: Buffer, address: u64, count: u32) -> Result<()> {
        let op = |n| uapi::VmBindOp {
            obj: buffer.handle,
            op: uapi::BIND_OP_MAP,
            ..range(address + n * buffer.size, buffer.size)
        };
        let ops: Vec<_> = (0..u64::from(count)).map(op).collect();
        // The union's first eight bytes are the array's address.
        let bind = uapi::VmBindOp { extensions: ops.as_ptr() as u64, ..Zeroable::zeroed() };
        let mut args = uapi::VmBind { vm_id: self.vm, num_binds: count, bind, ..Zeroable::zeroed() };
        xe(&self.file, nr::VM_BIND, &mut args).with_context(|| format!("VM_BIND of {count} at {address:#x}"))
    }

    /// Unmaps a range, as [`bind_now`](Self::bind_now) maps one.
    pub(super) fn unbind_now(&self, address: u64, len: u64) -> Result<()> {
        self.vm_bind_now(uapi::VmBindOp { op: uapi::BIND_OP_UNMAP, ..range(address, len) })
    }

    fn vm_bind_now(&self, bind: uapi::VmBindOp) -> Result<()> {
        let mut args = uapi::VmBind { vm_id: self.vm, num_binds: 1, bind, ..Zeroable::zeroed() };
        xe(&self.file, nr::VM_BIND, &mut args).with_context(|| format!("VM_BIND at {:#x}", bind.addr))
    }

    /// Runs one bind operation and waits for it.
    fn vm_bind(&self, bind: uapi::VmBindOp) -> Result<()> {
        let done = self.next_sync();
        let mut args = uapi::VmBind {
            vm_id: self.vm,
            num_binds: 1,
            bind,
            num_syncs: 1,
            syncs: std::ptr::from_ref(&done) as u64,
            ..Zeroable::zeroed()
        };
        xe(&self.file, nr::VM_BIND, &mut args).with_context(|| format!("VM_BIND at {:#x}", bind.addr))?;
        self.wait(done.timeline_value)
    }

    /// Runs `batch` on the copy engine and waits for it.
    pub(super) fn run(&self, batch: &Batch) -> Result<()> {
        if batch.0.len() as u64 * 4 > BATCH_SIZE {
            bail!("a batch of {} dwords does not fit its buffer", batch.0.len());
        }
        for (index, dword) in batch.0.iter().enumerate() {
            self.batch_map.write_u32(index, *dword);
        }
        let done = self.next_sync();
        let mut args = uapi::Exec {
            exec_queue_id: self.queue,
            num_syncs: 1,
            syncs: std::ptr::from_ref(&done) as u64,
            address: BATCH_ADDRESS,
            num_batch_buffer: 1,
            ..Zeroable::zeroed()
        };
        xe(&self.file, nr::EXEC, &mut args).context("EXEC")?;
        self.wait(done.timeline_value)?;
        if self.is_banned()? {
            bail!("the copy queue was banned");
        }
        Ok(())
    }

    /// Whether the copy queue failed: the cheapest question there is.
    pub(super) fn is_banned(&self) -> Result<bool> {
        let mut ban = uapi::ExecQueueGetProperty {
            exec_queue_id: self.queue,
            property: uapi::EXEC_QUEUE_GET_PROPERTY_BAN,
            ..Zeroable::zeroed()
        };
        xe(&self.file, nr::EXEC_QUEUE_GET_PROPERTY, &mut ban).context("EXEC_QUEUE_GET_PROPERTY")?;
        Ok(ban.value != 0)
    }

    /// A descriptor of the buffer for other processes.
    pub(super) fn export(&self, buffer: Buffer) -> Result<OwnedFd> {
        let mut prime = core::PrimeHandle { handle: buffer.handle, flags: core::PRIME_RDWR_CLOEXEC, fd: -1 };
        drm_ioctl(&self.file, core::PRIME_HANDLE_TO_FD, &mut prime).context("PRIME_HANDLE_TO_FD")?;
        Ok(owned(prime.fd)?)
    }

    /// The buffer behind a descriptor of another process.
    pub(super) fn import(&self, fd: &OwnedFd, size: u64) -> Result<Buffer> {
        let mut prime = core::PrimeHandle { handle: 0, flags: 0, fd: fd.as_raw_fd() };
        drm_ioctl(&self.file, core::PRIME_FD_TO_HANDLE, &mut prime).context("PRIME_FD_TO_HANDLE")?;
        Ok(Buffer { handle: prime.handle, size })
    }

    fn next_sync(&self) -> uapi::Sync {
        self.point.set(self.point.get() + 1);
        uapi::Sync {
            kind: uapi::SYNC_TYPE_TIMELINE_SYNCOBJ,
            flags: uapi::SYNC_FLAG_SIGNAL,
            handle_or_addr: self.timeline.into(),
            timeline_value: self.point.get(),
            ..Zeroable::zeroed()
        }
    }

    fn wait(&self, point: u64) -> Result<()> {
        let mut wait = core::SyncobjTimelineWait {
            handles: std::ptr::from_ref(&self.timeline) as u64,
            points: std::ptr::from_ref(&point) as u64,
            timeout_nsec: i64::MAX,
            count_handles: 1,
            flags: core::WAIT_FOR_SUBMIT,
            ..Zeroable::zeroed()
        };
        drm_ioctl(&self.file, core::SYNCOBJ_TIMELINE_WAIT, &mut wait).context("SYNCOBJ_TIMELINE_WAIT")
    }
}

fn range(addr: u64, range: u64) -> uapi::VmBindOp {
    uapi::VmBindOp { addr, range, pat_index: PAT_COHERENT, ..Zeroable::zeroed() }
}

fn xe<T: Pod>(file: &File, nr: u8, argument: &mut T) -> io::Result<()> {
    drm_ioctl(file, COMMAND_BASE + nr, argument)
}

fn query_regions(file: &File) -> Result<Vec<uapi::MemRegion>> {
    let mut query = uapi::DeviceQuery { query: uapi::query::MEM_REGIONS, ..Zeroable::zeroed() };
    xe(file, nr::DEVICE_QUERY, &mut query).context("DEVICE_QUERY of the memory regions")?;
    let mut answer = vec![0u64; (query.size as usize).div_ceil(8)];
    query.data = answer.as_mut_ptr() as u64;
    xe(file, nr::DEVICE_QUERY, &mut query).context("DEVICE_QUERY of the memory regions")?;
    let bytes = &bytemuck::cast_slice::<u64, u8>(&answer)[..query.size as usize];
    let head = size_of::<uapi::QueryCount>();
    let count = bytemuck::pod_read_unaligned::<uapi::QueryCount>(&bytes[..head]).count as usize;
    Ok(bytes[head..]
        .chunks_exact(size_of::<uapi::MemRegion>())
        .take(count)
        .map(bytemuck::pod_read_unaligned)
        .collect())
}

fn create(file: &File, regions: &[uapi::MemRegion], place: Place, size: u64, vm: u32) -> Result<Buffer> {
    let wanted = if place == Place::Vram { CLASS_VRAM } else { 0 };
    let Some(region) = regions.iter().find(|region| region.mem_class == wanted) else {
        bail!("the device has no {place:?} memory");
    };
    let alignment = regions.iter().map(|region| u64::from(region.min_page_size)).max().unwrap_or(4096);
    let mut args = uapi::GemCreate {
        size: size.next_multiple_of(alignment),
        placement: 1 << region.instance,
        vm_id: vm,
        cpu_caching: if place == Place::Vram { uapi::CPU_CACHING_WC } else { uapi::CPU_CACHING_WB },
        ..Zeroable::zeroed()
    };
    xe(file, nr::GEM_CREATE, &mut args)
        .with_context(|| format!("GEM_CREATE of {size} bytes of {place:?} memory"))?;
    Ok(Buffer { handle: args.handle, size: args.size })
}

fn map(file: &File, buffer: Buffer) -> Result<Mapping> {
    let mut args = uapi::GemMmapOffset { handle: buffer.handle, ..Zeroable::zeroed() };
    xe(file, nr::GEM_MMAP_OFFSET, &mut args).context("GEM_MMAP_OFFSET")?;
    Mapping::new(file, args.offset, buffer.size as usize).context("mmap of a buffer")
}

/// Commands for the copy engine (Intel's blitter formats of Xe2).
#[derive(Clone, Debug, Default)]
pub(super) struct Batch(Vec<u32>);

impl Batch {
    /// Most bytes that one command copies here.
    const BYTE_COPY_MAX: u64 = 1 << 18;
    /// The unit of page copies, bytes.
    const PAGE_COPY_UNIT: u64 = 256;

    /// Copies `len` bytes, any alignment: MEM_COPY, in pages of 256 bytes where all fits them.
    pub(super) fn copy(mut self, from: u64, to: u64, len: u64) -> Self {
        const MEM_COPY: u32 = 2 << 29 | 0x5a << 22 | 8;
        const PAGE_MODE: u32 = 1 << 19;
        let unit = Self::PAGE_COPY_UNIT;
        if (from | to | len).is_multiple_of(unit) {
            self.mem_copy(MEM_COPY | PAGE_MODE, from, to, len / unit);
            return self;
        }
        let mut done = 0;
        while done < len {
            let step = (len - done).min(Self::BYTE_COPY_MAX);
            self.mem_copy(MEM_COPY, from + done, to + done, step);
            done += step;
        }
        self
    }

    fn mem_copy(&mut self, head: u32, from: u64, to: u64, units: u64) {
        self.0.extend([head, (units - 1) as u32, 0, 0, 0]);
        self.0.extend([from as u32, (from >> 32) as u32, to as u32, (to >> 32) as u32, 0]);
    }

    /// Fills `len` bytes, a multiple of 64 KiB, with a 32-bit value: XY_FAST_COLOR_BLT on rows of 64 KiB.
    pub(super) fn fill(mut self, to: u64, len: u64, value: u32) -> Self {
        const FAST_COLOR: u32 = 2 << 29 | 0x44 << 22 | 14;
        const DEPTH_32: u32 = 2 << 19;
        const PITCH: u32 = 1 << 16;
        const MAX_ROWS: u64 = 1 << 14;
        let rows = len / u64::from(PITCH);
        let mut row = 0;
        while row < rows {
            let step = (rows - row).min(MAX_ROWS);
            let at = to + row * u64::from(PITCH);
            self.0.extend([FAST_COLOR | DEPTH_32, PITCH - 1, 0, ((step as u32) << 16) | (PITCH / 4)]);
            self.0.extend([at as u32, (at >> 32) as u32, 0, value, 0, 0, 0, 0, 0]);
            // Surface: type 2D, its size; no levels, no array.
            self.0.extend([(1 << 29) | ((PITCH / 4 - 1) << 14) | (step as u32 - 1), 0, 0]);
            row += step;
        }
        self
    }

    /// Ends the batch.
    pub(super) fn end(mut self) -> Self {
        const MI_BATCH_BUFFER_END: u32 = 0x0a << 23;
        self.0.extend([MI_BATCH_BUFFER_END, 0]);
        self
    }
}
