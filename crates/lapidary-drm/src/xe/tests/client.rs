//! A client of the driver with typed calls, and batches to give it.
//!
//! The client's memory is the test's own. Buffers are read and written through their memfds, as a client's `mmap` would.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use lapidary::fence::FenceError;
use lapidary_gpu::GpuVa;
use lapidary_gpu::pagetable::Target;

use super::*;
use crate::uapi::drm;

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
/// Size of the smallest buffer in device memory.
pub(super) const CHUNK: u64 = 64 * KIB;
/// A PAT index that every buffer can be mapped with.
pub(super) const COHERENT: u16 = 1;
/// Placement masks.
pub(super) const SYSTEM: u32 = 1;
pub(super) const VRAM: u32 = 2;

/// Where a [`Rig`] keeps its batches.
const CODE: u64 = 0x10_0000;
/// Bytes of a batch's slot.
const SLOT: u64 = 1024;
/// A value in the code buffer that gates wait for.
const GATES: u64 = CHUNK - 4 * KIB;

/// A small device.
pub(super) fn small() -> DeviceConfig {
    DeviceConfig { vram_size: 64 * MIB, ..DeviceConfig::default() }
}

/// A process with one open file of the device.
pub(super) struct Client {
    pub(super) test: TestClient,
    pub(super) file: Arc<dyn File>,
    device: Arc<DrmDevice<XeDriver>>,
    id: crate::core::ClientId,
}

/// A buffer's bytes as the CPU sees them.
pub(super) struct Bytes(OwnedFd);

impl Bytes {
    pub(super) fn write(&self, at: u64, words: &[u32]) {
        rustix::io::pwrite(&self.0, bytemuck::cast_slice(words), at).unwrap();
    }

    pub(super) fn read(&self, at: u64) -> u32 {
        let mut word = [0; 4];
        rustix::io::pread(&self.0, &mut word, at).unwrap();
        u32::from_ne_bytes(word)
    }
}

/// Operations of VM_BIND.
pub(super) fn map(obj: u32, obj_offset: u64, addr: u64, range: u64) -> uapi::VmBindOp {
    uapi::VmBindOp { obj, obj_offset, addr, range, pat_index: COHERENT, ..Zeroable::zeroed() }
}

pub(super) fn map_null(addr: u64, range: u64) -> uapi::VmBindOp {
    uapi::VmBindOp { flags: uapi::BIND_FLAG_NULL, ..map(0, 0, addr, range) }
}

pub(super) fn map_host(memory: u64, addr: u64, range: u64) -> uapi::VmBindOp {
    uapi::VmBindOp { op: uapi::BIND_OP_MAP_USERPTR, ..map(0, memory, addr, range) }
}

pub(super) fn unmap(addr: u64, range: u64) -> uapi::VmBindOp {
    uapi::VmBindOp { op: uapi::BIND_OP_UNMAP, ..map(0, 0, addr, range) }
}

pub(super) fn unmap_all(obj: u32) -> uapi::VmBindOp {
    uapi::VmBindOp { op: uapi::BIND_OP_UNMAP_ALL, ..map(obj, 0, 0, 0) }
}

/// Syncs.
pub(super) fn after(handle: u32) -> uapi::Sync {
    uapi::Sync { handle_or_addr: handle.into(), ..Zeroable::zeroed() }
}

pub(super) fn signal(handle: u32) -> uapi::Sync {
    uapi::Sync { flags: uapi::SYNC_FLAG_SIGNAL, ..after(handle) }
}

pub(super) fn signal_point(handle: u32, point: u64) -> uapi::Sync {
    uapi::Sync { kind: uapi::SYNC_TYPE_TIMELINE_SYNCOBJ, timeline_value: point, ..signal(handle) }
}

pub(super) fn user_fence(address: u64, value: u64) -> uapi::Sync {
    uapi::Sync {
        kind: uapi::SYNC_TYPE_USER_FENCE,
        flags: uapi::SYNC_FLAG_SIGNAL,
        handle_or_addr: address,
        timeline_value: value,
        ..Zeroable::zeroed()
    }
}

impl Client {
    pub(super) fn new(bench: &Bench) -> Self {
        let test = bench.client.beside();
        let file = bench.device.open(test.process(), Node::Render).unwrap();
        let id = bench.device.files().last().unwrap().id();
        Self { test, file, device: bench.device.clone(), id }
    }

    /// Another thread or process with the same open file.
    pub(super) fn beside(&self, bench: &Bench) -> Self {
        let (test, file) = (bench.client.beside(), Arc::clone(&self.file));
        Self { test, file, device: bench.device.clone(), id: self.id }
    }

    pub(super) fn xe<T: Pod>(&mut self, number: u8, args: T) -> Result<T, Errno> {
        run(&mut self.test, &*self.file, number, args)
    }

    pub(super) fn drm<T: Pod>(&mut self, command: Command, args: T) -> Result<T, Errno> {
        let mut args = args;
        self.test.ioctl(&*self.file, command.0, &mut args)?;
        Ok(args)
    }

    /// The file itself, to look at what no call tells.
    pub(super) fn inside(&self) -> Arc<crate::core::DrmFile<XeDriver>> {
        self.device.files().into_iter().find(|file| file.id() == self.id).unwrap()
    }

    pub(super) fn vm(&mut self) -> u32 {
        self.try_vm(0).unwrap()
    }

    pub(super) fn try_vm(&mut self, flags: u32) -> Result<u32, Errno> {
        let args = uapi::VmCreate { flags, ..Zeroable::zeroed() };
        self.xe(nr::VM_CREATE, args).map(|args| args.vm_id)
    }

    pub(super) fn destroy_vm(&mut self, id: u32) {
        self.xe(nr::VM_DESTROY, uapi::Destroy { id, ..Zeroable::zeroed() }).unwrap();
    }

    /// A buffer that belongs to `vm`, or to none.
    pub(super) fn buffer(&mut self, placement: u32, size: u64, vm: u32) -> u32 {
        self.try_buffer(placement, size, vm).unwrap()
    }

    pub(super) fn try_buffer(&mut self, placement: u32, size: u64, vm_id: u32) -> Result<u32, Errno> {
        let args = uapi::GemCreate {
            size,
            placement,
            vm_id,
            cpu_caching: uapi::CPU_CACHING_WC,
            ..Zeroable::zeroed()
        };
        self.xe(nr::GEM_CREATE, args).map(|args| args.handle)
    }

    pub(super) fn close(&mut self, handle: u32) {
        self.drm(drm::IOCTL_GEM_CLOSE, drm::GemClose { handle, pad: 0 }).unwrap();
    }

    pub(super) fn offset(&mut self, handle: u32) -> u64 {
        let args = uapi::GemMmapOffset { handle, ..Zeroable::zeroed() };
        self.xe(nr::GEM_MMAP_OFFSET, args).unwrap().offset
    }

    pub(super) fn mmap(&mut self, offset: u64, len: u64) -> Result<Bytes, Errno> {
        let file = self.file.clone();
        let map = self.test.call(0, |call| file.mmap(call, offset, len, 3, 1))?;
        Ok(Bytes(map.fd.try_clone().unwrap()))
    }

    pub(super) fn bytes(&mut self, handle: u32) -> Bytes {
        let offset = self.offset(handle);
        self.mmap(offset, 4096).unwrap()
    }

    pub(super) fn bind(
        &mut self,
        vm: u32,
        ops: &[uapi::VmBindOp],
        syncs: &[uapi::Sync],
    ) -> Result<(), Errno> {
        self.bind_on(0, vm, ops, syncs)
    }

    pub(super) fn bind_on(
        &mut self,
        exec_queue_id: u32,
        vm_id: u32,
        ops: &[uapi::VmBindOp],
        syncs: &[uapi::Sync],
    ) -> Result<(), Errno> {
        let array = uapi::VmBindOp { extensions: ops.as_ptr() as u64, ..Zeroable::zeroed() };
        let args = uapi::VmBind {
            vm_id,
            exec_queue_id,
            num_binds: ops.len() as u32,
            bind: if let [only] = ops { *only } else { array },
            num_syncs: syncs.len() as u32,
            syncs: syncs.as_ptr() as u64,
            ..Zeroable::zeroed()
        };
        self.xe(nr::VM_BIND, args).map(drop)
    }

    pub(super) fn queue(&mut self, vm: u32, class: u16) -> u32 {
        self.try_queue(vm, class, 0).unwrap()
    }

    pub(super) fn try_queue(&mut self, vm_id: u32, class: u16, extensions: u64) -> Result<u32, Errno> {
        let engine = uapi::EngineClassInstance { engine_class: class, ..Zeroable::zeroed() };
        let args = uapi::ExecQueueCreate {
            width: 1,
            num_placements: 1,
            vm_id,
            instances: std::ptr::from_ref(&engine) as u64,
            extensions,
            ..Zeroable::zeroed()
        };
        self.xe(nr::EXEC_QUEUE_CREATE, args).map(|args| args.exec_queue_id)
    }

    pub(super) fn destroy_queue(&mut self, id: u32) {
        self.xe(nr::EXEC_QUEUE_DESTROY, uapi::Destroy { id, ..Zeroable::zeroed() }).unwrap();
    }

    pub(super) fn is_banned(&mut self, queue: u32) -> bool {
        let args = uapi::ExecQueueGetProperty { exec_queue_id: queue, ..Zeroable::zeroed() };
        self.xe(nr::EXEC_QUEUE_GET_PROPERTY, args).unwrap().value == 1
    }

    /// Runs the batch at `address`; with none, marks the end of what is queued.
    pub(super) fn exec(
        &mut self,
        queue: u32,
        address: impl Into<Option<u64>>,
        syncs: &[uapi::Sync],
    ) -> Result<(), Errno> {
        let address = address.into();
        let args = uapi::Exec {
            exec_queue_id: queue,
            num_syncs: syncs.len() as u32,
            syncs: syncs.as_ptr() as u64,
            address: address.unwrap_or(0),
            num_batch_buffer: address.is_some().into(),
            ..Zeroable::zeroed()
        };
        self.xe(nr::EXEC, args).map(drop)
    }

    pub(super) fn syncobj(&mut self) -> u32 {
        self.drm(drm::IOCTL_SYNCOBJ_CREATE, drm::SyncobjCreate { handle: 0, flags: 0 }).unwrap().handle
    }

    /// Waits until a syncobj has signalled, whatever its fence's status.
    pub(super) fn wait(&mut self, syncobj: u32) {
        self.wait_until(syncobj, i64::MAX).unwrap();
    }

    pub(super) fn is_signalled(&mut self, syncobj: u32) -> bool {
        self.wait_until(syncobj, 0).is_ok()
    }

    fn wait_until(&mut self, syncobj: u32, timeout_nsec: i64) -> Result<(), Errno> {
        let args = drm::SyncobjWait {
            handles: std::ptr::from_ref(&syncobj) as u64,
            timeout_nsec,
            count_handles: 1,
            ..Zeroable::zeroed()
        };
        self.drm(drm::IOCTL_SYNCOBJ_WAIT, args).map(drop)
    }

    /// How the fence in a syncobj ended.
    pub(super) fn outcome(&mut self, syncobj: u32) -> Result<(), FenceError> {
        self.wait(syncobj);
        self.inside().syncobjs().get(syncobj).unwrap().fence().unwrap().status().unwrap()
    }

    /// What page tables say.
    pub(super) fn translate(&self, vm: u32, address: u64) -> Option<Target> {
        let vm = self.inside().data().vm(vm).unwrap();
        let address = GpuVa::new(address);
        vm.space().translate(address).map(|leaf| leaf.target_of(address))
    }
}

/// Two pages of the client's own memory, which stay while anybody might use them.
pub(super) struct Pages(&'static [AtomicU32]);

impl Pages {
    pub(super) fn new() -> Self {
        let words: Vec<_> = (0..4 * 1024).map(|_| AtomicU32::new(0)).collect();
        let words = &*Vec::leak(words);
        let skip = (words.as_ptr() as usize).next_multiple_of(4096) - words.as_ptr() as usize;
        Self(&words[skip / 4..][..2048])
    }

    pub(super) fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    pub(super) fn get(&self, at: usize) -> u32 {
        self.0[at / 4].load(Ordering::SeqCst)
    }

    pub(super) fn set(&self, at: usize, value: u32) {
        self.0[at / 4].store(value, Ordering::SeqCst);
    }
}

/// Commands of a batch.
#[derive(Clone, Default)]
pub(super) struct Batch(Vec<u32>);

impl Batch {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn address(&mut self, address: u64) {
        self.0.extend([address as u32, (address >> 32) as u32]);
    }

    pub(super) fn store(mut self, to: u64, value: u32) -> Self {
        self.0.push(0x20 << 23 | 2);
        self.address(to);
        self.0.push(value);
        self
    }

    /// Waits until the word at `at` is `value`.
    pub(super) fn until(mut self, at: u64, value: u32) -> Self {
        self.0.extend([0x1c << 23 | 1 << 15 | 4 << 12 | 3, value]);
        self.address(at);
        self.0.push(0);
        self
    }

    /// Copies up to 256 KiB.
    pub(super) fn copy(mut self, from: u64, to: u64, len: u64) -> Self {
        self.0.extend([2 << 29 | 0x5a << 22 | 8, len as u32 - 1, 0, 0, 0]);
        self.address(from);
        self.address(to);
        self.0.push(0);
        self
    }

    pub(super) fn raw(mut self, words: &[u32]) -> Self {
        self.0.extend(words);
        self
    }

    fn end(mut self) -> Vec<u32> {
        self.0.push(0x0a << 23);
        self.0
    }
}

/// What most tests need: a client with an address space, a copy queue, and a buffer for batches.
pub(super) struct Rig {
    pub(super) client: Client,
    pub(super) vm: u32,
    pub(super) queue: u32,
    code: Bytes,
    slots: u64,
    gates: u64,
}

/// A place in memory that batches wait at until it is opened.
#[derive(Clone, Copy)]
pub(super) struct Gate(u64);

impl Gate {
    pub(super) fn address(self) -> u64 {
        CODE + self.0
    }
}

impl Rig {
    pub(super) fn new(bench: &Bench) -> Self {
        Self::in_mode(bench, 0)
    }

    /// With an address space of these flags.
    pub(super) fn in_mode(bench: &Bench, flags: u32) -> Self {
        let mut client = Client::new(bench);
        let vm = client.try_vm(flags).unwrap();
        let queue = client.queue(vm, uapi::engine_class::COPY);
        let code = client.buffer(SYSTEM, CHUNK, vm);
        client.bind(vm, &[map(code, 0, CODE, CHUNK)], &[]).unwrap();
        let code = client.bytes(code);
        Self { client, vm, queue, code, slots: 0, gates: 0 }
    }

    /// Puts a batch into memory; its address.
    pub(super) fn load(&mut self, batch: Batch) -> u64 {
        let words = batch.end();
        let len = (words.len() as u64 * 4).next_multiple_of(SLOT);
        let at = if self.slots + len > GATES { 0 } else { self.slots };
        self.slots = at + len;
        self.code.write(at, &words);
        CODE + at
    }

    pub(super) fn gate(&mut self) -> Gate {
        self.gates += 4;
        let gate = Gate(GATES + self.gates);
        self.code.write(gate.0, &[0]);
        gate
    }

    pub(super) fn open(&self, gate: Gate) {
        self.code.write(gate.0, &[1]);
    }

    /// Submits a batch; a syncobj with its fence.
    pub(super) fn submit(&mut self, batch: Batch) -> u32 {
        let queue = self.queue;
        self.submit_on(queue, batch, &[])
    }

    pub(super) fn submit_on(&mut self, queue: u32, batch: Batch, syncs: &[uapi::Sync]) -> u32 {
        let done = self.client.syncobj();
        let address = self.load(batch);
        let syncs: Vec<_> = syncs.iter().copied().chain([signal(done)]).collect();
        self.client.exec(queue, address, &syncs).unwrap();
        done
    }

    /// Runs a batch to its end, which is a good one.
    pub(super) fn run(&mut self, batch: Batch) {
        let done = self.submit(batch);
        assert_eq!(self.client.outcome(done), Ok(()));
    }

    /// Keeps the copy queue busy until the gate is opened.
    pub(super) fn busy(&mut self) -> (Gate, u32) {
        let gate = self.gate();
        let done = self.submit(Batch::new().until(gate.address(), 1));
        (gate, done)
    }

    pub(super) fn bind(&mut self, ops: &[uapi::VmBindOp]) {
        self.client.bind(self.vm, ops, &[]).unwrap();
    }

    pub(super) fn buffer(&mut self, placement: u32, size: u64) -> (u32, Bytes) {
        let handle = self.client.buffer(placement, size, self.vm);
        let bytes = self.client.bytes(handle);
        (handle, bytes)
    }
}

impl Bench {
    /// Whatever happened, nothing is left of it.
    pub(super) fn assert_clean(&self) {
        assert_eq!(self.survivors(), []);
        let usage = self.device.driver().memory_usage();
        assert_eq!((usage.system_used, usage.vram_used), (0, 0));
    }
}
