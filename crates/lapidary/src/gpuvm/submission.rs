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

use super::va::VaRange;
use super::vm::VmInner;
use super::vm_bo::VmBo;
use super::{MapRequest, VmTypes};
use crate::exec::{Duplicates, Exec, ExecError};
use crate::fence::{Fence, Interrupt};
use crate::resv::{Reservation, Usage};

/// How many external objects are looked up per locking of the book.
const SOME: usize = 16;

/// The reservations of an address space that can't change meanwhile. From a guard's `locked()`. See the module.
pub struct Locked<'a, T: VmTypes> {
    vm: &'a VmInner<T>,
}

impl<'a, T: VmTypes> Locked<'a, T> {
    pub(super) fn new(vm: &'a VmInner<T>) -> Self {
        Locked { vm }
    }

    /// Locks the reservations of everything mapped, with room for `fences` more fences in each.
    ///
    /// # Errors
    /// Those of [`Exec::run`].
    #[track_caller]
    pub fn lock_all(&self, fences: usize, interrupt: &Interrupt) -> Result<Exec<'static>, ExecError> {
        self.lock_all_and([], fences, interrupt)
    }

    /// As [`lock_all`](Self::lock_all), and `others` besides, which need not be mapped.
    ///
    /// # Errors
    /// Those of [`Exec::run`].
    #[track_caller]
    pub fn lock_all_and<'r>(
        &self,
        others: impl IntoIterator<Item = &'r Reservation> + Clone,
        fences: usize,
        interrupt: &Interrupt,
    ) -> Result<Exec<'r>, ExecError> {
        let (exec, ()) = Exec::run(Duplicates::Allow, interrupt, |exec| {
            self.lock_in(exec, fences)?;
            others.clone().into_iter().try_for_each(|other| exec.prepare(other, fences))
        })?;
        Ok(exec)
    }

    /// As [`lock_all`](Self::lock_all), but what is mapped in `range` only, and the address space's own reservation.
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
        let (exec, ()) =
            Exec::run(Duplicates::Allow, interrupt, |exec| self.lock_range_in(exec, range, fences))?;
        Ok(exec)
    }

    /// Locks the reservations of everything mapped within an [`Exec::run`] of the caller's, which must allow
    /// duplicates: external objects may share a reservation among themselves.
    ///
    /// # Errors
    /// Those of [`Exec::prepare`]; the caller passes them on.
    #[track_caller]
    pub fn lock_in(&self, exec: &mut Exec<'_>, fences: usize) -> Result<(), ExecError> {
        exec.prepare_owned(self.vm.reservation().clone(), fences)?;
        // Not under the book's lock, and without memory: some at a time. The list stays as it is, since what is mapped can't
        // change meanwhile.
        for at in (0..).step_by(SOME) {
            let some: [Option<Reservation>; SOME] = {
                let book = self.vm.book.read_recursive();
                std::array::from_fn(|i| book.external_at(at + i).and_then(reservation_of))
            };
            let more = some[SOME - 1].is_some();
            some.into_iter().flatten().try_for_each(|reservation| exec.prepare_owned(reservation, fences))?;
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// As [`lock_in`](Self::lock_in), but what is mapped in `range` only, and the address space's own reservation: what a
    /// request to unmap `range`, or to change or prefetch what is there, touches.
    ///
    /// # Errors
    /// Those of [`Exec::prepare`]; the caller passes them on. [`ExecError::OutOfMemory`] for the list of objects too.
    #[track_caller]
    pub fn lock_range_in(&self, exec: &mut Exec<'_>, range: VaRange, fences: usize) -> Result<(), ExecError> {
        exec.prepare_owned(self.vm.reservation().clone(), fences)?;
        let objects = self.vm.book.read_recursive().external_in(range);
        for object in objects.map_err(|_| ExecError::OutOfMemory(fences))? {
            let reservation = self.vm.book.read_recursive().mapped_object(object).and_then(reservation_of);
            if let Some(reservation) = reservation {
                exec.prepare_owned(reservation, fences)?;
            }
        }
        Ok(())
    }

    /// As [`lock_in`](Self::lock_in), but only what `request` touches: what is mapped where it goes, the object it maps, and
    /// the address space's own reservation.
    ///
    /// A list of requests can be locked in turn before the first is put on record: what a later one meets because of an
    /// earlier one, the earlier one has locked.
    ///
    /// # Errors
    /// As [`lock_range_in`](Self::lock_range_in).
    #[track_caller]
    pub fn lock_map_in(
        &self,
        exec: &mut Exec<'_>,
        request: &MapRequest<'_, T>,
        fences: usize,
    ) -> Result<(), ExecError> {
        self.lock_range_in(exec, request.range, fences)?;
        let external = request.vm_bo().filter(|vm_bo| vm_bo.is_external());
        match external.and_then(reservation_of) {
            Some(reservation) => exec.prepare_owned(reservation, fences),
            None => Ok(()),
        }
    }

    /// Whether something was evicted since the last validation. May be so for what was brought back by other means since.
    pub fn needs_validation(&self) -> bool {
        self.vm.has_evicted()
    }

    /// Has `bring_back` bring each evicted object back, which may evict further ones: they follow. The
    /// reservations of all objects mapped must be locked. An object that was unmapped after it was evicted may be among
    /// them; its reservation need not be locked, and there is nothing to bring back.
    ///
    /// # Errors
    /// What `bring_back` fails with. The object stays on the list of evicted ones, with those not yet tried.
    pub fn validate<E>(&self, mut bring_back: impl FnMut(&VmBo<T>) -> Result<(), E>) -> Result<(), E> {
        while let Some(vm_bo) = self.vm.next_evicted() {
            if let Err(error) = bring_back(&vm_bo) {
                self.vm.note_evicted(&vm_bo);
                return Err(error);
            }
            vm_bo.set_valid();
        }
        Ok(())
    }

    /// As [`validate`](Self::validate), but what is mapped in `range` only, whose reservations must be locked. What is
    /// evicted elsewhere stays on the list.
    ///
    /// # Errors
    /// What `bring_back` fails with. The object, and those not yet tried, stay evicted.
    pub fn validate_range<E>(
        &self,
        range: VaRange,
        mut bring_back: impl FnMut(&VmBo<T>) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let mut rest = Some(range);
            let mut met = false;
            while let Some((vm_bo, at)) = rest.and_then(|rest| self.first_evicted_in(rest)) {
                bring_back(&vm_bo)?;
                vm_bo.set_valid();
                met = true;
                rest = range.above(at);
            }
            // Bringing one back may have evicted one that was passed.
            if !met {
                return Ok(());
            }
        }
    }

    /// The first object mapped in `range` that is evicted, and where that mapping is.
    fn first_evicted_in(&self, range: VaRange) -> Option<(VmBo<T>, VaRange)> {
        let book = self.vm.book.read_recursive();
        let mut evicted = book.overlapping(range).filter_map(|mapping| {
            let vm_bo = mapping.vm_bo().filter(|vm_bo| vm_bo.is_evicted())?;
            Some((vm_bo.clone(), mapping.range))
        });
        evicted.next()
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

fn reservation_of<T: VmTypes>(vm_bo: &VmBo<T>) -> Option<Reservation> {
    T::reservation(vm_bo.object()).cloned()
}

impl<T: VmTypes> fmt::Debug for Locked<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locked").field("needs_validation", &self.needs_validation()).finish_non_exhaustive()
    }
}
