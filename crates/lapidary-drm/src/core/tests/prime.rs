//! Sharing buffers: descriptors, names, other devices.

use super::*;
use crate::uapi::dma_buf;

impl Bench {
    fn share(&mut self, file: &dyn File, handle: u32) -> Result<i32, Errno> {
        let args = drm::PrimeHandle { handle, flags: drm::PRIME_CLOEXEC | drm::PRIME_RDWR, fd: -1 };
        self.run(file, drm::IOCTL_PRIME_HANDLE_TO_FD, args).map(|args| args.fd)
    }

    fn import(&mut self, file: &dyn File, fd: i32) -> Result<u32, Errno> {
        let args = drm::PrimeHandle { handle: 0, flags: 0, fd };
        self.run(file, drm::IOCTL_PRIME_FD_TO_HANDLE, args).map(|args| args.handle)
    }

    fn flink(&mut self, file: &dyn File, handle: u32) -> Result<u32, Errno> {
        self.run(file, drm::IOCTL_GEM_FLINK, drm::GemFlink { handle, name: 0 }).map(|args| args.name)
    }

    fn open_name(&mut self, file: &dyn File, name: u32) -> Result<drm::GemOpen, Errno> {
        self.run(file, drm::IOCTL_GEM_OPEN, drm::GemOpen { name, handle: 0, size: 0 })
    }
}

#[test]
fn a_file_that_imports_what_it_shares_gets_the_handle_it_has() {
    let mut bench = Bench::new();
    let file = bench.file();
    let handle = bench.create(&file, MEBIBYTE);
    let fd = bench.share(&file, handle).unwrap();
    let again = bench.share(&file, handle).unwrap();
    assert_ne!(fd, again);
    assert_eq!(bench.import(&file, fd), Ok(handle));
    assert_eq!(bench.import(&file, again), Ok(handle));
    assert_eq!(bench.live("dma-bufs"), 1, "one buffer is one dma-buf");
    assert_eq!(rustix::fs::fstat(bench.client.descriptor(fd)).unwrap().st_size as u64, MEBIBYTE);
}

#[test]
fn another_file_gets_the_same_buffer_and_a_handle_of_its_own() {
    let mut bench = Bench::new();
    let (mine, other) = (bench.file(), bench.file());
    bench.create(&other, MEBIBYTE);
    let handle = bench.create(&mine, MEBIBYTE);
    let fd = bench.share(&mine, handle).unwrap();
    let imported = bench.import(&other, fd).unwrap();
    assert_eq!(imported, 2);
    assert_eq!(bench.import(&other, fd), Ok(imported));
    let (a, b) = (mine.0.buffer(handle).unwrap(), other.0.buffer(imported).unwrap());
    assert!(Arc::ptr_eq(&a, &b));
    bench.close_handle(&other, imported).unwrap();
    assert_eq!(bench.import(&other, fd), Ok(2), "a closed handle is forgotten");
}

#[test]
fn a_dma_buf_keeps_its_buffer_until_its_last_descriptor() {
    let mut bench = Bench::new();
    let file = bench.file();
    let handle = bench.create(&file, MEBIBYTE);
    let fd = bench.share(&file, handle).unwrap();
    bench.close_handle(&file, handle).unwrap();
    assert_eq!(bench.live("buffers"), 1);
    let back = bench.import(&file, fd).unwrap();
    bench.close_handle(&file, back).unwrap();
    bench.client.close(fd);
    assert_eq!((bench.live("buffers"), bench.live("dma-bufs")), (0, 0));
}

#[test]
fn what_can_not_be_shared_says_why() {
    let mut bench = Bench::new();
    let file = bench.file();
    let handle = bench.create(&file, MEBIBYTE);
    let private = bench.run(&file, IOCTL_CREATE, Create { size: 4096, handle: 0, flags: 1 }).unwrap().handle;
    assert_eq!(bench.share(&file, private), Err(Errno::PERM));
    assert_eq!(bench.share(&file, 99), Err(Errno::NOENT));
    let odd = drm::PrimeHandle { handle, flags: 1, fd: -1 };
    assert_eq!(bench.run(&file, drm::IOCTL_PRIME_HANDLE_TO_FD, odd).err(), Some(Errno::INVAL));
    assert_eq!(bench.import(&file, -1), Err(Errno::BADF));
    let memfd = rustix::fs::memfd_create("other", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let foreign = bench.client.adopt(memfd);
    assert_eq!(bench.import(&file, foreign), Err(Errno::INVAL));
}

#[test]
fn another_device_imports_through_its_driver_and_shares_the_original() {
    let mut bench = Bench::new();
    let file = bench.file();
    let handle = bench.create(&file, MEBIBYTE);
    let fd = bench.share(&file, handle).unwrap();
    let second = DrmDevice::new(driver(), &bench.census);
    let there = OpenFile(second.open_file(bench.client.process(), Node::Render).unwrap());
    let imported = bench.import(&there, fd).unwrap();
    assert!(there.0.buffer(imported).unwrap().is_imported());
    let shared_on = bench.share(&there, imported).unwrap();
    assert_eq!(bench.import(&file, shared_on), Ok(handle));
    assert_eq!(bench.live("dma-bufs"), 1);
    drop(there);
    for fd in [fd, shared_on] {
        bench.client.close(fd);
    }
    drop(file);
    assert_eq!(bench.census.survivors(), []);
}

#[test]
fn a_name_opens_the_same_buffer_and_goes_with_the_last_handle() {
    let mut bench = Bench::new();
    let (mine, other) = (bench.open(Node::Primary), bench.open(Node::Primary));
    let handle = bench.create(&mine, MEBIBYTE);
    let name = bench.flink(&mine, handle).unwrap();
    assert_eq!(bench.flink(&mine, handle), Ok(name));
    assert_eq!(bench.flink(&mine, 99), Err(Errno::NOENT));
    let opened = bench.open_name(&other, name).unwrap();
    assert_eq!(opened.size, MEBIBYTE);
    bench.close_handle(&mine, handle).unwrap();
    let fd = bench.share(&other, opened.handle).unwrap();
    assert_eq!(bench.import(&other, fd), Ok(opened.handle));
    bench.close_handle(&other, opened.handle).unwrap();
    assert_eq!(bench.open_name(&mine, name).err(), Some(Errno::NOENT));
}

#[test]
fn a_dma_buf_checks_what_it_is_asked() {
    let mut bench = Bench::new();
    let file = bench.file();
    let handle = bench.create(&file, MEBIBYTE);
    let fd = bench.share(&file, handle).unwrap();
    let dma_buf = bench.behind(fd);
    let mut sync = |flags| bench.run(&*dma_buf, dma_buf::IOCTL_SYNC, dma_buf::Sync { flags }).map(drop);
    assert_eq!(sync(dma_buf::SYNC_RW), Ok(()));
    assert_eq!(sync(dma_buf::SYNC_RW | dma_buf::SYNC_END), Ok(()));
    assert_eq!(sync(dma_buf::SYNC_END), Err(Errno::INVAL));
    assert_eq!(sync(8 | dma_buf::SYNC_READ), Err(Errno::INVAL));
    assert_eq!(bench.run(&*dma_buf, Command::iow::<u64>(b'b', 9), 0_u64), Err(Errno::NOTTY));
    for flags in [0, 8] {
        let export = dma_buf::ExportSyncFile { flags, fd: -1 };
        assert_eq!(bench.run(&*dma_buf, dma_buf::IOCTL_EXPORT_SYNC_FILE, export).err(), Some(Errno::INVAL));
    }
    let not_a_fence = dma_buf::ImportSyncFile { flags: 1, fd };
    assert_eq!(bench.run(&*dma_buf, dma_buf::IOCTL_IMPORT_SYNC_FILE, not_a_fence).err(), Some(Errno::INVAL));

    let mut name = |text: &[u8]| {
        let address = text.as_ptr() as u64;
        bench.client.call(address, |call| dma_buf.ioctl(call, dma_buf::SET_NAME_B.0, &mut [0; 8]))
    };
    assert_eq!(name(b"scan-out\0"), Ok(0));
    assert_eq!(name(&[b'x'; 32]), Err(Errno::INVAL));
}
