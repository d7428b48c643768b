//! A model that knows nothing but pages: what each shows, and which request put it there.
//!
//! Everything an address space answers follows from that: its mappings are runs of neighbouring pages of one request, and
//! the rest is looked up page by page.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::driver::{Entry, Fixture, Model, Object, PAGE, Shows, buffer, entry, pages, range, summary};
use lapidary::gpuvm::{Batch, MapRequest, MappingRef, Steps, Va, VaRange, VmBo, VmConfig, VmError, VmGuard};
use lapidary::resv::Reservation;
use proptest::prelude::*;

/// Requests begin in the first so many pages.
const SPACE: u64 = 300;
/// Longest range asked for.
const LONGEST: u64 = 120;
const OBJECTS: usize = 4;

/// An object and its tie.
pub(crate) type Tied = (Object, VmBo<Model>);

/// What stands behind a mapping; pages as unit.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Back {
    Object(usize, u64),
    Null,
    Host(u64),
}

/// One thing asked of an address space.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Map(u64, u64, Back, u32),
    Unmap(u64, u64),
    UnmapObject(usize),
    Retag(u64, u64, Retag),
    Prefetch(u64, u64),
}

/// A change of tags.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Retag {
    /// Everything gets this tag.
    All(u32),
    /// What shows an object gets this tag.
    Objects(u32),
    /// Everything gets a tag that depends on what it has.
    Other,
}

impl Retag {
    fn tag(self, of_object: bool, tag: u32) -> u32 {
        match self {
            Retag::All(new) => new,
            Retag::Objects(new) if of_object => new,
            Retag::Objects(_) => tag,
            Retag::Other => tag ^ 1,
        }
    }

    fn of(self) -> impl Fn(&MappingRef<'_, Model>) -> u32 {
        move |mapping| self.tag(mapping.vm_bo().is_some(), mapping.tag)
    }
}

impl Op {
    /// Carries it out at once.
    pub(crate) fn at_once<S: Steps<Model>>(
        self,
        guard: &mut VmGuard<'_, Model>,
        objects: &[Tied],
        steps: &mut S,
    ) -> Result<(), S::Error> {
        match self {
            Op::Map(first, count, back, tag) => guard.map(&request(first, count, back, tag, objects), steps),
            Op::Unmap(first, count) => guard.unmap(range(first, count), steps),
            Op::UnmapObject(object) => guard.unmap_object(&objects[object].1, steps),
            Op::Retag(first, count, retag) => guard.retag(range(first, count), retag.of(), steps),
            Op::Prefetch(first, count) => guard.prefetch(range(first, count), steps),
        }
    }

    /// Adds it to a batch.
    pub(crate) fn prepared(self, batch: &mut Batch<'_, '_, Model>, objects: &[Tied]) -> Result<(), VmError> {
        match self {
            Op::Map(first, count, back, tag) => batch.map(&request(first, count, back, tag, objects)),
            Op::Unmap(first, count) => batch.unmap(range(first, count)),
            Op::UnmapObject(object) => batch.unmap_object(&objects[object].1),
            Op::Retag(first, count, retag) => batch.retag(range(first, count), retag.of()),
            Op::Prefetch(first, count) => batch.prefetch(range(first, count)),
        }
    }

    fn range(self) -> Option<VaRange> {
        match self {
            Op::Map(first, count, ..)
            | Op::Unmap(first, count)
            | Op::Retag(first, count, _)
            | Op::Prefetch(first, count) => Some(range(first, count)),
            Op::UnmapObject(_) => None,
        }
    }
}

fn request(first: u64, count: u64, back: Back, tag: u32, objects: &[Tied]) -> MapRequest<'_, Model> {
    let range = range(first, count);
    match back {
        Back::Object(object, page) => MapRequest::object(range, &objects[object].1, page * PAGE, tag),
        Back::Null => MapRequest::null(range, tag),
        Back::Host(page) => MapRequest::host(range, page * PAGE, tag),
    }
}

/// Any operation.
pub(crate) fn op() -> impl Strategy<Value = Op> {
    let place = (0..SPACE, prop_oneof![4 => 1..12u64, 1 => 1..LONGEST]);
    // Backings that follow the address, so that the same bytes are often mapped again, and others.
    let back = prop_oneof![
        3 => (0..OBJECTS).prop_map(|object| (object, None)),
        2 => (0..OBJECTS, 0..50u64).prop_map(|(object, page)| (object, Some(page))),
    ];
    let object = (place.clone(), back, 0..2u32).prop_map(|((first, count), (object, page), tag)| {
        Op::Map(first, count, Back::Object(object, page.unwrap_or(first)), tag)
    });
    let other = prop_oneof![Just(Back::Null), (0..50u64).prop_map(Back::Host)];
    let other = (place.clone(), other, 0..2u32)
        .prop_map(|((first, count), back, tag)| Op::Map(first, count, back, tag));
    let retag = prop_oneof![
        2 => (0..3u32).prop_map(Retag::All),
        1 => (0..3u32).prop_map(Retag::Objects),
        1 => Just(Retag::Other),
    ];
    prop_oneof![
        10 => object,
        3 => other,
        5 => place.clone().prop_map(|(first, count)| Op::Unmap(first, count)),
        1 => (0..OBJECTS).prop_map(Op::UnmapObject),
        4 => (place.clone(), retag).prop_map(|((first, count), retag)| Op::Retag(first, count, retag)),
        1 => place.prop_map(|(first, count)| Op::Prefetch(first, count)),
    ]
}

/// Any configuration: with and without a part of the kernel's, roomy and tight.
pub(crate) fn config() -> impl Strategy<Value = VmConfig> {
    let kernel = prop_oneof![Just(None), Just(Some(range(SPACE - 10, 5)))];
    let limit = prop_oneof![Just(12), Just(40), Just(VmConfig::DEFAULT_LIMIT)];
    (kernel, limit).prop_map(|(kernel, limit)| VmConfig { kernel, limit, ..VmConfig::bits(47) })
}

/// Objects tied to an address space, half of them external.
pub(crate) fn objects(fixture: &Fixture) -> Vec<Tied> {
    let reservations = [fixture.vm.reservation().clone(), Reservation::new()];
    let tied = |i: usize| {
        let object = buffer(&reservations[i % 2]);
        let vm_bo = fixture.vm.obtain(&object).unwrap();
        (object, vm_bo)
    };
    (0..OBJECTS).map(tied).collect()
}

/// What each page shows, and the number of what put it there: a request, or a split.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Pages {
    pages: BTreeMap<u64, (Entry, u64)>,
    /// What was prefetched: mapping and part.
    prefetched: Vec<(VaRange, VaRange)>,
    puts: u64,
    config: VmConfig,
}

impl Pages {
    pub(crate) fn new(config: VmConfig) -> Pages {
        Pages { pages: BTreeMap::new(), prefetched: Vec::new(), puts: 0, config }
    }

    /// Carries `op` out, or says why not; nothing has changed then.
    pub(crate) fn apply(&mut self, op: Op, objects: &[Tied]) -> Result<(), VmError> {
        if let (Some(range), Some(reserved)) = (op.range(), self.config.kernel)
            && range.overlaps(reserved)
        {
            return Err(VmError::KernelReserved { range, reserved });
        }
        let mut after = self.clone();
        after.put(op, objects);
        let (before, count) = (self.mappings().len(), after.mappings().len());
        if count > before && count > self.config.limit as usize {
            return Err(VmError::TooManyMappings { limit: self.config.limit });
        }
        *self = after;
        Ok(())
    }

    fn put(&mut self, op: Op, objects: &[Tied]) {
        match op {
            Op::Map(first, count, back, tag) => {
                let put = self.next_put();
                let request = request(first, count, back, tag, objects);
                self.pages.extend(pages(request.range).map(|page| (page, (entry(&request, page), put))));
            }
            Op::Unmap(first, count) => {
                let gone = range(first, count);
                self.pages.retain(|page, _| !gone.contains(Va::new(*page)));
            }
            Op::UnmapObject(object) => {
                let gone = objects[object].0.id();
                self.pages.retain(|_, ((shows, _), _)| of_object(*shows) != Some(gone));
            }
            Op::Retag(first, count, retag) => self.retag(range(first, count), retag),
            Op::Prefetch(first, count) => {
                let wanted = range(first, count);
                let parts = self.mappings().into_iter();
                let parts = parts.filter_map(|(at, _)| Some((at, at.intersection(wanted)?)));
                self.prefetched.extend(parts);
            }
        }
    }

    /// A mapping of which a part gets another tag comes apart: the part and what is above it are new.
    fn retag(&mut self, wanted: VaRange, retag: Retag) {
        for (at, (shows, tag)) in self.mappings() {
            let new = retag.tag(of_object(shows).is_some(), tag);
            let Some(part) = at.intersection(wanted).filter(|_| new != tag) else { continue };
            for (piece, tag) in [(Some(part), new), (at.above(part), tag)] {
                let put = self.next_put();
                for page in piece.into_iter().flat_map(pages) {
                    let old = self.pages.get_mut(&page).unwrap();
                    *old = ((old.0.0, tag), put);
                }
            }
        }
    }

    fn next_put(&mut self) -> u64 {
        self.puts += 1;
        self.puts
    }

    /// The mappings, and what each shows at its start.
    fn mappings(&self) -> Vec<(VaRange, Entry)> {
        let mut runs: Vec<(u64, u64, Entry, u64)> = Vec::new();
        for (&page, &(entry, put)) in &self.pages {
            match runs.last_mut() {
                Some(run) if run.1 == page && run.3 == put => run.1 += PAGE,
                _ => runs.push((page, page + PAGE, entry, put)),
            }
        }
        let whole = |start: u64, end: u64| range(start / PAGE, (end - start) / PAGE);
        runs.into_iter().map(|(start, end, entry, _)| (whole(start, end), entry)).collect()
    }

    fn is_free(&self, range: VaRange) -> bool {
        pages(range).all(|page| !self.pages.contains_key(&page))
    }

    fn find_empty(&self, len: u64, align: u64, within: VaRange) -> Option<Va> {
        let starts = (0..within.end().raw()).step_by(align as usize);
        let mut places = starts.filter_map(|start| VaRange::new(Va::new(start), len));
        let fits = |place: &VaRange| {
            let kernel = self.config.kernel.is_some_and(|kernel| kernel.overlaps(*place));
            within.covers(*place) && !kernel && self.is_free(*place)
        };
        places.find(fits).map(VaRange::start)
    }
}

fn of_object(shows: Shows) -> Option<usize> {
    match shows {
        Shows::Object { id, .. } => Some(id),
        Shows::Null | Shows::Host { .. } => None,
    }
}

/// Whether the address space and its page tables are as the model has it, in everything that can be asked.
pub(crate) fn agree(fixture: &Fixture, objects: &[Tied], model: &Pages) {
    let read = fixture.vm.read();
    read.check().unwrap();
    let mappings = model.mappings();
    let listed: Vec<_> = read.iter().map(|mapping| summary(&mapping.get())).collect();
    assert_eq!(listed, mappings);
    assert_eq!(read.len(), mappings.len());
    tables_agree(fixture, model, &mappings);
    look_ups_agree(fixture, model, &mappings);
    objects_agree(fixture, objects, &mappings);
}

/// What the steps did, one by one, is the difference they were to make.
fn tables_agree(fixture: &Fixture, model: &Pages, mappings: &[(VaRange, Entry)]) {
    let tables = fixture.space.0.lock();
    assert!(tables.ledger.values().eq(mappings));
    assert!(tables.entries.iter().eq(model.pages.iter().map(|(page, (entry, _))| (page, entry))));
    assert_eq!(tables.prefetched, model.prefetched);
}

fn look_ups_agree(fixture: &Fixture, model: &Pages, mappings: &[(VaRange, Entry)]) {
    let read = fixture.vm.read();
    for page in 0..SPACE + LONGEST {
        let va = Va::new(page * PAGE + 8 * (page % 512));
        let expected = mappings.iter().find(|(at, _)| at.contains(va)).copied();
        assert_eq!(read.at(va).map(|found| summary(&found)), expected, "at {va}");
    }
    for (first, count) in [(0, 1), (3, 30), (50, 7), (100, 100), (200, 1), (250, 200), (0, 1000)] {
        let probe = range(first, count);
        let mut met = mappings.iter().filter(|(at, _)| at.overlaps(probe));
        assert!(read.range(probe).map(|found| summary(&found)).eq(met.clone().copied()));
        assert_eq!(read.find_first(probe).map(|found| summary(&found.get())), met.next().copied());
        assert_eq!(read.is_free(probe), model.is_free(probe));
        assert_eq!(read.find(probe).is_some(), mappings.iter().any(|(at, _)| *at == probe));
    }
    assert!(mappings.iter().all(|(at, _)| read.find(*at).map(|found| found.range) == Some(*at)));
    for (len, align, within) in [(1, 1, range(0, 1000)), (3, 4, range(40, 160)), (40, 16, range(1, 500))] {
        let (len, align) = (len * PAGE, align * PAGE);
        assert_eq!(read.find_empty(len, align, within), model.find_empty(len, align, within));
    }
}

fn objects_agree(fixture: &Fixture, objects: &[Tied], mappings: &[(VaRange, Entry)]) {
    let read = fixture.vm.read();
    let mut external = BTreeSet::new();
    for (object, vm_bo) in objects {
        let expected: BTreeSet<u64> = mappings
            .iter()
            .filter(|(_, (shows, _))| of_object(*shows) == Some(object.id()))
            .map(|(at, _)| at.start().raw())
            .collect();
        let of_object: Vec<u64> = read.mappings_of(vm_bo).map(|mapping| mapping.start().raw()).collect();
        assert_eq!(of_object.len(), expected.len());
        assert_eq!(of_object.into_iter().collect::<BTreeSet<_>>(), expected);
        if vm_bo.is_external() && !expected.is_empty() {
            external.insert(object.id());
        }
    }
    let listed: Vec<usize> = read.external().map(|vm_bo| vm_bo.object().id()).collect();
    assert_eq!(listed.len(), external.len());
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), external);
}

/// Ends the address space: nothing is left of it, and nothing of the objects but what the test holds.
pub(crate) fn close(fixture: &Fixture, objects: Vec<Tied>) {
    fixture.vm.close();
    {
        let tables = fixture.space.0.lock();
        assert!(tables.entries.is_empty() && tables.ledger.is_empty());
        assert_eq!(tables.charged, 0);
    }
    for (object, vm_bo) in objects {
        drop(vm_bo);
        assert_eq!(Arc::strong_count(&object), 1);
        assert!(object.vm_bos().snapshot().is_empty());
    }
}
