//! EXEC and queues: what runs, in which order, who learns of it, and what happens to those who do wrong.

use lapidary::fence::FenceError;

use super::client::*;
use super::*;
use crate::uapi::drm;

const BASE: u64 = 1 << 30;

fn bench() -> Bench {
    Bench::new(&small())
}

#[test]
fn a_batch_stores_and_its_fence_signals_afterwards() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, bytes) = rig.buffer(SYSTEM, CHUNK);
    rig.bind(&[map(buffer, 0, BASE, CHUNK)]);
    for class in [uapi::engine_class::RENDER, uapi::engine_class::COPY, uapi::engine_class::COMPUTE] {
        let queue = rig.client.queue(rig.vm, class);
        let at = u64::from(class) * 4;
        let done = rig.submit_on(queue, Batch::new().store(BASE + at, 0xc0ffee), &[]);
        assert_eq!(rig.client.outcome(done), Ok(()));
        assert_eq!(bytes.read(at), 0xc0ffee);
    }
    drop(rig);
    bench.assert_clean();
}

#[test]
fn bytes_are_copied_between_regions() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let ((near, vram), (far, system)) = (rig.buffer(VRAM, MIB), rig.buffer(SYSTEM, MIB));
    rig.bind(&[map(near, 0, BASE, MIB), map(far, 0, BASE + MIB, MIB)]);
    let pattern: Vec<u32> = (0..CHUNK as u32 / 4).collect();
    system.write(MIB - CHUNK, &pattern);
    let (from, to) = (BASE + 2 * MIB - CHUNK, BASE + CHUNK);
    rig.run(Batch::new().copy(from, to, CHUNK).copy(to, BASE + MIB, CHUNK));
    for at in (0..CHUNK).step_by(4096) {
        assert_eq!((vram.read(CHUNK + at), system.read(at)), (at as u32 / 4, at as u32 / 4));
    }
    drop(rig);
    bench.assert_clean();
}

#[test]
fn a_wait_for_submission_comes_before_the_submission() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let done = rig.client.syncobj();
    let (file, mut other) = (rig.client.file.clone(), rig.client.test.beside());
    let waiter = std::thread::spawn(move || {
        let mut args = drm::SyncobjWait {
            handles: std::ptr::from_ref(&done) as u64,
            timeout_nsec: i64::MAX,
            count_handles: 1,
            flags: drm::SYNCOBJ_WAIT_FOR_SUBMIT,
            ..Zeroable::zeroed()
        };
        other.ioctl(&*file, drm::IOCTL_SYNCOBJ_WAIT.0, &mut args)
    });
    let (queue, batch) = (rig.queue, rig.load(Batch::new()));
    rig.client.exec(queue, batch, &[signal(done)]).unwrap();
    assert_eq!(waiter.join().unwrap(), Ok(0));
}

#[test]
fn a_job_waits_for_the_fence_a_syncobj_held_when_it_was_submitted() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, bytes) = rig.buffer(SYSTEM, CHUNK);
    rig.bind(&[map(buffer, 0, BASE, CHUNK)]);
    let render = rig.client.queue(rig.vm, uapi::engine_class::RENDER);
    let (gate, busy) = rig.busy();
    let done = rig.submit_on(render, Batch::new().store(BASE, 1), &[after(busy)]);
    let reset = drm::SyncobjArray { handles: std::ptr::from_ref(&busy) as u64, count_handles: 1, pad: 0 };
    rig.client.drm(drm::IOCTL_SYNCOBJ_RESET, reset).unwrap();
    assert!(!rig.client.is_signalled(done));
    assert_eq!(bytes.read(0), 0);
    rig.open(gate);
    rig.client.wait(done);
    assert_eq!(bytes.read(0), 1);
    assert!(!rig.client.is_signalled(busy), "an old job leaves a syncobj alone that was reset");
}

#[test]
fn user_fences_are_stored_by_the_engine_and_waited_for() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let (buffer, bytes) = rig.buffer(SYSTEM, CHUNK);
    rig.bind(&[map(buffer, 0, BASE, CHUNK)]);
    let (queue, batch) = (rig.queue, rig.load(Batch::new()));
    rig.client.exec(queue, batch, &[user_fence(BASE + 8, 0x55)]).unwrap();
    let done = rig.client.syncobj();
    rig.client.exec(queue, None, &[signal(done)]).unwrap();
    rig.client.wait(done);
    assert_eq!(bytes.read(8), 0x55);

    let value = 7_u64;
    let wait = uapi::WaitUserFence {
        addr: std::ptr::from_ref(&value) as u64,
        value: 7,
        mask: u64::MAX,
        timeout: 1000,
        ..Zeroable::zeroed()
    };
    let mut outcome = |args| rig.client.xe(nr::WAIT_USER_FENCE, args).err();
    for (op, value, errno) in [
        (0, 7, None),
        (0, 8, Some(Errno::TIME)),
        (1, 8, None),
        (2, 6, None),
        (2, 7, Some(Errno::TIME)),
        (3, 7, None),
        (4, 8, None),
        (5, 6, Some(Errno::TIME)),
        (6, 7, Some(Errno::INVAL)),
    ] {
        assert_eq!(outcome(uapi::WaitUserFence { op, value, ..wait }), errno, "{op} {value}");
    }
    assert_eq!(outcome(uapi::WaitUserFence { value: 0x107, mask: 0xff, ..wait }), None);
    assert_eq!(outcome(uapi::WaitUserFence { addr: wait.addr + 4, ..wait }), Some(Errno::INVAL));
    assert_eq!(outcome(uapi::WaitUserFence { addr: 1 << 46, ..wait }), Some(Errno::FAULT));
    assert_eq!(outcome(uapi::WaitUserFence { exec_queue_id: 99, ..wait }), Some(Errno::NOENT));
    assert_eq!(outcome(uapi::WaitUserFence { flags: 2, ..wait }), Some(Errno::INVAL));
    assert_eq!(outcome(uapi::WaitUserFence { flags: 1, timeout: 1, value: 9, ..wait }), Some(Errno::TIME));
}

#[test]
fn marks_signal_when_what_is_queued_has_ended_and_in_order() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let queue = rig.queue;
    let render = rig.client.queue(rig.vm, uapi::engine_class::RENDER);
    let other = rig.gate();
    let elsewhere = rig.submit_on(render, Batch::new().until(other.address(), 1), &[]);
    let (gate, busy) = rig.busy();
    let marks = [(); 3].map(|()| rig.client.syncobj());
    rig.client.exec(queue, None, &[signal(marks[0])]).unwrap();
    rig.client.exec(queue, None, &[after(elsewhere), signal(marks[1])]).unwrap();
    rig.client.exec(queue, None, &[signal(marks[2])]).unwrap();
    let mut seen = || marks.map(|mark| rig.client.is_signalled(mark));
    assert_eq!(seen(), [false; 3]);
    rig.open(gate);
    rig.client.wait(busy);
    rig.client.wait(marks[0]);
    assert_eq!(marks.map(|mark| rig.client.is_signalled(mark)), [true, false, false]);
    rig.open(other);
    rig.client.wait(marks[2]);
    assert!(rig.client.is_signalled(marks[1]));
    assert_eq!(rig.client.exec(queue, None, &[user_fence(BASE, 1)]), Err(Errno::OPNOTSUPP));
    drop(rig);
    bench.assert_clean();
}

#[test]
fn a_queue_that_faults_or_is_nonsense_is_banned_and_others_go_on() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let cases = [
        (Batch::new().store(BASE, 1), FenceError::Fault),
        (Batch::new().raw(&[0xdead_beef]), FenceError::Device),
    ];
    for (batch, error) in cases {
        let queue = rig.client.queue(rig.vm, uapi::engine_class::COPY);
        let guilty = rig.submit_on(queue, batch, &[]);
        assert_eq!(rig.client.outcome(guilty), Err(error));
        assert!(rig.client.is_banned(queue));
        let batch = rig.load(Batch::new());
        assert_eq!(rig.client.exec(queue, batch, &[]), Err(Errno::CANCELED));
        assert_eq!(rig.client.exec(queue, None, &[]), Err(Errno::CANCELED));
        let value = 0_u64;
        let wait = uapi::WaitUserFence {
            addr: std::ptr::from_ref(&value) as u64,
            value: 1,
            mask: u64::MAX,
            timeout: -1,
            exec_queue_id: queue,
            ..Zeroable::zeroed()
        };
        assert_eq!(rig.client.xe(nr::WAIT_USER_FENCE, wait).err(), Some(Errno::IO));
        rig.run(Batch::new());
    }
    drop(rig);
    bench.assert_clean();
}

#[test]
fn a_job_that_hangs_is_ended_with_all_that_wait_behind_it() {
    let bench = Bench::new(&DeviceConfig { job_timeout: Duration::from_millis(50), ..small() });
    let mut rig = Rig::new(&bench);
    let (_gate, hung) = rig.busy();
    let behind = rig.submit(Batch::new());
    assert_eq!(rig.client.outcome(hung), Err(FenceError::TimedOut));
    assert!(rig.client.outcome(behind).is_err());
    assert!(rig.client.is_banned(rig.queue));
    drop(rig);
    bench.assert_clean();
}

#[test]
fn wrong_submissions_are_refused_one_by_one() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let batch = rig.load(Batch::new());
    let good =
        uapi::Exec { exec_queue_id: rig.queue, address: batch, num_batch_buffer: 1, ..Zeroable::zeroed() };
    let bind_queue = rig.client.queue(rig.vm, uapi::engine_class::VM_BIND);
    let cases = [
        (good, None),
        (uapi::Exec { address: batch | 0xffff << 48, ..good }, None),
        (uapi::Exec { extensions: 1 << 46, ..good }, Some(Errno::INVAL)),
        (uapi::Exec { exec_queue_id: 99, ..good }, Some(Errno::NOENT)),
        (uapi::Exec { exec_queue_id: bind_queue, ..good }, Some(Errno::INVAL)),
        (uapi::Exec { num_batch_buffer: 2, ..good }, Some(Errno::INVAL)),
        (uapi::Exec { pad: [0, 1, 0], ..good }, Some(Errno::INVAL)),
        (uapi::Exec { reserved: [0, 1], ..good }, Some(Errno::INVAL)),
        (uapi::Exec { num_syncs: 1, syncs: 1 << 46, ..good }, Some(Errno::FAULT)),
        (uapi::Exec { num_syncs: uapi::MAX_SYNCS + 1, syncs: 1 << 46, ..good }, Some(Errno::INVAL)),
    ];
    for (args, errno) in cases {
        assert_eq!(rig.client.xe(nr::EXEC, args).err(), errno, "{args:?}");
    }
    let empty = rig.client.syncobj();
    let cases = [
        (after(empty), Errno::INVAL),
        (after(99), Errno::NOENT),
        (signal(99), Errno::NOENT),
        (uapi::Sync { flags: 2, ..signal(empty) }, Errno::INVAL),
        (uapi::Sync { kind: 3, ..signal(empty) }, Errno::INVAL),
        (uapi::Sync { extensions: 8, ..signal(empty) }, Errno::INVAL),
        (uapi::Sync { reserved: [0, 1], ..signal(empty) }, Errno::INVAL),
        (signal_point(empty, 0), Errno::INVAL),
        (uapi::Sync { flags: 0, ..signal_point(empty, 1) }, Errno::INVAL),
        (user_fence(BASE + 1, 1), Errno::INVAL),
        (uapi::Sync { flags: 0, ..user_fence(BASE, 1) }, Errno::OPNOTSUPP),
    ];
    for (sync, errno) in cases {
        let queue = rig.queue;
        assert_eq!(rig.client.exec(queue, batch, &[sync]), Err(errno), "{sync:?}");
    }
    drop(rig);
    bench.assert_clean();
}

#[test]
fn wrong_queues_are_refused_one_by_one() {
    let bench = bench();
    let mut rig = Rig::new(&bench);
    let engines = [uapi::EngineClassInstance::default(); 2];
    let good = uapi::ExecQueueCreate {
        width: 1,
        num_placements: 1,
        vm_id: rig.vm,
        instances: engines.as_ptr() as u64,
        ..Zeroable::zeroed()
    };
    let absent = uapi::EngineClassInstance { engine_instance: 1, ..Zeroable::zeroed() };
    let cases = [
        (good, None),
        (uapi::ExecQueueCreate { num_placements: 2, ..good }, None),
        (uapi::ExecQueueCreate { flags: 1, ..good }, None),
        (uapi::ExecQueueCreate { flags: 2, ..good }, Some(Errno::INVAL)),
        (uapi::ExecQueueCreate { width: 0, ..good }, Some(Errno::INVAL)),
        (uapi::ExecQueueCreate { width: 2, ..good }, Some(Errno::INVAL)),
        (uapi::ExecQueueCreate { num_placements: 10, ..good }, Some(Errno::INVAL)),
        (uapi::ExecQueueCreate { vm_id: 99, ..good }, Some(Errno::NOENT)),
        (uapi::ExecQueueCreate { instances: 1 << 46, ..good }, Some(Errno::FAULT)),
        (uapi::ExecQueueCreate { instances: std::ptr::from_ref(&absent) as u64, ..good }, Some(Errno::INVAL)),
        (uapi::ExecQueueCreate { reserved: [1, 0], ..good }, Some(Errno::INVAL)),
        (uapi::ExecQueueCreate { extensions: 1 << 46, ..good }, Some(Errno::FAULT)),
    ];
    for (args, errno) in cases {
        assert_eq!(rig.client.xe(nr::EXEC_QUEUE_CREATE, args).err(), errno, "{args:?}");
    }
    let vm = rig.vm;
    let mut with = |property, value| {
        let extension = uapi::ExtSetProperty { property, value, ..Zeroable::zeroed() };
        rig.client.try_queue(vm, 0, std::ptr::from_ref(&extension) as u64).err()
    };
    assert_eq!(with(uapi::EXEC_QUEUE_PROPERTY_PRIORITY, 1), None);
    assert_eq!(with(uapi::EXEC_QUEUE_PROPERTY_PRIORITY, 3), Some(Errno::INVAL));
    assert_eq!(with(uapi::EXEC_QUEUE_PROPERTY_TIMESLICE, 0), Some(Errno::INVAL));
    assert_eq!(with(uapi::EXEC_QUEUE_PROPERTY_PXP_TYPE, 1), Some(Errno::NODEV));
    assert_eq!(with(77, 0), Some(Errno::INVAL));
    let mut endless = uapi::ExtSetProperty { property: 0, value: 1, ..Zeroable::zeroed() };
    endless.base.next_extension = std::ptr::from_ref(&endless) as u64;
    assert_eq!(rig.client.try_queue(vm, 0, std::ptr::from_ref(&endless) as u64), Err(Errno::TOOBIG));
}
