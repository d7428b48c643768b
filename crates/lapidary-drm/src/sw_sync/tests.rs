//! The device as a client sees it.

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::transport::testing::TestClient;
use crate::uapi::sync_file;

struct Bench {
    client: TestClient,
    census: Census,
    device: Arc<SwSync>,
}

impl Bench {
    fn new() -> Self {
        let census = Census::new();
        Self { client: TestClient::new(), device: SwSync::new(&census), census }
    }

    /// A descriptor of a new timeline.
    fn open(&mut self) -> i32 {
        let timeline = self.device.open(self.client.process());
        self.client.call(0, |call| call.install_file(timeline, true)).unwrap()
    }

    fn run<T: bytemuck::Pod>(&mut self, fd: i32, command: Command, args: T) -> Result<T, Errno> {
        let mut args = args;
        let file = self.client.call(0, |call| call.file_of(fd))?;
        self.client.ioctl(&*file, command.0, &mut args)?;
        Ok(args)
    }

    fn fence(&mut self, timeline: i32, value: u32) -> i32 {
        let args = uapi::CreateFence { value, name: [b'x'; 32], fence: -1 };
        self.run(timeline, uapi::IOC_CREATE_FENCE, args).unwrap().fence
    }

    fn advance(&mut self, timeline: i32, by: u32) {
        self.run(timeline, uapi::IOC_INC, by).unwrap();
    }

    fn merge(&mut self, one: i32, other: i32) -> i32 {
        let args = sync_file::MergeData { fd2: other, ..bytemuck::Zeroable::zeroed() };
        self.run(one, sync_file::IOC_MERGE, args).unwrap().fence
    }

    fn set_deadline(&mut self, fence: i32, deadline_ns: u64) {
        let args = sync_file::SetDeadline { deadline_ns, pad: 0 };
        self.run(fence, sync_file::IOC_SET_DEADLINE, args).unwrap();
    }

    fn deadline(&mut self, timeline: i32, fence_fd: i32) -> Result<u64, Errno> {
        let args = uapi::GetDeadline { deadline_ns: 0, pad: 0, fence_fd };
        self.run(timeline, uapi::GET_DEADLINE, args).map(|args| args.deadline_ns)
    }

    fn info(&mut self, fence: i32) -> sync_file::FenceInfo {
        let mut info = bytemuck::Zeroable::zeroed();
        let args = sync_file::FileInfo {
            num_fences: 1,
            sync_fence_info: std::ptr::from_mut(&mut info) as u64,
            ..bytemuck::Zeroable::zeroed()
        };
        self.run(fence, sync_file::IOC_FILE_INFO, args).unwrap();
        info
    }

    fn is_readable(&self, fd: i32) -> bool {
        let descriptor = self.client.descriptor(fd);
        poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
    }
}

#[test]
fn a_fence_is_readable_when_its_timeline_has_come_to_it() {
    let mut bench = Bench::new();
    let (timeline, other) = (bench.open(), bench.open());
    let fence = bench.fence(timeline, 2);
    bench.advance(other, 2);
    bench.advance(timeline, 1);
    assert!(!bench.is_readable(fence), "each open is a timeline of its own");
    assert_eq!(bench.info(fence).status, 0);
    bench.advance(timeline, 1);
    assert!(bench.is_readable(fence));
    assert_eq!(bench.info(fence).status, 1);
    let passed = bench.fence(timeline, 1);
    assert!(bench.is_readable(passed));
}

#[test]
fn fences_are_called_after_the_process() {
    let mut bench = Bench::new();
    let timeline = bench.open();
    let fence = bench.fence(timeline, 1);
    let info = bench.info(fence);
    assert!(info.driver_name.starts_with(b"sw_sync\0"));
    assert!(info.obj_name.starts_with(bench.client.process().name().as_bytes()));
}

#[test]
fn a_timeline_that_is_closed_fails_its_fences() {
    let mut bench = Bench::new();
    let timeline = bench.open();
    let (passed, left) = (bench.fence(timeline, 1), bench.fence(timeline, 2));
    bench.advance(timeline, 1);
    bench.client.close(timeline);
    assert!(bench.is_readable(left));
    assert_eq!(bench.info(left).status, -libc::ENOENT);
    assert_eq!(bench.info(passed).status, 1);
    bench.client.close_all();
    assert_eq!(bench.census.survivors(), []);
    assert!(bench.device.timelines.lock().is_empty());
}

#[test]
fn a_deadline_reaches_every_fence_of_a_merged_one() {
    let mut bench = Bench::new();
    let (timeline, other) = (bench.open(), bench.open());
    let (one, two) = (bench.fence(timeline, 1), bench.fence(other, 1));
    let both = bench.merge(one, two);
    assert_eq!(bench.deadline(timeline, one), Err(Errno::NOENT));
    bench.set_deadline(both, 30);
    bench.set_deadline(two, 20);
    assert_eq!(bench.deadline(timeline, one), Ok(30));
    assert_eq!(bench.deadline(timeline, two), Ok(20), "of any timeline");
    assert_eq!(bench.deadline(timeline, both), Err(Errno::INVAL), "not of several");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut bench = Bench::new();
    let timeline = bench.open();
    let fence = bench.fence(timeline, 1);
    let good = uapi::GetDeadline { deadline_ns: 0, pad: 0, fence_fd: fence };
    for (args, errno) in [
        (uapi::GetDeadline { deadline_ns: 1, ..good }, Errno::INVAL),
        (uapi::GetDeadline { pad: 1, ..good }, Errno::INVAL),
        (uapi::GetDeadline { fence_fd: -1, ..good }, Errno::INVAL),
        (uapi::GetDeadline { fence_fd: timeline, ..good }, Errno::INVAL),
    ] {
        assert_eq!(bench.run(timeline, uapi::GET_DEADLINE, args).err(), Some(errno), "{args:?}");
    }
    assert_eq!(bench.run(timeline, Command::iowr::<u64>(b'W', 9), 0_u64), Err(Errno::NOTTY));
    assert_eq!(bench.run(timeline, sync_file::IOC_SET_DEADLINE, [0_u64; 2]), Err(Errno::NOTTY));
}
