//! Jobs that take too long, pauses, and priorities: what a driver does when a device hangs.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use lapidary::fence::{Deadline, Fence, FenceError, Interrupt, Signaller, Timeline};
use lapidary::sched::{ArmError, Backend, Priority, Queue, QueueConfig, Scheduler};

/// Long enough for a test never to see its end.
const HOUR: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(1);

/// An engine that hangs on every job, and is reset when one has had its time.
#[derive(Default)]
struct Engine {
    running: Mutex<Vec<Signaller>>,
    /// How often a job is let be before it is ended.
    patience: AtomicUsize,
    timed_out: Mutex<Vec<Fence>>,
}

impl Engine {
    fn timed_out(&self) -> usize {
        self.timed_out.lock().unwrap().len()
    }

    /// The oldest job completes.
    fn complete_one(&self) {
        let done = self.running.lock().unwrap().remove(0);
        done.signal();
    }
}

impl Backend for Engine {
    type Work = ();

    fn run(&self, (): (), done: Signaller) {
        self.running.lock().unwrap().push(done);
    }

    fn timed_out(&self, queue: &Queue<Self>, job: &Fence) {
        self.timed_out.lock().unwrap().push(job.clone());
        let waits = |patience: usize| patience.checked_sub(1);
        if self.patience.fetch_update(Ordering::Relaxed, Ordering::Relaxed, waits).is_ok() {
            return;
        }
        queue.kill(FenceError::TimedOut);
        let mut running = self.running.lock().unwrap();
        let at = running.iter().position(|done| done.fence().ptr_eq(job)).expect("it is in flight");
        let hung = running.remove(at);
        drop(running);
        hung.fail(FenceError::TimedOut);
    }
}

/// One worker: what it is given first it does first.
fn scheduler() -> Scheduler<Engine> {
    Scheduler::new("test", Arc::new(Engine::default()), 1)
}

fn queue(scheduler: &Scheduler<Engine>, timeout: Duration) -> Queue<Engine> {
    let queue = scheduler.queue(QueueConfig::default());
    queue.set_timeout(Some(timeout));
    queue
}

fn wait(fence: &Fence) {
    fence.wait(Deadline::never(), &Interrupt::none()).unwrap();
}

/// Returns when the worker has done all it was given before.
fn worker_passed(scheduler: &Scheduler<Engine>) {
    let marker = queue(scheduler, HOUR);
    let hung = marker.push((), []).unwrap();
    marker.time_out();
    wait(&hung);
}

#[test]
fn a_job_that_does_not_end_in_its_time_is_reported_and_can_be_ended() {
    let scheduler = scheduler();
    let queue = queue(&scheduler, SHORT);
    let (never, _signaller) = Timeline::new("never").next();
    let hung = queue.push((), []).unwrap();
    let waiting = queue.push((), [never]).unwrap();
    wait(&waiting);
    assert_eq!(hung.status(), Some(Err(FenceError::TimedOut)));
    assert_eq!(waiting.status(), Some(Err(FenceError::TimedOut)));
    assert_eq!((scheduler.backend().timed_out(), queue.last_error()), (1, Some(FenceError::TimedOut)));
    assert!(matches!(queue.arm(), Err(ArmError::Killed(FenceError::TimedOut))));
}

#[test]
fn a_job_that_is_let_be_is_reported_again() {
    let scheduler = scheduler();
    scheduler.backend().patience.store(3, Ordering::Relaxed);
    let hung = queue(&scheduler, SHORT).push((), []).unwrap();
    wait(&hung);
    let timed_out = scheduler.backend().timed_out.lock().unwrap();
    assert!(timed_out.len() == 4 && timed_out.iter().all(|job| job.ptr_eq(&hung)));
}

#[test]
fn without_an_answer_of_the_backends_the_queue_is_killed() {
    struct Silent(Mutex<Option<Signaller>>);
    impl Backend for Silent {
        type Work = ();
        fn run(&self, (): (), done: Signaller) {
            *self.0.lock().unwrap() = Some(done);
        }
    }
    let scheduler = Scheduler::new("test", Arc::new(Silent(Mutex::default())), 1);
    let queue = scheduler.queue(QueueConfig::default());
    queue.set_timeout(Some(SHORT));
    let hung = queue.push((), []).unwrap();
    while queue.killed().is_none() {
        std::thread::yield_now();
    }
    // The job itself is the backend's to end.
    assert!(!hung.is_signalled());
    scheduler.backend().0.lock().unwrap().take().unwrap().signal();
    assert_eq!(hung.status(), Some(Ok(())));
}

#[test]
fn a_driver_that_knows_of_a_hang_need_not_wait() {
    let scheduler = scheduler();
    let queue = queue(&scheduler, HOUR);
    let (first, second) = (queue.push((), []).unwrap(), queue.push((), []).unwrap());
    queue.time_out();
    wait(&first);
    // The one behind it had not begun.
    worker_passed(&scheduler);
    assert!(!second.is_signalled());
    assert_eq!(scheduler.backend().timed_out(), 1 + 1);
    queue.time_out();
    wait(&second);
}

#[test]
fn what_has_ended_or_is_not_watched_does_not_time_out() {
    let scheduler = scheduler();
    let (ended, unwatched) = (queue(&scheduler, HOUR), scheduler.queue(QueueConfig::default()));
    ended.push((), []).unwrap();
    scheduler.backend().complete_one();
    unwatched.push((), []).unwrap();
    ended.time_out();
    unwatched.time_out();
    worker_passed(&scheduler);
    assert_eq!(scheduler.backend().timed_out(), 1, "the marker's");
    assert_eq!((ended.last_error(), unwatched.last_error()), (None, None));
}

#[test]
fn a_paused_scheduler_hands_nothing_over() {
    let scheduler = scheduler();
    let queue = scheduler.queue(QueueConfig::default());
    let (once, twice) = (scheduler.pause(), scheduler.pause());
    let job = queue.push((), []).unwrap();
    let armed = queue.arm().unwrap();
    let killed = scheduler.queue(QueueConfig::default());
    let failed = killed.push((), []).unwrap();
    killed.kill(FenceError::Cancelled);
    assert_eq!((failed.status(), queue.pending()), (Some(Err(FenceError::Cancelled)), 2));
    drop(once);
    assert!(scheduler.is_paused() && scheduler.backend().running.lock().unwrap().is_empty());
    drop(twice);
    // The worker hands it over in its time.
    let last = armed.push((), []);
    while scheduler.backend().running.lock().unwrap().len() < 2 {
        std::thread::yield_now();
    }
    scheduler.backend().complete_one();
    scheduler.backend().complete_one();
    assert!(job.is_signalled() && last.is_signalled());
}

#[test]
fn nothing_times_out_during_a_pause_and_all_have_their_whole_time_afterwards() {
    let scheduler = scheduler();
    let queue = queue(&scheduler, HOUR);
    let job = queue.push((), []).unwrap();
    let paused = scheduler.pause();
    queue.time_out();
    drop(paused);
    worker_passed(&scheduler);
    assert_eq!((scheduler.backend().timed_out(), job.is_signalled()), (1, false), "the marker's alone");
    // It is still watched.
    queue.time_out();
    wait(&job);
}

/// A device that is reset when a job hangs: every job in flight starts over, the guilty one fails.
#[derive(Default)]
struct Restarting {
    in_flight: Mutex<Vec<(u32, Signaller)>>,
    started: Mutex<Vec<u32>>,
}

impl Restarting {
    fn start(&self, number: u32, done: Signaller) {
        self.started.lock().unwrap().push(number);
        self.in_flight.lock().unwrap().push((number, done));
    }
}

impl Backend for Restarting {
    type Work = u32;

    fn run(&self, number: u32, done: Signaller) {
        assert!(number != 0, "handed over during the reset");
        self.start(number, done);
    }

    fn timed_out(&self, queue: &Queue<Self>, job: &Fence) {
        let _paused = queue.scheduler().pause();
        // Whoever pushes during the reset gets no further than the queue, and nobody reports the job once more.
        let meanwhile = queue.scheduler().queue(QueueConfig::default());
        meanwhile.push(0, []).unwrap();
        queue.time_out();
        assert_eq!(meanwhile.pending(), 1);
        meanwhile.kill(FenceError::Cancelled);
        let in_flight = std::mem::take(&mut *self.in_flight.lock().unwrap());
        for (number, done) in in_flight {
            match done.fence().ptr_eq(job) {
                true => done.fail(FenceError::TimedOut),
                false => self.start(number, done),
            }
        }
    }
}

#[test]
fn a_device_can_be_reset_and_the_innocent_start_over() {
    let scheduler = Scheduler::new("test", Arc::new(Restarting::default()), 2);
    let queues = [(); 3].map(|()| scheduler.queue(QueueConfig::default()));
    queues.iter().for_each(|queue| queue.set_timeout(Some(HOUR)));
    let fences: Vec<_> = (1..4).map(|n| queues[n - 1].push(n as u32, []).unwrap()).collect();
    queues[1].time_out();
    wait(&fences[1]);
    assert_eq!(fences[1].status(), Some(Err(FenceError::TimedOut)));
    // The queue goes on: this backend does not kill it.
    let next = queues[1].push(4, []).unwrap();
    while scheduler.backend().in_flight.lock().unwrap().len() < 3 {
        std::thread::yield_now();
    }
    let in_flight = std::mem::take(&mut *scheduler.backend().in_flight.lock().unwrap());
    in_flight.into_iter().for_each(|(_, done)| done.signal());
    assert!([&fences[0], &fences[2], &next].iter().all(|fence| fence.status() == Some(Ok(()))));
    assert_eq!(*scheduler.backend().started.lock().unwrap(), [1, 2, 3, 1, 3, 4]);
}

/// A job that stays in the hands of the thread that hands it over until it is told to go on.
struct Slow {
    begun: Mutex<mpsc::Sender<()>>,
    go_on: Mutex<mpsc::Receiver<()>>,
    ran: Mutex<Vec<u32>>,
}

impl Backend for Slow {
    type Work = u32;

    fn run(&self, number: u32, done: Signaller) {
        self.begun.lock().unwrap().send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
        self.ran.lock().unwrap().push(number);
        done.signal();
    }
}

fn slow() -> (Scheduler<Slow>, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let ((begun, has_begun), (go_on, told)) = (mpsc::channel(), mpsc::channel());
    let slow = Slow { begun: Mutex::new(begun), go_on: Mutex::new(told), ran: Mutex::default() };
    (Scheduler::new("test", Arc::new(slow), 1), has_begun, go_on)
}

fn not_inline(scheduler: &Scheduler<Slow>) -> Queue<Slow> {
    scheduler.queue(QueueConfig { inline: false, ..QueueConfig::default() })
}

#[test]
fn a_pause_waits_for_the_job_that_is_being_handed_over() {
    let (scheduler, has_begun, go_on) = slow();
    let job = not_inline(&scheduler).push(1, []).unwrap();
    has_begun.recv().unwrap();
    std::thread::scope(|scope| {
        let paused = scope.spawn(|| {
            let paused = scheduler.pause();
            assert_eq!(*scheduler.backend().ran.lock().unwrap(), [1]);
            drop(paused);
        });
        go_on.send(()).unwrap();
        paused.join().unwrap();
    });
    wait(&job);
}

#[test]
fn a_queue_goes_first_or_last_as_its_priority_is_now() {
    let (scheduler, has_begun, go_on) = slow();
    let queues = [(); 4].map(|()| not_inline(&scheduler));
    // Given a worker that has its hands full
    queues[0].push(0, []).unwrap();
    has_begun.recv().unwrap();
    queues[1].set_priority(Priority::Low);
    queues[3].set_priority(Priority::High);
    let fences: Vec<_> = (1..4).map(|n| queues[n].push(n as u32, []).unwrap()).collect();
    (0..4).for_each(|_| go_on.send(()).unwrap());
    fences.iter().for_each(wait);
    assert_eq!(*scheduler.backend().ran.lock().unwrap(), [0, 3, 2, 1]);
}

/// A device that must be left alone while it is reset.
#[derive(Default)]
struct Resettable {
    resetting: AtomicBool,
    ran: AtomicUsize,
}

impl Backend for Resettable {
    type Work = ();

    fn run(&self, (): (), done: Signaller) {
        assert!(!self.resetting.load(Ordering::Relaxed), "a job met a device that is being reset");
        self.ran.fetch_add(1, Ordering::Relaxed);
        done.signal();
    }
}

#[test]
fn no_job_meets_a_device_that_is_being_reset_and_none_is_lost() {
    const JOBS: usize = 1500;
    let scheduler = Scheduler::new("test", Arc::new(Resettable::default()), 2);
    let pushing = AtomicUsize::new(4);
    let last: Vec<Fence> = std::thread::scope(|scope| {
        let pushers: Vec<_> = (0..4)
            .map(|n| {
                let inline = n % 2 == 0;
                let queue = scheduler.queue(QueueConfig {
                    inline,
                    max_pending: usize::MAX,
                    ..QueueConfig::default()
                });
                queue.set_timeout(Some(HOUR));
                let pushing = &pushing;
                scope.spawn(move || {
                    let mut previous = Fence::signalled();
                    for _ in 0..JOBS {
                        previous = queue.push((), [previous]).unwrap();
                    }
                    pushing.fetch_sub(1, Ordering::Relaxed);
                    previous
                })
            })
            .collect();
        while pushing.load(Ordering::Relaxed) > 0 {
            let paused = scheduler.pause();
            scheduler.backend().resetting.store(true, Ordering::Relaxed);
            std::thread::yield_now();
            scheduler.backend().resetting.store(false, Ordering::Relaxed);
            drop(paused);
        }
        pushers.into_iter().map(|pusher| pusher.join().unwrap()).collect()
    });
    last.iter().for_each(wait);
    assert_eq!(scheduler.backend().ran.load(Ordering::Relaxed), 4 * JOBS);
    assert!(last.iter().all(|fence| fence.status() == Some(Ok(()))));
}
