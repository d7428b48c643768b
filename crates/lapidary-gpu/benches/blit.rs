//! Bandwidth of the blitter, as a fraction of `memcpy` on the same machine.
//!
//! `cargo bench -p lapidary-gpu --bench blit`. Each figure is the best of several rounds over 64 MiB of plain memory behind a bus that costs next to
//! nothing, so it measures the blitter, not the page tables. The memories are touched first; page faults are not part of it.

use std::{
    hint::black_box,
    sync::atomic::AtomicU8,
    time::{Duration, Instant},
};

use lapidary_gpu::{
    Access, Bus, Chunk, EngineClass, Fault, GpuVa, Work,
    cs::{Progress, Streamer},
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
const SOURCE: u64 = MIB;
const DESTINATION: u64 = SOURCE + SIZE;
const ROUNDS: usize = 8;

/// Plain memory from address 0 on.
struct FlatBus(Vec<AtomicU8>);

impl FlatBus {
    fn get(&self, va: GpuVa, len: u64, access: Access) -> Chunk<'_> {
        let start = va.get() as usize;
        Chunk::from_atomics(va, access, &self.0[start..(start + len as usize).min(self.0.len())])
    }
}

impl Bus for FlatBus {
    fn read(&self, va: GpuVa, buf: &mut [u8]) -> Result<(), Fault> {
        self.get(va, buf.len() as u64, Access::Read).read(0, buf)
    }

    fn write(&self, va: GpuVa, buf: &[u8]) -> Result<(), Fault> {
        self.get(va, buf.len() as u64, Access::Write).write(0, buf)
    }

    fn read_u32(&self, va: GpuVa) -> Result<u32, Fault> {
        let mut bytes = [0; 4];
        self.read(va, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn read_u64(&self, va: GpuVa) -> Result<u64, Fault> {
        let mut bytes = [0; 8];
        self.read(va, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write_u32(&self, va: GpuVa, value: u32) -> Result<(), Fault> {
        self.write(va, &value.to_le_bytes())
    }

    fn write_u64(&self, va: GpuVa, value: u64) -> Result<(), Fault> {
        self.write(va, &value.to_le_bytes())
    }

    fn atomic_u32(&self, va: GpuVa, update: &mut dyn FnMut(u32) -> u32) -> Result<u32, Fault> {
        let old = self.read_u32(va)?;
        self.write_u32(va, update(old))?;
        Ok(old)
    }

    fn atomic_u64(&self, va: GpuVa, update: &mut dyn FnMut(u64) -> u64) -> Result<u64, Fault> {
        let old = self.read_u64(va)?;
        self.write_u64(va, update(old))?;
        Ok(old)
    }

    fn chunk(&self, va: GpuVa, len: u64, access: Access) -> Result<Chunk<'_>, Fault> {
        Ok(self.get(va, len, access))
    }

    fn timestamp(&self) -> u64 {
        0
    }

    fn context_timestamp(&self) -> u64 {
        0
    }

    fn count(&self, _work: Work) {}

    fn user_interrupt(&self) {}
}

fn best(mut round: impl FnMut()) -> Duration {
    (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed()
        })
        .min()
        .unwrap_or_default()
}

fn run(bus: &FlatBus, command: &[u32]) {
    let mut batch = command.to_vec();
    batch.push(0x0a << 23);
    for (index, dword) in batch.iter().enumerate() {
        bus.write_u32(GpuVa::new(4 * index as u64), *dword).expect("plain memory");
    }
    let mut streamer = Streamer::new(EngineClass::Copy);
    streamer.start(GpuVa::new(0));
    while streamer.step(bus).expect("a valid batch") != Progress::BatchEnd {}
}

/// A copy of 4096 x 4096 pixels of 32 bits; tilings are codes of the command.
fn block_copy(from_tiling: u32, to_tiling: u32, from_pitch: u32, to_pitch: u32) -> [u32; 12] {
    let control =
        |tiling: u32, pitch: u32| (if tiling == 0 { pitch } else { pitch / 4 } - 1) | (tiling << 30);
    let corner = (4096 << 16) | 4096;
    let mut command = [0; 12];
    command[0] = (2 << 29) | (0x41 << 22) | (2 << 19) | 10;
    command[1] = control(to_tiling, to_pitch);
    command[3] = corner;
    command[4] = DESTINATION as u32;
    command[8] = control(from_tiling, from_pitch);
    command[9] = SOURCE as u32;
    command
}

fn main() {
    let bus = FlatBus((0..2 * SIZE + 2 * MIB).map(|at| AtomicU8::new(at as u8)).collect());
    let from = vec![1_u8; SIZE as usize];
    let mut to = vec![2_u8; SIZE as usize];
    let memcpy = best(|| black_box(&mut to).copy_from_slice(black_box(&from)));
    drop((from, to));
    let report = |name: &str, time: Duration| {
        let bandwidth = SIZE as f64 / time.as_secs_f64() / 1e9;
        println!(
            "{name:<24} {bandwidth:7.2} GB/s  {:5.2} of memcpy",
            memcpy.as_secs_f64() / time.as_secs_f64()
        );
    };
    report("memcpy", memcpy);
    let (linear, x, tile4, tile64) = (0, 1, 2, 3);
    for (name, command) in [
        ("linear, one piece", block_copy(linear, linear, 16384, 16384)),
        ("linear, rows", block_copy(linear, linear, 16384, 16448)),
        ("linear to X", block_copy(linear, x, 16384, 16384)),
        ("linear to Tile4", block_copy(linear, tile4, 16384, 16384)),
        ("Tile4 to linear", block_copy(tile4, linear, 16384, 16384)),
        ("Tile4 to Tile4", block_copy(tile4, tile4, 16384, 16384)),
        ("linear to Tile64", block_copy(linear, tile64, 16384, 16384)),
    ] {
        report(name, best(|| run(&bus, &command)));
    }
    let mut fill = [0; 16];
    fill[0] = (2 << 29) | (0x44 << 22) | (2 << 19) | 14;
    fill[1] = 16384 - 1;
    fill[3] = (4096 << 16) | 4096;
    fill[4] = DESTINATION as u32;
    fill[7] = 0x1234_5678;
    fill[13] = 1 << 29;
    fill[15] = 15 << 8;
    report("fill, linear", best(|| run(&bus, &fill)));
    fill[1] = (2 << 30) | (16384 / 4 - 1);
    report("fill, Tile4", best(|| run(&bus, &fill)));
}
