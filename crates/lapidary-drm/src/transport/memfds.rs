//! Files that clients see as memfds: dma-bufs.
//!
//! ```text
//!  driver's memfd ── inode ◄── open, marked 0 ── descriptors and mappings in clients
//!                      ▲  ◄── open, marked 1 ── descriptors and mappings in clients
//!                      └── inotify watch: "an open was closed"
//! ```
//!
//! Each descriptor given out is an open of its own, marked with a lock byte (see `ofd`). The watch tells that some open
//! ended; the marks tell which are left. With the last the file is released. The kernel reports a close a moment
//! *before* it drops the open's locks, and merges reports: so an inode that is reported with opens left is looked at
//! again a few times, later and later.
//!
//! Locks: `table`, a leaf but for the registry's.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapidary_protocol::channel::Identity;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, inotify, open};

use super::registry::{Entry, FileHandle, Registry, Release};
use super::service::File;
use super::{Errno, ofd};

/// When to look again at an inode that was reported: after this, then after twice as long, …
const FIRST_LOOK: Duration = Duration::from_millis(1);
/// … this many times.
const LOOKS: u32 = 12;

/// All files that are memfds.
#[derive(Debug)]
pub(super) struct Memfds {
    inotify: OwnedFd,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_inode: HashMap<u64, Shared>,
    by_watch: HashMap<i32, u64>,
    suspects: Vec<Suspect>,
}

#[derive(Debug)]
struct Shared {
    entry: Arc<Entry>,
    memfd: Arc<OwnedFd>,
    watch: i32,
    next_mark: u64,
    marks: Vec<u64>,
}

/// An inode to look at again.
#[derive(Debug)]
struct Suspect {
    inode: u64,
    at: Instant,
    wait: Duration,
    looks: u32,
}

impl Memfds {
    pub(super) fn new() -> Result<Self, Errno> {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        Ok(Self { inotify, table: Mutex::default() })
    }

    /// Readable when [`take_events`](Self::take_events) has work.
    pub(super) fn inotify(&self) -> &OwnedFd {
        &self.inotify
    }

    /// Makes one more descriptor of `memfd` that stands for `file`.
    ///
    /// # Errors
    /// `EPERM` if the memfd can't be sealed, `EEXIST` if another file has it, or what the system says.
    pub(super) fn open(
        &self,
        registry: &Arc<Registry>,
        memfd: &Arc<OwnedFd>,
        file: Arc<dyn File>,
        writable: bool,
    ) -> Result<(Arc<Entry>, OwnedFd), Errno> {
        seal(memfd)?;
        let inode = fstat(memfd)?.st_ino;
        let access = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
        let fd = open(path.as_str(), access | OFlags::CLOEXEC, Mode::empty())?;

        let mut table = self.table.lock();
        if let Some(shared) = table.by_inode.get_mut(&inode) {
            if !Arc::ptr_eq(shared.entry.file(), &file) {
                return Err(Errno::EXIST);
            }
            shared.mark(&fd)?;
            return Ok((shared.entry.clone(), fd));
        }
        let events = inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::CLOSE_NOWRITE;
        let watch = inotify::add_watch(&self.inotify, path.as_str(), events)?;
        let entry = registry.insert(Identity::Memfd(inode), file.clone(), "/dmabuf:", None);
        let mut shared =
            Shared { entry: entry.clone(), memfd: memfd.clone(), watch, next_mark: 0, marks: Vec::new() };
        if let Err(error) = shared.mark(&fd) {
            registry.remove(&entry);
            let _ = inotify::remove_watch(&self.inotify, watch);
            return Err(error);
        }
        table.by_watch.insert(watch, inode);
        table.by_inode.insert(inode, shared);
        drop(table);
        file.attached(&FileHandle::of(&entry));
        Ok((entry, fd))
    }

    /// Takes in what the kernel reports. Returns files to release.
    pub(super) fn take_events(&self) -> Vec<Release> {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut space);
        let mut table = self.table.lock();
        let mut releases = Vec::new();
        while let Ok(event) = reader.next() {
            if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                let inodes: Vec<u64> = table.by_inode.keys().copied().collect();
                inodes.into_iter().for_each(|inode| table.suspect(inode));
            }
            if let Some(inode) = table.by_watch.get(&event.wd()).copied() {
                releases.extend(table.look(&self.inotify, inode));
                table.suspect(inode);
            }
        }
        releases
    }

    /// Looks at an inode that a client says it closed. Exact: what that client closed before has lost its mark.
    pub(super) fn look(&self, inode: u64) -> Option<Release> {
        self.table.lock().look(&self.inotify, inode)
    }

    /// Looks again at what is due. Returns files to release, and when to come back.
    pub(super) fn look_again(&self) -> (Vec<Release>, Option<Instant>) {
        let mut table = self.table.lock();
        let now = Instant::now();
        let mut releases = Vec::new();
        for mut suspect in std::mem::take(&mut table.suspects) {
            if suspect.at <= now {
                releases.extend(table.look(&self.inotify, suspect.inode));
                suspect.looks += 1;
                suspect.wait *= 2;
                suspect.at = now + suspect.wait;
            }
            if suspect.looks < LOOKS && table.by_inode.contains_key(&suspect.inode) {
                table.suspects.push(suspect);
            }
        }
        let next = table.suspects.iter().map(|suspect| suspect.at).min();
        (releases, next)
    }
}

impl Table {
    /// Forgets the opens of an inode that are gone; with the last, the inode.
    fn look(&mut self, inotify: &OwnedFd, inode: u64) -> Option<Release> {
        let shared = self.by_inode.get_mut(&inode)?;
        // An error says nothing about the opens: they count as there.
        let memfd = &shared.memfd;
        shared.marks.retain(|mark| ofd::is_marked(memfd, *mark).unwrap_or(true));
        if !shared.marks.is_empty() {
            return None;
        }
        let shared = self.by_inode.remove(&inode)?;
        self.by_watch.remove(&shared.watch);
        let _ = inotify::remove_watch(inotify, shared.watch);
        shared.entry.close()
    }

    fn suspect(&mut self, inode: u64) {
        if !self.by_inode.contains_key(&inode) {
            return;
        }
        self.suspects.retain(|suspect| suspect.inode != inode);
        let at = Instant::now() + FIRST_LOOK;
        self.suspects.push(Suspect { inode, at, wait: FIRST_LOOK, looks: 0 });
    }
}

impl Shared {
    fn mark(&mut self, fd: &OwnedFd) -> Result<(), Errno> {
        ofd::mark(fd, self.next_mark)?;
        self.marks.push(self.next_mark);
        self.next_mark += 1;
        Ok(())
    }
}

/// No client may change the size of what the server maps.
fn seal(memfd: &OwnedFd) -> Result<(), Errno> {
    let wanted = SealFlags::SHRINK | SealFlags::GROW;
    if fcntl_get_seals(memfd)?.contains(wanted) {
        return Ok(());
    }
    fcntl_add_seals(memfd, wanted | SealFlags::SEAL)
}
