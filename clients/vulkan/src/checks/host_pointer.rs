//! The program's own pages as the device's memory.

use anyhow::{Context as _, Result};
use ash::{ext, vk};

use super::{Check, Outcome, missing, passed, skipped};
use crate::gpu::{Buffer, Context, HostRegion, Memory, Source};
use crate::pattern::{self, compare};

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new("host_pointer.read_and_written", read_and_written),
        Check::new("host_pointer.part_of_a_region", part_of_a_region),
        Check::new("host_pointer.many_times", many_times),
    ]
}

/// A buffer whose memory is a host region.
fn imported(context: &Context, region: &HostRegion, size: u64) -> Result<Buffer> {
    let shared_as = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;
    let buffer = Buffer::unbound(context, size, Default::default(), shared_as)?;
    let allowed = buffer.requirements().memory_type_bits & context.importable_host_types(region)?;
    let type_index = context
        .memory_type(allowed, vk::MemoryPropertyFlags::empty())
        .context("no memory type can be the program's pages")?;
    let memory = Memory::new(context, size, type_index, Source::Host(region))?;
    buffer.bind(&memory, 0)?;
    Ok(buffer)
}

/// A size of about that many bytes that the device takes.
fn aligned(context: &Context, size: u64) -> u64 {
    size.next_multiple_of(context.host_pointer_alignment())
}

fn read_and_written(context: &Context) -> Result<Outcome> {
    if let Some(reason) = missing(context, &[ext::external_memory_host::NAME]) {
        return skipped(reason);
    }
    let size = aligned(context, 300_000);
    let len = usize::try_from(size)?;
    let region = HostRegion::anonymous(len)?;
    let bytes = pattern::bytes(91, len);
    region.write(0, &bytes)?;
    let buffer = imported(context, &region, size)?;
    let staging = Buffer::staging(context, size)?;
    context.run(|commands| commands.copy_all(&buffer, &staging))?;
    compare("the program's bytes, read by the device", &bytes, &staging.contents()?)?;

    let bytes = pattern::bytes(93, len);
    staging.write(0, &bytes)?;
    context.run(|commands| commands.copy_all(&staging, &buffer))?;
    compare("the device's bytes, read by the program", &bytes, &region.read(0, len)?)?;

    let change = pattern::bytes(95, 1001);
    region.write(77_777, &change)?;
    context.run(|commands| commands.copy_all(&buffer, &staging))?;
    compare("a later change, read by the device", &change, &staging.read(77_777, 1001)?)?;
    drop(buffer);
    compare("after the device has let go", &bytes[..77_777], &region.read(0, 77_777)?)?;
    passed(format!("{len} bytes, both ways"))
}

fn part_of_a_region(context: &Context) -> Result<Outcome> {
    if let Some(reason) = missing(context, &[ext::external_memory_host::NAME]) {
        return skipped(reason);
    }
    let size = aligned(context, 65_536);
    let len = usize::try_from(size)?;
    let region = HostRegion::anonymous(len)?;
    let guard = pattern::bytes(97, len);
    region.write(0, &guard)?;
    let buffer = imported(context, &region, size)?;
    let piece = pattern::bytes(99, 4099);
    let source = Buffer::holding(context, &piece)?;
    let copy = vk::BufferCopy { src_offset: 0, dst_offset: 12_345, size: 4099 };
    context.run(|commands| commands.copy(&source, &buffer, &[copy]))?;
    let mut expected = guard;
    expected[12_345..12_345 + 4099].copy_from_slice(&piece);
    compare("the region", &expected, &region.read(0, len)?)?;
    passed("an odd range written, nothing beside it touched")
}

fn many_times(context: &Context) -> Result<Outcome> {
    if let Some(reason) = missing(context, &[ext::external_memory_host::NAME]) {
        return skipped(reason);
    }
    const ROUNDS: u64 = 50;
    let size = aligned(context, 20_000);
    let len = usize::try_from(size)?;
    for round in 0..ROUNDS {
        // Fresh pages each time, most likely at the address of the last ones.
        let region = HostRegion::anonymous(len)?;
        let bytes = pattern::bytes(round, len);
        region.write(0, &bytes)?;
        let buffer = imported(context, &region, size)?;
        let target = Buffer::staging(context, size)?;
        context.run(|commands| commands.copy_all(&buffer, &target))?;
        compare(&format!("round {round}"), &bytes, &target.contents()?)?;
    }
    passed(format!("imported and freed {ROUNDS} times"))
}
