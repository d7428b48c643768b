//! Records and the lists that objects have of theirs, kept while a change goes through the tree.

use super::{HOST, NULL, Record, Slot};
use crate::gpuvm::VmTypes;
use crate::gpuvm::mapping::{BackingRef, MappingRef};
use crate::gpuvm::store::{Arena, NONE};
use crate::gpuvm::vm_bo::VmBo;

/// The records and the objects' lists, apart from the tree that is being read meanwhile.
pub(super) struct Lists<'a, T: VmTypes> {
    pub(super) records: &'a mut Arena<Record<T::Tag>>,
    pub(super) slots: &'a mut [Slot<T>],
    pub(super) idle: &'a mut u32,
    pub(super) external: &'a mut Vec<u32>,
}

impl<T: VmTypes> Lists<'_, T> {
    /// A record for a new mapping.
    #[inline]
    pub(super) fn insert(&mut self, start: u64, request: MappingRef<'_, T>) -> u32 {
        let (slot, offset) = match request.backing {
            BackingRef::Object { vm_bo, offset } => (vm_bo.slot(), offset),
            BackingRef::Null => (NULL, 0),
            BackingRef::Host { addr } => (HOST, addr),
        };
        let id = self.records.put(Record { start, offset, slot, prev: NONE, next: NONE, tag: request.tag });
        if let Some(vm_bo) = request.vm_bo() {
            self.hold(vm_bo);
            link(self.records, vm_bo, id);
        }
        id
    }

    /// A second record like `id`'s.
    pub(super) fn duplicate(&mut self, id: u32) -> u32 {
        let record = *self.records.get(id);
        let twin = self.records.put(Record { prev: NONE, next: NONE, ..record });
        if record.slot < HOST {
            link(self.records, held(self.slots, record.slot), twin);
        }
        twin
    }

    /// Splits `id`'s mapping at `start`; the record of the part above.
    pub(super) fn split(&mut self, id: u32, start: u64) -> u32 {
        let above = self.duplicate(id);
        self.advance(above, start);
        above
    }

    /// Lets a record begin at `start`.
    pub(super) fn advance(&mut self, id: u32, start: u64) {
        let record = self.records.get_mut(id);
        if record.slot != NULL {
            record.offset += start - record.start;
        }
        record.start = start;
    }

    #[inline]
    pub(super) fn remove(&mut self, id: u32) {
        self.unlink(id);
        self.records.free(id);
    }

    /// Holds an object that gets its first mapping.
    #[inline]
    fn hold(&mut self, vm_bo: &VmBo<T>) {
        if vm_bo.head() != NONE {
            return;
        }
        let index = vm_bo.slot();
        let slot = &mut self.slots[index as usize];
        if slot.held.is_none() {
            slot.held = Some(vm_bo.clone());
        }
        if vm_bo.is_external() {
            slot.external_at = self.external.len() as u32;
            self.external.push(index);
        }
    }

    #[inline]
    fn unlink(&mut self, id: u32) {
        let Record { slot: index, prev, next, .. } = *self.records.get(id);
        if index >= HOST {
            return;
        }
        if next != NONE {
            self.records.get_mut(next).prev = prev;
        }
        if prev != NONE {
            self.records.get_mut(prev).next = next;
            return;
        }
        held(self.slots, index).set_head(next);
        if next == NONE {
            self.let_go(index);
        }
    }

    /// An object lost its last mapping: it is let go of once the change is over.
    fn let_go(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if !slot.idle {
            slot.idle = true;
            slot.chain = *self.idle;
            *self.idle = index;
        }
        let at = slot.external_at;
        if at == NONE {
            return;
        }
        slot.external_at = NONE;
        self.external.swap_remove(at as usize);
        if let Some(moved) = self.external.get(at as usize) {
            self.slots[*moved as usize].external_at = at;
        }
    }
}

/// Puts a record at the head of its object's list.
#[inline]
fn link<G>(records: &mut Arena<Record<G>>, vm_bo: &VmBo<impl VmTypes<Tag = G>>, id: u32) {
    let after = vm_bo.head();
    vm_bo.set_head(id);
    records.get_mut(id).next = after;
    if after != NONE {
        records.get_mut(after).prev = id;
    }
}

/// The object of a slot, which has mappings.
#[inline]
fn held<T: VmTypes>(slots: &[Slot<T>], index: u32) -> &VmBo<T> {
    slots[index as usize].held.as_ref().expect("a mapped object is held")
}
