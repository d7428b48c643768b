//! A client process's control socket.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use bytemuck::Zeroable;
use lapidary_protocol::VERSION;
use lapidary_protocol::control::{self, Message};
use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use rustix::process::{PidfdFlags, pidfd_open};

use super::channel::Channel;
use super::event_loop::Token;
use super::memory::ClientMemory;
use super::page::MappedPage;
use super::{Errno, Process, Shared, wire};

/// Most channels a process can have: it bounds the threads that a hostile one can make the server start.
const MOST_CHANNELS: usize = 4096;
/// Messages taken from one connection before others get a turn.
const MESSAGES_AT_ONCE: usize = 16;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    id: u64,
    socket: OwnedFd,
    pid: u32,
    uid: u32,
    /// Becomes readable when the process ends, even if a child still holds a copy of the socket. `None` where the system
    /// has no such thing.
    _death: Option<OwnedFd>,
    /// There after the hello.
    process: OnceLock<Arc<Process>>,
}

impl Connection {
    /// Takes in a new connection.
    pub(super) fn accept(shared: &Arc<Shared>, socket: OwnedFd) -> Result<(), Errno> {
        let id = shared.next_id();
        let peer = sockopt::socket_peercred(&socket)?;
        let death = pidfd_open(peer.pid, PidfdFlags::empty()).ok();
        epoll::add(shared.epoll(), &socket, Token::Control(id).data(), epoll::EventFlags::IN)?;
        if let Some(death) = &death {
            epoll::add(shared.epoll(), death, Token::Death(id).data(), epoll::EventFlags::IN)?;
        }
        let pid = peer.pid.as_raw_nonzero().get().cast_unsigned();
        let connection =
            Self { id, socket, pid, uid: peer.uid.as_raw(), _death: death, process: OnceLock::new() };
        shared.connect(Arc::new(connection));
        Ok(())
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn process(&self) -> Option<&Arc<Process>> {
        self.process.get()
    }

    /// Handles what has arrived.
    ///
    /// # Errors
    /// The connection is to be ended.
    pub(super) fn take_messages(&self, shared: &Arc<Shared>) -> Result<(), Errno> {
        for _ in 0..MESSAGES_AT_ONCE {
            let mut message = Message::zeroed();
            match wire::receive(&self.socket, bytemuck::bytes_of_mut(&mut message)) {
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
                Ok(None) => return Err(Errno::PIPE),
                Ok(Some((bytes, fds))) if bytes == size_of::<Message>() && message.version == VERSION => {
                    self.handle(shared, message, fds)?;
                }
                Ok(Some(_)) => return Err(Errno::PROTO),
            }
        }
        Ok(())
    }

    fn handle(&self, shared: &Arc<Shared>, message: Message, fds: Vec<OwnedFd>) -> Result<(), Errno> {
        match (message.kind, self.process.get()) {
            (control::HELLO, None) => self.hello(fds),
            (control::NEW_CHANNEL, Some(process)) => self.open_channel(shared, process),
            (control::CANCEL, Some(process)) => {
                if let Some(channel) = process.channel(message.a) {
                    channel.cancel(message.b as u32);
                }
                Ok(())
            }
            _ => Err(Errno::PROTO),
        }
    }

    fn hello(&self, mut fds: Vec<OwnedFd>) -> Result<(), Errno> {
        let memory = ClientMemory::new(fds.pop().ok_or(Errno::PROTO)?)?;
        let process = Process::new(self.id, self.pid, self.uid, memory);
        tracing::debug!(pid = self.pid, name = process.name(), "a client connects");
        self.process.set(Arc::new(process)).map_err(|_| Errno::PROTO)?;
        let welcome = Message::new(control::WELCOME, self.id, 0);
        wire::send(&self.socket, bytemuck::bytes_of(&welcome), &[])
    }

    fn open_channel(&self, shared: &Arc<Shared>, process: &Arc<Process>) -> Result<(), Errno> {
        if process.channel_count() >= MOST_CHANNELS {
            return Err(Errno::MFILE);
        }
        let (page, memfd) = MappedPage::create()?;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let id = shared.next_id();
        let channel = Arc::new(Channel::new(id, page, ours));
        process.add_channel(&channel);
        shared.spawn_server(process, &channel)?;
        let reply = Message::new(control::CHANNEL, id, 0);
        wire::send(&self.socket, bytemuck::bytes_of(&reply), &[memfd.as_fd(), theirs.as_fd()])
    }
}
