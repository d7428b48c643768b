//! Rules of userptrs and their notifier.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use lapidary::{
    exec::{Duplicates, Exec},
    fence::{Deadline, Fence, Interrupt, Signaller, Timeline, WaitError},
    reaper::Reaper,
    resv::{Reservation, Usage},
    userptr::{
        Blocking, Busy, Cancelled, ManualSource, Mm, NotifierSource, Userptr, UserptrUser, WatchError,
        WeakMm, WouldBlock,
    },
};

/// An address space of the GPU, as far as userptrs care.
#[derive(Default)]
struct Space {
    resv: Reservation,
    invalidated: Mutex<Vec<Range<u64>>>,
    quiesced: Mutex<Vec<Range<u64>>>,
}

impl UserptrUser for Space {
    fn fences(&self) -> Vec<Fence> {
        self.resv.fences(Usage::Bookkeep)
    }

    fn invalidated(&self, range: Range<u64>) {
        self.invalidated.lock().unwrap().push(range);
    }

    fn quiesced(&self, range: Range<u64>) {
        assert!(self.resv.is_idle(Usage::Bookkeep));
        self.quiesced.lock().unwrap().push(range);
    }
}

struct Program {
    mm: Mm,
    reaper: Reaper,
    space: Arc<Space>,
}

impl Program {
    fn new(source: Arc<dyn NotifierSource>) -> Self {
        let reaper = Reaper::new();
        Self { mm: Mm::new(source, reaper.clone()), reaper, space: Arc::default() }
    }

    fn register(&self, range: Range<u64>) -> Userptr<&'static str> {
        self.mm.register(range, self.space.clone()).unwrap()
    }

    /// A registered range whose pages are installed.
    fn pinned(&self, range: Range<u64>) -> Userptr<&'static str> {
        let userptr = self.register(range);
        let job = userptr.start_pin(Deadline::never(), &Interrupt::none()).unwrap();
        job.install("pages").unwrap();
        userptr
    }

    /// A job that uses the space.
    fn submit(&self) -> Signaller {
        let (fence, done) = Timeline::new("gpu").next();
        let mut guard = self.space.resv.lock();
        guard.reserve(1).unwrap();
        guard.add_fence(fence, Usage::Bookkeep);
        done
    }

    /// Returns when an invalidation has visited the first userptr: it is on then, under the notifier's lock.
    fn until_invalidated(&self) {
        while self.space.invalidated.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
    }

    fn valid(&self, userptr: &Userptr<&'static str>) -> bool {
        userptr.is_valid(&self.mm.notifier())
    }
}

fn manual() -> Program {
    Program::new(Arc::new(ManualSource))
}

#[test]
fn h08_an_invalidation_that_may_not_wait_says_so_and_changes_nothing() {
    let program = manual();
    let (idle_part, busy_part) = (program.pinned(0x1000..0x2000), program.pinned(0x2000..0x3000));
    let done = program.submit();

    assert_eq!(program.mm.invalidate(0x1000..0x3000, Blocking::MayNot), Err(WouldBlock));
    assert!(program.valid(&idle_part) && program.valid(&busy_part));
    assert!(program.space.invalidated.lock().unwrap().is_empty());

    done.signal();
    assert_eq!(program.mm.invalidate(0x1000..0x3000, Blocking::MayNot), Ok(2));
    assert!(!program.valid(&idle_part) && !program.valid(&busy_part));
}

#[test]
fn h09_an_invalidation_may_come_from_a_thread_that_holds_device_locks() {
    let program = manual();
    let userptr = program.pinned(0x1000..0x2000);
    let other = Reservation::new();
    let locked = [&program.space.resv, &other];
    let exec = Exec::lock_all(locked, Duplicates::Refuse, &Interrupt::none()).unwrap();
    assert_eq!(program.mm.invalidate(0x1800..0x1900, Blocking::May), Ok(1));
    drop(exec);
    assert!(!program.valid(&userptr));
}

#[test]
fn h10_each_overlapping_userptr_is_visited_once_dying_ones_included() {
    let program = manual();
    let done = program.submit();
    let (whole, part) = (program.pinned(0x1000..0x9000), program.pinned(0x2000..0x3000));
    let _beside = program.pinned(0x9000..0xa000);

    // Given one that is being destroyed, and stays because the GPU uses it
    drop(part);
    program.reaper.flush();
    assert_eq!(program.mm.len(), 3);

    let (mm, (ended, end)) = (program.mm.clone(), mpsc::channel());
    let thread =
        std::thread::spawn(move || ended.send(mm.invalidate(0x2800..0x9000, Blocking::May)).unwrap());
    // The invalidation waits for the job: it ends after it, with each visited once
    program.until_invalidated();
    done.signal();
    assert_eq!(end.recv().unwrap(), Ok(2));
    thread.join().unwrap();
    assert_eq!(program.space.invalidated.lock().unwrap().len(), 2);
    assert_eq!(*program.space.quiesced.lock().unwrap(), *program.space.invalidated.lock().unwrap());
    assert!(!program.valid(&whole));
}

#[test]
fn h11_pin_jobs_in_flight_or_queued_are_cancelled() {
    let program = manual();
    let userptr = program.register(0x1000..0x5000);
    let beside = program.register(0x5000..0x6000);
    let start = |userptr: &Userptr<_>| userptr.start_pin(Deadline::never(), &Interrupt::none()).unwrap();
    let (in_flight, queued, elsewhere) = (start(&userptr), start(&userptr), start(&beside));

    program.mm.invalidate(0x4fff..0x5000, Blocking::May).unwrap();
    assert_eq!(in_flight.install("old pages"), Err(Cancelled));
    assert_eq!(queued.install("old pages"), Err(Cancelled));
    assert!(!program.valid(&userptr));
    assert!(elsewhere.install("pages").is_ok());

    let seq = start(&userptr).install("new pages").unwrap();
    let guard = program.mm.notifier();
    assert!(!userptr.retry(&guard, seq));
    assert_eq!(userptr.pages(&guard).as_deref(), Some(&"new pages"));
}

#[test]
fn h11_a_submission_that_raced_with_an_invalidation_starts_over() {
    let program = manual();
    let userptr = program.pinned(0x1000..0x2000);
    let seq = userptr.begin(Deadline::poll(), &Interrupt::none()).unwrap();
    program.mm.invalidate(0..u64::MAX, Blocking::May).unwrap();
    assert!(userptr.retry(&program.mm.notifier(), seq));
}

#[test]
fn h11_nothing_begins_while_an_invalidation_is_on() {
    let program = manual();
    let userptr = program.pinned(0x1000..0x2000);
    let done = program.submit();

    let mm = program.mm.clone();
    let thread = std::thread::spawn(move || mm.invalidate(0x1000..0x2000, Blocking::May));
    program.until_invalidated();
    let early = userptr.start_pin(Deadline::poll(), &Interrupt::none());
    assert!(matches!(early, Err(WaitError::TimedOut)));

    done.signal();
    let job = userptr.start_pin(Deadline::never(), &Interrupt::none()).unwrap();
    assert!(job.install("new pages").is_ok());
    assert_eq!(thread.join().unwrap(), Ok(1));
}

#[test]
fn h11_nothing_begins_before_the_change_is_in_effect_new_userptrs_included() {
    let program = manual();
    let (before, beside) = (program.register(0x1000..0x2000), program.register(0x2000..0x3000));
    let begin = |userptr: &Userptr<_>| userptr.begin(Deadline::poll(), &Interrupt::none());

    let invalidation = program.mm.begin_invalidation(0x1000..0x2000, Blocking::MayNot).unwrap();
    assert_eq!(invalidation.visited(), 1);
    let meanwhile = program.register(0x1800..0x4000);
    assert_eq!(begin(&before), Err(WaitError::TimedOut));
    assert_eq!(begin(&meanwhile), Err(WaitError::TimedOut));
    assert!(begin(&beside).is_ok());

    drop(invalidation);
    assert!(begin(&before).is_ok() && begin(&meanwhile).is_ok());
}

#[test]
fn h12_pages_that_are_held_or_used_are_refused_for_release() {
    let program = manual();
    let userptr = program.pinned(0x1000..0x2000);
    let held = userptr.hold().unwrap();
    assert_eq!(userptr.release(), Err(Busy(1)));
    assert_eq!(program.mm.invalidate(0x1000..0x2000, Blocking::MayNot), Err(WouldBlock));
    assert_eq!(*held.pages(), "pages");
    drop(held);

    let done = program.submit();
    assert_eq!(userptr.release(), Err(Busy(1)));
    done.signal();
    assert_eq!(userptr.release().unwrap().as_deref(), Some(&"pages"));
    assert!(!program.valid(&userptr) && userptr.hold().is_none());
}

#[test]
fn h13_a_userptr_is_in_the_index_for_as_long_as_the_gpu_may_see_its_pages() {
    let program = manual();
    let userptr = program.register(0x1000..0x2000);
    assert_eq!((program.mm.len(), program.valid(&userptr)), (1, false));

    let job = userptr.start_pin(Deadline::never(), &Interrupt::none()).unwrap();
    job.install("pages").unwrap();
    let done = program.submit();
    // Dropped under the notifier's lock and the reservation, while busy
    {
        let _resv = program.space.resv.lock();
        let _notifier = program.mm.notifier();
        drop(userptr);
    }
    program.reaper.flush();
    assert_eq!(program.mm.len(), 1);
    done.signal();
    program.reaper.flush();
    assert_eq!(program.mm.len(), 0);
}

/// Pages that let go of what was made with their address space, as a driver's may.
struct Pages(Mm, Arc<Space>);

impl Drop for Pages {
    fn drop(&mut self) {
        drop(self.0.register::<()>(0x8000..0x9000, self.1.clone()));
    }
}

#[test]
fn h13_pages_that_go_with_their_userptr_are_dropped_without_locks() {
    let program = manual();
    let userptr = program.mm.register(0x1000..0x2000, program.space.clone()).unwrap();
    let job = userptr.start_pin(Deadline::never(), &Interrupt::none()).unwrap();
    job.install(Pages(program.mm.clone(), program.space.clone())).unwrap();
    drop(userptr);
    program.reaper.flush();
    assert_eq!(program.mm.len(), 0);
}

#[derive(Default)]
struct CountingSource {
    attached: AtomicUsize,
    watched: AtomicUsize,
    refuse: Mutex<Option<WatchError>>,
}

impl NotifierSource for CountingSource {
    fn attach(&self, mm: WeakMm) -> Result<(), WatchError> {
        assert!(mm.upgrade().is_some());
        assert_eq!(self.attached.fetch_add(1, Ordering::Relaxed), 0, "attached twice");
        Ok(())
    }

    fn watch(&self, _: Range<u64>) -> Result<(), WatchError> {
        if let Some(error) = *self.refuse.lock().unwrap() {
            return Err(error);
        }
        self.watched.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn unwatch(&self, _: Range<u64>) {
        self.watched.fetch_sub(1, Ordering::Relaxed);
    }

    fn detach(&self) {
        assert_eq!(self.watched.load(Ordering::Relaxed), 0);
        self.attached.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn h14_one_notifier_serves_all_userptrs_of_a_program_and_goes_with_the_last() {
    let source = Arc::new(CountingSource::default());
    let program = Program::new(source.clone());
    let counts = || (source.attached.load(Ordering::Relaxed), source.watched.load(Ordering::Relaxed));
    for _ in 0..2 {
        let userptrs: Vec<_> = (0..5).map(|n| program.register(n << 12..(n + 1) << 12)).collect();
        assert_eq!(counts(), (1, 5));
        drop(userptrs);
        program.reaper.flush();
        assert_eq!(counts(), (0, 0));
    }
}

#[test]
fn h07_a_range_that_cant_be_watched_leaves_nothing_behind() {
    let source = Arc::new(CountingSource::default());
    let program = Program::new(source.clone());
    let error = WatchError::NotMapped(0x1000, 0x2000);
    *source.refuse.lock().unwrap() = Some(error);
    let refused = program.mm.register::<()>(0x1000..0x2000, program.space.clone());
    assert_eq!(refused.err(), Some(error));
    assert_eq!((program.mm.len(), source.attached.load(Ordering::Relaxed)), (0, 0));
    assert!(program.mm.register::<()>(5..5, program.space.clone()).is_err());
}
