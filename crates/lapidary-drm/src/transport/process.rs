//! Client processes.
//!
//! A process is one program image in one process: a forked child and the program after `exec` are new ones. It exists from
//! its hello on the control socket until that socket or the process ends.
//!
//! Locks: `proved` and `channels`, each a leaf.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use lapidary_protocol::channel::Identity;
use parking_lot::Mutex;

use super::channel::Channel;
use super::memory::ClientMemory;
use super::registry::Entry;

/// A client process.
#[derive(Debug)]
pub struct Process {
    id: u64,
    pid: u32,
    uid: u32,
    name: String,
    memory: Arc<ClientMemory>,
    gone: AtomicBool,
    watched: AtomicBool,
    /// Files that this process has shown to hold a descriptor of.
    proved: Mutex<HashMap<Identity, Weak<Entry>>>,
    channels: Mutex<HashMap<u64, Arc<Channel>>>,
}

impl Process {
    pub(super) fn new(id: u64, pid: u32, uid: u32, memory: ClientMemory) -> Self {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Self {
            id,
            pid,
            uid,
            name: comm.trim_end().to_owned(),
            memory: Arc::new(memory),
            gone: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            proved: Mutex::default(),
            channels: Mutex::default(),
        }
    }

    /// A number that no other process of this server has or will have.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its process id, as the kernel vouched when it connected. May be another's once this one is gone.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its user, as the kernel vouched when it connected.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The command name, for people; empty if it could not be read.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its memory.
    pub fn memory(&self) -> &Arc<ClientMemory> {
        &self.memory
    }

    /// Whether it is to tell before it unmaps or replaces memory, from the end of its present call on; see
    /// [`Service::memory_changes`](super::Service::memory_changes).
    pub fn watch_memory(&self, watch: bool) {
        self.watched.store(watch, Ordering::Relaxed);
    }

    pub(super) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }

    /// Whether it has ended or disconnected.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// The file of this identity, if the process has proved to hold it.
    pub(super) fn proved(&self, identity: Identity) -> Option<Arc<Entry>> {
        self.proved.lock().get(&identity).and_then(Weak::upgrade)
    }

    /// Notes that the process has shown a descriptor of this file.
    pub(super) fn prove(&self, entry: &Arc<Entry>) {
        let mut proved = self.proved.lock();
        // What is released can't be named again: sweep when the map would grow.
        if proved.len() == proved.capacity() {
            proved.retain(|_, entry| entry.strong_count() > 0);
        }
        proved.insert(entry.identity(), Arc::downgrade(entry));
    }

    pub(super) fn add_channel(&self, channel: &Arc<Channel>) {
        self.channels.lock().insert(channel.id(), channel.clone());
    }

    pub(super) fn remove_channel(&self, id: u64) {
        self.channels.lock().remove(&id);
    }

    pub(super) fn channel(&self, id: u64) -> Option<Arc<Channel>> {
        self.channels.lock().get(&id).cloned()
    }

    pub(super) fn channel_count(&self) -> usize {
        self.channels.lock().len()
    }

    /// Ends everything the process has going: its calls are interrupted, its channels close. True the first time.
    pub(super) fn end(&self) -> bool {
        if self.gone.swap(true, Ordering::SeqCst) {
            return false;
        }
        let channels: Vec<_> = self.channels.lock().values().cloned().collect();
        for channel in channels {
            channel.close();
        }
        true
    }
}
