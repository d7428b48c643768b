//! The tie between one address space and one object.
//!
//! ```text
//!   object <----------- VmBo -- (weak) --> address space
//!      |  (weak)          ^                     |
//!      +--> VmBoList -----+---- held while -----+
//!                               mapped
//! ```
//!
//! There is at most one [`VmBo`] per pair. It keeps the object alive and goes with its last mapping or its last
//! user, whichever is later. It does not keep the address space alive, and neither does a mapping, so there is
//! no cycle. The last reference may be dropped anywhere: the address space is told through a list of its own,
//! behind a lock that nothing is done under, and clears up with its next change.
//!
//! Eviction works on objects: [`VmBoList`], a field of the driver's object, leads from there to each `VmBo`,
//! on which [`VmBo::evict`] notes that the next submission of that address space has to validate.

use core::fmt;

use super::error::VmError;
use super::store::NONE;
use super::vm::{GpuVm, VmInner};
use super::{ObjectId, VmTypes};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::{Arc, Mutex, Weak};

/// An object as one address space knows it. Cheap to clone. See the module.
pub struct VmBo<T: VmTypes>(Arc<VmBoInner<T>>);

/// What the handles of a tie share.
pub(super) struct VmBoInner<T: VmTypes> {
    object: T::Object,
    vm: Weak<VmInner<T>>,
    slot: u32,
    /// The first of the object's mappings in the address space's book, or `NONE`. The book's, whose lock orders it; here,
    /// since every request that names the object comes by.
    head: AtomicU32,
    external: bool,
    evicted: AtomicBool,
    /// Whether the address space's list of evicted objects has it, evicted or not.
    listed: AtomicBool,
}

impl<T: VmTypes> VmBo<T> {
    pub(super) fn new(
        object: &T::Object,
        vm: Weak<VmInner<T>>,
        slot: u32,
        external: bool,
    ) -> Result<Self, VmError> {
        let held = object.clone();
        let mut list = T::vm_bos(object).map(|list| list.0.lock());
        if let Some(list) = &mut list {
            list.try_reserve(1).map_err(|_| VmError::OutOfMemory)?;
        }
        let inner = VmBoInner {
            object: held,
            vm,
            slot,
            head: AtomicU32::new(NONE),
            external,
            evicted: AtomicBool::new(false),
            listed: AtomicBool::new(false),
        };
        let inner = Arc::new(inner);
        if let Some(list) = &mut list {
            list.push(Arc::downgrade(&inner));
        }
        Ok(VmBo(inner))
    }

    pub(super) fn upgrade(weak: &Weak<VmBoInner<T>>) -> Option<Self> {
        weak.upgrade().map(VmBo)
    }

    pub(super) fn downgrade(&self) -> Weak<VmBoInner<T>> {
        Arc::downgrade(&self.0)
    }

    #[inline]
    pub(super) fn slot(&self) -> u32 {
        self.0.slot
    }

    /// The first of the object's mappings, or `NONE`. The book is locked.
    #[inline]
    pub(super) fn head(&self) -> u32 {
        self.0.head.load(Ordering::Relaxed)
    }

    /// Sets the first of the object's mappings. The book is locked for writing.
    #[inline]
    pub(super) fn set_head(&self, head: u32) {
        self.0.head.store(head, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn belongs_to(&self, vm: &VmInner<T>) -> bool {
        core::ptr::eq(self.0.vm.as_ptr(), vm)
    }

    /// Whether `weak` leads here.
    pub(super) fn is(&self, weak: &Weak<VmBoInner<T>>) -> bool {
        core::ptr::eq(weak.as_ptr(), Arc::as_ptr(&self.0))
    }

    /// The object.
    pub fn object(&self) -> &T::Object {
        &self.0.object
    }

    /// The object's identity.
    pub fn object_id(&self) -> ObjectId {
        T::id(&self.0.object)
    }

    /// The address space, unless that is gone.
    pub fn vm(&self) -> Option<GpuVm<T>> {
        self.0.vm.upgrade().map(GpuVm::from_arc)
    }

    /// Whether both are the same tie.
    pub fn ptr_eq(&self, other: &VmBo<T>) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether the object has a reservation other than its address space's.
    pub fn is_external(&self) -> bool {
        self.0.external
    }

    /// Whether the object was evicted and not validated since.
    pub fn is_evicted(&self) -> bool {
        self.0.evicted.load(Ordering::Acquire)
    }

    /// Notes that the object's memory is gone from where the page tables say it is: the address space's next
    /// [`validate`](super::Locked::validate) meets it.
    ///
    /// Call it with the object's reservation held. Never fails. Takes no lock but the address space's list of evicted
    /// objects, under which nothing else is taken.
    pub fn evict(&self) {
        // Before it is put on the list: who takes it off looks at this afterwards.
        self.0.evicted.store(true, Ordering::Release);
        if let Some(vm) = self.vm() {
            vm.inner().note_evicted(self);
        }
    }

    /// Notes that the object is where the page tables say. Call it with the object's reservation held. Validation does it
    /// for what it has had brought back; a driver that brought an object back by itself saves the next one the work.
    pub fn set_valid(&self) {
        self.0.evicted.store(false, Ordering::Release);
    }

    /// Whether the caller is to put it on the list of evicted objects.
    pub(super) fn enlist(&self) -> bool {
        !self.0.listed.swap(true, Ordering::AcqRel)
    }

    /// It was taken off the list of evicted objects.
    pub(super) fn delist(&self) {
        self.0.listed.swap(false, Ordering::AcqRel);
    }
}

impl<T: VmTypes> Clone for VmBo<T> {
    fn clone(&self) -> Self {
        VmBo(Arc::clone(&self.0))
    }
}

impl<T: VmTypes> PartialEq for VmBo<T> {
    fn eq(&self, other: &Self) -> bool {
        self.ptr_eq(other)
    }
}

impl<T: VmTypes> Eq for VmBo<T> {}

impl<T: VmTypes> fmt::Debug for VmBo<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmBo")
            .field("object", &self.object_id())
            .field("external", &self.is_external())
            .field("evicted", &self.is_evicted())
            .finish_non_exhaustive()
    }
}

impl<T: VmTypes> Drop for VmBoInner<T> {
    fn drop(&mut self) {
        if let Some(list) = T::vm_bos(&self.object) {
            list.forget(self);
        }
        if let Some(vm) = self.vm.upgrade().map(GpuVm::from_arc) {
            vm.inner().note_untied(self.slot);
        }
    }
}

/// The address spaces that know an object: a field of the driver's object, handed out by
/// [`VmTypes::vm_bos`]. Its lock is held for the list's own sake only.
pub struct VmBoList<T: VmTypes>(Mutex<alloc::vec::Vec<Weak<VmBoInner<T>>>>);

impl<T: VmTypes> VmBoList<T> {
    /// No address space yet.
    pub const fn new() -> Self {
        VmBoList(Mutex::new(alloc::vec::Vec::new()))
    }

    /// The ties there are at this moment.
    pub fn snapshot(&self) -> alloc::vec::Vec<VmBo<T>> {
        self.0.lock().iter().filter_map(VmBo::upgrade).collect()
    }

    /// Calls `visit` with each tie there is, outside the list's lock and without asking for memory. One that is made
    /// meanwhile may be missed; if others are dropped meanwhile, one may be met twice.
    pub fn for_each(&self, mut visit: impl FnMut(VmBo<T>)) {
        // From the end: what is taken out of the list makes room for its last entry, so nothing moves past the place.
        let mut at = usize::MAX;
        loop {
            let tie = {
                let list = self.0.lock();
                at = at.min(list.len());
                if at == 0 {
                    return;
                }
                at -= 1;
                VmBo::upgrade(&list[at])
            };
            // Dropped here, if it is the last reference, not under the lock.
            tie.into_iter().for_each(&mut visit);
        }
    }

    /// Marks the object evicted in every address space, which never fails. Call it with the object's reservation held.
    pub fn evict_all(&self) {
        self.for_each(|vm_bo| vm_bo.evict());
    }

    fn forget(&self, gone: &VmBoInner<T>) {
        let mut list = self.0.lock();
        if let Some(at) = list.iter().position(|weak| core::ptr::eq(weak.as_ptr(), gone)) {
            let weak = list.swap_remove(at);
            drop(list);
            drop(weak);
        }
    }
}

impl<T: VmTypes> Default for VmBoList<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: VmTypes> fmt::Debug for VmBoList<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VmBoList").field(&self.0.lock().len()).finish()
    }
}
