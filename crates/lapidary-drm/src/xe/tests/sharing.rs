//! Buffers and fences between files: PRIME, sync_files, what waits for what.

use super::client::*;
use super::*;
use crate::transport::Poll;
use crate::uapi::{dma_buf, drm};

const BASE: u64 = 1 << 30;

impl Client {
    fn share(&mut self, handle: u32) -> i32 {
        let args = drm::PrimeHandle { handle, flags: drm::PRIME_CLOEXEC | drm::PRIME_RDWR, fd: -1 };
        self.drm(drm::IOCTL_PRIME_HANDLE_TO_FD, args).unwrap().fd
    }

    fn import(&mut self, fd: i32) -> u32 {
        self.drm(drm::IOCTL_PRIME_FD_TO_HANDLE, drm::PrimeHandle { handle: 0, flags: 0, fd }).unwrap().handle
    }

    /// A descriptor passed from one client to another.
    fn receive(&self, from: &Client, fd: i32) -> i32 {
        self.test.adopt(from.test.descriptor(fd))
    }

    /// A dma-buf's own ioctl.
    fn on<T: Pod>(&mut self, fd: i32, command: Command, args: T) -> Result<T, Errno> {
        let mut args = args;
        let file = self.test.call(0, |call| call.file_of(fd))?;
        self.test.ioctl(&*file, command.0, &mut args)?;
        Ok(args)
    }

    fn can_write_now(&mut self, fd: i32) -> bool {
        let file = self.test.call(0, |call| call.file_of(fd)).unwrap();
        let out = u32::from(rustix::event::PollFlags::OUT.bits());
        matches!(self.test.call(0, |call| file.poll(call, out)), Ok(Poll::Ready(ready)) if ready == out)
    }
}

#[test]
fn a_buffer_is_the_same_in_both_files_and_lives_as_long_as_either_needs_it() {
    let bench = Bench::new(&small());
    let (mut mine, mut theirs) = (Rig::new(&bench), Rig::new(&bench));
    let handle = mine.client.buffer(VRAM, MIB, 0);
    let fd = mine.client.share(handle);
    assert_eq!(mine.client.import(fd), handle);
    let copy = theirs.client.receive(&mine.client, fd);
    let imported = theirs.client.import(copy);
    assert_eq!(theirs.client.import(copy), imported);
    mine.bind(&[map(handle, 0, BASE, MIB)]);
    theirs.bind(&[map(imported, 0, BASE, MIB)]);
    mine.run(Batch::new().store(BASE, 1));
    theirs.run(Batch::new().copy(BASE, BASE + 4, 4));
    let bytes = theirs.client.bytes(imported);
    assert_eq!((bytes.read(0), bytes.read(4)), (1, 1));
    mine.client.test.close_all();
    theirs.client.test.close_all();
    drop(mine);
    theirs.run(Batch::new().store(BASE + 8, 3));
    assert_eq!(bytes.read(8), 3);
    drop(theirs);
    bench.assert_clean();
}

#[test]
fn a_fence_goes_through_a_shared_buffer_to_another_files_job() {
    let bench = Bench::new(&small());
    let (mut mine, mut theirs) = (Rig::new(&bench), Rig::new(&bench));
    let handle = mine.client.buffer(SYSTEM, CHUNK, 0);
    let bytes = mine.client.bytes(handle);
    mine.bind(&[map(handle, 0, BASE, CHUNK)]);
    let fd = mine.client.share(handle);
    let copy = theirs.client.receive(&mine.client, fd);
    let imported = theirs.client.import(copy);
    theirs.bind(&[map(imported, 0, BASE, CHUNK)]);

    // A job that writes, its fence as a sync_file, that sync_file in the buffer.
    let gate = mine.gate();
    let written = mine.submit(Batch::new().until(gate.address(), 1).store(BASE, 5));
    assert!(theirs.client.can_write_now(copy), "nobody said that the job has to do with the buffer");
    let export =
        drm::SyncobjHandle { handle: written, flags: drm::SYNCOBJ_FD_SYNC_FILE, fd: -1, pad: 0, point: 0 };
    let sync_file = mine.client.drm(drm::IOCTL_SYNCOBJ_HANDLE_TO_FD, export).unwrap().fd;
    let put = dma_buf::ImportSyncFile { flags: dma_buf::SYNC_WRITE as u32, fd: sync_file };
    mine.client.on(fd, dma_buf::IOCTL_IMPORT_SYNC_FILE, put).unwrap();
    assert!(!theirs.client.can_write_now(copy));

    // The other file takes it out and has a job wait for it.
    let get = dma_buf::ExportSyncFile { flags: dma_buf::SYNC_READ as u32, fd: -1 };
    let taken = theirs.client.on(copy, dma_buf::IOCTL_EXPORT_SYNC_FILE, get).unwrap().fd;
    let ready = theirs.client.syncobj();
    let import =
        drm::SyncobjHandle { handle: ready, flags: drm::SYNCOBJ_FD_SYNC_FILE, fd: taken, pad: 0, point: 0 };
    theirs.client.drm(drm::IOCTL_SYNCOBJ_FD_TO_HANDLE, import).unwrap();
    let queue = theirs.queue;
    let done = theirs.submit_on(queue, Batch::new().copy(BASE, BASE + 4, 4), &[after(ready)]);
    assert!(!theirs.client.is_signalled(done));
    mine.open(gate);
    theirs.client.wait(done);
    assert_eq!(bytes.read(4), 5);
    assert!(theirs.client.can_write_now(copy));
    mine.client.test.close_all();
    theirs.client.test.close_all();
    drop((mine, theirs));
    bench.assert_clean();
}
