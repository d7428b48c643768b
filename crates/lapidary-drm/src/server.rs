//! A device and the transport that brings clients to it.
//!
//! All that a client needs lies in one folder: the control socket, the tree of device files, and beside them, put
//! there by whoever starts the server, the preload library.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lapidary_protocol::{ENV_SOCKET, ENV_TREE};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use crate::core::census::Census;
use crate::core::{DrmDevice, Node};
use crate::report::{ClientCounts, Report};
use crate::sw_sync::{self, SwSync};
use crate::transport::{Errno, File, Process, SOCKET_NAME, Service, Transport};
use crate::tree::Tree;
use crate::xe::{Profile, XeDriver};

/// What device to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Which GPU it shows.
    pub profile: Profile,
    /// Bytes of its own memory, where the profile has any; a multiple of 64 KiB.
    pub vram_size: u64,
    /// How long a job may run before its queue is banned.
    pub job_timeout: Duration,
    /// Whether every hit of a translation cache is checked against the page tables.
    pub check_tlb: bool,
    /// Most mappings that one address space may have.
    pub max_mappings: u32,
    /// Bytes of this machine's memory that one client, an open DRM file, may have kept for its address spaces: page tables,
    /// records of mappings, binds that wait.
    pub client_memory: u64,
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            profile: Profile::Battlemage,
            vram_size: 8 << 30,
            job_timeout: Duration::from_secs(5),
            check_tlb: false,
            max_mappings: 1 << 30,
            client_memory: 1 << 30,
        }
    }
}

/// Name of the tree of device files in the server's folder.
const TREE: &str = "tree";

/// What a program needs in its environment to be a client of the server in `folder`, the preload library aside.
pub fn client_env(folder: &Path) -> Vec<(String, String)> {
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    vec![
        (ENV_SOCKET.to_owned(), path(folder.join(SOCKET_NAME))),
        (ENV_TREE.to_owned(), path(folder.join(TREE))),
    ]
}

/// Whether a server listens in `folder`.
pub fn is_served(folder: &Path) -> bool {
    let Ok(address) = SocketAddrUnix::new(folder.join(SOCKET_NAME)) else { return false };
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None);
    socket.is_ok_and(|socket| rustix::net::connect(&socket, &address).is_ok())
}

/// Removes what a server that has ended left in `folder`.
fn clear(folder: &Path) -> io::Result<()> {
    if is_served(folder) {
        return Err(io::Error::other(format!("a device is served in {} already", folder.display())));
    }
    let missing_is_fine = |outcome: io::Result<()>| match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    missing_is_fine(std::fs::remove_file(folder.join(SOCKET_NAME)))?;
    missing_is_fine(std::fs::remove_dir_all(folder.join(TREE)))
}

/// A running device.
pub struct Server {
    transport: Transport,
    nodes: Arc<Nodes>,
    started: Instant,
}

impl Server {
    /// Starts a device whose clients find it through `folder`, which exists. What a server that was killed left there is
    /// removed.
    ///
    /// # Errors
    /// When another server is in the folder, it can't be written to, a thread can't be started, or the path is too long
    /// for a socket.
    pub fn start(config: DeviceConfig, folder: &Path) -> io::Result<Self> {
        clear(folder)?;
        let census = Census::new();
        let driver = XeDriver::new(&config, &census)?;
        let device = DrmDevice::new(driver, &census);
        let tree = folder.join(TREE);
        Tree::build(&tree, &[device.driver().card()], &sw_sync::nodes()).map_err(io::Error::other)?;
        let nodes = Arc::new(Nodes {
            device,
            sw_sync: SwSync::new(&census),
            files: AtomicU64::new(0),
            processes_gone: AtomicU64::new(0),
        });
        let transport = Transport::start(nodes.clone(), folder, &tree)?;
        Ok(Self { transport, nodes, started: Instant::now() })
    }

    /// What happened so far. Counts of things that clients are changing now are approximate.
    pub fn report(&self) -> Report {
        let device = &self.nodes.device;
        let mut report = Report { seconds: self.started.elapsed().as_secs_f64(), ..Report::default() };
        let open = device.clients();
        report.clients = ClientCounts {
            processes: self.nodes.processes_gone.load(Ordering::Relaxed)
                + self.transport.counts().processes as u64,
            files: self.nodes.files.load(Ordering::Relaxed),
            ioctls: open.iter().map(|client| client.ioctls).sum(),
        };
        device.driver().fill(&mut report);
        report.live =
            device.census().survivors().into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect();
        report
    }

    /// What is mapped in the address spaces of all clients, a line per mapping: what a kernel shows as `gpuvas` in its debug file
    /// system. Clients go on meanwhile; each address space is consistent in itself.
    pub fn gpuvas(&self) -> String {
        XeDriver::gpuvas(&self.nodes.device.files())
    }

    /// Ends the device: clients that are still there lose it. The report tells what it did in its life, and what its
    /// clients left behind that should have gone with them.
    pub fn shutdown(mut self) -> Report {
        // What clients closed before this is let go of first, so that it does not count as left behind.
        self.transport.settle();
        self.transport.shutdown();
        self.nodes.device.driver().shut_down();
        self.report()
    }
}

/// The nodes, as paths that clients open.
struct Nodes {
    device: Arc<DrmDevice<XeDriver>>,
    sw_sync: Arc<SwSync>,
    files: AtomicU64,
    processes_gone: AtomicU64,
}

impl Service for Nodes {
    fn open(&self, process: &Arc<Process>, path: &str, _flags: u32) -> Result<Arc<dyn File>, Errno> {
        let node = match path {
            "/dev/dri/renderD128" => Node::Render,
            "/dev/dri/card0" => Node::Primary,
            path if sw_sync::is_node(path) => return Ok(self.sw_sync.open(process)),
            _ => return Err(Errno::NOENT),
        };
        let file = self.device.open(process, node).map_err(|error| {
            tracing::debug!(pid = process.pid(), path, %error, "open refused");
            error.errno()
        })?;
        self.files.fetch_add(1, Ordering::Relaxed);
        Ok(file)
    }

    fn memory_changes(&self, process: &Arc<Process>, range: Range<u64>) {
        self.device.driver().memory_changes(process, range);
    }

    fn process_gone(&self, _process: &Arc<Process>) {
        self.processes_gone.fetch_add(1, Ordering::Relaxed);
    }
}
