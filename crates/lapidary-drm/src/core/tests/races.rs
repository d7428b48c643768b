//! Calls that race with one another, and calls that mean nothing: nothing panics, nothing leaks.

use super::*;

/// A small generator: the same calls at every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[(self.next() % choices.len() as u64) as usize]
    }
}

#[test]
fn handles_that_are_made_named_and_closed_at_once_leave_nothing() {
    let bench = Bench::new();
    let file = bench.file();
    let other = bench.file();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let (handle, buffer) = file.0.add_object(MemfdObject::new(4096, false)).unwrap();
                    let name = buffer.flink();
                    let offset = buffer.mmap_offset().unwrap();
                    drop(buffer);
                    // Any thread may close any handle, so whatever is found may be gone a moment later.
                    let _ = file.0.close_buffer(1);
                    let _ = file.0.close_buffer(handle);
                    if let Some(found) = bench.device.names().find(name) {
                        let there = other.0.add_buffer(&found).unwrap();
                        let _ = bench.device.offsets().find(offset);
                        other.0.close_buffer(there).unwrap();
                    }
                }
            });
        }
    });
    drop((file, other));
    assert_eq!(bench.census.survivors(), []);
}

#[test]
fn what_is_added_while_a_file_closes_is_refused_or_closed_with_it() {
    for _ in 0..50 {
        let bench = Bench::new();
        let file = bench.file();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| while file.0.add_object(MemfdObject::new(4096, false)).is_ok() {});
            }
            scope.spawn(|| file.released());
        });
        assert_eq!((bench.live("buffers"), bench.device.clients().len()), (0, 0));
    }
}

#[test]
fn calls_that_mean_nothing_are_refused_and_leave_nothing() {
    let mut bench = Bench::new();
    let files = [bench.file(), bench.open(Node::Primary)];
    bench.client.call(0, |call| call.interrupt().raise());
    let scratch = vec![0_u64; 64];
    let address = scratch.as_ptr() as u64;
    let values = [0, 0, 1, 2, 3, 4, 7, 1 << 19, 0xdead_beef, u64::MAX, u64::MAX >> 1];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..20_000 {
        let mut words: Vec<u64> = (0..8)
            .map(|_| match random.next() % 4 {
                0 => address,
                1 => random.pick(&values) << 32 | random.pick(&values) & 0xffff_ffff,
                _ => random.pick(&values),
            })
            .collect();
        let (nr, size) = (random.next() & 0xff, random.next() % 65);
        let direction = random.next() & 3;
        // The driver's own command would make buffers of any size.
        if nr == u64::from(drm::COMMAND_BASE) {
            continue;
        }
        let command = (direction << 30 | size << 16 | u64::from(drm::BASE) << 8 | nr) as u32;
        let file = &files[(random.next() & 1) as usize];
        let bytes = &mut bytemuck::cast_slice_mut(&mut words)[..size as usize];
        let _ = bench.client.call(address, |call| file.ioctl(call, command, bytes));
    }
    drop(files);
    bench.client.close_all();
    assert_eq!(bench.census.survivors(), []);
}
