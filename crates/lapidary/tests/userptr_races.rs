//! Submissions and invalidations of userptrs under many threads: no job touches pages that the program has taken back.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use lapidary::{
    fence::{Deadline, Fence, Interrupt, Signaller, Timeline},
    reaper::Reaper,
    resv::{Reservation, Usage},
    userptr::{Blocking, ManualSource, Mm, Userptr, UserptrUser},
};

const RANGE: Range<u64> = 0x1000..0x5000;

/// The pages that are behind the range at one time.
#[derive(Default)]
struct Pages {
    gone: AtomicBool,
}

/// A program that now and then maps fresh memory over its range.
struct Program {
    mm: Mm,
    now: Mutex<Arc<Pages>>,
}

impl Program {
    fn remap(&self, blocking: Blocking) {
        let Ok(_invalidation) = self.mm.begin_invalidation(0x2000..0x3000, blocking) else { return };
        let old = std::mem::take(&mut *self.now.lock().unwrap());
        old.gone.store(true, Ordering::SeqCst);
    }

    fn pages(&self) -> Arc<Pages> {
        self.now.lock().unwrap().clone()
    }
}

#[derive(Default)]
struct Space {
    resv: Reservation,
}

impl UserptrUser for Space {
    fn fences(&self) -> Vec<Fence> {
        self.resv.fences(Usage::Bookkeep)
    }

    fn invalidated(&self, _: Range<u64>) {}
}

type Job = (Arc<Pages>, Signaller);

/// What a driver does to run a job that uses the range: pin if need be, check, publish the fence.
fn submit(userptr: &Userptr<Arc<Pages>>, program: &Program, space: &Space, engine: &mpsc::Sender<Job>) {
    let (fence, done) = Timeline::new("job").next();
    loop {
        let mut guard = space.resv.lock();
        guard.reserve(1).unwrap();
        let notifier = program.mm.notifier();
        if let Some(pages) = userptr.pages(&notifier) {
            guard.add_fence(fence, Usage::Bookkeep);
            drop(notifier);
            engine.send((Arc::clone(&pages), done)).unwrap();
            return;
        }
        drop(notifier);
        drop(guard);
        let job = userptr.start_pin(Deadline::never(), &Interrupt::none()).unwrap();
        // If the program was faster, the next look finds nothing and begins again.
        let _ = job.install(program.pages());
    }
}

#[test]
fn h11_no_job_uses_pages_that_an_invalidation_has_ended() {
    let reaper = Reaper::new();
    let mm = Mm::new(Arc::new(ManualSource), reaper.clone());
    let program = Program { mm: mm.clone(), now: Mutex::default() };
    let space = Arc::new(Space::default());
    let userptr: Userptr<Arc<Pages>> = mm.register(RANGE, space.clone()).unwrap();
    let (engine, jobs) = mpsc::channel::<Job>();
    let early = AtomicUsize::new(0);
    let submitting = AtomicBool::new(true);

    thread::scope(|scope| {
        scope.spawn(|| {
            for (pages, done) in jobs {
                early.fetch_add(usize::from(!pages.gone.load(Ordering::SeqCst)), Ordering::Relaxed);
                thread::yield_now();
                assert!(!pages.gone.load(Ordering::SeqCst), "a job runs on pages that are gone");
                done.signal();
            }
        });
        let remaps = scope.spawn(|| {
            let mut remaps = 0;
            while submitting.load(Ordering::Relaxed) {
                let blocking = if remaps % 2 == 0 { Blocking::May } else { Blocking::MayNot };
                remaps += 1;
                program.remap(blocking);
            }
            remaps
        });
        let submitters: Vec<_> = (0..2)
            .map(|_| {
                let engine = engine.clone();
                let (userptr, program, space) = (&userptr, &program, &space);
                scope.spawn(move || (0..300).for_each(|_| submit(userptr, program, space, &engine)))
            })
            .collect();
        submitters.into_iter().for_each(|submitter| submitter.join().unwrap());
        submitting.store(false, Ordering::Relaxed);
        drop(engine);
        assert!(remaps.join().unwrap() > 0);
    });
    assert_eq!(early.into_inner(), 600);

    drop(userptr);
    reaper.flush();
    assert!(mm.is_empty());
}

#[test]
fn h13_ranges_come_and_go_while_the_program_changes_its_memory() {
    let reaper = Reaper::new();
    let mm = Mm::new(Arc::new(ManualSource), reaper.clone());
    let running = AtomicBool::new(true);
    thread::scope(|scope| {
        let owners: Vec<_> = (0..2u64)
            .map(|owner| {
                let mm = &mm;
                scope.spawn(move || {
                    for n in 0..300u64 {
                        let space = Arc::new(Space::default());
                        let start = (owner + n % 7) << 12;
                        let userptr: Userptr<u64> =
                            mm.register(start..start + 0x3000, space.clone()).unwrap();
                        let (fence, done) = Timeline::new("job").next();
                        {
                            let mut guard = space.resv.lock();
                            guard.reserve(1).unwrap();
                            guard.add_fence(fence, Usage::Bookkeep);
                        }
                        drop(userptr);
                        done.signal();
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while running.load(Ordering::Relaxed) {
                mm.invalidate(0..u64::MAX, Blocking::May).unwrap();
                let _ = mm.invalidate(0x2000..0x3000, Blocking::MayNot);
            }
        });
        owners.into_iter().for_each(|owner| owner.join().unwrap());
        running.store(false, Ordering::Relaxed);
    });
    reaper.flush();
    assert!(mm.is_empty());
}
