//! Rules of objects, handles, the graveyard and the reaper.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
    mpsc,
};

use lapidary::{
    fence::{Deadline, FenceError, Interrupt, Timeline},
    gem::{Graveyard, Handle, HandleTable, Object, ObjectConfig, ObjectData},
    reaper::{Reaper, Release},
    resv::{Reservation, Usage},
};

/// Counts what still exists: the bookkeeping part and the memory part of an object.
#[derive(Clone, Default)]
struct Alive {
    extras: Arc<()>,
    memory: Arc<()>,
}

impl Alive {
    fn counts(&self) -> (usize, usize) {
        (Arc::strong_count(&self.extras) - 1, Arc::strong_count(&self.memory) - 1)
    }

    fn data(&self) -> Data {
        Data { _extras: self.extras.clone(), memory: self.memory.clone() }
    }
}

struct Data {
    _extras: Arc<()>,
    memory: Arc<()>,
}

impl ObjectData for Data {
    type Memory = Arc<()>;

    fn into_memory(self) -> Arc<()> {
        self.memory
    }
}

fn object(graveyard: &Graveyard, alive: &Alive) -> Object<Data> {
    Object::new(graveyard, ObjectConfig { size: 4096, ..ObjectConfig::default() }, alive.data())
}

/// A release that counts that it ran.
fn counting(ran: &Arc<AtomicUsize>) -> Release {
    let ran = ran.clone();
    Box::new(move || {
        ran.fetch_add(1, Ordering::Relaxed);
    })
}

#[test]
fn h01_a_release_may_be_queued_under_any_lock_and_queue_further_ones() {
    let reaper = Reaper::new();
    let lock = Arc::new(std::sync::Mutex::new(()));
    let ran = Arc::new(AtomicUsize::new(0));

    // Given a lock that the release takes, held by the thread that queues it
    let held = lock.lock().unwrap();
    let (again, inner_lock, inner_ran) = (reaper.clone(), lock.clone(), ran.clone());
    reaper.queue(Box::new(move || {
        drop(inner_lock.lock().unwrap());
        inner_ran.fetch_add(1, Ordering::Relaxed);
        again.queue(counting(&inner_ran));
    }));
    drop(held);

    // Then flush waits for it and for what it queued
    reaper.flush();
    assert_eq!((ran.load(Ordering::Relaxed), reaper.pending()), (2, 0));
}

#[test]
fn h02_shutdown_returns_after_every_queued_release() {
    let reaper = Reaper::new();
    let ran = Arc::new(AtomicUsize::new(0));
    for _ in 0..100 {
        reaper.queue(counting(&ran));
    }
    reaper.shutdown();
    assert_eq!(ran.load(Ordering::Relaxed), 100);

    // and a late one still runs
    reaper.queue(counting(&ran));
    reaper.flush();
    assert_eq!(ran.load(Ordering::Relaxed), 101);
}

#[test]
fn h02_a_flush_ends_although_others_keep_queueing() {
    let reaper = Reaper::new();
    let (stop, stopped) = mpsc::channel::<()>();
    let busy = reaper.clone();
    let feeder = std::thread::spawn(move || {
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            let (done, wait) = mpsc::channel();
            busy.queue(Box::new(move || done.send(()).unwrap()));
            busy.queue(Box::new(|| ()));
            wait.recv().unwrap();
        }
    });
    for _ in 0..50 {
        reaper.flush();
    }
    drop(stop);
    feeder.join().unwrap();
}

#[test]
fn h02_a_release_that_panics_does_not_stop_the_others() {
    let reaper = Reaper::new();
    let ran = Arc::new(AtomicUsize::new(0));
    reaper.queue(Box::new(|| panic!("this panic belongs to the test")));
    reaper.queue(counting(&ran));
    reaper.flush();
    assert_eq!(ran.load(Ordering::Relaxed), 1);
}

#[test]
fn h03_a_lookup_that_races_with_destroy_gets_a_full_reference_or_nothing() {
    let table = Arc::new(HandleTable::<Arc<usize>>::new());
    let threads: Vec<_> = (0..4)
        .map(|n| {
            let table = table.clone();
            std::thread::spawn(move || {
                for round in 0..2000 {
                    if n % 2 == 0 {
                        let handle = table.insert(Arc::new(round)).unwrap();
                        let found = table.remove(handle);
                        // Only this thread or another remover can have it, never both.
                        drop(found);
                    } else if let Some(found) = table.get(Handle(1 + round as u32 % 2)) {
                        // Whatever was found is alive for as long as it is held.
                        assert!(Arc::strong_count(&found) >= 1 && *found < 2000);
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(table.is_empty());
}

#[test]
fn h05_the_reservation_outlives_the_space_it_was_shared_with() {
    let graveyard = Graveyard::new(Reaper::new());
    let alive = Alive::default();
    let space = Reservation::new();
    let config = ObjectConfig { size: 4096, resv: Some(space.clone()), ..ObjectConfig::default() };
    let private = Object::new(&graveyard, config, alive.data());
    let own = object(&graveyard, &alive);
    assert!(private.resv().ptr_eq(&space) && !private.owns_resv());
    assert!(!own.resv().ptr_eq(&space) && own.owns_resv());

    // When the address space goes, the object's lock still works
    drop(space);
    assert!(private.resv().lock().is_idle(Usage::Bookkeep));
}

#[test]
fn h06_a_looked_up_object_stays_although_its_handle_is_closed() {
    let graveyard = Graveyard::new(Reaper::new());
    let alive = Alive::default();
    let table = HandleTable::new();
    let handle = table.insert(object(&graveyard, &alive)).unwrap();

    let found = table.get(handle).unwrap();
    drop(table.remove(handle));
    assert_eq!(alive.counts(), (1, 1));
    assert!(table.get(handle).is_none());
    assert!(found.downgrade().upgrade().is_some());
}

#[test]
fn h22_an_idle_object_goes_at_once() {
    let graveyard = Graveyard::new(Reaper::new());
    let alive = Alive::default();
    drop(object(&graveyard, &alive));
    assert_eq!(alive.counts(), (0, 0));
    assert!(graveyard.is_empty());
}

#[test]
fn h22_a_busy_object_keeps_its_fences_and_memory_and_goes_when_they_have_signalled() {
    let reaper = Reaper::new();
    let graveyard = Graveyard::new(reaper.clone());
    let alive = Alive::default();
    let timeline = Timeline::new("gpu");
    let (first, first_done) = timeline.next();
    let (second, second_done) = Timeline::new("other").next();

    // Given an object two jobs use
    let busy = object(&graveyard, &alive);
    {
        let mut guard = busy.resv().lock();
        guard.reserve(2).unwrap();
        guard.add_fence(first, Usage::Write);
        guard.add_fence(second, Usage::Bookkeep);
    }

    // When its last reference goes, only the memory stays
    drop(busy);
    assert_eq!(alive.counts(), (0, 1));
    assert_eq!(graveyard.len(), 1);

    // until both have ended, one way or the other
    first_done.signal();
    reaper.flush();
    assert_eq!(alive.counts(), (0, 1));
    second_done.fail(FenceError::TimedOut);
    reaper.flush();
    assert_eq!(alive.counts(), (0, 0));
    assert!(graveyard.is_empty());
}

#[test]
fn h22_memory_pressure_flushes_the_waiting_ones_even_under_a_reservation() {
    let graveyard = Graveyard::new(Reaper::new());
    let alive = Alive::default();
    let (fence, done) = Timeline::new("gpu").next();
    let busy = object(&graveyard, &alive);
    {
        let mut guard = busy.resv().lock();
        guard.reserve(1).unwrap();
        guard.add_fence(fence, Usage::Write);
    }
    drop(busy);

    let other = Reservation::new();
    let _held = other.lock();
    assert!(graveyard.flush(Deadline::poll(), &Interrupt::none()).is_err());
    assert_eq!(alive.counts(), (0, 1));

    let gpu = std::thread::spawn(move || done.signal());
    graveyard.flush(Deadline::never(), &Interrupt::none()).unwrap();
    gpu.join().unwrap();
    assert!(graveyard.is_empty());
    graveyard.reaper().flush();
    assert_eq!(alive.counts(), (0, 0));
}

#[test]
fn handles_are_counted_over_all_clients() {
    let graveyard = Graveyard::new(Reaper::new());
    let shared = object(&graveyard, &Alive::default());
    assert_eq!((shared.handle_opened(), shared.handle_opened()), (1, 2));
    assert_eq!(shared.handle_closed(), 1);
    assert_eq!(shared.handle_count(), 1);
}
