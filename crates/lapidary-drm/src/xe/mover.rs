//! The driver's part of an eviction: page tables forget the old addresses, bytes follow to the new ones.

use lapidary::gem;
use lapidary::residency::{Move, Mover};
use lapidary::resv::ResvGuard;

use super::object::BufferData;
use super::tables;

/// Moves Xe's buffers.
pub(super) struct XeMover;

impl Mover<BufferData> for XeMover {
    /// An address space knows what is mapped in it, or is going to be.
    fn is_needed(&self, object: &gem::Object<BufferData>) -> bool {
        !object.data().vm_bos().snapshot().is_empty()
    }

    /// Called with the buffer's reservation locked and the buffer idle. Reads the books of the address spaces that map it and writes
    /// their page tables; needs no address space's right to change, since mappings of a buffer come and go under its
    /// reservation too.
    fn moved(&self, object: &gem::Object<BufferData>, _guard: &mut ResvGuard<'_>, change: &Move) {
        if change.from.is_some() {
            for vm_bo in object.data().vm_bos().snapshot() {
                let Some(vm) = vm_bo.vm() else { continue };
                let ranges: Vec<_> = vm.read().mappings_of(&vm_bo).map(|mapping| mapping.range).collect();
                let space = vm.space();
                tables::erase(&space.tables, ranges);
                // Where faults are resolved, the next access asks for it.
                if !space.mode.resolves_faults() {
                    vm_bo.evict();
                }
            }
        }
        object.data().follow(change.to.as_deref());
    }
}
