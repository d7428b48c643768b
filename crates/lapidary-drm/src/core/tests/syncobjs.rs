//! Syncobjs: handles, descriptors, waits, points, events.

use lapidary::fence::{Signaller, Timeline};
use rustix::event::{EventfdFlags, eventfd};

use super::*;

impl Bench {
    fn syncobj(&mut self, file: &dyn File, flags: u32) -> u32 {
        self.run(file, drm::IOCTL_SYNCOBJ_CREATE, drm::SyncobjCreate { handle: 0, flags }).unwrap().handle
    }

    /// Puts a fence into a syncobj, and gives its signaller.
    fn attach(&mut self, file: &OpenFile<MemfdDriver>, handle: u32, point: u64) -> Signaller {
        let (fence, signaller) = Timeline::new("work").next();
        let syncobj = file.0.syncobjs().get(handle).unwrap();
        match point {
            0 => syncobj.replace_fence(Some(fence)),
            point => syncobj.add_point(fence, point),
        }
        signaller
    }

    fn wait(
        &mut self,
        file: &dyn File,
        handles: &[u32],
        flags: u32,
        timeout_nsec: i64,
    ) -> Result<u32, Errno> {
        let args = drm::SyncobjWait {
            handles: handles.as_ptr() as u64,
            count_handles: handles.len() as u32,
            timeout_nsec,
            flags,
            ..bytemuck::Zeroable::zeroed()
        };
        self.run(file, drm::IOCTL_SYNCOBJ_WAIT, args).map(|args| args.first_signaled)
    }

    fn wait_points(&mut self, file: &dyn File, handle: u32, point: u64, flags: u32) -> Result<u32, Errno> {
        let args = drm::SyncobjTimelineWait {
            handles: std::ptr::from_ref(&handle) as u64,
            points: std::ptr::from_ref(&point) as u64,
            count_handles: 1,
            flags,
            ..bytemuck::Zeroable::zeroed()
        };
        self.run(file, drm::IOCTL_SYNCOBJ_TIMELINE_WAIT, args).map(|args| args.first_signaled)
    }

    fn array(&mut self, file: &dyn File, command: Command, handles: &[u32], pad: u32) -> Result<(), Errno> {
        let (handles, count_handles) = (handles.as_ptr() as u64, handles.len() as u32);
        self.run(file, command, drm::SyncobjArray { handles, count_handles, pad }).map(drop)
    }

    fn query(&mut self, file: &dyn File, handle: u32, flags: u32) -> u64 {
        let mut point = u64::MAX;
        let args = drm::SyncobjTimelineArray {
            handles: std::ptr::from_ref(&handle) as u64,
            points: std::ptr::from_mut(&mut point) as u64,
            count_handles: 1,
            flags,
        };
        self.run(file, drm::IOCTL_SYNCOBJ_QUERY, args).unwrap();
        point
    }

    fn handle_to_fd(&mut self, file: &dyn File, handle: u32, flags: u32, point: u64) -> Result<i32, Errno> {
        let args = drm::SyncobjHandle { handle, flags, fd: -1, pad: 0, point };
        self.run(file, drm::IOCTL_SYNCOBJ_HANDLE_TO_FD, args).map(|args| args.fd)
    }

    fn fd_to_handle(&mut self, file: &dyn File, args: drm::SyncobjHandle) -> Result<u32, Errno> {
        self.run(file, drm::IOCTL_SYNCOBJ_FD_TO_HANDLE, args).map(|args| args.handle)
    }
}

fn from_fd(fd: i32, flags: u32, handle: u32) -> drm::SyncobjHandle {
    drm::SyncobjHandle { handle, flags, fd, pad: 0, point: 0 }
}

const ALL: u32 = drm::SYNCOBJ_WAIT_ALL;
const FOR_SUBMIT: u32 = drm::SYNCOBJ_WAIT_FOR_SUBMIT;
const AVAILABLE: u32 = drm::SYNCOBJ_WAIT_AVAILABLE;

#[test]
fn one_created_signalled_is_at_once_waited_for() {
    let mut bench = Bench::new();
    let file = bench.file();
    let handle = bench.syncobj(&file, drm::SYNCOBJ_CREATE_SIGNALED);
    assert_eq!(bench.wait(&file, &[handle], 0, 0), Ok(0));
    let odd = drm::SyncobjCreate { handle: 0, flags: 2 };
    assert_eq!(bench.run(&file, drm::IOCTL_SYNCOBJ_CREATE, odd).err(), Some(Errno::INVAL));
}

#[test]
fn destroying_checks_padding_and_handle() {
    let mut bench = Bench::new();
    let file = bench.file();
    let handle = bench.syncobj(&file, 0);
    let mut destroy = |handle, pad| {
        bench.run(&file, drm::IOCTL_SYNCOBJ_DESTROY, drm::SyncobjDestroy { handle, pad }).map(drop)
    };
    assert_eq!(destroy(handle, 1), Err(Errno::INVAL));
    assert_eq!(destroy(handle, 0), Ok(()));
    assert_eq!(destroy(handle, 0), Err(Errno::INVAL));
}

#[test]
fn a_wait_tells_unsubmitted_unsignalled_and_signalled_apart() {
    let mut bench = Bench::new();
    let file = bench.file();
    let (empty, done) = (bench.syncobj(&file, 0), bench.syncobj(&file, 1));
    let busy = bench.syncobj(&file, 0);
    let signaller = bench.attach(&file, busy, 0);
    assert_eq!(bench.wait(&file, &[empty], 0, 0), Err(Errno::INVAL));
    assert_eq!(bench.wait(&file, &[empty], FOR_SUBMIT, 0), Err(Errno::TIME));
    assert_eq!(bench.wait(&file, &[busy], 0, 0), Err(Errno::TIME));
    assert_eq!(bench.wait(&file, &[busy], 0, 1), Err(Errno::TIME), "what is past only looks");
    assert_eq!(bench.wait(&file, &[busy], 0, -1), Err(Errno::TIME));
    assert_eq!(bench.wait(&file, &[busy, done], 0, 0), Ok(1));
    assert_eq!(bench.wait(&file, &[busy, done], ALL, 0), Err(Errno::TIME));
    assert_eq!(bench.wait(&file, &[done, empty], 0, 0), Err(Errno::INVAL));
    signaller.signal();
    assert_eq!(bench.wait(&file, &[busy, done], ALL, i64::MAX).map(drop), Ok(()));
}

#[test]
fn a_wait_checks_flags_handles_and_pointers() {
    let mut bench = Bench::new();
    let file = bench.file();
    assert_eq!(bench.wait(&file, &[], 0, 0), Ok(0));
    assert_eq!(bench.wait(&file, &[], 0xdead_beef, 0), Err(Errno::INVAL));
    assert_eq!(bench.wait(&file, &[], AVAILABLE, 0), Err(Errno::INVAL));
    assert_eq!(bench.wait(&file, &[0], 0, 0), Err(Errno::NOENT));
    let mut args = drm::SyncobjWait { handles: 8, count_handles: 1, ..bytemuck::Zeroable::zeroed() };
    assert_eq!(bench.run(&file, drm::IOCTL_SYNCOBJ_WAIT, args).err(), Some(Errno::FAULT));
    args.count_handles = u32::MAX;
    assert_eq!(bench.run(&file, drm::IOCTL_SYNCOBJ_WAIT, args).err(), Some(Errno::NOMEM));
}

#[test]
fn an_older_clients_shorter_structure_works() {
    let mut bench = Bench::new();
    let file = bench.file();
    let handle = bench.syncobj(&file, drm::SYNCOBJ_CREATE_SIGNALED);
    let full = drm::SyncobjWait {
        handles: std::ptr::from_ref(&handle) as u64,
        count_handles: 1,
        ..bytemuck::Zeroable::zeroed()
    };
    let mut short: [u32; 8] =
        bytemuck::cast_slice::<u8, u32>(&bytemuck::bytes_of(&full)[..32]).try_into().unwrap();
    let command = Command::iowr::<[u32; 8]>(drm::BASE, drm::IOCTL_SYNCOBJ_WAIT.nr());
    short = bench.run(&file, command, short).unwrap();
    assert_eq!(short[6], 0, "the first is signalled");
}

#[test]
fn resetting_and_signalling_is_all_or_nothing() {
    let mut bench = Bench::new();
    let file = bench.file();
    let handles = [0; 2].map(|_| bench.syncobj(&file, 0));
    let (reset, signal) = (drm::IOCTL_SYNCOBJ_RESET, drm::IOCTL_SYNCOBJ_SIGNAL);
    for command in [reset, signal] {
        assert_eq!(bench.array(&file, command, &[], 0), Err(Errno::INVAL));
        assert_eq!(bench.array(&file, command, &handles, 1), Err(Errno::INVAL));
    }
    assert_eq!(bench.array(&file, signal, &[handles[0], 0], 0), Err(Errno::NOENT));
    assert_eq!(bench.wait(&file, &handles[..1], 0, 0), Err(Errno::INVAL), "nothing was signalled");
    bench.array(&file, signal, &handles, 0).unwrap();
    bench.wait(&file, &handles, ALL, 0).unwrap();
    assert_eq!(bench.array(&file, reset, &[handles[0], 0], 0), Err(Errno::NOENT));
    bench.wait(&file, &handles, ALL, 0).unwrap();
    bench.array(&file, reset, &handles, 0).unwrap();
    assert_eq!(bench.wait(&file, &handles, 0, 0), Err(Errno::INVAL));
}

#[test]
fn a_shared_syncobj_is_one_with_two_handles() {
    let mut bench = Bench::new();
    let (mine, other) = (bench.file(), bench.file());
    let handle = bench.syncobj(&mine, 0);
    let fd = bench.handle_to_fd(&mine, handle, 0, 0).unwrap();
    let back = bench.fd_to_handle(&mine, from_fd(fd, 0, 0)).unwrap();
    assert_ne!(back, handle);
    let there = bench.fd_to_handle(&other, from_fd(fd, 0, 0)).unwrap();
    bench.array(&other, drm::IOCTL_SYNCOBJ_SIGNAL, &[there], 0).unwrap();
    assert_eq!(bench.wait(&mine, &[handle, back], ALL, 0).map(drop), Ok(()));
    assert_eq!((bench.live("syncobjs"), bench.live("syncobj files")), (1, 1));
    bench.client.close(fd);
    drop((mine, other));
    assert_eq!(bench.census.survivors(), []);
}

#[test]
fn conversions_check_flags_padding_points_and_descriptors() {
    let mut bench = Bench::new();
    let file = bench.file();
    let handle = bench.syncobj(&file, 0);
    assert_eq!(bench.handle_to_fd(&file, 0xdead_beef, 0, 0), Err(Errno::INVAL));
    assert_eq!(bench.handle_to_fd(&file, handle, 4, 0), Err(Errno::INVAL));
    assert_eq!(bench.handle_to_fd(&file, handle, drm::SYNCOBJ_FD_TIMELINE, 1), Err(Errno::INVAL));
    assert_eq!(bench.handle_to_fd(&file, handle, drm::SYNCOBJ_FD_SYNC_FILE, 0), Err(Errno::INVAL), "empty");
    assert_eq!(bench.fd_to_handle(&file, from_fd(-1, 0, 0)), Err(Errno::INVAL));
    assert_eq!(bench.fd_to_handle(&file, from_fd(-1, drm::SYNCOBJ_FD_SYNC_FILE, handle)), Err(Errno::INVAL));
    let padded = drm::SyncobjHandle { pad: 1, ..from_fd(-1, 0, 0) };
    assert_eq!(bench.fd_to_handle(&file, padded), Err(Errno::INVAL));
    let stranger = bench.client.adopt(std::fs::File::open("/dev/null").unwrap().into());
    assert_eq!(bench.fd_to_handle(&file, from_fd(stranger, 0, 0)), Err(Errno::INVAL));
}

#[test]
fn a_sync_file_carries_the_fence_that_was_there_then() {
    let mut bench = Bench::new();
    let file = bench.file();
    let (source, target) = (bench.syncobj(&file, 0), bench.syncobj(&file, 0));
    let signaller = bench.attach(&file, source, 0);
    let fd = bench.handle_to_fd(&file, source, drm::SYNCOBJ_FD_SYNC_FILE, 0).unwrap();
    bench.array(&file, drm::IOCTL_SYNCOBJ_RESET, &[source], 0).unwrap();
    bench.fd_to_handle(&file, from_fd(fd, drm::SYNCOBJ_FD_SYNC_FILE, target)).unwrap();
    assert_eq!(bench.wait(&file, &[target], 0, 0), Err(Errno::TIME));
    signaller.signal();
    assert_eq!(bench.wait(&file, &[target], 0, 0), Ok(0));

    let as_point = drm::SyncobjHandle {
        point: 7,
        ..from_fd(fd, drm::SYNCOBJ_FD_SYNC_FILE | drm::SYNCOBJ_FD_TIMELINE, source)
    };
    bench.fd_to_handle(&file, as_point).unwrap();
    assert_eq!(bench.query(&file, source, 0), 7);
}

#[test]
fn a_point_leaves_as_a_sync_file_and_comes_in_as_one() {
    let mut bench = Bench::new();
    let file = bench.file();
    let (timeline, binary) = (bench.syncobj(&file, 0), bench.syncobj(&file, 0));
    let (first, _second) = (bench.attach(&file, timeline, 1), bench.attach(&file, timeline, 2));
    let both = drm::SYNCOBJ_FD_SYNC_FILE | drm::SYNCOBJ_FD_TIMELINE;
    assert_eq!(bench.handle_to_fd(&file, timeline, both, 3), Err(Errno::INVAL), "not submitted");
    assert_eq!(bench.handle_to_fd(&file, 0, both, 1), Err(Errno::NOENT));
    let point = bench.handle_to_fd(&file, timeline, both, 1).unwrap();
    let head = bench.handle_to_fd(&file, timeline, drm::SYNCOBJ_FD_SYNC_FILE, 1).unwrap();
    first.signal();
    for (fd, done) in [(point, true), (head, false)] {
        bench.fd_to_handle(&file, from_fd(fd, drm::SYNCOBJ_FD_SYNC_FILE, binary)).unwrap();
        assert_eq!(
            bench.wait(&file, &[binary], 0, 0).is_ok(),
            done,
            "without the flag, the point doesn't count"
        );
    }
    // Behind what is there, whatever its number.
    let target = bench.syncobj(&file, 0);
    for point in [5, 3] {
        bench.fd_to_handle(&file, drm::SyncobjHandle { point, ..from_fd(head, both, target) }).unwrap();
    }
    assert_eq!(bench.query(&file, target, drm::SYNCOBJ_QUERY_LAST_SUBMITTED), 5);
    assert_eq!(bench.wait_points(&file, target, 3, 0), Err(Errno::TIME));
    assert_eq!(bench.fd_to_handle(&file, from_fd(head, both, 0)), Err(Errno::NOENT));
}

#[test]
fn a_timeline_tells_signalled_from_submitted() {
    let mut bench = Bench::new();
    let file = bench.file();
    let handle = bench.syncobj(&file, 0);
    let last = drm::SYNCOBJ_QUERY_LAST_SUBMITTED;
    assert_eq!((bench.query(&file, handle, 0), bench.query(&file, handle, last)), (0, 0));
    let signaller = bench.attach(&file, handle, 3);
    assert_eq!((bench.query(&file, handle, 0), bench.query(&file, handle, last)), (0, 3));
    assert_eq!(bench.wait_points(&file, handle, 3, 0), Err(Errno::TIME));
    assert_eq!(bench.wait_points(&file, handle, 3, AVAILABLE), Ok(0));
    assert_eq!(bench.wait_points(&file, handle, 4, 0), Err(Errno::INVAL));
    assert_eq!(bench.wait_points(&file, handle, 4, AVAILABLE), Err(Errno::TIME));
    signaller.signal();
    assert_eq!((bench.query(&file, handle, 0), bench.query(&file, handle, last)), (3, 3));
    assert_eq!(bench.wait_points(&file, handle, 2, ALL | FOR_SUBMIT | AVAILABLE).map(drop), Ok(()));
}

#[test]
fn transfer_copies_between_binary_and_timeline() {
    let mut bench = Bench::new();
    let file = bench.file();
    let (binary, timeline) = (bench.syncobj(&file, 1), bench.syncobj(&file, 0));
    let both = drm::SyncobjTransfer {
        src_handle: binary,
        dst_handle: timeline,
        src_point: 0,
        dst_point: 5,
        flags: 0,
        pad: 0,
    };
    let mut transfer = |args| bench.run(&file, drm::IOCTL_SYNCOBJ_TRANSFER, args).map(drop);
    assert_eq!(transfer(drm::SyncobjTransfer { pad: 1, ..both }), Err(Errno::INVAL));
    assert_eq!(transfer(drm::SyncobjTransfer { flags: ALL, ..both }), Err(Errno::INVAL));
    assert_eq!(transfer(drm::SyncobjTransfer { src_handle: 0, ..both }), Err(Errno::NOENT));
    assert_eq!(transfer(drm::SyncobjTransfer { dst_handle: 0, ..both }), Err(Errno::NOENT));
    assert_eq!(transfer(drm::SyncobjTransfer { src_handle: timeline, ..both }), Err(Errno::INVAL), "empty");
    assert_eq!(transfer(both), Ok(()));
    assert_eq!(bench.query(&file, timeline, 0), 5);
}

#[test]
fn transfer_waits_if_asked_for_what_is_not_there_until_the_callers_interrupt() {
    let mut bench = Bench::new();
    let file = bench.file();
    let (source, target) = (bench.syncobj(&file, 0), bench.syncobj(&file, 0));
    let args = drm::SyncobjTransfer {
        src_handle: source,
        dst_handle: target,
        src_point: 1,
        dst_point: 0,
        flags: FOR_SUBMIT,
        pad: 0,
    };
    let transfer = |bench: &mut Bench, args| bench.run(&file, drm::IOCTL_SYNCOBJ_TRANSFER, args).map(drop);
    let submitting = file.0.syncobjs().get(source).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| submitting.signal_point(1));
        assert_eq!(transfer(&mut bench, args), Ok(()));
    });
    bench.client.call(0, |call| call.interrupt().raise());
    let next = drm::SyncobjTransfer { src_point: 2, ..args };
    assert_eq!(transfer(&mut bench, next), Err(Errno::INTR));
    assert_eq!(bench.wait(&file, &[target], 0, 0), Ok(0), "as it was");
}

#[test]
fn a_wait_tells_the_fences_by_when_it_wants_them() {
    let mut bench = Bench::new();
    let file = bench.file();
    let handle = bench.syncobj(&file, 0);
    let signaller = bench.attach(&file, handle, 0);
    let hint = Arc::new(AtomicU64::new(0));
    let seen = hint.clone();
    signaller.on_deadline(move |time| seen.store(time.as_nanos(), Ordering::SeqCst));
    let args = drm::SyncobjWait {
        handles: std::ptr::from_ref(&handle) as u64,
        count_handles: 1,
        deadline_nsec: 9,
        ..bytemuck::Zeroable::zeroed()
    };
    let mut wait =
        |flags| bench.run(&file, drm::IOCTL_SYNCOBJ_WAIT, drm::SyncobjWait { flags, ..args }).err();
    assert_eq!(wait(0), Some(Errno::TIME));
    assert_eq!(hint.load(Ordering::SeqCst), 0, "the field counts with its flag alone");
    assert_eq!(wait(drm::SYNCOBJ_WAIT_DEADLINE), Some(Errno::TIME));
    assert_eq!(hint.load(Ordering::SeqCst), 9);
}

#[test]
fn an_eventfd_is_signalled_when_the_point_is_there_or_done() {
    let mut bench = Bench::new();
    let file = bench.file();
    let handle = bench.syncobj(&file, 0);
    let make = || eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let (done, there) = (bench.client.adopt(make()), bench.client.adopt(make()));
    let ask = |fd, flags| drm::SyncobjEventfd { handle, flags, point: 0, fd, pad: 0 };
    let count = |bench: &Bench, fd| {
        let mut value = [0; 8];
        rustix::io::read(bench.client.descriptor(fd), &mut value).map(|_| u64::from_ne_bytes(value))
    };
    bench.run(&file, drm::IOCTL_SYNCOBJ_EVENTFD, ask(done, 0)).unwrap();
    bench.run(&file, drm::IOCTL_SYNCOBJ_EVENTFD, ask(there, AVAILABLE)).unwrap();
    assert_eq!(count(&bench, there), Err(Errno::AGAIN));
    let signaller = bench.attach(&file, handle, 0);
    assert_eq!(count(&bench, there), Ok(1));
    assert_eq!(count(&bench, done), Err(Errno::AGAIN));
    signaller.signal();
    assert_eq!(count(&bench, done), Ok(1));

    let null = bench.client.adopt(std::fs::File::open("/dev/null").unwrap().into());
    let mut refused = |args| bench.run(&file, drm::IOCTL_SYNCOBJ_EVENTFD, args).err();
    assert_eq!(refused(ask(null, 0)), Some(Errno::INVAL));
    assert_eq!(refused(ask(done, ALL)), Some(Errno::INVAL));
    assert_eq!(refused(drm::SyncobjEventfd { pad: 1, ..ask(done, 0) }), Some(Errno::INVAL));
    assert_eq!(refused(drm::SyncobjEventfd { handle: 0, ..ask(done, 0) }), Some(Errno::NOENT));
    assert_eq!(refused(ask(-1, 0)), Some(Errno::BADF));
}

#[test]
fn a_full_eventfd_that_blocks_its_writers_holds_no_fence_up() {
    let mut bench = Bench::new();
    let file = bench.file();
    let (hostile, harmless) = (bench.syncobj(&file, 0), bench.syncobj(&file, 0));
    let blocking = eventfd(0, EventfdFlags::empty()).unwrap();
    rustix::io::write(&blocking, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let fd = bench.client.adopt(blocking);
    let timeline = Timeline::new("work");
    let [(first, first_signaller), (second, second_signaller)] = [timeline.next(), timeline.next()];
    for (handle, fence) in [(hostile, &first), (harmless, &second)] {
        file.0.syncobjs().get(handle).unwrap().replace_fence(Some(fence.clone()));
    }
    // For the fence to come and for it to signal.
    for flags in [AVAILABLE, 0] {
        let ask = drm::SyncobjEventfd { handle: hostile, flags, point: 0, fd, pad: 0 };
        bench.run(&file, drm::IOCTL_SYNCOBJ_EVENTFD, ask).unwrap();
    }
    first_signaller.signal();
    second_signaller.signal();
    assert!(bench.wait(&file, &[hostile, harmless], ALL, 0).is_ok());
    let mut count = [0; 8];
    rustix::io::read(bench.client.descriptor(fd), &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), u64::MAX, "it was signalled, and not looked at before");
}

#[test]
fn a_wait_ends_with_the_callers_interrupt() {
    let mut bench = Bench::new();
    let file = bench.file();
    let handle = bench.syncobj(&file, 0);
    let _signaller = bench.attach(&file, handle, 0);
    bench.client.call(0, |call| call.interrupt().raise());
    assert_eq!(bench.wait(&file, &[handle], 0, i64::MAX), Err(Errno::INTR));
    assert_eq!(bench.wait(&file, &[handle], FOR_SUBMIT, 0), Err(Errno::TIME), "a poll doesn't wait");
}
