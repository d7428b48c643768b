//! A small driver for tests of address spaces: page tables that are a map from page to entry, a ledger of mappings kept by
//! the steps alone, and a log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lapidary::gpuvm::{
    BackingRef, GpuVm, MapRequest, MappingRef, ObjectId, Plan, Step, Steps, Va, VaRange, VmBo, VmBoList,
    VmConfig, VmError, VmTypes,
};
use lapidary::reaper::Reaper;
use lapidary::resv::Reservation;
use lapidary::sync::Mutex;

/// Bytes per page of the model.
pub(crate) const PAGE: u64 = 0x1000;

/// The driver under test.
pub(crate) struct Model;

/// A buffer object.
pub(crate) struct Buffer {
    id: usize,
    reservation: Reservation,
    vm_bos: VmBoList<Model>,
    /// What goes with it.
    kept: Mutex<Vec<Box<dyn Send>>>,
}

pub(crate) type Object = Arc<Buffer>;

/// A buffer with the given reservation.
pub(crate) fn buffer(reservation: &Reservation) -> Object {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = NEXT.fetch_add(1, Ordering::Relaxed) as usize;
    Arc::new(Buffer { id, reservation: reservation.clone(), vm_bos: VmBoList::new(), kept: Mutex::default() })
}

impl Buffer {
    pub(crate) fn id(&self) -> usize {
        self.id
    }

    pub(crate) fn reservation(&self) -> &Reservation {
        &self.reservation
    }

    /// Has `thing` live as long as the buffer does.
    pub(crate) fn keep(&self, thing: impl Send + 'static) {
        self.kept.lock().push(Box::new(thing));
    }

    pub(crate) fn vm_bos(&self) -> &VmBoList<Model> {
        &self.vm_bos
    }
}

/// What a page-table entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shows {
    Object { id: usize, offset: u64 },
    Null,
    Host { addr: u64 },
}

pub(crate) type Entry = (Shows, u32);

/// What `mapping` shows at `va`.
pub(crate) fn entry(mapping: &MappingRef<'_, Model>, va: u64) -> Entry {
    let into = va - mapping.range.start().raw();
    let shows = match mapping.backing {
        BackingRef::Object { vm_bo, offset } => {
            Shows::Object { id: vm_bo.object_id().0, offset: offset + into }
        }
        BackingRef::Null => Shows::Null,
        BackingRef::Host { addr } => Shows::Host { addr: addr + into },
    };
    (shows, mapping.tag)
}

/// What a mapping is: where, and what it shows at its start.
pub(crate) fn summary(mapping: &MappingRef<'_, Model>) -> (VaRange, Entry) {
    (mapping.range, entry(mapping, mapping.start().raw()))
}

pub(crate) fn pages(range: VaRange) -> impl Iterator<Item = u64> {
    (range.start().raw()..range.end().raw()).step_by(PAGE as usize)
}

/// Page tables.
#[derive(Default)]
pub(crate) struct PageTables {
    pub(crate) entries: BTreeMap<u64, Entry>,
    /// What is mapped, by its start, if each step is taken at its word.
    pub(crate) ledger: BTreeMap<u64, (VaRange, Entry)>,
    /// What was prefetched: mapping and part.
    pub(crate) prefetched: Vec<(VaRange, VaRange)>,
    /// What was done, in words.
    pub(crate) log: Vec<String>,
    /// Steps since the last flush.
    pub(crate) unflushed: usize,
    pub(crate) flushes: usize,
    /// Steps that a plan has announced.
    planned: Option<usize>,
    /// The next `reserve` fails.
    pub(crate) refuse: bool,
    /// No memory is granted for records.
    pub(crate) refuse_memory: bool,
    /// Bytes charged for records.
    pub(crate) charged: usize,
    /// Dropped when memory is charged for.
    pub(crate) dropped_by_charge: Option<Box<dyn Send>>,
    /// Dropped by the next step.
    pub(crate) dropped_by_step: Option<Box<dyn Send>>,
    /// Objects to look at while flushing: their reference counts then.
    pub(crate) watched: Vec<Object>,
    pub(crate) seen: Vec<usize>,
    pub(crate) torn_down_by: Option<std::thread::ThreadId>,
}

impl PageTables {
    /// Carries a step out as a driver does that trusts `keep`: entries it names stay, and `Map` only adds what is
    /// missing. If an entry that stayed were wrong, or one that had to go stayed, the model would show it.
    pub(crate) fn carry_out(&mut self, step: &Step<'_, Model>) {
        self.log.push(format!("{step:?}"));
        self.unflushed += 1;
        drop(self.dropped_by_step.take());
        self.enter(step);
        match step {
            Step::Map(mapping) => {
                for page in pages(mapping.range) {
                    self.entries.entry(page).or_insert(entry(mapping, page));
                }
            }
            Step::Retag { from, to } => {
                for page in pages(to.range) {
                    let was = self.entries.insert(page, entry(to, page));
                    assert_eq!(was, Some(entry(from, page)), "{step:?} of something else");
                }
            }
            Step::Prefetch { mapping, part } => {
                for page in pages(*part) {
                    assert_eq!(self.entries.get(&page), Some(&entry(mapping, page)), "{step:?}");
                }
                self.prefetched.push((mapping.range, *part));
            }
            Step::Unmap { .. } | Step::Remap { .. } => {
                for page in pages(step.affected()) {
                    if step.keep() {
                        assert!(self.entries.contains_key(&page), "{step:?} keeps what is not there");
                    } else {
                        assert!(self.entries.remove(&page).is_some(), "{step:?} of what is not there");
                    }
                }
            }
        }
    }

    /// Enters a step in the ledger.
    fn enter(&mut self, step: &Step<'_, Model>) {
        match step {
            Step::Map(mapping) => self.enter_mapping(mapping),
            Step::Unmap { mapping, .. } => self.strike(mapping),
            Step::Remap { unmap, prev, next, .. } => {
                self.strike(unmap);
                prev.iter().chain(next).for_each(|end| self.enter_mapping(end));
            }
            Step::Retag { from, to } => {
                self.strike(from);
                let ends = [from.range.below(to.range), from.range.above(to.range)];
                let ends = ends.into_iter().flatten().map(|end| from.piece(end));
                [*to].into_iter().chain(ends).for_each(|part| self.enter_mapping(&part));
            }
            Step::Prefetch { mapping, .. } => {
                let entered = self.ledger.get(&mapping.start().raw());
                assert_eq!(entered, Some(&summary(mapping)), "a prefetch of what is not mapped");
            }
        }
    }

    fn enter_mapping(&mut self, mapping: &MappingRef<'_, Model>) {
        let before = self.ledger.range(..mapping.range.end().raw()).next_back();
        let overlap = before.filter(|(_, (range, _))| range.overlaps(mapping.range));
        assert_eq!(overlap, None, "{mapping:?} appears over another");
        self.ledger.insert(mapping.start().raw(), summary(mapping));
    }

    fn strike(&mut self, mapping: &MappingRef<'_, Model>) {
        let struck = self.ledger.remove(&mapping.start().raw());
        assert_eq!(struck, Some(summary(mapping)), "what goes is not what was there");
    }

    pub(crate) fn flush(&mut self) {
        self.unflushed = 0;
        self.flushes += 1;
        self.seen = self.watched.iter().map(Arc::strong_count).collect();
    }
}

/// The driver's part of an address space.
#[derive(Default)]
pub(crate) struct Space(pub(crate) Mutex<PageTables>);

/// Errors of the driver.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DriverError {
    Vm(VmError),
    NoPageTable,
}

impl From<VmError> for DriverError {
    fn from(error: VmError) -> Self {
        DriverError::Vm(error)
    }
}

/// The driver at work.
pub(crate) struct Worker<'a>(pub(crate) &'a Space);

impl Steps<Model> for Worker<'_> {
    type Error = DriverError;

    fn reserve(&mut self, plan: &Plan<'_, Model>) -> Result<(), DriverError> {
        let prev_ends = plan.prev.is_none_or(|prev| prev.range.end() == plan.range.start());
        let next_starts = plan.next.is_none_or(|next| next.range.start() == plan.range.end());
        assert!(prev_ends && next_starts, "the ends touch the request");
        let mut tables = self.0.0.lock();
        if std::mem::take(&mut tables.refuse) {
            return Err(DriverError::NoPageTable);
        }
        tables.planned = Some(plan.met + usize::from(plan.map.is_some()));
        Ok(())
    }

    fn step(&mut self, step: Step<'_, Model>) {
        self.0.0.lock().carry_out(&step);
    }

    fn flush(&mut self) {
        let mut tables = self.0.0.lock();
        assert_eq!(tables.planned.take(), Some(tables.unflushed), "as many steps as were announced");
        tables.flush();
    }
}

/// Takes page tables down, noting who does.
pub(crate) struct TearDown<'a>(&'a Space);

impl Steps<Model> for TearDown<'_> {
    type Error = VmError;

    fn step(&mut self, step: Step<'_, Model>) {
        self.0.0.lock().carry_out(&step);
    }

    fn flush(&mut self) {
        let mut tables = self.0.0.lock();
        tables.flush();
        tables.torn_down_by = Some(std::thread::current().id());
    }
}

impl VmTypes for Model {
    type Object = Object;
    type Tag = u32;
    type Space = Arc<Space>;

    fn id(object: &Object) -> ObjectId {
        ObjectId(object.id)
    }

    fn reservation(object: &Object) -> Option<&Reservation> {
        Some(&object.reservation)
    }

    fn vm_bos(object: &Object) -> Option<&VmBoList<Model>> {
        Some(&object.vm_bos)
    }

    fn teardown(space: &Arc<Space>) -> impl Steps<Self> {
        TearDown(space)
    }

    fn charge(space: &Arc<Space>, bytes: usize) -> bool {
        let mut tables = space.0.lock();
        drop(tables.dropped_by_charge.take());
        if tables.refuse_memory {
            return false;
        }
        tables.charged += bytes;
        true
    }

    fn credit(space: &Arc<Space>, bytes: usize) {
        space.0.lock().charged -= bytes;
    }
}

/// An address space, its page tables, and the reaper that ends it.
pub(crate) struct Fixture {
    pub(crate) vm: GpuVm<Model>,
    pub(crate) space: Arc<Space>,
    pub(crate) reaper: Reaper,
}

impl Fixture {
    pub(crate) fn new() -> Fixture {
        Fixture::with(VmConfig::bits(47))
    }

    pub(crate) fn with(config: VmConfig) -> Fixture {
        let reaper = Reaper::new();
        let space = Arc::new(Space::default());
        let vm = GpuVm::new(config, Reservation::new(), space.clone(), &reaper);
        Fixture { vm, space, reaper }
    }

    /// A buffer that shares the address space's reservation.
    pub(crate) fn local(&self) -> Object {
        buffer(self.vm.reservation())
    }

    pub(crate) fn map(&self, first: u64, pages: u64, object: &Object) -> Result<(), DriverError> {
        let vm_bo = self.vm.obtain(object)?;
        self.map_at(first, pages, &vm_bo, 0)
    }

    pub(crate) fn map_at(
        &self,
        first: u64,
        pages: u64,
        vm_bo: &VmBo<Model>,
        page: u64,
    ) -> Result<(), DriverError> {
        let request = MapRequest::object(range(first, pages), vm_bo, page * PAGE, 0);
        self.vm.lock()?.map(&request, &mut Worker(&self.space))
    }

    pub(crate) fn unmap(&self, first: u64, pages: u64) -> Result<(), DriverError> {
        self.vm.lock()?.unmap(range(first, pages), &mut Worker(&self.space))
    }

    /// The steps since the last call, in words, with addresses.
    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.space.0.lock().log)
    }

    /// The mapped ranges in pages: (first, length, first page of the backing).
    pub(crate) fn mapped(&self) -> Vec<(u64, u64, u64)> {
        let read = self.vm.read();
        read.check().unwrap();
        read.iter()
            .map(|mapping| mapping.get())
            .map(|mapping| {
                let offset = match mapping.backing {
                    BackingRef::Object { offset, .. } => offset,
                    BackingRef::Null => 0,
                    BackingRef::Host { addr } => addr,
                };
                (mapping.start().raw() / PAGE, mapping.range.len() / PAGE, offset / PAGE)
            })
            .collect()
    }
}

/// `pages` pages from page `first` on.
pub(crate) fn range(first: u64, pages: u64) -> VaRange {
    VaRange::new(Va::new(first * PAGE), pages * PAGE).unwrap()
}

/// An address space with one mapping of four pages.
pub(crate) fn mapped_fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.map(1, 4, &fixture.local()).unwrap();
    fixture
}
