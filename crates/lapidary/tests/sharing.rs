//! Rules of buffer sharing: H15 to H18, pins, and buffers that come back to their own device.

use std::sync::{
    Arc, Mutex, OnceLock, Weak,
    atomic::{AtomicUsize, Ordering},
};

use lapidary::{
    dma_buf::{Access, Attachment, DmaBuf, DmaBufError, ExportSlot, Exporter, Importer},
    exec::{Duplicates, Exec},
    fence::{Fence, Interrupt, Timeline},
    reaper::Reaper,
    resv::{Reservation, ResvGuard, Usage},
};

/// Where a buffer's pages are: the exporter gives these out, and counts what is given.
#[derive(Debug, PartialEq, Eq)]
struct Pages {
    place: usize,
    access: Access,
}

/// A buffer of the exporting device.
#[derive(Default)]
struct Buffer {
    resv: Reservation,
    place: AtomicUsize,
    mapped: AtomicUsize,
    pinned: AtomicUsize,
    broken: bool,
    /// The places whose pages were taken back, in order.
    unmapped: Mutex<Vec<usize>>,
    exported: ExportSlot<Pages>,
}

impl Exporter<Pages> for Buffer {
    fn resv(&self) -> &Reservation {
        &self.resv
    }

    fn size(&self) -> u64 {
        4096
    }

    fn map(&self, guard: &mut ResvGuard<'_>, access: Access) -> Result<Pages, DmaBufError> {
        assert!(guard.guards(&self.resv));
        if self.broken {
            return Err(DmaBufError::NoMemory);
        }
        self.mapped.fetch_add(1, Ordering::Relaxed);
        Ok(Pages { place: self.place.load(Ordering::Relaxed), access })
    }

    fn unmap(&self, guard: &mut ResvGuard<'_>, pages: Pages) {
        assert!(guard.guards(&self.resv));
        self.mapped.fetch_sub(1, Ordering::Relaxed);
        self.unmapped.lock().unwrap().push(pages.place);
    }

    fn pin(&self, guard: &mut ResvGuard<'_>) -> Result<(), DmaBufError> {
        assert!(guard.guards(&self.resv));
        if self.broken {
            return Err(DmaBufError::NoMemory);
        }
        self.pinned.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn unpin(&self, guard: &mut ResvGuard<'_>) {
        assert!(guard.guards(&self.resv));
        self.pinned.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Buffer {
    fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn export(self: &Arc<Self>, reaper: &Reaper) -> DmaBuf<Pages> {
        self.exported.get_or_export(|| DmaBuf::export(self.clone(), self.clone(), reaper.clone()))
    }

    /// What the exporter does to move it: tell, then change the place.
    fn move_to(&self, buf: &DmaBuf<Pages>, place: usize) -> Result<(), DmaBufError> {
        let mut guard = self.resv.lock();
        buf.move_notify(&mut guard)?;
        assert_eq!(self.mapped(), 0, "nobody may look at the old place any more");
        self.place.store(place, Ordering::Relaxed);
        Ok(())
    }

    fn mapped(&self) -> usize {
        self.mapped.load(Ordering::Relaxed)
    }

    fn pinned(&self) -> usize {
        self.pinned.load(Ordering::Relaxed)
    }
}

/// An importing device's object: it holds the attachment, and follows moves.
#[derive(Default)]
struct Import {
    resv: Reservation,
    attachment: OnceLock<Attachment<Pages>>,
    moves: AtomicUsize,
    /// What was still mapped when a move was told.
    seen_at_move: Mutex<Vec<usize>>,
}

impl Import {
    fn of(buf: &DmaBuf<Pages>) -> Arc<Self> {
        let import = Arc::new(Self::default());
        let attachment = buf.attach(&import.resv, weak(&import)).unwrap();
        assert!(import.attachment.set(attachment).is_ok());
        import
    }

    fn attachment(&self) -> &Attachment<Pages> {
        self.attachment.get().unwrap()
    }

    /// Makes the object ready for use, as a submission does, and says where its pages are.
    fn validate(&self) -> usize {
        let exporter = self.attachment().buf().resv();
        let mut exec =
            Exec::lock_all([&self.resv, exporter], Duplicates::Refuse, &Interrupt::none()).unwrap();
        let guard = exec.guard(exporter).unwrap();
        self.attachment().map(guard, Access::ReadWrite).unwrap();
        self.attachment().pages(guard, |pages| pages.place).unwrap().unwrap()
    }
}

impl Importer for Import {
    fn moved(&self, guard: &mut ResvGuard<'_>) {
        self.moves.fetch_add(1, Ordering::Relaxed);
        let place = self.attachment().pages(guard, |pages| pages.place).unwrap();
        self.seen_at_move.lock().unwrap().extend(place);
    }
}

fn weak(import: &Arc<Import>) -> Weak<dyn Importer> {
    let importer: Arc<dyn Importer> = import.clone();
    Arc::downgrade(&importer)
}

#[test]
fn h15_mapping_and_unmapping_need_the_exporters_lock() {
    let buffer = Buffer::new();
    let buf = buffer.export(&Reaper::new());
    let import = Import::of(&buf);
    let mut wrong = import.resv.lock();

    let attachment = import.attachment();
    assert_eq!(attachment.map(&mut wrong, Access::Read), Err(DmaBufError::WrongLock));
    assert_eq!(attachment.unmap(&mut wrong), Err(DmaBufError::WrongLock));
    assert_eq!(attachment.pin(&mut wrong), Err(DmaBufError::WrongLock));
    assert_eq!(attachment.unpin(&mut wrong), Err(DmaBufError::WrongLock));
    assert_eq!(attachment.pages(&wrong, |_| ()), Err(DmaBufError::WrongLock));
    assert_eq!(buf.move_notify(&mut wrong), Err(DmaBufError::WrongLock));
    assert_eq!(buf.attach_static(&import.resv, &mut wrong).err(), Some(DmaBufError::WrongLock));
    assert_eq!((buffer.mapped(), buffer.pinned(), buf.attachments()), (0, 0, 1));
}

#[test]
fn h15_an_importer_never_shares_the_exporters_reservation() {
    let buffer = Buffer::new();
    let buf = buffer.export(&Reaper::new());
    let importer = weak(&Arc::default());

    assert_eq!(buf.attach(buf.resv(), importer).err(), Some(DmaBufError::SharedReservation));
    let mut guard = buf.resv().lock();
    let shared = buf.attach_static(buf.resv(), &mut guard);
    assert_eq!(shared.err(), Some(DmaBufError::SharedReservation));
    assert_eq!((buf.attachments(), buffer.pinned()), (0, 0));
}

#[test]
fn h16_an_import_is_freed_at_once_when_the_lock_is_free() {
    let buffer = Buffer::new();
    let buf = buffer.export(&Reaper::new());
    let import = Import::of(&buf);
    import.validate();

    drop(import);
    assert_eq!((buffer.mapped(), buf.attachments()), (0, 0));
}

#[test]
fn h16_an_import_is_freed_later_when_this_thread_holds_the_lock() {
    let (buffer, reaper) = (Buffer::new(), Reaper::new());
    let buf = buffer.export(&reaper);
    let import = Import::of(&buf);
    import.validate();

    let guard = buf.resv().lock();
    drop(import);
    assert_eq!(buffer.mapped(), 1, "unmapped without the lock");

    drop(guard);
    reaper.flush();
    assert_eq!((buffer.mapped(), buf.attachments()), (0, 0));
}

#[test]
fn h16_an_import_is_freed_under_other_locks() {
    let (buffer, reaper) = (Buffer::new(), Reaper::new());
    let buf = buffer.export(&reaper);
    let import = Import::of(&buf);
    import.validate();
    let own = import.resv.clone();

    let others = [Reservation::new(), own];
    let exec = Exec::lock_all(&others, Duplicates::Refuse, &Interrupt::none()).unwrap();
    drop(import);
    // Other locks are no reason to wait
    assert_eq!((buffer.mapped(), buf.attachments(), reaper.pending()), (0, 0, 0));
    drop(exec);
}

#[test]
fn h16_an_import_is_freed_in_a_fence_callback() {
    let (buffer, reaper) = (Buffer::new(), Reaper::new());
    let buf = buffer.export(&reaper);
    let import = Import::of(&buf);
    import.validate();
    let (fence, signaller) = Timeline::new("job").next();
    fence.on_signal(move |_| drop(import));

    let guard = buf.resv().lock();
    signaller.signal();
    drop(guard);
    reaper.flush();
    assert_eq!((buffer.mapped(), buf.attachments()), (0, 0));
}

#[test]
fn h16_a_freed_import_keeps_the_buffer_until_it_is_unmapped() {
    let (buffer, reaper) = (Buffer::new(), Reaper::new());
    let buf = buffer.export(&reaper);
    let import = Import::of(&buf);
    import.validate();
    let resv = buf.resv().clone();

    let guard = resv.lock();
    drop((import, buf));
    assert!(buffer.exported.get().is_some());
    drop(guard);
    reaper.flush();
    assert!(buffer.exported.get().is_none());
    assert_eq!((buffer.mapped(), Arc::strong_count(&buffer)), (0, 1));
}

#[test]
fn h17_pages_are_reached_only_through_a_mapped_attachment() {
    let buffer = Buffer::new();
    let buf = buffer.export(&Reaper::new());
    let import = Import::of(&buf);
    let attachment = import.attachment();

    let mut guard = buf.resv().lock();
    assert_eq!(attachment.pages(&guard, |_| ()), Ok(None));
    attachment.map(&mut guard, Access::Read).unwrap();
    // The pages are lent to the closure: nothing that borrows from them leaves it.
    assert_eq!(attachment.pages(&guard, |pages| pages.access), Ok(Some(Access::Read)));
    attachment.unmap(&mut guard).unwrap();
    assert_eq!(attachment.pages(&guard, |_| ()), Ok(None));
    assert_eq!(buffer.mapped(), 0);
}

#[test]
fn h17_a_mapping_that_failed_gives_no_pages() {
    let buffer = Arc::new(Buffer { broken: true, ..Buffer::default() });
    let buf = buffer.export(&Reaper::new());
    let import = Import::of(&buf);

    let mut guard = buf.resv().lock();
    assert_eq!(import.attachment().map(&mut guard, Access::Read), Err(DmaBufError::NoMemory));
    assert!(!import.attachment().is_mapped());
    assert_eq!(buf.attach_static(&import.resv, &mut guard).err(), Some(DmaBufError::NoMemory));
    assert_eq!(buf.attachments(), 1);
}

#[test]
fn an_attachment_that_is_mapped_for_reading_is_mapped_anew_for_writing() {
    let buffer = Buffer::new();
    let buf = buffer.export(&Reaper::new());
    let import = Import::of(&buf);
    let attachment = import.attachment();
    let mut guard = buf.resv().lock();

    for (asked, got) in [
        (Access::Read, Access::Read),
        (Access::ReadWrite, Access::ReadWrite),
        (Access::Read, Access::ReadWrite),
    ] {
        attachment.map(&mut guard, asked).unwrap();
        assert_eq!(attachment.pages(&guard, |pages| pages.access), Ok(Some(got)));
        assert_eq!(buffer.mapped(), 1);
    }
}

#[test]
fn h18_every_importer_is_told_of_a_move_and_maps_again() {
    let buffer = Buffer::new();
    let buf = buffer.export(&Reaper::new());
    let imports = [Import::of(&buf), Import::of(&buf)];
    assert_eq!(imports.each_ref().map(|import| import.validate()), [0, 0]);

    buffer.move_to(&buf, 7).unwrap();
    for import in &imports {
        assert_eq!(import.moves.load(Ordering::Relaxed), 1);
        assert_eq!(*import.seen_at_move.lock().unwrap(), [0], "told before the pages are gone");
        assert!(!import.attachment().is_mapped());
    }
    assert_eq!(imports.each_ref().map(|import| import.validate()), [7, 7]);
    assert_eq!(*buffer.unmapped.lock().unwrap(), [0, 0]);
}

#[test]
fn h18_who_is_not_mapped_has_nothing_to_be_told() {
    let buffer = Buffer::new();
    let buf = buffer.export(&Reaper::new());
    let import = Import::of(&buf);

    buffer.move_to(&buf, 1).unwrap();
    assert_eq!(import.moves.load(Ordering::Relaxed), 0);
    assert_eq!(import.validate(), 1);
}

#[test]
fn h18_an_importer_that_is_gone_is_not_told_and_loses_its_mapping() {
    let (buffer, reaper) = (Buffer::new(), Reaper::new());
    let buf = buffer.export(&reaper);
    let import = Import::of(&buf);
    import.validate();

    // Given an import that was freed while the exporter had begun to move the buffer
    let mut guard = buf.resv().lock();
    drop(import);
    buf.move_notify(&mut guard).unwrap();
    assert_eq!(buffer.mapped(), 0);
    drop(guard);

    reaper.flush();
    assert_eq!((buffer.mapped(), buf.attachments()), (0, 0));
    assert_eq!(*buffer.unmapped.lock().unwrap(), [0], "unmapped once");
}

#[test]
fn h18_an_importer_may_let_go_when_told() {
    #[derive(Default)]
    struct LetsGo(Mutex<Option<Attachment<Pages>>>);
    impl Importer for LetsGo {
        fn moved(&self, _: &mut ResvGuard<'_>) {
            drop(self.0.lock().unwrap().take());
        }
    }
    let (buffer, reaper) = (Buffer::new(), Reaper::new());
    let buf = buffer.export(&reaper);
    let importer: Arc<LetsGo> = Arc::default();
    let told: Arc<dyn Importer> = importer.clone();
    let attachment = buf.attach(&Reservation::new(), Arc::downgrade(&told)).unwrap();
    attachment.map(&mut buf.resv().lock(), Access::Read).unwrap();
    *importer.0.lock().unwrap() = Some(attachment);

    buffer.move_to(&buf, 1).unwrap();
    reaper.flush();
    assert_eq!((buffer.mapped(), buf.attachments()), (0, 0));
}

#[test]
fn h18_a_submission_and_moves_race() {
    let (buffer, reaper) = (Buffer::new(), Reaper::new());
    let buf = buffer.export(&reaper);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let import = Import::of(&buf);
                    let exporter = buf.resv();
                    let both = [&import.resv, exporter];
                    let mut exec = Exec::lock_all(both, Duplicates::Refuse, &Interrupt::none()).unwrap();
                    let guard = exec.guard(exporter).unwrap();
                    import.attachment().map(guard, Access::Read).unwrap();
                    // While the lock is held the buffer can't move
                    let place = import.attachment().pages(guard, |pages| pages.place).unwrap();
                    assert_eq!(place, Some(buffer.place.load(Ordering::Relaxed)));
                }
            });
        }
        for place in 1..200 {
            buffer.move_to(&buf, place).unwrap();
        }
    });
    reaper.flush();
    assert_eq!((buffer.mapped(), buf.attachments()), (0, 0));
}

#[test]
fn a_static_attachment_keeps_the_buffer_where_it_is() {
    let (buffer, reaper) = (Buffer::new(), Reaper::new());
    let buf = buffer.export(&reaper);
    let own = Reservation::new();
    let attachment = buf.attach_static(&own, &mut buf.resv().lock()).unwrap();
    attachment.map(&mut buf.resv().lock(), Access::Read).unwrap();
    assert_eq!(buffer.pinned(), 1);
    assert_eq!(buffer.move_to(&buf, 1), Err(DmaBufError::Pinned(1)));
    assert!(attachment.is_mapped());

    // The pin it came with can't be given back while it is attached
    attachment.unpin(&mut buf.resv().lock()).unwrap();
    assert_eq!(buffer.pinned(), 1);
    drop(attachment);
    assert_eq!((buffer.pinned(), buffer.mapped()), (0, 0));
    assert_eq!(buffer.move_to(&buf, 1), Ok(()));
}

#[test]
fn a_dynamic_attachment_pins_for_a_while() {
    let (buffer, reaper) = (Buffer::new(), Reaper::new());
    let buf = buffer.export(&reaper);
    let import = Import::of(&buf);
    let attachment = import.attachment();
    attachment.pin(&mut buf.resv().lock()).unwrap();
    attachment.pin(&mut buf.resv().lock()).unwrap();
    assert_eq!(buf.pins(&buf.resv().lock()), Ok(2));

    attachment.unpin(&mut buf.resv().lock()).unwrap();
    assert_eq!(buffer.move_to(&buf, 1), Err(DmaBufError::Pinned(1)));

    // What is left goes with the attachment
    drop(import);
    assert_eq!(buffer.pinned(), 0);
    assert_eq!(buffer.move_to(&buf, 1), Ok(()));
}

#[test]
fn a_device_finds_its_own_object_in_a_buffer_that_comes_back() {
    let reaper = Reaper::new();
    let (ours, theirs) = (Buffer::new(), Buffer::new());
    let buf = ours.export(&reaper);
    let found = buf.origin::<Buffer>().unwrap();
    assert!(Arc::ptr_eq(&found, &ours));
    assert!(buf.origin::<Import>().is_none(), "another device's kind of object");

    // Every export gives the same buffer, until the last handle is gone
    assert!(ours.export(&reaper).ptr_eq(&buf));
    assert!(!theirs.export(&reaper).ptr_eq(&buf));
    let id = buf.id();
    drop((buf, found));
    assert!(ours.exported.get().is_none());
    assert_ne!(ours.export(&reaper).id(), id);
}

#[test]
fn nothing_keeps_itself_alive() {
    let (buffer, reaper) = (Buffer::new(), Reaper::new());
    let buf = buffer.export(&reaper);
    let import = Import::of(&buf);
    import.validate();
    let (left, right) = (Arc::downgrade(&import), Arc::downgrade(&buffer));

    drop((import, buf, buffer));
    reaper.flush();
    assert!(left.upgrade().is_none() && right.upgrade().is_none());
}

#[test]
fn cpu_access_waits_for_what_devices_do() {
    let buffer = Buffer::new();
    let buf = buffer.export(&Reaper::new());
    let (reads, reader) = Timeline::new("reads").next();
    let add = |fence: Fence, usage| {
        let mut guard = buf.resv().lock();
        guard.reserve(1).unwrap();
        guard.add_fence(fence, usage);
    };
    add(reads, Usage::Read);
    assert!(buf.cpu_access_fence(Access::Read).is_signalled(), "readers don't wait for readers");
    assert!(!buf.cpu_access_fence(Access::ReadWrite).is_signalled());

    let (writes, _writer) = Timeline::new("writes").next();
    add(writes, Usage::Write);
    reader.signal();
    assert!(!buf.cpu_access_fence(Access::Read).is_signalled());
}
