//! Device memory that is too small for all: who is moved out comes back, with its bytes, where page tables say.

use lapidary::fence::Interrupt;
use lapidary_gpu::memory::Space;
use lapidary_gpu::pagetable::Target;

use super::client::*;
use super::*;
use crate::uapi::drm;

const BASE: u64 = 1 << 30;

fn bench() -> Bench {
    Bench::new(&DeviceConfig { vram_size: 4 * MIB, ..small() })
}

impl Bench {
    fn evict_all(&self) {
        let driver = self.device.driver();
        driver.residency().evict_all(driver.vram_region(), &Interrupt::none()).unwrap();
    }
}

impl Rig {
    /// The next submission finds everything evicted, as if somebody else had needed the memory, while jobs go on.
    fn mark_evicted(&self) {
        let vm = self.client.inside().data().vm(self.vm).unwrap();
        let book = vm.gpu_vm().read();
        book.iter().filter_map(|mapping| mapping.get().vm_bo().cloned()).for_each(|tie| tie.evict());
    }
}

/// Which memory an address leads to.
fn space(target: Option<Target>) -> Option<Space> {
    match target? {
        Target::Memory(at) => Some(at.space),
        Target::Null => None,
    }
}

#[test]
fn address_spaces_take_turns_in_memory_that_is_too_small_for_both() {
    const BUFFERS: u64 = 3;
    let bench = bench();
    let mut rigs = [Rig::new(&bench), Rig::new(&bench)];
    let mut contents = Vec::new();
    for rig in &mut rigs {
        for n in 0..BUFFERS {
            let (buffer, bytes) = rig.buffer(VRAM, MIB);
            rig.bind(&[map(buffer, 0, BASE + n * MIB, MIB)]);
            contents.push(bytes);
        }
    }
    for round in 0..5_u32 {
        for rig in &mut rigs {
            // Each round moves last round's value on and leaves its own.
            let batch = (0..BUFFERS).fold(Batch::new(), |batch, n| {
                let at = BASE + n * MIB;
                batch.copy(at, at + 8, 4).store(at, 100 * round + n as u32)
            });
            rig.run(batch);
            assert!(bench.device.driver().memory_usage().vram_used <= 4 * MIB);
        }
    }
    for (n, bytes) in contents.iter().enumerate() {
        let n = n as u32 % BUFFERS as u32;
        assert_eq!((bytes.read(0), bytes.read(8)), (400 + n, 300 + n));
    }
    let (evictions, _) = bench.device.driver().residency().evictions();
    assert!(evictions >= 10, "{evictions}");
    drop(rigs);
    drop(contents);
    bench.assert_clean();
}

#[test]
fn a_shared_buffer_that_was_moved_out_is_back_for_whoever_uses_it_next() {
    let bench = bench();
    let mut rigs = [Rig::new(&bench), Rig::new(&bench)];
    let shared = rigs[0].client.buffer(VRAM, MIB, 0);
    let bytes = rigs[0].client.bytes(shared);
    let share = drm::PrimeHandle { handle: shared, flags: drm::PRIME_CLOEXEC | drm::PRIME_RDWR, fd: -1 };
    let fd = rigs[0].client.drm(drm::IOCTL_PRIME_HANDLE_TO_FD, share).unwrap().fd;
    let copy = rigs[1].client.test.adopt(rigs[0].client.test.descriptor(fd));
    let import = drm::PrimeHandle { handle: 0, flags: 0, fd: copy };
    let imported = rigs[1].client.drm(drm::IOCTL_PRIME_FD_TO_HANDLE, import).unwrap().handle;
    rigs[0].bind(&[map(shared, 0, BASE, MIB), map(shared, MIB / 2, BASE + MIB, MIB / 2)]);
    rigs[1].bind(&[map(imported, 0, BASE, MIB)]);
    bench.evict_all();
    for rig in &rigs {
        assert_eq!(rig.client.translate(rig.vm, BASE), None);
    }
    rigs[0].run(Batch::new().store(BASE + MIB, 1));
    assert_eq!(rigs[1].client.translate(rigs[1].vm, BASE), None, "each address space in its turn");
    rigs[1].run(Batch::new().copy(BASE + MIB / 2, BASE, 4));
    assert_eq!((bytes.read(0), bytes.read(MIB / 2)), (1, 1));
    for rig in &rigs {
        assert_eq!(space(rig.client.translate(rig.vm, BASE)), Some(Space::Vram));
        rig.client.test.close_all();
    }
    drop(rigs);
    bench.assert_clean();
}

#[test]
fn what_a_split_left_of_a_mapping_comes_back_too() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, bytes) = rig.buffer(VRAM, 2 * MIB);
    rig.bind(&[map(buffer, 0, BASE, 2 * MIB)]);
    rig.bind(&[unmap(BASE + MIB + 4096, 4096)]);
    bench.evict_all();
    rig.run(Batch::new().store(BASE + MIB, 1).store(BASE + MIB + 8192, 2));
    assert_eq!((bytes.read(MIB), bytes.read(MIB + 8192)), (1, 2));
    assert_eq!(rig.client.translate(rig.vm, BASE + MIB + 4096), None);
    drop(rig);
    bench.assert_clean();
}

#[test]
fn a_bind_that_waits_is_not_brought_forward_by_a_submission() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let ((old, _), (new, _)) = (rig.buffer(SYSTEM, CHUNK), rig.buffer(VRAM, MIB));
    rig.bind(&[map(old, 0, BASE, CHUNK), map(new, 0, BASE + MIB, MIB)]);
    bench.evict_all();
    let render = rig.client.queue(rig.vm, uapi::engine_class::RENDER);
    let (gate, busy) = (rig.gate(), rig.client.syncobj());
    let spin = rig.load(Batch::new().until(gate.address(), 1));
    rig.client.exec(render, spin, &[signal(busy)]).unwrap();
    rig.mark_evicted();
    let (vm, bound) = (rig.vm, rig.client.syncobj());
    rig.client.bind(vm, &[map(new, 0, BASE, CHUNK)], &[after(busy), signal(bound)]).unwrap();
    rig.run(Batch::new().store(BASE + MIB, 1));
    assert_eq!(space(rig.client.translate(vm, BASE)), Some(Space::System));
    rig.open(gate);
    rig.client.wait(bound);
    assert_eq!(space(rig.client.translate(vm, BASE)), Some(Space::Vram));
    drop(rig);
    bench.assert_clean();
}

#[test]
fn a_submission_passes_by_what_a_waiting_bind_will_unmap() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let external = rig.client.buffer(VRAM, MIB, 0);
    rig.bind(&[map(external, 0, BASE, MIB)]);
    let mut other = Rig::new(&bench);
    let (gate, busy) = other.busy();
    let fd = drm::SyncobjHandle { handle: busy, flags: 0, fd: -1, pad: 0, point: 0 };
    let fd = other.client.drm(drm::IOCTL_SYNCOBJ_HANDLE_TO_FD, fd).unwrap().fd;
    let copy = rig.client.test.adopt(other.client.test.descriptor(fd));
    let import = drm::SyncobjHandle { handle: 0, flags: 0, fd: copy, pad: 0, point: 0 };
    let theirs = rig.client.drm(drm::IOCTL_SYNCOBJ_FD_TO_HANDLE, import).unwrap().handle;
    bench.evict_all();
    let (vm, unbound) = (rig.vm, rig.client.syncobj());
    rig.client.bind(vm, &[unmap(BASE, MIB)], &[after(theirs), signal(unbound)]).unwrap();
    rig.run(Batch::new());
    other.open(gate);
    rig.client.wait(unbound);
    rig.client.test.close_all();
    other.client.test.close_all();
    drop((rig, other));
    bench.assert_clean();
}

#[test]
fn a_prefetch_moves_what_is_mapped_to_the_region_it_names() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, bytes) = rig.buffer(SYSTEM | VRAM, MIB);
    rig.bind(&[map(buffer, 0, BASE, MIB)]);
    rig.run(Batch::new().store(BASE, 1));
    let prefetch = |region| uapi::VmBindOp {
        op: uapi::BIND_OP_PREFETCH,
        prefetch_mem_region_instance: region,
        ..unmap(BASE, MIB)
    };
    for (region, there) in [(0, Space::System), (1, Space::Vram), (1, Space::Vram), (0, Space::System)] {
        rig.bind(&[prefetch(region)]);
        assert_eq!(space(rig.client.translate(rig.vm, BASE)), Some(there));
        rig.run(Batch::new().copy(BASE, BASE + 4 + 4 * u64::from(region), 4));
    }
    assert_eq!([0, 4, 8].map(|at| bytes.read(at)), [1, 1, 1]);
    drop(rig);
    bench.assert_clean();
}

#[test]
fn a_buffer_that_never_fits_is_refused_and_nobody_is_harmed() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, _) = rig.buffer(VRAM, 3 * MIB);
    rig.bind(&[map(buffer, 0, BASE, 3 * MIB)]);
    let vm = rig.vm;
    assert_eq!(rig.client.try_buffer(VRAM, 5 * MIB, vm), Err(Errno::NOSPC));
    rig.run(Batch::new().store(BASE, 1));
    let spills = rig.client.buffer(VRAM | SYSTEM, 2 * MIB, vm);
    rig.bind(&[map(spills, 0, 2 * BASE, 2 * MIB)]);
    assert_eq!(space(rig.client.translate(vm, 2 * BASE)), Some(Space::System));
    rig.run(Batch::new().store(BASE, 1).store(2 * BASE, 2));
    drop(rig);
    bench.assert_clean();
}

#[test]
fn more_than_fits_may_be_bound_one_by_one_and_is_refused_where_it_is_used_together() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let buffers = [0, 1, 2].map(|n| {
        let (buffer, bytes) = rig.buffer(VRAM, 2 * MIB);
        rig.bind(&[map(buffer, 0, BASE + n * 2 * MIB, 2 * MIB)]);
        bytes
    });
    let (queue, batch) = (rig.queue, rig.load(Batch::new().store(BASE, 1).store(BASE + 4 * MIB, 3)));
    assert_eq!(rig.client.exec(queue, batch, &[]), Err(Errno::NOMEM));
    assert!(!rig.client.is_banned(queue));
    rig.bind(&[unmap(BASE + 2 * MIB, 2 * MIB)]);
    rig.run(Batch::new().store(BASE, 1).store(BASE + 4 * MIB, 3));
    assert_eq!([0, 2].map(|n: usize| buffers[n].read(0)), [1, 3]);
    drop(rig);
    bench.assert_clean();
}

#[test]
fn operations_of_one_call_do_not_evict_one_another() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let buffers = [0, 1, 2].map(|_| rig.buffer(VRAM, 2 * MIB).0);
    let op = |n: usize| map(buffers[n], 0, BASE + n as u64 * 2 * MIB, 2 * MIB);
    assert_eq!(rig.client.bind(rig.vm, &[op(0), op(1), op(2)], &[]), Err(Errno::NOMEM));
    assert_eq!(rig.client.translate(rig.vm, BASE), None);
    rig.bind(&[op(0), op(1)]);
    rig.run(Batch::new().store(BASE, 1).store(BASE + 2 * MIB, 2));
    drop(rig);
    bench.assert_clean();
}

#[test]
fn where_jobs_run_without_end_more_than_fits_is_refused_by_the_bind() {
    let bench = bench();
    let mut rig = Rig::in_mode(&bench, uapi::VM_CREATE_LR_MODE);
    let bind = |rig: &mut Rig, n: u64| {
        let (buffer, _) = rig.buffer(VRAM, 2 * MIB);
        let vm = rig.vm;
        rig.client.bind(vm, &[map(buffer, 0, BASE + n * 2 * MIB, 2 * MIB)], &[])
    };
    assert_eq!([0, 1, 2].map(|n| bind(&mut rig, n)), [Ok(()), Ok(()), Err(Errno::NOMEM)]);
    // What must go may always go, and then there is room again.
    rig.bind(&[unmap(BASE, 2 * MIB)]);
    assert_eq!(bind(&mut rig, 0), Ok(()));
    drop(rig);
    bench.assert_clean();
}

#[test]
fn what_may_live_in_system_memory_makes_room_for_what_may_not() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let ((flexible, bytes), vm) = (rig.buffer(VRAM | SYSTEM, 3 * MIB), rig.vm);
    rig.bind(&[map(flexible, 0, BASE, 3 * MIB)]);
    rig.run(Batch::new().store(BASE, 1));
    let (fixed, _) = rig.buffer(VRAM, 3 * MIB);
    rig.bind(&[map(fixed, 0, 2 * BASE, 3 * MIB)]);
    rig.run(Batch::new().store(BASE + 4, 2).store(2 * BASE, 3));
    assert_eq!((bytes.read(0), bytes.read(4)), (1, 2));
    assert_eq!(space(rig.client.translate(vm, BASE)), Some(Space::System));
    assert_eq!(space(rig.client.translate(vm, 2 * BASE)), Some(Space::Vram));
    drop(rig);
    bench.assert_clean();
}
