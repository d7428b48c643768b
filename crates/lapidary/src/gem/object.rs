//! Buffer objects.

use std::fmt;

use crate::{
    fence,
    residency::{Allocation, Place, PlaceConfig, Residence},
    resv::{Reservation, ResvGuard, Usage},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use super::Graveyard;

/// What a driver keeps with each object.
pub trait ObjectData: Send + Sync + Sized + 'static {
    /// The part that the GPU may still access when the last reference is gone, and that must outlive its fences: the
    /// bytes. May be dropped in any thread and under any lock, so its drop must not block.
    type Memory: Send + 'static;

    /// Lets go of everything but the memory. Runs where the last reference is dropped, which may be anywhere: it must not
    /// block either.
    fn into_memory(self) -> Self::Memory;
}

/// How an object is made.
#[derive(Debug, Clone, Default)]
pub struct ObjectConfig {
    /// Bytes.
    pub size: u64,
    /// The reservation to share, of the address space the object is private to; one of its own otherwise.
    pub resv: Option<Reservation>,
    /// Where it may live.
    pub place: PlaceConfig,
}

/// What a client says about an object's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Advice {
    /// It is needed.
    #[default]
    WillNeed,
    /// It may be lost when memory is short.
    DontNeed,
}

/// A buffer object: a clone is a full reference, and compares equal to every other reference to the same object.
///
/// The last reference may be dropped anywhere. If the object is idle, it goes at once; if the GPU still uses it, its
/// memory and its fences stay in the [graveyard](Graveyard) until they have signalled.
pub struct Object<D: ObjectData>(Arc<Shared<D>>);

/// A reference that does not keep the object alive.
pub struct WeakObject<D: ObjectData>(Weak<Shared<D>>);

struct Shared<D: ObjectData> {
    id: u64,
    size: u64,
    resv: Reservation,
    owns_resv: bool,
    place: Place,
    advice: Mutex<Advice>,
    handles: AtomicU32,
    graveyard: Graveyard,
    /// Taken out when the object goes, and only then.
    data: Option<D>,
}

impl<D: ObjectData> Object<D> {
    /// An object that is nowhere yet. `graveyard` is where its memory waits if it goes while busy.
    pub fn new(graveyard: &Graveyard, config: ObjectConfig, data: D) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(Arc::new(Shared {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            size: config.size,
            owns_resv: config.resv.is_none(),
            resv: config.resv.unwrap_or_default(),
            place: Place::new(config.place),
            advice: Mutex::default(),
            handles: AtomicU32::new(0),
            graveyard: graveyard.clone(),
            data: Some(data),
        }))
    }

    /// The driver's part.
    pub fn data(&self) -> &D {
        match &self.0.data {
            Some(data) => data,
            None => unreachable!("an object that is referred to has its data"),
        }
    }

    /// A number that no other object of this process has or had.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// The fences of the object, and the lock over them and over its place.
    pub fn resv(&self) -> &Reservation {
        &self.0.resv
    }

    /// Whether the reservation is the object's own. Otherwise it is shared with an address space, which need not live as
    /// long as the object.
    pub fn owns_resv(&self) -> bool {
        self.0.owns_resv
    }

    /// Where the object lives and may live.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// Where the object is now; see [`Place::residence`].
    pub fn residence(&self) -> Residence {
        self.0.place.residence()
    }

    /// The memory the object has now, wherever it is.
    pub fn allocation(&self) -> Option<Arc<Allocation>> {
        self.residence().allocation().cloned()
    }

    /// Whether the object has to be validated before its next use.
    pub fn is_evicted(&self) -> bool {
        matches!(self.residence(), Residence::Evicted(_))
    }

    /// What the client last said about the content.
    pub fn advice(&self) -> Advice {
        *self.0.advice.lock()
    }

    /// Sets what the client says about the content. Returns whether the content is still there: once purged, it stays
    /// lost.
    pub fn advise(&self, guard: &ResvGuard<'_>, advice: Advice) -> bool {
        debug_assert!(guard.guards(self.resv()), "advice is given under the object's own lock");
        *self.0.advice.lock() = advice;
        !matches!(self.residence(), Residence::Purged)
    }

    /// Counts one more handle of any client. Returns how many there are now.
    pub fn handle_opened(&self) -> u32 {
        self.0.handles.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Counts one handle less. Returns how many there still are.
    pub fn handle_closed(&self) -> u32 {
        let before = self.0.handles.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "more handles of an object are closed than were opened");
        before.wrapping_sub(1)
    }

    /// How many handles of all clients name the object.
    pub fn handle_count(&self) -> u32 {
        self.0.handles.load(Ordering::Relaxed)
    }

    /// Whether nothing uses the object, or nothing that `usage` counts.
    pub fn is_idle(&self, usage: Usage) -> bool {
        self.0.resv.is_idle(usage)
    }

    /// A reference that does not keep the object alive.
    pub fn downgrade(&self) -> WeakObject<D> {
        WeakObject(Arc::downgrade(&self.0))
    }

    /// Whether both are references to the same object.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<D: ObjectData> Drop for Shared<D> {
    fn drop(&mut self) {
        let Some(data) = self.data.take() else { return };
        let memory = data.into_memory();
        let allocation = self.place.take_allocation();
        let fences = self.resv.fences(Usage::Bookkeep);
        // The bytes leave their addresses before the addresses can be another's.
        let remains = move || {
            drop(memory);
            drop(allocation);
        };
        match fences.is_empty() {
            true => remains(),
            false => self.graveyard.bury(fence::merge(fences), Box::new(remains)),
        }
    }
}

impl<D: ObjectData> WeakObject<D> {
    /// A full reference, if the object is still there.
    pub fn upgrade(&self) -> Option<Object<D>> {
        self.0.upgrade().map(Object)
    }
}

impl<D: ObjectData> Clone for Object<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: ObjectData> Clone for WeakObject<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: ObjectData> PartialEq for Object<D> {
    fn eq(&self, other: &Self) -> bool {
        self.ptr_eq(other)
    }
}

impl<D: ObjectData> Eq for Object<D> {}

impl<D: ObjectData> fmt::Debug for Object<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("id", &self.id())
            .field("size", &self.size())
            .field("place", self.place())
            .field("handles", &self.handle_count())
            .finish()
    }
}

impl<D: ObjectData> fmt::Debug for WeakObject<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakObject")
    }
}
