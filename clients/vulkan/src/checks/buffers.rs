//! Buffers: every memory type, filled, updated and copied at every kind of offset.

use anyhow::{Result, ensure};
use ash::vk;

use super::{Check, Outcome, passed};
use crate::gpu::{Buffer, CommandBuffer, Context};
use crate::pattern::{self, compare};

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new("buffers.memory_types", memory_types),
        Check::new("buffers.fill", fill),
        Check::new("buffers.update", update),
        Check::new("buffers.copy_odd", copy_odd),
        Check::new("buffers.copy_many_regions", copy_many_regions),
        Check::new("buffers.copy_large", copy_large),
        Check::new("buffers.copy_within", copy_within),
        Check::new("buffers.chain_of_1000", chain_of_1000),
        Check::new("buffers.secondary_commands", secondary_commands),
        Check::new("buffers.submitted_again", submitted_again),
        Check::new("buffers.many_at_once", many_at_once),
        Check::new("buffers.one_memory_many_buffers", one_memory_many_buffers),
    ]
}

/// Bytes that no operation may touch.
const GUARD: u8 = 0xa5;

/// A device buffer whose every byte is [`GUARD`].
fn guarded(context: &Context, size: u64) -> Result<Buffer> {
    let buffer = Buffer::device_local(context, size)?;
    context.run(|commands| commands.fill(&buffer, 0, vk::WHOLE_SIZE, u32::from_ne_bytes([GUARD; 4])))?;
    Ok(buffer)
}

/// All of a buffer, wherever it lies.
fn contents(context: &Context, buffer: &Buffer) -> Result<Vec<u8>> {
    let staging = Buffer::staging(context, buffer.size())?;
    context.run(|commands| commands.copy_all(buffer, &staging))?;
    staging.contents()
}

/// A device buffer that holds `bytes`.
fn uploaded(context: &Context, bytes: &[u8]) -> Result<Buffer> {
    let staging = Buffer::holding(context, bytes)?;
    let buffer = Buffer::device_local(context, bytes.len() as u64)?;
    context.run(|commands| commands.copy_all(&staging, &buffer))?;
    Ok(buffer)
}

fn memory_types(context: &Context) -> Result<Outcome> {
    const SIZE: usize = 300_000;
    let probe = Buffer::unbound(context, SIZE as u64, Default::default(), Default::default())?;
    let allowed = probe.requirements().memory_type_bits;
    let not_for_us = vk::MemoryPropertyFlags::PROTECTED | vk::MemoryPropertyFlags::LAZILY_ALLOCATED;
    let mut used = Vec::new();
    for (index, kind) in (0u32..).zip(context.memory.memory_types_as_slice()) {
        if allowed & (1 << index) == 0 || kind.property_flags.intersects(not_for_us) {
            continue;
        }
        let bytes = pattern::bytes(u64::from(index), SIZE);
        let buffer = Buffer::in_type(context, SIZE as u64, index)?;
        let what = format!("memory type {index} ({:?})", kind.property_flags);
        let source = Buffer::holding(context, &bytes)?;
        context.run(|commands| commands.copy_all(&source, &buffer))?;
        compare(&format!("{what}, read by the device"), &bytes, &contents(context, &buffer)?)?;
        if kind.property_flags.contains(vk::MemoryPropertyFlags::HOST_VISIBLE) {
            compare(&format!("{what}, read by the program"), &bytes, &buffer.contents()?)?;
            let bytes = pattern::bytes(u64::from(index) + 100, SIZE);
            buffer.write(0, &bytes)?;
            compare(&format!("{what}, written by the program"), &bytes, &contents(context, &buffer)?)?;
        }
        used.push(index.to_string());
    }
    ensure!(!used.is_empty(), "no memory type can hold a buffer");
    passed(format!("types {}", used.join(", ")))
}

fn fill(context: &Context) -> Result<Outcome> {
    const SIZE: usize = 1 << 20;
    let ranges: [(usize, usize); 9] = [
        (0, 4),
        (4, 12),
        (60, 68),
        (4096, 4096),
        (8188, 8),
        (16_384, 65_536),
        (100_000, 260_004),
        (400_004, 4),
        (SIZE - 4, 4),
    ];
    let buffer = guarded(context, SIZE as u64)?;
    let mut expected = vec![GUARD; SIZE];
    context.run(|commands| {
        for (word, (offset, size)) in (0x0102_0304u32..).step_by(0x0101_0101).zip(ranges) {
            commands.fill(&buffer, offset as u64, size as u64, word);
            expected[offset..offset + size]
                .chunks_exact_mut(4)
                .for_each(|c| c.copy_from_slice(&word.to_ne_bytes()));
        }
    })?;
    compare("ranges filled", &expected, &contents(context, &buffer)?)?;
    // To the end of a size that is no multiple of four: the rest stays.
    let odd = guarded(context, 1003)?;
    context.run(|commands| commands.fill(&odd, 8, vk::WHOLE_SIZE, 0x1122_3344))?;
    let found = contents(context, &odd)?;
    compare("before a fill to the end", &[GUARD; 8], &found[..8])?;
    compare("a fill to the end", &0x1122_3344u32.to_ne_bytes().repeat(248), &found[8..1000])?;
    passed(format!("{} ranges", ranges.len() + 1))
}

fn update(context: &Context) -> Result<Outcome> {
    const SIZE: usize = 200_000;
    let ranges: [(usize, usize); 6] =
        [(0, 4), (8, 16), (1000, 1020), (4092, 8), (8192, 65_536), (100_004, 40_000)];
    let buffer = guarded(context, SIZE as u64)?;
    let mut expected = vec![GUARD; SIZE];
    context.run(|commands| {
        for (seed, (offset, size)) in (0..).zip(ranges) {
            let bytes = pattern::bytes(seed, size);
            commands.update(&buffer, offset as u64, &bytes);
            expected[offset..offset + size].copy_from_slice(&bytes);
        }
    })?;
    compare("ranges updated", &expected, &contents(context, &buffer)?)?;
    passed(format!("{} ranges up to 64 KiB", ranges.len()))
}

fn copy_odd(context: &Context) -> Result<Outcome> {
    const SIZE: usize = 700_000;
    // (from, to, size), every mix of alignments, around the sizes at which a copy is split.
    let copies: [(usize, usize, usize); 14] = [
        (0, 0, 1),
        (1, 3, 1),
        (3, 7, 2),
        (5, 12, 3),
        (17, 31, 7),
        (63, 65, 63),
        (127, 257, 129),
        (1001, 999, 4095),
        (4097, 8191, 4097),
        (12_345, 54_321, 65_535),
        (70_001, 130_003, 65_537),
        (1, 200_001, 262_143),
        (100_003, 400_007, 262_145),
        (699_999, 699_998, 1),
    ];
    let bytes = pattern::bytes(7, SIZE);
    let source = uploaded(context, &bytes)?;
    for (from, to, size) in copies {
        let target = guarded(context, SIZE as u64)?;
        let region = vk::BufferCopy { src_offset: from as u64, dst_offset: to as u64, size: size as u64 };
        context.run(|commands| commands.copy(&source, &target, &[region]))?;
        let mut expected = vec![GUARD; SIZE];
        expected[to..to + size].copy_from_slice(&bytes[from..from + size]);
        compare(&format!("{size} bytes from {from} to {to}"), &expected, &contents(context, &target)?)?;
    }
    passed(format!("{} copies, nothing beside them touched", copies.len()))
}

fn copy_many_regions(context: &Context) -> Result<Outcome> {
    const PIECE: usize = 1237;
    const COUNT: usize = 200;
    let bytes = pattern::bytes(11, PIECE * COUNT);
    let source = uploaded(context, &bytes)?;
    let target = guarded(context, (PIECE * COUNT) as u64)?;
    // The pieces in reverse order.
    let regions: Vec<vk::BufferCopy> = (0..COUNT)
        .map(|piece| vk::BufferCopy {
            src_offset: (piece * PIECE) as u64,
            dst_offset: ((COUNT - 1 - piece) * PIECE) as u64,
            size: PIECE as u64,
        })
        .collect();
    context.run(|commands| commands.copy(&source, &target, &regions))?;
    let expected: Vec<u8> = bytes.chunks_exact(PIECE).rev().flatten().copied().collect();
    compare("pieces in reverse order", &expected, &contents(context, &target)?)?;
    passed(format!("{COUNT} regions in one command"))
}

fn copy_large(context: &Context) -> Result<Outcome> {
    const SIZE: usize = (24 << 20) + 4099;
    let bytes = pattern::bytes(13, SIZE);
    let source = uploaded(context, &bytes)?;
    let target = Buffer::device_local(context, SIZE as u64)?;
    context.run(|commands| commands.copy_all(&source, &target))?;
    compare("one large copy", &bytes, &contents(context, &target)?)?;
    passed(format!("{SIZE} bytes, three times"))
}

fn copy_within(context: &Context) -> Result<Outcome> {
    const HALF: usize = 150_001;
    let bytes = pattern::bytes(17, 2 * HALF);
    let buffer = uploaded(context, &bytes)?;
    let region = vk::BufferCopy { src_offset: 0, dst_offset: HALF as u64, size: HALF as u64 };
    context.run(|commands| commands.copy(&buffer, &buffer, &[region]))?;
    let expected = bytes[..HALF].repeat(2);
    compare("the first half over the second", &expected, &contents(context, &buffer)?)?;
    passed(format!("{HALF} bytes"))
}

fn chain_of_1000(context: &Context) -> Result<Outcome> {
    const LINKS: usize = 1000;
    const PIECE: usize = 4097;
    let bytes = pattern::bytes(19, PIECE);
    let source = uploaded(context, &bytes)?;
    let chain = guarded(context, (PIECE * LINKS) as u64)?;
    context.run(|commands| {
        commands.copy_all(&source, &chain);
        for link in 1..LINKS {
            commands.barrier();
            let (from, to) = (((link - 1) * PIECE) as u64, (link * PIECE) as u64);
            commands.copy(
                &chain,
                &chain,
                &[vk::BufferCopy { src_offset: from, dst_offset: to, size: PIECE as u64 }],
            );
        }
    })?;
    compare("the chain", &bytes.repeat(LINKS), &contents(context, &chain)?)?;
    passed(format!("{LINKS} copies, each from where the one before it wrote"))
}

fn secondary_commands(context: &Context) -> Result<Outcome> {
    const PIECE: usize = 5000;
    let bytes = pattern::bytes(23, PIECE);
    let source = uploaded(context, &bytes)?;
    let target = guarded(context, 4 * PIECE as u64)?;
    let copy_to = |slot: usize| {
        let (source, target) = (source.clone(), target.clone());
        CommandBuffer::record_secondary(context, context.transfer, move |commands| {
            let dst_offset = (slot * PIECE) as u64;
            commands.copy(
                &source,
                &target,
                &[vk::BufferCopy { src_offset: 0, dst_offset, size: PIECE as u64 }],
            );
            Ok(())
        })
    };
    let (first, third) = (copy_to(0)?, copy_to(2)?);
    // Two primaries that call the same ones, one after the other: where a call returns to changes each time.
    for round in 0..3 {
        context.run(|commands| {
            commands.fill(&target, 0, vk::WHOLE_SIZE, u32::from_ne_bytes([GUARD; 4]));
            commands.barrier();
            commands.call(&first);
            commands.call(&third);
            commands.fill(&target, 3 * PIECE as u64, PIECE as u64, round);
        })?;
        let mut expected = vec![GUARD; 4 * PIECE];
        expected[..PIECE].copy_from_slice(&bytes);
        expected[2 * PIECE..3 * PIECE].copy_from_slice(&bytes);
        expected[3 * PIECE..].copy_from_slice(&round.to_ne_bytes().repeat(PIECE / 4));
        compare(&format!("round {round}"), &expected, &contents(context, &target)?)?;
    }
    passed("two secondary command buffers called by three primaries")
}

fn submitted_again(context: &Context) -> Result<Outcome> {
    const SIZE: usize = 10_000;
    let source = Buffer::staging(context, SIZE as u64)?;
    let target = Buffer::staging(context, SIZE as u64)?;
    let recorded = CommandBuffer::record(context, context.transfer, |commands| {
        commands.copy_all(&source, &target);
        commands.barrier();
        Ok(())
    })?;
    for round in 0..20 {
        let bytes = pattern::bytes(round, SIZE);
        source.write(0, &bytes)?;
        recorded.submit(context.transfer, &[], &[])?.wait()?;
        compare(&format!("round {round}"), &bytes, &target.contents()?)?;
    }
    passed("one command buffer 20 times, with new bytes each time")
}

fn many_at_once(context: &Context) -> Result<Outcome> {
    const COUNT: u64 = 64;
    const SIZE: usize = 20_011;
    let bytes = pattern::bytes(29, SIZE);
    let source = uploaded(context, &bytes)?;
    let mut work = Vec::new();
    for number in 0..COUNT {
        let target = Buffer::staging(context, SIZE as u64 + number)?;
        let recorded = CommandBuffer::record(context, context.transfer, |commands| {
            let region = vk::BufferCopy { src_offset: 0, dst_offset: number, size: SIZE as u64 };
            commands.copy(&source, &target, &[region]);
            commands.barrier();
            Ok(())
        })?;
        work.push((target, recorded.submit(context.transfer, &[], &[])?));
    }
    for (number, (target, submission)) in work.into_iter().enumerate() {
        submission.wait()?;
        compare(&format!("submission {number}"), &bytes, &target.read(number as u64, SIZE)?)?;
    }
    passed(format!("{COUNT} submissions waited for afterwards"))
}

fn one_memory_many_buffers(context: &Context) -> Result<Outcome> {
    const SIZE: usize = 70_000;
    const COUNT: usize = 16;
    let make = || Buffer::unbound(context, SIZE as u64, Default::default(), Default::default());
    let buffers = (0..COUNT).map(|_| make()).collect::<Result<Vec<_>>>()?;
    let needs = buffers[0].requirements();
    let stride = needs.size.next_multiple_of(needs.alignment);
    let wanted = vk::MemoryPropertyFlags::DEVICE_LOCAL;
    let type_index = context.memory_type(needs.memory_type_bits, wanted);
    let Some(type_index) = type_index else { anyhow::bail!("no memory type suits the buffers") };
    let memory =
        crate::gpu::Memory::new(context, stride * COUNT as u64, type_index, crate::gpu::Source::Own)?;
    for (slot, buffer) in (0u64..).zip(&buffers) {
        buffer.bind(&memory, slot * stride)?;
        let staging = Buffer::holding(context, &pattern::bytes(slot, SIZE))?;
        context.run(|commands| commands.copy_all(&staging, buffer))?;
    }
    for (slot, buffer) in (0u64..).zip(&buffers) {
        compare(&format!("buffer {slot}"), &pattern::bytes(slot, SIZE), &contents(context, buffer)?)?;
    }
    passed(format!("{COUNT} buffers in one allocation"))
}
