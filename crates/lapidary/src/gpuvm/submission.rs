//! What a submission does with an address space: lock, validate, leave its fence.
//!
//! ```text
//! let guard = vm.lock_shared()?;                       // nothing is mapped or unmapped meanwhile
//! let locked = guard.locked();
//! let (mut exec, ()) = Exec::run(duplicates, interrupt, |exec| {
//!     locked.lock_in(exec, 1)?;                        // the address space's reservation, the external objects'
//!     locked.validate(|vm_bo| bring_back(vm_bo, exec)) // may lock more: victims to evict
//! })?;
//! locked.add_fence(&mut exec, &done, Usage::Bookkeep, Usage::Write);
//! ```
//!
//! Local objects share the address space's reservation, so a submission over any number of them takes one lock
//! and adds one fence.

use std::fmt;

use super::VmTypes;
use super::va::VaRange;
use super::vm::VmInner;
use super::vm_bo::VmBo;
use crate::exec::{Duplicates, Exec, ExecError};
use crate::fence::{Fence, Interrupt};
use crate::resv::{Reservation, Usage};

/// The reservations of an address space that can't change meanwhile. From a guard's `locked()`. See the module.
pub struct Locked<'a, T: VmTypes> {
    vm: &'a VmInner<T>,
}

impl<'a, T: VmTypes> Locked<'a, T> {
    pub(super) fn new(vm: &'a VmInner<T>) -> Self {
        Locked { vm }
    }

    /// The reservations of everything mapped: the address space's own first, then the external objects'.
    pub fn reservations(&self) -> Vec<Reservation> {
        let book = self.vm.book.read_recursive();
        let external = book.external().filter_map(|vm_bo| T::reservation(vm_bo.object()).cloned());
        std::iter::once(self.vm.reservation().clone()).chain(external).collect()
    }

    /// The reservations of what is mapped in `range`, and the address space's own.
    pub fn reservations_in(&self, range: VaRange) -> Vec<Reservation> {
        let book = self.vm.book.read_recursive();
        let met = book.mappings_from(range.start().raw()).take_while(|mapping| mapping.range.overlaps(range));
        let external = met.filter_map(|mapping| {
            let vm_bo = mapping.vm_bo().filter(|vm_bo| vm_bo.is_external())?;
            T::reservation(vm_bo.object()).cloned()
        });
        std::iter::once(self.vm.reservation().clone()).chain(external).collect()
    }

    /// Locks the reservations of everything mapped, with room for `fences` more fences in each.
    ///
    /// # Errors
    /// Those of [`Exec::run`].
    #[track_caller]
    pub fn lock_all(&self, fences: usize, interrupt: &Interrupt) -> Result<Exec<'static>, ExecError> {
        let (exec, ()) = Exec::run(Duplicates::Allow, interrupt, |exec| self.lock_in(exec, fences))?;
        Ok(exec)
    }

    /// As [`lock_all`](Self::lock_all), but what is mapped in `range` only.
    ///
    /// # Errors
    /// Those of [`Exec::run`].
    #[track_caller]
    pub fn lock_range(
        &self,
        range: VaRange,
        fences: usize,
        interrupt: &Interrupt,
    ) -> Result<Exec<'static>, ExecError> {
        let reservations = self.reservations_in(range);
        let (exec, ()) =
            Exec::run(Duplicates::Allow, interrupt, |exec| lock_each(reservations.clone(), exec, fences))?;
        Ok(exec)
    }

    /// Locks the reservations of everything mapped within an [`Exec::run`] of the caller's, which must allow
    /// duplicates: external objects may share a reservation among themselves.
    ///
    /// # Errors
    /// Those of [`Exec::lock`]; the caller passes them on.
    #[track_caller]
    pub fn lock_in(&self, exec: &mut Exec<'_>, fences: usize) -> Result<(), ExecError> {
        lock_each(self.reservations(), exec, fences)
    }

    /// Whether something was evicted since the last validation.
    pub fn needs_validation(&self) -> bool {
        self.vm.has_evicted()
    }

    /// Has `bring_back` bring each evicted object back, which may evict further ones: they follow. The
    /// reservations of all objects mapped must be locked.
    ///
    /// # Errors
    /// What `bring_back` fails with. The object stays on the list of evicted ones, with those not yet tried.
    pub fn validate<E>(&self, mut bring_back: impl FnMut(&VmBo<T>) -> Result<(), E>) -> Result<(), E> {
        while let Some(vm_bo) = self.vm.next_evicted() {
            if let Err(error) = bring_back(&vm_bo) {
                self.vm.note_evicted(vm_bo.downgrade());
                return Err(error);
            }
            vm_bo.set_valid();
        }
        Ok(())
    }

    /// Adds `fence` to every reservation that `exec` has locked: with usage `local` to the address space's own,
    /// with `external` to all others. Room was made when they were locked.
    #[track_caller]
    pub fn add_fence(&self, exec: &mut Exec<'_>, fence: &Fence, local: Usage, external: Usage) {
        for guard in exec.guards() {
            let usage = if guard.guards(self.vm.reservation()) { local } else { external };
            guard.add_fence(fence.clone(), usage);
        }
    }
}

#[track_caller]
fn lock_each(reservations: Vec<Reservation>, exec: &mut Exec<'_>, fences: usize) -> Result<(), ExecError> {
    for reservation in reservations {
        exec.prepare_owned(reservation, fences)?;
    }
    Ok(())
}

impl<T: VmTypes> fmt::Debug for Locked<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locked").field("needs_validation", &self.needs_validation()).finish_non_exhaustive()
    }
}
