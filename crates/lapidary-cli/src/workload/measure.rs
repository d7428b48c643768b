//! How fast the device answers a client: the whole-system benchmarks, run as a client of the device they measure.
//!
//! One tab-separated line each: tag, name, median, minimum and maximum in nanoseconds per operation, number of samples,
//! remark. That is the format of the library's benchmarks too. Lines whose name begins with `idle_` are about the
//! server at rest, and their remark names the unit.

use std::fs;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::gpu::{Batch, Buffer, Gpu, Place};

/// Samples of each benchmark.
const SAMPLES: usize = 31;
const COPY: u64 = 64 << 20;
const SOURCE: u64 = 1 << 32;
const TARGET: u64 = 2 << 32;
const SCRATCH: u64 = 3 << 32;
/// Clients that are busy at once: more than the small machines that tests run on have processors.
const BUSY: usize = 4;
/// Clients that do nothing.
const IDLE: usize = 10;

/// A benchmark: its name, and what runs it.
type Benchmark = (&'static str, fn(&Gpu) -> Result<()>);

const BENCHMARKS: &[Benchmark] = &[
    // At rest first: what the others leave behind in the server would count.
    ("idle_memory", |_| server_memory()),
    ("idle_processor", |_| server_time()),
    ("ioctl_hot", ioctl_hot),
    ("ioctl_cold", ioctl_cold),
    ("ioctl_busy_clients", |_| busy_clients()),
    ("gem_create_close", gem_create_close),
    ("vm_bind_unbind", vm_bind_unbind),
    ("vm_bind_single_1", |_| binds("vm_bind_single_1", 1, bind_each)),
    ("vm_bind_single_2", |_| binds("vm_bind_single_2", 2, bind_each)),
    ("vm_bind_array_1", |_| binds("vm_bind_array_1", 1, bind_array)),
    ("vm_bind_array_2", |_| binds("vm_bind_array_2", 2, bind_array)),
    ("exec_empty_wait", exec_empty_wait),
    ("copy_64M", copy),
];

/// Prints the names of all benchmarks.
pub(crate) fn list() {
    BENCHMARKS.iter().for_each(|(name, _)| println!("{name}"));
}

/// Runs all benchmarks whose name contains one of `names`; all of them if there are none.
pub(crate) fn main(names: &[String]) -> Result<()> {
    let wanted = |name: &str| names.is_empty() || names.iter().any(|part| name.contains(part.as_str()));
    let chosen: Vec<_> = BENCHMARKS.iter().filter(|(name, _)| wanted(name)).collect();
    if chosen.is_empty() {
        let known: Vec<_> = BENCHMARKS.iter().map(|(name, _)| *name).collect();
        bail!("no benchmark is called {}; there are {}", names.join(" or "), known.join(", "));
    }
    let gpu = Gpu::open()?;
    chosen.into_iter().try_for_each(|(name, run)| run(&gpu).with_context(|| name.to_string()))
}

fn ioctl_hot(gpu: &Gpu) -> Result<()> {
    let samples = sample(2_000, || gpu.is_banned().map(drop))?;
    report("ioctl_hot", &samples, "EXEC_QUEUE_GET_PROPERTY back to back");
    Ok(())
}

fn ioctl_cold(gpu: &Gpu) -> Result<()> {
    let cold = |_| {
        std::thread::sleep(Duration::from_millis(1));
        let start = Instant::now();
        gpu.is_banned()?;
        Ok(start.elapsed().as_nanos() as f64)
    };
    let samples = (0..10 * SAMPLES).map(cold).collect::<Result<Vec<_>>>()?;
    report("ioctl_cold", &samples, "the same, each after 1 ms of rest");
    Ok(())
}

/// What a call costs when more clients are busy than there are processors: the time of a round in which each makes as
/// many calls, by all calls.
fn busy_clients() -> Result<()> {
    const CALLS: u32 = 500;
    let calls = |gpu: &Gpu| (0..CALLS).try_for_each(|_| gpu.is_banned().map(drop));
    let samples = in_rounds(BUSY, Gpu::open, |_| Ok(()), calls)?;
    let samples: Vec<f64> = samples.iter().map(|round| round / f64::from(CALLS * BUSY as u32)).collect();
    let remark = format!("the same, {BUSY} clients at once: time by all calls");
    report("ioctl_busy_clients", &samples, &remark);
    Ok(())
}

/// Mappings that each client makes in a round.
const MAPPINGS: u32 = 1024;

/// What a mapping costs when `clients` clients make theirs at the same time, each in an address space of its own. What they
/// made is unmapped between the rounds.
fn binds(name: &str, clients: usize, bind: fn(&Binder) -> Result<()>) -> Result<()> {
    let clear = |binder: &Binder| binder.gpu.unbind_now(SCRATCH, u64::from(MAPPINGS) * binder.buffer.size);
    let rounds = in_rounds(clients, Binder::open, clear, bind)?;
    let samples: Vec<f64> = rounds.iter().map(|round| round / f64::from(MAPPINGS)).collect();
    let per_second = 1e9 / median(&samples);
    report(
        name,
        &samples,
        &format!("64 KiB each; {per_second:.0} mappings per second and client, {clients} at once"),
    );
    Ok(())
}

/// A client that maps one buffer many times.
struct Binder {
    gpu: Gpu,
    buffer: Buffer,
}

impl Binder {
    fn open() -> Result<Self> {
        let gpu = Gpu::open()?;
        let buffer = gpu.create(Place::System, 64 << 10, false)?;
        Ok(Self { gpu, buffer })
    }
}

fn bind_each(binder: &Binder) -> Result<()> {
    let addresses = (0..u64::from(MAPPINGS)).map(|n| SCRATCH + n * binder.buffer.size);
    addresses.into_iter().try_for_each(|address| binder.gpu.bind_now(binder.buffer, address))
}

fn bind_array(binder: &Binder) -> Result<()> {
    binder.gpu.bind_array_now(binder.buffer, SCRATCH, MAPPINGS)
}

/// Nanoseconds of rounds in which `clients` clients do the same at once: from when all have done what comes `before` it until
/// all are done.
fn in_rounds<C>(
    clients: usize,
    open: impl Fn() -> Result<C> + Sync,
    before: impl Fn(&C) -> Result<()> + Sync,
    work: impl Fn(&C) -> Result<()> + Sync,
) -> Result<Vec<f64>> {
    let meet = Barrier::new(clients);
    let client = || -> Result<Vec<f64>> {
        let client = open();
        let mut samples = Vec::with_capacity(SAMPLES);
        let mut outcome = Ok(());
        // One round to warm up. All reach the barriers, whatever fails.
        for round in 0..=SAMPLES {
            if let Ok(client) = &client {
                outcome = outcome.and_then(|()| before(client));
            }
            meet.wait();
            let start = Instant::now();
            if let Ok(client) = &client {
                outcome = outcome.and_then(|()| work(client));
            }
            meet.wait();
            if round > 0 {
                samples.push(start.elapsed().as_nanos() as f64);
            }
        }
        client?;
        outcome.map(|()| samples)
    };
    Ok(on_threads(clients, client)?.swap_remove(0))
}

/// Runs `work` on `count` threads at once; each has a channel of its own to the server, as a process has.
fn on_threads<R: Send>(count: usize, work: impl Fn() -> Result<R> + Sync) -> Result<Vec<R>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(&work)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<R>>| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().map(join).collect()
    })
}

fn gem_create_close(gpu: &Gpu) -> Result<()> {
    let samples = sample(200, || gpu.close(gpu.create(Place::System, 4096, false)?))?;
    report("gem_create_close", &samples, "one page of system memory, two calls");
    Ok(())
}

fn vm_bind_unbind(gpu: &Gpu) -> Result<()> {
    let buffer = gpu.create(Place::System, 64 << 10, false)?;
    let samples = sample(200, || {
        gpu.bind_now(buffer, SCRATCH)?;
        gpu.unbind_now(SCRATCH, buffer.size)
    })?;
    report("vm_bind_unbind", &samples, "one buffer of 64 KiB, two calls");
    gpu.close(buffer)
}

fn exec_empty_wait(gpu: &Gpu) -> Result<()> {
    let batch = Batch::default().end();
    let samples = sample(100, || gpu.run(&batch))?;
    report("exec_empty_wait", &samples, "an empty batch until its fence, three calls");
    Ok(())
}

/// Nanoseconds per operation, one number for each of [`SAMPLES`] rounds of `rounds` operations.
fn sample(rounds: u32, mut operation: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    operation()?;
    (0..SAMPLES).map(|_| time(rounds, &mut operation)).collect()
}

/// Nanoseconds per operation over one round.
fn time(rounds: u32, mut operation: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..rounds {
        operation()?;
    }
    Ok(start.elapsed().as_nanos() as f64 / f64::from(rounds))
}

/// The copy engine on 64 MiB, linear, and this processor's `memcpy` between buffers of the same kind. In turn, so that what
/// else the machine does meanwhile weighs on both.
fn copy(gpu: &Gpu) -> Result<()> {
    let new = || gpu.create(Place::System, COPY, false);
    let [source, target, from, to] = [new()?, new()?, new()?, new()?];
    gpu.bind(source, 0, SOURCE, COPY)?;
    gpu.bind(target, 0, TARGET, COPY)?;
    let batch = Batch::default().copy(SOURCE, TARGET, COPY).end();
    let (mapped_from, mapped_to) = (gpu.map(from)?, gpu.map(to)?);
    // Pages that were never written are made by the first access, which is no copying.
    for buffer in [source, target] {
        gpu.map(buffer)?.fill(0x5a);
    }
    mapped_from.fill(0xa5);
    let mut by_processor = || {
        mapped_to.copy_from(&mapped_from);
        Ok(())
    };
    let mut by_engine = || gpu.run(&batch);
    by_processor()?;
    by_engine()?;
    let (mut engine, mut memcpy) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        engine.push(time(2, &mut by_engine)?);
        memcpy.push(time(2, &mut by_processor)?);
    }
    let ratio = median(&memcpy) / median(&engine);
    report("copy_64M", &engine, &format!("{:.1} GB/s, {ratio:.2} of memcpy", COPY as f64 / median(&engine)));
    report(
        "memcpy_64M",
        &memcpy,
        &format!("{:.1} GB/s between mapped buffers", COPY as f64 / median(&memcpy)),
    );
    drop((mapped_from, mapped_to));
    gpu.unbind(SOURCE, COPY)?;
    gpu.unbind(TARGET, COPY)?;
    [source, target, from, to].into_iter().try_for_each(|buffer| gpu.close(buffer))
}

/// Resident memory of the process that keeps the device, with this client alone: its parent.
fn server_memory() -> Result<()> {
    let status = fs::read_to_string(format!("/proc/{}/status", server()?))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let kib: u64 = kib.context("the device's process does not tell its memory")?;
    println!("device\tidle_memory\t{0}\t{0}\t{0}\t1\tKiB resident in the server with one idle client", kib);
    Ok(())
}

/// Processor time that the server takes while its clients do nothing.
fn server_time() -> Result<()> {
    let ready = Barrier::new(IDLE + 1);
    let over = Barrier::new(IDLE + 1);
    let client = || {
        let gpu = Gpu::open();
        let outcome = gpu.and_then(|gpu| {
            // Back-to-back calls teach both sides to spin, which must not last.
            (0..1_000).try_for_each(|_| gpu.is_banned().map(drop))?;
            Ok(gpu)
        });
        ready.wait();
        over.wait();
        outcome.map(drop)
    };
    let nanoseconds = std::thread::scope(|scope| {
        let clients = scope.spawn(|| on_threads(IDLE, client));
        ready.wait();
        std::thread::sleep(Duration::from_millis(100));
        let before = processor_time();
        std::thread::sleep(Duration::from_secs(1));
        let after = processor_time();
        over.wait();
        match clients.join() {
            Ok(outcome) => outcome.and_then(|_| Ok(after?.saturating_sub(before?))),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    let remark = format!("ns of processor time in a second with {IDLE} idle clients");
    println!("device\tidle_processor\t{nanoseconds}\t{nanoseconds}\t{nanoseconds}\t1\t{remark}");
    Ok(())
}

/// Nanoseconds that the server's threads have run.
fn processor_time() -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", server()?))? {
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        sum += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

/// The process that keeps the device: `lapidary run` starts this one.
fn server() -> Result<i32> {
    Ok(rustix::process::getppid().context("the device's process is gone")?.as_raw_nonzero().get())
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn report(name: &str, samples: &[f64], remark: &str) {
    let least = samples.iter().copied().fold(f64::INFINITY, f64::min);
    let most = samples.iter().copied().fold(0.0, f64::max);
    println!("device\t{name}\t{:.0}\t{least:.0}\t{most:.0}\t{}\t{remark}", median(samples), samples.len());
}
