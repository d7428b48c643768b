//! Raw system calls, `errno`, and the functions that the hooks stand in front of.

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// A kernel's signal set.
pub(crate) type SignalSet = u64;

/// Makes a system call; -1 and `errno` on failure.
///
/// # Safety
/// As the system call demands.
pub(crate) unsafe fn call(number: c_long, args: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = args;
    // SAFETY: the caller vouches for the arguments.
    unsafe { libc::syscall(number, a, b, c, d, e, f) as isize }
}

/// Makes a system call; its value or the negative errno, with `errno` left alone.
///
/// # Safety
/// As the system call demands.
pub(crate) unsafe fn quiet(number: c_long, args: [usize; 6]) -> isize {
    let kept = errno();
    // SAFETY: the caller vouches for the arguments.
    let result = unsafe { call(number, args) };
    let result = if result == -1 { -(errno() as isize) } else { result };
    set_errno(kept);
    result
}

pub(crate) fn errno() -> c_int {
    // SAFETY: the location is this thread's own and always valid.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn set_errno(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

/// Sets `errno` and returns what failing functions return.
pub(crate) fn fail(error: c_int) -> c_int {
    set_errno(error);
    -1
}

/// From "value or negative errno" to "value or -1 and `errno`".
pub(crate) fn finish(result: i64) -> i64 {
    if (-4095..0).contains(&result) {
        set_errno(-result as c_int);
        return -1;
    }
    result
}

/// Closes a descriptor of this library's own.
pub(crate) fn close(fd: c_int) {
    // SAFETY: closing touches no memory.
    unsafe { quiet(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// The bytes of a C string; `None` for null.
///
/// # Safety
/// `text` is null or a C string that lives as long as the result is used.
pub(crate) unsafe fn bytes<'a>(text: *const c_char) -> Option<&'a [u8]> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller vouches for it.
    Some(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// New zeroed memory from the kernel.
pub(crate) fn map_memory(len: usize) -> Option<ptr::NonNull<u8>> {
    let prot = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
    // SAFETY: a new mapping touches no existing memory.
    let at = unsafe { quiet(libc::SYS_mmap, [0, len, prot, flags, usize::MAX, 0]) };
    if at < 0 { None } else { ptr::NonNull::new(at as *mut u8) }
}

/// Returns memory to the kernel.
///
/// # Safety
/// Nobody uses it any more.
pub(crate) unsafe fn unmap(at: *mut u8, len: usize) {
    // SAFETY: the caller vouches for it.
    unsafe { quiet(libc::SYS_munmap, [at as usize, len, 0, 0, 0, 0]) };
}

pub(crate) fn futex_wait(word: &AtomicU32, value: u32, shared: bool) {
    let op = libc::FUTEX_WAIT | if shared { 0 } else { libc::FUTEX_PRIVATE_FLAG };
    // SAFETY: the word is valid for as long as it is borrowed.
    unsafe { quiet(libc::SYS_futex, [word.as_ptr() as usize, op as usize, value as usize, 0, 0, 0]) };
}

pub(crate) fn futex_wake(word: &AtomicU32, shared: bool) {
    let op = libc::FUTEX_WAKE | if shared { 0 } else { libc::FUTEX_PRIVATE_FLAG };
    // SAFETY: as above.
    unsafe { quiet(libc::SYS_futex, [word.as_ptr() as usize, op as usize, 1, 0, 0, 0]) };
}

/// Blocks all signals and returns what was blocked before.
pub(crate) fn block_signals() -> SignalSet {
    let all: SignalSet = !0;
    let mut before: SignalSet = 0;
    let sets = [(&raw const all) as usize, (&raw mut before) as usize];
    let how = libc::SIG_SETMASK as usize;
    // SAFETY: both sets are valid and of the size given.
    unsafe { quiet(libc::SYS_rt_sigprocmask, [how, sets[0], sets[1], size_of::<SignalSet>(), 0, 0]) };
    before
}

/// Sets which signals are blocked.
pub(crate) fn restore_signals(set: SignalSet) {
    let how = libc::SIG_SETMASK as usize;
    let set = (&raw const set) as usize;
    // SAFETY: the set is valid and of the size given.
    unsafe { quiet(libc::SYS_rt_sigprocmask, [how, set, 0, size_of::<SignalSet>(), 0, 0]) };
}

/// Nanoseconds of a clock that only goes forward.
pub(crate) fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is valid.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The processor this thread runs on.
pub(crate) fn cpu() -> u32 {
    // SAFETY: touches no memory of the program's.
    unsafe { libc::sched_getcpu() }.cast_unsigned()
}

/// A function of the libraries behind this one, looked up at its first use.
pub(crate) struct Next {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

impl Next {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self { name, found: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The function as an `F`; `None` if there is none.
    ///
    /// # Safety
    /// `F` is the type of a function pointer with that function's signature.
    pub(crate) unsafe fn get<F: Copy>(&self) -> Option<F> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        let mut found = self.found.load(Ordering::Acquire);
        if found.is_null() {
            // SAFETY: the name is a C string.
            found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
            self.found.store(found, Ordering::Release);
        }
        if found.is_null() {
            set_errno(libc::ENOSYS);
            return None;
        }
        // SAFETY: not null, of a pointer's size, and by the caller of the right type.
        Some(unsafe { std::mem::transmute_copy(&found) })
    }
}
