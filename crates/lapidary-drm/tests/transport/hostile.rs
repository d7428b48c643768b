//! Clients that speak to the server by themselves, and badly.

use std::ffi::{OsStr, c_void};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use lapidary_protocol::channel::PAGE_BYTES;
use lapidary_protocol::control::{self, Message};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType, recvmsg, sendmsg,
};
use rustix::thread::futex;

use crate::support::{Bench, Event};

#[test]
fn junk_on_the_control_socket_ends_that_connection_alone() {
    let bench = Bench::start();
    bench.play("increment");
    let path = bench.variable("LAPIDARY_SOCKET");
    for junk in [&[0_u8; 24][..], &[0xff; 24], &[1; 3], &[0; 1000]] {
        let socket = connect(&path);
        rustix::net::send(&socket, junk, SendFlags::empty()).unwrap();
        // The server hangs up.
        assert_eq!(std::io::Read::read(&mut &socket, &mut [0; 8]).unwrap_or(0), 0);
    }
    bench.play("increment");
}

#[test]
fn a_file_that_is_no_process_memory_is_not_taken_for_one() {
    let bench = Bench::start();
    for path in ["/dev/zero", "/proc/self/maps", "/proc/self/status"] {
        let socket = connect(&bench.variable("LAPIDARY_SOCKET"));
        let file = std::fs::File::open(path).unwrap();
        send(&socket, Message::new(control::HELLO, 0, 0), &[file.as_fd()]);
        assert_eq!(std::io::Read::read(&mut &socket, &mut [0; 8]).unwrap_or(0), 0, "{path}");
    }
}

#[test]
fn a_client_that_scribbles_over_its_page_hurts_only_itself() {
    let bench = Bench::start();
    let path = bench.variable("LAPIDARY_SOCKET");
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..20 {
        let mut hostile = Hostile::connect(&path);
        for _ in 0..200 {
            hostile.scribble(&mut random);
        }
    }
    bench.play("increment");
    (0..21).for_each(|_| bench.wait_until(Event::Gone));
    bench.transport.settle();
    assert_eq!(bench.transport.counts().files, 0);
}

#[test]
fn a_client_that_takes_its_turn_back_holds_no_thread_and_no_shutdown() {
    let mut bench = Bench::start();
    let hostile = Hostile::connect(&bench.variable("LAPIDARY_SOCKET"));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // The server closes a channel by changing the turn: this client changes it back at once.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                hostile.words()[0].store(0, Ordering::SeqCst);
            }
        });
        bench.transport.shutdown();
        over.store(true, Ordering::Relaxed);
    });
}

fn connect(path: &OsStr) -> UnixStream {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    UnixStream::from(socket)
}

fn send(socket: &UnixStream, message: Message, fds: &[BorrowedFd<'_>]) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    let bytes = bytemuck::bytes_of(&message);
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).unwrap();
}

fn receive(socket: &UnixStream) -> Vec<OwnedFd> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; size_of::<Message>()];
    recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    rights.flatten().collect()
}

/// A connection with one channel, in this very process.
struct Hostile {
    _control: UnixStream,
    channel: OwnedFd,
    page: *mut c_void,
}

impl Hostile {
    fn connect(path: &OsStr) -> Self {
        let control = connect(path);
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        send(&control, Message::new(control::HELLO, 0, 0), &[memory.as_fd()]);
        receive(&control);
        send(&control, Message::new(control::NEW_CHANNEL, 0, 0), &[]);
        let [page, channel] = <[OwnedFd; 2]>::try_from(receive(&control)).unwrap();
        let both = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping touches no existing memory.
        let page = unsafe { mmap(ptr::null_mut(), PAGE_BYTES, both, MapFlags::SHARED, &page, 0) }.unwrap();
        Self { _control: control, channel, page }
    }

    fn words(&self) -> &[AtomicU32] {
        // SAFETY: the page is mapped, and the server, too, accesses it by atomics alone.
        unsafe { std::slice::from_raw_parts(self.page.cast::<AtomicU32>(), PAGE_BYTES / 4) }
    }

    /// Writes random words, some of them small as real ones are, then hands over; at times junk on the socket.
    fn scribble(&mut self, random: &mut u64) {
        let mut next = || {
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            *random
        };
        let words = self.words();
        for _ in 0..next() % 30 {
            let (at, value) = (next(), next() as u32);
            let at = if at.is_multiple_of(2) { at % 16 } else { at % 128 } as usize;
            words[at].store(if value.is_multiple_of(3) { value } else { value % 12 }, Ordering::SeqCst);
        }
        words[0].fetch_add(1, Ordering::SeqCst);
        let _ = futex::wake(&words[0], futex::Flags::empty(), 1);
        if next().is_multiple_of(8) {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let _ = rustix::net::send(&self.channel, &next().to_ne_bytes(), flags);
        }
    }
}

// SAFETY: the page is accessed by atomics alone, from whatever thread.
unsafe impl Sync for Hostile {}

impl Drop for Hostile {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { munmap(self.page, PAGE_BYTES) }.unwrap();
    }
}
