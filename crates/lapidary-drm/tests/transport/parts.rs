//! What the client programs do. A part that panics ends the program badly.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr;

use crate::support::{command, ioctl};

pub(crate) const NODE: &str = "/dev/dri/renderD128";

pub(crate) fn play(part: &str) {
    match part {
        "increment" => increment(),
        "errors" => errors(),
        "memory" => memory(),
        "largest" => largest(),
        "threads" => threads(),
        "map" => map(),
        "sync" => sync(),
        "dma_buf" => dma_buf(),
        "poll_dma_buf" => poll_dma_buf(),
        "walk" => walk(),
        "copies" => copies(),
        "fork" => fork(),
        "exec" => exec(),
        "exec_child" => exec_child(),
        "pass" => pass(),
        "hold" => hold(),
        "wait" => wait(),
        "stubborn" => stubborn(),
        "signal" => signal(command::WAIT, Err(libc::EINTR)),
        "signal_stubborn" => signal(command::STUBBORN, Ok(7)),
        "alarms" => alarms(),
        "in_handler" => in_handler(),
        "close_all" => close_all(),
        "same_file" => same_file(),
        "foreign" => foreign(),
        "proc" => proc(),
        "node_stat" => node_stat(),
        "file_node" => file_node(),
        "map_after_close" => map_after_close(),
        "close_is_prompt" => close_is_prompt(),
        "send_to_itself" => send_to_itself(),
        other => panic!("no part {other}"),
    }
}

fn open() -> File {
    File::options().read(true).write(true).open(NODE).expect("the node opens")
}

fn word(node: &impl std::os::fd::AsFd, number: u32) -> u64 {
    let mut word = 0_u64;
    ioctl(node, number, (&raw mut word).cast()).expect("the command works");
    word
}

fn errno(result: std::io::Result<u32>) -> i32 {
    result.expect_err("the command fails").raw_os_error().expect("an errno")
}

/// Tells the test that something is reached.
fn say(text: &str) {
    println!("{text}");
    std::io::stdout().flush().unwrap();
}

/// Waits until the test closes its end.
fn wait_for_test() {
    let _ = std::io::stdin().read(&mut [0]);
}

fn increment() {
    let node = open();
    let mut on_stack = [3_u8; 64];
    let mut on_heap = vec![250_u8; 64];
    for round in 1..=100_u8 {
        ioctl(&node, command::INCREMENT, on_stack.as_mut_ptr().cast()).unwrap();
        ioctl(&node, command::INCREMENT, on_heap.as_mut_ptr().cast()).unwrap();
        assert_eq!(on_stack, [3 + round; 64]);
        assert_eq!(on_heap, [250_u8.wrapping_add(round); 64]);
    }
}

fn errors() {
    let node = open();
    let unknown = command::NOTHING | 0xff;
    assert_eq!(errno(ioctl(&node, unknown, ptr::null_mut())), libc::ENOTTY);
    for bad in [0_usize, 8, usize::MAX - 100, 0xffff_8000_0000_0000] {
        assert_eq!(errno(ioctl(&node, command::INCREMENT, bad as *mut _)), libc::EFAULT);
    }
    let read_only = map_anonymous(libc::PROT_READ);
    assert_eq!(errno(ioctl(&node, command::INCREMENT, read_only)), libc::EFAULT);
    // A structure that runs over the end of its memory.
    let edge = (map_anonymous(libc::PROT_READ | libc::PROT_WRITE) as usize + 4096 - 32) as *mut _;
    assert_eq!(errno(ioctl(&node, command::INCREMENT, edge)), libc::EFAULT);
    let missing = std::fs::metadata("/dev/dri/renderD129").unwrap_err();
    assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
}

fn map_anonymous(prot: i32) -> *mut std::ffi::c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, with one of no access behind it.
    unsafe {
        let two = libc::mmap(ptr::null_mut(), 8192, libc::PROT_NONE, flags, -1, 0);
        libc::mmap(two, 4096, prot, flags | libc::MAP_FIXED, -1, 0)
    }
}

fn memory() {
    let node = open();
    let bytes: Vec<u8> = (0..200_000).map(|i| i as u8).collect();
    let wanted: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
    let mut words = [bytes.as_ptr() as u64, bytes.len() as u64, 0];
    ioctl(&node, command::SUM, words.as_mut_ptr().cast()).unwrap();
    assert_eq!(words[2], wanted);
    let mut wild = [8, u64::MAX >> 1, 0];
    assert_eq!(errno(ioctl(&node, command::SUM, wild.as_mut_ptr().cast())), libc::EFAULT);
    let mut target = [0_u8; 8];
    let mut at = target.as_mut_ptr() as u64;
    ioctl(&node, command::FILL, (&raw mut at).cast()).unwrap();
    assert_eq!(std::hint::black_box(&target), &[0xab; 8]);
    let mut at = 8_u64;
    assert_eq!(errno(ioctl(&node, command::FILL, (&raw mut at).cast())), libc::EFAULT);
}

fn largest() {
    let node = open();
    let mut bytes = vec![0_u8; 0x3fff];
    bytes[0] = 77;
    ioctl(&node, command::LARGEST, bytes.as_mut_ptr().cast()).unwrap();
    assert_eq!((bytes[0x3ffe], bytes[0x3ffd]), (77, 0));
}

fn threads() {
    let node = open();
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for start in 0..16_u8 {
                let node = &node;
                scope.spawn(move || {
                    let mut bytes = [start; 64];
                    for round in 1..=200_u8 {
                        ioctl(node, command::INCREMENT, bytes.as_mut_ptr().cast()).unwrap();
                        assert_eq!(bytes, [start.wrapping_add(round); 64]);
                    }
                });
            }
        });
    }
}

fn map_at(node: &File, at: *mut std::ffi::c_void, len: usize, flags: i32, offset: i64) -> *mut u8 {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, or one over memory that the caller gave up.
    unsafe { libc::mmap(at, len, prot, flags, node.as_raw_fd(), offset).cast() }
}

fn map() {
    let node = open();
    let first = map_at(&node, ptr::null_mut(), 3 * 4096, libc::MAP_SHARED, 2 * 4096);
    assert_ne!(first.cast(), libc::MAP_FAILED);
    // SAFETY: mapped above.
    unsafe {
        assert_eq!([*first, *first.add(4096), *first.add(8192)], [2, 3, 4]);
        *first.add(100) = 99;
    }
    let second = map_at(&node, ptr::null_mut(), 4096, libc::MAP_SHARED, 2 * 4096);
    // SAFETY: mapped above.
    assert_eq!(unsafe { *second.add(100) }, 99);
    // Part of a mapping replaced in place.
    let middle = first.wrapping_add(4096);
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    assert_eq!(map_at(&node, middle.cast(), 4096, flags, 9 * 4096), middle);
    // SAFETY: mapped above.
    unsafe { assert_eq!([*first, *middle, *first.add(8192)], [2, 9, 4]) };
    let refused = map_at(&node, ptr::null_mut(), 4096, libc::MAP_SHARED, 16 * 4096);
    assert_eq!(refused.cast(), libc::MAP_FAILED);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EINVAL));
}

/// A mapping outlives its descriptor.
fn map_after_close() {
    let node = open();
    let bytes = map_at(&node, ptr::null_mut(), 4096, libc::MAP_SHARED, 4096);
    drop(node);
    // SAFETY: mapped above.
    assert_eq!(unsafe { *bytes }, 1);
}

fn is_readable(fd: i32) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & libc::POLLIN != 0 }
}

fn sync() {
    let node = open();
    let fd = word(&node, command::SYNC) as i32;
    assert!(!is_readable(fd));
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    assert_eq!(link.to_str(), Some("anon_inode:sync_file"));
    ioctl(&node, command::SIGNAL, ptr::null_mut()).unwrap();
    assert!(is_readable(fd) && is_readable(fd));
}

fn dma_buf() {
    let node = open();
    let (first, second) = (word(&node, command::EXPORT) as i32, word(&node, command::EXPORT) as i32);
    assert_ne!(first, second);
    let number = |fd: i32| {
        let mut words = [fd as u64, 0];
        ioctl(&node, command::IMPORT, words.as_mut_ptr().cast()).unwrap();
        words[1]
    };
    assert_eq!(number(first), number(second));
    let mut not_one = [node.as_raw_fd() as u64, 0];
    assert_eq!(errno(ioctl(&node, command::IMPORT, not_one.as_mut_ptr().cast())), libc::EINVAL);
    let mut none = [999, 0];
    assert_eq!(errno(ioctl(&node, command::IMPORT, none.as_mut_ptr().cast())), libc::EBADF);
    // SAFETY: seeking touches no memory; the descriptors are this function's.
    unsafe {
        assert_eq!(libc::lseek(first, 0, libc::SEEK_END), 4096);
        assert_eq!(libc::ftruncate(first, 0), -1);
        let second = OwnedFd::from_raw_fd(second);
        // A command on the buffer's own descriptor.
        let of_buffer = 2 << 30 | 8 << 16 | (b'b' as u32) << 8 | 1;
        let mut word = 0_u64;
        ioctl(&second, of_buffer, (&raw mut word).cast()).unwrap();
        assert_eq!(word, number(first));
    }
    say(&number(first).to_string());
    // SAFETY: the descriptor is this function's; the mapping keeps the buffer after it is closed.
    let bytes = unsafe {
        let flags = libc::MAP_SHARED;
        let bytes = libc::mmap(ptr::null_mut(), 4096, libc::PROT_READ, flags, first, 0);
        libc::close(first);
        bytes
    };
    wait_for_test();
    // SAFETY: mapped above.
    unsafe { libc::munmap(bytes, 4096) };
    say("unmapped");
    wait_for_test();
    std::mem::forget(node);
}

/// Copies of a descriptor name the same file, and closing some of them closes nothing.
fn copies() {
    let node = open();
    let number = word(&node, command::NUMBER);
    let copy = node.try_clone().unwrap();
    // SAFETY: the number is unused.
    let far = unsafe {
        assert_eq!(libc::dup2(node.as_raw_fd(), 77), 77);
        OwnedFd::from_raw_fd(77)
    };
    drop(node);
    assert_eq!(word(&copy, command::NUMBER), number);
    drop(copy);
    assert_eq!(word(&far, command::NUMBER), number);
    // The same number for another file: nothing is remembered by number.
    let other = open();
    // SAFETY: both are open.
    assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), far.as_raw_fd()) }, far.as_raw_fd());
    assert_ne!(word(&far, command::NUMBER), number);
    say("replaced");
    wait_for_test();
}

fn fork() {
    let node = open();
    let number = word(&node, command::NUMBER);
    for _ in 0..3 {
        // SAFETY: the child uses nothing that another thread may have locked.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let same = word(&node, command::NUMBER) == number && word(&open(), command::NUMBER) > number;
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(!same)) };
        }
        for _ in 0..100 {
            assert_eq!(word(&node, command::NUMBER), number);
        }
        let mut status = 0;
        // SAFETY: the status is valid.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(status, 0);
    }
    assert_eq!(word(&node, command::NUMBER), number);
}

/// A program that is started with the descriptor open uses it.
fn exec() {
    let node = open();
    let number = word(&node, command::NUMBER);
    // SAFETY: the descriptor is open.
    unsafe { libc::fcntl(node.as_raw_fd(), libc::F_SETFD, 0) };
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "client"]).env("LAPIDARY_TEST_PART", "exec_child");
    again.env("LAPIDARY_TEST_FD", format!("{} {number}", node.as_raw_fd()));
    assert!(again.status().unwrap().success());
    assert_eq!(word(&node, command::NUMBER), number);
}

fn exec_child() {
    let inherited = std::env::var("LAPIDARY_TEST_FD").unwrap();
    let (fd, number) = inherited.split_once(' ').unwrap();
    // SAFETY: inherited for this.
    let node = unsafe { OwnedFd::from_raw_fd(fd.parse().unwrap()) };
    assert_eq!(word(&node, command::NUMBER).to_string(), number);
}

/// A descriptor goes to an unrelated process, and stays usable there when this one has closed it.
fn pass() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // SAFETY: the child uses nothing that another thread may have locked.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(ours);
        let node = receive(&theirs);
        let mut number = [0; 8];
        (&theirs).read_exact(&mut number).unwrap();
        let same = word(&node, command::NUMBER) == u64::from_ne_bytes(number);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(!same)) };
    }
    drop(theirs);
    let node = open();
    let number = word(&node, command::NUMBER);
    send(&ours, &node);
    drop(node);
    (&ours).write_all(&number.to_ne_bytes()).unwrap();
    let mut status = 0;
    // SAFETY: the status is valid.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0);
}

fn send(socket: &UnixStream, fd: &File) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::os::fd::AsFd;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(socket, &[std::io::IoSlice::new(&[0])], &mut control, SendFlags::empty()).unwrap();
}

fn receive(socket: &UnixStream) -> OwnedFd {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket, &mut [std::io::IoSliceMut::new(&mut byte)], &mut control, RecvFlags::empty()).unwrap();
    let Some(RecvAncillaryMessage::ScmRights(mut fds)) = control.drain().next() else {
        panic!("no descriptor")
    };
    fds.next().unwrap()
}

/// Holds a file until the test lets go.
fn hold() {
    let node = open();
    say(&word(&node, command::NUMBER).to_string());
    wait_for_test();
}

fn wait() {
    let node = open();
    let mut argument = 0_u64;
    let _ = ioctl(&node, command::WAIT, (&raw mut argument).cast());
}

fn stubborn() {
    let node = open();
    let mut argument = 0_u64;
    let _ = ioctl(&node, command::STUBBORN, (&raw mut argument).cast());
}

extern "C" fn ignore(_: i32) {}

extern "C" fn call_in_handler(_: i32) {
    let node = open();
    if word(&node, command::NUMBER) == 0 {
        // SAFETY: ends the program.
        unsafe { libc::_exit(9) };
    }
}

fn handle(signal: i32, handler: extern "C" fn(i32)) {
    // SAFETY: zero bytes are a value; the handler is a function.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        assert_eq!(libc::sigaction(signal, &raw const action, ptr::null_mut()), 0);
    }
}

/// Waits in the server until the test sends a signal.
fn signal(number: u32, expected: Result<u32, i32>) {
    handle(libc::SIGUSR1, ignore);
    let node = open();
    // The signal must go to this thread, which is not the program's first.
    // SAFETY: touches no memory.
    say(&unsafe { libc::syscall(libc::SYS_gettid) }.to_string());
    let mut argument = 0_u64;
    let result = ioctl(&node, number, (&raw mut argument).cast());
    assert_eq!(result.map_err(|error| error.raw_os_error().unwrap()), expected);
    // The channel still works.
    assert_ne!(word(&node, command::NUMBER), 0);
}

/// Under a storm of signals waits end with `EINTR`, other calls as if nothing was.
fn alarms() {
    handle(libc::SIGALRM, ignore);
    let node = open();
    let every = libc::timeval { tv_sec: 0, tv_usec: 300 };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: the timer is valid. The signal may come on any thread: this program's others are asleep.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, libc::SIGALRM);
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut());
    }
    let mut bytes = [0_u8; 64];
    for round in 1..=3000_u32 {
        ioctl(&node, command::INCREMENT, bytes.as_mut_ptr().cast()).unwrap();
        assert_eq!(bytes, [round as u8; 64]);
    }
}

/// A handler makes calls of its own in the middle of a call.
fn in_handler() {
    handle(libc::SIGUSR1, call_in_handler);
    let node = open();
    // SAFETY: touches no memory.
    say(&unsafe { libc::syscall(libc::SYS_gettid) }.to_string());
    let mut argument = 0_u64;
    let result = ioctl(&node, command::WAIT, (&raw mut argument).cast());
    assert_eq!(errno(result), libc::EINTR);
    assert_ne!(word(&node, command::NUMBER), 0);
}

/// A program that closes all descriptors can use the device afterwards.
fn close_all() {
    let node = open();
    let number = word(&node, command::NUMBER);
    drop(node);
    for fd in 3..1024 {
        // SAFETY: nobody here has any.
        unsafe { libc::close(fd) };
    }
    assert!(word(&open(), command::NUMBER) > number);
    // SAFETY: as above.
    unsafe { libc::close_range(3, u32::MAX, 0) };
    assert!(word(&open(), command::NUMBER) > number);
}

/// Opening a descriptor's link in `/proc` makes a new file; the link's text is the node's path.
fn same_file() {
    let node = open();
    let link = format!("/proc/self/fd/{}", node.as_raw_fd());
    assert_eq!(std::fs::read_link(&link).unwrap().to_str(), Some(NODE));
    let again = File::options().read(true).write(true).open(&link).unwrap();
    assert_ne!(word(&again, command::NUMBER), word(&node, command::NUMBER));
    let folder = File::open("/dev/dri").unwrap();
    // SAFETY: the name is a C string.
    let relative = unsafe {
        OwnedFd::from_raw_fd(libc::openat(folder.as_raw_fd(), c"renderD128".as_ptr(), libc::O_RDWR))
    };
    assert_ne!(word(&relative, command::NUMBER), 0);
    let by_path = File::open("/dev/dri/by-path/pci-0000:03:00.0-render").unwrap();
    assert_ne!(word(&by_path, command::NUMBER), 0);
}

/// Other files' ioctls are the kernel's.
fn foreign() {
    let (socket, _other) = UnixStream::pair().unwrap();
    assert_eq!(errno(ioctl(&socket, command::NUMBER, ptr::null_mut())), libc::ENOTTY);
    let memfd = rustix::fs::memfd_create("other", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    assert_eq!(errno(ioctl(&memfd, command::NUMBER, ptr::null_mut())), libc::ENOTTY);
    assert_eq!(
        errno(ioctl(File::open("/dev/null").unwrap(), command::NUMBER, ptr::null_mut())),
        libc::ENOTTY
    );
}

fn proc() {
    let node = open();
    let number = word(&node, command::NUMBER);
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", node.as_raw_fd())).unwrap();
    assert!(text.contains(&format!("drm-client-id:\t{number}\n")), "{text}");
    assert!(text.starts_with("pos:\t0\n"), "{text}");
}

fn node_stat() {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let by_path = std::fs::metadata(NODE).unwrap();
    let by_fd = open().metadata().unwrap();
    assert!(by_path.file_type().is_char_device() && by_fd.file_type().is_char_device());
    assert_eq!(by_path.rdev(), libc::makedev(226, 128));
    let same = |m: &std::fs::Metadata| (m.rdev(), m.ino(), m.dev(), m.mode());
    assert_eq!(same(&by_path), same(&by_fd));
    let card = std::fs::metadata("/dev/dri/card0").unwrap();
    assert_eq!((card.rdev(), card.dev()), (libc::makedev(226, 0), by_path.dev()));
    assert_ne!(card.ino(), by_path.ino());
}

/// A node that shows as a regular file opens at the server like any other.
fn file_node() {
    let path = "/sys/kernel/debug/sync/sw_sync";
    let node = File::options().read(true).write(true).open(path).unwrap();
    assert!(node.metadata().unwrap().is_file());
    let number = word(&node, command::NUMBER);
    let link = format!("/proc/self/fd/{}", node.as_raw_fd());
    assert_eq!(std::fs::read_link(&link).unwrap().to_str(), Some(path));
    assert_ne!(word(&File::open(&link).unwrap(), command::NUMBER), number);
    let folder = File::open("/sys/kernel/debug/sync").unwrap();
    // SAFETY: the name is a C string.
    let relative =
        unsafe { OwnedFd::from_raw_fd(libc::openat(folder.as_raw_fd(), c"sw_sync".as_ptr(), libc::O_RDWR)) };
    assert_ne!(word(&relative, command::NUMBER), number);
}

/// When `close` of the last copy returns, the file is released.
fn close_is_prompt() {
    for _ in 0..50 {
        drop(open());
    }
    say("closed");
    wait_for_test();
}

/// A dma-buf is readable when its device says so, and a poll wakes up then.
/// Puts a descriptor of a file into that file's own queue, where it would keep itself open.
fn send_to_itself() {
    let node = open();
    let itself = UnixStream::from(OwnedFd::from(node.try_clone().unwrap()));
    let mut byte = [0_u8];
    let mut buffer = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = [0_u64; 4];
    // SAFETY: zero bytes are a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (&raw mut buffer, 1);
    (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), 24);
    // SAFETY: the control buffer is large enough for one descriptor, and the header points to what is alive here.
    let sent = unsafe {
        let rights = libc::CMSG_FIRSTHDR(&raw const header);
        ((*rights).cmsg_level, (*rights).cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        (*rights).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(rights).cast::<i32>().write(node.as_raw_fd());
        libc::sendmsg(itself.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL)
    };
    assert_eq!(sent, -1, "the server reads nothing from a file's descriptor");
    assert!(!is_readable(node.as_raw_fd()), "that it reads nothing is no event");
    assert_eq!(word(&node, command::NUMBER), word(&itself, command::NUMBER));
}

fn poll_dma_buf() {
    let node = open();
    let buffer = word(&node, command::EXPORT) as i32;
    assert!(!is_readable(buffer));
    let other = word(&node, command::SYNC) as i32;
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            let mut polls = [entry(-1), entry(buffer), entry(0)];
            // SAFETY: the entries are valid.
            let count = unsafe { libc::poll(polls.as_mut_ptr(), 2, -1) };
            (count, polls[1].revents)
        });
        say("polling");
        wait_for_test();
        ioctl(&node, command::SIGNAL, ptr::null_mut()).unwrap();
        assert_eq!(waiting.join().unwrap(), (1, libc::POLLIN));
    });
    assert!(is_readable(buffer) && is_readable(other));
}

type OnFile = extern "C" fn(*const i8, *const libc::stat, i32, *mut [i32; 2]) -> i32;

unsafe extern "C" {
    fn nftw(path: *const i8, on_file: OnFile, depth: i32, flags: i32) -> i32;
}

static SEEN: std::sync::Mutex<Vec<(String, String)>> = std::sync::Mutex::new(Vec::new());

extern "C" fn note(path: *const i8, _: *const libc::stat, _: i32, place: *mut [i32; 2]) -> i32 {
    // SAFETY: libc gives a C string and a valid structure.
    let (path, base) = unsafe { (std::ffi::CStr::from_ptr(path.cast()), (*place)[0]) };
    let path = path.to_str().unwrap().to_owned();
    let name = path[base as usize..].to_owned();
    SEEN.lock().unwrap().push((path, name));
    0
}

/// Walks and searches answer paths as the program knows them.
fn walk() {
    // SAFETY: the strings are C strings, the callback is a function, the result is freed by libc.
    unsafe {
        assert_eq!(nftw(c"/dev/dri".as_ptr().cast(), note, 8, 1), 0);
        let mut found: libc::glob_t = std::mem::zeroed();
        let pattern = c"/sys/class/drm/*".as_ptr();
        assert_eq!(libc::glob(pattern, 0, None, &raw mut found), 0);
        let paths: Vec<_> = (0..found.gl_pathc)
            .map(|i| std::ffi::CStr::from_ptr(*found.gl_pathv.add(i)).to_str().unwrap().to_owned())
            .collect();
        libc::globfree(&raw mut found);
        assert_eq!(paths, ["card0", "renderD128", "version"].map(|name| format!("/sys/class/drm/{name}")));
    }
    let seen = SEEN.lock().unwrap();
    for wanted in ["/dev/dri/card0", "/dev/dri/renderD128", "/dev/dri/by-path"] {
        let found = seen.iter().find(|(path, _)| path == wanted).unwrap_or_else(|| panic!("{seen:?}"));
        assert_eq!(Some(found.1.as_str()), wanted.rsplit('/').next());
    }
}
