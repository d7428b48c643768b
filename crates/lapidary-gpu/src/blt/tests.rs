//! Blits against naive models: where each byte of a tile lies, and what each command does to each byte of memory.

use proptest::prelude::*;

use super::{
    Blit,
    surface::{Image, Kind, Surface},
    tiling::Tiling,
};
use crate::{
    bus::{Bus, FaultKind, GpuVa, Work},
    class::EngineClass,
    cs::{
        CsError, Progress, Streamer,
        decode::BlitOp,
        regs::LegacyTiling,
        test_bus::{PAGE, TestBus},
    },
};

const BASE: u64 = 0x10_0000;

const TILINGS: [Tiling; 5] = [Tiling::Linear, Tiling::X, Tiling::Y, Tiling::Tile4, Tiling::Tile64];

/// Offset in the image of a byte of a two-dimensional surface, written from the drawings of the tiles rather than from their bits.
fn naive_offset(tiling: Tiling, depth: u64, pitch: u64, x: u64, y: u64) -> u64 {
    let tile4 = |x: u64, y: u64| {
        // Cells of 16 bytes by 4 rows; 4 cells make 256 bytes, two such rows a block of 512 bytes, two blocks a row of 1 KiB.
        y / 8 * 1024 + x / 64 * 512 + y % 8 / 4 * 256 + x % 64 / 16 * 64 + y % 4 * 16 + x % 16
    };
    let (width, height) = match (tiling, depth) {
        (Tiling::Linear, _) => return y * pitch + x,
        (Tiling::X, _) => (512, 8),
        (Tiling::Y | Tiling::Tile4, _) => (128, 32),
        (Tiling::Tile64, 1) => (256, 256),
        (Tiling::Tile64, 2 | 4) => (512, 128),
        (Tiling::Tile64, _) => (1024, 64),
    };
    let size = width * height;
    let tile = (y / height) * (pitch / width) + x / width;
    let (x, y) = (x % width, y % height);
    let inside = match tiling {
        Tiling::Linear => unreachable!("handled above"),
        Tiling::X => y * 512 + x,
        Tiling::Y => x / 16 * 512 + y * 16 + x % 16,
        Tiling::Tile4 => tile4(x, y),
        // Rows of Tile4 blocks.
        Tiling::Tile64 => (y / 32 * (width / 128) + x / 128) * 4096 + tile4(x % 128, y % 32),
    };
    tile * size + inside
}

#[test]
fn tile4_is_laid_out_as_drawn() {
    // Numbers of the 64-byte cells, row by row, as the hardware documentation draws them.
    let drawn: [[u64; 8]; 8] = [
        [0, 1, 2, 3, 8, 9, 10, 11],
        [4, 5, 6, 7, 12, 13, 14, 15],
        [16, 17, 18, 19, 24, 25, 26, 27],
        [20, 21, 22, 23, 28, 29, 30, 31],
        [32, 33, 34, 35, 40, 41, 42, 43],
        [36, 37, 38, 39, 44, 45, 46, 47],
        [48, 49, 50, 51, 56, 57, 58, 59],
        [52, 53, 54, 55, 60, 61, 62, 63],
    ];
    let swizzle = Tiling::Tile4.swizzle(4, false).expect("exists").expect("tiled");
    for y in 0..32 {
        for x in 0..128 {
            let cell = drawn[y / 4][x / 16];
            let expected = cell * 64 + (y as u64 % 4) * 16 + x as u64 % 16;
            assert_eq!(swizzle.offset(x as u64, y as u64, 0), expected, "at {x}, {y}");
        }
    }
}

#[test]
fn tiles_agree_with_the_naive_formula() {
    for tiling in &TILINGS[1..] {
        for depth in [1, 2, 4, 8, 16] {
            let swizzle = tiling.swizzle(depth, false).expect("exists").expect("tiled");
            let pitch = 3 * swizzle.width();
            let surface = Surface { swizzle: Some(swizzle), ..Surface::linear(GpuVa::new(0), pitch) };
            for y in 0..2 * swizzle.height() {
                for x in (0..pitch).step_by(7) {
                    let expected = naive_offset(*tiling, depth, pitch, x, y);
                    assert_eq!(surface.address(x, y).get(), expected, "{tiling:?} {depth}: {x}, {y}");
                }
            }
        }
    }
}

#[test]
fn every_tile_is_a_bijection_with_blocks_of_a_page() {
    for (tiling, volume) in TILINGS[1..].iter().map(|&t| (t, false)).chain([(Tiling::Tile64, true)]) {
        for depth in [1, 2, 4, 8, 16] {
            let swizzle = tiling.swizzle(depth, volume).expect("exists").expect("tiled");
            let mut seen = vec![false; swizzle.size() as usize];
            for z in 0..swizzle.depth() {
                for y in 0..swizzle.height() {
                    for x in 0..swizzle.width() {
                        let offset = swizzle.offset(x, y, z) as usize;
                        assert!(!std::mem::replace(&mut seen[offset], true));
                        let block = |x, y| swizzle.offset(x, y, z) / PAGE;
                        let corner = (x - x % swizzle.block_width(), y - y % swizzle.block_height());
                        assert_eq!(block(x, y), block(corner.0, corner.1));
                    }
                }
            }
            assert!(seen.iter().all(|&seen| seen));
        }
    }
}

#[test]
fn volumes_have_tiles_of_their_own() {
    let size = |depth| {
        let swizzle = Tiling::Tile64.swizzle(depth, true).expect("exists").expect("tiled");
        (swizzle.width() / depth, swizzle.height(), swizzle.depth())
    };
    assert_eq!(
        [1, 2, 4, 8, 16].map(size),
        [(64, 32, 32), (32, 32, 32), (32, 32, 16), (32, 16, 16), (16, 16, 16)]
    );
    assert!(Tiling::Tile64.swizzle(12, false).is_err());
}

fn image(kind: Kind, width: u64, height: u64) -> Image {
    Image { kind, width, height, level: 0, slice: 0, slice_pitch: 0, align_x: 32, align_y: 4, tail: 15 }
}

#[test]
fn levels_lie_below_and_beside_each_other() {
    // 100 x 50: level 1 is 50 x 25 below, level 2 beside it, level 3 below level 2.
    let corner = |level| {
        let image = Image { level, ..image(Kind::Two, 100, 50) };
        let surface = image.place(GpuVa::new(0), 4096, Tiling::Tile4, 4).expect("exists");
        (surface.x / 4, surface.y)
    };
    assert_eq!([0, 1, 2, 3, 4].map(corner), [(0, 0), (0, 52), (64, 52), (64, 64), (64, 72)]);
}

#[test]
fn slices_follow_at_the_slice_pitch() {
    let image = Image { level: 1, slice: 3, slice_pitch: 80, ..image(Kind::Two, 100, 50) };
    let surface = image.place(GpuVa::new(0), 4096, Tiling::Linear, 4).expect("exists");
    assert_eq!((surface.x, surface.y), (0, 3 * 80 + 52));
}

#[test]
fn one_dimensional_levels_lie_side_by_side() {
    let image = Image { level: 2, slice: 1, slice_pitch: 256, ..image(Kind::One, 100, 1) };
    let surface = image.place(GpuVa::new(0), 4096, Tiling::Linear, 4).expect("exists");
    assert_eq!((surface.x / 4, surface.y), (256 + 128 + 64, 0));
}

#[test]
fn tile64_aligns_levels_to_tiles_and_packs_the_tail() {
    let corner = |level, tail| {
        let image = Image { level, tail, ..image(Kind::Two, 300, 200) };
        let surface = image.place(GpuVa::new(0), 4096, Tiling::Tile64, 4).expect("exists");
        (surface.x / 4, surface.y)
    };
    assert_eq!(corner(1, 15), (0, 256));
    assert_eq!(corner(2, 15), (256, 256));
    // The tail's tile is where its first level would be; the tile is 128 x 128 pixels.
    assert_eq!(corner(2, 2), (256 + 64, 256));
    assert_eq!(corner(3, 2), (256, 256 + 64));
    assert_eq!(corner(7, 2), (256 + 8, 256 + 16));
    assert_eq!(corner(13, 2), (256, 256));
    assert_eq!(corner(14, 2), (256, 256 + 4));
}

#[test]
fn slices_of_a_volume_share_tiles() {
    let place = |slice, tail| {
        let image = Image { slice, tail, slice_pitch: 64, ..image(Kind::Three, 32, 32) };
        let surface = image.place(GpuVa::new(0), 4096, Tiling::Tile64, 4).expect("exists");
        (surface.x / 4, surface.y, surface.z)
    };
    assert_eq!(place(5, 15), (0, 0, 5));
    assert_eq!(place(35, 15), (0, 128, 3));
    assert_eq!(place(1, 0), (16, 0, 1));
}

/// One side of a copy, as a client would describe it.
#[derive(Clone, Copy, Debug)]
struct Side {
    tiling: Tiling,
    pitch: u64,
    base: u64,
    x: u64,
    y: u64,
}

/// Half of the test memory belongs to each side.
const HALF: u64 = 512 << 10;

impl Side {
    fn offset(&self, depth: u64, x: u64, y: u64) -> u64 {
        self.base + naive_offset(self.tiling, depth, self.pitch, self.x * depth + x, self.y + y)
    }
}

fn depths() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![1_u64, 2, 4, 8, 12, 16])
}

fn side(depth: u64, base: u64) -> impl Strategy<Value = Side> {
    let tilings = if depth == 12 { &TILINGS[..4] } else { &TILINGS[..] };
    (prop::sample::select(tilings.to_vec()), 1..3_u64, 0..40_u64, 0..40_u64, 0..300_u64).prop_map(
        move |(tiling, tiles, x, y, shift)| {
            let (pitch, shift) = match tiling.swizzle(depth, false).expect("exists") {
                None => (100 * depth + shift % 61, shift),
                Some(swizzle) => (tiles.max(2100_u64.div_ceil(swizzle.width())) * swizzle.width(), 0),
            };
            Side { tiling, pitch, base: base + shift, x, y }
        },
    )
}

fn depth_code(depth: u64) -> u32 {
    match depth {
        12 => 4,
        16 => 5,
        _ => depth.trailing_zeros(),
    }
}

fn tiling_code(tiling: Tiling) -> u32 {
    match tiling {
        Tiling::Linear => 0,
        Tiling::X => 1,
        Tiling::Y | Tiling::Tile4 => 2,
        Tiling::Tile64 => 3,
    }
}

fn pitch_field(side: &Side) -> u32 {
    let unit = if side.tiling == Tiling::Linear { 1 } else { 4 };
    (side.pitch / unit) as u32
}

fn point(x: u64, y: u64) -> u32 {
    (y << 16 | x) as u32
}

fn block_copy(depth: u64, from: &Side, to: &Side, width: u64, height: u64) -> Vec<u32> {
    let mut command = vec![0; 12];
    command[0] = 2 << 29 | 0x41 << 22 | depth_code(depth) << 19 | 10;
    command[1] = (pitch_field(to) - 1) | (tiling_code(to.tiling) << 30);
    command[2] = point(to.x, to.y);
    command[3] = point(to.x + width, to.y + height);
    command[4] = to.base as u32;
    command[7] = point(from.x, from.y);
    command[8] = (pitch_field(from) - 1) | (tiling_code(from.tiling) << 30);
    command[9] = from.base as u32;
    command
}

fn fast_copy(depth: u64, from: &Side, to: &Side, width: u64, height: u64) -> Vec<u32> {
    let depth_code = match depth {
        1 | 2 => depth - 1,
        4 => 3,
        8 => 4,
        _ => 5,
    } as u32;
    let type_bit = |side: &Side| u32::from(side.tiling != Tiling::Y);
    let mut command = vec![0; 10];
    command[0] = 2 << 29 | 0x42 << 22 | 8 | tiling_code(to.tiling) << 13 | tiling_code(from.tiling) << 20;
    command[1] = pitch_field(to) | depth_code << 24 | type_bit(to) << 30 | type_bit(from) << 31;
    command[2] = point(to.x, to.y);
    command[3] = point(to.x + width, to.y + height);
    command[4] = to.base as u32;
    command[6] = point(from.x, from.y);
    command[7] = pitch_field(from);
    command[8] = from.base as u32;
    command
}

fn memory(scattered: bool) -> TestBus {
    let pages = 2 * HALF / PAGE + 4;
    let bus = if scattered { TestBus::scattered(BASE, pages) } else { TestBus::new(BASE, pages) };
    let noise: Vec<u8> = (0..pages * PAGE).map(|at| ((at * 2_654_435_761) >> 13) as u8).collect();
    bus.write(GpuVa::new(BASE), &noise).expect("mapped");
    bus
}

/// Runs a blit in small pieces.
fn run(bus: &TestBus, op: BlitOp, command: &[u32], budget: u64) {
    let blit = Blit::new(op, command, LegacyTiling::default()).expect("valid");
    let Some(mut blit) = blit else { return };
    let pieces = std::iter::repeat_with(|| blit.run(bus, budget).expect("mapped"));
    assert!(pieces.take(1 << 20).any(|done| done), "the blit does not end");
}

fn all(bus: &TestBus) -> Vec<u8> {
    bus.dump(BASE, 2 * HALF)
}

fn copy_cases() -> impl Strategy<Value = (u64, Side, Side, u64, u64)> {
    depths().prop_flat_map(|depth| {
        let sides = (side(depth, BASE), side(depth, BASE + HALF));
        (Just(depth), sides, 1..90_u64, 1..70_u64)
            .prop_map(|(depth, (from, to), width, height)| (depth, from, to, width, height))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn copies_move_every_byte_of_the_rectangle_and_no_other(
        (depth, from, to, width, height) in copy_cases(),
        scattered: bool,
        budget in 1..20_000_u64,
    ) {
        let bus = memory(scattered);
        let before = all(&bus);
        let mut expected = before.clone();
        for y in 0..height {
            for x in 0..width * depth {
                let source = from.offset(depth, x, y) - BASE;
                let target = to.offset(depth, x, y) - BASE;
                prop_assume!(source < HALF && (HALF..2 * HALF).contains(&target));
                expected[target as usize] = before[source as usize];
            }
        }
        let has_y = from.tiling == Tiling::Y || to.tiling == Tiling::Y;
        if has_y {
            prop_assume!(depth != 12);
            run(&bus, BlitOp::FastCopy, &fast_copy(depth, &from, &to, width, height), budget);
        } else {
            run(&bus, BlitOp::BlockCopy, &block_copy(depth, &from, &to, width, height), budget);
        }
        prop_assert!(all(&bus) == expected, "memory differs");
    }

    #[test]
    fn fills_write_every_pixel_of_the_rectangle_and_no_other(
        (depth, _, to, width, height) in copy_cases(),
        colour: [u32; 4],
        scattered: bool,
        budget in 1..20_000_u64,
    ) {
        prop_assume!(to.tiling != Tiling::Y);
        let bus = memory(scattered);
        let mut expected = all(&bus);
        let bytes: Vec<u8> = colour.iter().flat_map(|dword| dword.to_le_bytes()).collect();
        for y in 0..height {
            for x in 0..width * depth {
                let target = to.offset(depth, x, y) - BASE;
                prop_assume!((HALF..2 * HALF).contains(&target));
                expected[target as usize] = bytes[(x % depth) as usize];
            }
        }
        let mut command = vec![0; 16];
        command[0] = 2 << 29 | 0x44 << 22 | depth_code(depth) << 19 | 14;
        command[1] = (pitch_field(&to) - 1) | (tiling_code(to.tiling) << 30);
        command[2] = point(to.x, to.y);
        command[3] = point(to.x + width, to.y + height);
        command[4] = to.base as u32;
        command[7..11].copy_from_slice(&colour);
        // A plain 2D image whose mip tail begins beyond its only level.
        command[13] = 1 << 29;
        command[15] = 15 << 8;
        run(&bus, BlitOp::FastColor, &command, budget);
        prop_assert!(all(&bus) == expected, "memory differs");
    }
}

#[test]
fn a_block_copy_finds_levels_and_slices() {
    // Level 1 of slice 2 of a 40 x 24 image of 32-bit pixels in Tile4, slices 48 rows apart, to a linear buffer.
    let bus = memory(true);
    let before = all(&bus);
    let from = Side { tiling: Tiling::Tile4, pitch: 256, base: BASE, x: 3, y: 5 };
    let to = Side { tiling: Tiling::Linear, pitch: 100, base: BASE + HALF, x: 0, y: 0 };
    let mut command = block_copy(4, &from, &to, 10, 6);
    command[0] += 10;
    command.resize(22, 0);
    // The destination is plain; both have the mip tail beyond their levels.
    command[16] = 1 << 29;
    command[18] = 15 << 8;
    command[19] = (1 << 29) | ((40 - 1) << 14) | (24 - 1);
    command[20] = 1 | ((48 >> 2) << 4);
    command[21] = 1 | (1 << 3) | (15 << 8) | (2 << 21);
    run(&bus, BlitOp::BlockCopy, &command, 13);
    for (x, y) in (0..40).flat_map(|x| (0..6).map(move |y| (x, y))) {
        // Level 1 lies below the 24 rows of level 0.
        let source = naive_offset(Tiling::Tile4, 4, 256, 3 * 4 + x, 2 * 48 + 24 + 5 + y) as usize;
        assert_eq!(bus.dump(BASE + HALF + y * 100 + x, 1), before[source..=source]);
    }
}

#[test]
fn offsets_add_to_the_coordinates() {
    let bus = memory(false);
    let before = all(&bus);
    let from = Side { tiling: Tiling::X, pitch: 1024, base: BASE, x: 1, y: 1 };
    let to = Side { tiling: Tiling::Tile4, pitch: 256, base: BASE + HALF, x: 2, y: 2 };
    let mut command = block_copy(2, &from, &to, 4, 4);
    command[6] = point(30, 20);
    command[11] = point(7, 9);
    run(&bus, BlitOp::BlockCopy, &command, 1 << 20);
    for (x, y) in (0..8).flat_map(|x| (0..4).map(move |y| (x, y))) {
        let source = naive_offset(Tiling::X, 2, 1024, 8 * 2 + x, 10 + y) as usize;
        let target = naive_offset(Tiling::Tile4, 2, 256, 32 * 2 + x, 22 + y);
        assert_eq!(bus.dump(BASE + HALF + target, 1), before[source..=source]);
    }
}

fn mem_copy(from: u64, to: u64, len: u32) -> [u32; 10] {
    [2 << 29 | 0x5a << 22 | 8, len - 1, 0, 0, 0, from as u32, 0, to as u32, 0, 0]
}

#[test]
fn mem_copy_moves_bytes_pages_and_matrices() {
    let (from, to) = (BASE + 3, BASE + HALF + 5);
    let bus = memory(true);
    let before = all(&bus);
    run(&bus, BlitOp::MemCopy, &mem_copy(from, to, 0x8fff), 1000);
    assert_eq!(bus.dump(to, 0x8fff), before[3..3 + 0x8fff]);
    assert_eq!(bus.dump(to + 0x8fff, 64), before[(HALF + 5 + 0x8fff) as usize..][..64]);

    let mut pages = mem_copy(from, to, 17);
    pages[0] |= 1 << 19;
    let bus = memory(false);
    run(&bus, BlitOp::MemCopy, &pages, u64::MAX);
    assert_eq!(bus.dump(to, 17 * 256), before[3..3 + 17 * 256]);

    let mut matrix = mem_copy(from, to, 200);
    matrix[0] |= 1 << 17;
    matrix[2..5].copy_from_slice(&[126, 255, 299]);
    let bus = memory(true);
    run(&bus, BlitOp::MemCopy, &matrix, 999);
    for row in 0..127 {
        let source = (3 + row * 256) as usize;
        assert_eq!(bus.dump(to + row * 300, 200), before[source..source + 200]);
        let gap = (HALF + 5 + row * 300 + 200) as usize;
        assert_eq!(bus.dump(to + row * 300 + 200, 100), before[gap..gap + 100]);
    }
}

#[test]
fn mem_set_fills_bytes_and_matrices() {
    let bus = memory(true);
    let to = BASE + 7;
    let command = [2 << 29 | 0x5b << 22 | 5, 0x4_ffff, 0, 0, to as u32, 0, 0x8b00_0018];
    run(&bus, BlitOp::MemSet, &command, 1 << 20);
    assert!(bus.dump(to, 0x5_0000).iter().all(|&byte| byte == 0x8b));
    assert_ne!(bus.dump(to + 0x5_0000, 16), [0x8b; 16]);

    let bus = memory(false);
    let command = [2 << 29 | 0x5b << 22 | 1 << 17 | 5, 9, 4, 63, to as u32, 0, 0x5a << 24];
    let before = all(&bus);
    run(&bus, BlitOp::MemSet, &command, 3);
    for row in 0..5 {
        assert_eq!(bus.dump(to + row * 64, 10), [0x5a; 10]);
        let gap = (7 + row * 64 + 10) as usize;
        assert_eq!(bus.dump(to + row * 64 + 10, 54), before[gap..gap + 54]);
    }
}

#[test]
fn legacy_copies_and_fills_know_x_and_y_tiles() {
    let (from, to) = (BASE, BASE + HALF);
    for y_tiled in [false, true] {
        let tiling = if y_tiled { Tiling::Y } else { Tiling::X };
        let legacy = LegacyTiling { source_y: false, destination_y: y_tiled };
        let bus = memory(true);
        let before = all(&bus);
        let command = [
            2 << 29 | 0x53 << 22 | 3 << 20 | 1 << 11 | 8,
            3 << 24 | 0xcc << 16 | (1024 / 4),
            point(5, 7),
            point(105, 47),
            to as u32,
            0,
            point(2, 3),
            512,
            from as u32,
            0,
        ];
        let mut blit = Blit::new(BlitOp::XySrcCopy, &command, legacy).expect("valid").expect("not empty");
        while !blit.run(&bus, 777).expect("mapped") {}
        for (x, y) in (0..400).flat_map(|x| (0..40).map(move |y| (x, y))) {
            let target = to + naive_offset(tiling, 4, 1024, 20 + x, 7 + y);
            let source = ((3 + y) * 512 + 8 + x) as usize;
            assert_eq!(bus.dump(target, 1), before[source..=source]);
        }

        let fill = [
            2 << 29 | 0x50 << 22 | 3 << 20 | 1 << 11 | 5,
            3 << 24 | 0xf0 << 16 | (1024 / 4),
            point(1, 1),
            point(9, 3),
            to as u32,
            0,
            0xdead_beef,
        ];
        let mut blit = Blit::new(BlitOp::XyColor, &fill, legacy).expect("valid").expect("not empty");
        while !blit.run(&bus, 10).expect("mapped") {}
        for (x, y) in (1..9).flat_map(|x| (1..3).map(move |y| (x, y))) {
            assert_eq!(bus.get(to + naive_offset(tiling, 4, 1024, 4 * x, y)), 0xdead_beef);
        }
    }
}

#[test]
fn empty_rectangles_touch_nothing() {
    let bus = TestBus::new(BASE, 1);
    let side = Side { tiling: Tiling::Linear, pitch: 64, base: 0, x: 4, y: 4 };
    for (width, height) in [(0, 5), (5, 0)] {
        run(&bus, BlitOp::BlockCopy, &block_copy(4, &side, &side, width, height), 1);
    }
}

#[test]
fn reserved_fields_are_refused() {
    let refused = |op, command: &[u32]| Blit::new(op, command, LegacyTiling::default()).is_err();
    let side = Side { tiling: Tiling::Linear, pitch: 64, base: BASE, x: 0, y: 0 };
    let good = block_copy(4, &side, &side, 4, 4);
    let changed = |index: usize, bits: u32| {
        let mut command = good.clone();
        command[index] |= bits;
        command
    };
    assert!(!refused(BlitOp::BlockCopy, &good));
    assert!(refused(BlitOp::BlockCopy, &changed(0, 7 << 19)), "colour depth");
    assert!(refused(BlitOp::BlockCopy, &changed(0, 3 << 12)), "mode");
    assert!(refused(BlitOp::BlockCopy, &changed(2, 0x8000)), "negative coordinate");
    assert!(refused(BlitOp::BlockCopy, &good[..8]), "too short");
    let tile64 = Side { tiling: Tiling::Tile64, ..side };
    assert!(refused(BlitOp::BlockCopy, &block_copy(12, &side, &tile64, 4, 4)), "no such tiling");
    let mut extended = good.clone();
    extended.resize(22, 0);
    extended[16] = 5 << 29;
    assert!(refused(BlitOp::BlockCopy, &extended), "surface type");
    let mut copy = mem_copy(BASE, BASE, 4);
    copy[0] |= 3 << 17;
    assert!(refused(BlitOp::MemCopy, &copy));
    assert!(refused(BlitOp::MemSet, &[2 << 29, 0]));
}

#[test]
fn a_copy_onto_a_later_part_of_itself_goes_forward() {
    // Like a hardware copy of cache lines in order: the first line repeats through the destination.
    let bus = memory(true);
    let first = bus.dump(BASE, 64);
    run(&bus, BlitOp::MemCopy, &mem_copy(BASE, BASE + 64, 64 * 100), 1000);
    for line in 0..=100 {
        assert_eq!(bus.dump(BASE + 64 * line, 64), first, "line {line}");
    }
    // Backward overlap is a plain move.
    let bus = memory(false);
    let before = bus.dump(BASE + 100, 5000);
    run(&bus, BlitOp::MemCopy, &mem_copy(BASE + 100, BASE, 5000), 1 << 20);
    assert_eq!(bus.dump(BASE, 5000), before);
}

#[test]
fn whole_rows_of_linear_surfaces_are_one_copy() {
    let bus = memory(false);
    let from = Side { tiling: Tiling::Linear, pitch: 4096, base: BASE, x: 0, y: 0 };
    let to = Side { base: BASE + HALF, ..from };
    run(&bus, BlitOp::BlockCopy, &block_copy(16, &from, &to, 256, 32), u64::MAX);
    assert_eq!(bus.dump(BASE + HALF, 32 * 4096), bus.dump(BASE, 32 * 4096));
    assert_eq!(*bus.work.borrow(), [Work::Copied(32 * 4096)], "in a single piece");
}

#[test]
fn null_pages_read_as_zero_and_swallow_writes() {
    let bus = memory(true);
    bus.make_null(BASE + PAGE);
    run(&bus, BlitOp::MemCopy, &mem_copy(BASE, BASE + HALF, 3 * PAGE as u32), 1 << 20);
    assert_eq!(bus.dump(BASE + HALF + PAGE, PAGE), vec![0; PAGE as usize]);
    let tiled = Side { tiling: Tiling::Tile4, pitch: 128, base: BASE, x: 0, y: 0 };
    let linear = Side { tiling: Tiling::Linear, pitch: 128, base: BASE + HALF, x: 0, y: 0 };
    run(&bus, BlitOp::BlockCopy, &block_copy(4, &tiled, &linear, 32, 64), 1 << 20);
    assert_eq!(bus.dump(BASE + HALF + 4096, 4096), vec![0; 4096]);
    run(&bus, BlitOp::BlockCopy, &block_copy(4, &linear, &tiled, 32, 64), 1 << 20);
}

#[test]
fn a_blit_resumes_after_a_fault() {
    let bus = memory(true);
    let before = all(&bus);
    let batch = BASE + 2 * HALF;
    bus.put(batch, &[mem_copy(BASE, BASE + HALF, 0x8000).as_slice(), &[0x0a << 23]].concat());
    let mut streamer = Streamer::new(EngineClass::Copy);
    streamer.start(GpuVa::new(batch));
    let hole = BASE + HALF + 3 * PAGE;
    let restore = bus.unmap(hole);
    let fault = loop {
        match streamer.step(&bus) {
            Ok(Progress::Ran) => {}
            Err(CsError::Fault(fault)) => break fault,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((fault.va, fault.kind), (GpuVa::new(hole), FaultKind::NotPresent));
    assert_eq!(streamer.place(), Some(GpuVa::new(batch)));
    restore(&bus);
    while streamer.step(&bus).expect("mapped") != Progress::BatchEnd {}
    assert_eq!(bus.dump(BASE + HALF, 0x8000), before[..0x8000]);
}

#[test]
fn a_read_only_destination_faults() {
    let bus = memory(false);
    bus.protect(BASE + HALF);
    let command = mem_copy(BASE, BASE + HALF, 64);
    let mut blit =
        Blit::new(BlitOp::MemCopy, &command, LegacyTiling::default()).expect("valid").expect("some");
    assert_eq!(blit.run(&bus, 1 << 20).expect_err("read-only").kind, FaultKind::ReadOnly);
}

#[test]
fn steps_of_a_long_blit_are_bounded() {
    let bus = memory(false);
    let batch = BASE + 2 * HALF;
    // 24 bits of width: far more than the memory, but the first step stays below its bound.
    bus.put(batch, &[2 << 29 | 0x5b << 22 | 5, 0xff_ffff, 0, 0, BASE as u32, 0, 0]);
    let mut streamer = Streamer::new(EngineClass::Copy);
    streamer.start(GpuVa::new(batch));
    assert_eq!(streamer.step(&bus), Ok(Progress::Ran));
    assert_eq!(streamer.step(&bus), Ok(Progress::Ran));
    let filled: u64 =
        bus.work.borrow().iter().map(|work| if let Work::Filled(bytes) = work { *bytes } else { 0 }).sum();
    assert_eq!(filled, 1 << 20);
}
