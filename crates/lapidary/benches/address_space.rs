//! The address space against the clock.
//!
//! `sum` is a checksum over the final address space that an equal implementation reproduces.

mod harness;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use harness::{Random, Samples, Selection, now, prepare_process};
use lapidary::gpuvm::{
    BackingRef, GpuVm, MapRequest, ObjectId, Steps, Va, VaRange, VmBo, VmConfig, VmGuard, VmTypes,
};
use lapidary::reaper::Reaper;
use lapidary::resv::Reservation;

const PAGE: u64 = 0x10000;
const NULL: u32 = u32::MAX;
/// Where the one null mapping begins.
const NULL_BASE: u64 = 1 << 36;

/// A driver that does no work of its own.
struct Bare;

/// An object: its number, and the reservation it shares.
struct Object(u32, Reservation);

impl VmTypes for Bare {
    type Object = Arc<Object>;
    type Tag = u32;
    type Space = ();

    fn id(object: &Arc<Object>) -> ObjectId {
        ObjectId(Arc::as_ptr(object) as usize)
    }

    fn reservation(object: &Arc<Object>) -> Option<&Reservation> {
        Some(&object.1)
    }

    fn teardown(_: &()) -> impl Steps<Self> {}
}

#[derive(Clone, Copy)]
struct Op {
    addr: u64,
    len: u64,
    offset: u64,
    object: u32,
    map: bool,
}

struct Fixture {
    vm: GpuVm<Bare>,
    ties: Vec<VmBo<Bare>>,
    _reaper: Reaper,
}

impl Fixture {
    fn new(objects: u32) -> Fixture {
        let reaper = Reaper::new();
        let vm = GpuVm::<Bare>::new(VmConfig::bits(48), Reservation::new(), (), &reaper);
        let object = |i| Arc::new(Object(i, vm.reservation().clone()));
        let ties = (0..objects).map(|i| vm.obtain(&object(i)).unwrap()).collect();
        Fixture { vm, ties, _reaper: reaper }
    }

    fn request(&self, op: &Op) -> MapRequest<'_, Bare> {
        let range = VaRange::new(Va::new(op.addr), op.len).unwrap();
        match op.object {
            NULL => MapRequest::null(range, 0),
            object => MapRequest::object(range, &self.ties[object as usize], op.offset, 0),
        }
    }

    #[inline]
    fn at_once(&self, guard: &mut VmGuard<'_, Bare>, op: &Op) {
        let request = self.request(op);
        if op.map {
            guard.map(&request, &mut ()).unwrap();
        } else {
            guard.unmap(request.range, &mut ()).unwrap();
        }
    }

    #[inline]
    fn prepared(&self, guard: &mut VmGuard<'_, Bare>, op: &Op) {
        let request = self.request(op);
        let mut batch = guard.batch();
        if op.map {
            batch.map(&request).unwrap();
        } else {
            batch.unmap(request.range).unwrap();
        }
        for step in batch.commit().iter() {
            black_box(step);
        }
    }

    fn apply(&self, ops: &[Op]) {
        let mut guard = self.vm.lock().unwrap();
        for op in ops {
            self.at_once(&mut guard, op);
        }
    }

    fn sum(&self) -> u64 {
        self.vm.read().iter().map(|mapping| mapping.get()).fold(0u64, |sum, mapping| {
            let (offset, object) = match mapping.backing {
                BackingRef::Object { vm_bo, offset } => (offset, vm_bo.object().0),
                // The kernel counts an offset into nothing, too: from where the one null mapping there is began.
                BackingRef::Null => (mapping.start().raw() - NULL_BASE, NULL),
                BackingRef::Host { .. } => unreachable!("none is mapped"),
            };
            let word = mapping.start().raw() ^ (mapping.range.len() << 7) ^ (offset << 3) ^ u64::from(object);
            sum.wrapping_mul(1_099_511_628_211).wrapping_add(word)
        })
    }
}

/// What a group of benchmarks over the same address space has measured.
#[derive(Default)]
struct Report(Vec<(String, Samples)>, BTreeMap<String, String>);

impl Report {
    fn time<R>(&mut self, name: &str, count: usize, work: impl FnOnce() -> R) -> R {
        let begin = now();
        let result = work();
        let each = (now() - begin) / count as f64;
        match self.0.iter_mut().find(|(of, _)| of == name) {
            Some((_, samples)) => samples.add(each),
            None => {
                let mut samples = Samples::default();
                samples.add(each);
                self.0.push((name.to_owned(), samples));
            }
        }
        result
    }

    fn remark(&mut self, name: &str, text: String) {
        self.1.insert(name.to_owned(), text);
    }

    fn print(self) {
        for (name, samples) in self.0 {
            samples.print(&name, self.1.get(&name).map_or("", String::as_str));
        }
    }
}

fn map_ops(count: u32, random: bool, objects: u32) -> Vec<Op> {
    let mut rng = Random(1234 + u64::from(count));
    let mut ops: Vec<Op> = (0..u64::from(count))
        .map(|i| {
            let len = (1 + rng.below(64)) * PAGE;
            let object = rng.below(u64::from(objects)) as u32;
            let offset = rng.below(1024) * PAGE;
            Op { addr: (1 << 32) + i * 0x40_0000, len, offset, object, map: true }
        })
        .collect();
    if random {
        for i in (1..ops.len()).rev() {
            let j = rng.below(i as u64 + 1) as usize;
            ops.swap(i, j);
        }
    }
    ops
}

fn bench_map(select: &Selection, count: u32, random: bool, samples: usize) {
    let order = if random { "rand" } else { "asc" };
    let name = format!("map_{order}_{count}");
    let teardown = format!("teardown_{order}_{count}");
    if !select.wants(&name) && !select.wants(&teardown) {
        return;
    }
    let mut report = Report::default();
    let objects = (count / 8).max(64);
    let ops = map_ops(count, random, objects);
    for _ in 0..=samples {
        let fixture = Fixture::new(objects);
        report.time(&name, ops.len(), || fixture.apply(&ops));
        let each = |bytes: usize| bytes as f64 / f64::from(count);
        let (mappings, all) = (fixture.vm.read().mapping_bytes(), fixture.vm.read().bytes());
        let bytes = format!("bytes={:.1} with_objects={:.1}", each(mappings), each(all));
        report.remark(&name, format!("sum={:016x} {bytes}", fixture.sum()));
        report.time(&teardown, ops.len(), || fixture.vm.close());
    }
    report.print();
}

fn churn_ops(slots: u64, settle: usize, count: usize, objects: u64) -> Vec<Op> {
    let mut rng = Random(777);
    let bases: Vec<u64> = (0..slots).map(|_| rng.below(1 << 31) * PAGE).collect();
    (0..settle + count)
        .map(|i| {
            let slot = if (i as u64) < slots { i as u64 } else { rng.below(slots) };
            let addr = bases[slot as usize] + rng.below(128) * PAGE;
            let len = (1 + rng.below(64)) * PAGE;
            let offset = rng.below(1024) * PAGE;
            let object = rng.below(objects) as u32;
            let map = (i as u64) < slots || rng.below(100) < 60;
            Op { addr, len, offset, object, map }
        })
        .collect()
}

fn bench_churn(select: &Selection, samples: usize, prepared: bool) {
    let name = if prepared { "churn_oplist" } else { "churn" };
    if !select.wants(name) {
        return;
    }
    let mut report = Report::default();
    let (settle, count) = (200_000, 300_000);
    let ops = churn_ops(2800, settle, count, 2048);
    for _ in 0..=samples {
        let fixture = Fixture::new(2048);
        fixture.apply(&ops[..settle]);
        let mut guard = fixture.vm.lock().unwrap();
        report.time(name, count, || {
            for op in &ops[settle..] {
                if prepared {
                    fixture.prepared(&mut guard, op);
                } else {
                    fixture.at_once(&mut guard, op);
                }
            }
        });
        drop(guard);
        report.remark(name, format!("sum={:016x} live={}", fixture.sum(), fixture.vm.read().len()));
    }
    report.print();
}

fn bench_lookup(select: &Selection, count: u32, random: bool, samples: usize) {
    let order = if random { "rand" } else { "asc" };
    let name = format!("find_first_{order}_{count}");
    let names = ["find_exact", "find_first_dep", "find_miss_high", "walk"];
    let [exact_name, dep_name, miss_name, walk_name] = names.map(|kind| format!("{kind}_{order}_{count}"));
    if ![&name, &exact_name, &dep_name, &miss_name, &walk_name].iter().any(|name| select.wants(name)) {
        return;
    }
    let mut report = Report::default();
    let objects = (count / 8).max(64);
    let ops = map_ops(count, random, objects);
    let fixture = Fixture::new(objects);
    fixture.apply(&ops);
    let mut rng = Random(99);
    let lookups = match count {
        ..1_001 => 200_000,
        1_001..100_001 => 400_000,
        _ => 1_000_000,
    };
    // A place in a mapping each, and the mapping's own range.
    let (keys, ranges): (Vec<u64>, Vec<(u64, u64)>) = (0..lookups)
        .map(|_| {
            let op = ops[rng.below(u64::from(count)) as usize];
            (op.addr + rng.below(op.len / PAGE) * PAGE, (op.addr, op.len))
        })
        .unzip();
    let read = fixture.vm.read();
    let page = |at: u64| VaRange::new(Va::new(at), PAGE).unwrap();
    for _ in 0..=samples {
        let hits = report.time(&name, keys.len(), || {
            keys.iter()
                .map(|key| read.find_first(page(*key)).unwrap().start().raw())
                .fold(0, u64::wrapping_add)
        });
        black_box(hits);
        let exact =
            |(addr, len): (u64, u64)| read.find(VaRange::new(Va::new(addr), len).unwrap()).unwrap().tag;
        let hits = report.time(&exact_name, ranges.len(), || {
            ranges.iter().map(|range| exact(*range)).fold(0, u32::wrapping_add)
        });
        black_box(hits);
        let zero = black_box(0u64);
        let last = report.time(&dep_name, keys.len(), || {
            keys.iter().fold(0, |dep, key| read.find_first(page(key + dep)).unwrap().start().raw() & zero)
        });
        black_box(last);
        // Above the highest mapping.
        let misses = report.time(&miss_name, keys.len(), || {
            keys.iter().filter(|key| read.find_first(page(**key | 1 << 47)).is_none()).count()
        });
        assert_eq!(misses, keys.len());
        let walked = report.time(&walk_name, ops.len(), || {
            read.iter().map(|mapping| mapping.start().raw()).fold(0, u64::wrapping_add)
        });
        black_box(walked);
    }
    report.print();
}

fn bench_sparse(select: &Selection, samples: usize) {
    let name = "sparse_rebind_100k";
    if !select.wants(name) {
        return;
    }
    let mut report = Report::default();
    let mut rng = Random(4242);
    let whole = Op { addr: NULL_BASE, len: 1 << 36, offset: 0, object: NULL, map: true };
    let ops: Vec<Op> = (0..100_000)
        .map(|_| {
            let addr = (1 << 36) + rng.below(1 << 20) * PAGE;
            let offset = rng.below(1024) * PAGE;
            Op { addr, len: PAGE, offset, object: rng.below(2048) as u32, map: true }
        })
        .collect();
    for _ in 0..=samples {
        let fixture = Fixture::new(2048);
        fixture.apply(&[whole]);
        report.time(name, ops.len(), || fixture.apply(&ops));
        report.remark(name, format!("sum={:016x} live={}", fixture.sum(), fixture.vm.read().len()));
    }
    report.print();
}

fn main() {
    prepare_process(700 << 20);
    let select = Selection::from_arguments();
    for (count, samples) in [(1_000, 14), (19_000, 14), (100_000, 7), (1_000_000, 5)] {
        bench_map(&select, count, false, samples);
        bench_map(&select, count, true, samples);
    }
    bench_churn(&select, 7, false);
    bench_churn(&select, 7, true);
    for (count, random, samples) in
        [(1_000, true, 7), (19_000, false, 7), (19_000, true, 7), (1_000_000, false, 5), (1_000_000, true, 5)]
    {
        bench_lookup(&select, count, random, samples);
    }
    bench_sparse(&select, 7);
}
