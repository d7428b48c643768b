//! The transport: how client processes reach the server's files.
//!
//! ```text
//!   client process                                  server
//!   ──────────────                                  ──────
//!   control socket ───────────────────────────────► event loop ──► releaser ──► File::released
//!   thread ── channel (shared page, socket) ──────► channel's thread ─────────► File::ioctl, mmap, …
//!   descriptor ── socket pair or memfd ───────────► event loop (hang-up, close)
//! ```
//!
//! Vocabulary: a [`Process`] is a client; a *channel* is what one of its threads calls through; a [`File`] is what a
//! descriptor stands for, wherever its copies are; a [`Call`] is one request in progress, and the way to ask things of
//! the caller. Which descriptor a call is about is told by the kernel (`SO_COOKIE`, inode), and a process shows each
//! descriptor once before its word counts.
//!
//! Threads: one event loop, one releaser, one per channel. An idle server's threads all sleep in the kernel.
//!
//! Locks, all leaves of this module unless said otherwise: see each module. No lock of the transport is held while
//! a service's or file's method runs.
//!
//! What a file does is the driver's part; what the client's library does is `lapidary-preload`'s.

mod call;
mod channel;
mod connection;
mod event_loop;
mod memfds;
mod memory;
mod ofd;
mod page;
mod process;
mod registry;
mod releaser;
mod serve;
mod service;
mod shared;
#[cfg(test)]
pub(crate) mod testing;
mod wire;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use lapidary_protocol::{ENV_SOCKET, ENV_TREE};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use event_loop::Token;
use shared::Shared;

pub use call::Call;
pub use memory::ClientMemory;
pub use process::Process;
pub use registry::FileHandle;
pub use service::{Errno, File, Mmap, Poll, Service, downcast};

/// Name of the control socket in the server's folder.
pub const SOCKET_NAME: &str = "control";

/// A running transport. Dropping it shuts it down.
#[derive(Debug)]
pub struct Transport {
    shared: Arc<Shared>,
    socket: PathBuf,
    tree: PathBuf,
    threads: Vec<JoinHandle<()>>,
}

impl Transport {
    /// Starts serving `service` to clients that find the control socket in the folder `runtime_dir`, which exists, and the
    /// device tree in `tree`. Raises this process's limit of descriptors to what it may have.
    ///
    /// # Errors
    /// If the socket can't be made (its path may have 107 bytes at most) or a thread can't be started.
    pub fn start(service: Arc<dyn Service>, runtime_dir: &Path, tree: &Path) -> io::Result<Self> {
        raise_descriptor_limit();
        let socket = runtime_dir.join(SOCKET_NAME);
        let listener = listen_at(&socket)?;
        let (shared, work) = Shared::new(service)?;
        shared.watch(&listener, Token::Listener)?;
        let mut transport =
            Self { shared: shared.clone(), socket, tree: tree.to_owned(), threads: Vec::new() };
        transport.threads.push(work.spawn(Arc::downgrade(&shared))?);
        let events = std::thread::Builder::new().name("lapidary-events".to_owned());
        transport.threads.push(events.spawn(move || event_loop::run(&shared, &listener))?);
        Ok(transport)
    }

    /// The environment that makes a program a client, given the path of the preload library. `LD_PRELOAD` of this process
    /// is kept behind it.
    pub fn client_env(&self, preload: &Path) -> Vec<(String, OsString)> {
        let mut libraries = preload.as_os_str().to_owned();
        if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
            libraries.push(":");
            libraries.push(others);
        }
        vec![
            ("LD_PRELOAD".to_owned(), libraries),
            (ENV_SOCKET.to_owned(), self.socket.clone().into_os_string()),
            (ENV_TREE.to_owned(), self.tree.clone().into_os_string()),
        ]
    }

    /// Waits until the drivers have been told of every file and process that has ended so far.
    pub fn settle(&self) {
        self.shared.settle();
    }

    /// How many client processes are connected, and how many files have descriptors.
    pub fn counts(&self) -> Counts {
        self.shared.counts()
    }

    /// Ends all calls and connections, and releases all files that clients still hold. Their descriptors stay, useless.
    /// A second call does nothing.
    pub fn shutdown(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the transport panicked");
            }
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// What is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Connected client processes.
    pub processes: usize,
    /// Channels of all processes: client threads that have made calls and still run.
    pub channels: usize,
    /// Files with at least one descriptor.
    pub files: usize,
}

fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let address = SocketAddrUnix::new(path)
        .map_err(|_| io::Error::other(format!("{} is too long for a socket", path.display())))?;
    bind(&socket, &address)?;
    // Whoever reaches the folder may be a client, as with a device node of mode 666.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    listen(&socket, 128)?;
    Ok(socket)
}

/// The server has a descriptor per buffer, and clients can make many.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).is_err() {
        tracing::warn!(?limit, "the limit of descriptors could not be raised");
    }
}
