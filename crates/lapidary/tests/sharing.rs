//! Rules of sharing buffers between devices.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use lapidary::{
    dma_buf::{Access, Attachment, DmaBuf, DmaBufError, ExportSlot, Exporter, Importer},
    exec::{Duplicates, Exec},
    fence::Interrupt,
    reaper::Reaper,
    resv::{Reservation, ResvGuard},
};

/// The exporter: its pages are the buffer's address, which changes when it moves.
#[derive(Default)]
struct Buffer {
    resv: Reservation,
    address: AtomicUsize,
    mapped: AtomicUsize,
    pinned: AtomicUsize,
}

impl Exporter<usize> for Buffer {
    fn resv(&self) -> &Reservation {
        &self.resv
    }

    fn size(&self) -> u64 {
        4096
    }

    fn map(&self, guard: &mut ResvGuard<'_>, _: Access) -> Result<usize, DmaBufError> {
        assert!(guard.guards(&self.resv));
        self.mapped.fetch_add(1, Ordering::Relaxed);
        Ok(self.address.load(Ordering::Relaxed))
    }

    fn unmap(&self, guard: &mut ResvGuard<'_>, _: usize) {
        assert!(guard.guards(&self.resv));
        self.mapped.fetch_sub(1, Ordering::Relaxed);
    }

    fn pin(&self, _: &mut ResvGuard<'_>) -> Result<(), DmaBufError> {
        self.pinned.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn unpin(&self, _: &mut ResvGuard<'_>) {
        self.pinned.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Import {
    resv: Reservation,
    told: AtomicUsize,
    /// What the importer drops when told, if anything.
    attachment: Mutex<Option<Attachment<usize>>>,
}

impl Importer for Import {
    fn moved(&self, _: &mut ResvGuard<'_>) {
        self.told.fetch_add(1, Ordering::Relaxed);
        drop(self.attachment.lock().unwrap().take());
    }
}

struct Setup {
    buffer: Arc<Buffer>,
    buf: DmaBuf<usize>,
    import: Arc<Import>,
    reaper: Reaper,
}

impl Setup {
    fn new() -> Self {
        let (buffer, reaper) = (Arc::new(Buffer::default()), Reaper::new());
        let buf = DmaBuf::export(buffer.clone(), buffer.clone(), reaper.clone());
        Self { buffer, buf, import: Arc::default(), reaper }
    }

    fn attach(&self) -> Attachment<usize> {
        self.buf.attach(&self.import.resv, self.import.clone()).unwrap()
    }

    fn mapped(&self) -> Attachment<usize> {
        let attachment = self.attach();
        attachment.map(&mut self.buffer.resv.lock(), Access::ReadWrite).unwrap();
        attachment
    }

    fn counts(&self) -> (usize, usize) {
        (self.buffer.mapped.load(Ordering::Relaxed), self.buf.attachments())
    }

    fn move_to(&self, address: usize) {
        let mut guard = self.buffer.resv.lock();
        self.buf.move_notify(&mut guard).unwrap();
        self.buffer.address.store(address, Ordering::Relaxed);
    }
}

#[test]
fn h15_mapping_takes_the_lock_of_the_exporter_and_no_other() {
    let setup = Setup::new();
    let attachment = setup.attach();
    let wrong = attachment.map(&mut setup.import.resv.lock(), Access::Read);
    assert_eq!(wrong, Err(DmaBufError::WrongLock));
    assert_eq!(attachment.map(&mut setup.buffer.resv.lock(), Access::Read), Ok(()));
    assert_eq!(attachment.unmap(&mut setup.import.resv.lock()), Err(DmaBufError::WrongLock));
    assert!(attachment.is_mapped());
}

#[test]
fn h15_an_importer_cant_share_the_exporters_reservation() {
    let setup = Setup::new();
    let shared = setup.buf.attach(&setup.buffer.resv, setup.import.clone());
    assert!(matches!(shared, Err(DmaBufError::SharedReservation)));
    assert_eq!(setup.counts(), (0, 0));
}

#[test]
fn h16_a_dropped_attachment_is_unmapped_at_once_where_that_is_possible() {
    let setup = Setup::new();
    let attachment = setup.mapped();
    // Another reservation is held, which is no reason to wait
    let _other = setup.import.resv.lock();
    drop(attachment);
    assert_eq!((setup.counts(), setup.reaper.pending()), ((0, 0), 0));
}

#[test]
fn h16_dropped_under_the_exporters_own_lock_it_is_deferred() {
    let setup = Setup::new();
    let attachment = setup.mapped();
    let locked = [&setup.buffer.resv, &setup.import.resv];
    let exec = Exec::lock_all(locked, Duplicates::Refuse, &Interrupt::none()).unwrap();
    drop(attachment);
    assert_eq!(setup.counts(), (1, 1));
    drop(exec);
    setup.reaper.flush();
    assert_eq!(setup.counts(), (0, 0));
}

#[test]
fn h17_pages_are_reached_through_the_mapped_attachment_only() {
    let setup = Setup::new();
    setup.buffer.address.store(7, Ordering::Relaxed);
    let attachment = setup.attach();
    let mut guard = setup.buffer.resv.lock();
    assert_eq!(attachment.pages(&guard, |address| *address), Ok(None));
    attachment.map(&mut guard, Access::Read).unwrap();
    assert_eq!(attachment.pages(&guard, |address| *address), Ok(Some(7)));
    attachment.unmap(&mut guard).unwrap();
    assert_eq!(attachment.pages(&guard, |address| *address), Ok(None));
}

#[test]
fn h18_a_move_is_told_to_importers_who_map_again() {
    let setup = Setup::new();
    let (first, unmapped) = (setup.mapped(), setup.attach());
    setup.move_to(9);
    assert_eq!(setup.import.told.load(Ordering::Relaxed), 1);
    assert!(!first.is_mapped() && !unmapped.is_mapped());

    let mut guard = setup.buffer.resv.lock();
    first.map(&mut guard, Access::Read).unwrap();
    assert_eq!(first.pages(&guard, |address| *address), Ok(Some(9)));
}

#[test]
fn h18_an_importer_may_let_go_when_told() {
    let setup = Setup::new();
    let attachment = setup.mapped();
    *setup.import.attachment.lock().unwrap() = Some(attachment);
    setup.move_to(1);
    setup.reaper.flush();
    assert_eq!(setup.counts(), (0, 0));
}

#[test]
fn a_static_importer_pins_instead() {
    let setup = Setup::new();
    let attachment = {
        let mut guard = setup.buffer.resv.lock();
        let attachment = setup.buf.attach_static(&setup.import.resv, &mut guard).unwrap();
        attachment.map(&mut guard, Access::Read).unwrap();
        attachment
    };
    assert_eq!(setup.buffer.pinned.load(Ordering::Relaxed), 1);
    drop(attachment);
    assert_eq!((setup.buffer.pinned.load(Ordering::Relaxed), setup.counts()), (0, (0, 0)));
}

#[test]
fn a_device_finds_its_own_object_and_every_export_is_the_same_buffer() {
    let setup = Setup::new();
    assert!(Arc::ptr_eq(&setup.buf.origin::<Buffer>().unwrap(), &setup.buffer));
    assert!(setup.buf.origin::<Import>().is_none());

    let slot = ExportSlot::new();
    let export = || DmaBuf::export(setup.buffer.clone(), setup.buffer.clone(), setup.reaper.clone());
    let (first, second) = (slot.get_or_export(export), slot.get_or_export(export));
    assert!(first.ptr_eq(&second));
    drop((first, second));
    assert!(slot.get().is_none());
}
