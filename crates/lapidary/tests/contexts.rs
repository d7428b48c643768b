//! Contexts: configured, then fixed at their first use. Rule H4, and H3 where it meets it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use lapidary::gem::{Handle, HandleTable};
use lapidary::gpuvm::{GpuVm, ObjectId, Steps, VmConfig, VmTypes};
use lapidary::reaper::Reaper;
use lapidary::resv::Reservation;
use lapidary::sched::{ProtoContext, ProtoError};

/// A driver whose address spaces say when they end.
struct Driver;

impl VmTypes for Driver {
    type Object = ();
    type Tag = ();
    type Space = Arc<AtomicUsize>;

    fn id((): &()) -> ObjectId {
        ObjectId(0)
    }

    fn teardown(ended: &Arc<AtomicUsize>) -> impl Steps<Self> {
        ended.fetch_add(1, Ordering::Relaxed);
    }
}

type Vm = GpuVm<Driver>;

/// What a program sets before the first use.
#[derive(Default)]
struct Parameters {
    vm: Option<Vm>,
    priority: usize,
}

/// What it uses.
struct Context {
    vm: Vm,
    priority: usize,
}

#[derive(Debug, PartialEq)]
enum Error {
    Proto(ProtoError),
    NoVm,
}

impl From<ProtoError> for Error {
    fn from(error: ProtoError) -> Self {
        Error::Proto(error)
    }
}

type Proto = ProtoContext<Parameters, Context>;

fn build(parameters: &Parameters) -> Result<Context, Error> {
    let vm = parameters.vm.clone().ok_or(Error::NoVm)?;
    Ok(Context { vm, priority: parameters.priority })
}

struct Fixture {
    reaper: Reaper,
    /// How many address spaces have ended.
    ended: Arc<AtomicUsize>,
}

impl Fixture {
    fn new() -> Self {
        Fixture { reaper: Reaper::new(), ended: Arc::default() }
    }

    fn vm(&self) -> Vm {
        GpuVm::new(VmConfig::bits(40), Reservation::new(), self.ended.clone(), &self.reaper)
    }

    fn ended(&self) -> usize {
        self.reaper.flush();
        self.ended.load(Ordering::Relaxed)
    }
}

fn with_vm(vm: &Vm) -> Proto {
    ProtoContext::new(Parameters { vm: Some(vm.clone()), ..Parameters::default() })
}

#[test]
fn h04_the_address_space_is_fixed_at_the_first_use() {
    let fixture = Fixture::new();
    let (first, second) = (fixture.vm(), fixture.vm());
    let proto = Proto::new(Parameters::default());
    // Given a proto-context whose address space is set, and set again
    proto.configure(|parameters| parameters.vm = Some(first.clone())).unwrap();
    proto.configure(|parameters| parameters.vm = Some(second.clone())).unwrap();
    assert!(proto.context().is_none());
    // When it is used
    let context = proto.fix(build).unwrap();
    // Then it has what was set last, for good
    assert!(context.vm.ptr_eq(&second));
    let refused = proto.configure(|parameters| parameters.vm = Some(first.clone()));
    assert_eq!(refused, Err(ProtoError::Fixed));
    let again = proto.fix(|_| -> Result<_, Error> { unreachable!("it is made once") }).unwrap();
    assert!(Arc::ptr_eq(&again, &context) && Arc::ptr_eq(&proto.context().unwrap(), &context));
    // And what was set and not used is not kept.
    drop(first);
    assert_eq!(fixture.ended(), 1);
}

#[test]
fn h04_of_racing_first_uses_one_makes_the_context_and_all_get_it() {
    const THREADS: usize = 4;
    let fixture = Fixture::new();
    let vm = fixture.vm();
    for _ in 0..300 {
        let (proto, made, start) = (with_vm(&vm), AtomicUsize::new(0), Barrier::new(THREADS));
        let use_it = || {
            start.wait();
            let context = proto.fix(|parameters| {
                made.fetch_add(1, Ordering::Relaxed);
                build(parameters)
            });
            context.unwrap()
        };
        let found: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(use_it)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(made.into_inner(), 1);
        assert!(found.iter().all(|context| Arc::ptr_eq(context, &found[0])));
    }
}

#[test]
fn h04_a_parameter_that_was_set_is_what_the_context_is_made_from() {
    let fixture = Fixture::new();
    let vm = fixture.vm();
    for _ in 0..300 {
        let (proto, start) = (with_vm(&vm), Barrier::new(2));
        let set = || {
            start.wait();
            // As long as it is allowed.
            let set =
                (1..10_000).take_while(|n| proto.configure(|parameters| parameters.priority = *n).is_ok());
            set.last().unwrap_or(0)
        };
        std::thread::scope(|scope| {
            let setter = scope.spawn(set);
            start.wait();
            let context = proto.fix(build).unwrap();
            assert_eq!(setter.join().unwrap(), context.priority);
        });
    }
}

#[test]
fn h04_a_context_that_cant_be_made_stays_a_proto_context() {
    let fixture = Fixture::new();
    let proto = Proto::new(Parameters { priority: 7, ..Parameters::default() });
    assert_eq!(proto.fix(build).map(drop), Err(Error::NoVm));
    let panics = || proto.fix(|_| -> Result<Context, Error> { panic!("this panic belongs to the test") });
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    assert!(proto.context().is_none());
    // What was set is still there, the rest can be mended.
    proto.configure(|parameters| parameters.vm = Some(fixture.vm())).unwrap();
    assert_eq!(proto.fix(build).unwrap().priority, 7);
}

#[test]
fn h04_one_that_is_closed_before_its_first_use_never_becomes_a_context() {
    let fixture = Fixture::new();
    let proto = with_vm(&fixture.vm());
    assert!(proto.close().is_none());
    // It lets go of what it was to have.
    assert_eq!(fixture.ended(), 1);
    assert_eq!(proto.fix(build).map(drop), Err(Error::Proto(ProtoError::Closed)));
    assert_eq!(proto.configure(|_| ()), Err(ProtoError::Closed));
    assert!(proto.close().is_none() && proto.context().is_none());
}

#[test]
fn h03_h04_whoever_closes_a_context_gets_what_a_racing_first_use_has_made() {
    let fixture = Fixture::new();
    let vm = fixture.vm();
    for _ in 0..500 {
        let (proto, start) = (with_vm(&vm), Barrier::new(2));
        std::thread::scope(|scope| {
            let user = scope.spawn(|| {
                start.wait();
                proto.fix(build)
            });
            start.wait();
            let closed = proto.close();
            match (user.join().unwrap(), closed) {
                (Ok(used), Some(closed)) => assert!(Arc::ptr_eq(&used, &closed)),
                (Err(error), None) => assert_eq!(error, Error::Proto(ProtoError::Closed)),
                (Ok(_), None) => panic!("a context came to be behind the back of who closed it"),
                (Err(error), Some(_)) => panic!("made, and not found: {error:?}"),
            }
        });
    }
}

#[test]
fn h03_a_look_up_by_handle_gets_a_context_or_nothing() {
    const ROUNDS: u32 = 500;
    let fixture = Fixture::new();
    let table = HandleTable::<Arc<Proto>>::new();
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let users: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while done.load(Ordering::Relaxed) == 0 {
                        let Some(found) = table.get(Handle(1)) else { continue };
                        match found.fix(build) {
                            // Its address space can be used, or was closed; it is not half gone.
                            Ok(context) => drop(context.vm.lock()),
                            Err(error) => assert_eq!(error, Error::Proto(ProtoError::Closed)),
                        }
                    }
                })
            })
            .collect();
        for _ in 0..ROUNDS {
            let handle = table.insert(Arc::new(with_vm(&fixture.vm()))).unwrap();
            std::thread::yield_now();
            let removed = table.remove(handle).unwrap();
            if let Some(context) = removed.close() {
                context.vm.close();
            }
        }
        done.store(1, Ordering::Relaxed);
        users.into_iter().for_each(|user| user.join().unwrap());
    });
    assert_eq!(fixture.ended(), ROUNDS as usize);
}

/// A parameter whose end has something to ask of the proto-context.
struct Curious(Arc<ProtoContext<Option<Curious>, ()>>, Arc<AtomicUsize>);

impl Drop for Curious {
    fn drop(&mut self) {
        assert_eq!(self.0.configure(|_| ()), Err(ProtoError::Fixed));
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn h04_parameters_that_have_served_are_dropped_outside_the_lock() {
    let proto = Arc::new(ProtoContext::new(None));
    let dropped = Arc::new(AtomicUsize::new(0));
    let curious = Curious(proto.clone(), dropped.clone());
    proto.configure(|parameters| *parameters = Some(curious)).unwrap();
    proto.fix(|_| Ok::<_, ProtoError>(())).unwrap();
    assert_eq!(dropped.load(Ordering::Relaxed), 1);
}
