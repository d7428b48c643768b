//! Who waits for a shared buffer to become readable or writable: what a client's `poll` sleeps on.
//!
//! A client that finds the buffer busy gets one end of a pair of sockets, which hangs up when the fences that were there then
//! have signalled; it then asks again. However often a process asks, it gets the same end for the same direction until that
//! hung up, so a process that polls and gives up, again and again, has one pair of the server's, not one for each time. It is
//! never another process's: whoever has an end can hang up.
//!
//! The server closes its end and writes nothing: a write to what a client holds, be it an eventfd that we made, can block,
//! since every holder may make the open a blocking one and fill it.
//!
//! A later poll may so be woken by fences older than those it waits for, never too late: fences leave a reservation only when
//! they have signalled, or for a later one of their context.
//!
//! Locks: the list, which is taken with nothing else held; under it a reservation's list of fences, a fence's callbacks, and
//! a waiter's pair, each for itself. The pair's is all that the fence's callback takes.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use lapidary::fence::{CallbackId, Fence};
use lapidary::resv::{Reservation, Usage};
use parking_lot::Mutex;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};

use crate::transport::{Errno, Process};

/// The processes that wait for one buffer.
#[derive(Default)]
pub(super) struct Pollers(Mutex<Vec<Waiter>>);

/// One process's wait for one direction.
struct Waiter {
    process: Weak<Process>,
    usage: Usage,
    event: Arc<Event>,
    fence: Fence,
    callback: Option<CallbackId>,
}

/// What the client sleeps on; gone when it has hung up.
struct Event(Mutex<Option<Pair>>);

struct Pair {
    /// Hangs up when it is closed.
    _ours: OwnedFd,
    theirs: OwnedFd,
}

impl Event {
    fn new() -> Result<Self, Errno> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // What a client sent would be ours to dispose of, in the fence's callback.
        shutdown(&ours, Shutdown::Read)?;
        Ok(Self(Mutex::new(Some(Pair { _ours: ours, theirs }))))
    }

    fn signal(&self) {
        let pair = self.0.lock().take();
        drop(pair);
    }

    /// Another descriptor of the client's end; `None` if it has hung up.
    fn descriptor(&self) -> Option<Result<OwnedFd, Errno>> {
        let pair = self.0.lock();
        Some(rustix::io::fcntl_dupfd_cloexec(&pair.as_ref()?.theirs, 0))
    }
}

impl Waiter {
    /// Waits for the fences of `usage` that are there now.
    fn begin(process: &Arc<Process>, reservation: &Reservation, usage: Usage) -> Result<Self, Errno> {
        let event = Arc::new(Event::new()?);
        let fence = reservation.merged(usage);
        let signalled = Arc::clone(&event);
        let callback = fence.add_callback(move |_| signalled.signal()).ok();
        Ok(Self { process: Arc::downgrade(process), usage, event, fence, callback })
    }

    fn is_over(&self) -> bool {
        self.event.0.lock().is_none() || self.process.upgrade().is_none_or(|process| process.is_gone())
    }

    fn is_for(&self, process: &Arc<Process>, usage: Usage) -> bool {
        self.usage == usage && std::ptr::eq(self.process.as_ptr(), Arc::as_ptr(process))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(id) = self.callback {
            self.fence.remove_callback(id);
        }
    }
}

impl Pollers {
    /// What `process` waits on until the fences of `usage` have signalled; `None` if they have by now.
    ///
    /// # Errors
    /// When the server has no descriptor left.
    pub(super) fn wait(
        &self,
        process: &Arc<Process>,
        reservation: &Reservation,
        usage: Usage,
    ) -> Result<Option<OwnedFd>, Errno> {
        let mut waiters = self.0.lock();
        waiters.retain(|waiter| !waiter.is_over());
        let waiting = waiters.iter().find(|waiter| waiter.is_for(process, usage));
        if let Some(descriptor) = waiting.and_then(|waiter| waiter.event.descriptor()) {
            return descriptor.map(Some);
        }
        let waiter = Waiter::begin(process, reservation, usage)?;
        if waiter.callback.is_none() {
            return Ok(None);
        }
        let descriptor = waiter.event.descriptor();
        waiters.push(waiter);
        descriptor.transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use lapidary::fence::{Signaller, Timeline};
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::net::SendFlags;
    use rustix::net::sockopt::socket_cookie;

    use super::*;
    use crate::transport::testing::TestClient;

    fn busy(usage: Usage) -> (Reservation, Signaller) {
        let reservation = Reservation::new();
        let (fence, signaller) = Timeline::new("work").next();
        add(&reservation, fence, usage);
        (reservation, signaller)
    }

    fn add(reservation: &Reservation, fence: Fence, usage: Usage) {
        let mut guard = reservation.lock();
        guard.reserve(1).unwrap();
        guard.add_fence(fence, usage);
    }

    fn is_readable(fd: impl AsFd) -> bool {
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
    }

    /// Whether both are descriptors of one end.
    fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
        socket_cookie(one).unwrap() == socket_cookie(other).unwrap()
    }

    #[test]
    fn a_wait_ends_with_the_fences_that_were_there() {
        let (client, pollers) = (TestClient::new(), Pollers::default());
        let (reservation, signaller) = busy(Usage::Write);
        let waiting = pollers.wait(client.process(), &reservation, Usage::Read).unwrap().unwrap();
        let (later, _later_signaller) = Timeline::new("later").next();
        add(&reservation, later, Usage::Write);
        assert!(!is_readable(&waiting));
        signaller.signal();
        assert!(is_readable(&waiting));
    }

    #[test]
    fn there_is_nothing_to_wait_on_when_all_has_signalled() {
        let (client, pollers) = (TestClient::new(), Pollers::default());
        let (reservation, signaller) = busy(Usage::Write);
        signaller.signal();
        assert!(pollers.wait(client.process(), &reservation, Usage::Read).unwrap().is_none());
    }

    #[test]
    fn a_process_that_asks_again_waits_on_the_same_until_it_was_signalled() {
        let (client, pollers) = (TestClient::new(), Pollers::default());
        let (reservation, signaller) = busy(Usage::Write);
        let ask = |usage| pollers.wait(client.process(), &reservation, usage).unwrap().unwrap();
        let (first, again, other_direction) = (ask(Usage::Write), ask(Usage::Write), ask(Usage::Read));
        assert!(is_same(&first, &again) && !is_same(&first, &other_direction));
        assert_eq!(pollers.0.lock().len(), 2);
        let (later, _later_signaller) = Timeline::new("later").next();
        add(&reservation, later, Usage::Write);
        signaller.signal();
        let new = ask(Usage::Write);
        assert!(is_readable(&again) && !is_readable(&new));
        assert_eq!(pollers.0.lock().len(), 1, "what was signalled is forgotten");
    }

    #[test]
    fn no_process_can_take_anothers_wake_up() {
        let (client, pollers) = (TestClient::new(), Pollers::default());
        let neighbour = client.beside();
        let (reservation, signaller) = busy(Usage::Write);
        let waiting = [&client, &neighbour]
            .map(|client| pollers.wait(client.process(), &reservation, Usage::Write).unwrap().unwrap());
        assert!(!is_same(&waiting[0], &waiting[1]));
        shutdown(&waiting[0], Shutdown::Both).unwrap();
        assert!(is_readable(&waiting[0]) && !is_readable(&waiting[1]));
        signaller.signal();
        assert!(is_readable(&waiting[1]));
    }

    #[test]
    fn a_client_can_put_nothing_into_the_servers_end() {
        let (client, pollers) = (TestClient::new(), Pollers::default());
        let (reservation, _signaller) = busy(Usage::Write);
        let waiting = pollers.wait(client.process(), &reservation, Usage::Write).unwrap().unwrap();
        assert_eq!(rustix::net::send(&waiting, &[1], SendFlags::NOSIGNAL), Err(Errno::PIPE));
    }

    #[test]
    fn a_buffer_that_goes_leaves_nothing_with_its_fences() {
        let (client, pollers) = (TestClient::new(), Pollers::default());
        let (reservation, _signaller) = busy(Usage::Write);
        pollers.wait(client.process(), &reservation, Usage::Write).unwrap().unwrap();
        let event = Arc::downgrade(&pollers.0.lock()[0].event);
        drop(pollers);
        assert!(event.upgrade().is_none());
    }
}
