//! The book of an address space: which mappings there are, and which of them belong to which object.
//!
//! A record per mapping hangs in two orders: by address in the [store](super::store), and in its object's list.
//! The list runs through the records by index, so that it costs eight bytes a mapping, and a mapping refers to
//! its object by the number of a slot: one reference to the `VmBo` is held per object, not per mapping.
//!
//! Every change is a [`replace`](Book::replace): what overlaps a range is cut to what is outside, and a new
//! mapping or nothing takes the range; or a [`retag`](Book::retag), which splits what reaches over the range's ends and
//! changes nothing else but tags. Room for it is made beforehand; the change itself can't fail.

mod lists;

use std::collections::HashMap;
use std::fmt;

use super::error::VmError;
use super::mapping::{BackingRef, MappingRef};
use super::steps::{Plan, Step};
use super::store::{Chained, NONE};
use super::store::{Entry, Place, Store, Walk};
use super::va::{Va, VaRange};
use super::vm_bo::{VmBo, VmBoInner};
use super::{ObjectId, VmTypes};
use crate::sync::Weak;
use lists::Lists;

/// Slot number of mappings that show nothing.
const NULL: u32 = u32::MAX;
/// Slot number of mappings that show the client's memory.
const HOST: u32 = u32::MAX - 1;
/// Objects one address space can know.
const SLOTS: usize = HOST as usize;

/// What is kept of a mapping beside its range. 32 bytes with a tag of four.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<G> {
    start: u64,
    /// Offset into the object or host address; 0 for null mappings.
    offset: u64,
    slot: u32,
    /// The object's list; `next` is the arena's chain while the record is free.
    prev: u32,
    next: u32,
    tag: G,
}

impl<G> Chained for Record<G> {
    fn chain(&self) -> u32 {
        self.next
    }

    fn set_chain(&mut self, next: u32) {
        self.next = next;
    }
}

/// What the address space keeps of an object it knows.
struct Slot<T: VmTypes> {
    /// Held while there are mappings, and after that until the slot has left `idle`.
    held: Option<VmBo<T>>,
    /// Where in `external` the slot is listed.
    external_at: u32,
    /// The next slot that is idle or free.
    chain: u32,
    idle: bool,
}

/// What a slot stands for; apart from it, since requests don't look at this.
struct Known<T: VmTypes> {
    tie: Weak<VmBoInner<T>>,
    object: Option<ObjectId>,
}

/// What a range meets: good until the next change.
pub(super) struct Cut {
    place: Place,
    range: VaRange,
    removed: usize,
    /// Whether the first, and the last, of what is met reaches beyond the range.
    prev: bool,
    next: bool,
}

impl Cut {
    /// How many mappings there will be in place of the removed ones.
    fn left(&self, mapped: bool) -> usize {
        usize::from(self.prev) + usize::from(self.next) + usize::from(mapped)
    }

    pub(super) fn removed(&self) -> usize {
        self.removed
    }
}

/// See the module.
pub(super) struct Book<T: VmTypes> {
    store: Store<Record<T::Tag>>,
    slots: Vec<Slot<T>>,
    /// By slot.
    known: Vec<Known<T>>,
    free_slots: u32,
    /// Slots whose last mapping went and whose `VmBo` is still held.
    idle: u32,
    by_object: HashMap<ObjectId, u32>,
    /// Mapped objects with a reservation of their own.
    external: Vec<u32>,
    limit: u32,
    /// Bytes that somebody was charged for the store's memory.
    charged: usize,
    /// Whether the address space has ended: nothing is written any more.
    closed: bool,
}

impl<T: VmTypes> Book<T> {
    pub(super) fn new(limit: u32) -> Self {
        Book {
            store: Store::new(),
            slots: Vec::new(),
            known: Vec::new(),
            free_slots: NONE,
            idle: NONE,
            by_object: HashMap::new(),
            external: Vec::new(),
            limit,
            charged: 0,
            closed: false,
        }
    }

    /// The book of an address space that has ended: empty for good. Ties of before name slots that it does not have.
    pub(super) fn closed() -> Self {
        Book { closed: true, ..Book::new(0) }
    }

    // ---- looking ----

    pub(super) fn len(&self) -> usize {
        self.store.tree.len()
    }

    /// Bytes of memory held for mappings.
    pub(super) fn mapping_bytes(&self) -> usize {
        self.store.bytes()
    }

    /// Bytes of memory held for mappings and objects.
    pub(super) fn bytes(&self) -> usize {
        let objects = self.by_object.capacity() * (size_of::<(ObjectId, u32)>() + 1);
        let slots = self.slots.capacity() * size_of::<Slot<T>>()
            + self.known.capacity() * size_of::<Known<T>>()
            + self.external.capacity() * size_of::<u32>();
        self.store.bytes() + slots + objects
    }

    /// The first mapping that ends behind `at`.
    #[inline]
    pub(super) fn first_behind(&self, at: u64) -> Option<Recorded<'_, T>> {
        self.store.tree.first_behind(at).map(|entry| Recorded { book: self, entry })
    }

    /// The last mapping that begins before `at`.
    pub(super) fn last_before(&self, at: u64) -> Option<Recorded<'_, T>> {
        self.store.tree.last_before(at).map(|entry| Recorded { book: self, entry })
    }

    /// The mappings in order, from the first that ends behind `at`.
    pub(super) fn mappings_from(&self, at: u64) -> Mappings<'_, T> {
        Mappings { book: self, walk: self.store.tree.walk_from(at) }
    }

    /// The mappings that overlap `range`, in order.
    pub(super) fn overlapping(&self, range: VaRange) -> impl Iterator<Item = MappingRef<'_, T>> {
        self.mappings_from(range.start().raw()).take_while(move |mapping| mapping.range.overlaps(range))
    }

    /// The mappings that overlap `range`, in order, with the part of each that is in it.
    pub(super) fn parts(&self, range: VaRange) -> impl Iterator<Item = (MappingRef<'_, T>, VaRange)> {
        self.overlapping(range).filter_map(move |mapping| Some((mapping, mapping.range.intersection(range)?)))
    }

    /// All mappings in order.
    #[inline]
    pub(super) fn recorded(&self) -> impl Iterator<Item = Recorded<'_, T>> {
        self.store.tree.walk().map(|entry| Recorded { book: self, entry })
    }

    /// The mappings of an object, newest first.
    pub(super) fn mappings_of(&self, vm_bo: &VmBo<T>) -> MappingsOf<'_, T> {
        let next = if self.knows(vm_bo) { vm_bo.head() } else { NONE };
        MappingsOf { book: self, next }
    }

    /// How many mappings an object has.
    pub(super) fn count_of(&self, vm_bo: &VmBo<T>) -> usize {
        let mut next = if self.knows(vm_bo) { vm_bo.head() } else { NONE };
        let mut count = 0;
        while next != NONE {
            next = self.store.records.get(next).next;
            count += 1;
        }
        count
    }

    /// Whether the tie is of this book: one of before the end of an address space is not.
    fn knows(&self, vm_bo: &VmBo<T>) -> bool {
        self.known.get(vm_bo.slot() as usize).is_some_and(|known| vm_bo.is(&known.tie))
    }

    /// Mapped objects with a reservation of their own.
    pub(super) fn external(&self) -> impl Iterator<Item = &VmBo<T>> {
        self.external.iter().filter_map(|slot| self.mapped_object(*slot))
    }

    /// One of them; the order holds until something is mapped or unmapped.
    pub(super) fn external_at(&self, at: usize) -> Option<&VmBo<T>> {
        self.external.get(at).and_then(|slot| self.mapped_object(*slot))
    }

    /// The numbers of those mapped in `range`.
    pub(super) fn external_in(&self, range: VaRange) -> Result<Vec<u32>, VmError> {
        let mut slots = Vec::new();
        for mapping in self.overlapping(range) {
            let Some(vm_bo) = mapping.vm_bo().filter(|vm_bo| vm_bo.is_external()) else { continue };
            slots.try_reserve(1).map_err(|_| VmError::OutOfMemory)?;
            slots.push(vm_bo.slot());
        }
        slots.sort_unstable();
        slots.dedup();
        Ok(slots)
    }

    /// A mapped object by its number.
    pub(super) fn mapped_object(&self, slot: u32) -> Option<&VmBo<T>> {
        self.slots[slot as usize].held.as_ref()
    }

    fn mapping(&self, entry: Entry) -> MappingRef<'_, T> {
        let record = self.store.records.get(entry.id);
        let backing = match record.slot {
            NULL => BackingRef::Null,
            HOST => BackingRef::Host { addr: record.offset },
            slot => {
                let held = self.slots[slot as usize].held.as_ref();
                let vm_bo = held.expect("a mapped object is held");
                BackingRef::Object { vm_bo, offset: record.offset }
            }
        };
        MappingRef { range: VaRange::from_raw(entry.start, entry.end), backing, tag: record.tag }
    }

    // ---- planning ----

    /// Finds what `range` meets.
    #[inline]
    pub(super) fn cut(&self, range: VaRange) -> Cut {
        let (start, end) = (range.start().raw(), range.end().raw());
        let place = self.store.tree.place(start);
        let mut cut = Cut { place, range, removed: 0, prev: false, next: false };
        for entry in self.store.tree.walk_place(&place) {
            if entry.start >= end {
                break;
            }
            cut.removed += 1;
            cut.prev |= entry.start < start;
            cut.next |= entry.end > end;
        }
        cut
    }

    /// What the driver is shown of a cut.
    pub(super) fn plan<'a>(&'a self, cut: &Cut, request: Option<MappingRef<'a, T>>) -> Plan<'a, T> {
        let met = |at: usize| self.met(cut).nth(at);
        let prev = if cut.prev { met(0) } else { None };
        let next = if cut.next { met(cut.removed - 1) } else { None };
        Plan {
            range: cut.range,
            map: request,
            prev: prev.and_then(|whole| Some(whole.piece(whole.range.below(cut.range)?))),
            next: next.and_then(|whole| Some(whole.piece(whole.range.above(cut.range)?))),
            met: cut.removed,
        }
    }

    /// The steps of a cut, in order.
    pub(super) fn steps<'a>(
        &'a self,
        cut: &Cut,
        request: Option<MappingRef<'a, T>>,
    ) -> impl Iterator<Item = Step<'a, T>> {
        let range = cut.range;
        let cuts = self.met(cut).map(move |mapping| Step::cut(mapping, range, request.as_ref()));
        cuts.chain(request.map(Step::Map))
    }

    fn met(&self, cut: &Cut) -> impl Iterator<Item = MappingRef<'_, T>> {
        self.store.tree.walk_place(&cut.place).take(cut.removed).map(|entry| self.mapping(entry))
    }

    /// What gets another tag if each mapping's part in `range` gets the one that `tag` has for it: the mapping as it is,
    /// and its part with the new tag.
    pub(super) fn retags<'a>(
        &'a self,
        range: VaRange,
        tag: &'a impl Fn(&MappingRef<'_, T>) -> T::Tag,
    ) -> impl Iterator<Item = (MappingRef<'a, T>, MappingRef<'a, T>)> {
        self.parts(range).filter_map(move |(from, part)| {
            let part = from.piece(part);
            let tag = tag(&part);
            (tag != part.tag).then_some((from, MappingRef { tag, ..part }))
        })
    }

    /// What the driver is shown of a change of tags.
    pub(super) fn plan_retag<'a>(
        &'a self,
        range: VaRange,
        tag: &'a impl Fn(&MappingRef<'_, T>) -> T::Tag,
    ) -> Plan<'a, T> {
        let mut plan = Plan { range, map: None, prev: None, next: None, met: 0 };
        for (from, to) in self.retags(range, tag) {
            plan.met += 1;
            plan.prev = plan.prev.or_else(|| Some(from.piece(from.range.below(to.range)?)));
            plan.next = from.range.above(to.range).map(|part| from.piece(part));
        }
        plan
    }

    /// Refuses to split so many mappings in two if that makes too many.
    pub(super) fn check_splits(&self, splits: usize) -> Result<(), VmError> {
        if splits > 0 && self.len() + splits > self.limit as usize {
            return Err(VmError::TooManyMappings { limit: self.limit });
        }
        Ok(())
    }

    /// Whether so many mappings can be split in two without memory.
    pub(super) fn has_room_to_split(&self, splits: usize) -> bool {
        splits == 0 || self.store.has_spare(splits)
    }

    /// Refuses a cut that would leave too many mappings.
    #[inline]
    pub(super) fn check_limit(&self, cut: &Cut, mapped: bool) -> Result<(), VmError> {
        let left = cut.left(mapped);
        if left > cut.removed && self.len() - cut.removed + left > self.limit as usize {
            return Err(VmError::TooManyMappings { limit: self.limit });
        }
        Ok(())
    }

    /// Whether a change needs no memory. What only takes away seldom does.
    #[inline]
    pub(super) fn has_room(&self, cut: &Cut, mapped: bool) -> bool {
        self.store.has_room(&cut.place, cut.removed, cut.left(mapped))
    }

    /// Makes room for one change, and `more` mappings beside it. `charge` is asked first for the bytes it takes, which are
    /// on [`charged`](Self::charged) from then on; `credit` is told of those that were not to be had.
    pub(super) fn reserve(
        &mut self,
        more: usize,
        charge: impl FnOnce(usize) -> bool,
        credit: impl FnOnce(usize),
    ) -> Result<(), VmError> {
        let wanted = self.store.growth_bytes(more);
        if wanted == 0 {
            return Ok(());
        }
        if !charge(wanted) {
            return Err(VmError::OutOfMemory);
        }
        let before = self.store.bytes();
        let reserved = self.store.reserve(more);
        let gained = self.store.bytes() - before;
        self.charged += gained;
        if gained < wanted {
            credit(wanted - gained);
        }
        if reserved { Ok(()) } else { Err(VmError::OutOfMemory) }
    }

    /// The bytes charged for memory that is given back; 0 while any is held.
    fn take_charged(&mut self) -> usize {
        if self.store.bytes() == 0 { std::mem::take(&mut self.charged) } else { 0 }
    }

    // ---- changing ----

    /// Cuts what the range of `cut` meets to what is outside and puts `request`, whose range it is, in its place.
    ///
    /// Room was made by [`reserve`](Self::reserve).
    #[inline]
    pub(super) fn replace(&mut self, cut: &Cut, request: Option<MappingRef<'_, T>>) {
        let (start, end) = (cut.range.start().raw(), cut.range.end().raw());
        let mut new = [Entry { start: 0, end: 0, id: NONE }; 3];
        let mut count = 0;
        let mut add = |entry| {
            new[count] = entry;
            count += 1;
        };
        let mut above = None;
        let mut walk = self.store.tree.walk_place(&cut.place);
        let mut lists = Lists {
            records: &mut self.store.records,
            slots: &mut self.slots,
            idle: &mut self.idle,
            external: &mut self.external,
        };
        for entry in walk.by_ref().take(cut.removed) {
            let stays_below = entry.start < start;
            if stays_below {
                add(Entry { end: start, ..entry });
            }
            if entry.end > end {
                let id = if stays_below { lists.duplicate(entry.id) } else { entry.id };
                lists.advance(id, end);
                above = Some(Entry { start: end, end: entry.end, id });
            } else if !stays_below {
                lists.remove(entry.id);
            }
        }
        if let Some(request) = request {
            add(Entry { start, end, id: lists.insert(start, request) });
        }
        if let Some(above) = above {
            add(above);
        }
        self.store.tree.splice(&cut.place, cut.removed, &new[..count]);
    }

    /// [`cut`](Self::cut) and [`replace`](Self::replace) in one.
    pub(super) fn replace_range(&mut self, range: VaRange, request: Option<MappingRef<'_, T>>) {
        let cut = self.cut(range);
        self.replace(&cut, request);
    }

    /// Gives each mapping's part in `range` the tag that `tag` has for it. See [`retags`](Self::retags), which must give the
    /// same when it is asked again.
    ///
    /// Room for two splits was made by [`reserve`](Self::reserve).
    pub(super) fn retag(&mut self, range: VaRange, tag: &impl Fn(&MappingRef<'_, T>) -> T::Tag) {
        let mut rest = Some(range);
        while let Some((range, tag)) =
            rest.and_then(|rest| self.retags(rest, tag).next().map(|(_, to)| (to.range, to.tag)))
        {
            self.set_tag(range, tag);
            rest = rest.and_then(|rest| rest.above(range));
        }
    }

    /// Gives `part` of one mapping another tag; what is outside becomes mappings of their own.
    fn set_tag(&mut self, part: VaRange, tag: T::Tag) {
        let (start, end) = (part.start().raw(), part.end().raw());
        let place = self.store.tree.place(start);
        let Some(whole) = self.store.tree.walk_place(&place).next() else { return };
        debug_assert!(whole.start <= start && end <= whole.end);
        let mut pieces = [whole; 3];
        let (mut tagged, mut count) = (0, 1);
        let mut lists = self.lists();
        if whole.start < start {
            pieces[0].end = start;
            pieces[1] = Entry { start, id: lists.split(whole.id, start), ..whole };
            (tagged, count) = (1, 2);
        }
        if end < whole.end {
            let id = lists.split(pieces[tagged].id, end);
            pieces[tagged].end = end;
            pieces[tagged + 1] = Entry { start: end, end: whole.end, id };
            count += 1;
        }
        self.store.records.get_mut(pieces[tagged].id).tag = tag;
        if count > 1 {
            self.store.tree.splice(&place, 1, &pieces[..count]);
        }
    }

    fn lists(&mut self) -> Lists<'_, T> {
        Lists {
            records: &mut self.store.records,
            slots: &mut self.slots,
            idle: &mut self.idle,
            external: &mut self.external,
        }
    }

    /// Removes all mappings of an object.
    pub(super) fn remove_all_of(&mut self, vm_bo: &VmBo<T>) {
        while let Some(range) = self.mappings_of(vm_bo).next().map(|mapping| mapping.range) {
            self.replace_range(range, None);
        }
    }

    // ---- objects ----

    /// The tie to an object, if there is one.
    pub(super) fn find(&self, object: ObjectId) -> Option<VmBo<T>> {
        let slot = *self.by_object.get(&object)?;
        VmBo::upgrade(&self.known[slot as usize].tie)
    }

    /// How many objects can be known at most without room for more.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Makes a tie to an object that has none; `make` is given its slot. If it fails, nothing has changed.
    pub(super) fn tie(
        &mut self,
        object: ObjectId,
        make: impl FnOnce(u32) -> Result<VmBo<T>, VmError>,
    ) -> Result<VmBo<T>, VmError> {
        if self.closed {
            return Err(VmError::Closed);
        }
        let no_memory = |_| VmError::OutOfMemory;
        self.by_object.try_reserve(1).map_err(no_memory)?;
        // Every slot may come to be listed as external, which must not fail then.
        let slots = self.slots.len() + 1;
        self.external.try_reserve(slots - self.external.len()).map_err(no_memory)?;
        if self.free_slots == NONE {
            if self.slots.len() >= SLOTS {
                return Err(VmError::OutOfMemory);
            }
            self.slots.try_reserve(1).map_err(no_memory)?;
            self.known.try_reserve(1).map_err(no_memory)?;
            self.slots.push(Slot::free(NONE));
            self.known.push(Known { tie: Weak::new(), object: None });
            self.free_slots = self.slots.len() as u32 - 1;
        }
        let index = self.free_slots;
        let vm_bo = make(index)?;
        let slot = &mut self.slots[index as usize];
        self.free_slots = slot.chain;
        *slot = Slot::free(NONE);
        self.known[index as usize] = Known { tie: vm_bo.downgrade(), object: Some(object) };
        self.by_object.insert(object, index);
        Ok(vm_bo)
    }

    /// Forgets a tie that is gone.
    pub(super) fn untie(&mut self, index: u32) {
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        debug_assert!(slot.held.is_none());
        let known = &mut self.known[index as usize];
        let Some(object) = known.object.take() else { return };
        known.tie = Weak::new();
        *slot = Slot::free(self.free_slots);
        self.free_slots = index;
        // The same object may have been tied anew, in another slot, by the time this is noticed.
        if self.by_object.get(&object) == Some(&index) {
            self.by_object.remove(&object);
        }
    }

    /// Lets go of objects without mappings. They are handed out, since dropping one may do more than the caller's
    /// locks allow; `true` if there are more.
    pub(super) fn take_idle(&mut self, out: &mut [Option<VmBo<T>>]) -> bool {
        let mut taken = 0;
        while self.idle != NONE {
            if taken == out.len() {
                return true;
            }
            let slot = &mut self.slots[self.idle as usize];
            self.idle = slot.chain;
            slot.idle = false;
            if slot.held.as_ref().is_some_and(|held| held.head() == NONE) {
                out[taken] = slot.held.take();
                taken += 1;
            }
        }
        false
    }

    pub(super) fn has_idle(&self) -> bool {
        self.idle != NONE
    }

    /// Gives the memory back if nothing is mapped; returns the bytes to credit for it.
    #[must_use]
    pub(super) fn release_if_empty(&mut self) -> usize {
        self.store.release_if_empty();
        self.take_charged()
    }

    /// The bytes to credit for a book that is thrown away.
    pub(super) fn charged(&self) -> usize {
        self.charged
    }

    /// Checks every invariant; the error names the first that is broken.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        self.store.tree.check()?;
        if self.store.records.live() != self.len() {
            return Err("a record without a range");
        }
        if self.charged != self.store.bytes() {
            return Err("what was charged is not what is held");
        }
        let mut counts = vec![0u32; self.slots.len()];
        for entry in self.store.tree.walk() {
            let record = self.store.records.get(entry.id);
            if record.start != entry.start {
                return Err("a record's start is not its range's");
            }
            if record.slot < HOST {
                counts[record.slot as usize] += 1;
            }
        }
        for (index, count) in counts.into_iter().enumerate() {
            self.check_slot(index, count)?;
        }
        if self.slots.iter().filter(|slot| slot.external_at != NONE).count() != self.external.len() {
            return Err("the list of external objects is too long");
        }
        Ok(())
    }

    fn check_slot(&self, index: usize, count: u32) -> Result<(), &'static str> {
        let slot = &self.slots[index];
        if slot.held.is_some() != (count > 0 || slot.idle) {
            return Err("an object is held without a mapping, or the other way round");
        }
        let external = count > 0 && slot.held.as_ref().is_some_and(VmBo::is_external);
        let listed = self.external.get(slot.external_at as usize).is_some_and(|at| *at as usize == index);
        if listed != external || (slot.external_at != NONE) != external {
            return Err("an external object is not listed, or another is");
        }
        let head = slot.held.as_ref().map_or(NONE, VmBo::head);
        let (mut at, mut before, mut listed) = (head, NONE, 0);
        while at != NONE {
            let record = self.store.records.get(at);
            if record.prev != before || listed == count {
                return Err("an object's list is broken");
            }
            (before, at) = (at, record.next);
            listed += 1;
        }
        if listed != count { Err("an object's list is short") } else { Ok(()) }
    }
}

impl<T: VmTypes> Slot<T> {
    fn free(chain: u32) -> Self {
        Slot { held: None, external_at: NONE, chain, idle: false }
    }
}

/// A mapping on record. Its range is at hand; what else there is to it is looked up when it is asked for.
pub struct Recorded<'a, T: VmTypes> {
    book: &'a Book<T>,
    entry: Entry,
}

impl<'a, T: VmTypes> Recorded<'a, T> {
    /// Where it is.
    #[inline]
    pub fn range(&self) -> VaRange {
        VaRange::from_raw(self.entry.start, self.entry.end)
    }

    /// The first address.
    #[inline]
    pub fn start(&self) -> Va {
        self.range().start()
    }

    /// The whole mapping.
    #[inline]
    pub fn get(&self) -> MappingRef<'a, T> {
        self.book.mapping(self.entry)
    }
}

impl<T: VmTypes> fmt::Debug for Recorded<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// Mappings in order of address.
pub(super) struct Mappings<'a, T: VmTypes> {
    book: &'a Book<T>,
    walk: Walk<'a>,
}

impl<'a, T: VmTypes> Iterator for Mappings<'a, T> {
    type Item = MappingRef<'a, T>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.walk.next().map(|entry| self.book.mapping(entry))
    }
}

/// The mappings of one object.
pub(super) struct MappingsOf<'a, T: VmTypes> {
    book: &'a Book<T>,
    next: u32,
}

impl<'a, T: VmTypes> Iterator for MappingsOf<'a, T> {
    type Item = MappingRef<'a, T>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == NONE {
            return None;
        }
        let record = self.book.store.records.get(self.next);
        self.next = record.next;
        self.book.first_behind(record.start).map(|recorded| recorded.get())
    }
}
