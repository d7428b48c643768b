//! What a client may take: one that goes on taking gets an error, others don't notice.

use super::client::*;
use super::*;

const BASE: u64 = 1 << 40;
const ALLOWED: u64 = MIB;

/// A device whose owner allows a client little.
fn bench() -> Bench {
    Bench::new(&DeviceConfig { client_memory: ALLOWED, ..small() })
}

/// A client in the middle of its work, which must not suffer.
struct Bystander {
    rig: Rig,
    bytes: Bytes,
    buffer: u32,
    rounds: u32,
}

impl Bystander {
    fn new(bench: &Bench) -> Self {
        let mut rig = Rig::new(bench);
        let (buffer, bytes) = rig.buffer(VRAM, MIB);
        Self { rig, bytes, buffer, rounds: 0 }
    }

    /// Binds elsewhere each time, runs, and looks at the result.
    fn work(&mut self) {
        self.rounds += 1;
        let at = BASE + u64::from(self.rounds) * 4 * MIB;
        self.rig.bind(&[map(self.buffer, 0, at, MIB)]);
        self.rig.run(Batch::new().store(at + 4, self.rounds));
        assert_eq!(self.bytes.read(4), self.rounds);
        self.rig.bind(&[unmap(at, MIB)]);
    }
}

impl Rig {
    fn taken(&self) -> u64 {
        self.client.inside().data().allowance().taken()
    }

    /// Binds what `op` says, on and on, until a bind is refused: how many were taken, and the error.
    fn bind_without_end(&mut self, mut op: impl FnMut(u64) -> uapi::VmBindOp) -> (u64, Errno) {
        for count in 0.. {
            if let Err(errno) = self.client.bind(self.vm, &[op(count)], &[]) {
                return (count, errno);
            }
        }
        unreachable!("a client is stopped some time")
    }
}

/// An address space that is destroyed gives back what it took.
fn wait_for_nothing_taken(bench: &Bench, rig: &Rig) {
    while rig.taken() > 0 {
        bench.device.driver().worker().flush();
        std::thread::yield_now();
    }
}

#[test]
fn h29_a_client_that_maps_without_end_is_stopped_and_others_go_on() {
    let bench = bench();
    let (mut greedy, mut other) = (Rig::new(&bench), Bystander::new(&bench));
    let buffer = greedy.client.buffer(SYSTEM, CHUNK, 0);
    let bytes = greedy.client.bytes(buffer);
    other.work();
    // Pages of one range: records of mappings add up.
    let (count, errno) = greedy.bind_without_end(|n| {
        if n % 1000 == 0 {
            other.work();
        }
        map(buffer, (n % 16) * 4096, BASE + n * 4096, 4096)
    });
    assert_eq!(errno, Errno::NOMEM);
    assert!(count > 5_000 && greedy.taken() <= ALLOWED, "{count} mappings, {} bytes", greedy.taken());
    other.work();

    // What it has, it can use and give back, all at once or piece by piece.
    greedy.run(Batch::new().store(BASE + (count - 1) * 4096, 7));
    assert_eq!(bytes.read(((count - 1) % 16) * 4096), 7);
    greedy.bind(&[unmap(BASE + 4096, 4096)]);
    greedy.bind(&[unmap(BASE, count * 4096)]);
    assert_eq!(greedy.client.translate(greedy.vm, BASE), None);
    greedy.bind(&[unmap(0, BASE)]);
    greedy.client.destroy_queue(greedy.queue);
    greedy.client.destroy_vm(greedy.vm);
    wait_for_nothing_taken(&bench, &greedy);
    greedy.vm = greedy.client.vm();
    let again = greedy.bind_without_end(|n| map(buffer, 0, BASE + n * 4096, 4096));
    assert!(again.0 >= count, "{again:?} after {count}");
    other.work();
    drop((greedy, other));
    bench.assert_clean();
}

#[test]
fn h29_page_tables_count_as_well_and_go_back_with_what_they_map() {
    let bench = bench();
    let (mut greedy, mut other) = (Rig::new(&bench), Bystander::new(&bench));
    let (buffer, _) = greedy.buffer(SYSTEM, CHUNK);
    let before = greedy.taken();
    // Each takes a table of its own.
    let op = |n| map(buffer, 0, BASE + n * 2 * MIB, 4096);
    let (count, errno) = greedy.bind_without_end(op);
    assert_eq!(errno, Errno::NOMEM);
    assert!((128..=256).contains(&count), "{count}");
    other.work();
    let nodes = bench.device.driver().gpu().nodes().in_use();
    greedy.bind(&[unmap(BASE, count * 2 * MIB)]);
    assert!(bench.device.driver().gpu().nodes().in_use() < nodes - count as u32 + 1);
    greedy.bind(&[op(0)]);
    assert!(before > 0);
    greedy.client.destroy_queue(greedy.queue);
    greedy.client.destroy_vm(greedy.vm);
    wait_for_nothing_taken(&bench, &greedy);
    other.work();
    drop((greedy, other));
    bench.assert_clean();
}

#[test]
fn h29_binds_that_wait_count_while_they_wait() {
    let bench = bench();
    let (mut greedy, mut other) = (Rig::new(&bench), Bystander::new(&bench));
    let (buffer, _) = greedy.buffer(SYSTEM, CHUNK);
    let (gate, busy) = greedy.busy();
    let (vm, before) = (greedy.vm, greedy.taken());
    let op = |n| map(buffer, 0, BASE + n * 4096, 4096);
    let mut count = 0;
    let refused = loop {
        match greedy.client.bind(vm, &[op(count)], &[after(busy)]) {
            Ok(()) => count += 1,
            Err(errno) => break errno,
        }
    };
    assert!(matches!(refused, Errno::NOMEM | Errno::NOBUFS), "{refused}");
    let waiting = greedy.taken() - before;
    assert!(waiting <= ALLOWED && waiting > count * 384, "{waiting} bytes for {count}");
    other.work();
    greedy.open(gate);
    greedy.client.wait(busy);
    greedy.bind(&[op(count)]);
    assert!(greedy.taken() - before < waiting / 2);
    drop((greedy, other));
    bench.assert_clean();
}

#[test]
fn h29_an_address_space_has_so_many_mappings_and_no_more() {
    let bench = Bench::new(&DeviceConfig { max_mappings: 100, ..small() });
    let (mut greedy, mut other) = (Rig::new(&bench), Bystander::new(&bench));
    let op = |n| map_null(BASE + n * 4096, 4096);
    // One is the code buffer's.
    assert_eq!(greedy.bind_without_end(op), (99, Errno::NOMEM));
    let ops: Vec<_> = (0..50).map(op).chain((0..10).map(|n| op(1000 + n))).collect();
    assert_eq!(greedy.client.bind(greedy.vm, &ops, &[]), Err(Errno::NOMEM), "all or nothing");
    other.work();
    greedy.bind(&[unmap(BASE, 10 * 4096)]);
    greedy.bind(&ops[50..]);
    // Another address space has its own hundred.
    let vm = greedy.client.vm();
    greedy.client.bind(vm, &[op(0)], &[]).unwrap();
    drop((greedy, other));
    bench.assert_clean();
}
