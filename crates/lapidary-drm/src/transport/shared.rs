//! What the transport's threads share.
//!
//! Locks: `connections` and `servers`, leaves.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, epoll, eventfd};

use super::channel::Channel;
use super::connection::Connection;
use super::event_loop::{self, HungUp, Token};
use super::memfds::Memfds;
use super::registry::Registry;
use super::releaser::{Ended, Releaser, Work};
use super::serve::Server;
use super::{Counts, Errno, Process, Service};

/// Stack of a channel's thread. Memory is used as it is touched; the rest is address space.
const STACK_BYTES: usize = 512 * 1024;

/// What the transport's threads share.
pub(super) struct Shared {
    service: Arc<dyn Service>,
    epoll: Arc<OwnedFd>,
    stop: OwnedFd,
    registry: Arc<Registry>,
    memfds: Memfds,
    hung_up: HungUp,
    releaser: Releaser,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    next_id: AtomicU64,
    /// How many channels' threads run.
    servers: Mutex<usize>,
    no_servers: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("connections", &self.connections).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(service: Arc<dyn Service>) -> Result<(Arc<Self>, Work), Errno> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let mut server = [0; 8];
        rustix::rand::getrandom(&mut server, rustix::rand::GetRandomFlags::empty())?;
        let (releaser, work) = Releaser::new();
        let shared = Self {
            service,
            registry: Registry::new(u64::from_ne_bytes(server), epoll.clone()),
            epoll,
            stop: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            memfds: Memfds::new()?,
            hung_up: HungUp::default(),
            releaser,
            connections: Mutex::default(),
            next_id: AtomicU64::new(1),
            servers: Mutex::new(0),
            no_servers: Condvar::new(),
        };
        shared.watch(&shared.stop, Token::Stop)?;
        shared.watch(shared.memfds.inotify(), Token::Memfds)?;
        Ok((Arc::new(shared), work))
    }

    pub(super) fn watch(&self, fd: impl AsFd, token: Token) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, token.data(), epoll::EventFlags::IN)
    }

    pub(super) fn service(&self) -> &dyn Service {
        &*self.service
    }

    pub(super) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    pub(super) fn memfds(&self) -> &Memfds {
        &self.memfds
    }

    pub(super) fn hung_up(&self) -> &HungUp {
        &self.hung_up
    }

    pub(super) fn releaser(&self) -> &Releaser {
        &self.releaser
    }

    /// A number for a process or channel.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn connect(&self, connection: Arc<Connection>) {
        self.connections.lock().insert(connection.id(), connection);
    }

    pub(super) fn connection(&self, id: u64) -> Option<Arc<Connection>> {
        self.connections.lock().get(&id).cloned()
    }

    /// Ends a connection and what its process has going.
    pub(super) fn disconnect(&self, id: u64) {
        let Some(connection) = self.connections.lock().remove(&id) else { return };
        if let Some(process) = connection.process()
            && process.end()
        {
            self.releaser.push(Ended::Process(process.clone()));
        }
    }

    /// Starts the thread of a channel.
    pub(super) fn spawn_server(
        self: &Arc<Self>,
        process: &Arc<Process>,
        channel: &Arc<Channel>,
    ) -> Result<(), Errno> {
        let server = Server::new(self.clone(), process.clone(), channel.clone());
        let running = Running::new(self);
        let name = format!("client-{}", process.pid());
        let builder = std::thread::Builder::new().name(name).stack_size(STACK_BYTES);
        let work = move || {
            let _running = running;
            server.run();
        };
        builder.spawn(work).map(drop).map_err(|error| {
            process.remove_channel(channel.id());
            Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)
        })
    }

    /// Returns when everything that has ended was told to the service.
    pub(super) fn settle(self: &Arc<Self>) {
        event_loop::take_ends(self);
        self.releaser.flush();
    }

    pub(super) fn counts(&self) -> Counts {
        let connections = self.connections.lock();
        let processes = connections.values().filter_map(|connection| connection.process());
        let channels: Vec<_> = processes.map(|process| process.channel_count()).collect();
        Counts {
            processes: channels.len(),
            channels: channels.iter().sum(),
            files: self.registry.all().len(),
        }
    }

    /// Ends everything. Returns when no thread of a channel runs and every file is released.
    pub(super) fn stop(&self) {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        let ids: Vec<u64> = self.connections.lock().keys().copied().collect();
        ids.into_iter().for_each(|id| self.disconnect(id));
        let mut servers = self.servers.lock();
        while *servers != 0 {
            self.no_servers.wait(&mut servers);
        }
        drop(servers);
        for entry in self.registry.all() {
            if let Some(release) = entry.close() {
                self.releaser.push(Ended::File(release));
            }
        }
        self.releaser.flush();
        self.releaser.stop();
    }
}

/// Counts a running channel's thread.
struct Running(Arc<Shared>);

impl Running {
    fn new(shared: &Arc<Shared>) -> Self {
        *shared.servers.lock() += 1;
        Self(shared.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut servers = self.0.servers.lock();
        *servers -= 1;
        if *servers == 0 {
            self.0.no_servers.notify_all();
        }
    }
}
