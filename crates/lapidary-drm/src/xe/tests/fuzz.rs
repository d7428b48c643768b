//! Calls that are nearly right, from several clients at once: nothing panics, nothing hangs, nothing leaks.
//!
//! Each client fills in a command's structure as a program would, from handles, addresses and sizes that are likely to
//! exist, and then, now and then, spoils a word of it. Pointers are into memory set aside for it or into none: clients
//! here share this test's memory. What stands in for signals interrupts every client every few milliseconds, so no wait
//! lasts.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use parking_lot::Mutex;

use super::*;
use crate::uapi::{dma_buf, drm, sync_file};

/// Clients at once, and calls of each.
const CLIENTS: u64 = 3;
const CALLS: usize = 8000;
/// No client calls on after this, however slow the machine.
const ENOUGH: Duration = Duration::from_secs(20);
/// After this somebody waits for what does not come.
const DEADLOCK: Duration = Duration::from_secs(180);
/// Files that the clients share.
const FILES: usize = 3;
/// Words of memory that a client's pointers lead to.
const SCRATCH: usize = 16 << 10;
const PAGE: u64 = 4096;

/// Panics in threads of the device.
static PANICS: AtomicUsize = AtomicUsize::new(0);

#[test]
fn calls_that_are_nearly_right_neither_panic_nor_hang_nor_leak() {
    count_panics();
    let bench = Bench::new(&DeviceConfig {
        vram_size: 8 << 20,
        job_timeout: Duration::from_millis(100),
        ..DeviceConfig::default()
    });
    let files: Arc<Files> = Arc::new((0..FILES).map(|_| Mutex::new(bench.open())).collect());
    let over = Arc::new(AtomicBool::new(false));
    let (sender, done) = mpsc::channel();
    let mut doing = Vec::new();
    let mut threads = Vec::new();
    for seed in 1..=CLIENTS {
        let now = Arc::new(Mutex::new(String::new()));
        doing.push(now.clone());
        let client = bench.client.beside();
        let mut fuzzer = Fuzzer::new(client, bench.device.clone(), files.clone(), seed, now);
        let (over, sender) = (over.clone(), sender.clone());
        threads.push(std::thread::spawn(move || {
            let interrupt = fuzzer.client.call(0, |call| call.interrupt().clone());
            let signals = std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(3));
                    interrupt.raise();
                }
            });
            let start = Instant::now();
            for _ in 0..CALLS {
                if start.elapsed() > ENOUGH {
                    break;
                }
                fuzzer.step();
            }
            fuzzer.client.close_all();
            drop(fuzzer);
            // Nobody listens when the test has failed already.
            let _ = sender.send(());
            signals
        }));
    }
    drop(sender);
    for _ in 0..CLIENTS {
        let outcome = done.recv_timeout(DEADLOCK);
        let doing: Vec<String> = doing.iter().map(|now| now.lock().clone()).collect();
        assert_ne!(outcome, Err(mpsc::RecvTimeoutError::Timeout), "somebody hangs; at work on {doing:#?}");
    }
    over.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("a client's call panicked").join().unwrap();
    }
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "a thread of the device panicked");

    let mut client = bench.client.beside();
    let file = bench.open();
    assert_alive(&mut client, &*file);
    drop((file, files));
    assert_eq!(bench.survivors(), []);
    let usage = bench.device.driver().memory_usage();
    assert_eq!((usage.system_used, usage.vram_used), (0, 0));
}

/// Counts panics of the device's own threads; those of clients end the clients.
fn count_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        if ["xe-", "lapidary-"].iter().any(|prefix| name.starts_with(prefix)) {
            PANICS.fetch_add(1, Ordering::Relaxed);
        }
        report(info);
    }));
}

type Files = Vec<Mutex<Arc<dyn File>>>;

struct Fuzzer {
    client: TestClient,
    device: Arc<DrmDevice<XeDriver>>,
    files: Arc<Files>,
    file: Arc<dyn File>,
    random: Random,
    /// Never freed: jobs may still write there when the client is gone.
    scratch: &'static [u64],
    /// Words of the scratch memory given out for the present call.
    used: usize,
    /// Whether the present call is to be one that could succeed.
    sane: bool,
    now: Arc<Mutex<String>>,
}

/// A small generator: the same calls at every run, as far as threads allow.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }

    fn once_in(&mut self, chance: u64) -> bool {
        self.below(chance) == 0
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

impl Fuzzer {
    fn new(
        client: TestClient,
        device: Arc<DrmDevice<XeDriver>>,
        files: Arc<Files>,
        seed: u64,
        now: Arc<Mutex<String>>,
    ) -> Self {
        let bytes = SCRATCH * 8;
        let scratch: &'static [u64] = Box::leak(vec![0; SCRATCH + PAGE as usize / 8].into_boxed_slice());
        let skip = scratch.as_ptr().align_offset(PAGE as usize);
        let scratch = &scratch[skip..][..bytes / 8];
        let file = files[0].lock().clone();
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { client, device, files, file, random, scratch, used: 0, sane: true, now }
    }

    fn step(&mut self) {
        let slot = self.random.below(FILES as u64) as usize;
        self.file = self.files[slot].lock().clone();
        self.used = 0;
        self.sane = !self.random.once_in(3);
        self.client.call(0, |call| call.interrupt().clear());
        match self.random.below(64) {
            0 if self.random.once_in(8) => self.reopen(slot),
            0..4 => self.descriptor_ioctl(),
            4 => self.close_descriptor(),
            5 => self.mmap(),
            6..18 => self.make(),
            18..40 => self.work(),
            40..46 => self.submit_something(),
            46..52 => self.unmake(),
            52..63 => self.syncobj(),
            _ => self.nonsense(),
        }
    }

    /// Another open of the device takes the file's place; the last call on the old one closes it.
    fn reopen(&mut self, slot: usize) {
        let node = self.random.pick(&[Node::Render, Node::Primary]);
        let fresh = self.device.open(self.client.process(), node).unwrap();
        *self.files[slot].lock() = fresh;
    }

    /// One of what a program would say; in a call that may be wrong, now and then one of what it would not.
    fn choose<T: Copy>(&mut self, right: &[T], odd: &[T]) -> T {
        let choices = if !self.sane && self.random.once_in(6) { odd } else { right };
        self.random.pick(choices)
    }

    fn make(&mut self) {
        match self.random.below(8) {
            0 => {
                let flags = self.choose(&[0, 0, 0, 1, 1, 2, 6, 6, 14], &[3, 4, 7, 8, 16]);
                self.xe(nr::VM_CREATE, uapi::VmCreate { flags, ..Zeroable::zeroed() });
            }
            1 | 2 => {
                let instances = [0; 4].map(|_| self.engine());
                let args = uapi::ExecQueueCreate {
                    width: self.choose(&[1], &[2, 0]),
                    num_placements: self.choose(&[1], &[2, 0xffff]),
                    vm_id: self.handle(),
                    instances: self.store(&instances),
                    extensions: self.property(),
                    ..Zeroable::zeroed()
                };
                self.xe(nr::EXEC_QUEUE_CREATE, args);
            }
            _ => drop(self.create_buffer()),
        }
    }

    fn create_buffer(&mut self) -> Option<u32> {
        let placement = self.choose(&[1, 1, 2, 2, 3, 3], &[0, 4]);
        let args = uapi::GemCreate {
            size: self.choose(&[0x1_0000, 0x1_0000, 0x4_0000, 0x20_0000, 0x40_0000], &[0, PAGE, 1 << 40]),
            placement,
            flags: self.choose(&[0, 0, 0, 1], &[2, 4, 8, 15, 16]),
            vm_id: if self.random.once_in(4) { 1 } else { 0 },
            cpu_caching: if placement == 1 { self.random.pick(&[1, 2]) } else { self.choose(&[2], &[0, 1]) },
            ..Zeroable::zeroed()
        };
        let made = self.xe(nr::GEM_CREATE, args)?;
        let batch = self.batch();
        let ours = self.offset(made.handle);
        let map = self.client.call(0, |call| self.file.mmap(call, ours, PAGE, 3, 1));
        // The handle may have been closed by another client meanwhile.
        if let Ok(map) = map {
            rustix::io::pwrite(map.fd.as_fd(), bytemuck::cast_slice(&batch), 0).unwrap();
        }
        Some(made.handle)
    }

    /// What programs do: a buffer, mapped, and a job in it. Others disturb it at every step.
    fn submit_something(&mut self) {
        let flags = self.random.pick(&[0, 0, uapi::VM_CREATE_LR_MODE | uapi::VM_CREATE_FAULT_MODE]);
        let vm = uapi::VmCreate { flags, ..Zeroable::zeroed() };
        let Some(vm) = self.xe(nr::VM_CREATE, vm) else { return };
        let queue = uapi::ExecQueueCreate {
            width: 1,
            num_placements: 1,
            vm_id: vm.vm_id,
            instances: self.store(&[uapi::EngineClassInstance { engine_class: 1, ..Zeroable::zeroed() }]),
            ..Zeroable::zeroed()
        };
        let Some(queue) = self.xe(nr::EXEC_QUEUE_CREATE, queue) else { return };
        for _ in 0..4 {
            let Some(obj) = self.create_buffer() else { continue };
            let addr = self.address();
            let bind = uapi::VmBindOp { obj, pat_index: 2, range: 0x1_0000, addr, ..Zeroable::zeroed() };
            let (syncs, num_syncs) = self.syncs();
            let args =
                uapi::VmBind { vm_id: vm.vm_id, num_binds: 1, bind, num_syncs, syncs, ..Zeroable::zeroed() };
            self.xe(nr::VM_BIND, args);
            let (syncs, num_syncs) = self.syncs();
            let args = uapi::Exec {
                exec_queue_id: queue.exec_queue_id,
                num_syncs,
                syncs,
                address: addr,
                num_batch_buffer: 1,
                ..Zeroable::zeroed()
            };
            self.xe(nr::EXEC, args);
        }
        if self.random.once_in(2) {
            self.xe(nr::VM_DESTROY, uapi::Destroy { id: vm.vm_id, ..Zeroable::zeroed() });
        }
        self.xe(nr::EXEC_QUEUE_DESTROY, uapi::Destroy { id: queue.exec_queue_id, ..Zeroable::zeroed() });
    }

    /// Words for the start of a buffer.
    fn batch(&mut self) -> Vec<u32> {
        const END: u32 = 0x0a << 23;
        const STORE: u32 = 0x20 << 23 | 2;
        const START: u32 = 0x31 << 23 | 1 << 8 | 1;
        const SEMAPHORE: u32 = 0x1c << 23 | 1 << 15 | 3;
        const COPY: u32 = 2 << 29 | 0x5a << 22 | 8;
        let (from, to) = (self.address(), self.address());
        let halves = |address: u64| [address as u32, (address >> 32) as u32];
        let ([from, from_high], [to, to_high]) = (halves(from), halves(to));
        match self.random.below(9) {
            0..3 => vec![END],
            3 => vec![STORE, to, to_high, 7, END],
            4 => vec![COPY, 0xffff, 0, 0, 0, from, from_high, to, to_high, 0, END],
            5 => vec![START, to, to_high],
            6 => vec![SEMAPHORE, 7, to, to_high, 0, END],
            7 => (0..64).map(|_| self.random.next() as u32).collect(),
            _ => vec![0; 8],
        }
    }

    fn offset(&mut self, handle: u32) -> u64 {
        let args = uapi::GemMmapOffset { handle, ..Zeroable::zeroed() };
        self.xe(nr::GEM_MMAP_OFFSET, args).map_or(0, |args| args.offset)
    }

    fn mmap(&mut self) {
        let handle = self.handle();
        let offset = self.offset(handle) + self.random.pick(&[0, 0, 0, PAGE, 1 << 62]);
        let length = self.random.pick(&[0, 1, PAGE, 0x1_0000, 1 << 40, u64::MAX]);
        // Refused or not: the memfd goes at once.
        let _ = self.client.call(0, |call| self.file.mmap(call, offset, length, 3, 1));
    }

    fn work(&mut self) {
        match self.random.below(10) {
            0 => {
                let addr = self.pointer(8);
                let args = uapi::WaitUserFence {
                    addr,
                    op: self.random.below(7) as u16,
                    flags: self.random.pick(&[0, 0, 1]),
                    value: self.random.below(3),
                    mask: u64::MAX,
                    timeout: self.random.pick(&[0, 1000, 100_000, i64::MAX, -1, i64::MIN]),
                    exec_queue_id: if self.random.once_in(2) { self.handle() } else { 0 },
                    ..Zeroable::zeroed()
                };
                self.xe(nr::WAIT_USER_FENCE, args);
            }
            1 => self.query(),
            2 if self.random.once_in(2) => {
                let args = uapi::VmGetProperty {
                    vm_id: self.handle(),
                    property: self.random.pick(&[0, 0, 0, 1]),
                    size: self.random.pick(&[0, 0, 48, 96, 47, u32::MAX]),
                    data: self.pointer(96),
                    ..Zeroable::zeroed()
                };
                self.xe(nr::VM_GET_PROPERTY, args);
            }
            2 => {
                let args = uapi::ExecQueueGetProperty {
                    exec_queue_id: self.handle(),
                    property: self.random.pick(&[0, 0, 0, 1]),
                    ..Zeroable::zeroed()
                };
                self.xe(nr::EXEC_QUEUE_GET_PROPERTY, args);
            }
            3..6 => {
                let (syncs, num_syncs) = self.syncs();
                let args = uapi::Exec {
                    exec_queue_id: self.handle(),
                    num_syncs,
                    syncs,
                    address: self.address(),
                    num_batch_buffer: self.choose(&[1, 1, 1, 1, 1, 0], &[2]),
                    ..Zeroable::zeroed()
                };
                let queue = args.exec_queue_id;
                if self.xe(nr::EXEC, args).is_none() && self.random.once_in(3) {
                    // It may be banned by now.
                    self.xe(nr::EXEC_QUEUE_DESTROY, uapi::Destroy { id: queue, ..Zeroable::zeroed() });
                }
            }
            _ => self.bind(),
        }
    }

    fn bind(&mut self) {
        let num_binds = self.choose(&[1, 1, 1, 1, 1, 0, 2, 5], &[40, 1 << 16, 1 << 17, u32::MAX]);
        let ops: Vec<_> = (0..num_binds.min(40)).map(|_| self.bind_op()).collect();
        let bind = match num_binds {
            1 => ops[0],
            _ => uapi::VmBindOp { extensions: self.store(&ops), ..Zeroable::zeroed() },
        };
        let (syncs, num_syncs) = self.syncs();
        let args = uapi::VmBind {
            vm_id: self.handle(),
            exec_queue_id: if self.random.once_in(4) { self.handle() } else { 0 },
            num_binds,
            bind,
            num_syncs,
            syncs,
            ..Zeroable::zeroed()
        };
        self.xe(nr::VM_BIND, args);
    }

    fn bind_op(&mut self) -> uapi::VmBindOp {
        let op = self.choose(&[0, 0, 0, 0, 0, 1, 1, 2, 3, 4], &[5]);
        let null = op == 0 && self.random.once_in(4);
        let with_buffer = (op == 0 || op == 3) && !null;
        let small = [0x1_0000, 0x1_0000, 0x1_0000, 0x2_0000, 0x20_0000];
        let range = match op {
            3 => 0,
            2 => self.random.pick(&[PAGE, 0x1_0000]),
            1 if self.random.once_in(8) => 1 << 48,
            _ if null && self.random.once_in(8) => self.random.pick(&[1 << 21, 1 << 30, 1 << 40]),
            _ => self.choose(&small, &[0, 1, PAGE, 1 << 47]),
        };
        let obj_offset = match op {
            0 if !null => self.choose(&[0], &[1, PAGE, 0x1_0000, u64::MAX - PAGE + 1]),
            2 => self.pointer(PAGE as usize),
            _ => 0,
        };
        uapi::VmBindOp {
            obj: if with_buffer { self.handle() } else { 0 },
            pat_index: self.choose(&[2], &[0, 3, 31, 32, 0xffff]),
            obj_offset,
            range,
            addr: if op == 3 { 0 } else { self.address() },
            op,
            flags: if null {
                uapi::BIND_FLAG_NULL
            } else {
                self.choose(&[0, 0, 0, 1, 2], &[4, 8, 16, 1 << 31])
            },
            prefetch_mem_region_instance: if op == 4 { self.choose(&[0, 1], &[2, 40]) } else { 0 },
            ..Zeroable::zeroed()
        }
    }

    /// An array of syncs: its address and length.
    fn syncs(&mut self) -> (u64, u32) {
        let count = self.random.pick(&[0, 0, 1, 1, 2, 4]);
        let syncs: Vec<_> = (0..count).map(|_| self.sync()).collect();
        (self.store(&syncs), self.choose(&[count], &[1024, 1025, u32::MAX]))
    }

    fn sync(&mut self) -> uapi::Sync {
        let kind = self.choose(&[0, 0, 0, 1, 1, 2], &[3]);
        uapi::Sync {
            kind,
            flags: if kind == 2 { 1 } else { self.choose(&[0, 1, 1], &[2]) },
            handle_or_addr: match kind {
                2 if self.random.once_in(2) => self.address(),
                2 => self.pointer(8),
                _ => self.handle().into(),
            },
            timeline_value: self.choose(&[1, 1, 2, 3, 9], &[0, u64::MAX]),
            ..Zeroable::zeroed()
        }
    }

    fn query(&mut self) {
        let args = uapi::DeviceQuery {
            query: self.random.below(10) as u32,
            size: self.random.pick(&[0, 0, 24, 32, 40, 48, u32::MAX]),
            data: self.pointer(256),
            ..Zeroable::zeroed()
        };
        self.xe(nr::DEVICE_QUERY, args);
    }

    fn unmake(&mut self) {
        let args = uapi::Destroy { id: self.handle(), ..Zeroable::zeroed() };
        match self.random.below(12) {
            0 if self.random.once_in(4) => drop(self.xe(nr::VM_DESTROY, args)),
            0 | 1 => drop(self.xe(nr::EXEC_QUEUE_DESTROY, args)),
            2..10 => {
                self.send(drm::IOCTL_GEM_CLOSE, drm::GemClose { handle: args.id, pad: 0 });
            }
            _ => {
                self.send(drm::IOCTL_SYNCOBJ_DESTROY, drm::SyncobjDestroy { handle: args.id, pad: 0 });
            }
        }
    }

    fn syncobj(&mut self) {
        let handle = self.handle();
        let flags = self.choose(&[0, 0, 1, 2, 3], &[4, 7, 8]);
        let count_handles = self.choose(&[1, 1, 2, 4], &[0, 1 << 19, u32::MAX]);
        let handles = [0_u32; 4].map(|_| self.handle());
        let points = [0_u64; 4].map(|_| self.random.pick(&[0, 1, 2, 5, 5000, u64::MAX]));
        let point = points[0];
        let (handles, points) = (self.store(&handles), self.store(&points));
        let timeout_nsec = self.random.pick(&[0, 1, i64::MIN, i64::MAX, i64::MAX]);
        let array = drm::SyncobjArray { handles, count_handles, pad: 0 };
        let timeline = drm::SyncobjTimelineArray { handles, points, count_handles, flags: flags & 1 };
        match self.random.below(14) {
            0..3 => drop(self.send(drm::IOCTL_SYNCOBJ_CREATE, drm::SyncobjCreate { handle: 0, flags })),
            3 | 4 => {
                let fd = self.fd();
                let args = drm::SyncobjHandle { handle, flags, fd, pad: 0, point };
                let command =
                    self.random.pick(&[drm::IOCTL_SYNCOBJ_HANDLE_TO_FD, drm::IOCTL_SYNCOBJ_FD_TO_HANDLE]);
                self.send(command, args);
            }
            5 => {
                let first = Zeroable::zeroed();
                let wait = drm::SyncobjWait { handles, timeout_nsec, count_handles, flags, ..first };
                self.send(drm::IOCTL_SYNCOBJ_WAIT, wait);
            }
            6 | 7 => {
                let first = Zeroable::zeroed();
                let wait =
                    drm::SyncobjTimelineWait { handles, points, timeout_nsec, count_handles, flags, ..first };
                self.send(drm::IOCTL_SYNCOBJ_TIMELINE_WAIT, wait);
            }
            8 => drop(self.send(drm::IOCTL_SYNCOBJ_RESET, array)),
            9 => drop(self.send(drm::IOCTL_SYNCOBJ_SIGNAL, array)),
            10 => drop(self.send(drm::IOCTL_SYNCOBJ_TIMELINE_SIGNAL, timeline)),
            11 => drop(self.send(drm::IOCTL_SYNCOBJ_QUERY, timeline)),
            12 => {
                let dst_handle = self.handle();
                let dst_point = self.random.pick(&[0, 1, 7]);
                let flags = flags & 3;
                let args = drm::SyncobjTransfer {
                    src_handle: handle,
                    dst_handle,
                    src_point: point,
                    dst_point,
                    flags,
                    pad: 0,
                };
                self.send(drm::IOCTL_SYNCOBJ_TRANSFER, args);
            }
            _ => self.share(handle),
        }
    }

    fn share(&mut self, handle: u32) {
        let fd = self.fd();
        let flags = self.random.pick(&[0, drm::PRIME_CLOEXEC, drm::PRIME_RDWR, 1]);
        let args = drm::PrimeHandle { handle, flags, fd };
        match self.random.below(4) {
            0 | 1 => drop(self.send(drm::IOCTL_PRIME_HANDLE_TO_FD, args)),
            2 => drop(self.send(drm::IOCTL_PRIME_FD_TO_HANDLE, args)),
            _ => {
                let flink = self.send(drm::IOCTL_GEM_FLINK, drm::GemFlink { handle, name: 0 });
                let name = flink.map_or(handle, |flink| flink.name);
                self.send(drm::IOCTL_GEM_OPEN, drm::GemOpen { name, handle: 0, size: 0 });
            }
        }
    }

    /// An ioctl on a sync_file, a dma-buf, or whatever is behind one of the client's descriptors.
    fn descriptor_ioctl(&mut self) {
        let fd = self.fd();
        let Ok(file) = self.client.call(0, |call| call.file_of(fd)) else { return };
        let own = std::mem::replace(&mut self.file, file);
        let other = self.fd();
        match self.random.below(5) {
            0 => {
                let args = sync_file::MergeData { fd2: other, ..Zeroable::zeroed() };
                self.send(sync_file::IOC_MERGE, args);
            }
            1 => {
                let args = sync_file::FileInfo {
                    num_fences: self.random.pick(&[0, 1, 4]),
                    sync_fence_info: self.pointer(512),
                    ..Zeroable::zeroed()
                };
                self.send(sync_file::IOC_FILE_INFO, args);
            }
            2 => {
                let flags = self.random.pick(&[1, 2, 3, 5, 6, 7, 0]);
                self.send(dma_buf::IOCTL_SYNC, dma_buf::Sync { flags });
            }
            3 => {
                let flags = self.random.pick(&[1, 2, 3, 0]);
                self.send(dma_buf::IOCTL_EXPORT_SYNC_FILE, dma_buf::ExportSyncFile { flags, fd: 0 });
            }
            _ => {
                let flags = self.random.pick(&[1, 2, 3, 0]);
                self.send(dma_buf::IOCTL_IMPORT_SYNC_FILE, dma_buf::ImportSyncFile { flags, fd: other });
            }
        }
        self.file = own;
    }

    fn close_descriptor(&mut self) {
        let numbers = self.client.numbers();
        if !numbers.is_empty() {
            let number = self.random.pick(&numbers);
            self.client.close(number);
        }
    }

    /// Any command, any words that lead nowhere.
    fn nonsense(&mut self) {
        let values = [0, 1, 2, 3, 7, 1 << 19, 0xdead_beef, u64::MAX, u64::MAX >> 1, 1 << 63];
        let words: [u64; 17] = [0; 17].map(|_| self.random.pick(&values));
        let (number, size) = (self.random.below(256), self.random.below(137));
        let command = (self.random.below(4) << 30 | size << 16 | u64::from(drm::BASE) << 8 | number) as u32;
        let mut words = words;
        let bytes = &mut bytemuck::cast_slice_mut(&mut words)[..size as usize];
        // Whatever it answers.
        let _ = self.client.call(0, |call| self.file.ioctl(call, command, bytes));
    }

    fn xe<T: Pod>(&mut self, number: u8, args: T) -> Option<T> {
        self.send(xe::<T>(number), args)
    }

    /// Makes a call, a word of its argument spoilt now and then; the argument as it comes back.
    fn send<T: Pod>(&mut self, command: Command, args: T) -> Option<T> {
        let mut args = args;
        if !self.sane && self.random.once_in(6) {
            self.spoil(bytemuck::bytes_of_mut(&mut args));
        }
        *self.now.lock() = format!("{command:?} {:x?}", bytemuck::bytes_of(&args));
        self.client.ioctl(&*self.file, command.0, &mut args).ok().map(|_| args)
    }

    /// Changes a word, but to no address of anything that is not the client's to spoil.
    fn spoil(&mut self, bytes: &mut [u8]) {
        let value: u64 = self.random.pick(&[0, 1, 2, 4, 8, 0xff, PAGE, 0xffff_ffff, 1 << 47, u64::MAX]);
        let words = bytes.len() / 8;
        if words == 0 {
            return;
        }
        let at = self.random.below(words as u64) as usize * 8;
        let old = u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        let is_pointer = self.scratch.as_ptr_range().contains(&(old as *const u64));
        let new = match self.random.below(3) {
            0 if !is_pointer => old & !0xffff_ffff | value & 0xffff_ffff,
            1 if !is_pointer => old & 0xffff_ffff | value << 32,
            _ => value,
        };
        bytes[at..at + 8].copy_from_slice(&new.to_ne_bytes());
    }

    /// Puts values where a pointer can lead, and answers the pointer.
    fn store<T: Pod>(&mut self, values: &[T]) -> u64 {
        let bytes = bytemuck::cast_slice::<T, u8>(values);
        let at = self.pointer(bytes.len());
        if !self.scratch_range().contains(&at) {
            return at;
        }
        // As the client's memory is reached from the server's side: jobs may write there at the same time.
        let memory = self.client.process().memory();
        memory.write(at, bytes).unwrap();
        at
    }

    fn scratch_range(&self) -> std::ops::Range<u64> {
        let range = self.scratch.as_ptr_range();
        range.start as u64..range.end as u64
    }

    /// An address with room for `bytes` behind it, or a bad one.
    fn pointer(&mut self, bytes: usize) -> u64 {
        if !self.sane && self.random.once_in(12) {
            return self.random.pick(&[0, 8, 0x1001, 1 << 47, u64::MAX, u64::MAX - 7, 1 << 63]);
        }
        let range = self.scratch_range();
        let align = if bytes >= PAGE as usize { PAGE } else { 64 };
        let len = (bytes as u64).next_multiple_of(align).max(align);
        let from = (self.used as u64).next_multiple_of(align);
        // The last pages are for what is mapped for the GPU.
        let from = if from + len + 0x1_0000 > range.end - range.start { 0 } else { from };
        self.used = (from + len) as usize;
        range.start + from
    }

    /// A handle that is likely to be one.
    fn handle(&mut self) -> u32 {
        match self.random.below(8) {
            0..4 => 1,
            4 => 2,
            5 => self.choose(&[3], &[0, 0x7fff_ffff, u32::MAX, 1 << 16]),
            _ => self.random.below(12) as u32 + 1,
        }
    }

    fn fd(&mut self) -> i32 {
        let numbers = self.client.numbers();
        if numbers.is_empty() || self.random.once_in(16) {
            return self.random.pick(&[-1, 0, 1000, i32::MAX, i32::MIN]);
        }
        self.random.pick(&numbers)
    }

    /// A GPU address where something may be mapped.
    fn address(&mut self) -> u64 {
        match self.random.below(8) {
            0 => 1 << 30,
            1 => self.choose(&[1 << 21], &[1, PAGE, (1 << 48) - PAGE, 1 << 48, u64::MAX, (1 << 47) - PAGE]),
            _ => self.random.below(8) * 0x1_0000,
        }
    }

    fn engine(&mut self) -> uapi::EngineClassInstance {
        uapi::EngineClassInstance {
            engine_class: self.choose(&[0, 1, 1, 4, 5], &[2, 0xffff]),
            engine_instance: self.choose(&[0], &[1]),
            ..Zeroable::zeroed()
        }
    }

    /// A chain of properties for a queue, which may bite its own tail.
    fn property(&mut self) -> u64 {
        if !self.random.once_in(4) {
            return 0;
        }
        let mut extension = uapi::ExtSetProperty {
            property: self.random.pick(&[0, 0, 1, 2]),
            value: self.random.pick(&[0, 1, 2, 3, 1000, u64::MAX]),
            ..Zeroable::zeroed()
        };
        let at = self.store(&[extension]);
        if self.random.once_in(4) && self.scratch_range().contains(&at) {
            extension.base.next_extension = at;
            self.client.process().memory().write_pod(at, &extension).unwrap();
        }
        at
    }
}
