//! Each thread's channel.
//!
//! A thread keeps the channel it got at its first call, and gives it to the stock when it ends. A signal handler that
//! interrupts a call of its own thread finds the channel in use and takes another for its call.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::channel::Channel;
use crate::connection::{self, Connection};

struct Thread {
    channel: Cell<*mut Channel>,
    in_use: Cell<bool>,
}

thread_local! {
    // Without a destructor of Rust's, and so usable at any time in a thread's life.
    static THREAD: Thread = const { Thread { channel: Cell::new(ptr::null_mut()), in_use: Cell::new(false) } };
}

/// The key whose destructor tells of a thread's end, plus one; 0 before it is made.
static KEY: AtomicU32 = AtomicU32::new(0);

/// Makes calls with a channel that nobody else uses meanwhile; `None` if there is no server.
pub(crate) fn with_channel<R>(work: impl FnOnce(&mut Channel) -> R) -> Option<R> {
    let page = connection::get()?;
    THREAD.with(|thread| {
        if thread.in_use.replace(true) {
            return with_another(page, work);
        }
        let result = thread.own_channel(page).map(|mut channel| {
            // SAFETY: it is this thread's, and not in use.
            work(unsafe { channel.as_mut() })
        });
        thread.in_use.set(false);
        result
    })
}

fn with_another<R>(page: &Connection, work: impl FnOnce(&mut Channel) -> R) -> Option<R> {
    let mut channel = page.channel()?;
    // SAFETY: it was just taken, and is given back below.
    let result = work(unsafe { channel.as_mut() });
    give_back(page, channel);
    Some(result)
}

fn give_back(page: &Connection, channel: NonNull<Channel>) {
    // SAFETY: the caller had it for itself.
    let current = unsafe { channel.as_ref() }.generation() == page.generation();
    // One of another generation is a forked parent's, or a lost connection's: its page may not be there.
    if current && !page.put_back(channel) {
        // SAFETY: as above.
        unsafe { Channel::destroy(channel) };
    }
}

impl Thread {
    fn own_channel(&self, page: &Connection) -> Option<NonNull<Channel>> {
        if let Some(channel) = NonNull::new(self.channel.get()) {
            // SAFETY: the private part of a channel stays mapped while a thread has it, in children, too.
            let generation = unsafe { channel.as_ref() }.generation();
            if generation == page.generation() {
                return Some(channel);
            }
        }
        let channel = page.channel()?;
        self.channel.set(channel.as_ptr());
        if let Some(key) = end_key() {
            // SAFETY: the key exists.
            unsafe { libc::pthread_setspecific(key, channel.as_ptr().cast()) };
        }
        Some(channel)
    }
}

fn end_key() -> Option<libc::pthread_key_t> {
    if let Some(key) = KEY.load(Ordering::Acquire).checked_sub(1) {
        return Some(key);
    }
    let mut key: libc::pthread_key_t = 0;
    // SAFETY: the place is valid, the destructor is a function of this library, which is never unloaded.
    if unsafe { libc::pthread_key_create(&raw mut key, Some(thread_ends)) } != 0 {
        return None;
    }
    match KEY.compare_exchange(0, key + 1, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(key),
        Err(first) => {
            // SAFETY: nobody else knows this key.
            unsafe { libc::pthread_key_delete(key) };
            Some(first - 1)
        }
    }
}

unsafe extern "C" fn thread_ends(channel: *mut c_void) {
    THREAD.with(|thread| thread.channel.set(ptr::null_mut()));
    let (Some(page), Some(channel)) = (connection::connected(), NonNull::new(channel.cast::<Channel>()))
    else {
        return;
    };
    give_back(page, channel);
}
