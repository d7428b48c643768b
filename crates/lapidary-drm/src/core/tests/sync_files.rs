//! sync_files: polling, merging, and what is inside.

use lapidary::fence::{Fence, FenceError, Timeline};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::uapi::sync_file as uapi;

impl Bench {
    fn sync_file(&mut self, fence: &Fence) -> i32 {
        let file = SyncFile::new(fence.clone(), &self.census.kind("sync files"));
        self.client.call(0, |call| file.install(call)).unwrap()
    }

    fn is_readable(&self, fd: i32) -> bool {
        let descriptor = self.client.descriptor(fd);
        let mut fds = [PollFd::new(&descriptor, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    fn info(&mut self, fd: i32, fences: &mut [uapi::FenceInfo]) -> Result<uapi::FileInfo, Errno> {
        let args = uapi::FileInfo {
            num_fences: fences.len() as u32,
            sync_fence_info: fences.as_mut_ptr() as u64,
            ..bytemuck::Zeroable::zeroed()
        };
        let file = self.behind(fd);
        self.run(&*file, uapi::IOC_FILE_INFO, args)
    }

    fn merge(&mut self, fd: i32, args: uapi::MergeData) -> Result<i32, Errno> {
        let file = self.behind(fd);
        self.run(&*file, uapi::IOC_MERGE, args).map(|args| args.fence)
    }
}

fn merge_with(fd2: i32) -> uapi::MergeData {
    let mut name = [0; uapi::NAME_LEN];
    name[..4].copy_from_slice(b"both");
    uapi::MergeData { name, fd2, ..bytemuck::Zeroable::zeroed() }
}

#[test]
fn a_descriptor_is_readable_from_the_signal_on() {
    let mut bench = Bench::new();
    let (fence, signaller) = Timeline::new("t").next();
    let before = bench.sync_file(&fence);
    assert!(!bench.is_readable(before));
    signaller.signal();
    assert!(bench.is_readable(before));
    let after = bench.sync_file(&fence);
    assert!(bench.is_readable(after));
    bench.client.close(before);
    bench.client.close(after);
    assert_eq!(bench.live("sync files"), 0);
}

#[test]
fn info_counts_first_and_describes_then() {
    let mut bench = Bench::new();
    let (fence, signaller) = Timeline::new("gpu-ring").next();
    let fd = bench.sync_file(&fence);
    let counted = bench.info(fd, &mut []).unwrap();
    assert_eq!((counted.num_fences, counted.status), (1, 0));
    assert!(counted.name.starts_with(b"gpu-ring"));
    signaller.fail(FenceError::Cancelled);
    let mut fences = [bytemuck::Zeroable::zeroed(); 1];
    let info = bench.info(fd, &mut fences).unwrap();
    assert_eq!(info.status, -libc::ECANCELED);
    assert_eq!(fences[0].status, -libc::ECANCELED);
    assert!(fences[0].obj_name.starts_with(b"ring\0") && fences[0].driver_name.starts_with(b"gpu\0"));
    assert!(fences[0].timestamp_ns > 0);
}

#[test]
fn a_merged_file_signals_with_the_last_and_has_its_name() {
    let mut bench = Bench::new();
    let ((a, signal_a), (b, signal_b)) = (Timeline::new("a").next(), Timeline::new("b").next());
    let (first, second) = (bench.sync_file(&a), bench.sync_file(&b));
    let both = bench.merge(first, merge_with(second)).unwrap();
    let info = bench.info(both, &mut []).unwrap();
    assert_eq!(info.num_fences, 2);
    assert!(info.name.starts_with(b"both\0"));
    assert_eq!(bench.info(both, &mut [bytemuck::Zeroable::zeroed()]).err(), Some(Errno::INVAL), "no room");
    let unnamed =
        bench.merge(first, uapi::MergeData { name: [0; uapi::NAME_LEN], ..merge_with(second) }).unwrap();
    assert!(bench.info(unnamed, &mut []).unwrap().name.starts_with(b"dma_fence_array-unbound"));
    signal_a.signal();
    assert!(!bench.is_readable(both));
    signal_b.signal();
    assert!(bench.is_readable(both));
}

#[test]
fn merging_checks_flags_and_descriptor() {
    let mut bench = Bench::new();
    let fd = bench.sync_file(&Fence::signalled());
    assert_eq!(bench.merge(fd, uapi::MergeData { flags: 1, ..merge_with(fd) }), Err(Errno::INVAL));
    assert_eq!(bench.merge(fd, uapi::MergeData { pad: 1, ..merge_with(fd) }), Err(Errno::INVAL));
    assert_eq!(bench.merge(fd, merge_with(-1)), Err(Errno::NOENT));
    let file = bench.behind(fd);
    let deadline = uapi::SetDeadline { deadline_ns: 1, pad: 1 };
    assert_eq!(bench.run(&*file, uapi::IOC_SET_DEADLINE, deadline).err(), Some(Errno::INVAL));
    assert_eq!(bench.run(&*file, Command::iowr::<u64>(b'>', 0), 0_u64), Err(Errno::NOTTY));
}

#[test]
fn fences_of_one_timeline_merge_into_the_latest() {
    let mut bench = Bench::new();
    let timeline = Timeline::new("gpu-ring");
    let ((first, signal_first), (second, signal_second)) = (timeline.next(), timeline.next());
    let (first, second) = (bench.sync_file(&first), bench.sync_file(&second));
    let both = bench.merge(second, merge_with(first)).unwrap();
    assert_eq!(bench.info(both, &mut []).unwrap().num_fences, 1);
    signal_first.signal();
    assert!(!bench.is_readable(both));
    signal_second.signal();
    assert!(bench.is_readable(both));
    let same = bench.merge(both, merge_with(both)).unwrap();
    assert!(bench.is_readable(same));
}

#[test]
fn a_merged_files_status_is_that_of_what_is_left_or_failed() {
    let mut bench = Bench::new();
    let ((a, signal_a), (b, signal_b)) = (Timeline::new("a").next(), Timeline::new("b").next());
    let (first, second) = (bench.sync_file(&a), bench.sync_file(&b));
    let both = bench.merge(first, merge_with(second)).unwrap();
    let statuses = |bench: &mut Bench| {
        let mut fences = [bytemuck::Zeroable::zeroed(); 2];
        let info = bench.info(both, &mut fences).unwrap();
        assert_eq!(info.num_fences, 2);
        let mut each = fences.map(|fence: uapi::FenceInfo| fence.status);
        each.sort_unstable();
        (info.status, each)
    };
    assert_eq!(statuses(&mut bench), (0, [0, 0]));
    signal_a.signal();
    assert_eq!(statuses(&mut bench), (0, [0, 1]));
    signal_b.fail(fence_error(Errno::NOENT));
    assert_eq!(statuses(&mut bench), (-libc::ENOENT, [-libc::ENOENT, 1]));
    let errors = [Errno::NOENT, Errno::IO, Errno::HWPOISON];
    assert_eq!(errors.map(|errno| fence_errno(fence_error(errno))), errors);
}

#[test]
fn a_deadline_reaches_every_fence_inside() {
    let mut bench = Bench::new();
    let hints = Arc::new(AtomicU64::new(0));
    let (fences, signallers): (Vec<_>, Vec<_>) = (0..3).map(|_| Timeline::new("t").next()).unzip();
    for signaller in &signallers {
        let hints = hints.clone();
        signaller.on_deadline(move |time| {
            hints.fetch_add(time.as_nanos(), Ordering::SeqCst);
        });
    }
    let fd = bench.sync_file(&lapidary::fence::merge(fences));
    let file = bench.behind(fd);
    let deadline = uapi::SetDeadline { deadline_ns: 7, pad: 0 };
    bench.run(&*file, uapi::IOC_SET_DEADLINE, deadline).unwrap();
    assert_eq!(hints.load(Ordering::SeqCst), 3 * 7);
}
