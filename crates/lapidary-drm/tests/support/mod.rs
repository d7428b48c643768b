//! A server with a service for tests, and real programs as its clients.
//!
//! A client is this very program, started anew with the preload library and told which part to play: see [`Bench::client`].
#![allow(unsafe_code, unreachable_pub)]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use lapidary::fence::{Deadline, Fence, FenceContext, Interrupt, Seqno};
use lapidary_drm::sw_sync;
use lapidary_drm::transport::{
    Call, Errno, File, FileHandle, Mmap, Poll, Process, Service, Transport, downcast,
};
use lapidary_drm::tree::{Bus, Card, PciFunction, Tree};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

/// Commands of the test device, as ioctl numbers of type `d`.
pub mod command {
    const fn number(direction: u32, nr: u32, size: u32) -> u32 {
        direction << 30 | size << 16 | (b'd' as u32) << 8 | nr
    }
    /// Nothing.
    pub const NOTHING: u32 = number(0, 0, 0);
    /// 64 bytes, each comes back one larger.
    pub const INCREMENT: u32 = number(3, 1, 64);
    /// Waits for a fence that never signals.
    pub const WAIT: u32 = number(1, 2, 8);
    /// `[address, length, sum]`: adds up bytes of the client's memory.
    pub const SUM: u32 = number(3, 3, 24);
    /// A descriptor that becomes readable by `SIGNAL`.
    pub const SYNC: u32 = number(2, 4, 8);
    /// Makes all sync descriptors of the file, and its dma-buf, readable.
    pub const SIGNAL: u32 = number(0, 5, 0);
    /// A dma-buf of one page.
    pub const EXPORT: u32 = number(2, 6, 8);
    /// `[descriptor, number]`: the number of the dma-buf's file.
    pub const IMPORT: u32 = number(3, 7, 16);
    /// The number of the file.
    pub const NUMBER: u32 = number(2, 8, 8);
    /// `[address]`: writes 8 bytes of 0xab there.
    pub const FILL: u32 = number(1, 9, 8);
    /// The largest argument there can be: the first byte comes back as the last.
    pub const LARGEST: u32 = number(3, 10, 0x3fff);
    /// Waits, but completes although it was interrupted.
    pub const STUBBORN: u32 = number(1, 11, 8);
}

/// What the service tells the test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Opened(u64, String),
    Waiting(u64),
    WaitEnded(u64),
    Released(u64),
    Gone,
}

pub struct TestService {
    next: AtomicU64,
    events: Mutex<Sender<Event>>,
}

impl TestService {
    fn tell(&self, event: Event) {
        let _ = self.events.lock().unwrap().send(event);
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

struct ServiceHandle(Arc<TestService>);

impl Service for ServiceHandle {
    fn open(&self, _process: &Arc<Process>, path: &str, _flags: u32) -> Result<Arc<dyn File>, Errno> {
        let number = self.0.number();
        self.0.tell(Event::Opened(number, path.to_owned()));
        let file = TestFile {
            service: self.0.clone(),
            number,
            memory: memory(16),
            syncs: Mutex::default(),
            buffer: Mutex::default(),
        };
        Ok(Arc::new(file))
    }

    fn process_gone(&self, _process: &Arc<Process>) {
        self.0.tell(Event::Gone);
    }
}

fn memory(pages: u64) -> Arc<OwnedFd> {
    let memfd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&memfd, pages * 4096).unwrap();
    fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    for page in 0..pages {
        rustix::io::pwrite(&memfd, &[page as u8], page * 4096).unwrap();
    }
    Arc::new(memfd)
}

struct TestFile {
    service: Arc<TestService>,
    number: u64,
    memory: Arc<OwnedFd>,
    syncs: Mutex<Vec<Arc<SyncFile>>>,
    buffer: Mutex<Option<(Arc<OwnedFd>, Arc<BufferFile>)>>,
}

fn words<const N: usize>(arg: &[u8]) -> [u64; N] {
    std::array::from_fn(|i| u64::from_ne_bytes(arg[i * 8..][..8].try_into().unwrap()))
}

fn put(arg: &mut [u8], index: usize, value: u64) {
    arg[index * 8..][..8].copy_from_slice(&value.to_ne_bytes());
}

impl TestFile {
    fn wait(&self, interrupt: &Interrupt) -> Result<u32, Errno> {
        let (fence, _signaller) = Fence::new(FenceContext::alloc(), Seqno(1));
        self.service.tell(Event::Waiting(self.number));
        let ended = fence.wait(Deadline::never(), interrupt);
        self.service.tell(Event::WaitEnded(self.number));
        ended.map(|()| 0).map_err(|_| Errno::INTR)
    }

    fn export(&self, call: &mut Call<'_>) -> Result<i32, Errno> {
        let (memfd, file) = self
            .buffer
            .lock()
            .unwrap()
            .get_or_insert_with(|| {
                let file = BufferFile {
                    service: self.service.clone(),
                    number: self.service.number(),
                    idle: AtomicBool::new(false),
                    waiters: Mutex::default(),
                };
                (memory(1), Arc::new(file))
            })
            .clone();
        call.install_dma_buf(&memfd, file, true, true)
    }
}

impl File for TestFile {
    fn ioctl(&self, call: &mut Call<'_>, cmd: u32, arg: &mut [u8]) -> Result<u32, Errno> {
        match cmd {
            command::NOTHING => {}
            command::INCREMENT => arg.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1)),
            command::WAIT => return self.wait(call.interrupt()),
            command::STUBBORN => {
                let _ = self.wait(call.interrupt());
                return Ok(7);
            }
            command::SUM => {
                let [address, length] = words(arg);
                let bytes: Vec<u8> = call.memory().read_array(address, length as usize)?;
                put(arg, 2, bytes.iter().map(|byte| u64::from(*byte)).sum());
            }
            command::FILL => call.memory().write(words::<1>(arg)[0], &[0xab; 8])?,
            command::SYNC => {
                let sync = Arc::new(SyncFile::default());
                self.syncs.lock().unwrap().push(sync.clone());
                put(arg, 0, call.install_file(sync, true)? as u64);
            }
            command::SIGNAL => {
                if let Some((_, buffer)) = &*self.buffer.lock().unwrap() {
                    buffer.idle.store(true, Ordering::SeqCst);
                    for waiter in buffer.waiters.lock().unwrap().drain(..) {
                        let _ = rustix::io::write(waiter, &[1]);
                    }
                }
                for sync in self.syncs.lock().unwrap().iter() {
                    sync.0.get().unwrap().set_readable();
                }
            }
            command::EXPORT => put(arg, 0, self.export(call)? as u64),
            command::IMPORT => {
                let file = call.file_of(words::<1>(arg)[0] as i32)?;
                let buffer = downcast::<BufferFile>(file).map_err(|_| Errno::INVAL)?;
                put(arg, 1, buffer.number);
            }
            command::NUMBER => put(arg, 0, self.number),
            command::LARGEST => arg[0x3ffe] = arg[0],
            _ => return Err(Errno::NOTTY),
        }
        Ok(0)
    }

    fn is_quick(&self, cmd: u32) -> bool {
        !matches!(cmd, command::WAIT | command::STUBBORN | command::INCREMENT)
    }

    fn mmap(&self, _: &mut Call<'_>, offset: u64, length: u64, _: i32, _: i32) -> Result<Mmap, Errno> {
        if offset + length > 16 * 4096 {
            return Err(Errno::INVAL);
        }
        Ok(Mmap { fd: self.memory.clone(), offset })
    }

    fn fdinfo(&self) -> Option<String> {
        Some(format!("drm-driver:\ttest\ndrm-client-id:\t{}\n", self.number))
    }

    fn released(&self) {
        self.service.tell(Event::Released(self.number));
    }
}

#[derive(Default)]
struct SyncFile(OnceLock<FileHandle>);

impl File for SyncFile {
    fn name(&self) -> String {
        "anon_inode:sync_file".to_owned()
    }

    fn attached(&self, handle: &FileHandle) {
        let _ = self.0.set(handle.clone());
    }

    fn ioctl(&self, _: &mut Call<'_>, _: u32, _: &mut [u8]) -> Result<u32, Errno> {
        Err(Errno::NOTTY)
    }
}

struct BufferFile {
    service: Arc<TestService>,
    number: u64,
    /// Whether reading it need not wait.
    idle: AtomicBool,
    waiters: Mutex<Vec<OwnedFd>>,
}

impl File for BufferFile {
    fn ioctl(&self, _: &mut Call<'_>, _: u32, arg: &mut [u8]) -> Result<u32, Errno> {
        put(arg, 0, self.number);
        Ok(0)
    }

    fn poll(&self, _: &mut Call<'_>, events: u32) -> Result<Poll, Errno> {
        if self.idle.load(Ordering::SeqCst) {
            return Ok(Poll::Ready(events));
        }
        let (ours, theirs) = rustix::pipe::pipe()?;
        self.waiters.lock().unwrap().push(theirs);
        self.service.tell(Event::Waiting(self.number));
        Ok(Poll::Wait(ours))
    }

    fn released(&self) {
        self.service.tell(Event::Released(self.number));
    }
}

/// A server and what it tells.
pub struct Bench {
    pub transport: Transport,
    pub events: Receiver<Event>,
    environment: Vec<(String, std::ffi::OsString)>,
    _folder: tempfile::TempDir,
}

impl Bench {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let card = Card {
            index: 0,
            render: true,
            driver: "xe".to_owned(),
            bus: Bus::Pci(PciFunction {
                slot: "0000:03:00.0".to_owned(),
                vendor: 0x8086,
                device: 0xe20b,
                subsystem_vendor: 0x8086,
                subsystem_device: 0x1100,
                revision: 0,
                class: 0x03_00_00,
            }),
        };
        let tree = Tree::build(&folder.path().join("tree"), &[card], &sw_sync::nodes()).unwrap();
        let (sender, events) = channel();
        let service = TestService { next: AtomicU64::new(1), events: Mutex::new(sender) };
        let service = Arc::new(ServiceHandle(Arc::new(service)));
        let transport = Transport::start(service, folder.path(), tree.root()).unwrap();
        let environment = transport.client_env(preload());
        Self { transport, events, environment, _folder: folder }
    }

    /// A program as a client.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment.iter().cloned()).stdin(Stdio::null());
        command
    }

    /// A variable of the environment of clients.
    pub fn variable(&self, wanted: &str) -> std::ffi::OsString {
        let found = self.environment.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.clone()).expect("the variable")
    }

    /// This program, playing the part of that name.
    pub fn client(&self, part: &str) -> Command {
        let mut command = self.command(std::env::current_exe().unwrap());
        command.args(["--exact", "client", "--nocapture"]).env("LAPIDARY_TEST_PART", part);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    /// Runs a part to its end, which must be a good one.
    pub fn play(&self, part: &str) {
        let output = self.client(part).output().unwrap();
        assert!(output.status.success(), "{part}: {output:?}");
    }

    /// The next event of a kind. A test that waits in vain fails instead of hanging.
    pub fn wait_for<T>(&self, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        loop {
            let event = self.events.recv_timeout(Duration::from_secs(60)).expect("an event");
            if let Some(found) = pick(&event) {
                return found;
            }
        }
    }

    pub fn wait_opened(&self) -> u64 {
        self.wait_for(|event| if let Event::Opened(number, _) = event { Some(*number) } else { None })
    }

    pub fn wait_until(&self, wanted: Event) {
        self.wait_for(|event| (*event == wanted).then_some(()));
    }

    /// Everything that was told so far.
    pub fn told(&self) -> Vec<Event> {
        self.transport.settle();
        self.events.try_iter().collect()
    }
}

/// The preload library, built for the profile of this program.
pub fn preload() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let program = std::env::current_exe().unwrap();
        let profile = program.parent().and_then(Path::parent).unwrap();
        let is_release = profile.file_name().is_some_and(|name| name == "release");
        // A folder of its own: the one above may be in use by whoever started this program.
        let target = profile.parent().unwrap().join("preload");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "lapidary-preload", "--target-dir"]).arg(&target);
        build.args(is_release.then_some("--release"));
        assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
        let name = if is_release { "release" } else { "debug" };
        target.join(name).join("liblapidary_preload.so")
    })
}

/// Waits for a child, which must end well.
pub fn succeed(mut child: Child) {
    let status: ExitStatus = child.wait().unwrap();
    assert!(status.success(), "{status:?}");
}

/// A command on a descriptor.
pub fn ioctl(
    fd: impl std::os::fd::AsFd,
    command: u32,
    argument: *mut std::ffi::c_void,
) -> std::io::Result<u32> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is borrowed; the test device touches the argument only as its command says.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), command.into(), argument) };
    u32::try_from(result).map_err(|_| std::io::Error::last_os_error())
}
