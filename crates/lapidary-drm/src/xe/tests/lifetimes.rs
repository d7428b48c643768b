//! Who lives how long: the library's rules, as far as a client of the driver can see them.

use super::client::*;
use super::*;

const BASE: u64 = 1 << 30;

fn bench() -> Bench {
    Bench::new(&small())
}

impl Bench {
    fn live(&self, kind: &'static str) -> u64 {
        self.device.driver().worker().flush();
        self.device.census().kind(kind).count().live
    }

    fn vram_used(&self) -> u64 {
        self.device.driver().worker().flush();
        self.device.driver().memory_usage().vram_used
    }

    /// Waits for the worker until so much memory is in use.
    fn wait_for_vram(&self, used: u64) {
        let give_up = Instant::now() + Duration::from_secs(20);
        while self.vram_used() != used {
            assert!(Instant::now() < give_up, "{} bytes in use", self.vram_used());
            std::thread::yield_now();
        }
    }
}

#[test]
fn h01_a_vm_goes_after_its_last_job_wherever_that_ends() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, bytes) = rig.buffer(VRAM, CHUNK);
    rig.bind(&[map(buffer, 0, BASE, CHUNK)]);
    let gate = rig.gate();
    let done = rig.submit(Batch::new().until(gate.address(), 1).store(BASE, 1));
    let vm = rig.vm;
    rig.client.destroy_vm(vm);
    assert_eq!(rig.client.exec(rig.queue, 0, &[]), Err(Errno::NOENT));
    assert_eq!(rig.client.bind(vm, &[unmap(BASE, CHUNK)], &[]), Err(Errno::NOENT));
    rig.open(gate);
    assert_eq!(rig.client.outcome(done), Ok(()));
    assert_eq!(bytes.read(0), 1);
    let queue = rig.queue;
    rig.client.destroy_queue(queue);
    drop(rig);
    bench.assert_clean();
}

#[test]
fn h03_a_look_up_that_races_with_destruction_finds_a_vm_or_none() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (file, mut other) = (rig.client.file.clone(), rig.client.test.beside());
    let racing = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let until = racing.clone();
    let racer = std::thread::spawn(move || {
        while until.load(std::sync::atomic::Ordering::Relaxed) {
            let args =
                uapi::VmBind { vm_id: 2, num_binds: 1, bind: map_null(BASE, MIB), ..Zeroable::zeroed() };
            let outcome = run(&mut other, &*file, nr::VM_BIND, args).map(drop);
            assert!(matches!(outcome, Ok(()) | Err(Errno::NOENT)), "{outcome:?}");
        }
    });
    for _ in 0..200 {
        let vm = rig.client.vm();
        assert_eq!(vm, 2, "the lowest free number");
        // Whoever comes first.
        let _ = rig.client.bind(vm, &[map_null(BASE + MIB, MIB)], &[]);
        rig.client.destroy_vm(vm);
    }
    racing.store(false, std::sync::atomic::Ordering::Relaxed);
    racer.join().unwrap();
    drop(rig);
    bench.assert_clean();
}

#[test]
fn h05_a_buffer_outlives_the_vm_whose_reservation_it_shares() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, bytes) = rig.buffer(VRAM, CHUNK);
    bytes.write(0, &[7]);
    let (vm, queue) = (rig.vm, rig.queue);
    rig.client.destroy_queue(queue);
    rig.client.destroy_vm(vm);
    assert_eq!(bench.live("VMs"), 0);
    assert_eq!(rig.client.bytes(buffer).read(0), 7);
    assert_eq!(bench.vram_used(), CHUNK);
    rig.client.close(buffer);
    assert_eq!(bench.vram_used(), 0);
    drop(rig);
    bench.assert_clean();
}

#[test]
fn h22_a_busy_buffer_keeps_its_memory_until_its_fences_signal() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, _) = rig.buffer(VRAM, MIB);
    rig.bind(&[map(buffer, 0, BASE, MIB)]);
    let (gate, busy) = rig.busy();
    rig.bind(&[unmap_all(buffer)]);
    rig.client.close(buffer);
    assert_eq!(bench.vram_used(), MIB);
    rig.open(gate);
    rig.client.wait(busy);
    bench.wait_for_vram(0);
    drop(rig);
    bench.assert_clean();
}

#[test]
fn h25_a_bind_that_fails_keeps_nothing() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let buffer = rig.client.buffer(VRAM, MIB, 0);
    let (vm, never) = (rig.vm, rig.client.syncobj());
    let ops = [map(buffer, 0, BASE, MIB), map(buffer, 0, 2 * BASE, MIB), map(99, 0, BASE, CHUNK)];
    assert_eq!(rig.client.bind(vm, &ops, &[signal(never)]), Err(Errno::NOENT));
    rig.client.close(buffer);
    assert_eq!(bench.vram_used(), 0);
    drop(rig);
    bench.assert_clean();
}

#[test]
fn h26_a_file_that_closes_in_the_midst_of_work_leaves_nothing() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, _) = rig.buffer(VRAM, MIB);
    let external = rig.client.buffer(VRAM, MIB, 0);
    rig.bind(&[map(buffer, 0, BASE, MIB), map(external, 0, BASE + MIB, MIB)]);
    let (_gate, busy) = rig.busy();
    rig.submit(Batch::new().store(BASE, 1));
    let vm = rig.vm;
    let queue = rig.client.queue(vm, uapi::engine_class::VM_BIND);
    rig.client.bind(vm, &[unmap(BASE, MIB), map_null(BASE, MIB)], &[after(busy)]).unwrap();
    rig.client.bind_on(queue, vm, &[unmap_all(external)], &[after(busy)]).unwrap();
    drop(rig);
    bench.assert_clean();
}

#[test]
fn h26_what_a_waiting_bind_unmaps_is_nobody_elses_before_it_is_done() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let external = rig.client.buffer(VRAM, MIB, 0);
    let bytes = rig.client.bytes(external);
    rig.bind(&[map(external, 0, BASE, MIB)]);
    let gate = rig.gate();
    let done = rig.submit(Batch::new().until(gate.address(), 1).store(BASE, 1));
    let vm = rig.vm;
    let queue = rig.client.queue(vm, uapi::engine_class::VM_BIND);
    rig.client.bind_on(queue, vm, &[unmap(BASE, MIB)], &[after(done)]).unwrap();
    rig.client.close(external);
    rig.client.destroy_queue(queue);
    rig.client.destroy_vm(vm);
    assert_eq!(bench.vram_used(), MIB, "page tables still lead there");
    rig.open(gate);
    assert_eq!(rig.client.outcome(done), Ok(()), "the bind had to wait, so had the end of the VM");
    assert_eq!(bytes.read(0), 1);
    bench.wait_for_vram(0);
    drop(rig);
    bench.assert_clean();
}

#[test]
fn h27_a_mapping_keeps_its_buffer_alive_but_not_its_vm() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (kept, let_go) = (rig.client.buffer(VRAM, CHUNK, 0), rig.client.buffer(VRAM, CHUNK, 0));
    rig.bind(&[map(kept, 0, BASE, CHUNK), map(let_go, 0, BASE + CHUNK, CHUNK)]);
    rig.client.close(let_go);
    assert_eq!(bench.vram_used(), 2 * CHUNK);
    rig.run(Batch::new().store(BASE + CHUNK, 1));
    let (vm, queue) = (rig.vm, rig.queue);
    rig.client.destroy_queue(queue);
    rig.client.destroy_vm(vm);
    assert_eq!(bench.live("VMs"), 0);
    bench.wait_for_vram(CHUNK);
    rig.client.close(kept);
    drop(rig);
    bench.assert_clean();
}

#[test]
fn a_queue_that_is_destroyed_takes_its_jobs_along() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (_gate, busy) = rig.busy();
    let behind = rig.submit(Batch::new());
    let queue = rig.queue;
    rig.client.destroy_queue(queue);
    assert!(rig.client.outcome(busy).is_err());
    assert!(rig.client.outcome(behind).is_err());
    drop(rig);
    bench.assert_clean();
}

#[test]
fn a_vm_without_end_can_not_be_destroyed_under_its_queues() {
    let bench = bench();
    let mut client = Client::new(&bench);
    let args = uapi::VmCreate { flags: uapi::VM_CREATE_LR_MODE, ..Zeroable::zeroed() };
    let vm = client.xe(nr::VM_CREATE, args).unwrap().vm_id;
    let queue = client.queue(vm, uapi::engine_class::COPY);
    let destroy = uapi::Destroy { id: vm, ..Zeroable::zeroed() };
    assert_eq!(client.xe(nr::VM_DESTROY, destroy).err(), Some(Errno::BUSY));
    let done = client.syncobj();
    assert_eq!(client.exec(queue, BASE, &[signal(done)]), Err(Errno::OPNOTSUPP));
    client.destroy_queue(queue);
    client.destroy_vm(vm);
    drop(client);
    bench.assert_clean();
}
