//! Page tables against the clock: what it costs to map and to unmap 2 MiB, by the size of the leaves.
//!
//! Prints a line per benchmark, tab-separated: tag, name, median, minimum, maximum in nanoseconds per 2 MiB, samples,
//! remarks. An argument selects the benchmarks whose name contains it.
//!
//! Each operation is what a driver's bind does: nodes reserved, entries written under the lock, translations invalidated, nodes
//! freed. The engines are idle, as their caches are when nothing runs.

use std::{env, hint::black_box, time::Instant};

use lapidary_gpu::{
    Gpu, GpuConfig, GpuVa,
    memory::PhysAddr,
    pagetable::{AddressSpace, Needs, PteAttrs, Target, VaSpan},
};

const SAMPLES: usize = 31;
/// Operations per sample: 2 MiB each.
const COUNT: u64 = 512;
const SIZE: u64 = 2 << 20;
const BASE: u64 = 1 << 40;

/// What is mapped: the name of the leaves' size, and how far the memory is off an alignment that would allow larger ones.
const LEAVES: [(&str, u64, u64); 3] =
    [("4K", 4 << 10, 4 << 10), ("64K", 64 << 10, 64 << 10), ("2M", SIZE, 0)];

fn main() {
    let wanted: Vec<String> = env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let gpu = Gpu::new(GpuConfig::default()).expect("a GPU");
    let space = gpu.create_space(false).expect("an address space");
    for (leaf, size, skew) in LEAVES {
        check(&space, size, skew);
        let map = |n| map(&space, n, skew);
        let unmap = |n| unmap(&space, n);
        let entries = SIZE / size;
        bench(
            &wanted,
            &format!("map_2M_of_{leaf}"),
            &format!("{entries} entries, a call for each 2 MiB"),
            map,
            |_| (),
            unmap,
        );
        bench(
            &wanted,
            &format!("unmap_2M_of_{leaf}"),
            "a call for each 2 MiB, invalidated",
            unmap,
            map,
            |_| (),
        );
    }
    let together = |_| map_together(&space);
    let unmap = |_| space.clear();
    let batch = |operation: &dyn Fn(u64), n| {
        if n == 0 {
            operation(n)
        }
    };
    bench(
        &wanted,
        "map_2M_of_64K_batch",
        &format!("one edit for all {COUNT}"),
        |n| batch(&together, n),
        |_| (),
        |n| batch(&unmap, n),
    );
}

fn at(n: u64) -> u64 {
    BASE + n * SIZE
}

fn map(space: &AddressSpace, n: u64, skew: u64) {
    let target = Target::Memory(PhysAddr::system(at(n) + skew));
    space.map(GpuVa::new(at(n)), SIZE, target, PteAttrs::default()).expect("nodes");
}

fn unmap(space: &AddressSpace, n: u64) {
    space.unmap(GpuVa::new(at(n)), SIZE).expect("nodes");
}

/// As a bind of many operations does it: nodes for all, one edit.
fn map_together(space: &AddressSpace) {
    let skew = 64 << 10;
    let pieces = (0..COUNT).map(|n| {
        let span = VaSpan::new(GpuVa::new(at(n)), SIZE).expect("a span");
        (span, Target::Memory(PhysAddr::system(at(n) + skew)))
    });
    let mut needs = Needs::new();
    pieces.clone().for_each(|(span, target)| needs.map(span, target));
    let mut nodes = space.reserve(&needs).expect("nodes");
    let mut edit = space.edit();
    for (span, target) in pieces {
        edit.map(span, target, PteAttrs::default(), &mut nodes).expect("reserved nodes");
    }
    edit.commit();
}

/// Makes sure that the leaves are of the size that is to be measured.
fn check(space: &AddressSpace, size: u64, skew: u64) {
    map(space, 0, skew);
    let leaf = space.translate(GpuVa::new(BASE)).expect("it is mapped");
    assert_eq!(leaf.size(), size);
    unmap(space, 0);
}

/// Times `operation` on each of the [`COUNT`] places, between `before` and `after` on each, which do not count.
fn bench(
    wanted: &[String],
    name: &str,
    remark: &str,
    operation: impl Fn(u64),
    before: impl Fn(u64),
    after: impl Fn(u64),
) {
    if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
        return;
    }
    let mut samples: Vec<u64> = (0..=SAMPLES)
        .map(|_| {
            (0..COUNT).for_each(&before);
            let start = Instant::now();
            (0..COUNT).for_each(|n| operation(black_box(n)));
            let time = start.elapsed();
            (0..COUNT).for_each(&after);
            time.as_nanos() as u64 / COUNT
        })
        .skip(1)
        .collect();
    samples.sort_unstable();
    let (least, middle, most) = (samples[0], samples[SAMPLES / 2], samples[SAMPLES - 1]);
    println!("lapidary\t{name}\t{middle}\t{least}\t{most}\t{SAMPLES}\t{remark}");
}
