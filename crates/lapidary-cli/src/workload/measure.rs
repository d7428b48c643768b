//! How fast the device answers a client: the whole-system benchmarks, run as a client of the device they measure.
//!
//! One tab-separated line each: tag, name, median, minimum and maximum in nanoseconds per operation, number of samples,
//! remark. That is the format of the library's benchmarks too.

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::gpu::{Batch, Gpu, Place};

/// Samples of each benchmark.
const SAMPLES: usize = 31;
const COPY: u64 = 64 << 20;
const SOURCE: u64 = 1 << 32;
const TARGET: u64 = 2 << 32;
const SCRATCH: u64 = 3 << 32;

/// Runs all benchmarks whose name contains `filter`.
pub(crate) fn main(filter: &str) -> Result<()> {
    let gpu = Gpu::open()?;
    let wanted = |name: &str| name.contains(filter);
    if wanted("idle_memory") {
        server_memory()?;
    }
    if wanted("ioctl_hot") {
        report(
            "ioctl_hot",
            &sample(2_000, || gpu.is_banned().map(drop))?,
            "EXEC_QUEUE_GET_PROPERTY back to back",
        );
    }
    if wanted("ioctl_cold") {
        report("ioctl_cold", &cold(&gpu)?, "the same, each after 1 ms of rest");
    }
    if wanted("gem_create_close") {
        let pair = || gpu.close(gpu.create(Place::System, 4096, false)?);
        report("gem_create_close", &sample(200, pair)?, "one page of system memory");
    }
    if wanted("vm_bind_unbind") {
        let buffer = gpu.create(Place::System, 64 << 10, false)?;
        let pair = || {
            gpu.bind_now(buffer, SCRATCH)?;
            gpu.unbind_now(SCRATCH, buffer.size)
        };
        report("vm_bind_unbind", &sample(200, pair)?, "one buffer of 64 KiB, two calls");
        gpu.close(buffer)?;
    }
    if wanted("exec_empty_wait") {
        let batch = Batch::default().end();
        report(
            "exec_empty_wait",
            &sample(100, || gpu.run(&batch))?,
            "an empty batch until its fence, three calls",
        );
    }
    if wanted("copy_64M") {
        copy(&gpu)?;
    }
    Ok(())
}

/// Nanoseconds per operation, one number for each of [`SAMPLES`] rounds of `rounds` operations.
fn sample(rounds: u32, mut operation: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    operation()?;
    (0..SAMPLES)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..rounds {
                operation()?;
            }
            Ok(start.elapsed().as_nanos() as f64 / f64::from(rounds))
        })
        .collect()
}

fn cold(gpu: &Gpu) -> Result<Vec<f64>> {
    (0..10 * SAMPLES)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(1));
            let start = Instant::now();
            gpu.is_banned()?;
            Ok(start.elapsed().as_nanos() as f64)
        })
        .collect()
}

/// The copy engine on 64 MiB, linear, and `memcpy` on as much memory of the same kind.
fn copy(gpu: &Gpu) -> Result<()> {
    let source = gpu.create(Place::System, COPY, false)?;
    let target = gpu.create(Place::System, COPY, false)?;
    gpu.bind(source, 0, SOURCE, COPY)?;
    gpu.bind(target, 0, TARGET, COPY)?;
    let batch = Batch::default().copy(SOURCE, TARGET, COPY).end();
    let engine = sample(3, || gpu.run(&batch))?;
    let (from, mut to) = (vec![1u8; COPY as usize], vec![0u8; COPY as usize]);
    let memcpy = sample(3, || {
        black_box(&mut to).copy_from_slice(black_box(&from));
        Ok(())
    })?;
    let ratio = median(&memcpy) / median(&engine);
    report("copy_64M", &engine, &format!("{:.1} GB/s, {ratio:.2} of memcpy", COPY as f64 / median(&engine)));
    report("memcpy_64M", &memcpy, &format!("{:.1} GB/s", COPY as f64 / median(&memcpy)));
    gpu.unbind(SOURCE, COPY)?;
    gpu.unbind(TARGET, COPY)?;
    gpu.close(source)?;
    gpu.close(target)
}

/// Resident memory of the process that keeps the device, with this client alone: its parent.
fn server_memory() -> Result<()> {
    let pid = rustix::process::getppid().context("the device's process is gone")?;
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let kib: u64 = kib.context("the device's process does not tell its memory")?;
    println!("device\tidle_memory\t{0}\t{0}\t{0}\t1\tKiB resident in the server with one idle client", kib);
    Ok(())
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
