//! VM_BIND: what is mapped where and when.

use lapidary_gpu::pagetable::Target;

use super::client::*;
use super::*;

const BASE: u64 = 1 << 30;

fn bench() -> Bench {
    Bench::new(&small())
}

#[test]
fn a_bind_is_in_effect_when_the_call_returns() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, bytes) = rig.buffer(VRAM, MIB);
    rig.bind(&[map(buffer, 0, BASE, MIB)]);
    assert!(rig.client.translate(rig.vm, BASE + MIB - 4096).is_some());
    rig.run(Batch::new().store(BASE + 512 * KIB, 7));
    assert_eq!(bytes.read(512 * KIB), 7);
    rig.bind(&[unmap(BASE, MIB)]);
    assert_eq!(rig.client.translate(rig.vm, BASE), None);
    drop(rig);
    bench.assert_clean();
}

#[test]
fn an_unmap_in_the_middle_leaves_both_ends() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, bytes) = rig.buffer(VRAM, 4 * MIB);
    rig.bind(&[map(buffer, 0, BASE, 4 * MIB)]);
    rig.bind(&[unmap(BASE + MIB, 4096)]);
    let seen = [0, MIB - 4096, MIB, MIB + 4096, 4 * MIB - 4096];
    let seen = seen.map(|at| rig.client.translate(rig.vm, BASE + at).is_some());
    assert_eq!(seen, [true, true, false, true, true]);
    rig.run(Batch::new().store(BASE + MIB - 4, 1).store(BASE + MIB + 4096, 2));
    assert_eq!((bytes.read(MIB - 4), bytes.read(MIB + 4096)), (1, 2));
    drop(rig);
    bench.assert_clean();
}

#[test]
fn mapping_the_same_bytes_again_keeps_their_entries() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, bytes) = rig.buffer(VRAM, 4 * MIB);
    rig.bind(&[map(buffer, 0, BASE, 4 * MIB)]);
    let (gate, busy) = rig.busy();
    let invalidations = bench.device.driver().gpu().stats().invalidations;
    rig.bind(&[map(buffer, 128 * KIB, BASE + 128 * KIB, CHUNK)]);
    assert_eq!(bench.device.driver().gpu().stats().invalidations, invalidations);
    rig.open(gate);
    rig.client.wait(busy);
    rig.run(
        Batch::new().store(BASE + 128 * KIB - 4, 1).store(BASE + 128 * KIB, 2).store(BASE + 192 * KIB, 3),
    );
    assert_eq!([128 * KIB - 4, 128 * KIB, 192 * KIB].map(|at| bytes.read(at)), [1, 2, 3]);
    drop(rig);
    bench.assert_clean();
}

#[test]
fn a_null_mapping_reads_zero_and_drops_writes() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (target, bytes) = rig.buffer(SYSTEM, CHUNK);
    bytes.write(0, &[5; 4]);
    rig.bind(&[map_null(BASE, MIB), map(target, 0, BASE + MIB, CHUNK)]);
    assert_eq!(rig.client.translate(rig.vm, BASE), Some(Target::Null));
    rig.run(Batch::new().store(BASE, 9).copy(BASE, BASE + MIB, 8));
    assert_eq!((bytes.read(0), bytes.read(4), bytes.read(8)), (0, 0, 5));
    drop(rig);
    bench.assert_clean();
}

#[test]
fn read_only_mappings_ban_who_writes() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, bytes) = rig.buffer(SYSTEM, CHUNK);
    let op = map(buffer, 0, BASE, CHUNK);
    rig.bind(&[uapi::VmBindOp { flags: uapi::BIND_FLAG_READONLY, ..op }]);
    let done = rig.submit(Batch::new().store(BASE, 9));
    assert!(rig.client.outcome(done).is_err());
    assert_eq!(bytes.read(0), 0);
    assert!(rig.client.is_banned(rig.queue));
}

#[test]
fn unmapping_a_buffer_everywhere_leaves_others() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let ((one, _), (two, _)) = (rig.buffer(VRAM, CHUNK), rig.buffer(VRAM, CHUNK));
    let ops: Vec<_> =
        (0..8).map(|n| map(if n % 2 == 0 { one } else { two }, 0, BASE + n * CHUNK, CHUNK)).collect();
    rig.bind(&ops);
    rig.bind(&[unmap_all(one)]);
    let mapped: Vec<bool> =
        (0..8).map(|n| rig.client.translate(rig.vm, BASE + n * CHUNK).is_some()).collect();
    assert_eq!(mapped, [false, true, false, true, false, true, false, true]);
    rig.bind(&[unmap_all(one)]);
}

#[test]
fn client_memory_is_read_and_written_in_place() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let memory = Pages::new();
    rig.bind(&[map_host(memory.address(), BASE, 2 * 4096)]);
    memory.set(0, 0x1234);
    rig.run(Batch::new().store(BASE + 4096, 9).copy(BASE, BASE + 8, 4));
    assert_eq!((memory.get(4096), memory.get(8)), (9, 0x1234));
    let nowhere = map_host(1 << 46, BASE, 4096);
    assert_eq!(rig.client.bind(rig.vm, &[nowhere], &[]), Err(Errno::FAULT));
    let incoherent = uapi::VmBindOp { pat_index: 3, ..map_host(memory.address(), BASE, 4096) };
    assert_eq!(rig.client.bind(rig.vm, &[incoherent], &[]), Err(Errno::INVAL));
    drop(rig);
    bench.assert_clean();
}

#[test]
fn an_error_in_an_array_changes_nothing() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, _) = rig.buffer(VRAM, MIB);
    rig.bind(&[map(buffer, 0, BASE, MIB)]);
    let before = rig.client.translate(rig.vm, BASE);
    let done = rig.client.syncobj();
    let pages = Pages::new();
    let wrong = [
        (map(99, 0, BASE, CHUNK), Errno::NOENT),
        (map(buffer, MIB, BASE, CHUNK), Errno::INVAL),
        (map_host(1 << 46, BASE, 4096), Errno::FAULT),
        (uapi::VmBindOp { flags: 1 << 30, ..unmap(BASE, CHUNK) }, Errno::INVAL),
    ];
    for (op, errno) in wrong {
        let ops = [
            unmap(BASE, MIB),
            map_host(pages.address(), BASE, 4096),
            map_null(BASE + 4096, 4096),
            op,
            map(buffer, 0, BASE + MIB, MIB),
        ];
        assert_eq!(rig.client.bind(rig.vm, &ops, &[signal(done)]), Err(errno), "{op:?}");
        assert_eq!(rig.client.translate(rig.vm, BASE), before);
        assert_eq!(rig.client.translate(rig.vm, BASE + MIB), None);
        assert!(!rig.client.is_signalled(done), "a refused call leaves its syncobjs alone");
    }
    drop(rig);
    bench.assert_clean();
}

#[test]
fn a_call_that_is_asked_to_fail_does_so_at_every_point_and_changes_nothing() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let ((old, bytes), (new, _)) = (rig.buffer(VRAM, 8 * MIB), rig.buffer(VRAM, 8 * MIB));
    rig.bind(&[map(old, 0, BASE, MIB), map(old, 4 * MIB, BASE + 4 * MIB, MIB)]);
    let before = [0, MIB, 4 * MIB].map(|at| rig.client.translate(rig.vm, BASE + at));
    let done = rig.client.syncobj();
    let forced = uapi::VmBindOp { flags: uapi::BIND_FLAG_FORCE_ERROR, ..unmap(BASE + MIB, 4 * MIB) };
    // Cut, replaced, unmapped, and split again by what follows in the same call.
    let ops = [map(new, 0, BASE + MIB / 2, 6 * MIB), unmap(BASE, MIB / 4), map_null(BASE + MIB, MIB), forced];
    for _ in crate::xe::bind::Failpoint::ALL {
        assert_eq!(rig.client.bind(rig.vm, &ops, &[signal(done)]), Err(Errno::NOSPC));
        assert_eq!([0, MIB, 4 * MIB].map(|at| rig.client.translate(rig.vm, BASE + at)), before);
        assert!(!rig.client.is_signalled(done));
        let vm = rig.client.inside().data().vm(rig.vm).unwrap();
        assert_eq!(vm.gpu_vm().read().len(), 3, "with the code buffer's");
        vm.gpu_vm().read().check().unwrap();
        rig.run(Batch::new().store(BASE + MIB - 4, 7).copy(BASE + MIB - 4, BASE + 4 * MIB, 4));
        assert_eq!(bytes.read(4 * MIB), 7);
        bytes.write(4 * MIB, &[0]);
    }
    rig.bind(&ops[..3]);
    assert_eq!(rig.client.translate(rig.vm, BASE), None);
    drop(rig);
    bench.assert_clean();
}

#[test]
fn a_bind_waits_for_its_syncobjs_and_those_after_it_in_its_queue_wait_too() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, _) = rig.buffer(VRAM, MIB);
    let (gate, busy) = rig.busy();
    let (first, second, mark) = (rig.client.syncobj(), rig.client.syncobj(), rig.client.syncobj());
    let vm = rig.vm;
    let op = |n| map(buffer, 0, BASE + n * MIB, CHUNK);
    rig.client.bind(vm, &[op(0)], &[after(busy), signal(first)]).unwrap();
    rig.client.bind(vm, &[op(1)], &[signal(second)]).unwrap();
    rig.client.bind(vm, &[], &[signal(mark)]).unwrap();
    assert_eq!([first, second, mark].map(|syncobj| rig.client.is_signalled(syncobj)), [false; 3]);
    assert_eq!(rig.client.translate(vm, BASE), None);
    rig.open(gate);
    rig.client.wait(mark);
    assert!(rig.client.is_signalled(first) && rig.client.is_signalled(second));
    assert!(rig.client.translate(vm, BASE).is_some() && rig.client.translate(vm, BASE + MIB).is_some());
    drop(rig);
    bench.assert_clean();
}

#[test]
fn bind_queues_go_on_independently_but_in_the_order_of_calls_where_they_meet() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (vm, (buffer, _)) = (rig.vm, rig.buffer(VRAM, MIB));
    let queues = [(); 2].map(|()| rig.client.queue(vm, uapi::engine_class::VM_BIND));
    rig.bind(&[map(buffer, 0, BASE, CHUNK)]);
    let (gate, busy) = rig.busy();
    let later = [(); 2].map(|()| rig.client.syncobj());
    let beside = rig.client.syncobj();
    let here = map(buffer, CHUNK, BASE + CHUNK, CHUNK);
    rig.client.bind_on(queues[0], vm, &[here], &[after(busy), signal(later[0])]).unwrap();
    let elsewhere = map(buffer, 0, BASE + 4 * CHUNK, CHUNK);
    rig.client.bind_on(queues[1], vm, &[elsewhere], &[signal(beside)]).unwrap();
    assert!(rig.client.is_signalled(beside));
    rig.client.bind_on(queues[1], vm, &[unmap(BASE + CHUNK, CHUNK)], &[signal(later[1])]).unwrap();
    assert!(!rig.client.is_signalled(later[1]), "it comes after what it unmaps");
    rig.open(gate);
    rig.client.wait(later[1]);
    assert_eq!(rig.client.translate(vm, BASE + CHUNK), None);
    drop(rig);
    bench.assert_clean();
}

#[test]
fn a_bind_into_tables_that_another_is_about_to_make_waits_for_it() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (vm, (buffer, _)) = (rig.vm, rig.buffer(VRAM, MIB));
    let queue = rig.client.queue(vm, uapi::engine_class::VM_BIND);
    rig.bind(&[map(buffer, 0, BASE, CHUNK)]);
    let (gate, busy) = rig.busy();
    let [near, far] = [(); 2].map(|()| rig.client.syncobj());
    let table = BASE + 2 * MIB;
    rig.client.bind(vm, &[map(buffer, 0, table, CHUNK)], &[after(busy)]).unwrap();
    rig.client.bind_on(queue, vm, &[map(buffer, 0, BASE + 6 * CHUNK, CHUNK)], &[signal(far)]).unwrap();
    assert!(rig.client.is_signalled(far), "in a table that is there");
    rig.client.bind_on(queue, vm, &[map(buffer, 0, table + 4 * CHUNK, CHUNK)], &[signal(near)]).unwrap();
    assert!(!rig.client.is_signalled(near), "in a table that is to come");
    rig.open(gate);
    rig.client.wait(near);
}

#[test]
fn a_bind_that_is_too_large_to_wait_is_refused_whole() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (vm, (buffer, _)) = (rig.vm, rig.buffer(VRAM, 2 * MIB));
    let (gate, busy) = rig.busy();
    let ops: Vec<_> = (0..512).map(|n| map(buffer, 0, BASE + CHUNK + n * 2 * MIB, 2 * MIB)).collect();
    assert_eq!(rig.client.bind(vm, &ops, &[after(busy)]), Err(Errno::NOBUFS));
    rig.open(gate);
    rig.client.wait(busy);
    assert_eq!(rig.client.translate(vm, BASE + CHUNK), None);
    rig.client.bind(vm, &ops[..128], &[after(busy)]).unwrap();
    assert!(rig.client.translate(vm, BASE + CHUNK + 127 * 2 * MIB).is_some());
    drop(rig);
    bench.assert_clean();
}

#[test]
fn binds_that_wait_share_a_pool_and_more_are_refused_until_there_is_room() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (vm, (buffer, _)) = (rig.vm, rig.buffer(VRAM, 2 * MIB));
    let (gate, busy) = rig.busy();
    // Not aligned to large pages: each takes 512 entries.
    let op = |n: u64| map(buffer, 0, BASE + CHUNK + n * 2 * MIB, 2 * MIB);
    let mut taken = 0;
    let refused = loop {
        match rig.client.bind(vm, &[op(taken)], &[after(busy)]) {
            Ok(()) => taken += 1,
            Err(errno) => break errno,
        }
    };
    assert_eq!(refused, Errno::NOBUFS);
    assert!((256..512).contains(&taken), "{taken}");
    // What has no fence of its own to wait for waits in the same queue.
    assert_eq!(rig.client.bind(vm, &[op(taken)], &[]), Err(Errno::NOBUFS));
    rig.open(gate);
    rig.client.wait(busy);
    rig.client.bind(vm, &[op(taken)], &[]).unwrap();
    assert!((0..=taken).all(|n| rig.client.translate(vm, BASE + CHUNK + n * 2 * MIB).is_some()));
    drop(rig);
    bench.assert_clean();
}

#[test]
fn binds_of_several_threads_and_queues_are_each_in_effect_when_their_call_returns() {
    const THREADS: u64 = 3;
    const ROUNDS: u64 = 300;
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (vm, (buffer, _)) = (rig.vm, rig.buffer(VRAM, MIB));
    // Two share a queue; all share tables.
    let bind_queue = rig.client.queue(vm, uapi::engine_class::VM_BIND);
    let mut clients: Vec<_> = (0..THREADS).map(|_| rig.client.beside(&bench)).collect();
    std::thread::scope(|scope| {
        for (thread, client) in (0..).zip(&mut clients) {
            scope.spawn(move || {
                let queue = if thread == 0 { 0 } else { bind_queue };
                for round in 0..ROUNDS {
                    let at = BASE + (round * THREADS + thread) * CHUNK;
                    client.bind_on(queue, vm, &[map(buffer, 0, at, CHUNK)], &[]).unwrap();
                    assert!(client.translate(vm, at).is_some(), "thread {thread}, round {round}");
                    if round % 2 == 1 {
                        client.bind_on(queue, vm, &[unmap(at, CHUNK)], &[]).unwrap();
                        assert_eq!(client.translate(vm, at), None, "thread {thread}, round {round}");
                    }
                }
            });
        }
    });
    drop((clients, rig));
    bench.assert_clean();
}

#[test]
fn a_bind_is_in_effect_on_return_though_it_comes_after_others_that_have_just_become_ready() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (vm, (buffer, _)) = (rig.vm, rig.buffer(VRAM, MIB));
    let queues = [(); 3].map(|()| rig.client.queue(vm, uapi::engine_class::VM_BIND));
    for round in 0..50 {
        let at = BASE + round * MIB;
        let (gate, busy) = rig.busy();
        // Each comes after the one before it, in another queue.
        rig.client.bind_on(queues[0], vm, &[map(buffer, 0, at, CHUNK)], &[after(busy)]).unwrap();
        rig.client.bind_on(queues[1], vm, &[map(buffer, CHUNK, at, 2 * CHUNK)], &[]).unwrap();
        rig.client.bind_on(queues[0], vm, &[unmap(at, CHUNK)], &[]).unwrap();
        assert_eq!(rig.client.translate(vm, at + CHUNK), None);
        rig.open(gate);
        rig.client.wait(busy);
        rig.client.bind_on(queues[2], vm, &[map_null(at, CHUNK)], &[]).unwrap();
        assert_eq!(rig.client.translate(vm, at), Some(Target::Null), "round {round}");
        assert!(rig.client.translate(vm, at + CHUNK).is_some(), "round {round}");
    }
    drop(rig);
    bench.assert_clean();
}

#[test]
fn what_is_mapped_can_be_read_as_text() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, _) = rig.buffer(VRAM, MIB);
    rig.bind(&[map(buffer, 0, BASE, MIB), map_null(2 * BASE, MIB)]);
    let text = XeDriver::gpuvas(&bench.device.files());
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("client "), "{text}");
    assert!(lines[1].starts_with("VM 1: address space") && lines[1].contains("3 mappings"), "{text}");
    let line = |at: u64| lines.iter().find(|line| line.trim().starts_with(&format!("{at:#014x}.."))).unwrap();
    assert!(line(BASE).contains("object") && line(2 * BASE).ends_with("null"), "{text}");
}

#[test]
fn an_empty_bind_waits_for_what_it_is_told_and_later_ones_for_it() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let vm = rig.vm;
    assert_eq!(rig.client.bind(vm, &[], &[]), Err(Errno::INVAL));
    let (gate, busy) = rig.busy();
    let [first, second] = [(); 2].map(|()| rig.client.syncobj());
    rig.client.bind(vm, &[], &[after(busy), signal(first)]).unwrap();
    rig.client.bind(vm, &[], &[signal(second)]).unwrap();
    assert!(!rig.client.is_signalled(first) && !rig.client.is_signalled(second));
    rig.open(gate);
    rig.client.wait(second);
    assert!(rig.client.is_signalled(first));
}

#[test]
fn a_user_fence_of_a_bind_is_written_to_client_memory() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (vm, memory) = (rig.vm, Pages::new());
    rig.client.bind(vm, &[map_null(BASE, MIB)], &[user_fence(memory.address(), 5)]).unwrap();
    assert_eq!(memory.get(0), 5);
    let (gate, busy) = rig.busy();
    rig.client.bind(vm, &[unmap(BASE, MIB)], &[after(busy), user_fence(memory.address() + 8, 6)]).unwrap();
    assert_eq!(memory.get(8), 0);
    rig.open(gate);
    let wait = uapi::WaitUserFence {
        addr: memory.address() + 8,
        value: 6,
        mask: u64::MAX,
        timeout: -1,
        ..Zeroable::zeroed()
    };
    rig.client.xe(nr::WAIT_USER_FENCE, wait).unwrap();
    let odd = user_fence(memory.address() + 4, 1);
    assert_eq!(rig.client.bind(vm, &[unmap(BASE, MIB)], &[odd]), Err(Errno::INVAL));
    let nowhere = user_fence(1 << 46, 1);
    assert_eq!(rig.client.bind(vm, &[unmap(BASE, MIB)], &[nowhere]), Err(Errno::FAULT));
}

#[test]
fn wrong_operations_are_refused_one_by_one() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (vm, (buffer, _)) = (rig.vm, rig.buffer(VRAM, MIB));
    let good = map(buffer, 0, BASE, CHUNK);
    let prefetch = uapi::VmBindOp { op: uapi::BIND_OP_PREFETCH, ..unmap(BASE, CHUNK) };
    let cases = [
        (good, None),
        (uapi::VmBindOp { flags: uapi::BIND_FLAG_CHECK_PXP, ..good }, None),
        (uapi::VmBindOp { prefetch_mem_region_instance: 1, ..prefetch }, None),
        (
            uapi::VmBindOp { prefetch_mem_region_instance: uapi::CONSULT_MEM_ADVISE_PREF_LOC, ..prefetch },
            None,
        ),
        (uapi::VmBindOp { extensions: 1 << 20, ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { obj: 0, ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { obj: 99, ..good }, Some(Errno::NOENT)),
        (uapi::VmBindOp { pad: 1, ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { pad2: 1, ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { reserved: [0, 0, 1], ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { op: 5, ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { flags: 1 << 5, ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { pat_index: 16, ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { pat_index: 28, ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { obj_offset: 4096, ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { obj_offset: !(CHUNK - 1), ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { addr: BASE + 4096, ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { range: 0, ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { range: 100, ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { range: 2 * MIB, ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { addr: (1 << 48) - CHUNK / 2, ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { addr: !(CHUNK - 1), ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { prefetch_mem_region_instance: 1, ..good }, Some(Errno::INVAL)),
        (uapi::VmBindOp { prefetch_mem_region_instance: 2, ..prefetch }, Some(Errno::INVAL)),
        (uapi::VmBindOp { prefetch_mem_region_instance: 0, ..prefetch }, Some(Errno::INVAL)),
        (uapi::VmBindOp { obj: buffer, ..map_null(BASE, CHUNK) }, Some(Errno::INVAL)),
        (uapi::VmBindOp { obj: buffer, ..unmap(BASE, CHUNK) }, Some(Errno::INVAL)),
        (uapi::VmBindOp { range: CHUNK, ..unmap_all(buffer) }, Some(Errno::INVAL)),
        (uapi::VmBindOp { obj: 0, ..unmap_all(buffer) }, Some(Errno::INVAL)),
        (uapi::VmBindOp { flags: uapi::BIND_FLAG_NULL, ..unmap(BASE, CHUNK) }, Some(Errno::INVAL)),
    ];
    for (op, errno) in cases {
        assert_eq!(rig.client.bind(vm, &[op], &[]).err(), errno, "{op:?}");
    }
    assert_eq!(rig.client.bind(99, &[good], &[]), Err(Errno::NOENT));
    assert_eq!(rig.client.bind_on(99, vm, &[good], &[]), Err(Errno::NOENT));
    let engine = rig.queue;
    assert_eq!(rig.client.bind_on(engine, vm, &[good], &[]), Err(Errno::INVAL));
    let other = rig.client.vm();
    let foreign = rig.client.queue(other, uapi::engine_class::VM_BIND);
    assert_eq!(rig.client.bind_on(foreign, vm, &[good], &[]), Err(Errno::INVAL));
    let unsubmitted = rig.client.syncobj();
    assert_eq!(rig.client.bind(vm, &[good], &[after(unsubmitted)]), Err(Errno::INVAL));
    assert_eq!(rig.client.bind(vm, &[good], &[after(99)]), Err(Errno::NOENT));
    assert_eq!(rig.client.bind(vm, &[good], &[signal_point(unsubmitted, 0)]), Err(Errno::INVAL));
    let args = uapi::VmBind { vm_id: vm, num_binds: 1, bind: good, ..Zeroable::zeroed() };
    let syncs_nowhere = uapi::VmBind { num_syncs: 1, syncs: 1 << 46, ..args };
    assert_eq!(rig.client.xe(nr::VM_BIND, syncs_nowhere).err(), Some(Errno::FAULT));
    let ops_nowhere = uapi::VmBind { num_binds: 2, ..args };
    assert_eq!(rig.client.xe(nr::VM_BIND, ops_nowhere).err(), Some(Errno::FAULT));
    let padded = uapi::VmBind { pad2: 1, ..args };
    assert_eq!(rig.client.xe(nr::VM_BIND, padded).err(), Some(Errno::INVAL));
    drop(rig);
    bench.assert_clean();
}
