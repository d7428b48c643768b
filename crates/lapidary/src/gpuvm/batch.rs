//! Batches: changes that are put on record at once and carried out in the page tables later.
//!
//! A bind request of a client may hold many operations, has to take effect as a whole or not at all, and its
//! page-table work may have to wait for fences. So the address space's book is changed first, one operation
//! after the other, each seeing the ones before; the steps add up in a [`StepList`]. Then
//!
//! - [`Batch::commit`] hands the list out, to be carried out by a job in order of submission, or
//! - dropping the batch takes every change back: a driver that finds no page-table nodes simply returns its error.
//!
//! Taking back can't fail: each operation also makes room for its own undoing.

use super::error::VmError;
use super::mapping::MappingRef;
use super::steps::{Step, StepList};
use super::va::VaRange;
use super::vm::VmGuard;
use super::vm_bo::VmBo;
use super::{MapRequest, VmTypes};

/// Changes that are on record but not final. See the module.
pub struct Batch<'g, 'a, T: VmTypes> {
    guard: &'g mut VmGuard<'a, T>,
    list: StepList<T>,
}

impl<'g, 'a, T: VmTypes> Batch<'g, 'a, T> {
    pub(super) fn new(guard: &'g mut VmGuard<'a, T>) -> Self {
        Batch { guard, list: StepList::new() }
    }

    /// Maps what `request` asks for, over whatever is there.
    ///
    /// # Errors
    /// As [`VmGuard::map`]. The operations before this one stay in the batch.
    pub fn map(&mut self, request: &MapRequest<'_, T>) -> Result<(), VmError> {
        self.guard.vm.check_request(request)?;
        self.change(request.range, Some(*request))
    }

    /// Unmaps whatever is in `range`.
    ///
    /// # Errors
    /// As [`VmGuard::unmap`]. The operations before this one stay in the batch.
    pub fn unmap(&mut self, range: VaRange) -> Result<(), VmError> {
        self.guard.vm.check_range(range)?;
        self.change(range, None)
    }

    /// Unmaps all mappings of an object.
    ///
    /// # Errors
    /// As [`VmGuard::unmap_object`]. The operations before this one stay in the batch.
    pub fn unmap_object(&mut self, vm_bo: &VmBo<T>) -> Result<(), VmError> {
        self.guard.vm.check_vm_bo(vm_bo)?;
        let mut book = self.guard.vm.book.write();
        let count = book.count_of(vm_bo);
        self.list.reserve(count)?;
        self.guard.vm.reserve(&mut book, self.list.changed() + count)?;
        for mapping in book.mappings_of(vm_bo) {
            self.list.push(Step::Unmap { mapping, keep: false });
        }
        book.remove_all_of(vm_bo);
        Ok(())
    }

    /// Gives each mapping's part in `range` the tag that `tag` answers for it.
    ///
    /// # Errors
    /// As [`VmGuard::retag`]. The operations before this one stay in the batch.
    pub fn retag(
        &mut self,
        range: VaRange,
        tag: impl Fn(&MappingRef<'_, T>) -> T::Tag,
    ) -> Result<(), VmError> {
        let vm = self.guard.vm;
        vm.check_range(range)?;
        let mut book = vm.book.write();
        let (met, splits) = {
            let plan = book.plan_retag(range, &tag);
            (plan.met, plan.splits())
        };
        if met == 0 {
            return Ok(());
        }
        book.check_splits(splits)?;
        self.list.reserve(met)?;
        vm.reserve(&mut book, self.list.changed() + met + splits)?;
        for (from, to) in book.retags(range, &tag) {
            self.list.push(Step::Retag { from, to });
        }
        book.retag(range, &tag);
        Ok(())
    }

    /// Adds a [`Prefetch`](Step::Prefetch) step for each mapping in `range`, as they are after the operations before this
    /// one. Nothing changes on record.
    ///
    /// # Errors
    /// As [`VmGuard::prefetch`]. The operations before this one stay in the batch.
    pub fn prefetch(&mut self, range: VaRange) -> Result<(), VmError> {
        let vm = self.guard.vm;
        vm.check_range(range)?;
        let book = vm.book.read();
        self.list.reserve(book.overlapping(range).count())?;
        for (mapping, part) in book.parts(range) {
            self.list.push(Step::Prefetch { mapping, part });
        }
        Ok(())
    }

    fn change(&mut self, range: VaRange, request: Option<MappingRef<'_, T>>) -> Result<(), VmError> {
        let vm = self.guard.vm;
        let mut book = vm.book.write();
        vm.clear_untied(&mut book);
        let cut = book.cut(range);
        book.check_limit(&cut, request.is_some())?;
        self.list.reserve(cut.removed() + 1)?;
        vm.reserve(&mut book, self.list.changed() + cut.removed())?;
        for step in book.steps(&cut, request) {
            self.list.push(step);
        }
        book.replace(&cut, request);
        Ok(())
    }

    /// The steps so far.
    pub fn steps(&self) -> &StepList<T> {
        &self.list
    }

    /// The guard, to look at the address space in the midst of the batch.
    pub fn guard(&self) -> &VmGuard<'a, T> {
        self.guard
    }

    /// Makes the changes final. The steps are now the caller's to carry out, in this order, before those of any
    /// later change that overlaps them.
    #[must_use = "the page tables know nothing of the changes yet"]
    pub fn commit(mut self) -> StepList<T> {
        std::mem::replace(&mut self.list, StepList::new())
    }
}

impl<T: VmTypes> Drop for Batch<'_, '_, T> {
    /// Takes back what was not committed, newest first, and lets go of objects without mappings.
    fn drop(&mut self) {
        let more = {
            let mut book = self.guard.vm.book.write();
            for step in self.list.iter().rev() {
                match step {
                    Step::Map(mapping) => book.replace_range(mapping.range, None),
                    Step::Unmap { mapping: was, .. }
                    | Step::Remap { unmap: was, .. }
                    | Step::Retag { from: was, .. } => book.replace_range(was.range, Some(was)),
                    Step::Prefetch { .. } => {}
                }
            }
            self.guard.vm.release_if_empty(&mut book);
            book.has_idle()
        };
        self.guard.vm.let_go(more);
    }
}

impl<T: VmTypes> std::fmt::Debug for Batch<'_, '_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("steps", &self.list).finish_non_exhaustive()
    }
}
