//! The one thread that waits for what comes unasked: connections, control messages, hang-ups, deaths.
//!
//! It never runs a driver's code and never blocks but in `epoll_wait`.
//!
//! A client that closes a descriptor in the usual way says so on its channel right after, and the channel's thread
//! releases the file without a switch to another thread. So the loop gives a file that hung up a moment ([`GRACE`])
//! before it sees to the release itself.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapidary_protocol::channel::Identity;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::net::{SocketFlags, accept_with};

use super::connection::Connection;
use super::registry::Entry;
use super::releaser::Ended;
use super::{Errno, Shared};

/// What an epoll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// A client connects.
    Listener,
    /// Somebody wants the loop to end.
    Stop,
    /// Memfds were closed.
    Memfds,
    /// A connection has a message or ended.
    Control(u64),
    /// A connection's process ended.
    Death(u64),
    /// A file's socket hung up; by its cookie.
    File(u64),
}

const TAG_SHIFT: u32 = 56;
/// How long the client that closed a file has to say so.
const GRACE: Duration = Duration::from_millis(1);

impl Token {
    pub(super) fn data(self) -> epoll::EventData {
        let (tag, value) = match self {
            Self::Listener => (1, 0),
            Self::Stop => (2, 0),
            Self::Memfds => (3, 0),
            Self::Control(id) => (4, id),
            Self::Death(id) => (5, id),
            Self::File(cookie) => (6, cookie),
        };
        epoll::EventData::new_u64(tag << TAG_SHIFT | value)
    }

    fn from_data(data: epoll::EventData) -> Option<Self> {
        let value = data.u64() & ((1 << TAG_SHIFT) - 1);
        Some(match data.u64() >> TAG_SHIFT {
            1 => Self::Listener,
            2 => Self::Stop,
            3 => Self::Memfds,
            4 => Self::Control(value),
            5 => Self::Death(value),
            6 => Self::File(value),
            _ => return None,
        })
    }
}

/// Files that hung up, and until when their clients may say so.
#[derive(Debug, Default)]
pub(super) struct HungUp(Mutex<VecDeque<(Instant, Arc<Entry>)>>);

impl HungUp {
    fn add(&self, entry: Arc<Entry>) {
        self.0.lock().push_back((Instant::now() + GRACE, entry));
    }

    /// Takes out what is due at that time, and tells when the next is.
    fn due(&self, now: Option<Instant>) -> (Vec<Arc<Entry>>, Option<Instant>) {
        let mut waiting = self.0.lock();
        let count = waiting.iter().take_while(|(at, _)| now.is_none_or(|now| *at <= now)).count();
        let due = waiting.drain(..count).map(|(_, entry)| entry).collect();
        (due, waiting.front().map(|(at, _)| *at))
    }
}

/// Runs until told to stop.
pub(super) fn run(shared: &Arc<Shared>, listener: &OwnedFd) {
    let mut next: Option<Instant> = None;
    let mut spare = spare_descriptor();
    loop {
        let timeout = next.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        for token in wait(shared, timeout.as_ref()) {
            match token {
                Token::Stop => return,
                Token::Listener => accept(shared, listener, &mut spare),
                Token::Control(id) => control(shared, id),
                Token::Death(id) => shared.disconnect(id),
                Token::File(_) | Token::Memfds => end_of(shared, token),
            }
        }
        let (releases, next_look) = shared.memfds().look_again();
        for release in releases {
            shared.releaser().push(Ended::File(release));
        }
        let next_end = release_hung_up(shared, Some(Instant::now()));
        next = next_look.into_iter().chain(next_end).min();
    }
}

/// Sees to the release of files that hung up and are due at that time, or all. Tells when the next is due.
fn release_hung_up(shared: &Shared, now: Option<Instant>) -> Option<Instant> {
    let (due, next) = shared.hung_up().due(now);
    for entry in due {
        if let Some(release) = entry.close() {
            shared.releaser().push(Ended::File(release));
        }
    }
    next
}

/// Takes in the ends of files that have happened already, from any thread, without waiting.
pub(super) fn take_ends(shared: &Arc<Shared>) {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // Each end is taken off the list; other events stay on it for the loop. A bound keeps a busy server's callers going.
    for _ in 0..64 {
        let tokens = wait(shared, Some(&now));
        let ends = tokens.iter().filter(|token| matches!(token, Token::File(_) | Token::Memfds));
        if ends.map(|token| end_of(shared, *token)).count() == 0 {
            break;
        }
    }
    release_hung_up(shared, None);
}

fn wait(shared: &Shared, timeout: Option<&Timespec>) -> Vec<Token> {
    let mut space = [MaybeUninit::<epoll::Event>::uninit(); 64];
    match epoll::wait(shared.epoll(), &mut space, timeout) {
        Ok((events, _)) => events.iter().filter_map(|event| Token::from_data(event.data)).collect(),
        Err(Errno::INTR) => Vec::new(),
        Err(error) => {
            tracing::error!(%error, "waiting for events failed");
            Vec::new()
        }
    }
}

fn end_of(shared: &Arc<Shared>, token: Token) {
    match token {
        Token::File(cookie) => {
            let Some(entry) = shared.registry().find(Identity::Socket(cookie)) else { return };
            shared.registry().unwatch(&entry);
            shared.hung_up().add(entry);
        }
        Token::Memfds => {
            for release in shared.memfds().take_events() {
                shared.releaser().push(Ended::File(release));
            }
        }
        _ => {}
    }
}

/// Takes in who has connected. Without a descriptor for a connection, `spare` is given up for it and the connection
/// ended: a client that waits in the queue would wait for ever, and the queue would keep the loop busy.
fn accept(shared: &Arc<Shared>, listener: &OwnedFd, spare: &mut Option<OwnedFd>) {
    if spare.is_none() {
        *spare = spare_descriptor();
    }
    loop {
        match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => {
                if let Err(error) = Connection::accept(shared, socket) {
                    tracing::warn!(%error, "a client could not be accepted");
                }
            }
            // The system says so before it looks whether anybody waits.
            Err(Errno::MFILE | Errno::NFILE) if spare.take().is_some() => {
                let refused = accept_with(listener, SocketFlags::CLOEXEC);
                let nobody_waits = refused.is_err();
                drop(refused);
                *spare = spare_descriptor();
                if nobody_waits {
                    return;
                }
                tracing::warn!("no descriptor is left for a client");
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(_) => return,
        }
    }
}

/// A descriptor of nothing.
fn spare_descriptor() -> Option<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC).ok()
}

fn control(shared: &Arc<Shared>, id: u64) {
    let Some(connection) = shared.connection(id) else { return };
    if let Err(error) = connection.take_messages(shared) {
        tracing::debug!(id, %error, "a client disconnects");
        shared.disconnect(id);
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}
