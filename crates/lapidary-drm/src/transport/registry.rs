//! Open files and the descriptors that stand for them.
//!
//! ```text
//!  client's descriptor ── socket pair ── Entry ── Arc<dyn File>          DRM files, sync_files, syncobjs
//!  client's descriptor ── memfd (inode) ─ Entry ── Arc<dyn File>          dma-bufs, see `dma_buf`
//! ```
//!
//! An entry lives as long as any copy of its descriptor does, in any process. End-of-file on the server's end of the pair
//! (or the watch on the memfd) says when that is over. The file is released when in addition no call runs on
//! it, as a kernel's would be.
//!
//! Locks: `entries`, a leaf. The state of an entry is one atomic word.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use lapidary_protocol::channel::Identity;
use parking_lot::{Condvar, Mutex, RwLock};
use rustix::event::{PollFd, PollFlags, epoll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, shutdown, socketpair, sockopt,
};

use super::event_loop::Token;
use super::service::File;
use super::{Errno, wire};

/// Longest text of a descriptor's name: an address holds 107 bytes, the rest goes before it.
const NAME_BYTES: usize = 56;

/// All open files of a transport.
#[derive(Debug)]
pub(super) struct Registry {
    /// Makes this server's socket names differ from others'.
    server: u64,
    next: AtomicU64,
    epoll: Arc<OwnedFd>,
    entries: RwLock<HashMap<Identity, Arc<Entry>>>,
}

/// An open file.
pub(super) struct Entry {
    identity: Identity,
    file: Arc<dyn File>,
    name: String,
    /// The server's end of the pair; `None` for memfds.
    socket: Option<OwnedFd>,
    readable: AtomicBool,
    state: State,
    released: Mutex<bool>,
    on_released: Condvar,
    registry: Weak<Registry>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("identity", &self.identity)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Calls in flight, and whether the descriptor still exists.
#[derive(Debug, Default)]
struct State(AtomicU32);

const CLOSED: u32 = 1 << 31;
const RELEASED: u32 = 1 << 30;
const CALLS: u32 = RELEASED - 1;

impl State {
    /// One more call, unless the file is released.
    fn begin(&self) -> bool {
        let more = |state: u32| (state & RELEASED == 0 && state & CALLS < CALLS).then_some(state + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// One call less. True: the caller is to release the file.
    fn end(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == (CLOSED | 1) && self.claim()
    }

    /// No descriptor is left. True: the caller is to release the file.
    fn close(&self) -> bool {
        self.0.fetch_or(CLOSED, Ordering::AcqRel) & (CALLS | RELEASED) == 0 && self.claim()
    }

    fn claim(&self) -> bool {
        self.0.compare_exchange(CLOSED, CLOSED | RELEASED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn is_closed(&self) -> bool {
        self.0.load(Ordering::Acquire) & CLOSED != 0
    }
}

impl Registry {
    pub(super) fn new(server: u64, epoll: Arc<OwnedFd>) -> Arc<Self> {
        Arc::new(Self { server, next: AtomicU64::new(1), epoll, entries: RwLock::default() })
    }

    /// Makes a descriptor that stands for `file`: the client's end of a pair. Dropping it unused releases the file.
    pub(super) fn open(
        self: &Arc<Self>,
        file: Arc<dyn File>,
        name: &str,
    ) -> Result<(Arc<Entry>, OwnedFd), Errno> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Nothing is ever read from a client: what it sent would stay, and a descriptor sent over itself keep itself open.
        shutdown(&ours, Shutdown::Read)?;
        self.name(&ours, name)?;
        let identity = Identity::Socket(sockopt::socket_cookie(&theirs)?);
        let entry = self.insert(identity, file, name, Some(ours));
        if let Err(error) = self.watch(&entry) {
            self.remove(&entry);
            return Err(error);
        }
        entry.file.attached(&FileHandle::of(&entry));
        Ok((entry, theirs))
    }

    /// Adds an entry. Its file is not told.
    pub(super) fn insert(
        self: &Arc<Self>,
        identity: Identity,
        file: Arc<dyn File>,
        name: &str,
        socket: Option<OwnedFd>,
    ) -> Arc<Entry> {
        let entry = Arc::new(Entry {
            identity,
            file,
            name: name.to_owned(),
            socket,
            readable: AtomicBool::new(false),
            state: State::default(),
            released: Mutex::new(false),
            on_released: Condvar::new(),
            registry: Arc::downgrade(self),
        });
        self.entries.write().insert(identity, entry.clone());
        entry
    }

    /// Hang-ups alone are waited for: a client can't write anything into its end.
    fn watch(&self, entry: &Entry) -> Result<(), Errno> {
        let (Some(socket), Identity::Socket(cookie)) = (&entry.socket, entry.identity) else { return Ok(()) };
        epoll::add(&self.epoll, socket, Token::File(cookie).data(), epoll::EventFlags::HUP)
    }

    /// Binds our end to a name, so that the client's end can be asked for it.
    fn name(&self, socket: &OwnedFd, text: &str) -> Result<(), Errno> {
        let text: String = text.chars().take(NAME_BYTES).collect();
        // Anybody may have taken a name; then the next number will do.
        for _ in 0..16 {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let name = format!("lapidary:{:016x}:{number}:{text}", self.server);
            match bind(socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?) {
                Err(Errno::ADDRINUSE) => {}
                other => return other,
            }
        }
        Err(Errno::ADDRINUSE)
    }

    /// The file of that identity.
    pub(super) fn find(&self, identity: Identity) -> Option<Arc<Entry>> {
        self.entries.read().get(&identity).cloned()
    }

    /// The file that a descriptor in the server's hands stands for.
    pub(super) fn find_fd(&self, fd: impl AsFd) -> Option<Arc<Entry>> {
        self.find(identity_of(fd)?)
    }

    pub(super) fn remove(&self, entry: &Arc<Entry>) {
        let mut entries = self.entries.write();
        // A memfd that is shared anew while its old entry goes has a new entry already.
        if entries.get(&entry.identity).is_some_and(|found| Arc::ptr_eq(found, entry)) {
            entries.remove(&entry.identity);
        }
        drop(entries);
        self.unwatch(entry);
    }

    /// Stops waiting for a hang-up: it has come.
    pub(super) fn unwatch(&self, entry: &Entry) {
        if let Some(socket) = &entry.socket {
            let _ = epoll::delete(&self.epoll, socket);
        }
    }

    /// Every open file.
    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        self.entries.read().values().cloned().collect()
    }
}

/// What a descriptor is to the kernel; `None` if it can't be one of ours.
pub(super) fn identity_of(fd: impl AsFd) -> Option<Identity> {
    if let Ok(cookie) = sockopt::socket_cookie(&fd) {
        return Some(Identity::Socket(cookie));
    }
    let stat = rustix::fs::fstat(&fd).ok()?;
    (stat.st_dev == memfd_device()?).then_some(Identity::Memfd(stat.st_ino))
}

/// The device that all memfds are on, and nothing else that a client could make: inode numbers tell them apart.
fn memfd_device() -> Option<u64> {
    static DEVICE: OnceLock<Option<u64>> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let memfd = memfd_create("lapidary-probe", MemfdFlags::CLOEXEC).ok()?;
        rustix::fs::fstat(memfd).ok().map(|stat| stat.st_dev)
    })
}

impl Entry {
    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    pub(super) fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    /// Holds the file open for a call; `None` if it is released.
    pub(super) fn begin(self: &Arc<Self>) -> Option<InUse> {
        self.state.begin().then(|| InUse(self.clone()))
    }

    /// Notes that the last descriptor is gone. The first to do so with no call running gets the release to run.
    pub(super) fn close(self: &Arc<Self>) -> Option<Release> {
        self.state.close().then(|| Release(self.clone()))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.is_closed()
    }

    /// Whether the release has begun.
    pub(super) fn is_releasing(&self) -> bool {
        self.state.0.load(Ordering::Acquire) & RELEASED != 0
    }

    /// Looks whether the other end of the pair is closed, without waiting for the event loop to see it.
    pub(super) fn is_hung_up(&self) -> bool {
        let Some(socket) = &self.socket else { return false };
        let mut fds = [PollFd::new(socket, PollFlags::empty())];
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&zero)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }

    /// Waits until a release that somebody else runs is done.
    pub(super) fn wait_released(&self) {
        let mut released = self.released.lock();
        while !*released {
            self.on_released.wait(&mut released);
        }
    }
}

/// A call's hold on a file. The last one of a closed file releases it.
#[derive(Debug)]
pub(super) struct InUse(Arc<Entry>);

impl std::ops::Deref for InUse {
    type Target = Arc<Entry>;

    fn deref(&self) -> &Arc<Entry> {
        &self.0
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if self.0.state.end() {
            Release(self.0.clone()).run();
        }
    }
}

/// The duty to release a file. May run on any thread that holds no lock of the driver's.
#[derive(Debug)]
#[must_use]
pub(super) struct Release(Arc<Entry>);

impl Release {
    pub(super) fn run(self) {
        let entry = self.0;
        entry.file.released();
        if let Some(registry) = entry.registry.upgrade() {
            registry.remove(&entry);
        }
        *entry.released.lock() = true;
        entry.on_released.notify_all();
    }
}

/// A driver's reference to the descriptor of one of its files. Cheap to clone; keeps nothing alive.
#[derive(Debug, Clone)]
pub struct FileHandle(Weak<Entry>);

impl FileHandle {
    pub(super) fn of(entry: &Arc<Entry>) -> Self {
        Self(Arc::downgrade(entry))
    }

    /// Makes the descriptor readable for `poll`, for good. Never blocks; may be called anywhere.
    pub fn set_readable(&self) {
        let Some(entry) = self.0.upgrade() else { return };
        let Some(socket) = &entry.socket else { return };
        if !entry.readable.swap(true, Ordering::AcqRel) {
            // Fails only when nobody is left to read it.
            let _ = wire::send(socket, &[1], &[]);
        }
    }

    /// Whether any copy of the descriptor is left.
    pub fn is_open(&self) -> bool {
        self.0.upgrade().is_some_and(|entry| !entry.is_closed())
    }
}
