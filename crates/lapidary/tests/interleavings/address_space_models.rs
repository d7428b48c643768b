//! Address spaces: binds, look-ups and the device's walks, submissions and eviction, the end.
//!
//! The [`Tables`] of a space are an entry per page, and a cache of them that the device goes by: memory that is freed while
//! the device can still reach it is a failure.

use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

use shuttle::thread;

use crate::{
    Counter, check,
    exec::{Duplicates, Exec},
    fence,
    fence::{Deadline, Interrupt},
    gpuvm::{
        BackingRef, GpuVm, MapRequest, MappingRef, ObjectId, Step, Steps, Va, VaRange, VmBo, VmBoList,
        VmConfig, VmError, VmTypes,
    },
    reaper::Reaper,
    resv::{Reservation, Usage},
    sync::{Arc, Mutex, atomic::AtomicUsize},
};

const PAGE: u64 = 0x1000;
const PAGES: usize = 6;
const OBJECTS: usize = 5;

/// What each page shows: 0 is nothing, else see [`entry`].
type State = [usize; PAGES];

/// An object's number and a page in it.
fn entry(object: usize, page: usize) -> usize {
    1 + object * PAGES + page
}

fn object_of(entry: usize) -> usize {
    (entry - 1) / PAGES
}

fn range(first: usize, end: usize) -> VaRange {
    VaRange::new(Va::new(first as u64 * PAGE), (end - first) as u64 * PAGE).unwrap()
}

fn pages(range: VaRange) -> std::ops::Range<usize> {
    (range.start().raw() / PAGE) as usize..(range.end().raw() / PAGE) as usize
}

/// Puts what `mapping` shows into `put`, page by page.
fn each_page(mapping: &MappingRef<'_, Driver>, mut put: impl FnMut(usize, usize)) {
    let BackingRef::Object { vm_bo, offset } = mapping.backing else { panic!("nothing else is mapped") };
    for (nth, page) in pages(mapping.range).enumerate() {
        put(page, entry(vm_bo.object().number, (offset / PAGE) as usize + nth));
    }
}

struct Driver;

impl VmTypes for Driver {
    type Object = Arc<Buffer>;
    type Tag = ();
    type Space = Arc<Tables>;

    fn id(object: &Arc<Buffer>) -> ObjectId {
        ObjectId(Arc::as_ptr(object) as usize)
    }

    fn reservation(object: &Arc<Buffer>) -> Option<&Reservation> {
        Some(&object.reservation)
    }

    fn vm_bos(object: &Arc<Buffer>) -> Option<&VmBoList<Driver>> {
        Some(&object.vm_bos)
    }

    fn teardown(tables: &Arc<Tables>) -> impl Steps<Driver> {
        tables.teardowns.add();
        Writer { tables, vm: None }
    }

    fn charge(tables: &Arc<Tables>, bytes: usize) -> bool {
        tables.charged.fetch_add(bytes as isize, Ordering::SeqCst);
        true
    }

    fn credit(tables: &Arc<Tables>, bytes: usize) {
        tables.charged.fetch_sub(bytes as isize, Ordering::SeqCst);
    }
}

struct Buffer {
    number: usize,
    reservation: Reservation,
    vm_bos: VmBoList<Driver>,
    /// Whether its memory is where the device can use it. Under the reservation.
    resident: AtomicBool,
    tables: Arc<Tables>,
}

impl Buffer {
    fn is_resident(&self) -> bool {
        self.resident.load(Ordering::SeqCst)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.tables.freed[self.number].store(true, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Tables {
    entries: [AtomicUsize; PAGES],
    /// What the device has looked up.
    cache: Mutex<State>,
    /// By the objects' numbers.
    freed: [AtomicBool; OBJECTS],
    teardowns: Counter,
    charged: AtomicIsize,
}

impl Tables {
    fn buffer(self: &Arc<Self>, number: usize, reservation: &Reservation) -> Arc<Buffer> {
        Arc::new(Buffer {
            number,
            reservation: reservation.clone(),
            vm_bos: VmBoList::new(),
            resident: AtomicBool::new(true),
            tables: self.clone(),
        })
    }

    fn state(&self) -> State {
        std::array::from_fn(|page| self.entries[page].load(Ordering::Acquire))
    }

    fn is_freed(&self, number: usize) -> bool {
        self.freed[number].load(Ordering::SeqCst)
    }

    /// The device uses a page.
    fn access(&self, page: usize) {
        let mut cache = self.cache.lock();
        if cache[page] == 0 {
            cache[page] = self.entries[page].load(Ordering::Acquire);
        }
        if cache[page] != 0 {
            assert!(!self.is_freed(object_of(cache[page])), "the device reaches what is freed");
        }
    }
}

/// Writes page-table entries.
struct Writer<'a> {
    tables: &'a Tables,
    /// For changes at once: whose book has the old state until the steps are done.
    vm: Option<&'a GpuVm<Driver>>,
}

impl Steps<Driver> for Writer<'_> {
    type Error = VmError;

    fn step(&mut self, step: Step<'_, Driver>) {
        match step {
            Step::Map(mapping) => {
                each_page(&mapping, |page, entry| self.tables.entries[page].store(entry, Ordering::Release))
            }
            Step::Unmap { mapping, .. } | Step::Remap { unmap: mapping, .. } => {
                if let Some(vm) = self.vm {
                    assert_eq!(vm.read().find(mapping.range), Some(mapping));
                }
                if !step.keep() {
                    pages(step.affected())
                        .for_each(|page| self.tables.entries[page].store(0, Ordering::Release));
                }
            }
            Step::Retag { .. } | Step::Prefetch { .. } => panic!("nobody asked for it"),
        }
    }

    fn flush(&mut self) {
        *self.tables.cache.lock() = State::default();
    }
}

/// What is on record at one moment.
fn look(vm: &GpuVm<Driver>) -> State {
    let mut state = State::default();
    let read = vm.read();
    assert_eq!(read.check(), Ok(()));
    for mapping in read.iter() {
        each_page(&mapping.get(), |page, entry| state[page] = entry);
    }
    state
}

fn space(reaper: &Reaper) -> (GpuVm<Driver>, Arc<Tables>) {
    let tables = Arc::new(Tables::default());
    (GpuVm::new(VmConfig::bits(20), Reservation::new(), tables.clone(), reaper), tables)
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// A request is one or more of these.
#[derive(Clone, Copy)]
enum Op {
    /// The first page, the one behind the last, the object by its number. It is new unless it is [`SHARED`].
    Map(usize, usize, usize),
    Unmap(usize, usize),
    /// Unmaps all of [`SHARED`].
    UnmapShared,
}

use Op::{Map, Unmap, UnmapShared};

/// The object that requests of all threads map.
const SHARED: usize = 0;

impl Op {
    fn apply(self, state: &mut State) {
        match self {
            Map(first, end, object) => {
                (first..end).for_each(|page| state[page] = entry(object, page - first))
            }
            Unmap(first, end) => state[first..end].fill(0),
            UnmapShared => state
                .iter_mut()
                .filter(|entry| **entry != 0 && object_of(**entry) == SHARED)
                .for_each(|entry| *entry = 0),
        }
    }
}

enum Request {
    AtOnce(Op),
    Committed(&'static [Op]),
    Dropped(&'static [Op]),
}

use Request::{AtOnce, Committed, Dropped};

impl Request {
    fn ops(&self) -> &[Op] {
        match self {
            AtOnce(op) => std::slice::from_ref(op),
            Committed(ops) | Dropped(ops) => ops,
        }
    }

    /// Adds the states that the book goes through to `states`. Those in the midst of a batch can be seen.
    fn follow(&self, states: &mut Vec<State>) {
        let before = *states.last().unwrap();
        for op in self.ops() {
            let mut state = *states.last().unwrap();
            op.apply(&mut state);
            states.push(state);
        }
        if let Dropped(_) = self {
            states.push(before);
        }
    }

    fn carry_out(&self, vm: &GpuVm<Driver>, shared: &Arc<Buffer>) {
        let tables = vm.space();
        let ties: Vec<_> = self
            .ops()
            .iter()
            .map(|op| match *op {
                Map(_, _, number) if number != SHARED => {
                    vm.obtain(&tables.buffer(number, &shared.reservation)).unwrap()
                }
                _ => vm.obtain(shared).unwrap(),
            })
            .collect();
        let mut guard = vm.lock().unwrap();
        if let AtOnce(op) = self {
            let mut writer = Writer { tables, vm: Some(vm) };
            match *op {
                Map(first, end, _) => {
                    guard.map(&MapRequest::object(range(first, end), &ties[0], 0, ()), &mut writer)
                }
                Unmap(first, end) => guard.unmap(range(first, end), &mut writer),
                UnmapShared => guard.unmap_object(&ties[0], &mut writer),
            }
            .unwrap();
            return;
        }
        let mut batch = guard.batch();
        for (op, tie) in self.ops().iter().zip(&ties) {
            match *op {
                Map(first, end, _) => batch.map(&MapRequest::object(range(first, end), tie, 0, ())),
                Unmap(first, end) => batch.unmap(range(first, end)),
                UnmapShared => batch.unmap_object(tie),
            }
            .unwrap();
        }
        if let Dropped(_) = self {
            return;
        }
        let steps = batch.commit();
        let mut writer = Writer { tables, vm: None };
        steps.iter().for_each(|step| writer.step(step));
        // Others can change the space from here on, but not what is in this list.
        drop(guard);
        drop(ties);
        writer.flush();
        drop(steps);
    }
}

static REQUESTS: [&[Request]; 2] = [
    &[
        AtOnce(Map(0, 3, 1)),
        AtOnce(Map(0, 4, 4)),
        AtOnce(UnmapShared),
        Committed(&[Map(2, 4, SHARED), Unmap(3, 4)]),
    ],
    &[
        Committed(&[Map(1, 5, 2), Map(4, 6, SHARED)]),
        Dropped(&[UnmapShared, Map(0, 2, 3)]),
        AtOnce(Unmap(0, 5)),
    ],
];

/// The states that the book goes through, for each order of the requests of two threads.
fn orders(requests: [&[Request]; 2], states: Vec<State>, all: &mut Vec<Vec<State>>) {
    let mut ended = true;
    for thread in 0..2 {
        if let [next, rest @ ..] = requests[thread] {
            ended = false;
            let (mut requests, mut states) = (requests, states.clone());
            requests[thread] = rest;
            next.follow(&mut states);
            orders(requests, states, all);
        }
    }
    if ended {
        all.push(states);
    }
}

/// Whether the states pass what was seen, in that order, and end as it ended.
fn explains(states: &[State], seen: &[State], end: State) -> bool {
    let mut rest = states.iter().peekable();
    let passed = seen.iter().all(|seen| {
        while rest.next_if(|state| *state != seen).is_some() {}
        rest.peek().is_some()
    });
    passed && states.last() == Some(&end)
}

/// Two threads map and unmap at once and in batches, one of which is taken back; a third looks and the device walks: what is
/// seen, one look after the other, is what one order of the requests gives. Book and page tables agree in the end, what is
/// mapped no longer is freed, and never while the device can reach it.
#[test]
fn binds_and_looks_have_an_order() {
    let mut all = Vec::new();
    orders(REQUESTS, vec![State::default()], &mut all);
    assert_eq!(all.len(), 35);
    check(400, move || {
        let reaper = Reaper::new();
        let (vm, tables) = space(&reaper);
        let shared = tables.buffer(SHARED, &Reservation::new());
        let binds = [0, 1].map(|thread| {
            let (vm, shared) = (vm.clone(), shared.clone());
            thread::spawn(move || {
                REQUESTS[thread].iter().for_each(|request| request.carry_out(&vm, &shared));
            })
        });
        let looks = thread::spawn({
            let (vm, tables) = (vm.clone(), tables.clone());
            move || {
                [1, 3, 5, 0, 2].map(|page| {
                    // What it used once it may go on to use.
                    tables.access(page);
                    tables.access(1);
                    look(&vm)
                })
            }
        });
        join(binds);
        let seen = looks.join().unwrap();
        let end = look(&vm);
        assert!(all.iter().any(|states| explains(states, &seen, end)), "{seen:?} and then {end:?}");
        assert_eq!(tables.state(), end);
        for number in SHARED + 1..OBJECTS {
            let mapped = end.iter().any(|entry| *entry != 0 && object_of(*entry) == number);
            assert_ne!(tables.is_freed(number), mapped, "object {number}");
        }
    });
}

/// Has the submission bring back what was evicted, and answers what it runs on. Its fence is in place.
fn submit(vm: &GpuVm<Driver>, done: &fence::Fence) -> Vec<Arc<Buffer>> {
    let guard = vm.lock_shared().unwrap();
    let locked = guard.locked();
    let mut exec = locked.lock_all(1, &Interrupt::none()).unwrap();
    let brought_back = locked.validate(|vm_bo| {
        // What a bind is still to map may be met too. Nobody has locked it.
        if guard.read().mappings_of(vm_bo).next().is_some() {
            assert!(exec.is_locked(&vm_bo.object().reservation));
            vm_bo.object().resident.store(true, Ordering::SeqCst);
        }
        Ok::<_, VmError>(())
    });
    assert_eq!(brought_back, Ok(()));
    let mut objects = Vec::new();
    for mapping in guard.read().iter() {
        let vm_bo = mapping.get().vm_bo().unwrap();
        assert!(!vm_bo.is_evicted() && vm_bo.object().is_resident(), "object {}", vm_bo.object().number);
        objects.push(vm_bo.object().clone());
    }
    locked.add_fence(&mut exec, done, Usage::Bookkeep, Usage::Write);
    objects
}

/// Takes an object's memory once the device is done with it.
fn evict(object: &Buffer) {
    let _guard = object.reservation.lock();
    object.reservation.wait(Usage::Bookkeep, Deadline::never(), &Interrupt::none()).unwrap();
    object.resident.store(false, Ordering::SeqCst);
    object.vm_bos.evict_all();
}

/// Maps an object with the reservations locked of all that this touches. If its memory is elsewhere, so it is noted.
fn bind(vm: &GpuVm<Driver>, at: VaRange, object: &Arc<Buffer>) {
    let vm_bo = vm.obtain(object).unwrap();
    let request = MapRequest::object(at, &vm_bo, 0, ());
    let mut guard = vm.lock().unwrap();
    let (exec, ()) = Exec::run(Duplicates::Allow, &Interrupt::none(), |exec| {
        guard.locked().lock_map_in(exec, &request, 0)
    })
    .unwrap();
    guard.map(&request, &mut Writer { tables: vm.space(), vm: Some(vm) }).unwrap();
    if !object.is_resident() {
        vm_bo.evict();
    }
    drop(exec);
}

/// A local and an external object are mapped, and evicted; a third that has no memory, and the second anew, are bound; and
/// submissions come between: each has what is mapped brought back, and it stays until the submission is done.
#[test]
fn a_submission_has_what_is_mapped_until_it_is_done() {
    check(300, || {
        let reaper = Reaper::new();
        let (vm, tables) = space(&reaper);
        let local = tables.buffer(0, vm.reservation());
        let external = [1, 2].map(|number| tables.buffer(number, &Reservation::new()));
        bind(&vm, range(0, 2), &local);
        bind(&vm, range(2, 4), &external[0]);
        external[1].resident.store(false, Ordering::SeqCst);

        let submissions = thread::spawn({
            let vm = vm.clone();
            move || {
                for _ in 0..2 {
                    let (done, signaller) = fence();
                    let objects = submit(&vm, &done);
                    thread::yield_now();
                    assert!(objects.iter().all(|object| object.is_resident()), "taken from the device");
                    signaller.signal();
                }
            }
        });
        let evictions = thread::spawn({
            let objects = [external[0].clone(), local.clone(), external[1].clone()];
            move || objects.iter().for_each(|object| evict(object))
        });
        let binds = thread::spawn({
            let (vm, external) = (vm.clone(), external.clone());
            move || {
                bind(&vm, range(1, 3), &external[1]);
                bind(&vm, range(4, 6), &external[0]);
            }
        });
        join([submissions, evictions, binds]);
        let (done, signaller) = fence();
        assert_eq!(submit(&vm, &done).len(), 4);
        signaller.signal();
        assert!(!vm.lock_shared().unwrap().locked().needs_validation());
        vm.close();
    });
}

/// While one thread binds, one looks and the device walks, and one drops a tie, the space ends: closed by a fourth, or with
/// the last of its handles, whosever that is.
fn an_end(closes: bool) {
    let reaper = Reaper::new();
    let (vm, tables) = space(&reaper);
    // Objects go with the space: nobody else has them.
    let tie = vm.obtain(&tables.buffer(1, &Reservation::new())).unwrap();
    let loose = vm.obtain(&tables.buffer(2, &Reservation::new())).unwrap();
    let map = |vm: &GpuVm<Driver>, at: VaRange, vm_bo: &VmBo<Driver>| -> Result<(), VmError> {
        let mut writer = Writer { tables: vm.space(), vm: Some(vm) };
        vm.lock()?.map(&MapRequest::object(at, vm_bo, 0, ()), &mut writer)
    };
    map(&vm, range(0, 2), &tie).unwrap();

    let binds = thread::spawn({
        let vm = vm.clone();
        move || {
            for number in [3, 4] {
                let bound = vm
                    .obtain(&vm.space().buffer(number, vm.reservation()))
                    .and_then(|tie| map(&vm, range(number - 2, number), &tie));
                assert!(bound == Ok(()) || closes && bound == Err(VmError::Closed), "{bound:?}");
            }
        }
    });
    let looks = thread::spawn({
        let (vm, tables) = (vm.clone(), tables.clone());
        move || {
            for page in [0, 2, 0, 3, 0] {
                tables.access(page);
                let first = look(&vm)[0];
                assert!(first == entry(1, 0) || closes && first == 0);
            }
        }
    });
    let ties = thread::spawn(move || drop([loose, tie]));
    let mut threads = vec![binds, looks, ties];
    if closes {
        threads.push(thread::spawn({
            let (vm, tables) = (vm.clone(), tables.clone());
            move || {
                vm.close();
                assert_eq!(vm.lock().err(), Some(VmError::Closed));
                assert_eq!(vm.lock_shared().err(), Some(VmError::Closed));
                assert_eq!((look(&vm), tables.state()), Default::default());
                let late = tables.buffer(0, vm.reservation());
                assert_eq!(vm.obtain(&late).err(), Some(VmError::Closed));
            }
        }));
    }
    drop(vm);
    join(threads);
    reaper.shutdown();
    assert_eq!(tables.teardowns.get(), 1);
    assert_eq!((tables.state(), *tables.cache.lock()), Default::default());
    assert_eq!(tables.charged.load(Ordering::SeqCst), 0);
    assert!((1..OBJECTS).all(|number| tables.is_freed(number)), "an object is kept");
    assert_eq!(Arc::strong_count(&tables), 1, "the space is kept");
}

/// An address space is closed amid binds, look-ups and a tie that goes: it comes down once, its objects are let go of, and who
/// comes later is told.
#[test]
fn a_closed_space_comes_down_once() {
    check(300, || an_end(true));
}

/// Nobody closes: the reaper does, when the last handle is gone, be it the one that a tie had for a moment.
#[test]
fn a_space_without_handles_comes_down_once() {
    check(300, || an_end(false));
}
