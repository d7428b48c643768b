//! The thread behind each channel: takes requests and carries them out, one after the other.

use std::sync::{Arc, Weak};

use lapidary_protocol::channel::{ARG_BYTES, Identity, Kind, Op, POLL_DESCRIPTOR};
use rustix::fs::{MemfdFlags, memfd_create};

use super::channel::{Channel, Closed, Request, Turns};
use super::registry::{Entry, InUse};
use super::service::Poll;
use super::{Call, Errno, Process, Shared};

/// A channel's thread.
pub(super) struct Server {
    shared: Arc<Shared>,
    process: Arc<Process>,
    channel: Arc<Channel>,
    turns: Turns,
    /// The file of the last call: most calls are on the same one.
    last: Option<(Identity, Weak<Entry>)>,
    arg: Vec<u8>,
}

/// How a request ends.
enum Outcome {
    Value(Result<i64, Errno>),
    /// The same, of a command that never waits.
    QuickValue(Result<i64, Errno>),
    NotOurs,
}

impl Drop for Server {
    /// Also if a call panicked: its client must not wait for an answer.
    fn drop(&mut self) {
        self.process.remove_channel(self.channel.id());
    }
}

impl Server {
    pub(super) fn new(shared: Arc<Shared>, process: Arc<Process>, channel: Arc<Channel>) -> Self {
        Self { shared, process, channel, turns: Turns::default(), last: None, arg: Vec::new() }
    }

    /// Serves until the channel is closed.
    pub(super) fn run(mut self) {
        while let Ok(request) = self.turns.take(&self.channel) {
            if request.op == Op::Bye {
                break;
            }
            self.channel.begin(self.turns.theirs());
            let outcome = self.carry_out(&request);
            self.channel.finish();
            let Ok(outcome) = outcome else { break };
            if self.channel.is_closing() {
                break;
            }
            self.reply(outcome);
        }
    }

    fn reply(&mut self, outcome: Outcome) {
        let (value, quick) = match outcome {
            Outcome::NotOurs => return self.turns.give(&self.channel, Kind::NotOurs, 0, [0; 6]),
            Outcome::Value(value) => (value, 0),
            Outcome::QuickValue(value) => (value, 1),
        };
        let result = value.unwrap_or_else(|error| -i64::from(error.raw_os_error()));
        let watch = u64::from(self.process.is_watched());
        self.turns.give(&self.channel, Kind::Done, result, [watch, quick, 0, 0, 0, 0]);
    }

    fn carry_out(&mut self, request: &Request) -> Result<Outcome, Closed> {
        Ok(match request.op {
            Op::Open => Outcome::Value(self.open(request)),
            Op::Ioctl => self.any_ioctl(request),
            Op::Mmap => self.with_file(request, Self::mmap),
            Op::FdInfo => self.with_file(request, Self::fdinfo),
            Op::Poll => self.with_file(request, Self::poll),
            Op::Closed => self.closed(request),
            Op::MemoryChange => self.memory_changes(request),
            // An answer to nothing.
            Op::Answer | Op::Bye => return Err(Closed),
        })
    }

    fn with_file(
        &mut self,
        request: &Request,
        work: fn(&mut Self, &Request, &Entry) -> Result<i64, Errno>,
    ) -> Outcome {
        let Some(file) = request.identity.and_then(|identity| self.find(identity, request)) else {
            return Outcome::NotOurs;
        };
        Outcome::Value(work(self, request, &file))
    }

    /// The file a request names, if the process has a right to it.
    fn find(&mut self, identity: Identity, request: &Request) -> Option<InUse> {
        if let Some((last, entry)) = &self.last
            && *last == identity
            && let Some(in_use) = entry.upgrade().and_then(|entry| entry.begin())
        {
            return Some(in_use);
        }
        let entry = match self.process.proved(identity) {
            Some(entry) => entry,
            None => self.call(request).prove(identity)?,
        };
        self.last = Some((identity, Arc::downgrade(&entry)));
        entry.begin()
    }

    fn call(&mut self, request: &Request) -> Call<'_> {
        let about = (request.fd, request.arg);
        Call::new(&self.shared, &self.process, &self.channel, &mut self.turns, about)
    }

    fn open(&mut self, request: &Request) -> Result<i64, Errno> {
        let mut path = vec![0; request.len.min(4096)];
        self.channel.page().load_arg(&mut path);
        let path = String::from_utf8(path).map_err(|_| Errno::NOENT)?;
        // What was closed before this open, also by processes that have ended, is gone before it.
        self.shared.settle();
        let file = self.shared.service().open(&self.process, &path, request.cmd)?;
        let cloexec = request.cmd & libc::O_CLOEXEC as u32 != 0;
        self.call(request).install_named(file, &path, cloexec).map(i64::from)
    }

    fn any_ioctl(&mut self, request: &Request) -> Outcome {
        let Some(file) = request.identity.and_then(|identity| self.find(identity, request)) else {
            return Outcome::NotOurs;
        };
        let result = self.ioctl(request, &file);
        if file.file().is_quick(request.cmd) { Outcome::QuickValue(result) } else { Outcome::Value(result) }
    }

    fn ioctl(&mut self, request: &Request, entry: &Entry) -> Result<i64, Errno> {
        let number = IoctlNumber(request.cmd);
        let size = number.size().min(ARG_BYTES);
        let mut arg = std::mem::take(&mut self.arg);
        arg.clear();
        arg.resize(size, 0);
        if number.writes() {
            self.channel.page().load_arg(&mut arg);
        }
        let result = entry.file().ioctl(&mut self.call(request), request.cmd, &mut arg);
        if number.reads() {
            self.channel.page().store_arg(&arg);
        }
        self.arg = arg;
        result.map(i64::from)
    }

    fn mmap(&mut self, request: &Request, entry: &Entry) -> Result<i64, Errno> {
        let [length, modes, offset] = request.extra;
        let (prot, flags) = (modes as u32 as i32, (modes >> 32) as i32);
        let mut call = self.call(request);
        let map = entry.file().mmap(&mut call, offset, length, prot, flags)?;
        // The client's copy is there for the mapping alone.
        let fd = call.install_fd(rustix::io::fcntl_dupfd_cloexec(&map.fd, 0)?, true)?;
        let modes = [prot as u32, flags as u32].map(u64::from);
        let mapped =
            call.syscall(libc::SYS_mmap, [request.arg, length, modes[0], modes[1], fd as u64, map.offset]);
        let closed = call.syscall(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]);
        mapped.and_then(|address| closed.map(|_| address))
    }

    fn fdinfo(&mut self, request: &Request, entry: &Entry) -> Result<i64, Errno> {
        let text = entry.file().fdinfo().unwrap_or_default();
        let head = "pos:\t0\nflags:\t02100002\nmnt_id:\t15\n";
        let file = memfd_create("fdinfo", MemfdFlags::CLOEXEC)?;
        rustix::io::pwrite(&file, format!("{head}{text}").as_bytes(), 0)?;
        let cloexec = request.cmd & libc::O_CLOEXEC as u32 != 0;
        self.call(request).install_fd(file, cloexec).map(i64::from)
    }

    fn poll(&mut self, request: &Request, entry: &Entry) -> Result<i64, Errno> {
        let mut call = self.call(request);
        match entry.file().poll(&mut call, request.cmd)? {
            Poll::Ready(events) => Ok(i64::from(events)),
            Poll::Wait(fd) => Ok(POLL_DESCRIPTOR + i64::from(call.install_fd(fd, true)?)),
        }
    }

    fn memory_changes(&mut self, request: &Request) -> Outcome {
        let end = request.arg.saturating_add(request.extra[0]);
        if request.arg < end {
            self.shared.service().memory_changes(&self.process, request.arg..end);
        }
        Outcome::Value(Ok(0))
    }

    /// A client closed a descriptor. If that was the last one, the client goes on only when the file is released.
    fn closed(&mut self, request: &Request) -> Outcome {
        let entry = request.identity.and_then(|identity| self.shared.registry().find(identity));
        let Some(entry) = entry else { return Outcome::Value(Ok(0)) };
        let release = match entry.identity() {
            Identity::Memfd(inode) => self.shared.memfds().look(inode),
            Identity::Socket(_) if entry.is_hung_up() => entry.close(),
            Identity::Socket(_) => None,
        };
        match release {
            Some(release) => release.run(),
            None if entry.is_releasing() => entry.wait_released(),
            None => {}
        }
        Outcome::Value(Ok(0))
    }
}

/// The fields of an ioctl's number.
struct IoctlNumber(u32);

impl IoctlNumber {
    fn size(&self) -> usize {
        (self.0 >> 16 & 0x3fff) as usize
    }

    fn writes(&self) -> bool {
        self.0 >> 30 & 1 != 0
    }

    fn reads(&self) -> bool {
        self.0 >> 31 & 1 != 0
    }
}
