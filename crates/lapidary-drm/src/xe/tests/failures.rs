//! What fails changes nothing, and says why; what a client leaves unfinished goes with it.

use lapidary::fence::{Fence, FenceContext, Seqno, Signaller};

use super::*;
use crate::core::DrmFile;

/// One client's file with a VM, and the structures to use it.
struct Client<'b> {
    bench: &'b mut Bench,
    file: Arc<dyn File>,
    vm: u32,
}

const SMALL: u64 = 0x1_0000;
const AT: u64 = 0x10_0000;
const SYSTEM: u32 = 1 << 0;
const VRAM: u32 = 1 << 1;

/// Commands of a batch that ends, and of one that waits for a word at its address + 256 to become 1.
const END: [u32; 1] = [0x0a << 23];
fn wait_forever(at: u64) -> [u32; 6] {
    let word = at + 256;
    [0x1c << 23 | 1 << 15 | 4 << 12 | 2, 1, word as u32, (word >> 32) as u32, END[0], 0]
}

fn config() -> DeviceConfig {
    let job_timeout = Duration::from_secs(3600);
    DeviceConfig { vram_size: 8 << 20, job_timeout, ..DeviceConfig::default() }
}

impl<'b> Client<'b> {
    fn new(bench: &'b mut Bench) -> Self {
        let file = bench.open();
        let vm = run(&mut bench.client, &*file, nr::VM_CREATE, uapi::VmCreate::default()).unwrap().vm_id;
        Self { bench, file, vm }
    }

    fn run<T: Pod>(&mut self, number: u8, args: T) -> Result<T, Errno> {
        run(&mut self.bench.client, &*self.file, number, args)
    }

    /// The server's side of the file, which was opened last.
    fn inside(&self) -> Arc<DrmFile<XeDriver>> {
        self.bench.device.files().pop().unwrap()
    }

    fn buffer(&mut self, placement: u32, size: u64) -> Result<u32, Errno> {
        let args = uapi::GemCreate { size, placement, cpu_caching: 2, ..Zeroable::zeroed() };
        Ok(self.run(nr::GEM_CREATE, args)?.handle)
    }

    fn write(&mut self, handle: u32, words: &[u32]) {
        use crate::core::Object as _;
        let memory = self.inside().buffer(handle).unwrap().object().memory().unwrap();
        rustix::io::pwrite(&memory.fd, bytemuck::cast_slice(words), 0).unwrap();
    }

    fn bind(&mut self, queue: u32, ops: &[uapi::VmBindOp], syncs: &[uapi::Sync]) -> Result<(), Errno> {
        let bind = match ops {
            [one] => *one,
            _ => uapi::VmBindOp { extensions: ops.as_ptr() as u64, ..Zeroable::zeroed() },
        };
        let args = uapi::VmBind {
            vm_id: self.vm,
            exec_queue_id: queue,
            num_binds: ops.len() as u32,
            bind,
            num_syncs: syncs.len() as u32,
            syncs: syncs.as_ptr() as u64,
            ..Zeroable::zeroed()
        };
        self.run(nr::VM_BIND, args).map(drop)
    }

    fn queue(&mut self, engine_class: u16) -> u32 {
        let engine = [uapi::EngineClassInstance { engine_class, ..Zeroable::zeroed() }];
        let args = uapi::ExecQueueCreate {
            width: 1,
            num_placements: 1,
            vm_id: self.vm,
            instances: engine.as_ptr() as u64,
            ..Zeroable::zeroed()
        };
        self.run(nr::EXEC_QUEUE_CREATE, args).unwrap().exec_queue_id
    }

    fn exec(&mut self, queue: u32, address: u64, syncs: &[uapi::Sync]) -> Result<(), Errno> {
        let args = uapi::Exec {
            exec_queue_id: queue,
            num_syncs: syncs.len() as u32,
            syncs: syncs.as_ptr() as u64,
            address,
            num_batch_buffer: 1,
            ..Zeroable::zeroed()
        };
        self.run(nr::EXEC, args).map(drop)
    }

    /// A syncobj that holds a fence which signals when the caller wants it to.
    fn syncobj(&mut self) -> (u32, Signaller) {
        use crate::uapi::drm;
        let mut args = drm::SyncobjCreate { handle: 0, flags: 0 };
        self.bench.client.ioctl(&*self.file, drm::IOCTL_SYNCOBJ_CREATE.0, &mut args).unwrap();
        let (fence, signaller) = Fence::new(FenceContext::alloc(), Seqno(1));
        self.inside().syncobjs().get(args.handle).unwrap().replace_fence(Some(fence));
        (args.handle, signaller)
    }

    /// The fence in a syncobj.
    fn fence(&self, handle: u32) -> Option<Fence> {
        self.inside().syncobjs().get(handle).unwrap().find_fence(0)
    }

    /// What is mapped.
    fn mappings(&self) -> String {
        self.inside().data().vm(self.vm).unwrap().gpu_vm().dump().to_string()
    }

    /// How many mappings there are.
    fn count(&self) -> u64 {
        self.inside().data().vm(self.vm).unwrap().gpu_vm().read().len() as u64
    }

    /// The last descriptor is closed.
    fn close(self) {
        self.file.released();
    }
}

fn map(obj: u32, addr: u64, range: u64) -> uapi::VmBindOp {
    uapi::VmBindOp { obj, pat_index: 2, addr, range, ..Zeroable::zeroed() }
}

fn unmap(addr: u64, range: u64) -> uapi::VmBindOp {
    uapi::VmBindOp { op: uapi::BIND_OP_UNMAP, pat_index: 2, addr, range, ..Zeroable::zeroed() }
}

fn wait_for(handle: u32) -> uapi::Sync {
    uapi::Sync { handle_or_addr: handle.into(), ..Zeroable::zeroed() }
}

fn signals(handle: u32) -> uapi::Sync {
    uapi::Sync { flags: uapi::SYNC_FLAG_SIGNAL, ..wait_for(handle) }
}

#[test]
fn a_bind_array_with_an_error_in_it_leaves_everything_as_it_was() {
    let mut bench = Bench::new(&config());
    let mut client = Client::new(&mut bench);
    let (one, large) = (client.buffer(SYSTEM, 2 * SMALL).unwrap(), client.buffer(VRAM, 6 << 20).unwrap());
    let other = client.buffer(VRAM, 6 << 20).unwrap();
    let (out, held) = client.syncobj();
    client.bind(0, &[map(one, AT, 2 * SMALL)], &[]).unwrap();
    let (before, fence) = (client.mappings(), client.fence(out).unwrap());

    let good = [unmap(AT, SMALL), map(one, 2 * AT, SMALL)];
    let mut with = |bad: uapi::VmBindOp, queue: u32| {
        client.bind(queue, &[good[0], bad, good[1]], &[signals(out)]).unwrap_err()
    };
    assert_eq!(with(map(one, 3 * AT, 4 * SMALL), 0), Errno::INVAL, "beyond the buffer's end");
    assert_eq!(with(map(77, 3 * AT, SMALL), 0), Errno::NOENT, "no such buffer");
    assert_eq!(with(map(one, 1 << 48, SMALL), 0), Errno::INVAL, "outside the address space");
    assert_eq!(with(uapi::VmBindOp { op: 9, ..map(one, AT, SMALL) }, 0), Errno::INVAL, "no such operation");
    assert_eq!(with(map(one, 3 * AT, SMALL), 5), Errno::NOENT, "no such queue");
    let host = uapi::VmBindOp { op: 2, obj_offset: 1 << 20, ..map(0, 3 * AT, SMALL) };
    assert_eq!(with(host, 0), Errno::FAULT, "no such client memory");
    let endless = uapi::VmBindOp { op: 2, obj_offset: 1 << 20, ..map(0, 3 * AT, 1 << 46) };
    assert_eq!(with(endless, 0), Errno::NOMEM, "more client memory than there is memory");
    // Both can't be in device memory at once.
    let error =
        client.bind(0, &[good[0], map(large, AT, 6 << 20), map(other, 8 * AT, 6 << 20)], &[signals(out)]);
    assert_eq!(error, Err(Errno::NOMEM));

    assert_eq!(client.mappings(), before);
    assert!(client.fence(out).is_some_and(|now| now.ptr_eq(&fence)), "a refused call touched its out-sync");
    held.signal();
    client.close();
    assert_eq!(bench.survivors(), []);
}

#[test]
fn wild_counts_of_binds_and_syncs_are_refused() {
    let mut bench = Bench::new(&config());
    let mut client = Client::new(&mut bench);
    let bind = |num_binds, num_syncs, at| uapi::VmBind {
        vm_id: 1,
        num_binds,
        bind: if num_binds == 1 {
            unmap(AT, SMALL)
        } else {
            uapi::VmBindOp { extensions: at, ..Zeroable::zeroed() }
        },
        num_syncs,
        syncs: at,
        ..Zeroable::zeroed()
    };
    let mut refused = |args| client.run(nr::VM_BIND, args).unwrap_err();
    assert_eq!(refused(bind(u32::MAX, 0, 0)), Errno::NOBUFS);
    assert_eq!(refused(bind(1 << 16, 0, 8)), Errno::FAULT);
    assert_eq!(refused(bind(1 << 16, 0, u64::MAX - 79)), Errno::FAULT);
    assert_eq!(refused(bind(1, u32::MAX, 8)), Errno::INVAL);
    assert_eq!(refused(bind(1, 1024, 8)), Errno::FAULT);
    assert_eq!(refused(bind(0, 0, 8)), Errno::INVAL);
    client.close();
    assert_eq!(bench.survivors(), []);
}

#[test]
fn more_binds_than_may_wait_are_refused_and_not_recorded() {
    let mut bench = Bench::new(&config());
    let mut client = Client::new(&mut bench);
    let (held, signaller) = client.syncobj();
    let null = uapi::VmBindOp { flags: uapi::BIND_FLAG_NULL, ..map(0, AT, SMALL) };
    let mut taken = 0;
    let refused = loop {
        let place = uapi::VmBindOp { addr: AT + taken * SMALL, ..null };
        match client.bind(0, &[place], &[wait_for(held)]) {
            Ok(()) => taken += 1,
            Err(errno) => break errno,
        }
    };
    assert_eq!(client.count(), taken);
    assert_eq!(refused, Errno::NOBUFS);
    signaller.signal();
    // The next bind carries out what has become ready.
    client.bind(0, &[null], &[]).unwrap();
    client.close();
    assert_eq!(bench.survivors(), []);
}

#[test]
fn a_banned_queue_refuses_work_and_the_next_one_takes_it() {
    let mut bench = Bench::new(&config());
    let mut client = Client::new(&mut bench);
    let code = client.buffer(SYSTEM, SMALL).unwrap();
    client.write(code, &END);
    client.bind(0, &[map(code, AT, SMALL)], &[]).unwrap();
    let (bad, good) = (client.queue(uapi::engine_class::COPY), client.queue(uapi::engine_class::COPY));
    let (done, held) = client.syncobj();
    held.signal();

    // Nothing is mapped there.
    client.exec(bad, 64 * AT, &[signals(done)]).unwrap();
    let none = lapidary::fence::Interrupt::none();
    let failed = client.fence(done).unwrap();
    failed.wait(lapidary::fence::Deadline::never(), &none).unwrap();
    assert!(matches!(failed.status(), Some(Err(_))));

    assert_eq!(client.exec(bad, AT, &[signals(done)]), Err(Errno::CANCELED));
    assert!(client.fence(done).unwrap().ptr_eq(&failed), "a refused call touched its out-sync");
    let get = uapi::ExecQueueGetProperty { exec_queue_id: bad, ..Zeroable::zeroed() };
    assert_eq!(client.run(nr::EXEC_QUEUE_GET_PROPERTY, get).unwrap().value, 1);
    client.exec(good, AT, &[signals(done)]).unwrap();
    let ran = client.fence(done).unwrap();
    ran.wait(lapidary::fence::Deadline::never(), &none).unwrap();
    assert_eq!(ran.status(), Some(Ok(())));
    client.close();
    assert_eq!(bench.survivors(), []);
}

#[test]
fn a_buffer_that_finds_only_busy_memory_waits_until_interrupted_or_the_memory_is_idle() {
    let mut bench = Bench::new(&DeviceConfig { job_timeout: Duration::from_millis(300), ..config() });
    let mut client = Client::new(&mut bench);
    let busy = client.buffer(VRAM, 6 << 20).unwrap();
    client.write(busy, &wait_forever(AT));
    client.bind(0, &[map(busy, AT, 6 << 20)], &[]).unwrap();
    let queue = client.queue(uapi::engine_class::COPY);
    client.exec(queue, AT, &[]).unwrap();

    client.bench.client.call(0, |call| call.interrupt().raise());
    assert_eq!(client.buffer(VRAM, 4 << 20), Err(Errno::INTR));
    client.bench.client.call(0, |call| call.interrupt().clear());
    // The job hangs and is banned: then there is room.
    client.buffer(VRAM, 4 << 20).unwrap();
    client.close();
    assert_eq!(bench.survivors(), []);
}

/// Binds and jobs that wait for a fence, of all kinds of queues, and what they hold.
fn leave_unfinished(client: &mut Client<'_>, held: u32, memory: &[u64]) {
    let (mapped, later) = (client.buffer(VRAM, SMALL).unwrap(), client.buffer(SYSTEM, SMALL).unwrap());
    client.write(mapped, &END);
    let binds = client.queue(uapi::engine_class::VM_BIND);
    let copies = client.queue(uapi::engine_class::COPY);
    let page = (memory.as_ptr() as u64).next_multiple_of(4096);
    let host = uapi::VmBindOp { op: 2, obj_offset: page, ..map(0, 8 * AT, 4096) };
    client.bind(0, &[map(mapped, AT, SMALL), map(later, 2 * AT, SMALL)], &[]).unwrap();
    let ((ran, _), (bound, _)) = (client.syncobj(), client.syncobj());
    client.exec(copies, AT, &[wait_for(held), signals(ran)]).unwrap();
    client.bind(0, &[unmap(AT, SMALL), host], &[wait_for(ran)]).unwrap();
    let syncs = [wait_for(held), signals(bound)];
    client.bind(binds, &[map(mapped, 4 * AT, SMALL), unmap(2 * AT, SMALL)], &syncs).unwrap();
    client.exec(copies, 4 * AT, &[wait_for(bound)]).unwrap();
}

#[test]
fn what_waits_for_a_producer_that_dies_goes_with_its_file() {
    let mut bench = Bench::new(&config());
    let memory = vec![0_u64; 1024];
    let mut client = Client::new(&mut bench);
    let (held, signaller) = client.syncobj();
    leave_unfinished(&mut client, held, &memory);
    client.close();
    // Binds are on record: they still wait for their turn.
    assert_ne!(bench.device.census().survivors(), []);
    drop(signaller);
    assert_eq!(bench.survivors(), []);
    let usage = bench.device.driver().memory_usage();
    assert_eq!((usage.system_used, usage.vram_used), (0, 0));
}

#[test]
fn a_vm_that_is_destroyed_with_work_in_it_goes_when_the_work_is_done() {
    let mut bench = Bench::new(&config());
    let memory = vec![0_u64; 1024];
    let mut client = Client::new(&mut bench);
    let (held, signaller) = client.syncobj();
    leave_unfinished(&mut client, held, &memory);
    let vm = uapi::Destroy { id: client.vm, ..Zeroable::zeroed() };
    client.run(nr::VM_DESTROY, vm).unwrap();
    assert_eq!(client.bind(0, &[unmap(AT, SMALL)], &[]), Err(Errno::NOENT));
    signaller.signal();
    let kinds = |client: &Client<'_>| client.bench.device.census().kind("client ranges").count().live;
    while kinds(&client) != 0 {
        client.bench.device.driver().worker().flush();
        std::thread::yield_now();
    }
    let stats = client.bench.device.driver().gpu().stats();
    assert_eq!((stats.completions, stats.faults), (2, 0), "jobs from before find what was mapped for them");
    client.close();
    assert_eq!(bench.survivors(), []);
}

#[test]
fn the_device_ends_with_clients_at_work() {
    let mut bench = Bench::new(&config());
    let memory = vec![0_u64; 1024];
    let mut client = Client::new(&mut bench);
    let (held, signaller) = client.syncobj();
    leave_unfinished(&mut client, held, &memory);
    let busy = client.buffer(VRAM, SMALL).unwrap();
    client.write(busy, &wait_forever(16 * AT));
    client.bind(0, &[map(busy, 16 * AT, SMALL)], &[]).unwrap_or(());
    let queue = client.queue(uapi::engine_class::RENDER);
    client.exec(queue, 16 * AT, &[]).unwrap();
    client.bench.device.driver().shut_down();
    assert!(client.exec(queue, 16 * AT, &[]).is_err());
    client.close();
    assert_eq!(bench.survivors(), []);
    drop(signaller);
}
