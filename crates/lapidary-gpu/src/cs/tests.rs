//! What each command does, and how a streamer moves through batches.

use super::{
    CsError, Progress, Streamer,
    decode::{BlitOp, Command, Mi, decode},
    test_bus::TestBus,
};
use crate::{
    bus::{Access, FaultKind, GpuVa, Work},
    class::EngineClass,
};

const BATCH: u64 = 0x10_0000;
const DATA: u64 = 0x11_0000;
const LOW: u32 = DATA as u32;
const END: u32 = 0x0a << 23;

fn mi(opcode: u32, rest: u32) -> u32 {
    opcode << 23 | rest
}

fn store(address: u64, value: u32) -> [u32; 4] {
    [mi(0x20, 2), address as u32, (address >> 32) as u32, value]
}

fn jump(address: u64) -> [u32; 3] {
    [mi(0x31, 1 << 8 | 1), address as u32, (address >> 32) as u32]
}

fn setup(commands: &[&[u32]]) -> (TestBus, Streamer) {
    let bus = TestBus::new(BATCH, 32);
    bus.put(BATCH, &commands.concat());
    let mut streamer = Streamer::new(EngineClass::Render);
    streamer.start(GpuVa::new(BATCH));
    (bus, streamer)
}

/// Runs a batch to its end, and returns the bus for a look at memory.
fn run(commands: &[&[u32]]) -> TestBus {
    let (bus, mut streamer) = setup(&[commands.concat().as_slice(), &[END]]);
    run_to_end(&mut streamer, &bus);
    bus
}

fn run_to_end(streamer: &mut Streamer, bus: &TestBus) {
    for _ in 0..10_000 {
        match streamer.step(bus).expect("the batch is valid") {
            Progress::BatchEnd => return,
            Progress::Waiting => panic!("the batch waits"),
            Progress::Ran | Progress::JumpedBack => {}
        }
    }
    panic!("the batch does not end");
}

fn error_of(commands: &[&[u32]]) -> CsError {
    let (bus, mut streamer) = setup(commands);
    loop {
        match streamer.step(&bus) {
            Err(error) => return error,
            Ok(Progress::BatchEnd) => panic!("the batch ended"),
            Ok(_) => {}
        }
    }
}

fn is_invalid(commands: &[&[u32]]) -> bool {
    matches!(error_of(commands), CsError::InvalidCommand { .. })
}

#[test]
fn lengths_follow_from_the_header() {
    let length = |header, class| decode(header, class).map(|decoded| decoded.dwords);
    for (header, dwords) in [
        (mi(0x00, 0), 1),
        (mi(0x09, 3), 1),
        (END, 1),
        (mi(0x31, 1), 3),
        (mi(0x20, 0x3ff), 1025),
        (mi(0x27, 0x100), 258),
        (mi(0x26, 0x3 | 0x40), 5),
        (mi(0x28, 2), 4),
        (mi(0x22, 0xff), 257),
        (0x6904_0000, 1), // PIPELINE_SELECT: single dword
        (0x780b_0005, 1),
        (0x680b_0001, 1),           // VF_STATISTICS
        (0x7917_0000 | 0x1ff, 513), // SO_DECL_LIST
        (0x7845_0000 | 0x1ff, 513), // BINDING_TABLE_EDIT
        (0x7a00_0000 | 4, 6),       // PIPE_CONTROL
        (0x7b00_0000 | 5, 7),       // 3DPRIMITIVE
        (0x7208_0000 | 38, 40),     // COMPUTE_WALKER
        (0xa300_0003, 5),           // RESOURCE_BARRIER
    ] {
        assert_eq!(length(header, EngineClass::Render), Some(dwords), "{header:#x}");
    }
    assert_eq!(length(2 << 29 | 0x41 << 22 | 20, EngineClass::Copy), Some(22));
    assert_eq!(length(0x7000_0000 | 0xfff, EngineClass::VideoDecode), Some(4097));
    assert_eq!(length(0x7000_0000 | 0xfff, EngineClass::Render), Some(257));
}

#[test]
fn commands_are_told_apart() {
    let command = |header, class| decode(header, class).map(|decoded| decoded.command);
    assert_eq!(command(0x7b00_0005, EngineClass::Render), Some(Command::Draw));
    assert_eq!(command(0x7208_0026, EngineClass::Compute), Some(Command::Compute));
    assert_eq!(command(0x7c01_002b, EngineClass::Compute), Some(Command::Compute));
    assert_eq!(command(0x7200_0004, EngineClass::Compute), Some(Command::State));
    assert_eq!(command(mi(0x09, 3), EngineClass::Copy), Some(Command::Mi(Mi::Noop)));
    let set = 2 << 29 | 0x5b << 22 | 5;
    assert_eq!(command(set, EngineClass::Copy), Some(Command::Blit(BlitOp::MemSet)));
    assert_eq!(command(set, EngineClass::Render), None);
}

#[test]
fn unknown_and_reserved_headers_are_invalid() {
    for header in [0xdead_beef, 0x2000_0000, 0x8000_0000, 0xe000_0000, u32::MAX, mi(0x3f, 0), mi(0x23, 0)] {
        let error = error_of(&[&[header]]);
        let CsError::InvalidCommand { dword, address, .. } = error else { panic!("{error}") };
        assert_eq!((dword, address), (header, GpuVa::new(BATCH)));
    }
}

#[test]
fn an_invalid_command_stays_invalid() {
    let (bus, mut streamer) = setup(&[&[mi(0, 0), 0xdead_beef]]);
    let first = streamer.step(&bus).expect_err("invalid");
    assert_eq!(streamer.step(&bus), Err(first));
    assert_eq!(streamer.place(), Some(GpuVa::new(BATCH + 4)));
}

#[test]
fn no_header_panics() {
    // Every MI and blitter opcode, and a sample of the others, with operands of zeros, ones and an address.
    let bus = TestBus::new(0, 4);
    for class in [EngineClass::Render, EngineClass::Copy] {
        let mut streamer = Streamer::new(class);
        for (high, operand) in (0..0x1000_u32).flat_map(|high| [0, u32::MAX, 0x2000].map(|o| (high, o))) {
            for low in [1, 0x14, 0xf_f008] {
                bus.put(0x100, &[operand; 24]);
                bus.put(0x100, &[high << 20 | low]);
                streamer.start(GpuVa::new(0x100));
                let _ = streamer.step(&bus);
                let _ = streamer.step(&bus);
            }
        }
    }
}

#[test]
fn store_data_imm_stores_dwords_and_qwords() {
    let bus = run(&[
        &store(DATA, 0xc0ffee),
        &[mi(0x20, 1 << 21 | 3), LOW + 8, 0, 0x1111_1111, 0x2222_2222],
        &[mi(0x20, 5), LOW + 16, 0, 1, 2, 3, 4],
    ]);
    assert_eq!(bus.get(DATA), 0xc0ffee);
    assert_eq!(bus.get64(DATA + 8), 0x2222_2222_1111_1111);
    assert_eq!([16, 20, 24, 28].map(|at| bus.get(DATA + at)), [1, 2, 3, 4]);
    assert!(is_invalid(&[&[mi(0x20, 1), LOW, 0]]), "nothing to store");
}

#[test]
fn registers_move_between_immediates_memory_and_each_other() {
    let gpr = |index: u32| 0x600 + 8 * index;
    let relative = 1 << 19;
    let bus = run(&[
        &[mi(0x22, relative | 3), gpr(0), 7, gpr(0) + 4, 9],
        &[mi(0x2a, relative | 1 << 18 | 1), gpr(0) + 4, gpr(3)],
        &[mi(0x24, relative | 2), gpr(0), LOW, 0],
        &[mi(0x24, 2), 0x2000 + gpr(3), LOW + 4, 0],
        &store(DATA + 8, 55),
        &[mi(0x29, relative | 2), gpr(5), LOW + 8, 0],
        &[mi(0x24, relative | 2), gpr(5), LOW + 12, 0],
        // A register of a unit that does not exist keeps its value.
        &[mi(0x22, 1), 0x7034, 0x1234],
        &[mi(0x24, 2), 0x7034, LOW + 16, 0],
    ]);
    assert_eq!([0, 4, 12, 16].map(|at| bus.get(DATA + at)), [7, 9, 55, 0x1234]);
    assert!(is_invalid(&[&[mi(0x22, 2), gpr(0), 1, gpr(1)]]), "a value is missing");
}

#[test]
fn absolute_offsets_name_the_engines_own_block() {
    for (class, base) in [(EngineClass::Copy, 0x2_2000), (EngineClass::Compute, 0x1_a000)] {
        let bus = TestBus::new(BATCH, 32);
        let commands = [mi(0x22, 1 << 19 | 1), 0x600, 42, mi(0x24, 2), base + 0x600, LOW, 0, END];
        bus.put(BATCH, &commands);
        let mut streamer = Streamer::new(class);
        streamer.start(GpuVa::new(BATCH));
        run_to_end(&mut streamer, &bus);
        assert_eq!(bus.get(DATA), 42);
    }
}

#[test]
fn timestamps_are_registers() {
    let (bus, mut streamer) = setup(&[
        &[mi(0x24, 1 << 19 | 2), 0x358, LOW, 0],
        &[mi(0x24, 1 << 19 | 2), 0x35c, LOW + 4, 0],
        &[mi(0x24, 1 << 19 | 2), 0x3a8, LOW + 8, 0],
        &[mi(0x22, 1 << 19 | 1), 0x358, 5],
        &[mi(0x24, 2), 0x2358, LOW + 12, 0, END],
    ]);
    bus.clock.set(0x1_2345_6789);
    bus.context_clock.set(77);
    run_to_end(&mut streamer, &bus);
    assert_eq!([0, 4, 8, 12].map(|at| bus.get(DATA + at)), [0x2345_6789, 1, 77, 0x2345_6789]);
}

#[test]
fn copy_mem_mem_copies_a_dword() {
    let bus = run(&[&store(DATA, 31), &[mi(0x2e, 3), LOW + 64, 0, LOW, 0]]);
    assert_eq!(bus.get(DATA + 64), 31);
}

#[test]
fn atomics_read_modify_and_write() {
    let inline = |code: u32, first: u32, second: u32| {
        [mi(0x2f, code << 8 | 1 << 18 | 9), LOW, 0, first, second, 0, 0, 0, 0, 0, 0]
    };
    let cases: [(u32, u32, [u32; 2], u32); 16] = [
        (0x1, 0b1100, [0b1010, 0], 0b1000),
        (0x2, 0b1100, [0b1010, 0], 0b1110),
        (0x3, 0b1100, [0b1010, 0], 0b0110),
        (0x4, 1, [9, 0], 9),
        (0x5, u32::MAX, [0, 0], 0),
        (0x6, 0, [0, 0], u32::MAX),
        (0x7, 5, [7, 0], 12),
        (0x8, 5, [7, 0], u32::MAX - 1),
        (0x9, 5, [7, 0], 2),
        (0xa, u32::MAX, [3, 0], 3),
        (0xb, u32::MAX, [3, 0], u32::MAX),
        (0xc, u32::MAX, [3, 0], u32::MAX),
        (0xd, u32::MAX, [3, 0], 3),
        (0xe, 5, [5, 8], 8),
        (0xe, 6, [5, 8], 6),
        (0xf, 6, [0, 0], 5),
    ];
    for (code, before, [first, second], after) in cases {
        let bus = run(&[&store(DATA, before), &inline(code, first, second)]);
        assert_eq!(bus.get(DATA), after, "operation {code:#x}");
    }
    assert!(is_invalid(&[&inline(0x10, 0, 0)]));
    assert!(is_invalid(&[&inline(0x4e, 0, 0)]));
}

#[test]
fn atomics_of_qwords_take_operands_from_registers_and_return_the_old_value() {
    let gpr = |index: u32| 0x600 + 8 * index;
    let bus = run(&[
        &[mi(0x20, 1 << 21 | 3), LOW, 0, 0xffff_ffff, 1],
        &[mi(0x22, 1 << 19 | 3), gpr(0), 1, gpr(0) + 4, 0],
        &[mi(0x2f, 0x27 << 8 | 1 << 16 | 1 << 19 | 1), LOW, 0],
        &[mi(0x24, 1 << 19 | 2), gpr(2), LOW + 8, 0],
        &[mi(0x24, 1 << 19 | 2), gpr(2) + 4, LOW + 12, 0],
    ]);
    assert_eq!(bus.get64(DATA), 0x2_0000_0000);
    assert_eq!(bus.get64(DATA + 8), 0x1_ffff_ffff);
}

#[test]
fn math_computes_with_flags() {
    let alu = |opcode: u32, first: u32, second: u32| opcode << 20 | first << 10 | second;
    let (srca, srcb, accu, zf, cf) = (0x20, 0x21, 0x31, 0x32, 0x33);
    let gpr = |index: u32| 0x600 + 8 * index;
    let result = |a: u32, b: u32, operation: u32, flag: u32| {
        let bus = run(&[
            &[mi(0x22, 1 << 19 | 7), gpr(0), a, gpr(0) + 4, 0, gpr(1), b, gpr(1) + 4, 0],
            &[
                mi(0x1a, 3),
                alu(0x080, srca, 0),
                alu(0x080, srcb, 1),
                alu(operation, 0, 0),
                alu(0x180, 2, flag),
            ],
            &[mi(0x24, 1 << 19 | 2), gpr(2), LOW, 0],
            &[mi(0x24, 1 << 19 | 2), gpr(2) + 4, LOW + 4, 0],
        ]);
        bus.get64(DATA)
    };
    assert_eq!(result(5, 7, 0x100, accu), 12);
    assert_eq!(result(5, 7, 0x101, accu), 5_u64.wrapping_sub(7));
    assert_eq!(result(5, 7, 0x101, cf), u64::MAX, "less than");
    assert_eq!(result(7, 5, 0x101, cf), 0);
    assert_eq!(result(7, 7, 0x101, zf), u64::MAX, "equal");
    assert_eq!(result(6, 3, 0x102, accu), 2);
    assert_eq!(result(6, 3, 0x103, accu), 7);
    assert_eq!(result(6, 3, 0x104, accu), 5);
    assert_eq!(result(6, 4, 0x105, accu), 96);
    assert_eq!(result(96, 4, 0x106, accu), 6);
    assert_eq!(result(96, 4, 0x107, accu), 6);
    assert!(is_invalid(&[&[mi(0x1a, 0), alu(0x200, 0, 0)]]));
    assert!(is_invalid(&[&[mi(0x1a, 0), alu(0x080, 0x50, 0)]]));
}

#[test]
fn math_loads_and_stores_indirectly() {
    let alu = |opcode: u32, first: u32, second: u32| opcode << 20 | first << 10 | second;
    let gpr = |index: u32| 0x600 + 8 * index;
    let bus = run(&[
        &[mi(0x20, 1 << 21 | 3), LOW + 64, 0, 0xaaaa, 0xbbbb],
        &[mi(0x22, 1 << 19 | 7), gpr(0), LOW, gpr(0) + 4, 0, gpr(1), 64, gpr(1) + 4, 0],
        &[
            mi(0x1a, 6),
            alu(0x080, 0x20, 0),
            alu(0x080, 0x21, 1),
            alu(0x100, 0, 0),
            alu(0x082, 5, 0x31),
            alu(0x001, 0, 0),
            alu(0x181, 0, 5),
            alu(0x002, 0, 0),
        ],
    ]);
    assert_eq!(bus.get64(DATA), 0xbbbb_0000_aaaa);
}

#[test]
fn a_fault_in_math_leaves_the_registers_for_the_replay() {
    let alu = |opcode: u32, first: u32, second: u32| opcode << 20 | first << 10 | second;
    // R0 += R0, then a load through R0 that faults once.
    let (bus, mut streamer) = setup(&[
        &[mi(0x22, 1 << 19 | 1), 0x600, LOW / 2],
        &[
            mi(0x1a, 4),
            alu(0x080, 0x20, 0),
            alu(0x080, 0x21, 0),
            alu(0x100, 0, 0),
            alu(0x180, 0, 0x31),
            alu(0x082, 1, 0),
        ],
        &[END],
    ]);
    bus.put(DATA, &[99]);
    let restore = bus.unmap(DATA);
    let fault = streamer.step(&bus).expect_err("unmapped");
    assert!(matches!(fault, CsError::Fault(fault) if fault.va == GpuVa::new(DATA)));
    restore(&bus);
    run_to_end(&mut streamer, &bus);
    assert_eq!(streamer.registers().alu.gpr[..2], [DATA, 99]);
}

#[test]
fn predicate_compares_combines_and_guards_stores() {
    let predicate = |source: u32, header: u32| {
        let bus = run(&[
            &[mi(0x22, 1 << 19 | 7), 0x400, 5, 0x404, 0, 0x408, source, 0x40c, 0],
            &[mi(0x22, 1 << 19 | 1), 0x600, 1],
            &[mi(0x0c, header)],
            &[mi(0x24, 1 << 19 | 1 << 21 | 2), 0x600, LOW, 0],
        ]);
        bus.get(DATA) == 1
    };
    let (load, load_inverted, equal) = (2 << 6, 3 << 6, 2);
    assert!(predicate(5, load | equal));
    assert!(!predicate(6, load | equal));
    assert!(predicate(6, load_inverted | equal));
    assert!(!predicate(5, equal), "keep keeps");
    assert!(predicate(6, load_inverted | equal | 2 << 3), "or");
    assert!(!predicate(5, load | equal | 1 << 3), "and");
    assert!(predicate(5, load | equal | 3 << 3), "xor");
}

#[test]
fn a_conditional_jump_follows_the_predicate_result() {
    for (condition, taken) in [(u32::MAX, true), (0, false)] {
        let target = BATCH + 0x1000;
        let (bus, mut streamer) = setup(&[
            &[mi(0x22, 1), 0x2418, condition],
            &[mi(0x01, 3)], // no operation where the result is clear
            &[mi(0x31, 1 << 15 | 1 << 8 | 1), target as u32, 0],
            &[mi(0x01, 0)],
            &store(DATA, 1),
            &[END],
        ]);
        bus.put(target, &[[mi(0x01, 0)].as_slice(), &store(DATA, 2), &[END]].concat());
        run_to_end(&mut streamer, &bus);
        assert_eq!(bus.get(DATA), if taken { 2 } else { 1 });
    }
}

#[test]
fn commands_do_nothing_while_predicated_off() {
    let bus = run(&[&[mi(0x01, 15)], &store(DATA, 1), &[mi(0x01, 0)], &store(DATA + 4, 1)]);
    assert_eq!((bus.get(DATA), bus.get(DATA + 4)), (0, 1));
    assert!(is_invalid(&[&[mi(0x01, 9)]]));
}

#[test]
fn second_level_batches_return() {
    let nested = BATCH + 0x1000;
    let (bus, mut streamer) =
        setup(&[&[mi(0x31, 1 << 22 | 1 << 8 | 1), nested as u32, 0], &store(DATA + 4, 2), &[END]]);
    bus.put(nested, &[store(DATA, 1).as_slice(), &[END]].concat());
    run_to_end(&mut streamer, &bus);
    assert_eq!((bus.get(DATA), bus.get(DATA + 4)), (1, 2));
    assert_eq!(streamer.step(&bus), Ok(Progress::BatchEnd), "the end stays the end");
}

#[test]
fn endless_nesting_is_invalid() {
    assert!(is_invalid(&[&[mi(0x31, 1 << 22 | 1), BATCH as u32, 0]]));
}

#[test]
fn a_batch_patches_its_own_later_jump() {
    let (first, second) = (BATCH + 0x1000, BATCH + 0x2000);
    // The jump lies 4 dwords behind the store that patches its address.
    let (bus, mut streamer) = setup(&[&store(BATCH + 20, second as u32), &jump(first)]);
    bus.put(first, &[store(DATA, 1).as_slice(), &[END]].concat());
    bus.put(second, &[store(DATA, 2).as_slice(), &[END]].concat());
    run_to_end(&mut streamer, &bus);
    assert_eq!(bus.get(DATA), 2);
}

#[test]
fn a_semaphore_waits_and_resumes() {
    let polls = 1 << 15;
    for (operation, before, after) in
        [(0, 10, 11), (1, 9, 10), (2, 10, 9), (3, 11, 10), (4, 0, 10), (5, 10, 0)]
    {
        for length in [2, 3] {
            let mut wait = vec![mi(0x1c, polls | operation << 12 | length), 10, LOW, 0];
            wait.resize(length as usize + 2, 0);
            let (bus, mut streamer) = setup(&[&wait, &store(DATA + 4, 1), &[END]]);
            bus.put(DATA, &[before]);
            assert_eq!(streamer.step(&bus), Ok(Progress::Waiting));
            assert_eq!(streamer.step(&bus), Ok(Progress::Waiting));
            assert_eq!((bus.get(DATA + 4), bus.count_of(Work::Command)), (0, 0), "nothing is consumed");
            bus.put(DATA, &[after]);
            run_to_end(&mut streamer, &bus);
            assert_eq!(bus.get(DATA + 4), 1);
        }
    }
    assert!(is_invalid(&[&[mi(0x1c, polls | 6 << 12 | 2), 0, LOW, 0]]));
}

#[test]
fn a_semaphore_can_poll_a_register() {
    let bus = run(&[
        &[mi(0x22, 1), 0x4208, 0],
        &[mi(0x1c, 1 << 16 | 1 << 15 | 4 << 12 | 3), 0, 0x4208, 0, 0],
        &store(DATA, 1),
    ]);
    assert_eq!(bus.get(DATA), 1);
}

#[test]
fn conditional_end_goes_on_while_the_comparison_holds() {
    let ends = |memory: u32, header: u32, inline: u32| {
        let bus = run(&[&store(DATA, memory), &[mi(0x36, header | 2), inline, LOW, 0], &store(DATA + 4, 1)]);
        bus.get(DATA + 4) == 0
    };
    let compare = 1 << 21;
    assert!(ends(0, compare, 0), "memory is not greater");
    assert!(!ends(1, compare, 0));
    assert!(ends(5, compare | 5 << 12, 5), "memory is not unequal");
    assert!(!ends(6, compare | 5 << 12, 5));
    assert!(!ends(5, compare | 4 << 12, 5));
    assert!(!ends(0, 0, 0), "nothing to compare");
    assert!(is_invalid(&[&[mi(0x36, compare | 7 << 12 | 2), 0, LOW, 0]]));
}

#[test]
fn conditional_end_reads_either_half_of_a_qword() {
    for (at, lower, upper) in [(LOW, 0, 1), (LOW + 4, 1, 0)] {
        let compare = [mi(0x36, 1 << 21 | 2), 0, at, 0];
        let bus = run(&[&store(DATA, lower), &store(DATA + 4, upper), &compare, &store(DATA + 8, 1)]);
        assert_eq!(bus.get(DATA + 8), 0, "the dword at {at:#x} is not greater than 0");
    }
}

#[test]
fn conditional_end_can_mask_memory() {
    // The pair in memory is a mask and a value.
    let ends = |mask: u32, value: u32| {
        let bus = run(&[
            &store(DATA, mask),
            &store(DATA + 4, value),
            &[mi(0x36, 1 << 21 | 1 << 19 | 4 << 12 | 2), 0x10, LOW, 0],
            &store(DATA + 8, 1),
        ]);
        bus.get(DATA + 8) == 0
    };
    assert!(!ends(0xf0, 0x1f));
    assert!(ends(0xff, 0x1f));
}

#[test]
fn flushes_write_immediates_and_timestamps() {
    let (bus, mut streamer) = setup(&[
        &[mi(0x26, 1 << 14 | 3), LOW, 0, 0x1111, 0x2222],
        &[mi(0x26, 3 << 14 | 3), LOW + 8, 0, 0, 0],
        &[mi(0x26, 1 << 14 | 2), LOW + 16, 0, 0x3333],
        &[mi(0x26, 3), LOW + 24, 0, 0x4444, 0],
        &[0x7a00_0004, 1 << 14, LOW + 32, 0, 0x5555, 0x6666],
        &[0x7a00_0004, 3 << 14, LOW + 40, 0, 0, 0],
        &[0x7a00_0004, 2 << 14, LOW + 48, 0, 7, 0],
        &[0x7a00_0004, 1 << 23, 0x2600, 0, 8, 0],
        &[mi(0x24, 1 << 19 | 2), 0x600, LOW + 56, 0],
        &[mi(0x26, 1 << 8 | 3), 0, 0, 0, 0],
        &[mi(0x02, 0), END],
    ]);
    bus.clock.set(0x9_8765_4321);
    bus.put(DATA + 48, &[u32::MAX, u32::MAX]);
    run_to_end(&mut streamer, &bus);
    assert_eq!(bus.get64(DATA), 0x2222_0000_1111);
    assert_eq!(bus.get64(DATA + 8), 0x9_8765_4321);
    assert_eq!(bus.get64(DATA + 16), 0x3333);
    assert_eq!(bus.get64(DATA + 24), 0);
    assert_eq!(bus.get64(DATA + 32), 0x6666_0000_5555);
    assert_eq!(bus.get64(DATA + 40), 0x9_8765_4321);
    assert_eq!(bus.get64(DATA + 48), 0, "no sample passed");
    assert_eq!(bus.get(DATA + 56), 8);
    assert_eq!(bus.interrupts.get(), 2);
    assert!(is_invalid(&[&[mi(0x26, 2 << 14 | 3), LOW, 0, 0, 0]]));
}

#[test]
fn state_draws_and_dispatches_are_skipped_and_counted() {
    let bus = run(&[
        &[0x6904_0000],
        &[0x6101_0000 | 20].iter().copied().chain([u32::MAX; 21]).collect::<Vec<_>>(),
        &[0x7b00_0005, 0, 0, 0, 0, 0, 0],
        &[0x7208_0001, 0, 0],
        &[mi(0x1d, 0), 0x10001],
        &store(DATA, 1),
    ]);
    assert_eq!(bus.get(DATA), 1);
    assert_eq!(bus.count_of(Work::SkippedState), 2);
    assert_eq!(bus.count_of(Work::SkippedDraw), 1);
    assert_eq!(bus.count_of(Work::SkippedCompute), 1);
}

/// The endless loop of IGT's spinners: it looks at a dword that the CPU clears to end it.
#[test]
fn a_spinner_ends_when_the_cpu_says_so() {
    let loop_start = BATCH + 16;
    let (bus, mut streamer) = setup(&[
        &store(DATA, 0xc0ffee),
        &[mi(0x05, 0)],
        &[mi(0x36, 1 << 21 | 2), 0, LOW + 8, 0],
        &jump(loop_start),
    ]);
    bus.put(DATA + 8, &[u32::MAX]);
    assert_eq!(streamer.step(&bus), Ok(Progress::JumpedBack));
    assert_eq!(bus.get(DATA), 0xc0ffee);
    assert_eq!(streamer.step(&bus), Ok(Progress::JumpedBack));
    bus.put(DATA + 8, &[0]);
    assert_eq!(streamer.step(&bus), Ok(Progress::BatchEnd));
}

/// The same with a limit on the time that the context runs.
#[test]
fn a_timed_spinner_ends_after_its_ticks() {
    let gpr = |index: u32| 0x600 + 8 * index;
    let alu = |opcode: u32, first: u32, second: u32| opcode << 20 | first << 10 | second;
    let ticks = 1000_u32;
    let both = 1 << 18 | 1 << 19 | 1;
    let prologue: &[&[u32]] = &[&[mi(0x22, 1 << 19 | 1), gpr(0) + 4, 0], &[mi(0x2a, both), 0x3a8, gpr(0)]];
    let loop_start = BATCH + 4 * prologue.concat().len() as u64;
    let body: &[&[u32]] = &[
        &[mi(0x22, 1 << 19 | 1), gpr(1) + 4, 0],
        &[mi(0x2a, both), 0x3a8, gpr(1)],
        &[mi(0x1a, 3), alu(0x080, 0x20, 1), alu(0x080, 0x21, 0), alu(0x101, 0, 0), alu(0x580, 1, 0x31)],
        &[mi(0x24, 1 << 19 | 2), gpr(1), LOW, 0],
        &[mi(0x36, 1 << 21 | 2), !ticks, LOW, 0],
        &jump(loop_start),
    ];
    let (bus, mut streamer) = setup(&[prologue.concat().as_slice(), &body.concat()]);
    bus.context_clock.set(500);
    assert_eq!(streamer.step(&bus), Ok(Progress::JumpedBack));
    bus.context_clock.set(500 + u64::from(ticks) - 1);
    assert_eq!(streamer.step(&bus), Ok(Progress::JumpedBack));
    bus.context_clock.set(500 + u64::from(ticks));
    assert_eq!(streamer.step(&bus), Ok(Progress::BatchEnd));
}

/// A loop that counts with an atomic makes progress of its own, and is not mistaken for one that waits.
#[test]
fn a_counting_loop_is_no_spinner() {
    let (bus, mut streamer) = setup(&[
        &[mi(0x2f, 0x5 << 8 | 1), LOW, 0],
        &[mi(0x09, 3)],
        &[mi(0x36, 1 << 21 | 5 << 12 | 2), 300, LOW, 0],
        &[mi(0x31, 1), BATCH as u32, 0],
    ]);
    let steps =
        std::iter::from_fn(|| Some(streamer.step(&bus))).take_while(|step| *step != Ok(Progress::BatchEnd));
    assert!(steps.into_iter().all(|step| step == Ok(Progress::Ran)));
    assert_eq!(bus.get(DATA), 300);
}

#[test]
fn a_fault_is_reported_and_the_access_replayed() {
    let (bus, mut streamer) = setup(&[&store(DATA + 0x5000, 5), &[END]]);
    let restore = bus.unmap(DATA + 0x5000);
    let error = streamer.step(&bus).expect_err("unmapped");
    let CsError::Fault(fault) = error else { panic!("{error}") };
    assert_eq!(
        (fault.va, fault.access, fault.kind),
        (GpuVa::new(DATA + 0x5000), Access::Write, FaultKind::NotPresent)
    );
    assert_eq!(streamer.step(&bus), Err(error), "again");
    restore(&bus);
    run_to_end(&mut streamer, &bus);
    assert_eq!(bus.get(DATA + 0x5000), 5);
}

#[test]
fn fetching_from_nowhere_faults() {
    let bus = TestBus::new(BATCH, 1);
    let mut streamer = Streamer::new(EngineClass::Render);
    streamer.start(GpuVa::new(0xdead_0000));
    assert!(matches!(streamer.step(&bus), Err(CsError::Fault(fault)) if fault.va == GpuVa::new(0xdead_0000)));
}

#[test]
fn a_new_batch_forgets_the_last_one_but_keeps_registers() {
    let (bus, mut streamer) = setup(&[
        &[mi(0x22, 1 << 19 | 1), 0x600, 3],
        &[mi(0x01, 15)],
        &[mi(0x1c, 1 << 15 | 4 << 12 | 2), 1, LOW, 0],
    ]);
    let _ = streamer.step(&bus);
    let second = BATCH + 0x1000;
    bus.put(second, &[[mi(0x24, 1 << 19 | 2), 0x600, LOW, 0].as_slice(), &[END]].concat());
    streamer.start(GpuVa::new(second));
    run_to_end(&mut streamer, &bus);
    assert_eq!(bus.get(DATA), 3);
}
