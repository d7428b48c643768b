//! Fences between shared buffers and sync_files, and polling a buffer.

use std::os::fd::OwnedFd;

use lapidary::fence::{Fence, Signaller, Timeline};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::transport::Poll;
use crate::uapi::dma_buf;

const READ: u64 = dma_buf::SYNC_READ;
const WRITE: u64 = dma_buf::SYNC_WRITE;
const IN: u32 = PollFlags::IN.bits() as u32;
const OUT: u32 = PollFlags::OUT.bits() as u32;

impl Bench {
    /// A buffer that is shared, by its descriptor's file.
    fn shared(&mut self) -> Arc<dyn File> {
        let file = self.file();
        let handle = self.create(&file, MEBIBYTE);
        let args = drm::PrimeHandle { handle, flags: drm::PRIME_CLOEXEC, fd: -1 };
        let fd = self.run(&file, drm::IOCTL_PRIME_HANDLE_TO_FD, args).unwrap().fd;
        self.behind(fd)
    }

    /// Puts a new fence into the buffer, by a sync_file, as that of somebody who reads or writes.
    fn import_fence(&mut self, buffer: &Arc<dyn File>, access: u64) -> Signaller {
        let (fence, signaller) = Timeline::new("test-user").next();
        let sync_file = SyncFile::new(fence, &self.census.kind("sync files"));
        let fd = self.client.call(0, |call| sync_file.install(call)).unwrap();
        let args = dma_buf::ImportSyncFile { flags: access as u32, fd };
        self.run(&**buffer, dma_buf::IOCTL_IMPORT_SYNC_FILE, args).unwrap();
        self.client.close(fd);
        signaller
    }

    /// The fences that `access` must wait for, through a sync_file.
    fn export_fence(&mut self, buffer: &Arc<dyn File>, access: u64) -> Fence {
        let args = dma_buf::ExportSyncFile { flags: access as u32, fd: -1 };
        let fd = self.run(&**buffer, dma_buf::IOCTL_EXPORT_SYNC_FILE, args).unwrap().fd;
        let file = crate::transport::downcast::<SyncFile>(self.behind(fd)).ok().unwrap();
        self.client.close(fd);
        file.fence().clone()
    }

    /// Whether somebody who reads, and somebody who writes, would have to wait.
    fn busy(&mut self, buffer: &Arc<dyn File>) -> [bool; 2] {
        [READ, WRITE].map(|access| !self.export_fence(buffer, access).is_signalled())
    }

    fn poll(&mut self, buffer: &Arc<dyn File>, events: u32) -> Poll {
        self.client.call(0, |call| buffer.poll(call, events)).unwrap()
    }

    fn ready(&mut self, buffer: &Arc<dyn File>, events: u32) -> u32 {
        match self.poll(buffer, events) {
            Poll::Ready(events) => events,
            Poll::Wait(_) => 0,
        }
    }

    fn waits_on(&mut self, buffer: &Arc<dyn File>, events: u32) -> OwnedFd {
        match self.poll(buffer, events) {
            Poll::Wait(descriptor) => descriptor,
            Poll::Ready(events) => panic!("{events:#x} is ready"),
        }
    }
}

fn is_readable(descriptor: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
}

#[test]
fn readers_wait_for_writers_and_writers_for_all() {
    let mut bench = Bench::new();
    let buffer = bench.shared();
    assert_eq!(bench.busy(&buffer), [false, false]);
    let reader = bench.import_fence(&buffer, READ);
    assert_eq!(bench.busy(&buffer), [false, true]);
    let writer = bench.import_fence(&buffer, WRITE);
    assert_eq!(bench.busy(&buffer), [true, true]);
    writer.signal();
    assert_eq!(bench.busy(&buffer), [false, true]);
    reader.signal();
    assert_eq!(bench.busy(&buffer), [false, false]);
    let _both = bench.import_fence(&buffer, READ | WRITE);
    assert_eq!(bench.busy(&buffer), [true, true]);
}

#[test]
fn what_was_exported_waits_for_the_fences_of_that_moment() {
    let mut bench = Bench::new();
    let buffer = bench.shared();
    let before = bench.export_fence(&buffer, WRITE);
    let first = bench.import_fence(&buffer, WRITE);
    let between = bench.export_fence(&buffer, WRITE);
    let _second = bench.import_fence(&buffer, WRITE);
    first.signal();
    assert!(before.is_signalled() && between.is_signalled());
    assert_eq!(bench.busy(&buffer), [true, true]);
}

#[test]
fn an_export_of_many_fences_waits_for_the_last() {
    let mut bench = Bench::new();
    let buffer = bench.shared();
    let readers: Vec<Signaller> = (0..32).map(|_| bench.import_fence(&buffer, READ)).collect();
    let writer = bench.import_fence(&buffer, WRITE);
    let exported = [READ, WRITE].map(|access| bench.export_fence(&buffer, access));
    for reader in readers {
        assert_eq!(bench.busy(&buffer), [true, true]);
        assert!(exported.iter().all(|fence| !fence.is_signalled()));
        reader.signal();
    }
    assert_eq!(bench.busy(&buffer), [true, true]);
    writer.signal();
    assert_eq!(bench.busy(&buffer), [false, false]);
    assert!(exported.iter().all(Fence::is_signalled));
}

#[test]
fn a_sync_file_of_many_fences_goes_in_fence_by_fence() {
    let mut bench = Bench::new();
    let (one, other) = (bench.shared(), bench.shared());
    let writers = [(); 2].map(|()| bench.import_fence(&one, WRITE));
    let both = SyncFile::new(bench.export_fence(&one, WRITE), &bench.census.kind("sync files"));
    let fd = bench.client.call(0, |call| both.install(call)).unwrap();
    let args = dma_buf::ImportSyncFile { flags: READ as u32, fd };
    bench.run(&*other, dma_buf::IOCTL_IMPORT_SYNC_FILE, args).unwrap();
    let [first, second] = writers;
    first.signal();
    assert_eq!(bench.busy(&other), [false, true]);
    second.signal();
    assert_eq!(bench.busy(&other), [false, false]);
}

#[test]
fn a_poll_answers_each_direction_by_who_must_wait() {
    let mut bench = Bench::new();
    let buffer = bench.shared();
    assert_eq!(bench.ready(&buffer, IN | OUT), IN | OUT);
    let reader = bench.import_fence(&buffer, READ);
    assert_eq!(bench.ready(&buffer, IN | OUT), IN);
    assert_eq!(bench.ready(&buffer, OUT), 0);
    let writer = bench.import_fence(&buffer, WRITE);
    assert_eq!(bench.ready(&buffer, IN), 0);
    assert_eq!(bench.ready(&buffer, IN | OUT), 0);
    reader.signal();
    assert_eq!(bench.ready(&buffer, IN | OUT), 0);
    writer.signal();
    assert_eq!(bench.ready(&buffer, IN | OUT), IN | OUT);
    assert!(matches!(bench.poll(&buffer, 0), Poll::Ready(0)));
}

#[test]
fn a_poll_of_a_busy_buffer_is_woken_when_the_first_direction_may_be_ready() {
    let mut bench = Bench::new();
    let buffer = bench.shared();
    let writer = bench.import_fence(&buffer, WRITE);
    let reader = bench.import_fence(&buffer, READ);
    let (any, out) = (bench.waits_on(&buffer, IN | OUT), bench.waits_on(&buffer, OUT));
    assert!(!is_readable(&any) && !is_readable(&out));
    writer.signal();
    assert!(is_readable(&any) && !is_readable(&out));
    assert_eq!(bench.ready(&buffer, IN | OUT), IN);
    reader.signal();
    assert!(is_readable(&out));
    assert_eq!(bench.ready(&buffer, OUT), OUT);
}

#[test]
fn accesses_by_the_cpu_are_interruptible_and_wait_for_the_gpus() {
    let mut bench = Bench::new();
    let buffer = bench.shared();
    let reader = bench.import_fence(&buffer, READ);
    let begin = |bench: &mut Bench, flags| {
        bench.run(&*buffer, dma_buf::IOCTL_SYNC, dma_buf::Sync { flags }).map(drop)
    };
    assert_eq!(begin(&mut bench, READ), Ok(()));
    bench.client.call(0, |call| call.interrupt().raise());
    assert_eq!(begin(&mut bench, WRITE), Err(Errno::INTR));
    reader.signal();
    assert_eq!(begin(&mut bench, WRITE), Ok(()));
}
