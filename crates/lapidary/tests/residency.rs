//! Residency: over-commit, eviction, accounting.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lapidary::{
    exec::{Duplicates, Exec},
    fence::{FenceError, Interrupt, Signaller, Timeline},
    gem::{Advice, Graveyard, Object, ObjectConfig, ObjectData},
    reaper::Reaper,
    residency::{
        Account, Allocation, Companions, LruGroup, Manager, ManagerConfig, Move, Mover, PlaceConfig,
        Placement, RegionConfig, RegionId, RegionKind, Residence, ResidencyError,
    },
    resv::{Reservation, ResvGuard, Usage},
};

const SYSTEM: RegionId = RegionId::new(0).unwrap();
const VRAM: RegionId = RegionId::new(1).unwrap();
const MIB: u64 = 1 << 20;

#[derive(Default)]
struct Bo {
    /// Signalled when the driver is told that the object will move: work without end that is preempted.
    preempt: Mutex<Option<Signaller>>,
    /// Whether nobody needs it.
    unneeded: AtomicBool,
}

impl ObjectData for Bo {
    type Memory = Self;

    fn into_memory(self) -> Self {
        self
    }
}

/// Which object moved, from where, to where.
type Moved = (u64, Option<RegionId>, Option<RegionId>);

/// Remembers the moves.
#[derive(Default)]
struct Driver(Mutex<Vec<Moved>>);

impl Mover<Bo> for Driver {
    fn begin_move(&self, object: &Object<Bo>, _: &mut ResvGuard<'_>) {
        let preempt = object.data().preempt.lock().unwrap().take();
        if let Some(signaller) = preempt {
            signaller.signal();
        }
    }

    fn is_needed(&self, object: &Object<Bo>) -> bool {
        !object.data().unneeded.load(Ordering::Relaxed)
    }

    fn moved(&self, object: &Object<Bo>, guard: &mut ResvGuard<'_>, change: &Move) {
        assert!(guard.guards(object.resv()));
        assert!(change.from.is_none() || object.is_idle(Usage::Bookkeep), "moved while in use");
        let region = |memory: &Option<Arc<Allocation>>| memory.as_ref().map(|memory| memory.region().id());
        self.0.lock().unwrap().push((object.id(), region(&change.from), region(&change.to)));
    }
}

struct Device {
    manager: Manager<Bo>,
    driver: Arc<Driver>,
    graveyard: Graveyard,
}

impl Device {
    /// 8 MiB of device memory, 64 MiB of system memory.
    fn new() -> Self {
        Self::with_patience(Duration::from_secs(3600))
    }

    fn with_patience(patience: Duration) -> Self {
        let region = |id, kind, size| RegionConfig { id, kind, size, chunk: 1 << 16 };
        let regions =
            vec![region(SYSTEM, RegionKind::System, 64 * MIB), region(VRAM, RegionKind::Vram, 8 * MIB)];
        let graveyard = Graveyard::new(Reaper::new());
        let driver = Arc::new(Driver::default());
        let config = ManagerConfig { regions, evict_to: SYSTEM, patience };
        let manager = Manager::new(config, graveyard.clone(), driver.clone()).unwrap();
        Self { manager, driver, graveyard }
    }

    fn object(&self, size: u64, place: PlaceConfig, resv: Option<Reservation>) -> Object<Bo> {
        Object::new(&self.graveyard, ObjectConfig { size, resv, place }, Bo::default())
    }

    fn vram_only(&self, size: u64) -> Object<Bo> {
        let placements = vec![Placement::preferred(VRAM)];
        self.object(size, PlaceConfig { placements, ..PlaceConfig::default() }, None)
    }

    fn vram_or_system(&self, size: u64) -> Object<Bo> {
        let placements = vec![Placement::preferred(VRAM), Placement::fallback(SYSTEM)];
        self.object(size, PlaceConfig { placements, ..PlaceConfig::default() }, None)
    }

    fn populate(&self, object: &Object<Bo>) -> Result<(), ResidencyError> {
        self.manager.populate(object, &Interrupt::none())
    }

    fn used(&self, region: RegionId) -> u64 {
        self.manager.region(region).unwrap().used()
    }
}

fn region_of(object: &Object<Bo>) -> Option<RegionId> {
    object.allocation().map(|memory| memory.region().id())
}

fn make_busy(object: &Object<Bo>) -> Signaller {
    let (fence, done) = Timeline::new("gpu").next();
    let mut guard = object.resv().lock();
    guard.reserve(1).unwrap();
    guard.add_fence(fence, Usage::Bookkeep);
    done
}

#[test]
fn over_commit_evicts_what_was_used_longest_ago_and_brings_it_back_on_use() {
    let device = Device::new();
    let objects: Vec<_> = (0..4).map(|_| device.vram_only(2 * MIB)).collect();
    objects.iter().for_each(|object| device.populate(object).unwrap());
    assert_eq!(device.used(VRAM), 8 * MIB);

    // Given that the oldest was used again, the second oldest has to leave
    device.manager.touch(&objects[0]);
    let newcomer = device.vram_only(2 * MIB);
    device.populate(&newcomer).unwrap();
    assert!(objects[1].is_evicted() && !objects[0].is_evicted());
    assert_eq!((region_of(&objects[1]), device.used(SYSTEM)), (Some(SYSTEM), 2 * MIB));
    assert_eq!(device.driver.0.lock().unwrap()[4..5], [(objects[1].id(), Some(VRAM), Some(SYSTEM))]);

    // When it is used again, another leaves
    device.populate(&objects[1]).unwrap();
    assert_eq!(region_of(&objects[1]), Some(VRAM));
    assert!(objects[2].is_evicted());
    assert_eq!(device.manager.evictions(), (2, 4 * MIB));
}

#[test]
fn what_is_in_use_without_end_stays_and_the_search_for_memory_ends() {
    let device = Device::with_patience(Duration::from_millis(20));
    let objects = [6, 2].map(|size| device.vram_only(size * MIB));
    objects.iter().for_each(|object| device.populate(object).unwrap());
    let endless = make_busy(&objects[0]);

    // What is idle makes room, though it was used last
    device.populate(&device.vram_only(2 * MIB)).unwrap();
    assert!(objects[1].is_evicted() && !objects[0].is_evicted());

    // More room than that can't be had
    assert!(matches!(device.populate(&device.vram_only(4 * MIB)), Err(ResidencyError::NoSpace { .. })));
    assert_eq!(region_of(&objects[0]), Some(VRAM));
    device.populate(&device.vram_or_system(4 * MIB)).unwrap();

    endless.signal();
    device.populate(&device.vram_only(4 * MIB)).unwrap();
    assert!(objects[0].is_evicted());
}

#[test]
fn a_group_is_touched_as_one() {
    let device = Device::new();
    let group = LruGroup::new();
    let placements = vec![Placement::preferred(VRAM)];
    let place = PlaceConfig { placements, group: Some(group.clone()), ..PlaceConfig::default() };
    let grouped: Vec<_> = (0..2).map(|_| device.object(2 * MIB, place.clone(), None)).collect();
    let others: Vec<_> = (0..2).map(|_| device.vram_only(2 * MIB)).collect();
    grouped.iter().chain(&others).for_each(|object| device.populate(object).unwrap());

    device.manager.touch_group(&group);
    device.populate(&device.vram_only(4 * MIB)).unwrap();
    assert!(grouped.iter().all(|object| !object.is_evicted()));
    assert!(others.iter().all(|object| object.is_evicted()));
}

#[test]
fn an_object_with_a_fallback_stays_where_it_was_evicted_to_until_there_is_room() {
    let device = Device::new();
    let object = device.vram_or_system(6 * MIB);
    device.populate(&object).unwrap();
    let rival = device.vram_only(6 * MIB);
    device.populate(&rival).unwrap();
    assert!(object.is_evicted());

    // It evicts nobody to get back
    device.populate(&object).unwrap();
    assert!(!object.is_evicted());
    assert_eq!((region_of(&object), region_of(&rival)), (Some(SYSTEM), Some(VRAM)));
}

#[test]
fn what_one_exec_has_locked_is_not_evicted_for_the_rest_of_it() {
    let device = Device::new();
    let objects: Vec<_> = (0..2).map(|_| device.vram_only(6 * MIB)).collect();
    let fallback = device.vram_or_system(6 * MIB);
    let none = Interrupt::none();
    let outcome = Exec::run(Duplicates::Allow, &none, |exec| {
        for object in objects.iter().chain([&fallback]) {
            exec.lock(object.resv())?;
        }
        device.manager.validate(exec, &objects[0], &none)?;
        device.manager.validate(exec, &fallback, &none)?;
        device.manager.validate(exec, &objects[1], &none)
    });
    assert_eq!(outcome.err(), Some(ResidencyError::NoSpace { size: 6 * MIB }));
    assert_eq!((region_of(&objects[0]), region_of(&fallback)), (Some(VRAM), Some(SYSTEM)));
}

/// Two objects that share a reservation and don't fit into device memory together, the first evicted for the second.
fn companions(device: &Device, fallback: bool) -> (Reservation, [Object<Bo>; 2]) {
    let shared = Reservation::new();
    let objects = [fallback, false].map(|fallback| {
        let system = fallback.then_some(Placement::fallback(SYSTEM));
        let placements = [Placement::preferred(VRAM)].into_iter().chain(system).collect();
        device.object(6 * MIB, PlaceConfig { placements, ..PlaceConfig::default() }, Some(shared.clone()))
    });
    (shared, objects)
}

#[test]
fn what_an_operation_has_locked_goes_for_a_new_object_and_stays_for_the_rest_of_it() {
    let device = Device::new();
    let (shared, [old, new]) = companions(&device, false);
    device.populate(&old).unwrap();
    device.populate(&new).unwrap();
    assert!(old.is_evicted() && !new.is_evicted());

    let none = Interrupt::none();
    for companions in [Companions::Stay, Companions::MayMove] {
        let outcome = Exec::run(Duplicates::Allow, &none, |exec| {
            exec.lock(&shared)?;
            device.manager.validate_with(exec, &old, companions, &none)
        });
        assert_eq!(outcome.err(), Some(ResidencyError::NoSpace { size: 6 * MIB }));
    }
    let (exec, ()) = Exec::run(Duplicates::Allow, &none, |exec| {
        exec.lock(&shared)?;
        device.manager.validate_with(exec, &old, Companions::MayGo, &none)
    })
    .unwrap();
    assert!(exec.is_locked(&shared), "a companion's eviction takes no lock away");
    assert!(new.is_evicted() && !old.is_evicted());
    drop(exec);

    // What nobody needs goes in any case
    old.data().unneeded.store(true, Ordering::Relaxed);
    let outcome = Exec::run(Duplicates::Allow, &none, |exec| {
        exec.lock(&shared)?;
        device.manager.validate_with(exec, &new, Companions::MayMove, &none)
    });
    assert!(outcome.is_ok());
}

#[test]
fn what_may_live_elsewhere_makes_room_for_what_may_not() {
    let device = Device::new();
    let (shared, [flexible, bound]) = companions(&device, true);
    device.populate(&flexible).unwrap();
    assert_eq!(region_of(&flexible), Some(VRAM));
    let none = Interrupt::none();
    let outcome = Exec::run(Duplicates::Allow, &none, |exec| {
        exec.lock(&shared)?;
        // Whoever moves is looked at again
        for object in [&flexible, &bound, &flexible] {
            device.manager.validate_with(exec, object, Companions::MayMove, &none)?;
        }
        Ok::<_, ResidencyError>(())
    });
    assert!(outcome.is_ok());
    assert!(!flexible.is_evicted() && !bound.is_evicted());
    assert_eq!((region_of(&flexible), region_of(&bound)), (Some(SYSTEM), Some(VRAM)));
}

#[test]
fn a_busy_victim_is_waited_for_and_the_wait_can_be_interrupted() {
    let device = Device::new();
    let victim = device.vram_only(8 * MIB);
    device.populate(&victim).unwrap();
    let done = make_busy(&victim);
    let newcomer = device.vram_only(4 * MIB);

    let interrupt = Interrupt::new();
    interrupt.raise();
    let outcome = device.manager.populate(&newcomer, &interrupt);
    assert_eq!(outcome, Err(ResidencyError::Interrupted));
    assert_eq!((region_of(&victim), region_of(&newcomer), device.used(SYSTEM)), (Some(VRAM), None, 0));

    let gpu = std::thread::spawn(move || done.fail(FenceError::TimedOut));
    device.populate(&newcomer).unwrap();
    gpu.join().unwrap();
    assert!(victim.is_evicted());
}

#[test]
fn work_without_end_is_asked_to_stop_before_it_is_waited_for() {
    let device = Device::new();
    let victim = device.vram_only(8 * MIB);
    device.populate(&victim).unwrap();
    *victim.data().preempt.lock().unwrap() = Some(make_busy(&victim));
    device.populate(&device.vram_only(4 * MIB)).unwrap();
    assert!(victim.is_evicted());
}

#[test]
fn h22_memory_of_objects_that_died_busy_is_waited_for_before_giving_up() {
    let device = Device::new();
    let dying = device.vram_only(8 * MIB);
    device.populate(&dying).unwrap();
    let done = make_busy(&dying);
    drop(dying);
    assert_eq!(device.used(VRAM), 8 * MIB);

    let newcomer = device.vram_only(8 * MIB);
    let gpu = std::thread::spawn(move || done.signal());
    device.populate(&newcomer).unwrap();
    gpu.join().unwrap();
    assert_eq!(device.used(VRAM), 8 * MIB);
}

#[test]
fn h07_dropping_an_object_gives_back_memory_account_and_list_entry() {
    let device = Device::new();
    let account = Account::new();
    let placements = vec![Placement::preferred(VRAM)];
    let place = PlaceConfig { placements, account: Some(account.clone()), ..PlaceConfig::default() };
    let object = device.object(3 * MIB, place, None);
    device.populate(&object).unwrap();
    assert_eq!((account.resident(VRAM), device.manager.objects_in(VRAM)), (3 * MIB, 1));

    device.manager.evict_all(VRAM, &Interrupt::none()).unwrap();
    assert_eq!((account.resident(VRAM), account.resident(SYSTEM)), (0, 3 * MIB));
    assert_eq!((device.manager.objects_in(VRAM), device.manager.objects_in(SYSTEM)), (0, 1));

    drop(object);
    assert_eq!((account.total(), device.used(SYSTEM), device.manager.objects_in(SYSTEM)), (0, 0, 0));
}

#[test]
fn pinned_objects_stay() {
    let device = Device::new();
    let pinned = device.vram_only(8 * MIB);
    device.populate(&pinned).unwrap();
    pinned.place().pin();
    let size = 2 * MIB;
    assert_eq!(device.populate(&device.vram_only(size)), Err(ResidencyError::NoSpace { size }));
    pinned.place().unpin();
    assert_eq!(device.populate(&device.vram_only(size)), Ok(()));
}

#[test]
fn an_object_that_is_not_needed_loses_its_content_instead_of_moving() {
    let device = Device::new();
    let cache = device.vram_only(8 * MIB);
    device.populate(&cache).unwrap();
    assert!(cache.advise(&cache.resv().lock(), Advice::DontNeed));
    device.populate(&device.vram_only(8 * MIB)).unwrap();
    assert!(matches!(cache.residence(), Residence::Purged));
    assert_eq!(device.used(SYSTEM), 0);
    assert!(!cache.advise(&cache.resv().lock(), Advice::WillNeed));
    assert_eq!(device.populate(&cache), Err(ResidencyError::Purged));
}

#[test]
fn higher_priorities_leave_last() {
    let device = Device::new();
    let placements = vec![Placement::preferred(VRAM)];
    let place = PlaceConfig { placements, priority: 1, ..PlaceConfig::default() };
    let important = device.object(4 * MIB, place, None);
    device.populate(&important).unwrap();
    let usual = device.vram_only(4 * MIB);
    device.populate(&usual).unwrap();
    device.populate(&device.vram_only(4 * MIB)).unwrap();
    assert!(usual.is_evicted() && !important.is_evicted());
}

#[test]
fn migration_moves_only_where_the_object_may_live() {
    let device = Device::new();
    let object = device.vram_or_system(MIB);
    device.populate(&object).unwrap();
    let none = Interrupt::none();
    let migrate = |object: &Object<Bo>, to| {
        Exec::run(Duplicates::Allow, &none, |exec| {
            exec.lock(object.resv())?;
            device.manager.migrate(exec, object, to, &none)
        })
        .map(|_| ())
    };
    migrate(&object, SYSTEM).unwrap();
    assert_eq!((region_of(&object), object.is_evicted()), (Some(SYSTEM), false));
    let vram_only = device.vram_only(MIB);
    assert_eq!(migrate(&vram_only, SYSTEM), Err(ResidencyError::WrongRegion(SYSTEM)));
}

#[test]
fn many_threads_over_commit_one_region() {
    let device = Device::new();
    let device = &device;
    std::thread::scope(|scope| {
        for seed in 0..4u64 {
            scope.spawn(move || {
                let objects: Vec<_> = (0..6).map(|_| device.vram_only(MIB)).collect();
                let none = Interrupt::none();
                for round in 0..60 {
                    let first = &objects[((seed + round) % 6) as usize];
                    let second = &objects[((seed + round * 5 + 1) % 6) as usize];
                    let (mut exec, ()) = Exec::run(Duplicates::Allow, &none, |exec| {
                        exec.lock(first.resv())?;
                        exec.lock(second.resv())?;
                        device.manager.validate(exec, first, &none)?;
                        device.manager.validate(exec, second, &none)
                    })
                    .unwrap();
                    assert_eq!((region_of(first), region_of(second)), (Some(VRAM), Some(VRAM)));
                    let (fence, done) = Timeline::new("gpu").next();
                    let guard = exec.guard(first.resv()).unwrap();
                    guard.reserve(1).unwrap();
                    guard.add_fence(fence, Usage::Bookkeep);
                    drop(exec);
                    done.signal();
                }
            });
        }
    });
    device.graveyard.reaper().flush();
    assert_eq!((device.used(VRAM), device.used(SYSTEM)), (0, 0));
}
