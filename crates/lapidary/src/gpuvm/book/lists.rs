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
            BackingRef::Object { vm_bo, offset } => {
                self.hold(vm_bo);
                (vm_bo.slot(), offset)
            }
            BackingRef::Null => (NULL, 0),
            BackingRef::Host { addr } => (HOST, addr),
        };
        let id = self.records.put(Record { start, offset, slot, prev: NONE, next: NONE, tag: request.tag });
        self.link(id, slot);
        id
    }

    /// A second record like `id`'s.
    pub(super) fn duplicate(&mut self, id: u32) -> u32 {
        let record = *self.records.get(id);
        let twin = self.records.put(Record { prev: NONE, next: NONE, ..record });
        self.link(twin, record.slot);
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
        let index = vm_bo.slot();
        let slot = &mut self.slots[index as usize];
        if slot.held.is_none() {
            slot.held = Some(vm_bo.clone());
        }
        if slot.external_at == NONE && vm_bo.is_external() {
            slot.external_at = self.external.len() as u32;
            self.external.push(index);
        }
    }

    #[inline]
    fn link(&mut self, id: u32, slot: u32) {
        if slot >= HOST {
            return;
        }
        let slot = &mut self.slots[slot as usize];
        let after = slot.head;
        slot.head = id;
        slot.count += 1;
        self.records.get_mut(id).next = after;
        if after != NONE {
            self.records.get_mut(after).prev = id;
        }
    }

    #[inline]
    fn unlink(&mut self, id: u32) {
        let Record { slot: index, prev, next, .. } = *self.records.get(id);
        if index >= HOST {
            return;
        }
        let slot = &mut self.slots[index as usize];
        if prev == NONE {
            slot.head = next;
        } else {
            self.records.get_mut(prev).next = next;
        }
        if next != NONE {
            self.records.get_mut(next).prev = prev;
        }
        slot.count -= 1;
        if slot.count == 0 {
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
