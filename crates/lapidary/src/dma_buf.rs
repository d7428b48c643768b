//! Sharing buffers between devices.
//!
//! The device that made a buffer, the *exporter*, hands out a [`DmaBuf`]; another, the *importer*, attaches to it and maps the
//! attachment to get at the pages. `P` is what the pages are to these devices.
//!
//! # Vocabulary
//!
//! - *attachment*: one importer's tie to a buffer. It is *mapped* or not. See [`Attachment`].
//! - *dynamic*: the importer can follow when the exporter moves the buffer: it is told ([`Importer::moved`]), its mapping is gone, and it
//!   maps again before its next use. A *static* attachment pins the buffer instead, for as long as it is attached.
//! - *pin*: while there is one, the exporter does not move the buffer. A dynamic importer may take one for a while (to show the
//!   buffer on a screen, say).
//! - *self-import*: a device that is given its own buffer finds the object behind it and imports nothing.
//!
//! # Locking
//!
//! Everything that maps or unmaps needs the exporter's reservation, and takes its [guard](ResvGuard) as proof. An importer's object has a
//! reservation of its own, and never the exporter's; lock both with one [`Exec`](crate::exec::Exec). The list of attachments
//! and the state of each have small locks, innermost; of foreign code only the look at the pages runs under one.
//!
//! Dropping a mapped attachment unmaps it, for which it takes the exporter's reservation: at once if it is free, on the reaper
//! otherwise. So an attachment may be dropped under any lock, that one included.
//!
//! # Who keeps whom
//!
//! ```text
//!   importer's object ──▶ Attachment ──▶ DmaBuf ──▶ Exporter: the exporter's object
//!           ▲                              │               ╎
//!           └╌╌╌╌ Importer, weak ╌╌╌╌╌╌╌╌╌╌┘◀╌ ExportSlot, ┘
//!                                                    weak
//! ```
//!
//! What this module leaves to others: descriptors (the device server), what the bytes are (`P`).

use std::{any::Any, fmt};

use crate::{
    fence::Fence,
    reaper::Reaper,
    resv::{Reservation, ResvGuard, Usage},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// Who may do what to the pages, or has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Only read them.
    Read,
    /// Read and write them.
    ReadWrite,
}

/// Why a buffer was not attached or mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DmaBufError {
    /// The guard is not that of the exporter's reservation.
    #[error("the exporter's reservation is not the one that is locked")]
    WrongLock,
    /// The importer's object uses the exporter's reservation as its own.
    #[error("an importer can't share the exporter's reservation")]
    SharedReservation,
    /// The exporter has no memory to put the buffer where the importer reaches it.
    #[error("no memory to place the buffer where the importer reaches it")]
    NoMemory,
    /// The buffer is pinned where it is.
    #[error("the buffer is pinned {0} times and can't move")]
    Pinned(usize),
    /// The exporter does not do that.
    #[error("the exporter does not support this")]
    Unsupported,
}

/// The device that made a buffer.
pub trait Exporter<P>: Send + Sync {
    /// The buffer's reservation.
    fn resv(&self) -> &Reservation;

    /// Bytes.
    fn size(&self) -> u64;

    /// Gives an importer its pages. They stay where they are until [`unmap`](Self::unmap), unless the exporter tells otherwise with
    /// [`DmaBuf::move_notify`].
    ///
    /// # Errors
    /// [`DmaBufError`].
    fn map(&self, guard: &mut ResvGuard<'_>, access: Access) -> Result<P, DmaBufError>;

    /// Takes pages back that [`map`](Self::map) gave.
    fn unmap(&self, guard: &mut ResvGuard<'_>, pages: P);

    /// Keeps the buffer where it is, until as many [`unpin`](Self::unpin)s: for static attachments, and for dynamic ones that ask.
    ///
    /// # Errors
    /// [`DmaBufError`]; static importers are refused then.
    fn pin(&self, guard: &mut ResvGuard<'_>) -> Result<(), DmaBufError> {
        let _ = guard;
        Err(DmaBufError::Unsupported)
    }

    /// Takes back one [`pin`](Self::pin).
    fn unpin(&self, guard: &mut ResvGuard<'_>) {
        let _ = guard;
    }

    /// The CPU is about to access the bytes: makes what devices wrote visible. What must be waited for is in the reservation.
    fn begin_cpu_access(&self, access: Access) {
        let _ = access;
    }

    /// The CPU has accessed the bytes: makes what it wrote visible to devices.
    fn end_cpu_access(&self, access: Access) {
        let _ = access;
    }
}

/// The importing side of a dynamic attachment.
pub trait Importer: Send + Sync {
    /// The exporter moves the buffer. Its reservation is locked, `guard` is its lock. The mapping is gone when this returns: page tables
    /// must forget the pages now, or the fences of what still uses them be on the reservation, and the attachment be mapped
    /// again before the next use.
    fn moved(&self, guard: &mut ResvGuard<'_>);
}

/// A shared buffer. Clones are handles to the same one.
pub struct DmaBuf<P: Send + 'static>(Arc<Inner<P>>);

/// A reference that does not keep the buffer alive.
pub struct WeakDmaBuf<P: Send + 'static>(Weak<Inner<P>>);

struct Inner<P> {
    id: u64,
    exporter: Arc<dyn Exporter<P>>,
    origin: Arc<dyn Any + Send + Sync>,
    reaper: Reaper,
    attachments: Mutex<Vec<Arc<Tie<P>>>>,
}

/// What buffer and attachment share. All of it changes only under the exporter's reservation.
struct Tie<P> {
    /// The importing side, if it follows moves.
    importer: Option<Weak<dyn Importer>>,
    mapping: Mutex<Option<Mapping<P>>>,
    pins: AtomicUsize,
}

struct Mapping<P> {
    access: Access,
    pages: P,
}

impl<P> Tie<P> {
    fn take_pages(&self) -> Option<P> {
        self.mapping.lock().take().map(|mapping| mapping.pages)
    }

    fn is_mapped(&self) -> bool {
        self.mapping.lock().is_some()
    }

    fn pins(&self) -> usize {
        self.pins.load(Ordering::Relaxed)
    }
}

/// An importer's tie to a buffer. Owns the mapping: dropping it unmaps and detaches.
pub struct Attachment<P: Send + 'static> {
    buf: DmaBuf<P>,
    tie: Arc<Tie<P>>,
}

impl<P: Send + 'static> DmaBuf<P> {
    /// Exports a buffer. `origin` is what the exporting device finds again when the buffer comes back to it; `reaper` unmaps what
    /// can't be unmapped where it is dropped.
    pub fn export(
        exporter: Arc<dyn Exporter<P>>,
        origin: Arc<dyn Any + Send + Sync>,
        reaper: Reaper,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Inner { id, exporter, origin, reaper, attachments: Mutex::default() }))
    }

    /// A number that no other shared buffer of this process has or had.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.0.exporter.size()
    }

    /// The exporter's reservation: what a program's `poll`, and its sync_file exports and imports, look at.
    pub fn resv(&self) -> &Reservation {
        self.0.exporter.resv()
    }

    /// What the buffer was exported from, if it is a `T`: how a device recognises its own.
    pub fn origin<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.0.origin.clone().downcast().ok()
    }

    /// Attaches an importer that follows moves. `own` is the reservation of the importer's own object. The importer is usually
    /// part of that object, which holds the attachment: so it is not kept alive from here, and no longer told once it is gone.
    ///
    /// # Errors
    /// [`DmaBufError::SharedReservation`] if that is the exporter's.
    pub fn attach(
        &self,
        own: &Reservation,
        importer: Weak<dyn Importer>,
    ) -> Result<Attachment<P>, DmaBufError> {
        if own.ptr_eq(self.resv()) {
            return Err(DmaBufError::SharedReservation);
        }
        Ok(self.tie(Some(importer), 0))
    }

    /// Attaches an importer that can't follow moves: the buffer is pinned until the attachment is dropped.
    ///
    /// # Errors
    /// [`DmaBufError`]: as [`attach`](Self::attach), or if the exporter does not pin, or the guard is not its reservation's.
    pub fn attach_static(
        &self,
        own: &Reservation,
        guard: &mut ResvGuard<'_>,
    ) -> Result<Attachment<P>, DmaBufError> {
        if own.ptr_eq(self.resv()) {
            return Err(DmaBufError::SharedReservation);
        }
        self.check(guard)?;
        self.0.exporter.pin(guard)?;
        Ok(self.tie(None, 1))
    }

    /// The exporter is about to move the buffer, and holds its reservation: tells every importer that follows, and takes their mappings
    /// back. Called before the fences are waited for, as importers may add some.
    ///
    /// # Errors
    /// [`DmaBufError::WrongLock`], or [`DmaBufError::Pinned`] if an attachment has the buffer pinned: it must stay where it is.
    /// Nothing has happened then.
    pub fn move_notify(&self, guard: &mut ResvGuard<'_>) -> Result<(), DmaBufError> {
        let pins = self.pins(guard)?;
        if pins > 0 {
            return Err(DmaBufError::Pinned(pins));
        }
        let ties: Vec<Arc<Tie<P>>> = self.0.attachments.lock().clone();
        for tie in ties.into_iter().filter(|tie| tie.is_mapped()) {
            // Before the pages are taken: the importer may still look at them.
            if let Some(importer) = tie.importer.as_ref().and_then(Weak::upgrade) {
                importer.moved(guard);
            }
            if let Some(pages) = tie.take_pages() {
                self.0.exporter.unmap(guard, pages);
            }
        }
        Ok(())
    }

    /// How many pins attachments have on the buffer.
    ///
    /// # Errors
    /// [`DmaBufError::WrongLock`].
    pub fn pins(&self, guard: &ResvGuard<'_>) -> Result<usize, DmaBufError> {
        self.check(guard)?;
        Ok(self.0.attachments.lock().iter().map(|tie| tie.pins()).sum())
    }

    /// What CPU access must wait for before [`begin_cpu_access`](Self::begin_cpu_access).
    pub fn cpu_access_fence(&self, access: Access) -> Fence {
        self.resv().merged(Usage::for_access(access == Access::ReadWrite))
    }

    /// Brackets CPU access to the bytes.
    pub fn begin_cpu_access(&self, access: Access) {
        self.0.exporter.begin_cpu_access(access);
    }

    /// The other bracket.
    pub fn end_cpu_access(&self, access: Access) {
        self.0.exporter.end_cpu_access(access);
    }

    /// How many importers are attached.
    pub fn attachments(&self) -> usize {
        self.0.attachments.lock().len()
    }

    /// A reference that does not keep the buffer alive: what an object keeps so that a second export gives the same buffer.
    pub fn downgrade(&self) -> WeakDmaBuf<P> {
        WeakDmaBuf(Arc::downgrade(&self.0))
    }

    /// Whether both are handles to the same buffer.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn tie(&self, importer: Option<Weak<dyn Importer>>, pins: usize) -> Attachment<P> {
        let tie = Arc::new(Tie { importer, mapping: Mutex::new(None), pins: AtomicUsize::new(pins) });
        self.0.attachments.lock().push(tie.clone());
        Attachment { buf: self.clone(), tie }
    }

    fn check(&self, guard: &ResvGuard<'_>) -> Result<(), DmaBufError> {
        if guard.guards(self.resv()) { Ok(()) } else { Err(DmaBufError::WrongLock) }
    }

    /// Takes back all that an attachment has.
    fn untie(&self, guard: &mut ResvGuard<'_>, tie: &Arc<Tie<P>>) {
        if let Some(pages) = tie.take_pages() {
            self.0.exporter.unmap(guard, pages);
        }
        for _ in 0..tie.pins.swap(0, Ordering::Relaxed) {
            self.0.exporter.unpin(guard);
        }
        self.0.attachments.lock().retain(|other| !Arc::ptr_eq(other, tie));
    }
}

impl<P: Send + 'static> Attachment<P> {
    /// The buffer.
    pub fn buf(&self) -> &DmaBuf<P> {
        &self.buf
    }

    /// Maps the attachment, unless it is mapped with enough access; one that is mapped with less is mapped anew. What the buffer's
    /// reservation holds as [`Usage::Kernel`] must be waited for before the pages are used.
    ///
    /// # Errors
    /// [`DmaBufError`]. The attachment is not mapped then, unless the lock was the wrong one.
    pub fn map(&self, guard: &mut ResvGuard<'_>, access: Access) -> Result<(), DmaBufError> {
        self.buf.check(guard)?;
        let mapped = self.tie.mapping.lock().as_ref().map(|mapping| mapping.access);
        match mapped {
            Some(mapped) if mapped == access || mapped == Access::ReadWrite => return Ok(()),
            Some(_) => self.unmap(guard)?,
            None => {}
        }
        let pages = self.buf.0.exporter.map(guard, access)?;
        // Only holders of the guard set it, so it is still empty.
        *self.tie.mapping.lock() = Some(Mapping { access, pages });
        Ok(())
    }

    /// Keeps the buffer where it is until [`unpin`](Self::unpin), or until the attachment is dropped. Pins are counted.
    ///
    /// # Errors
    /// [`DmaBufError::WrongLock`], or what the exporter says.
    pub fn pin(&self, guard: &mut ResvGuard<'_>) -> Result<(), DmaBufError> {
        self.buf.check(guard)?;
        self.buf.0.exporter.pin(guard)?;
        self.tie.pins.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Takes back one [`pin`](Self::pin). The one that a static attachment came with stays; more than there are do nothing.
    ///
    /// # Errors
    /// [`DmaBufError::WrongLock`].
    pub fn unpin(&self, guard: &mut ResvGuard<'_>) -> Result<(), DmaBufError> {
        self.buf.check(guard)?;
        if self.tie.pins() > usize::from(self.tie.importer.is_none()) {
            self.tie.pins.fetch_sub(1, Ordering::Relaxed);
            self.buf.0.exporter.unpin(guard);
        }
        Ok(())
    }

    /// Unmaps the attachment, if it is mapped.
    ///
    /// # Errors
    /// [`DmaBufError::WrongLock`].
    pub fn unmap(&self, guard: &mut ResvGuard<'_>) -> Result<(), DmaBufError> {
        self.buf.check(guard)?;
        if let Some(pages) = self.tie.take_pages() {
            self.buf.0.exporter.unmap(guard, pages);
        }
        Ok(())
    }

    /// Whether the attachment is mapped. Without the exporter's reservation it may not be the next moment.
    pub fn is_mapped(&self) -> bool {
        self.tie.is_mapped()
    }

    /// Looks at the pages of a mapped attachment; `None` if it is not mapped. `look` must not use this attachment. What borrows
    /// from the pages can't leave it:
    ///
    /// ```compile_fail
    /// # use lapidary::{dma_buf::Attachment, resv::ResvGuard};
    /// fn keep<'a>(attachment: &'a Attachment<String>, guard: &'a ResvGuard<'_>) -> Option<&'a String> {
    ///     attachment.pages(guard, |pages| pages).ok()?
    /// }
    /// ```
    ///
    /// # Errors
    /// [`DmaBufError::WrongLock`].
    pub fn pages<R>(
        &self,
        guard: &ResvGuard<'_>,
        look: impl FnOnce(&P) -> R,
    ) -> Result<Option<R>, DmaBufError> {
        self.buf.check(guard)?;
        Ok(self.tie.mapping.lock().as_ref().map(|mapping| look(&mapping.pages)))
    }
}

impl<P: Send + 'static> Drop for Attachment<P> {
    fn drop(&mut self) {
        let (buf, tie) = (self.buf.clone(), self.tie.clone());
        if let Some(mut guard) = self.buf.resv().try_lock() {
            buf.untie(&mut guard, &tie);
            return;
        }
        // Somebody holds it, this thread perhaps.
        self.buf.0.reaper.queue(Box::new(move || {
            let mut guard = buf.resv().lock();
            buf.untie(&mut guard, &tie);
        }));
    }
}

impl<P: Send + 'static> WeakDmaBuf<P> {
    /// A reference to nothing.
    pub const fn new() -> Self {
        Self(Weak::new())
    }

    /// The buffer, if it still exists.
    pub fn upgrade(&self) -> Option<DmaBuf<P>> {
        self.0.upgrade().map(DmaBuf)
    }
}

/// Where an object remembers the buffer it is exported as, so that every export gives the same one.
#[derive(Debug)]
pub struct ExportSlot<P: Send + 'static>(Mutex<WeakDmaBuf<P>>);

impl<P: Send + 'static> ExportSlot<P> {
    /// A slot of an object that is not exported.
    pub const fn new() -> Self {
        Self(Mutex::new(WeakDmaBuf::new()))
    }

    /// The buffer the object is exported as; `export` makes it if there is none, under the slot's lock.
    pub fn get_or_export(&self, export: impl FnOnce() -> DmaBuf<P>) -> DmaBuf<P> {
        let mut slot = self.0.lock();
        if let Some(buf) = slot.upgrade() {
            return buf;
        }
        let buf = export();
        *slot = buf.downgrade();
        buf
    }

    /// The buffer the object is exported as now, if any.
    pub fn get(&self) -> Option<DmaBuf<P>> {
        self.0.lock().upgrade()
    }
}

impl<P: Send + 'static> Default for ExportSlot<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Send + 'static> Default for WeakDmaBuf<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Send + 'static> Clone for DmaBuf<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<P: Send + 'static> Clone for WeakDmaBuf<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<P: Send + 'static> fmt::Debug for DmaBuf<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaBuf")
            .field("id", &self.id())
            .field("size", &self.size())
            .field("attachments", &self.attachments())
            .finish()
    }
}

impl<P: Send + 'static> fmt::Debug for WeakDmaBuf<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakDmaBuf")
    }
}

impl<P: Send + 'static> fmt::Debug for Attachment<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment").field("buf", &self.buf).field("mapped", &self.is_mapped()).finish()
    }
}
