//! Page faults: accesses that are made again once their mapping is in place, and the record of those that are not.

use lapidary::fence::Interrupt;

use super::client::*;
use super::*;
use crate::uapi::drm;

const BASE: u64 = 1 << 30;
const FENCES: u64 = 1 << 32;
const FAULTING: u32 = uapi::VM_CREATE_LR_MODE | uapi::VM_CREATE_FAULT_MODE;

fn bench() -> Bench {
    Bench::new(&DeviceConfig { vram_size: 4 * MIB, ..small() })
}

/// A rig whose address space resolves faults, and client memory for user fences that the GPU writes.
struct FaultRig {
    rig: Rig,
    fences: Pages,
    runs: u32,
}

impl FaultRig {
    fn new(bench: &Bench, flags: u32) -> Self {
        let mut rig = Rig::in_mode(bench, flags);
        let fences = Pages::new();
        rig.bind(&[map_host(fences.address(), FENCES, 4096)]);
        Self { rig, fences, runs: 0 }
    }

    /// Submits a batch; the value that its user fence will have.
    fn submit(&mut self, batch: Batch) -> u32 {
        self.runs += 1;
        let (queue, address) = (self.rig.queue, self.rig.load(batch));
        self.rig.client.exec(queue, address, &[user_fence(FENCES, self.runs.into())]).unwrap();
        self.runs
    }

    /// Waits for the user fence; `EIO` if the queue is banned.
    fn wait(&mut self, value: u32) -> Result<(), Errno> {
        let args = uapi::WaitUserFence {
            addr: self.fences.address(),
            value: value.into(),
            mask: u64::MAX,
            timeout: -1,
            exec_queue_id: self.rig.queue,
            ..Zeroable::zeroed()
        };
        self.rig.client.xe(nr::WAIT_USER_FENCE, args).map(drop)
    }

    fn run(&mut self, batch: Batch) -> Result<(), Errno> {
        let value = self.submit(batch);
        self.wait(value)
    }

    fn is_mapped(&self, address: u64) -> bool {
        self.rig.client.translate(self.rig.vm, address).is_some()
    }

    fn property(&mut self, size: u32, data: u64) -> Result<u32, Errno> {
        get_property(&mut self.rig.client, self.rig.vm, size, data)
    }

    /// The faults on record.
    fn faults(&mut self) -> Vec<uapi::VmFault> {
        let size = self.property(0, 0).unwrap();
        let mut faults = vec![uapi::VmFault::default(); size as usize / size_of::<uapi::VmFault>()];
        if size > 0 {
            self.property(size, faults.as_mut_ptr() as u64).unwrap();
        }
        faults
    }
}

fn get_property(client: &mut Client, vm_id: u32, size: u32, data: u64) -> Result<u32, Errno> {
    let args = uapi::VmGetProperty { vm_id, size, data, ..Zeroable::zeroed() };
    client.xe(nr::VM_GET_PROPERTY, args).map(|args| args.size)
}

#[test]
fn entries_are_written_when_an_access_needs_them() {
    let bench = bench();
    let mut rig = FaultRig::new(&bench, FAULTING);
    let ((lazy, bytes), (eager, _)) = (rig.rig.buffer(VRAM, MIB), rig.rig.buffer(VRAM, MIB));
    let at_once = uapi::VmBindOp { flags: uapi::BIND_FLAG_IMMEDIATE, ..map(eager, 0, BASE + 2 * MIB, MIB) };
    rig.rig.bind(&[map(lazy, 0, BASE, MIB), at_once, map_null(BASE + 4 * MIB, MIB)]);
    assert_eq!([0, 2, 4].map(|n| rig.is_mapped(BASE + n * MIB)), [false, true, false]);
    rig.run(Batch::new().store(BASE + 8, 7).store(BASE + 4 * MIB, 1)).unwrap();
    assert_eq!(bytes.read(8), 7);
    assert_eq!([0, 2, 4].map(|n| rig.is_mapped(BASE + n * MIB)), [true, true, true]);
    rig.rig.bind(&[unmap(BASE, MIB)]);
    assert!(!rig.is_mapped(BASE));
    assert_eq!(rig.run(Batch::new().store(BASE, 1)), Err(Errno::IO));
    drop(rig);
    bench.assert_clean();
}

#[test]
fn mapping_part_of_the_same_bytes_again_leaves_mappings_that_can_go_one_by_one() {
    let bench = Bench::new(&DeviceConfig { vram_size: 32 * MIB, ..small() });
    let mut rig = FaultRig::new(&bench, FAULTING);
    let (buffer, bytes) = rig.rig.buffer(VRAM, 8 * MIB);
    rig.rig.bind(&[map(buffer, 0, BASE, 8 * MIB)]);
    rig.run(Batch::new().store(BASE + 3 * MIB, 1)).unwrap();
    rig.rig.bind(&[map(buffer, 3 * MIB, BASE + 3 * MIB, CHUNK)]);
    rig.run(Batch::new().store(BASE + 3 * MIB + 4, 2).store(BASE + 3 * MIB - 4, 3)).unwrap();
    assert_eq!([3 * MIB, 3 * MIB + 4, 3 * MIB - 4].map(|at| bytes.read(at)), [1, 2, 3]);
    rig.rig.bind(&[unmap(BASE + 3 * MIB, CHUNK)]);
    assert!(!rig.is_mapped(BASE + 3 * MIB));
    rig.run(Batch::new().store(BASE + 3 * MIB + CHUNK, 4)).unwrap();
    assert_eq!(rig.run(Batch::new().store(BASE + 3 * MIB, 1)), Err(Errno::IO));
    drop(rig);
    bench.assert_clean();
}

#[test]
fn more_than_fits_is_used_in_turn() {
    const BUFFERS: u64 = 4;
    let bench = bench();
    let mut rig = FaultRig::new(&bench, FAULTING);
    let contents: Vec<_> = (0..BUFFERS)
        .map(|n| {
            let (buffer, bytes) = rig.rig.buffer(VRAM, 2 * MIB);
            rig.rig.bind(&[map(buffer, 0, BASE + n * 2 * MIB, 2 * MIB)]);
            bytes
        })
        .collect();
    let batch = (0..BUFFERS).fold(Batch::new(), |batch, n| {
        let at = BASE + n * 2 * MIB;
        batch.store(at, 10 + n as u32).copy(at, BASE + ((n + 1) % BUFFERS) * 2 * MIB + 8, 4)
    });
    for _ in 0..5 {
        rig.run(batch.clone()).unwrap();
    }
    let seen: Vec<_> = contents.iter().map(|bytes| (bytes.read(0), bytes.read(8))).collect();
    assert_eq!(seen, [(10, 13), (11, 10), (12, 11), (13, 12)]);
    assert!(bench.device.driver().residency().evictions().0 >= 10);
    drop((rig, contents));
    bench.assert_clean();
}

#[test]
fn what_is_moved_away_under_a_job_without_end_comes_back_with_the_next_access() {
    let bench = bench();
    let mut rig = FaultRig::new(&bench, FAULTING);
    let (buffer, bytes) = rig.rig.buffer(VRAM, MIB);
    rig.rig.bind(&[map(buffer, 0, BASE, MIB)]);
    rig.run(Batch::new().store(BASE, 1)).unwrap();
    let gate = rig.rig.gate();
    let done = rig.submit(Batch::new().until(gate.address(), 1).copy(BASE, BASE + 4, 4));
    let driver = bench.device.driver();
    driver.residency().evict_all(driver.vram_region(), &Interrupt::none()).unwrap();
    assert!(!rig.is_mapped(BASE), "nobody waits for a job that may run for ever");
    rig.rig.open(gate);
    rig.wait(done).unwrap();
    assert_eq!(bytes.read(4), 1);
    drop(rig);
    bench.assert_clean();
}

#[test]
fn without_over_commitment_an_immediate_bind_is_refused_for_which_others_would_have_to_go() {
    let bench = bench();
    for (flags, last) in [(0, Ok(())), (uapi::VM_CREATE_NO_VM_OVERCOMMIT, Err(Errno::NOMEM))] {
        let mut rig = FaultRig::new(&bench, FAULTING | flags);
        // The last one made has pushed out the first.
        let buffers = [0, 1, 2].map(|_| rig.rig.buffer(VRAM, 2 * MIB).0);
        let vm = rig.rig.vm;
        let op = |n: usize| map(buffers[n], 0, BASE + n as u64 * 2 * MIB, 2 * MIB);
        let immediate = |n| uapi::VmBindOp { flags: uapi::BIND_FLAG_IMMEDIATE, ..op(n) };
        let bound = [1, 2, 0].map(|n| rig.rig.client.bind(vm, &[immediate(n)], &[]));
        assert_eq!(bound, [Ok(()), Ok(()), last]);
        rig.rig.bind(&[op(0)]);
        let all = (0..3).fold(Batch::new(), |batch, n| batch.store(BASE + n * 2 * MIB, 1));
        rig.run(all).unwrap();
        drop(rig);
    }
    bench.assert_clean();
}

#[test]
fn a_fault_waits_for_the_bind_of_its_mapping() {
    let bench = bench();
    let mut rig = FaultRig::new(&bench, FAULTING);
    let mut other = Rig::new(&bench);
    let (buffer, bytes) = rig.rig.buffer(VRAM, MIB);
    let (gate, done) = other.busy();
    let fd = drm::SyncobjHandle { handle: done, flags: 0, fd: -1, pad: 0, point: 0 };
    let fd = other.client.drm(drm::IOCTL_SYNCOBJ_HANDLE_TO_FD, fd).unwrap().fd;
    let fd = rig.rig.client.test.adopt(other.client.test.descriptor(fd));
    let import = drm::SyncobjHandle { handle: 0, flags: 0, fd, pad: 0, point: 0 };
    let theirs = rig.rig.client.drm(drm::IOCTL_SYNCOBJ_FD_TO_HANDLE, import).unwrap().handle;
    let vm = rig.rig.vm;
    rig.rig.client.bind(vm, &[map(buffer, 0, BASE, MIB)], &[after(theirs)]).unwrap();
    let value = rig.submit(Batch::new().store(BASE, 5));
    // The first fault is the batch's own.
    while bench.device.driver().gpu().stats().faults < 2 {
        std::thread::yield_now();
    }
    assert_eq!(bytes.read(0), 0);
    other.open(gate);
    rig.wait(value).unwrap();
    assert_eq!(bytes.read(0), 5);
    rig.rig.client.test.close_all();
    other.client.test.close_all();
    drop((rig, other));
    bench.assert_clean();
}

#[test]
fn faults_that_nothing_resolves_are_on_record() {
    let bench = bench();
    for flags in [0, uapi::VM_CREATE_LR_MODE, FAULTING] {
        let mut rig = FaultRig::new(&bench, flags);
        let (buffer, _) = rig.rig.buffer(SYSTEM, CHUNK);
        let read_only = uapi::VmBindOp { flags: uapi::BIND_FLAG_READONLY, ..map(buffer, 0, BASE, CHUNK) };
        rig.rig.bind(&[read_only]);
        assert_eq!(rig.faults(), []);
        assert_eq!(rig.run(Batch::new().store(BASE + 4100, 1)), Err(Errno::IO));
        rig.rig.queue = rig.rig.client.queue(rig.rig.vm, uapi::engine_class::COPY);
        assert_eq!(rig.run(Batch::new().copy(BASE + MIB + 8, BASE, 4)), Err(Errno::IO));
        rig.rig.queue = rig.rig.client.queue(rig.rig.vm, uapi::engine_class::COPY);
        assert_eq!(rig.run(Batch::new().store(3 << 40, 1)), Err(Errno::IO));
        let fault = |address, access_type, fault_type| uapi::VmFault {
            address,
            address_precision: 4096,
            access_type,
            fault_type,
            ..Zeroable::zeroed()
        };
        // Where faults are resolved, the mapping that forbids the access has no entry yet.
        let forbidden =
            if flags == FAULTING { uapi::FAULT_TYPE_NOT_PRESENT } else { uapi::FAULT_TYPE_WRITE_ACCESS };
        let expected = [
            fault(BASE + 4096, uapi::FAULT_ACCESS_WRITE, forbidden),
            fault(BASE + MIB, uapi::FAULT_ACCESS_READ, uapi::FAULT_TYPE_NOT_PRESENT),
            uapi::VmFault {
                fault_level: 3,
                ..fault(3 << 40, uapi::FAULT_ACCESS_WRITE, uapi::FAULT_TYPE_NOT_PRESENT)
            },
        ];
        let mut found = rig.faults();
        if flags == FAULTING {
            // Nor has its neighbourhood any tables.
            assert_eq!([0, 1].map(|n| std::mem::take(&mut found[n].fault_level)), [2, 2]);
        }
        assert_eq!(found, expected, "{flags:#x}");
    }
    bench.assert_clean();
}

#[test]
fn a_vm_tells_its_properties_and_refuses_wrong_questions() {
    let bench = bench();
    let mut rig = FaultRig::new(&bench, 0);
    rig.run(Batch::new().store(BASE, 1)).unwrap_err();
    assert_eq!(rig.property(0, 0), Ok(48));
    let mut fault = uapi::VmFault::default();
    let at = std::ptr::from_mut(&mut fault) as u64;
    for (size, data, errno) in [
        (1, at, Errno::INVAL),
        (96, at, Errno::INVAL),
        (u32::MAX, at, Errno::INVAL),
        (48, 1 << 46, Errno::FAULT),
    ] {
        assert_eq!(rig.property(size, data), Err(errno), "{size} bytes");
    }
    let good = uapi::VmGetProperty { vm_id: rig.rig.vm, ..Zeroable::zeroed() };
    let client = &mut rig.rig.client;
    for (args, errno) in [
        (uapi::VmGetProperty { extensions: 1, ..good }, Errno::INVAL),
        (uapi::VmGetProperty { pad: 1, ..good }, Errno::INVAL),
        (uapi::VmGetProperty { reserved: [0, 0, 1], ..good }, Errno::INVAL),
        (uapi::VmGetProperty { property: 1, ..good }, Errno::INVAL),
        (uapi::VmGetProperty { vm_id: 99, ..good }, Errno::NOENT),
    ] {
        assert_eq!(client.xe(nr::VM_GET_PROPERTY, args).err(), Some(errno), "{args:?}");
    }
}

#[test]
fn modes_that_do_not_go_together_are_refused() {
    let bench = bench();
    let mut client = Client::new(&bench);
    let (scratch, long) = (uapi::VM_CREATE_SCRATCH_PAGE, uapi::VM_CREATE_LR_MODE);
    let (fault, strict) = (uapi::VM_CREATE_FAULT_MODE, uapi::VM_CREATE_NO_VM_OVERCOMMIT);
    for flags in [0, scratch, long, scratch | long, FAULTING, FAULTING | strict] {
        assert!(client.try_vm(flags).is_ok(), "{flags:#x}");
    }
    for flags in [fault, strict, long | strict, scratch | fault, scratch | FAULTING, 1 << 4] {
        assert_eq!(client.try_vm(flags), Err(Errno::INVAL), "{flags:#x}");
    }
}
