//! Rules of the scheduler's jobs.

use std::sync::{Arc, Mutex};

use lapidary::{
    fence::{self, Deadline, Fence, FenceError, Interrupt, Signaller, Timeline},
    sched::{ArmError, Backend, PushError, Queue, QueueConfig, Scheduler},
};

/// Notes which jobs ran. Some complete at once, some are left in flight for the test to complete.
#[derive(Default)]
struct Engine {
    ran: Mutex<Vec<u32>>,
    in_flight: Mutex<Vec<Signaller>>,
}

#[derive(Debug)]
enum Work {
    Immediate(u32),
    Async(u32),
    Panic,
}

impl Backend for Engine {
    type Work = Work;

    fn run(&self, work: Work, done: Signaller) {
        match work {
            Work::Immediate(n) => {
                self.ran.lock().unwrap().push(n);
                done.signal();
            }
            Work::Async(n) => {
                self.ran.lock().unwrap().push(n);
                self.in_flight.lock().unwrap().push(done);
            }
            Work::Panic => panic!("this panic belongs to the test"),
        }
    }
}

fn scheduler() -> Scheduler<Engine> {
    Scheduler::new("test", Arc::new(Engine::default()), 2)
}

fn ran(scheduler: &Scheduler<Engine>) -> Vec<u32> {
    scheduler.backend().ran.lock().unwrap().clone()
}

fn wait(fence: &Fence) {
    fence.wait(Deadline::never(), &Interrupt::none()).unwrap();
}

fn pending() -> (Fence, Signaller) {
    Timeline::new("dependency").next()
}

#[test]
fn a_job_whose_dependencies_are_satisfied_has_run_when_push_returns() {
    let scheduler = scheduler();
    let queue = scheduler.queue(QueueConfig::default());
    let (dependency, done) = pending();
    done.signal();
    let fence = queue.push(Work::Immediate(1), [dependency, Fence::signalled()]).unwrap();
    assert!(fence.is_signalled());
    assert_eq!(ran(&scheduler), [1]);
}

#[test]
fn jobs_wait_for_all_dependencies_and_run_in_order() {
    let scheduler = scheduler();
    let queue = scheduler.queue(QueueConfig::default());
    let ((a, a_done), (b, b_done)) = (pending(), pending());
    queue.push(Work::Immediate(1), [a, b]).unwrap();
    let last = queue.push(Work::Immediate(2), []).unwrap();
    assert_eq!((ran(&scheduler), queue.pending()), (vec![], 2));

    b_done.signal();
    assert!(!last.is_signalled());
    a_done.signal();
    wait(&last);
    assert_eq!((ran(&scheduler), queue.is_idle()), (vec![1, 2], true));
}

#[test]
fn queues_do_not_wait_for_each_other() {
    let scheduler = scheduler();
    let (blocked, free) = (scheduler.queue(QueueConfig::default()), scheduler.queue(QueueConfig::default()));
    let (never, _signaller) = pending();
    blocked.push(Work::Immediate(1), [never]).unwrap();
    assert!(free.push(Work::Immediate(2), []).unwrap().is_signalled());
}

#[test]
fn a_failed_dependency_counts_as_satisfied() {
    let scheduler = scheduler();
    let queue = scheduler.queue(QueueConfig::default());
    let (dependency, done) = pending();
    let fence = queue.push(Work::Immediate(1), [dependency]).unwrap();
    done.fail(FenceError::Fault);
    wait(&fence);
    assert_eq!(fence.status(), Some(Ok(())));
}

#[test]
fn a_dependency_on_an_earlier_job_of_the_queue_is_satisfied_by_order() {
    let scheduler = scheduler();
    let queue = scheduler.queue(QueueConfig::default());
    let first = queue.push(Work::Async(1), []).unwrap();
    queue.push(Work::Async(2), [first]).unwrap();
    assert_eq!(ran(&scheduler), [1, 2]);
}

#[test]
fn only_so_many_jobs_may_wait() {
    let scheduler = scheduler();
    let queue = scheduler.queue(QueueConfig { max_pending: 2, ..QueueConfig::default() });
    let (dependency, done) = pending();
    queue.push(Work::Immediate(1), [dependency]).unwrap();
    let last = queue.push(Work::Immediate(2), []).unwrap();
    let refused = queue.push(Work::Immediate(3), []);
    assert!(matches!(refused, Err(PushError { error: ArmError::Full(2), work: Work::Immediate(3) })));

    done.signal();
    wait(&last);
    assert!(queue.push(Work::Immediate(4), []).is_ok());
}

#[test]
fn an_armed_job_holds_its_place() {
    let scheduler = scheduler();
    let queue = scheduler.queue(QueueConfig::default());
    let armed = queue.arm().unwrap();
    let later = queue.push(Work::Immediate(2), []).unwrap();
    assert!(!later.is_signalled());
    assert!(later.is_later_than(armed.fence()));

    armed.push(Work::Immediate(1), []);
    wait(&later);
    assert_eq!(ran(&scheduler), [1, 2]);
}

#[test]
fn h23_an_armed_job_that_is_dropped_fails_in_its_turn() {
    let scheduler = scheduler();
    let queue = scheduler.queue(QueueConfig::default());
    let first = queue.push(Work::Async(1), []).unwrap();
    let armed = queue.arm().unwrap();
    let dropped = armed.fence().clone();
    let last = queue.push(Work::Async(3), []).unwrap();
    drop(armed);
    // The one before it is still in flight
    assert!(!first.is_signalled() && !dropped.is_signalled());
    let in_flight: Vec<_> = std::mem::take(&mut *scheduler.backend().in_flight.lock().unwrap());
    in_flight.into_iter().for_each(Signaller::signal);
    wait(&last);
    assert_eq!((first.status(), dropped.status()), (Some(Ok(())), Some(Err(FenceError::Cancelled))));
}

#[test]
fn h23_a_kill_in_a_callback_fails_what_waits_after_a_dropped_job() {
    let scheduler = scheduler();
    let queue = scheduler.queue(QueueConfig::default());
    let running = queue.push(Work::Async(1), []).unwrap();
    drop(queue.arm().unwrap());
    let (never, _signaller) = pending();
    let dropped = queue.last_fence();
    let waiting = queue.push(Work::Async(3), [never]).unwrap();
    // Callbacks of what signals in a callback run after it: the dropped job's is still to come when the queue dies.
    let (hang, found) = pending();
    let in_flight = scheduler.backend().in_flight.lock().unwrap().pop().unwrap();
    let (earlier, later) = (dropped.clone(), waiting.clone());
    hang.on_signal(move |_| {
        in_flight.fail(FenceError::TimedOut);
        queue.kill(FenceError::TimedOut);
        let in_order = earlier.is_signalled() || !later.is_signalled();
        assert!(in_order, "a fence signals before an earlier one of its queue");
    });
    found.signal();
    assert_eq!(running.status(), Some(Err(FenceError::TimedOut)));
    assert_eq!(dropped.status(), Some(Err(FenceError::Cancelled)));
    assert_eq!(waiting.status(), Some(Err(FenceError::TimedOut)));
}

#[test]
fn h23_a_killed_queue_fails_what_waits_after_what_is_in_flight() {
    let scheduler = scheduler();
    let queue = scheduler.queue(QueueConfig::default());
    let (never, signaller) = pending();
    let running = queue.push(Work::Async(1), []).unwrap();
    let waiting = queue.push(Work::Async(2), [never]).unwrap();
    let armed = queue.arm().unwrap();
    let late = armed.fence().clone();

    queue.kill(FenceError::TimedOut);
    assert!(matches!(queue.arm(), Err(ArmError::Killed(FenceError::TimedOut))));
    armed.push(Work::Async(3), []);
    assert!(!waiting.is_signalled(), "a fence signals before an earlier one of its queue");

    let in_flight = scheduler.backend().in_flight.lock().unwrap().pop().unwrap();
    in_flight.fail(FenceError::TimedOut);
    for fence in [running, waiting, late] {
        assert_eq!(fence.status(), Some(Err(FenceError::TimedOut)));
    }
    signaller.signal();
    assert_eq!(ran(&scheduler), [1]);
}

#[test]
fn h23_a_backend_that_panics_fails_the_job_and_the_queue_goes_on() {
    let scheduler = scheduler();
    let queue = scheduler.queue(QueueConfig { inline: false, ..QueueConfig::default() });
    let failed = queue.push(Work::Panic, []).unwrap();
    let next = queue.push(Work::Immediate(1), []).unwrap();
    wait(&next);
    assert_eq!(failed.status(), Some(Err(FenceError::Cancelled)));
}

#[test]
fn h23_shutdown_leaves_no_fence_unsignalled() {
    let scheduler = scheduler();
    let queues: Vec<Queue<Engine>> = (0..3).map(|_| scheduler.queue(QueueConfig::default())).collect();
    let (never, _signaller) = pending();
    let fences: Vec<Fence> =
        queues.iter().map(|queue| queue.push(Work::Immediate(0), [never.clone()]).unwrap()).collect();
    scheduler.shutdown();
    for fence in fences {
        assert_eq!(fence.status(), Some(Err(FenceError::DeviceLost)));
    }
}

#[test]
fn h23_a_queue_made_after_the_shutdown_takes_no_job_that_nobody_would_run() {
    let scheduler = scheduler();
    scheduler.shutdown();
    let queue = scheduler.queue(QueueConfig { inline: false, ..QueueConfig::default() });
    let refused = queue.push(Work::Immediate(1), []);
    assert!(matches!(refused, Err(PushError { error: ArmError::Killed(FenceError::DeviceLost), .. })));
}

#[test]
fn h24_the_backend_runs_in_a_signalling_section() {
    struct Waits;
    impl Backend for Waits {
        type Work = Fence;
        fn run(&self, work: Fence, done: Signaller) {
            let wait = || work.wait(Deadline::never(), &Interrupt::none());
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(wait)).is_err();
            assert_eq!(caught, cfg!(debug_assertions) && !work.is_signalled());
            done.signal();
        }
    }
    if cfg!(debug_assertions) {
        let scheduler = Scheduler::new("test", Arc::new(Waits), 1);
        let (never, _signaller) = pending();
        let fence = scheduler.queue(QueueConfig::default()).push(never, []).unwrap();
        assert!(fence.is_signalled());
    }
}

#[test]
fn many_threads_and_queues_complete_in_order() {
    let scheduler = scheduler();
    let queues: Vec<_> = (0..4).map(|_| scheduler.queue(QueueConfig::default())).collect();
    let (start, go) = pending();
    let pushers: Vec<_> = queues
        .iter()
        .cloned()
        .map(|queue| {
            let start = start.clone();
            std::thread::spawn(move || {
                let mut previous = start;
                for n in 0..200 {
                    previous = queue.push(Work::Immediate(n), [previous]).unwrap();
                }
                previous
            })
        })
        .collect();
    go.signal();
    let last: Vec<Fence> = pushers.into_iter().map(|pusher| pusher.join().unwrap()).collect();
    fence::wait_all(&last, Deadline::never(), &Interrupt::none()).unwrap();
    assert_eq!(ran(&scheduler).len(), 800);
}
