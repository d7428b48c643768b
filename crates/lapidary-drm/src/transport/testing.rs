//! A client without a process of its own, for unit tests of files: it calls them from the test's thread, with the
//! test's own memory as the client's, and answers what a call asks of its client from a helper thread.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lapidary_protocol::channel::{Identity, Kind, Op};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::thread::futex;

use super::channel::{Channel, Turns};
use super::page::MappedPage;
use super::releaser::Work;
use super::shared::Shared;
use super::{Call, ClientMemory, Errno, File, Process, Service, wire};

/// A client of a server that opens nothing by path. See the module's head.
pub(crate) struct TestClient {
    shared: Arc<Shared>,
    process: Arc<Process>,
    channel: Arc<Channel>,
    turns: Turns,
    descriptors: Arc<Descriptors>,
    /// Of the client that was there first.
    _work: Option<Work>,
}

/// What the client holds, by number, and its end of the channel's socket.
struct Descriptors {
    open: Mutex<HashMap<i32, OwnedFd>>,
    socket: OwnedFd,
}

struct NoPaths;

impl Service for NoPaths {
    fn open(&self, _: &Arc<Process>, _: &str, _: u32) -> Result<Arc<dyn File>, Errno> {
        Err(Errno::NOENT)
    }
}

impl TestClient {
    pub(crate) fn new() -> Self {
        let (shared, work) = Shared::new(Arc::new(NoPaths)).unwrap();
        Self::of(shared, Some(work))
    }

    /// Another client of the same server.
    pub(crate) fn beside(&self) -> Self {
        Self::of(self.shared.clone(), None)
    }

    fn of(shared: Arc<Shared>, work: Option<Work>) -> Self {
        let memory = open("/proc/self/mem", OFlags::RDWR, Mode::empty()).unwrap();
        // The link of `/proc/self/mem` names this process by number.
        let memory = ClientMemory::new(memory).unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let process = Arc::new(Process::new(shared.next_id(), std::process::id(), uid, memory));
        let (ours, socket) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let (page, _) = MappedPage::create().unwrap();
        let channel = Arc::new(Channel::new(shared.next_id(), page, ours));
        let descriptors = Arc::new(Descriptors { open: Mutex::default(), socket });
        Self { shared, process, channel, turns: Turns::default(), descriptors, _work: work }
    }

    pub(crate) fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// The client gets a descriptor from elsewhere; the number it has there.
    pub(crate) fn adopt(&self, fd: OwnedFd) -> i32 {
        let number = fd.as_raw_fd();
        self.descriptors.open.lock().insert(number, fd);
        number
    }

    /// The numbers of all descriptors that the client holds.
    pub(crate) fn numbers(&self) -> Vec<i32> {
        self.descriptors.open.lock().keys().copied().collect()
    }

    /// A copy of one of the client's descriptors.
    pub(crate) fn descriptor(&self, number: i32) -> OwnedFd {
        self.descriptors.open.lock()[&number].try_clone().unwrap()
    }

    /// The client closes a descriptor; when this returns, what was behind it alone is released.
    pub(crate) fn close(&self, number: i32) {
        let closed = self.descriptors.open.lock().remove(&number).expect("the descriptor is open");
        let entry = self.shared.registry().find_fd(&closed);
        drop(closed);
        let release = match entry.as_ref().map(|entry| entry.identity()) {
            Some(Identity::Memfd(inode)) => self.shared.memfds().look(inode),
            Some(Identity::Socket(_)) => {
                entry.filter(|entry| entry.is_hung_up()).and_then(|entry| entry.close())
            }
            None => None,
        };
        if let Some(release) = release {
            release.run();
        }
    }

    /// The client closes all it holds.
    pub(crate) fn close_all(&self) {
        self.numbers().into_iter().for_each(|number| self.close(number));
    }

    /// Something that a call does; `argument` is what the program gave as third argument.
    pub(crate) fn call<R>(&mut self, argument: u64, work: impl FnOnce(&mut Call<'_>) -> R) -> R {
        let over = AtomicBool::new(false);
        let (channel, descriptors) = (&*self.channel, &*self.descriptors);
        let turns = &mut self.turns;
        let mut call = Call::new(&self.shared, &self.process, channel, turns, (0, argument));
        std::thread::scope(|scope| {
            let over = &over;
            let seen = channel.page().reply.turn.load(Ordering::SeqCst);
            scope.spawn(move || answer_upcalls(channel, descriptors, seen, over));
            let result = work(&mut call);
            over.store(true, Ordering::SeqCst);
            result
        })
    }

    /// An ioctl on `file` with the structure as its argument, which has the size that `command` says.
    pub(crate) fn ioctl<T: bytemuck::Pod>(
        &mut self,
        file: &dyn File,
        command: u32,
        argument: &mut T,
    ) -> Result<u32, Errno> {
        let address = std::ptr::from_mut(argument) as u64;
        let bytes = bytemuck::bytes_of_mut(argument);
        self.call(address, |call| file.ioctl(call, command, bytes))
    }
}

fn answer_upcalls(channel: &Channel, descriptors: &Descriptors, mut seen: u32, over: &AtomicBool) {
    let page = channel.page();
    while !over.load(Ordering::SeqCst) {
        let turn = page.reply.turn.load(Ordering::SeqCst);
        if turn == seen {
            std::thread::yield_now();
            continue;
        }
        seen = turn;
        let value = match Kind::from_u32(page.reply.kind.load(Ordering::Relaxed)) {
            Some(Kind::SendFd) => descriptors.send(page.reply.args[0].load(Ordering::Relaxed) as i32),
            Some(Kind::ReceiveFd) => descriptors.receive(),
            kind => unreachable!("a file's method asked for {kind:?}"),
        };
        let value = value.map_or_else(|error| -i64::from(error.raw_os_error()), i64::from);
        page.request.op.store(Op::Answer as u32, Ordering::Relaxed);
        page.request.arg.store(value as u64, Ordering::Relaxed);
        page.request.turn.fetch_add(1, Ordering::SeqCst);
        if page.sleep.server.swap(0, Ordering::SeqCst) != 0 {
            futex::wake(&page.request.turn, futex::Flags::empty(), 1).unwrap();
        }
    }
}

impl Descriptors {
    fn send(&self, number: i32) -> Result<i32, Errno> {
        let open = self.open.lock();
        let fd = open.get(&number).ok_or(Errno::BADF)?;
        wire::send(&self.socket, &[lapidary_protocol::channel::DESCRIPTOR], &[fd.as_fd()])?;
        Ok(0)
    }

    /// The message follows its announcement.
    fn receive(&self) -> Result<i32, Errno> {
        let mut byte = [0];
        let fd = loop {
            match wire::receive(&self.socket, &mut byte) {
                Ok(Some((_, mut fds))) => break fds.pop().ok_or(Errno::BADF)?,
                Ok(None) => return Err(Errno::PIPE),
                Err(Errno::AGAIN) => std::thread::yield_now(),
                Err(error) => return Err(error),
            }
        };
        let number = fd.as_raw_fd();
        self.open.lock().insert(number, fd);
        Ok(number)
    }
}
