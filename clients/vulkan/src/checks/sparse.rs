//! Sparse buffers: memory bound, changed and taken away while the buffer stays.

use anyhow::{Context as _, Result, ensure};
use ash::vk;

use super::{Check, Outcome, passed, skipped};
use crate::gpu::{Buffer, CommandBuffer, Context, Memory, PATIENCE, Queue, Semaphore, Source, SparseBind};
use crate::pattern::{self, compare};

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new("sparse.bound", bound),
        Check::new("sparse.null_reads_zero", null_reads_zero),
        Check::new("sparse.rebound", rebound),
        Check::new("sparse.unbound", unbound),
        Check::new("sparse.aliased", aliased),
        Check::new("sparse.many_binds", many_binds),
        Check::new("sparse.ordered_by_semaphores", ordered_by_semaphores),
    ]
}

/// Blocks of a sparse buffer that the checks use.
const BLOCKS: u64 = 12;

/// A sparse buffer, and how to bind to it.
struct Sparse<'a> {
    context: &'a Context,
    queue: Queue,
    buffer: Buffer,
    /// Bytes of a block.
    block: u64,
    type_index: u32,
}

impl<'a> Sparse<'a> {
    fn new(context: &'a Context, blocks: u64, flags: vk::BufferCreateFlags) -> Result<Sparse<'a>> {
        let queue = context.sparse.context("no queue binds sparse memory")?;
        let flags = flags | vk::BufferCreateFlags::SPARSE_BINDING;
        // The size of a block is known once there is a buffer.
        let block = Buffer::unbound(context, 1, flags, Default::default())?.requirements().alignment;
        let buffer = Buffer::unbound(context, blocks * block, flags, Default::default())?;
        let bits = buffer.requirements().memory_type_bits;
        let local = vk::MemoryPropertyFlags::DEVICE_LOCAL;
        let type_index = context.memory_type(bits, local).context("no memory type suits the buffer")?;
        Ok(Sparse { context, queue, buffer, block, type_index })
    }

    fn memory(&self, blocks: u64) -> Result<Memory> {
        Memory::new(self.context, blocks * self.block, self.type_index, Source::Own)
    }

    /// Block `to` of the buffer gets block `from` of the memory.
    fn one<'m>(&self, to: u64, memory: &'m Memory, from: u64) -> SparseBind<'m> {
        SparseBind { offset: to * self.block, size: self.block, memory: Some((memory, from * self.block)) }
    }

    fn none(&self, block: u64, count: u64) -> SparseBind<'static> {
        SparseBind { offset: block * self.block, size: count * self.block, memory: None }
    }

    fn bind(&self, binds: &[SparseBind<'_>]) -> Result<()> {
        let done = Semaphore::timeline(self.context)?;
        self.context.bind_sparse(self.queue, &self.buffer, binds, &[], &[(&done, 1)])?;
        ensure!(done.wait(1, PATIENCE)?, "the binding does not end");
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        let source = Buffer::holding(self.context, bytes)?;
        self.context.run(|commands| commands.copy_all(&source, &self.buffer))
    }

    fn read(&self) -> Result<Vec<u8>> {
        let target = Buffer::staging(self.context, self.buffer.size())?;
        self.context.run(|commands| commands.copy_all(&self.buffer, &target))?;
        target.contents()
    }

    fn pattern(&self, seed: u64) -> Result<Vec<u8>> {
        Ok(pattern::bytes(seed, self.len()?))
    }

    fn len(&self) -> Result<usize> {
        Ok(usize::try_from(self.buffer.size())?)
    }

    fn range(&self, block: u64) -> std::ops::Range<usize> {
        let size = self.block as usize;
        block as usize * size..(block as usize + 1) * size
    }
}

/// Why sparse buffers can't be checked; nothing when they can.
fn unsupported(context: &Context, residency: bool) -> Option<&'static str> {
    if context.features.sparse_binding == vk::FALSE || context.sparse.is_none() {
        return Some("the device has no sparse binding");
    }
    if residency && context.features.sparse_residency_buffer == vk::FALSE {
        return Some("the device has no partly resident buffers");
    }
    None
}

const PARTLY: vk::BufferCreateFlags = vk::BufferCreateFlags::SPARSE_RESIDENCY;

fn bound(context: &Context) -> Result<Outcome> {
    if let Some(reason) = unsupported(context, false) {
        return skipped(reason);
    }
    let sparse = Sparse::new(context, BLOCKS, Default::default())?;
    let (first, second) = (sparse.memory(BLOCKS)?, sparse.memory(BLOCKS)?);
    // Alternately from two pieces of memory, from back to front.
    let binds: Vec<_> = (0..BLOCKS)
        .map(|block| sparse.one(block, if block % 2 == 0 { &first } else { &second }, BLOCKS - 1 - block))
        .collect();
    sparse.bind(&binds)?;
    let bytes = sparse.pattern(51)?;
    sparse.write(&bytes)?;
    compare("the bound buffer", &bytes, &sparse.read()?)?;
    passed(format!("{BLOCKS} blocks of {} KiB from two allocations", sparse.block >> 10))
}

fn null_reads_zero(context: &Context) -> Result<Outcome> {
    if let Some(reason) = unsupported(context, true) {
        return skipped(reason);
    }
    if context.properties.sparse_properties.residency_non_resident_strict == vk::FALSE {
        return skipped("the device does not promise zeroes where nothing is bound");
    }
    let sparse = Sparse::new(context, BLOCKS, PARTLY)?;
    let zeroes = vec![0; sparse.len()?];
    compare("before anything is bound", &zeroes, &sparse.read()?)?;
    sparse.write(&sparse.pattern(53)?)?;
    compare("after a write to nothing", &zeroes, &sparse.read()?)?;
    let memory = sparse.memory(1)?;
    sparse.bind(&[sparse.one(5, &memory, 0)])?;
    let bytes = sparse.pattern(57)?;
    sparse.write(&bytes)?;
    let mut expected = zeroes;
    expected[sparse.range(5)].copy_from_slice(&bytes[sparse.range(5)]);
    compare("with one block bound", &expected, &sparse.read()?)?;
    passed("reads are zero, writes vanish, one bound block between keeps its bytes")
}

fn rebound(context: &Context) -> Result<Outcome> {
    if let Some(reason) = unsupported(context, false) {
        return skipped(reason);
    }
    let sparse = Sparse::new(context, BLOCKS, Default::default())?;
    let (first, second) = (sparse.memory(BLOCKS)?, sparse.memory(BLOCKS)?);
    let straight = |memory| (0..BLOCKS).map(|block| sparse.one(block, memory, block)).collect::<Vec<_>>();
    let (old, new) = (sparse.pattern(59)?, sparse.pattern(61)?);
    sparse.bind(&straight(&first))?;
    sparse.write(&old)?;
    sparse.bind(&straight(&second))?;
    sparse.write(&new)?;
    compare("bound to the second memory", &new, &sparse.read()?)?;
    // Every third block back to the first memory, where the old bytes still are.
    let back: Vec<_> = (0..BLOCKS).step_by(3).map(|block| sparse.one(block, &first, block)).collect();
    sparse.bind(&back)?;
    let mut expected = new;
    for block in (0..BLOCKS).step_by(3) {
        expected[sparse.range(block)].copy_from_slice(&old[sparse.range(block)]);
    }
    compare("every third block bound back", &expected, &sparse.read()?)?;
    passed("to another memory and partly back, the bytes stay with the memory")
}

fn unbound(context: &Context) -> Result<Outcome> {
    if let Some(reason) = unsupported(context, true) {
        return skipped(reason);
    }
    let sparse = Sparse::new(context, BLOCKS, PARTLY)?;
    let memory = sparse.memory(BLOCKS)?;
    let all: Vec<_> = (0..BLOCKS).map(|block| sparse.one(block, &memory, block)).collect();
    sparse.bind(&all)?;
    let bytes = sparse.pattern(67)?;
    sparse.write(&bytes)?;
    sparse.bind(&[sparse.none(1, 3), sparse.none(BLOCKS - 1, 1)])?;
    let found = sparse.read()?;
    for block in 0..BLOCKS {
        let gone = (1..4).contains(&block) || block == BLOCKS - 1;
        let expected =
            if gone { vec![0; sparse.block as usize] } else { bytes[sparse.range(block)].to_vec() };
        let strict = context.properties.sparse_properties.residency_non_resident_strict == vk::TRUE;
        if !gone || strict {
            let state = if gone { "unbound" } else { "still bound" };
            compare(&format!("block {block}, {state}"), &expected, &found[sparse.range(block)])?;
        }
    }
    sparse.bind(&all)?;
    compare("bound again", &bytes, &sparse.read()?)?;
    sparse.bind(&[sparse.none(0, BLOCKS)])?;
    passed("in part, again, and whole")
}

fn aliased(context: &Context) -> Result<Outcome> {
    if let Some(reason) = unsupported(context, true) {
        return skipped(reason);
    }
    if context.features.sparse_residency_aliased == vk::FALSE {
        return skipped("the device has no aliased memory");
    }
    let sparse = Sparse::new(context, BLOCKS, PARTLY | vk::BufferCreateFlags::SPARSE_ALIASED)?;
    let memory = sparse.memory(1)?;
    let all: Vec<_> = (0..BLOCKS).map(|block| sparse.one(block, &memory, 0)).collect();
    sparse.bind(&all)?;
    let block = usize::try_from(sparse.block)?;
    let bytes = pattern::bytes(71, block);
    let source = Buffer::holding(context, &bytes)?;
    let region = vk::BufferCopy { src_offset: 0, dst_offset: 7 * sparse.block, size: sparse.block };
    context.run(|commands| commands.copy(&source, &sparse.buffer, &[region]))?;
    compare("every block", &bytes.repeat(BLOCKS as usize), &sparse.read()?)?;
    passed(format!("one block of memory seen {BLOCKS} times"))
}

fn many_binds(context: &Context) -> Result<Outcome> {
    if let Some(reason) = unsupported(context, true) {
        return skipped(reason);
    }
    const MANY: u64 = 200;
    let sparse = Sparse::new(context, MANY, PARTLY)?;
    let memory = sparse.memory(MANY)?;
    let reversed: Vec<_> = (0..MANY).map(|block| sparse.one(block, &memory, MANY - 1 - block)).collect();
    sparse.bind(&reversed)?;
    let bytes = sparse.pattern(73)?;
    sparse.write(&bytes)?;
    compare("in reverse", &bytes, &sparse.read()?)?;
    // The same memory in order: the blocks change places.
    let straight: Vec<_> = (0..MANY).map(|block| sparse.one(block, &memory, block)).collect();
    sparse.bind(&straight)?;
    let expected: Vec<u8> = bytes.chunks_exact(sparse.block as usize).rev().flatten().copied().collect();
    compare("in order", &expected, &sparse.read()?)?;
    passed(format!("{MANY} binds in one call, twice"))
}

fn ordered_by_semaphores(context: &Context) -> Result<Outcome> {
    if let Some(reason) = unsupported(context, false) {
        return skipped(reason);
    }
    let sparse = Sparse::new(context, 1, Default::default())?;
    let (first, second) = (sparse.memory(1)?, sparse.memory(1)?);
    let (old, new) = (sparse.pattern(79)?, sparse.pattern(83)?);
    sparse.bind(&[sparse.one(0, &second, 0)])?;
    sparse.write(&new)?;
    sparse.bind(&[sparse.one(0, &first, 0)])?;
    sparse.write(&old)?;
    let targets = [Buffer::staging(context, sparse.block)?, Buffer::staging(context, sparse.block)?];
    let copies = targets.iter().map(|target| {
        CommandBuffer::record(context, context.transfer, |commands| {
            commands.copy_all(&sparse.buffer, target);
            commands.barrier();
            Ok(())
        })
    });
    let copies = copies.collect::<Result<Vec<_>>>()?;
    // The program signals 1; then a copy, the binding, and the other copy, each after the one before.
    let timeline = Semaphore::timeline(context)?;
    let at = |value| [(&timeline, value)];
    let before = copies[0].submit(context.transfer, &at(1), &at(2))?;
    context.bind_sparse(sparse.queue, &sparse.buffer, &[sparse.one(0, &second, 0)], &at(2), &at(3))?;
    let after = copies[1].submit(context.transfer, &at(3), &at(4))?;
    timeline.signal(1)?;
    ensure!(timeline.wait(4, PATIENCE)?, "the timeline stays at {}", timeline.value()?);
    before.wait()?;
    after.wait()?;
    compare("copied before the binding", &old, &targets[0].contents()?)?;
    compare("copied after the binding", &new, &targets[1].contents()?)?;
    passed("copy, binding, copy")
}
