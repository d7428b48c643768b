//! What the benchmarks share: the clock, the generator, and the lines they print.
//!
//! A line per benchmark, tab-separated: tag, name, median, minimum, maximum in nanoseconds per operation, samples,
//! remarks. That is the format, and the names and operations are those, of the kernel's own code as a benchmark, so
//! that `cargo xtask bench --against` can lay the two side by side. Arguments select benchmarks whose name contains one
//! of them.
//!
//! The clock counts the processor time of this thread alone, as the kernel's benchmarks do.

#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::hint::black_box;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::Instant;

use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Most samples; a benchmark takes so many after one that warms up.
pub(crate) const SAMPLES: usize = 15;

/// Processor time of this thread, in nanoseconds.
pub(crate) fn now() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Stays on one processor, and makes the heap what it is in a program that has been running for a while: resident, and never
/// given back to the system. To be called first; it starts the program again with the allocator told so.
pub(crate) fn prepare_process(bytes: usize) {
    const TOLD: [(&str, &str); 2] = [("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", "2147483647")];
    if TOLD.iter().any(|(name, _)| std::env::var_os(name).is_none()) {
        let program = std::env::current_exe().expect("a running program has a path");
        let mut again = Command::new(program);
        let error = again.args(std::env::args_os().skip(1)).envs(TOLD).exec();
        panic!("the benchmarks can't be started again: {error}");
    }
    stay_on_one_processor();
    let mut heap: Vec<u8> = Vec::with_capacity(bytes);
    heap.resize(bytes, 1);
    black_box(heap);
}

/// The one that the environment names in `CORE`, else the second, where interrupts are fewer.
fn stay_on_one_processor() {
    let core = std::env::var("CORE").ok().and_then(|core| core.parse().ok()).unwrap_or(1);
    if !stay_on(core) {
        eprintln!("processor {core} can't be had alone: figures will vary more");
    }
}

/// Keeps this thread on a processor. False if it can't be had.
fn stay_on(core: usize) -> bool {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).is_ok()
}

/// Runs `work` in two threads at once, on a processor each; `work` is given 0 or 1. The answer is the time from the first's
/// begin to the last's end, in nanoseconds; `None` on a machine with one processor.
pub(crate) fn in_two_threads(work: impl Fn(u64) + Sync) -> Option<f64> {
    let (work, ready) = (&work, &Barrier::new(3));
    std::thread::scope(|scope| {
        let threads = [0, 1].map(|thread| {
            scope.spawn(move || {
                let placed = stay_on(thread as usize);
                ready.wait();
                if placed {
                    work(thread);
                }
                placed
            })
        });
        ready.wait();
        let begin = Instant::now();
        let placed = threads.map(|thread| thread.join().expect("a benchmark does not panic"));
        (placed == [true, true]).then(|| begin.elapsed().as_nanos() as f64)
    })
}

/// Which benchmarks are wanted, from the command line.
pub(crate) struct Selection(Vec<String>);

impl Selection {
    /// Every argument that is no option is a part of a name; cargo's own `--bench` is an option.
    pub(crate) fn from_arguments() -> Self {
        Self(std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect())
    }

    /// Whether a benchmark of this name is to run.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|part| name.contains(part.as_str()))
    }

    /// Runs a benchmark: in each round `setup` makes what `body` works on, `count` times under the clock, and `after` cleans
    /// up. `body` is given the number of the operation.
    pub(crate) fn run<T>(
        &self,
        name: &str,
        count: usize,
        mut setup: impl FnMut() -> T,
        mut body: impl FnMut(&mut T, usize),
        mut after: impl FnMut(T),
    ) {
        if !self.wants(name) {
            return;
        }
        let mut samples = Samples::default();
        for _ in 0..=SAMPLES {
            let mut state = black_box(setup());
            let begin = now();
            for i in 0..count {
                body(&mut state, i);
            }
            samples.add((now() - begin) / count as f64);
            after(state);
        }
        samples.print(name, "");
    }
}

impl Selection {
    /// As [`run`](Self::run) without anything to set up: adds up what `body` answers, which is what keeps the compiler from
    /// leaving it out.
    pub(crate) fn sum(&self, name: &str, count: usize, mut body: impl FnMut() -> u64) {
        if !self.wants(name) {
            return;
        }
        let mut samples = Samples::default();
        let mut sum = 0u64;
        for _ in 0..=SAMPLES {
            let begin = now();
            for _ in 0..count {
                sum = sum.wrapping_add(body());
                compiler_fence(Ordering::SeqCst);
            }
            samples.add((now() - begin) / count as f64);
        }
        black_box(sum);
        samples.print(name, "");
    }
}

/// The times of one benchmark. The first warms up and does not count.
#[derive(Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds one, in nanoseconds per operation.
    pub(crate) fn add(&mut self, each: f64) {
        self.0.push(each);
    }

    /// Prints the line.
    pub(crate) fn print(mut self, name: &str, remark: &str) {
        if self.0.len() < 2 {
            return;
        }
        self.0.remove(0);
        self.0.sort_by(f64::total_cmp);
        let (least, most) = (self.0[0], self.0[self.0.len() - 1]);
        let (median, count) = (self.0[self.0.len() / 2], self.0.len());
        println!("lapidary\t{name}\t{median:.2}\t{least:.2}\t{most:.2}\t{count}\t{remark}");
    }
}

/// splitmix64, as the kernel's benchmarks use it.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is below 2^32.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((self.next() >> 32) * n) >> 32
    }
}
