//! A bus over plain memory for tests: pages in any order, holes, read-only and null pages, settable clocks.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    sync::atomic::AtomicU8,
};

use crate::{
    bus::{Access, Bus, Fault, FaultKind, GpuVa, Work},
    chunk::Chunk,
};

pub(crate) const PAGE: u64 = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Page {
    Memory { index: usize, writable: bool },
    Null,
}

/// Memory at addresses, in pages.
pub(crate) struct TestBus {
    bytes: Vec<AtomicU8>,
    pages: RefCell<HashMap<u64, Page>>,
    /// Whether a chunk may be longer than a page.
    join_pages: bool,
    pub(crate) clock: Cell<u64>,
    pub(crate) context_clock: Cell<u64>,
    pub(crate) work: RefCell<Vec<Work>>,
    pub(crate) interrupts: Cell<u32>,
}

impl TestBus {
    /// `pages` pages from `base` on, contiguous on the host.
    pub(crate) fn new(base: u64, pages: u64) -> Self {
        Self::build(base, pages, true, |index| index)
    }

    /// The same, with the pages in reverse order on the host.
    pub(crate) fn scattered(base: u64, pages: u64) -> Self {
        Self::build(base, pages, false, |index| pages - 1 - index)
    }

    fn build(base: u64, pages: u64, join_pages: bool, order: impl Fn(u64) -> u64) -> Self {
        let map = (0..pages)
            .map(|page| (base / PAGE + page, Page::Memory { index: order(page) as usize, writable: true }));
        Self {
            bytes: (0..pages * PAGE).map(|_| AtomicU8::new(0)).collect(),
            pages: RefCell::new(map.collect()),
            join_pages,
            clock: Cell::new(0),
            context_clock: Cell::new(0),
            work: RefCell::default(),
            interrupts: Cell::new(0),
        }
    }

    /// Takes a page away; returns it for [`restore`](Self::restore).
    pub(crate) fn unmap(&self, va: u64) -> impl Fn(&Self) + use<> {
        let page = self.pages.borrow_mut().remove(&(va / PAGE)).expect("the page was mapped");
        move |bus| {
            bus.pages.borrow_mut().insert(va / PAGE, page);
        }
    }

    pub(crate) fn protect(&self, va: u64) {
        if let Some(Page::Memory { writable, .. }) = self.pages.borrow_mut().get_mut(&(va / PAGE)) {
            *writable = false;
        }
    }

    pub(crate) fn make_null(&self, va: u64) {
        self.pages.borrow_mut().insert(va / PAGE, Page::Null);
    }

    /// Stores dwords, as a CPU would.
    pub(crate) fn put(&self, va: u64, dwords: &[u32]) {
        for (index, dword) in dwords.iter().enumerate() {
            self.write_u32(GpuVa::new(va + 4 * index as u64), *dword).expect("mapped");
        }
    }

    pub(crate) fn get(&self, va: u64) -> u32 {
        self.read_u32(GpuVa::new(va)).expect("mapped")
    }

    pub(crate) fn get64(&self, va: u64) -> u64 {
        self.read_u64(GpuVa::new(va)).expect("mapped")
    }

    /// All bytes from `va` on.
    pub(crate) fn dump(&self, va: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.read(GpuVa::new(va), &mut bytes).expect("mapped");
        bytes
    }

    pub(crate) fn count_of(&self, work: Work) -> usize {
        self.work.borrow().iter().filter(|&&done| done == work).count()
    }

    fn page(&self, va: GpuVa, access: Access) -> Result<Page, Fault> {
        let fault = |kind| Fault { va, access, kind };
        match self.pages.borrow().get(&(va.get() / PAGE)) {
            None => Err(fault(FaultKind::NotPresent)),
            Some(Page::Memory { writable: false, .. }) if access.writes() => Err(fault(FaultKind::ReadOnly)),
            Some(&page) => Ok(page),
        }
    }
}

impl Bus for TestBus {
    fn read(&self, mut va: GpuVa, mut buf: &mut [u8]) -> Result<(), Fault> {
        while !buf.is_empty() {
            let chunk = self.chunk(va, buf.len() as u64, Access::Read)?;
            let (now, later) = buf.split_at_mut(chunk.len());
            chunk.read(0, now)?;
            va = va.offset(now.len() as u64);
            buf = later;
        }
        Ok(())
    }

    fn write(&self, mut va: GpuVa, mut buf: &[u8]) -> Result<(), Fault> {
        while !buf.is_empty() {
            let chunk = self.chunk(va, buf.len() as u64, Access::Write)?;
            let (now, later) = buf.split_at(chunk.len());
            chunk.write(0, now)?;
            va = va.offset(now.len() as u64);
            buf = later;
        }
        Ok(())
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
        assert!(len > 0, "a chunk of nothing was asked for");
        let to_page_end = PAGE - va.get() % PAGE;
        let Page::Memory { index, .. } = self.page(va, access)? else {
            return Ok(Chunk::null(va, access, len.min(to_page_end) as usize));
        };
        let mut available = to_page_end;
        let mut following = index;
        while self.join_pages && available < len {
            following += 1;
            match self.page(va.offset(available), access) {
                Ok(Page::Memory { index, .. }) if index == following => available += PAGE,
                _ => break,
            }
        }
        let start = index * PAGE as usize + (va.get() % PAGE) as usize;
        Ok(Chunk::from_atomics(va, access, &self.bytes[start..start + len.min(available) as usize]))
    }

    fn timestamp(&self) -> u64 {
        self.clock.get()
    }

    fn context_timestamp(&self) -> u64 {
        self.context_clock.get()
    }

    fn count(&self, work: Work) {
        self.work.borrow_mut().push(work);
    }

    fn user_interrupt(&self) {
        self.interrupts.set(self.interrupts.get() + 1);
    }
}
