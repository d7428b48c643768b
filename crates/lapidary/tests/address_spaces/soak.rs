//! Everything at once, with real threads: binds of every kind, look-ups, submissions, evictions, and the end of address
//! spaces, all on the same few. What must hold is looked at while it runs, and nothing may be left at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use lapidary::exec::{Duplicates, Exec, ExecError};
use lapidary::fence::{Interrupt, Signaller, Timeline};
use lapidary::gem::{Handle, HandleTable};
use lapidary::gpuvm::{
    GpuVm, MapRequest, MappingRef, ObjectId, Step, StepList, Steps, Va, VaRange, VmBoList, VmConfig, VmError,
    VmGuard, VmTypes,
};
use lapidary::reaper::Reaper;
use lapidary::resv::{Reservation, Usage};
use lapidary::sync::Mutex;

use crate::driver::range;

const SPACES: usize = 3;
const OBJECTS: usize = 12;
/// Pages that requests go to.
const PAGES: u64 = 512;
/// What each thread does at least. The others go on until those that submit have come across so many evicted objects.
const ROUNDS: usize = 12_000;
const BROUGHT_BACK: usize = 200;

struct Driver;

/// A buffer that can be evicted.
struct Buffer {
    reservation: Reservation,
    vm_bos: VmBoList<Driver>,
    /// Changed with the reservation held.
    resident: AtomicBool,
    /// How many jobs that use it have not ended.
    busy: AtomicUsize,
}

/// Page tables as a list of what should be reachable, kept by steps alone.
#[derive(Default)]
struct Tables {
    ranges: Mutex<Vec<VaRange>>,
    charged: AtomicUsize,
    ended: AtomicBool,
}

impl VmTypes for Driver {
    type Object = Arc<Buffer>;
    type Tag = u8;
    type Space = Arc<Tables>;

    fn id(object: &Arc<Buffer>) -> ObjectId {
        ObjectId(Arc::as_ptr(object) as usize)
    }

    fn reservation(object: &Arc<Buffer>) -> Option<&Reservation> {
        Some(&object.reservation)
    }

    fn vm_bos(object: &Arc<Buffer>) -> Option<&VmBoList<Self>> {
        Some(&object.vm_bos)
    }

    fn teardown(tables: &Arc<Tables>) -> impl Steps<Self> {
        assert!(!tables.ended.swap(true, Ordering::Relaxed), "it ends once");
        Writer(tables)
    }

    fn charge(tables: &Arc<Tables>, bytes: usize) -> bool {
        tables.charged.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    fn credit(tables: &Arc<Tables>, bytes: usize) {
        tables.charged.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Carries steps out.
struct Writer<'a>(&'a Tables);

impl Steps<Driver> for Writer<'_> {
    type Error = VmError;

    fn step(&mut self, step: Step<'_, Driver>) {
        let mut ranges = self.0.ranges.lock();
        let mut take = |range| {
            let at = ranges.iter().position(|mapped| *mapped == range).expect("what goes was there");
            ranges.swap_remove(at);
        };
        match step {
            Step::Map(mapping) => ranges.push(mapping.range),
            Step::Unmap { mapping, .. } => take(mapping.range),
            Step::Remap { unmap, prev, next, .. } => {
                take(unmap.range);
                ranges.extend(prev.iter().chain(&next).map(|end| end.range));
            }
            Step::Retag { from, to } => {
                take(from.range);
                let ends = [from.range.below(to.range), from.range.above(to.range)];
                ranges.extend(ends.into_iter().flatten().chain([to.range]));
            }
            Step::Prefetch { mapping, .. } => assert!(ranges.contains(&mapping.range)),
        }
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z >> 32) * n) >> 32
    }

    fn range(&mut self) -> VaRange {
        let longest = if self.below(8) == 0 { 200 } else { 12 };
        range(self.below(PAGES), 1 + self.below(longest))
    }
}

/// A job on the GPU: what it uses, and its fence's other half.
struct Job {
    uses: Vec<Arc<Buffer>>,
    done: Signaller,
}

struct World {
    reaper: Reaper,
    spaces: HandleTable<GpuVm<Driver>>,
    all_tables: Mutex<Vec<Arc<Tables>>>,
    shared: Vec<Arc<Buffer>>,
    jobs: Mutex<Vec<Job>>,
    timeline: Timeline,
    /// Threads that submit and have not come to their end.
    submitters: AtomicUsize,
    brought_back: AtomicUsize,
}

fn buffer(reservation: &Reservation) -> Arc<Buffer> {
    Arc::new(Buffer {
        reservation: reservation.clone(),
        vm_bos: VmBoList::new(),
        resident: AtomicBool::new(true),
        busy: AtomicUsize::new(0),
    })
}

impl World {
    fn new() -> World {
        let world = World {
            reaper: Reaper::new(),
            spaces: HandleTable::new(),
            all_tables: Mutex::default(),
            // Some have a reservation of their own, some share one.
            shared: {
                let common = Reservation::new();
                (0..OBJECTS)
                    .map(|i| if i % 3 == 0 { buffer(&common) } else { buffer(&Reservation::new()) })
                    .collect()
            },
            jobs: Mutex::default(),
            timeline: Timeline::new("gpu"),
            submitters: AtomicUsize::new(0),
            brought_back: AtomicUsize::new(0),
        };
        (0..SPACES).for_each(|_| world.add_space());
        world
    }

    fn add_space(&self) {
        let tables = Arc::new(Tables::default());
        self.all_tables.lock().push(tables.clone());
        let config = VmConfig { limit: 400, ..VmConfig::bits(40) };
        self.spaces.insert(GpuVm::new(config, Reservation::new(), tables, &self.reaper)).unwrap();
    }

    fn any_space(&self, random: &mut Random) -> Option<GpuVm<Driver>> {
        self.spaces.get(Handle(1 + random.below(SPACES as u64) as u32))
    }

    /// Runs `work` on an address space that may be closed by then.
    fn unless_closed(&self, work: impl FnOnce() -> Result<(), VmError>) {
        match work() {
            Ok(()) | Err(VmError::TooManyMappings { .. } | VmError::Closed) => {}
            Err(error) => panic!("{error}"),
        }
    }

    // ---- binds ----

    fn bind(&self, random: &mut Random) {
        let Some(vm) = self.any_space(random) else { return };
        self.unless_closed(|| {
            let object = match random.below(4) {
                0 => buffer(vm.reservation()),
                _ => self.shared[random.below(OBJECTS as u64) as usize].clone(),
            };
            let tie = vm.obtain(&object)?;
            let tables = vm.space().clone();
            let mut guard = vm.lock()?;
            let range = random.range();
            // A bind makes what it maps resident, with everything locked that it touches.
            let request = MapRequest::object(range, &tie, 0, random.below(3) as u8);
            let exec = self.lock_for(&guard, &request);
            let outcome = match random.below(8) {
                0 => guard.unmap(range, &mut Writer(&tables)),
                1 => guard.unmap_object(&tie, &mut Writer(&tables)),
                2 => guard.retag(range, |mapping| mapping.tag ^ 1, &mut Writer(&tables)),
                3 => guard.prefetch(range, &mut Writer(&tables)),
                4 | 5 => self.bind_batch(&mut guard, &tables, &request, random),
                6 => guard.map(&MapRequest::null(range, 0), &mut Writer(&tables)),
                _ => guard.map(&request, &mut Writer(&tables)),
            };
            drop(exec);
            self.check(&guard, &tables);
            outcome
        });
    }

    fn lock_for(&self, guard: &VmGuard<'_, Driver>, request: &MapRequest<'_, Driver>) -> Exec<'static> {
        let lock = |exec: &mut Exec| guard.locked().lock_map_in(exec, request, 1);
        let (exec, ()) = Exec::run(Duplicates::Allow, &Interrupt::none(), lock).unwrap();
        let object = request.vm_bo().unwrap().object();
        object.resident.store(true, Ordering::Relaxed);
        exec
    }

    fn bind_batch(
        &self,
        guard: &mut VmGuard<'_, Driver>,
        tables: &Tables,
        request: &MapRequest<'_, Driver>,
        random: &mut Random,
    ) -> Result<(), VmError> {
        let mut batch = guard.batch();
        batch.unmap(random.range())?;
        batch.map(request)?;
        batch.retag(random.range(), |_| 2)?;
        batch.prefetch(request.range)?;
        if random.below(2) == 0 {
            // Taken back.
            return Ok(());
        }
        let steps: StepList<Driver> = batch.commit();
        steps.iter().for_each(|step| Writer(tables).step(step));
        Ok(())
    }

    /// The page tables say what the book says, as long as nobody changes either.
    fn check(&self, guard: &VmGuard<'_, Driver>, tables: &Tables) {
        let read = guard.read();
        read.check().unwrap();
        let mut ranges = tables.ranges.lock().clone();
        ranges.sort_unstable_by_key(|range| range.start());
        assert!(read.iter().map(|mapping| mapping.range()).eq(ranges));
    }

    // ---- look-ups ----

    fn look_up(&self, random: &mut Random) {
        let Some(vm) = self.any_space(random) else { return };
        let probe = random.range();
        {
            let read = vm.read();
            let inside = |mapping: &MappingRef<'_, Driver>| mapping.range.overlaps(probe);
            assert!(read.range(probe).all(|mapping| inside(&mapping)));
            assert_eq!(read.find_first(probe).map(|found| found.get()), read.range(probe).next());
            assert_eq!(read.is_free(probe), read.find_first(probe).is_none());
            if let Some(free) = read.find_empty(probe.len(), 0x1000, range(0, 2 * PAGES)) {
                assert!(read.is_free(VaRange::new(free, probe.len()).unwrap()));
            }
            read.neighbours(Va::new(probe.start().raw()));
        }
        let object = &self.shared[random.below(OBJECTS as u64) as usize];
        if let Some(tie) = vm.find(object) {
            assert!(Arc::ptr_eq(tie.object(), object));
        }
        if random.below(50) == 0 {
            assert!(vm.dump().to_string().starts_with("address space"));
        }
    }

    // ---- submissions ----

    fn submit(&self, random: &mut Random) {
        let Some(vm) = self.any_space(random) else { return };
        self.unless_closed(|| {
            let shared = vm.lock_shared()?;
            let locked = shared.locked();
            let bring_back = |object: &Buffer| {
                if !object.resident.swap(true, Ordering::Relaxed) {
                    self.brought_back.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, ExecError>(())
            };
            let (mut exec, ()) = Exec::run(Duplicates::Allow, &Interrupt::none(), |exec| {
                locked.lock_in(exec, 1)?;
                locked.validate(|tie| bring_back(tie.object()))
            })
            .unwrap();
            // Everything mapped is there, and stays until the fence has signalled.
            let uses: Vec<_> = shared
                .read()
                .iter()
                .filter_map(|mapping| mapping.get().vm_bo().map(|tie| tie.object().clone()))
                .collect();
            for object in &uses {
                assert!(object.resident.load(Ordering::Relaxed), "a submission met what is not there");
                object.busy.fetch_add(1, Ordering::Relaxed);
            }
            let (fence, done) = self.timeline.next();
            // Onto the GPU before anybody can wait for it.
            self.jobs.lock().push(Job { uses, done });
            locked.add_fence(&mut exec, &fence, Usage::Bookkeep, Usage::Write);
            Ok(())
        });
    }

    /// What the GPU does.
    fn run_jobs(&self) {
        while self.submitters.load(Ordering::Acquire) > 0 || !self.jobs.lock().is_empty() {
            let jobs = std::mem::take(&mut *self.jobs.lock());
            for Job { uses, done } in jobs {
                for object in &uses {
                    assert!(object.resident.load(Ordering::Relaxed), "moved under a job's feet");
                    object.busy.fetch_sub(1, Ordering::Relaxed);
                }
                done.signal();
            }
            std::thread::yield_now();
        }
    }

    // ---- evictions ----

    fn evict(&self, random: &mut Random) {
        let object = &self.shared[random.below(OBJECTS as u64) as usize];
        let held = object.reservation.lock();
        if !held.is_idle(Usage::Bookkeep) {
            return;
        }
        assert_eq!(object.busy.load(Ordering::Relaxed), 0);
        object.vm_bos.evict_all();
        object.resident.store(false, Ordering::Relaxed);
    }

    // ---- ends ----

    fn end(&self, random: &mut Random) {
        if random.below(300) > 0 {
            return std::thread::yield_now();
        }
        let handle = Handle(1 + random.below(SPACES as u64) as u32);
        let Some(vm) = self.spaces.remove(handle) else { return };
        if random.below(2) == 0 {
            vm.close();
            assert!(vm.read().is_empty());
        }
        drop(vm);
        // The lowest free number: the one that was just given back.
        self.add_space();
    }
}

#[test]
fn a_few_address_spaces_under_everything_at_once() {
    let world = World::new();
    world.submitters.store(2, Ordering::Release);
    std::thread::scope(|scope| {
        let world = &world;
        let submit = |seed| {
            let mut random = Random(seed);
            let mut round = 0;
            while round < ROUNDS || world.brought_back.load(Ordering::Relaxed) < BROUGHT_BACK {
                world.submit(&mut random);
                round += 1;
            }
            world.submitters.fetch_sub(1, Ordering::Release);
        };
        let meanwhile = |seed, work: fn(&World, &mut Random)| {
            let mut random = Random(seed);
            let mut round = 0;
            while round < ROUNDS || world.submitters.load(Ordering::Acquire) > 0 {
                work(world, &mut random);
                round += 1;
            }
        };
        scope.spawn(move || submit(0));
        scope.spawn(move || submit(1));
        scope.spawn(move || meanwhile(2, World::bind));
        scope.spawn(move || meanwhile(3, World::bind));
        scope.spawn(move || meanwhile(4, World::look_up));
        scope.spawn(move || meanwhile(5, World::evict));
        scope.spawn(move || meanwhile(6, World::end));
        scope.spawn(|| world.run_jobs());
    });
    // Nothing is left when the last handles go.
    drop(world.spaces.take_all());
    world.reaper.flush();
    for tables in world.all_tables.lock().iter() {
        assert!(tables.ended.load(Ordering::Relaxed) && tables.ranges.lock().is_empty());
        assert_eq!(tables.charged.load(Ordering::Relaxed), 0);
    }
    for object in &world.shared {
        assert_eq!((Arc::strong_count(object), object.busy.load(Ordering::Relaxed)), (1, 0));
        assert!(object.vm_bos.snapshot().is_empty());
    }
}
