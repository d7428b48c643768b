//! Steps of an address space, carried out in its page tables.
//!
//! Nodes are reserved before anything changes; from then on an edit can't fail. What an edit replaced is invalidated
//! before it returns, so whatever a step unmapped may be let go of afterwards.

use std::sync::Arc;

use lapidary::gpuvm::{BackingRef, MappingRef, Step, StepList, Steps, Va, VaRange, VmError};
use lapidary_gpu::GpuVa;
use lapidary_gpu::pagetable::{
    AddressSpace, Edit, Needs, Nodes, PageTableError, Pat, PteAttrs, Target, VaSpan,
};

use super::vm::{Tag, XeTypes};

/// Where a step edits page tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Footprint {
    /// The addresses that translate otherwise afterwards.
    pub(super) range: VaRange,
    /// The same with the rest of tables that are made for it.
    pub(super) reach: VaRange,
}

/// Where a step will edit page tables, as they are now.
pub(super) fn footprint(space: &AddressSpace, step: &Step<'_, XeTypes>) -> Footprint {
    let range = step.affected();
    let Step::Map(_) = step else { return Footprint { range, reach: range } };
    let (mut start, mut end) = (range.start().raw(), range.end().raw());
    if let Some(absent) = space.absent_span(GpuVa::new(start)) {
        start = start.min(absent.start());
    }
    if let Some(absent) = space.absent_span(GpuVa::new(end - 1)) {
        end = end.max(absent.end());
    }
    let reach = VaRange::new(Va::new(start), end - start).unwrap_or(range);
    Footprint { range, reach }
}

/// About how many entries `steps` write. Memory takes small ones unless its addresses allow large ones; a range without
/// memory takes small ones at its ends only.
pub(super) fn entries(steps: &StepList<XeTypes>) -> u64 {
    const LARGE: u64 = 2 << 20;
    const SMALL: u64 = 4 << 10;
    let of = |step: Step<'_, XeTypes>| {
        let range = step.affected();
        let large = (range.start().raw() | range.len()).is_multiple_of(LARGE);
        match step {
            Step::Map(mapping) if mapping.tag.on_fault => 1,
            _ if large => range.len() / LARGE,
            Step::Map(mapping) if !matches!(mapping.backing, BackingRef::Null) => range.len() / SMALL,
            _ => (range.len() / SMALL).min(2 * LARGE / SMALL) + range.len() / LARGE,
        }
    };
    steps.iter().map(of).sum()
}

/// Sets nodes aside for all of `steps`.
///
/// # Errors
/// When the GPU has none left, or the client may have no more.
pub(super) fn reserve(space: &AddressSpace, steps: &StepList<XeTypes>) -> Result<Nodes, PageTableError> {
    let mut needs = Needs::new();
    for step in steps.iter() {
        match step {
            Step::Map(mapping) if mapping.tag.on_fault => {}
            Step::Map(mapping) | Step::Retag { to: mapping, .. } => add_needs(&mut needs, &mapping),
            step if keeps(&step) => {}
            Step::Unmap { mapping, .. } => {
                span_of(mapping.range).into_iter().for_each(|span| needs.unmap_whole(span));
            }
            Step::Remap { .. } => span_of(step.affected()).into_iter().for_each(|span| needs.unmap(span)),
            Step::Prefetch { .. } => {}
        }
    }
    space.reserve(&needs)
}

/// Sets nodes aside for one mapping as its object lies now.
///
/// # Errors
/// As [`reserve`].
pub(super) fn reserve_mapping(
    space: &AddressSpace,
    mapping: &MappingRef<'_, XeTypes>,
) -> Result<Nodes, PageTableError> {
    let mut needs = Needs::new();
    add_needs(&mut needs, mapping);
    space.reserve(&needs)
}

fn add_needs(needs: &mut Needs, mapping: &MappingRef<'_, XeTypes>) {
    for_each_piece(mapping, |span, target| needs.map(span, target));
}

/// Carries out a list of steps and invalidates.
pub(super) fn carry_out(space: &AddressSpace, steps: &StepList<XeTypes>, mut nodes: Nodes) {
    let mut edit = space.edit();
    for step in steps.iter() {
        apply(&mut edit, &step, &mut nodes);
    }
    edit.commit();
}

/// Writes the entries of one mapping, in an edit of its own.
pub(super) fn write_mapping(space: &AddressSpace, mapping: &MappingRef<'_, XeTypes>, mut nodes: Nodes) {
    let mut edit = space.edit();
    map(&mut edit, mapping, &mut nodes);
    edit.commit();
}

/// Removes the entries of `ranges`, in one edit.
pub(super) fn erase(space: &AddressSpace, ranges: impl IntoIterator<Item = VaRange>) {
    // Ranges of whole mappings end where leaves end: nothing has to be split, no node is needed.
    let mut nodes = space.no_nodes();
    let mut edit = space.edit();
    for range in ranges {
        unmap(&mut edit, range, &mut nodes);
    }
    edit.commit();
}

fn apply(edit: &mut Edit<'_>, step: &Step<'_, XeTypes>, nodes: &mut Nodes) {
    match step {
        Step::Map(mapping) if mapping.tag.on_fault => {}
        // A retag writes over the entries that are there.
        Step::Map(mapping) | Step::Retag { to: mapping, .. } => map(edit, mapping, nodes),
        step if keeps(step) => {}
        Step::Unmap { .. } | Step::Remap { .. } => unmap(edit, step.affected(), nodes),
        // Memory was moved, and entries written, before the list was made.
        Step::Prefetch { .. } => {}
    }
}

/// Whether entries stay as they are: the mapping that follows shows the same bytes and writes the same entries over these, cut
/// where it ends. One whose entries are written when an access faults writes none, so these go.
fn keeps(step: &Step<'_, XeTypes>) -> bool {
    match step {
        Step::Map(_) | Step::Retag { .. } | Step::Prefetch { .. } => false,
        Step::Unmap { mapping, keep } => *keep && !mapping.tag.on_fault,
        Step::Remap { unmap, keep, .. } => *keep && !unmap.tag.on_fault,
    }
}

fn map(edit: &mut Edit<'_>, mapping: &MappingRef<'_, XeTypes>, nodes: &mut Nodes) {
    let attrs = attributes(mapping.tag);
    for_each_piece(mapping, |span, target| log_failure(edit.map(span, target, attrs, nodes)));
}

fn unmap(edit: &mut Edit<'_>, range: VaRange, nodes: &mut Nodes) {
    if let Some(span) = span_of(range) {
        log_failure(edit.unmap(span, nodes));
    }
}

/// Ranges are checked and nodes reserved before an edit begins; a failure here is a mistake of the driver's.
fn log_failure(outcome: Result<(), PageTableError>) {
    if let Err(error) = outcome {
        debug_assert!(false, "a reserved edit failed: {error}");
        tracing::error!(%error, "page tables not edited");
    }
}

fn attributes(tag: Tag) -> PteAttrs {
    let pat = u8::try_from(tag.pat_index).ok().and_then(Pat::new).unwrap_or_default();
    PteAttrs { writable: !tag.read_only, pat }
}

fn span_of(range: VaRange) -> Option<VaSpan> {
    VaSpan::new(GpuVa::new(range.start().raw()), range.len())
}

fn for_each_piece(mapping: &MappingRef<'_, XeTypes>, mut piece: impl FnMut(VaSpan, Target)) {
    let (start, len) = (mapping.range.start().raw(), mapping.range.len());
    match mapping.backing {
        BackingRef::Null => span_of(mapping.range).into_iter().for_each(|span| piece(span, Target::Null)),
        BackingRef::Object { vm_bo, offset } => {
            vm_bo.object().for_each_piece(offset, len, |skip, at, len| {
                let span = VaSpan::new(GpuVa::new(start + skip), len);
                span.into_iter().for_each(|span| piece(span, Target::Memory(at)));
            })
        }
        // Client memory is an object here, see `client_pages`.
        BackingRef::Host { .. } => {}
    }
}

/// Takes an address space down: everything is unmapped at once.
pub(super) struct Teardown {
    pub(super) space: Arc<AddressSpace>,
}

impl Steps<XeTypes> for Teardown {
    type Error = VmError;

    fn step(&mut self, _step: Step<'_, XeTypes>) {}

    fn flush(&mut self) {
        self.space.clear();
    }
}
