//! Steps: what a change of an address space means to its page tables.
//!
//! A request is cut against the mappings it meets (see the pictures in [the folder's head](super)) and becomes
//! `Unmap` and `Remap` steps in ascending order, then a `Map` if something is to be mapped; or a `Retag` or a
//! `Prefetch` for each mapping it is about. A driver either takes them as they come ([`Steps`]) or gets a
//! [`StepList`] to carry out later.

use alloc::vec::Vec;
use core::fmt;

use super::VmTypes;
use super::error::VmError;
use super::mapping::{Mapping, MappingRef};
use super::va::VaRange;

/// One thing that happens to one mapping.
pub enum Step<'a, T: VmTypes> {
    /// A mapping appears where, by now, nothing is.
    Map(MappingRef<'a, T>),
    /// A mapping goes.
    Unmap {
        /// What goes.
        mapping: MappingRef<'a, T>,
        /// The `Map` that follows shows the same bytes in the same way here: its page-table entries may stay.
        keep: bool,
    },
    /// A mapping goes but for one or both of its ends, which stay as mappings of their own. Their page-table
    /// entries are right as they are, but a large page that a cut goes through has to be taken apart.
    Remap {
        /// What was there as a whole.
        unmap: MappingRef<'a, T>,
        /// What stays below the request.
        prev: Option<MappingRef<'a, T>>,
        /// What stays above the request, its backing advanced to match.
        next: Option<MappingRef<'a, T>>,
        /// As with [`Step::Unmap`], for the part that goes.
        keep: bool,
    },
    /// A mapping, or a part of it, shows the same bytes as before under another tag. What `from` has outside `to`
    /// stays as one or two mappings of its own; their page-table entries are right, as with [`Step::Remap`].
    Retag {
        /// What was there as a whole, with its old tag.
        from: MappingRef<'a, T>,
        /// What has the new tag, its backing advanced to match.
        to: MappingRef<'a, T>,
    },
    /// What a part of a mapping shows will be used soon. On record nothing changes.
    Prefetch {
        /// The mapping as a whole.
        mapping: MappingRef<'a, T>,
        /// What of it was asked for.
        part: VaRange,
    },
}

impl<'a, T: VmTypes> Step<'a, T> {
    /// The step that takes `range` away from `mapping`, which it overlaps, in favour of `request`.
    pub(super) fn cut(
        mapping: MappingRef<'a, T>,
        range: VaRange,
        request: Option<&MappingRef<'_, T>>,
    ) -> Step<'a, T> {
        let keep = request.is_some_and(|request| mapping.shows_the_same_as(request));
        let prev = mapping.range.below(range).map(|part| mapping.piece(part));
        let next = mapping.range.above(range).map(|part| mapping.piece(part));
        if prev.is_none() && next.is_none() {
            return Step::Unmap { mapping, keep };
        }
        Step::Remap { unmap: mapping, prev, next, keep }
    }

    /// The range that the step is about: what appears, what goes without the ends that stay, what has another tag, or
    /// what was asked for.
    pub fn affected(&self) -> VaRange {
        match self {
            Step::Map(mapping) => mapping.range,
            Step::Unmap { mapping, .. } => mapping.range,
            Step::Retag { to, .. } => to.range,
            Step::Prefetch { part, .. } => *part,
            Step::Remap { unmap, prev, next, .. } => {
                let start = prev.map_or(unmap.range.start(), |prev| prev.range.end());
                let end = next.map_or(unmap.range.end(), |next| next.range.start());
                VaRange::from_raw(start.raw(), end.raw())
            }
        }
    }

    /// Whether page-table entries may stay as they are.
    pub fn keep(&self) -> bool {
        match self {
            Step::Map(_) | Step::Retag { .. } | Step::Prefetch { .. } => false,
            Step::Unmap { keep, .. } | Step::Remap { keep, .. } => *keep,
        }
    }
}

impl<T: VmTypes> Clone for Step<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: VmTypes> Copy for Step<'_, T> {}

impl<T: VmTypes> fmt::Debug for Step<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Map(mapping) => write!(f, "map {mapping:?}"),
            Step::Unmap { mapping, keep } => write!(f, "unmap {mapping:?} keep={keep}"),
            Step::Remap { unmap, prev, next, keep } => {
                let range = |end: &Option<MappingRef<'_, T>>| end.map(|end| end.range);
                write!(f, "remap {unmap:?} prev={:?} next={:?} keep={keep}", range(prev), range(next))
            }
            Step::Retag { from, to } => write!(f, "retag {from:?} in={:?}", to.range),
            Step::Prefetch { mapping, part } => write!(f, "prefetch {mapping:?} part={part:?}"),
        }
    }
}

/// What a request will do, shown to the driver before anything changed.
///
/// The `prev` and `next` ends are the only places where a large page may have to be taken apart.
pub struct Plan<'a, T: VmTypes> {
    /// The range asked for.
    pub range: VaRange,
    /// The mapping that will appear, if one will.
    pub map: Option<MappingRef<'a, T>>,
    /// The end of a cut mapping that stays below the range.
    pub prev: Option<MappingRef<'a, T>>,
    /// The end of a cut mapping that stays above the range.
    pub next: Option<MappingRef<'a, T>>,
    /// How many mappings go, are cut, get another tag or are to be prefetched.
    pub met: usize,
}

impl<T: VmTypes> Plan<'_, T> {
    /// How many mappings are split in two, where nothing is taken away.
    pub(super) fn splits(&self) -> usize {
        usize::from(self.prev.is_some()) + usize::from(self.next.is_some())
    }
}

/// A driver's side of a change made at once.
///
/// For every request: [`reserve`](Self::reserve), once, may refuse; then [`step`](Self::step) for each step and
/// [`flush`](Self::flush), once, may not. While `step` and `flush` run, the mappings that go are still on
/// record and their objects alive; they leave it afterwards, so nothing they stood for can be reused before
/// `flush` has made sure that the device no longer reaches it.
///
/// All run with the right to change the address space held, and with its book locked for reading: lookups work,
/// but tying a new object to this address space from inside would deadlock.
pub trait Steps<T: VmTypes> {
    /// What [`reserve`](Self::reserve) can fail with; requests that are wrong in themselves end up in it too.
    type Error: From<VmError>;

    /// Gets hold of everything the steps need (page-table nodes, mostly). On an error nothing changes.
    fn reserve(&mut self, plan: &Plan<'_, T>) -> Result<(), Self::Error> {
        let _ = plan;
        Ok(())
    }

    /// Carries one step out.
    fn step(&mut self, step: Step<'_, T>);

    /// Ends the request: makes sure that no stale translation is in use any more.
    fn flush(&mut self) {}

    /// Whether there is nothing to carry out: then the book is locked once, for look and change together.
    const NOTHING_TO_DO: bool = false;
}

/// Tracking alone, for those that keep no page tables.
impl<T: VmTypes> Steps<T> for () {
    type Error = VmError;

    fn step(&mut self, _step: Step<'_, T>) {}

    const NOTHING_TO_DO: bool = true;
}

/// A step with references of its own.
enum Owned<T: VmTypes> {
    Map(Mapping<T>),
    Cut { mapping: Mapping<T>, prev: Option<VaRange>, next: Option<VaRange>, keep: bool },
    Retag { from: Mapping<T>, part: VaRange, tag: T::Tag },
    Prefetch { mapping: Mapping<T>, part: VaRange },
}

impl<T: VmTypes> Owned<T> {
    fn new(step: Step<'_, T>) -> Self {
        match step {
            Step::Map(mapping) => Owned::Map(mapping.to_owned()),
            Step::Unmap { mapping, keep } => {
                Owned::Cut { mapping: mapping.to_owned(), prev: None, next: None, keep }
            }
            Step::Remap { unmap, prev, next, keep } => Owned::Cut {
                mapping: unmap.to_owned(),
                prev: prev.map(|prev| prev.range),
                next: next.map(|next| next.range),
                keep,
            },
            Step::Retag { from, to } => Owned::Retag { from: from.to_owned(), part: to.range, tag: to.tag },
            Step::Prefetch { mapping, part } => Owned::Prefetch { mapping: mapping.to_owned(), part },
        }
    }

    fn as_step(&self) -> Step<'_, T> {
        match self {
            Owned::Map(mapping) => Step::Map(mapping.as_ref()),
            Owned::Cut { mapping, prev: None, next: None, keep } => {
                Step::Unmap { mapping: mapping.as_ref(), keep: *keep }
            }
            Owned::Cut { mapping, prev, next, keep } => {
                let unmap = mapping.as_ref();
                Step::Remap {
                    unmap,
                    prev: prev.map(|part| unmap.piece(part)),
                    next: next.map(|part| unmap.piece(part)),
                    keep: *keep,
                }
            }
            Owned::Retag { from, part, tag } => {
                let from = from.as_ref();
                Step::Retag { from, to: MappingRef { tag: *tag, ..from.piece(*part) } }
            }
            Owned::Prefetch { mapping, part } => Step::Prefetch { mapping: mapping.as_ref(), part: *part },
        }
    }
}

/// Steps that are already on record in the address space and still to be carried out in the page tables.
///
/// The list owns references to the objects of everything it unmaps: drop it only when the page-table entries are
/// gone and no stale translation can be in use, and no memory is reused before. It can be sent to a bind job;
/// going through it allocates nothing.
pub struct StepList<T: VmTypes> {
    steps: Vec<Owned<T>>,
    changed: usize,
}

impl<T: VmTypes> StepList<T> {
    pub(super) const fn new() -> Self {
        StepList { steps: Vec::new(), changed: 0 }
    }

    /// Number of steps.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The steps in the order in which they are to be carried out.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Step<'_, T>> + ExactSizeIterator {
        self.steps.iter().map(Owned::as_step)
    }

    /// How many of the steps change a mapping that was there: so many are put back if the steps are undone.
    pub(super) fn changed(&self) -> usize {
        self.changed
    }

    pub(super) fn reserve(&mut self, more: usize) -> Result<(), VmError> {
        self.steps.try_reserve(more).map_err(|_| VmError::OutOfMemory)
    }

    /// Adds a step; room was [reserved](Self::reserve).
    pub(super) fn push(&mut self, step: Step<'_, T>) {
        if !matches!(step, Step::Map(_) | Step::Prefetch { .. }) {
            self.changed += 1;
        }
        self.steps.push(Owned::new(step));
    }
}

impl<T: VmTypes> fmt::Debug for StepList<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
