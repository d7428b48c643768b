//! The address space itself: who may change it, who may read it, how it ends.
//!
//! [`GpuVm`] says which locks there are and when they are taken. Two more, of the evicted and the untied objects, are
//! held to put on or take off the list alone: they are taken where a tie is dropped or an object evicted, which may be
//! anywhere and must not fail. So each tie has a place on either list from the start, and is on it once at most.
//!
//! The store is changed in two steps, a look under the book's lock for reading and, under the same lock upgraded, the
//! change, with the driver's steps in between. What was found stays good, since nobody else can write meanwhile. Where a
//! driver has no steps to carry out, look and change are one.

use std::fmt;

use super::batch::Batch;
use super::book::{Book, Cut};
use super::error::VmError;
use super::mapping::{BackingRef, MappingRef};
use super::read::VmRead;
use super::steps::{Plan, Step, Steps};
use super::submission::Locked;
use super::va::{Va, VaRange};
use super::vm_bo::{VmBo, VmBoInner};
use super::{MapRequest, VmTypes};
use crate::reaper::Reaper;
use crate::resv::Reservation;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockUpgradableReadGuard, RwLockWriteGuard, Weak};

/// How many objects are let go of per locking of the book.
const LET_GO: usize = 16;

/// What an address space covers and how much may be in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// The addresses there are.
    pub range: VaRange,
    /// A part that no request may touch: the kernel's own.
    pub kernel: Option<VaRange>,
    /// Most mappings at one time.
    pub limit: u32,
}

impl VmConfig {
    /// Mappings an address space may have unless told otherwise.
    pub const DEFAULT_LIMIT: u32 = 1 << 30;

    /// The addresses below `1 << bits`, nothing reserved, the default limit. More than 63 bits count as 63.
    pub const fn bits(bits: u32) -> VmConfig {
        let bits = if bits > 63 { 63 } else { bits };
        VmConfig { range: VaRange::from_raw(0, 1 << bits), kernel: None, limit: Self::DEFAULT_LIMIT }
    }
}

/// Whether an address space can still be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Open,
    Closed,
}

/// A GPU address space. Cheap to clone; the last handle may be dropped anywhere.
///
/// | lock | held | under it |
/// | --- | --- | --- |
/// | the right to change ([`lock`](Self::lock), shared: [`lock_shared`](Self::lock_shared)) | for a whole request or submission; may sleep | reservations, the driver's locks, the book |
/// | the book ([`read`](Self::read), and inside every change) | for a look-up, a change, or the steps of one immediate request | what [`Steps`] takes |
///
/// Changes need the right to change; a submission shares it, so that what it validated stays mapped until its fence
/// is in place. Reading needs neither and works anywhere: under reservations, and in the device's fault path.
///
/// [`close`](Self::close) takes down what is mapped and returns when that is done. Without it the reaper does so once
/// the last handle is gone.
pub struct GpuVm<T: VmTypes> {
    /// Taken out by the drop alone.
    inner: Option<Arc<VmInner<T>>>,
}

/// What the handles share.
pub(super) struct VmInner<T: VmTypes> {
    change: RwLock<Life>,
    pub(super) book: RwLock<Book<T>>,
    evicted: Mutex<Vec<Weak<VmBoInner<T>>>>,
    untied: Mutex<Vec<u32>>,
    /// Whether `untied` has something: looked at before every change.
    has_untied: AtomicBool,
    config: VmConfig,
    reservation: Reservation,
    space: T::Space,
    reaper: Reaper,
}

impl<T: VmTypes> GpuVm<T> {
    /// An address space with nothing in it.
    ///
    /// `reservation` is what objects may share to be local to it; `space` is the driver's part, which
    /// [`VmTypes::teardown`] is given at the end; `reaper` runs that end if nobody closes the address space.
    pub fn new(config: VmConfig, reservation: Reservation, space: T::Space, reaper: &Reaper) -> GpuVm<T> {
        let config = VmConfig { limit: config.limit.min(VmConfig::DEFAULT_LIMIT), ..config };
        GpuVm::from_arc(Arc::new(VmInner {
            change: RwLock::new(Life::Open),
            book: RwLock::new(Book::new(config.limit)),
            evicted: Mutex::new(Vec::new()),
            untied: Mutex::new(Vec::new()),
            has_untied: AtomicBool::new(false),
            config,
            reservation,
            space,
            reaper: reaper.clone(),
        }))
    }

    pub(super) fn from_arc(inner: Arc<VmInner<T>>) -> GpuVm<T> {
        GpuVm { inner: Some(inner) }
    }

    #[inline]
    pub(super) fn inner(&self) -> &Arc<VmInner<T>> {
        self.inner.as_ref().expect("only the drop takes it out")
    }

    /// What the address space covers.
    pub fn config(&self) -> &VmConfig {
        &self.inner().config
    }

    /// The reservation of the address space and its local objects. It may outlive the address space.
    pub fn reservation(&self) -> &Reservation {
        &self.inner().reservation
    }

    /// The driver's part.
    pub fn space(&self) -> &T::Space {
        &self.inner().space
    }

    /// Whether both are handles to the same address space.
    pub fn ptr_eq(&self, other: &GpuVm<T>) -> bool {
        Arc::ptr_eq(self.inner(), other.inner())
    }

    /// Takes the right to change the address space. Sleeps while others have it, or a submission is on its way.
    ///
    /// # Errors
    /// [`VmError::Closed`].
    pub fn lock(&self) -> Result<VmGuard<'_, T>, VmError> {
        let vm = self.inner();
        let life = vm.change.write();
        match *life {
            Life::Open => Ok(VmGuard { vm, _life: life }),
            Life::Closed => Err(VmError::Closed),
        }
    }

    /// Keeps others from changing the address space, for a submission.
    ///
    /// # Errors
    /// [`VmError::Closed`].
    pub fn lock_shared(&self) -> Result<VmSharedGuard<'_, T>, VmError> {
        let vm = self.inner();
        let life = vm.change.read();
        match *life {
            Life::Open => Ok(VmSharedGuard { vm, _life: life }),
            Life::Closed => Err(VmError::Closed),
        }
    }

    /// Looks at the mappings as they are at this moment. Works in any context, steps included; changes wait while
    /// the result is held.
    pub fn read(&self) -> VmRead<'_, T> {
        VmRead::new(self.inner())
    }

    /// The tie between this address space and `object`, made if there is none.
    ///
    /// Takes the book's lock, so it can't be called from within [`Steps`] or with a [`VmRead`] held.
    ///
    /// # Errors
    /// [`VmError::OutOfMemory`], [`VmError::Closed`].
    pub fn obtain(&self, object: &T::Object) -> Result<VmBo<T>, VmError> {
        let vm = self.inner();
        let id = T::id(object);
        if let Some(found) = vm.book.read().find(id) {
            return Ok(found);
        }
        let external = T::reservation(object).is_some_and(|resv| !resv.ptr_eq(&vm.reservation));
        let mut book = vm.book.write();
        // Somebody may have been faster.
        if let Some(found) = book.find(id) {
            return Ok(found);
        }
        vm.clear_untied(&mut book);
        vm.reserve_notes(book.slots() + 1)?;
        book.tie(id, |slot| VmBo::new(object, Arc::downgrade(vm), slot, external))
    }

    /// The tie between this address space and `object`, if there is one.
    pub fn find(&self, object: &T::Object) -> Option<VmBo<T>> {
        self.inner().book.read().find(T::id(object))
    }

    /// Ends the address space: takes down everything that is mapped, lets the driver clean its page tables and
    /// invalidate, and lets go of the objects. When it returns, that is done. Other handles then find the
    /// address space [closed](VmError::Closed); closing twice does nothing.
    ///
    /// Sleeps for the right to change; must not be called with it held.
    pub fn close(&self) {
        self.inner().close();
    }
}

impl<T: VmTypes> Clone for GpuVm<T> {
    fn clone(&self) -> Self {
        GpuVm { inner: self.inner.clone() }
    }
}

impl<T: VmTypes> Drop for GpuVm<T> {
    fn drop(&mut self) {
        // Of racing drops exactly one gets the contents.
        if let Some(vm) = self.inner.take().and_then(Arc::into_inner) {
            let reaper = vm.reaper.clone();
            reaper.queue(Box::new(move || vm.close()));
        }
    }
}

impl<T: VmTypes> fmt::Debug for GpuVm<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuVm").field("config", self.config()).finish_non_exhaustive()
    }
}

impl<T: VmTypes> VmInner<T> {
    fn close(&self) {
        let mut life = self.change.write();
        if *life == Life::Closed {
            return;
        }
        *life = Life::Closed;
        let mut steps = T::teardown(&self.space);
        {
            let book = self.book.read_recursive();
            for mapping in book.recorded() {
                let mapping = mapping.get();
                steps.step(Step::Unmap { mapping, keep: false });
            }
            steps.flush();
        }
        drop(steps);
        // Only now, with entries and translations gone, may the objects go, and not under the book's lock.
        let book = std::mem::replace(&mut *self.book.write(), Book::closed());
        T::credit(&self.space, book.charged());
        drop(book);
        // Ties that live on keep their places on the lists.
        self.evicted.lock().clear();
    }

    pub(super) fn config(&self) -> &VmConfig {
        &self.config
    }

    pub(super) fn reservation(&self) -> &Reservation {
        &self.reservation
    }

    /// Refuses a range that no request may touch.
    #[inline]
    pub(super) fn check_range(&self, range: VaRange) -> Result<(), VmError> {
        if !self.config.range.covers(range) {
            return Err(VmError::OutsideSpace { range, space: self.config.range });
        }
        match self.config.kernel {
            Some(reserved) if reserved.overlaps(range) => Err(VmError::KernelReserved { range, reserved }),
            _ => Ok(()),
        }
    }

    /// Refuses a request that is wrong in itself.
    #[inline]
    pub(super) fn check_request(&self, request: &MapRequest<'_, T>) -> Result<(), VmError> {
        self.check_range(request.range)?;
        let len = request.range.len();
        let offset = match request.backing {
            BackingRef::Null => return Ok(()),
            BackingRef::Host { addr } => addr,
            BackingRef::Object { vm_bo, offset } => {
                self.check_vm_bo(vm_bo)?;
                offset
            }
        };
        if offset.checked_add(len).is_none() {
            return Err(VmError::OffsetOverflow { offset, len });
        }
        Ok(())
    }

    #[inline]
    pub(super) fn check_vm_bo(&self, vm_bo: &VmBo<T>) -> Result<(), VmError> {
        if vm_bo.belongs_to(self) { Ok(()) } else { Err(VmError::ForeignVmBo) }
    }

    /// Makes room for one change, and `more` mappings beside it, at the expense of the address space's owner.
    pub(super) fn reserve(&self, book: &mut Book<T>, more: usize) -> Result<(), VmError> {
        book.reserve(more, |bytes| T::charge(&self.space, bytes), |bytes| T::credit(&self.space, bytes))
    }

    /// Makes sure that each of `ties` objects can be noted as evicted and as untied.
    fn reserve_notes(&self, ties: usize) -> Result<(), VmError> {
        let no_memory = |_| VmError::OutOfMemory;
        let mut evicted = self.evicted.lock();
        if evicted.capacity() - evicted.len() < ties {
            // Ties that are gone need no place.
            evicted.retain(|tie| tie.strong_count() > 0);
            evicted.try_reserve(ties).map_err(no_memory)?;
        }
        drop(evicted);
        let mut untied = self.untied.lock();
        let more = ties.saturating_sub(untied.len());
        untied.try_reserve(more).map_err(no_memory)
    }

    /// Gives the records' memory back if nothing is mapped.
    #[inline]
    pub(super) fn release_if_empty(&self, book: &mut Book<T>) {
        if book.len() == 0 {
            let credit = book.release_if_empty();
            T::credit(&self.space, credit);
        }
    }

    /// Lets go of objects that lost their last mapping, outside the book's lock.
    #[inline]
    pub(super) fn let_go(&self, mut more: bool) {
        while more {
            let mut idle = [const { None }; LET_GO];
            more = self.book.write().take_idle(&mut idle);
        }
    }

    /// Lists an object as evicted. Called where that happens, which may be anywhere.
    pub(super) fn note_evicted(&self, vm_bo: &VmBo<T>) {
        if vm_bo.enlist() {
            let mut evicted = self.evicted.lock();
            debug_assert!(evicted.len() < evicted.capacity(), "a tie has its place from the start");
            evicted.push(vm_bo.downgrade());
        }
    }

    /// Takes one object off the evicted list.
    pub(super) fn next_evicted(&self) -> Option<VmBo<T>> {
        loop {
            // The lock ends with the statement, before the tie can be dropped.
            let weak = self.evicted.lock().pop()?;
            let Some(vm_bo) = VmBo::upgrade(&weak) else { continue };
            vm_bo.delist();
            if vm_bo.is_evicted() {
                return Some(vm_bo);
            }
        }
    }

    pub(super) fn has_evicted(&self) -> bool {
        !self.evicted.lock().is_empty()
    }

    /// A tie is gone; its slot can be used again. Called by its drop, anywhere.
    pub(super) fn note_untied(&self, slot: u32) {
        let mut untied = self.untied.lock();
        debug_assert!(untied.len() < untied.capacity(), "a tie has its place from the start");
        untied.push(slot);
        self.has_untied.store(true, Ordering::Release);
    }

    #[inline]
    pub(super) fn clear_untied(&self, book: &mut Book<T>) {
        if !self.has_untied.load(Ordering::Acquire) {
            return;
        }
        let mut untied = self.untied.lock();
        self.has_untied.store(false, Ordering::Release);
        for slot in untied.drain(..) {
            book.untie(slot);
        }
    }
}

/// The right to change an address space. There is one at a time.
pub struct VmGuard<'a, T: VmTypes> {
    pub(super) vm: &'a Arc<VmInner<T>>,
    _life: RwLockWriteGuard<'a, Life>,
}

impl<'a, T: VmTypes> VmGuard<'a, T> {
    /// Maps what `request` asks for, over whatever is there: see the pictures in [the folder's head](super).
    ///
    /// # Errors
    /// A request that leaves the space, touches the kernel's part, overflows, exceeds the limit, names a `VmBo`
    /// of another address space, or finds no memory; and whatever [`Steps::reserve`] fails with. Nothing has
    /// changed then.
    #[inline]
    pub fn map<S: Steps<T>>(&mut self, request: &MapRequest<'_, T>, steps: &mut S) -> Result<(), S::Error> {
        self.vm.check_request(request)?;
        self.change(request.range, Some(*request), steps)
    }

    /// Unmaps whatever is in `range`; what reaches beyond it is cut, what is not mapped is no error.
    ///
    /// # Errors
    /// As with [`map`](Self::map).
    pub fn unmap<S: Steps<T>>(&mut self, range: VaRange, steps: &mut S) -> Result<(), S::Error> {
        self.vm.check_range(range)?;
        self.change(range, None, steps)
    }

    /// Unmaps all mappings of an object. One `flush` follows all steps; the object is let go of after it.
    ///
    /// # Errors
    /// [`VmError::ForeignVmBo`], and whatever [`Steps::reserve`] fails with.
    pub fn unmap_object<S: Steps<T>>(&mut self, vm_bo: &VmBo<T>, steps: &mut S) -> Result<(), S::Error> {
        self.vm.check_vm_bo(vm_bo)?;
        {
            let book = self.vm.book.read();
            let count = book.count_of(vm_bo);
            if count == 0 {
                return Ok(());
            }
            steps.reserve(&Plan {
                range: self.vm.config.range,
                map: None,
                prev: None,
                next: None,
                met: count,
            })?;
            for mapping in book.mappings_of(vm_bo) {
                steps.step(Step::Unmap { mapping, keep: false });
            }
            steps.flush();
        }
        let more = {
            let mut book = self.vm.book.write();
            book.remove_all_of(vm_bo);
            self.vm.release_if_empty(&mut book);
            book.has_idle()
        };
        self.vm.let_go(more);
        Ok(())
    }

    /// Gives each mapping's part in `range` the tag that `tag` answers for it; a part that has that tag already is left
    /// alone, and what is not mapped is no error. Mappings are split at the range's ends where that makes a difference.
    ///
    /// `tag` gets the part as it is, backing included. It is asked more than once and must not change its mind; it runs with
    /// the book locked, so it can't look at the address space.
    ///
    /// # Errors
    /// As with [`map`](Self::map).
    pub fn retag<S: Steps<T>>(
        &mut self,
        range: VaRange,
        tag: impl Fn(&MappingRef<'_, T>) -> T::Tag,
        steps: &mut S,
    ) -> Result<(), S::Error> {
        let vm = self.vm;
        vm.check_range(range)?;
        {
            let mut book = vm.book.read();
            let mut plan = book.plan_retag(range, &tag);
            if plan.met == 0 {
                return Ok(());
            }
            book.check_splits(plan.splits())?;
            if !book.has_room_to_split(plan.splits()) {
                let splits = plan.splits();
                drop(book);
                vm.reserve(&mut vm.book.write(), splits)?;
                book = vm.book.read();
                plan = book.plan_retag(range, &tag);
            }
            steps.reserve(&plan)?;
            for (from, to) in book.retags(range, &tag) {
                steps.step(Step::Retag { from, to });
            }
            steps.flush();
        }
        vm.book.write().retag(range, &tag);
        Ok(())
    }

    /// Has the driver prepare the use of what is mapped in `range`: gives it a [`Prefetch`](Step::Prefetch) step for each
    /// mapping there, in order, and one `flush`. Nothing changes on record.
    ///
    /// The steps run with the book locked, so they may write page-table entries, but not lock reservations to move
    /// memory: that is for a [batch](Batch::prefetch).
    ///
    /// # Errors
    /// [`VmError::OutsideSpace`], [`VmError::KernelReserved`], and whatever [`Steps::reserve`] fails with.
    pub fn prefetch<S: Steps<T>>(&mut self, range: VaRange, steps: &mut S) -> Result<(), S::Error> {
        self.vm.check_range(range)?;
        let book = self.vm.book.read();
        let met = book.overlapping(range).count();
        if met == 0 {
            return Ok(());
        }
        steps.reserve(&Plan { range, map: None, prev: None, next: None, met })?;
        for (mapping, part) in book.parts(range) {
            steps.step(Step::Prefetch { mapping, part });
        }
        steps.flush();
        Ok(())
    }

    /// Starts a batch of changes that take effect together or not at all, and whose page-table work can be done
    /// later.
    pub fn batch(&mut self) -> Batch<'_, 'a, T> {
        Batch::new(self)
    }

    /// Looks at the mappings.
    pub fn read(&self) -> VmRead<'_, T> {
        VmRead::new(self.vm)
    }

    /// The submission side: reservations and validation. See [`Locked`].
    pub fn locked(&self) -> Locked<'_, T> {
        Locked::new(self.vm)
    }

    /// The lowest `len` bytes within `within` that are free and aligned to `align`, a power of two, outside the
    /// kernel's part. Goes through the mappings in order.
    pub fn find_empty(&self, len: u64, align: u64, within: VaRange) -> Option<Va> {
        self.read().find_empty(len, align, within)
    }

    #[inline]
    fn change<S: Steps<T>>(
        &mut self,
        range: VaRange,
        request: Option<MappingRef<'_, T>>,
        steps: &mut S,
    ) -> Result<(), S::Error> {
        let vm = self.vm;
        let more = if S::NOTHING_TO_DO {
            let mut book = vm.book.write();
            let cut = book.cut(range);
            if cut.removed() == 0 && request.is_none() {
                return Ok(());
            }
            book.check_limit(&cut, request.is_some())?;
            if !book.has_room(&cut, request.is_some()) {
                vm.reserve(&mut book, 0)?;
            }
            self.put_on_record(&mut book, &cut, request)
        } else {
            // For reading while the steps are carried out, so that they, and the device's faults, can look things up.
            let mut book = vm.book.upgradable_read();
            let cut = book.cut(range);
            if cut.removed() == 0 && request.is_none() {
                return Ok(());
            }
            book.check_limit(&cut, request.is_some())?;
            if !book.has_room(&cut, request.is_some()) {
                let mut writable = RwLockUpgradableReadGuard::upgrade(book);
                vm.reserve(&mut writable, 0)?;
                book = RwLockWriteGuard::downgrade_to_upgradable(writable);
            }
            steps.reserve(&book.plan(&cut, request))?;
            for step in book.steps(&cut, request) {
                steps.step(step);
            }
            steps.flush();
            let mut book = RwLockUpgradableReadGuard::upgrade(book);
            self.put_on_record(&mut book, &cut, request)
        };
        vm.let_go(more);
        Ok(())
    }

    /// Makes the change that `cut` stands for. True if objects are to be let go of.
    #[inline]
    fn put_on_record(&self, book: &mut Book<T>, cut: &Cut, request: Option<MappingRef<'_, T>>) -> bool {
        self.vm.clear_untied(book);
        book.replace(cut, request);
        if request.is_none() {
            self.vm.release_if_empty(book);
        }
        book.has_idle()
    }
}

impl<T: VmTypes> fmt::Debug for VmGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmGuard").field("mappings", &self.read().len()).finish_non_exhaustive()
    }
}

/// Keeps an address space from being changed. Any number at a time.
pub struct VmSharedGuard<'a, T: VmTypes> {
    vm: &'a Arc<VmInner<T>>,
    _life: RwLockReadGuard<'a, Life>,
}

impl<T: VmTypes> VmSharedGuard<'_, T> {
    /// Looks at the mappings.
    pub fn read(&self) -> VmRead<'_, T> {
        VmRead::new(self.vm)
    }

    /// The submission side: reservations and validation. See [`Locked`].
    pub fn locked(&self) -> Locked<'_, T> {
        Locked::new(self.vm)
    }
}

impl<T: VmTypes> fmt::Debug for VmSharedGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmSharedGuard").field("mappings", &self.read().len()).finish_non_exhaustive()
    }
}
