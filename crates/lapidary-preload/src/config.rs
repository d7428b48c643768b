//! What the environment says: where server and tree are, and the tree's manifest.
//!
//! Read at the first use, straight from `environ` (a shell replaces `getenv` by its own), into memory that then
//! never changes. Without the variables, or without a manifest, the library stays out of the way for good.

use std::ffi::{c_char, c_int};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use lapidary_protocol::manifest::{self, Entry, Prefix};
use lapidary_protocol::{ENV_SOCKET, ENV_TREE};

use crate::sys;

/// Longest path of tree or socket.
const PATH_BYTES: usize = 1024;
/// Longest manifest.
const TEXT_BYTES: usize = 16 * 1024;
/// Most entries of a kind.
const ENTRIES: usize = 48;

/// A node of the tree: a file that the server opens.
#[derive(Clone, Copy)]
pub(crate) struct Node {
    pub(crate) path: &'static [u8],
    pub(crate) major: u32,
    pub(crate) minor: u32,
    inode: u64,
}

impl Node {
    /// What kind of file it shows as: the bits of `st_mode`.
    pub(crate) fn file_type(&self) -> u32 {
        if (self.major, self.minor) == (0, 0) { libc::S_IFREG } else { libc::S_IFCHR }
    }
}

/// What the environment says.
pub(crate) struct Config {
    tree: Text<PATH_BYTES>,
    socket: Text<PATH_BYTES>,
    manifest: Text<TEXT_BYTES>,
    own: [Option<Prefix<'static>>; ENTRIES],
    nodes: [Option<Node>; ENTRIES],
    device: u64,
}

struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    const EMPTY: Self = Self { bytes: [0; N], len: 0 };

    fn get(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// False if it does not fit with a zero behind it.
    fn set(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() >= N {
            return false;
        }
        self.bytes[..bytes.len()].copy_from_slice(bytes);
        self.bytes[bytes.len()] = 0;
        self.len = bytes.len();
        true
    }
}

const UNKNOWN: u32 = 0;
const ABSENT: u32 = 1;
const PRESENT: u32 = 2;

static STATE: AtomicU32 = AtomicU32::new(UNKNOWN);
static CONFIG: AtomicPtr<Config> = AtomicPtr::new(ptr::null_mut());

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// The configuration; `None` if this program is no client.
pub(crate) fn get() -> Option<&'static Config> {
    match STATE.load(Ordering::Acquire) {
        // SAFETY: set before the state, and never changed or freed.
        PRESENT => unsafe { CONFIG.load(Ordering::Relaxed).as_ref() },
        ABSENT => None,
        _ => first_use(),
    }
}

#[cold]
fn first_use() -> Option<&'static Config> {
    // SAFETY: a word that libc sets up before it runs anything else.
    if unsafe { environ }.is_null() {
        return None;
    }
    let config = Config::load();
    let pointer = config.map_or(ptr::null_mut(), ptr::NonNull::as_ptr);
    // Two threads that come first at once load the same; one copy is left unused.
    let _ = CONFIG.compare_exchange(ptr::null_mut(), pointer, Ordering::AcqRel, Ordering::Acquire);
    STATE.store(if pointer.is_null() { ABSENT } else { PRESENT }, Ordering::Release);
    get()
}

/// The value of an environment variable, as the program was started or last set it.
fn variable(name: &str) -> Option<&'static [u8]> {
    // SAFETY: `environ` is a list of C strings that ends with null.
    let mut at = unsafe { environ };
    loop {
        // SAFETY: as above, and the end was not reached.
        let text = unsafe { sys::bytes(*at) }?;
        let value = text.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
        if value.is_some() {
            return value;
        }
        // SAFETY: the end is behind this entry.
        at = unsafe { at.add(1) };
    }
}

impl Config {
    const EMPTY: Self = Self {
        tree: Text::EMPTY,
        socket: Text::EMPTY,
        manifest: Text::EMPTY,
        own: [None; ENTRIES],
        nodes: [None; ENTRIES],
        device: 0,
    };

    fn load() -> Option<ptr::NonNull<Config>> {
        let (socket, tree) = (variable(ENV_SOCKET)?, variable(ENV_TREE)?);
        let memory = sys::map_memory(size_of::<Config>())?.cast::<Config>();
        // SAFETY: fresh memory of the right size, on a page boundary, that nobody else knows and that stays.
        let config: &'static mut Config = unsafe {
            memory.write(Config::EMPTY);
            &mut *memory.as_ptr()
        };
        if config.fill(socket, tree).is_none() {
            // SAFETY: nobody else has seen it, and the reference is gone.
            unsafe { sys::unmap(memory.as_ptr().cast(), size_of::<Config>()) };
            return None;
        }
        Some(memory)
    }

    fn fill(&'static mut self, socket: &[u8], tree: &[u8]) -> Option<()> {
        let fits = self.socket.set(socket) && self.tree.set(tree) && tree.first() == Some(&b'/');
        if !fits {
            return None;
        }
        self.manifest.len = read_manifest(tree, &mut self.manifest.bytes)?;
        let (mut own, mut nodes) = (self.own.iter_mut(), self.nodes.iter_mut());
        for entry in manifest::entries(self.manifest.get()) {
            match entry {
                Entry::Own(prefix) => *own.next()? = Some(prefix),
                Entry::Node { path, major, minor, inode } => {
                    *nodes.next()? = Some(Node { path, major, minor, inode });
                }
                Entry::Device(device) => self.device = device,
            }
        }
        Some(())
    }

    /// The folder of the tree, without a slash at the end.
    pub(crate) fn tree(&self) -> &[u8] {
        self.tree.get()
    }

    /// The control socket.
    pub(crate) fn socket(&self) -> &[u8] {
        self.socket.get()
    }

    /// Whether this absolute path is the tree's.
    pub(crate) fn owns(&self, path: &[u8]) -> bool {
        self.own.iter().map_while(Option::as_ref).any(|prefix| prefix.covers(path))
    }

    /// The node at this path.
    pub(crate) fn node_at(&self, path: &[u8]) -> Option<&Node> {
        self.nodes.iter().map_while(Option::as_ref).find(|node| node.path == path)
    }

    /// The node that this file stands for.
    pub(crate) fn node_of(&self, device: u64, inode: u64) -> Option<&Node> {
        if device != self.device {
            return None;
        }
        self.nodes.iter().map_while(Option::as_ref).find(|node| node.inode == inode)
    }
}

/// Reads the tree's manifest. `None` if there is none, or more than fits.
fn read_manifest(tree: &[u8], into: &mut [u8]) -> Option<usize> {
    let name = manifest::FILE.as_bytes();
    let mut path = [0; PATH_BYTES + 32];
    path[..tree.len()].copy_from_slice(tree);
    path[tree.len()] = b'/';
    path[tree.len() + 1..][..name.len()].copy_from_slice(name);
    let open = [libc::AT_FDCWD as usize, path.as_ptr() as usize, (libc::O_RDONLY | libc::O_CLOEXEC) as usize];
    // SAFETY: the path ends with a zero, as the array began.
    let fd = unsafe { sys::quiet(libc::SYS_openat, [open[0], open[1], open[2], 0, 0, 0]) };
    if fd < 0 {
        return None;
    }
    let buffer = [into.as_mut_ptr() as usize, into.len()];
    // SAFETY: the buffer is valid for its length.
    let len = unsafe { sys::quiet(libc::SYS_read, [fd as usize, buffer[0], buffer[1], 0, 0, 0]) };
    sys::close(fd as c_int);
    usize::try_from(len).ok().filter(|len| *len < into.len())
}
