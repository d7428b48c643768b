//! The scheduler under many threads, and against a naive model.

use std::{
    sync::{Arc, Barrier, Mutex, mpsc},
    thread,
};

use lapidary::{
    fence::{ArrayMode, Deadline, Fence, FenceError, Interrupt, Signaller, Timeline, wait_all},
    sched::{Armed, Backend, Queue, QueueConfig, Scheduler},
};
use proptest::prelude::*;

/// Notes which jobs ran, and completes them at once.
#[derive(Default)]
struct Recorder(Mutex<Vec<usize>>);

#[derive(Debug)]
struct Job {
    number: usize,
    /// What the job holds: counts the jobs that exist.
    _alive: Arc<()>,
}

impl Backend for Recorder {
    type Work = Job;

    fn run(&self, job: Job, done: Signaller) {
        self.0.lock().unwrap().push(job.number);
        drop(job);
        done.signal();
    }
}

fn pending() -> (Fence, Signaller) {
    Timeline::new("dependency").next()
}

fn wait(fences: &[Fence]) {
    wait_all(fences, Deadline::never(), &Interrupt::none()).unwrap();
}

fn assert_signalled_in_order(fences: &[Fence]) {
    for pair in fences.windows(2) {
        assert!(pair[1].is_later_than(&pair[0]));
        assert!(pair[0].timestamp().unwrap() <= pair[1].timestamp().unwrap());
    }
}

/// A container of two fences that signal soon, of the `n`th kind.
fn container(n: usize, (one, two): (Fence, Fence)) -> Fence {
    match n % 3 {
        0 => Fence::array(vec![one, two], ArrayMode::All),
        1 => Fence::array(vec![one, two], ArrayMode::Any),
        _ => Fence::chain(Some(Fence::chain(None, one, 1)), two, 2),
    }
}

#[test]
fn h23_jobs_behind_containers_that_signal_meanwhile_all_run() {
    const JOBS: usize = 3000;
    for inline in [true, false] {
        let scheduler = Scheduler::new("test", Arc::new(Recorder::default()), 2);
        let queue = scheduler.queue(QueueConfig { inline, max_pending: JOBS, ..QueueConfig::default() });
        let (to_signal, signallers) = mpsc::channel::<(Signaller, Signaller)>();
        let signals = thread::spawn(move || {
            for (one, two) in signallers {
                one.signal();
                two.fail(FenceError::Fault);
            }
        });

        let alive = Arc::new(());
        let push = |number| {
            let ((one, one_done), (two, two_done)) = (pending(), pending());
            to_signal.send((one_done, two_done)).unwrap();
            let job = Job { number, _alive: alive.clone() };
            queue.push(job, [container(number, (one, two))]).unwrap()
        };
        let fences: Vec<Fence> = (0..JOBS).map(push).collect();
        wait(&fences);
        drop(to_signal);
        signals.join().unwrap();
        assert_signalled_in_order(&fences);
        assert!(scheduler.backend().0.lock().unwrap().iter().copied().eq(0..JOBS));
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}

#[test]
fn h23_every_fence_signals_in_order_however_pushes_drops_and_kills_race() {
    for round in 0..150 {
        let scheduler = Scheduler::new("test", Arc::new(Recorder::default()), 2);
        let queue = scheduler.queue(QueueConfig { inline: round % 2 == 0, ..QueueConfig::default() });
        let (gate, open) = pending();
        let alive = Arc::new(());
        let start = Arc::new(Barrier::new(4));
        let pusher = |skip: usize| {
            let (queue, gate, alive, start) = (queue.clone(), gate.clone(), alive.clone(), start.clone());
            move || {
                start.wait();
                let mut fences = Vec::new();
                for number in 0..50 {
                    let Ok(armed) = queue.arm() else { break };
                    fences.push(armed.fence().clone());
                    let waits = if number == 10 { vec![gate.clone()] } else { vec![] };
                    match number % skip {
                        0 => drop(armed),
                        _ => drop(armed.push(Job { number, _alive: alive.clone() }, waits)),
                    }
                }
                fences
            }
        };
        let pushers = [thread::spawn(pusher(7)), thread::spawn(pusher(11))];
        let killer = {
            let (queue, start) = (queue.clone(), start.clone());
            thread::spawn(move || {
                start.wait();
                for _ in 0..round {
                    thread::yield_now();
                }
                queue.kill(FenceError::DeviceLost);
            })
        };
        start.wait();
        open.signal();

        let mut fences: Vec<Fence> = pushers.into_iter().flat_map(|pusher| pusher.join().unwrap()).collect();
        killer.join().unwrap();
        wait(&fences);
        fences.sort_by_key(Fence::seqno);
        assert_signalled_in_order(&fences);
        queue.catch_up();
        scheduler.shutdown();
        drop((queue, gate));
        assert_eq!(Arc::strong_count(&alive), 1, "a job was kept");
    }
}

/// Stops in the middle of each job until told to go on.
struct Stops {
    begun: mpsc::Sender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl Backend for Stops {
    type Work = ();

    fn run(&self, (): (), done: Signaller) {
        self.begun.send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
        done.signal();
    }
}

#[test]
fn catching_up_waits_for_jobs_that_another_thread_runs() {
    let ((begun, has_begun), (go, go_on)) = (mpsc::channel(), mpsc::channel());
    let backend = Stops { begun, go_on: Mutex::new(go_on) };
    let scheduler = Scheduler::new("test", Arc::new(backend), 1);
    let queue = scheduler.queue(QueueConfig::default());

    // Given a job that a worker is in the middle of, and one behind it that is ready
    let (gate, open) = pending();
    queue.push((), [gate]).unwrap();
    open.signal();
    has_begun.recv().unwrap();
    let ready = queue.push((), []).unwrap();
    assert!(!ready.is_signalled());

    // When the worker may go on, then catching up ends with both done
    go.send(()).unwrap();
    go.send(()).unwrap();
    queue.catch_up();
    assert!(ready.is_signalled());

    // And a job that waits for a fence is not waited for
    let (never, _signaller) = pending();
    let stalled = queue.push((), [never]).unwrap();
    queue.catch_up();
    assert!(!stalled.is_signalled());
}

#[test]
fn catching_up_to_a_job_waits_for_those_who_are_about_to_push_earlier_ones() {
    for round in 0..200 {
        let scheduler = Scheduler::new("test", Arc::new(Recorder::default()), 1);
        let queue = scheduler.queue(QueueConfig::default());
        let alive = Arc::new(());
        let job = |number| Job { number, _alive: alive.clone() };
        let (first, dropped) = (queue.arm().unwrap(), queue.arm().unwrap());
        let behind = queue.push(job(2), []).ok().unwrap();
        let later = queue.arm().unwrap();
        let waiter = {
            let (queue, behind) = (queue.clone(), behind.clone());
            thread::spawn(move || {
                queue.catch_up_to(&behind);
                behind.is_signalled()
            })
        };
        for _ in 0..round % 7 {
            thread::yield_now();
        }
        match round % 2 {
            0 => drop(first.push(job(0), [])),
            _ => drop(first),
        }
        drop(dropped);
        assert!(waiter.join().unwrap(), "it waits for no job after its own");
        queue.kill(FenceError::DeviceLost);
        queue.catch_up_to(later.fence());
    }
}

/// What the model knows of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Modelled {
    Armed,
    Waiting(Vec<usize>),
    Abandoned,
    Ended(Result<(), FenceError>),
}

#[derive(Debug, Clone)]
enum Step {
    Arm,
    Push(prop::sample::Index, Vec<usize>),
    Abandon(prop::sample::Index),
    Signal(usize),
    Kill,
}

const DEPENDENCIES: usize = 6;

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>();
    let waits = prop::collection::vec(0..DEPENDENCIES, 0..3);
    prop_oneof![
        6 => Just(Step::Arm),
        6 => (index.clone(), waits).prop_map(|(which, waits)| Step::Push(which, waits)),
        1 => index.prop_map(Step::Abandon),
        2 => (0..DEPENDENCIES).prop_map(Step::Signal),
        1 => Just(Step::Kill),
    ]
}

#[derive(Default)]
struct Model {
    jobs: Vec<Modelled>,
    signalled: [bool; DEPENDENCIES],
    killed: bool,
    ran: Vec<usize>,
}

impl Model {
    /// Ends the jobs whose turn has come.
    fn settle(&mut self) {
        for (number, job) in self.jobs.iter_mut().enumerate() {
            *job = match job {
                Modelled::Ended(_) => continue,
                _ if self.killed => Modelled::Ended(Err(FenceError::DeviceLost)),
                Modelled::Abandoned => Modelled::Ended(Err(FenceError::Cancelled)),
                Modelled::Waiting(waits) if waits.iter().all(|wait| self.signalled[*wait]) => {
                    self.ran.push(number);
                    Modelled::Ended(Ok(()))
                }
                Modelled::Armed | Modelled::Waiting(_) => return,
            };
        }
    }

    fn status(&self) -> Vec<Option<Result<(), FenceError>>> {
        let status = |job: &Modelled| if let Modelled::Ended(status) = job { Some(*status) } else { None };
        self.jobs.iter().map(status).collect()
    }
}

/// The queue, and what the test holds of it.
struct Real {
    queue: Queue<Recorder>,
    fences: Vec<Fence>,
    armed: Vec<(usize, Armed<Recorder>)>,
    dependencies: Vec<Fence>,
    signallers: Vec<Option<Signaller>>,
    alive: Arc<()>,
}

impl Real {
    fn take_armed(&mut self, which: prop::sample::Index) -> Option<(usize, Armed<Recorder>)> {
        let place = (!self.armed.is_empty()).then(|| which.index(self.armed.len()))?;
        Some(self.armed.swap_remove(place))
    }

    fn apply(&mut self, model: &mut Model, step: Step) {
        match step {
            Step::Arm => match self.queue.arm() {
                Ok(armed) => {
                    self.fences.push(armed.fence().clone());
                    self.armed.push((model.jobs.len(), armed));
                    model.jobs.push(Modelled::Armed);
                }
                Err(_) => assert!(model.killed),
            },
            Step::Push(which, waits) => {
                let Some((number, armed)) = self.take_armed(which) else { return };
                let job = Job { number, _alive: self.alive.clone() };
                armed.push(job, waits.iter().map(|wait| self.dependencies[*wait].clone()));
                if !model.killed {
                    model.jobs[number] = Modelled::Waiting(waits);
                }
            }
            Step::Abandon(which) => {
                let Some((number, armed)) = self.take_armed(which) else { return };
                drop(armed);
                if !model.killed {
                    model.jobs[number] = Modelled::Abandoned;
                }
            }
            Step::Signal(which) => {
                model.signalled[which] = true;
                drop(self.signallers[which].take());
            }
            Step::Kill => {
                model.killed = true;
                self.queue.kill(FenceError::DeviceLost);
            }
        }
    }
}

proptest! {
    #[test]
    fn behaves_like_a_list(steps in prop::collection::vec(step(), 1..60), inline in any::<bool>()) {
        let scheduler = Scheduler::new("test", Arc::new(Recorder::default()), 1);
        let queue = scheduler.queue(QueueConfig { inline, ..QueueConfig::default() });
        let (dependencies, signallers): (Vec<_>, Vec<_>) = (0..DEPENDENCIES).map(|_| pending()).unzip();
        let mut model = Model::default();
        let mut real = Real {
            queue,
            fences: Vec::new(),
            armed: Vec::new(),
            dependencies,
            signallers: signallers.into_iter().map(Some).collect(),
            alive: Arc::new(()),
        };
        for step in steps {
            real.apply(&mut model, step);
            model.settle();
            real.queue.catch_up();
            let status: Vec<_> = real.fences.iter().map(Fence::status).collect();
            prop_assert_eq!(status, model.status());
            prop_assert_eq!(&*scheduler.backend().0.lock().unwrap(), &model.ran);
            let waiting = model.jobs.iter().filter(|job| matches!(job, Modelled::Waiting(_))).count();
            prop_assert_eq!(Arc::strong_count(&real.alive), 1 + waiting);
        }
    }
}
