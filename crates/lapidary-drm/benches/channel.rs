//! Round trips of calls, from a real client program through the preload library to a real server.
//!
//! Prints lines of `name`, median, minimum, maximum in nanoseconds, separated by tabs. `hot` is back to back, `cold`
//! with a millisecond between; `kernel` is a system call that does next to nothing, for scale.
#![allow(unsafe_code)]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod support;

use std::time::{Duration, Instant};

use support::{Bench, command};

const SAMPLES: usize = 200;

fn main() {
    if std::env::var_os("LAPIDARY_TEST_PART").is_some() {
        return measure();
    }
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let bench = Bench::start();
    let status = bench.client("measure").stdout(std::process::Stdio::inherit()).status().unwrap();
    assert!(status.success());
}

/// The client's part.
fn measure() {
    let node = std::fs::File::options().read(true).write(true).open("/dev/dri/renderD128").unwrap();
    let mut bytes = [0_u8; 64];
    let mut words = [0_u64; 3];
    let buffer = vec![1_u8; 4096];
    let mut boxed = Box::new([0_u8; 64]);
    report("kernel_null_ioctl", 1000, Duration::ZERO, || {
        support::ioctl(&node, 0, std::ptr::null_mut()).ok();
    });
    report("hot_nothing", 1000, Duration::ZERO, || {
        support::ioctl(&node, command::NOTHING, std::ptr::null_mut()).unwrap();
    });
    report("hot_64_bytes_that_may_wait", 1000, Duration::ZERO, || {
        support::ioctl(&node, command::INCREMENT, bytes.as_mut_ptr().cast()).unwrap();
    });
    report("hot_64_bytes_that_may_wait_on_heap", 1000, Duration::ZERO, || {
        support::ioctl(&node, command::INCREMENT, boxed.as_mut_ptr().cast()).unwrap();
    });
    report("hot_nested_4096_bytes", 1000, Duration::ZERO, || {
        words = [buffer.as_ptr() as u64, 4096, 0];
        support::ioctl(&node, command::SUM, words.as_mut_ptr().cast()).unwrap();
    });
    report("hot_new_descriptor_and_close", 100, Duration::ZERO, || {
        support::ioctl(&node, command::SYNC, words.as_mut_ptr().cast()).unwrap();
        // SAFETY: the descriptor is new, and nobody else's.
        drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(words[0] as i32) });
    });
    report("spaced_20us", 1, Duration::from_micros(20), || {
        support::ioctl(&node, command::NOTHING, std::ptr::null_mut()).unwrap();
    });
    report("cold_1ms", 1, Duration::from_millis(1), || {
        support::ioctl(&node, command::NOTHING, std::ptr::null_mut()).unwrap();
    });
}

fn report(name: &str, batch: u32, pause: Duration, mut work: impl FnMut()) {
    (0..50).for_each(|_| work());
    let mut samples: Vec<u64> = (0..SAMPLES)
        .map(|_| {
            wait(pause);
            let start = Instant::now();
            (0..batch).for_each(|_| work());
            start.elapsed().as_nanos() as u64 / u64::from(batch)
        })
        .collect();
    samples.sort_unstable();
    println!("{name}\t{}\t{}\t{}", samples[SAMPLES / 2], samples[0], samples[SAMPLES - 1]);
}

/// Short pauses are busy ones: a client that does something else.
fn wait(pause: Duration) {
    if pause >= Duration::from_millis(1) {
        std::thread::sleep(pause);
        return;
    }
    let start = Instant::now();
    while start.elapsed() < pause {
        std::hint::spin_loop();
    }
}
