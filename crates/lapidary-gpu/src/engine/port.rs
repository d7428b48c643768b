//! The bus that a streamer executes through: translation cache, page tables, physical memory.

use std::{
    cell::{Cell, RefCell},
    sync::atomic::Ordering::*,
};

use lapidary::fence::Timestamp;

use super::{Engine, queue::Task};
use crate::{
    bus::{Access, Bus, Fault, FaultKind, GpuVa, Work},
    chunk::Chunk,
    clock,
    fault::{ContextId, StaleHit},
    pagetable::{AddressSpace, Leaf, Target},
    stats::Tally,
    tlb::{Online, Tlb},
};

/// What a slice notes while it executes.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) tally: Cell<Tally>,
    /// A value in memory became another one.
    pub(super) changed: Cell<bool>,
    /// Commands asked for a user interrupt.
    pub(super) interrupt: Cell<bool>,
}

/// The bus, for one step.
pub(super) struct Port<'a> {
    pub(super) engine: &'a Engine,
    pub(super) online: &'a Online<'a>,
    pub(super) tlb: &'a RefCell<Tlb>,
    pub(super) task: &'a PortTask<'a>,
    pub(super) notes: &'a Notes,
}

/// What the bus needs to know of the context.
pub(super) struct PortTask<'a> {
    space: &'a AddressSpace,
    context: ContextId,
    run_ns: u64,
    since: Timestamp,
}

impl<'a> PortTask<'a> {
    pub(super) fn new(task: &'a Task, since: Timestamp) -> Self {
        Self { space: &task.space, context: task.id, run_ns: task.info.run_ns.load(Relaxed), since }
    }
}

impl Port<'_> {
    /// The leaf that translates `va`; none where nothing is mapped.
    #[inline]
    fn translate(&self, va: GpuVa) -> Option<Leaf> {
        let (space, mut tlb) = (self.task.space, self.tlb.borrow_mut());
        if let Some(leaf) = tlb.lookup(space.asid(), va) {
            if self.engine.shared.tlb_check {
                self.check(va, leaf);
            }
            return Some(leaf);
        }
        let leaf = space.walk(va)?;
        tlb.insert(space.asid(), va, leaf);
        Some(leaf)
    }

    /// Compares a hit with the tables. A difference is in order while the driver has an edit under way: this engine has not acknowledged its
    /// invalidation yet, or the edit would be over. Without one nobody will ever invalidate.
    #[cold]
    fn check(&self, va: GpuVa, cached: Leaf) {
        let space = self.task.space;
        let current = space.walk(va);
        let same = |leaf: Leaf| leaf.target_of(va) == cached.target_of(va) && leaf.attrs == cached.attrs;
        if current.is_some_and(same) || space.is_changing() {
            return;
        }
        self.engine.shared.report_stale(StaleHit {
            engine: self.engine.id,
            context: self.task.context,
            asid: space.asid(),
            va,
            cached: cached.target_of(va),
            current: current.map(|leaf| leaf.target_of(va)),
        });
    }

    /// Calls `visit` with each chunk of a range, and the offset of the chunk in it.
    fn for_chunks<'s>(
        &'s self,
        va: GpuVa,
        len: usize,
        access: Access,
        mut visit: impl FnMut(&Chunk<'s>, usize) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut done = 0;
        while done < len {
            let chunk = self.chunk(va.offset(done as u64), (len - done) as u64, access)?;
            visit(&chunk, done)?;
            done += chunk.len();
        }
        Ok(())
    }

    /// Reads a small value that is not a single aligned word of mapped memory.
    fn read_bytes<const N: usize>(&self, va: GpuVa) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        self.read(va, &mut bytes)?;
        Ok(bytes)
    }

    fn note_change(&self, changed: bool) {
        if changed {
            self.notes.changed.set(true);
        }
    }
}

/// A fault unless `va` is a multiple of `size`.
fn aligned(va: GpuVa, size: u64) -> Result<(), Fault> {
    match va.get() % size {
        0 => Ok(()),
        _ => Err(Fault { va, access: Access::Atomic, kind: FaultKind::Misaligned }),
    }
}

impl Bus for Port<'_> {
    fn read(&self, va: GpuVa, buf: &mut [u8]) -> Result<(), Fault> {
        let len = buf.len();
        self.for_chunks(va, len, Access::Read, |chunk, at| chunk.read(0, &mut buf[at..at + chunk.len()]))
    }

    fn write(&self, va: GpuVa, buf: &[u8]) -> Result<(), Fault> {
        self.note_change(true);
        self.for_chunks(va, buf.len(), Access::Write, |chunk, at| chunk.write(0, &buf[at..at + chunk.len()]))
    }

    fn read_u32(&self, va: GpuVa) -> Result<u32, Fault> {
        let chunk = self.chunk(va, 4, Access::Read)?;
        if chunk.len() == 4
            && let Some(word) = chunk.atomic_u32(0)
        {
            return Ok(u32::from_le(word.load(Acquire)));
        }
        self.read_bytes(va).map(u32::from_le_bytes)
    }

    fn read_u64(&self, va: GpuVa) -> Result<u64, Fault> {
        let chunk = self.chunk(va, 8, Access::Read)?;
        if chunk.len() == 8
            && let Some(word) = chunk.atomic_u64(0)
        {
            return Ok(u64::from_le(word.load(Acquire)));
        }
        self.read_bytes(va).map(u64::from_le_bytes)
    }

    fn write_u32(&self, va: GpuVa, value: u32) -> Result<(), Fault> {
        let chunk = self.chunk(va, 4, Access::Write)?;
        if chunk.len() == 4
            && let Some(word) = chunk.atomic_u32(0)
        {
            self.note_change(word.load(Relaxed) != value.to_le());
            word.store(value.to_le(), Release);
            return Ok(());
        }
        self.write(va, &value.to_le_bytes())
    }

    fn write_u64(&self, va: GpuVa, value: u64) -> Result<(), Fault> {
        let chunk = self.chunk(va, 8, Access::Write)?;
        if chunk.len() == 8
            && let Some(word) = chunk.atomic_u64(0)
        {
            self.note_change(word.load(Relaxed) != value.to_le());
            word.store(value.to_le(), Release);
            return Ok(());
        }
        self.write(va, &value.to_le_bytes())
    }

    fn atomic_u32(&self, va: GpuVa, update: &mut dyn FnMut(u32) -> u32) -> Result<u32, Fault> {
        aligned(va, 4)?;
        let chunk = self.chunk(va, 4, Access::Atomic)?;
        if let Some(word) = chunk.atomic_u32(0) {
            let (mut old, mut new);
            let mut raw = word.load(Acquire);
            loop {
                old = u32::from_le(raw);
                new = update(old);
                match word.compare_exchange_weak(raw, new.to_le(), AcqRel, Acquire) {
                    Ok(_) => break,
                    Err(now) => raw = now,
                }
            }
            self.note_change(old != new);
            return Ok(old);
        }
        let old = u32::from_le_bytes(self.read_bytes(va)?);
        self.write(va, &update(old).to_le_bytes())?;
        Ok(old)
    }

    fn atomic_u64(&self, va: GpuVa, update: &mut dyn FnMut(u64) -> u64) -> Result<u64, Fault> {
        aligned(va, 8)?;
        let chunk = self.chunk(va, 8, Access::Atomic)?;
        if let Some(word) = chunk.atomic_u64(0) {
            let (mut old, mut new);
            let mut raw = word.load(Acquire);
            loop {
                old = u64::from_le(raw);
                new = update(old);
                match word.compare_exchange_weak(raw, new.to_le(), AcqRel, Acquire) {
                    Ok(_) => break,
                    Err(now) => raw = now,
                }
            }
            self.note_change(old != new);
            return Ok(old);
        }
        let old = u64::from_le_bytes(self.read_bytes(va)?);
        self.write(va, &update(old).to_le_bytes())?;
        Ok(old)
    }

    fn chunk(&self, va: GpuVa, len: u64, access: Access) -> Result<Chunk<'_>, Fault> {
        let fault = |kind| Fault { va, access, kind };
        let Some(leaf) = self.translate(va) else {
            if !self.task.space.has_scratch() {
                return Err(fault(FaultKind::NotPresent));
            }
            let room = 4096 - va.get() % 4096;
            return Ok(Chunk::null(va, access, len.min(room) as usize));
        };
        if access.writes() && !leaf.attrs.writable {
            return Err(fault(FaultKind::ReadOnly));
        }
        let len = len.min(leaf.span().end() - va.get());
        match leaf.target_of(va) {
            Target::Null => Ok(Chunk::null(va, access, len as usize)),
            Target::Memory(at) => self
                .engine
                .shared
                .phys
                .chunk(self.online, at, len, va, access)
                .ok_or_else(|| fault(FaultKind::NoMemory)),
        }
    }

    fn timestamp(&self) -> u64 {
        self.engine.shared.clock.ticks_at(Timestamp::now())
    }

    fn context_timestamp(&self) -> u64 {
        let slice = Timestamp::now().as_nanos().saturating_sub(self.task.since.as_nanos());
        clock::ticks(self.task.run_ns + slice)
    }

    fn count(&self, work: Work) {
        if matches!(work, Work::Copied(_) | Work::Filled(_)) {
            self.notes.changed.set(true);
        }
        let mut tally = self.notes.tally.get();
        tally.count(work);
        self.notes.tally.set(tally);
    }

    fn user_interrupt(&self) {
        self.notes.interrupt.set(true);
    }
}
