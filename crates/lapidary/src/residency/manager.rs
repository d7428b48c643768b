//! The manager: gives objects memory and takes it away from others.
//!
//! ```text
//!   validate(object):                                   evict(victim):
//!     already where it may be?  done                      lock its reservation (wound/wait, same Exec)
//!     for each preferred region: allocate                 mover.begin_move: ask users to stop
//!     for each preferred region, until it is full for     wait for its fences
//!       good: sweep the graveyard, evict the victim       allocate system memory
//!       used longest ago, allocate                        residence := Evicted
//!     for each fallback region: allocate                  mover.moved: page tables, TLB, importers
//!     for each preferred region: evict companions         old memory is free
//!     move there as a victim moves
//! ```
//!
//! Victims come in the order of their last use: first those that are idle and can be locked at once, then, with waiting, the
//! others. Those that are still in use when the manager's patience ends are left where they are. What the operation itself has
//! locked comes last, as far as the caller allows it ([`Companions`]).
//! A victim locked by an older operation makes the whole operation start over, which [`Exec::run`] does. What was evicted
//! before that stays evicted.

use std::{fmt, time::Duration};

use crate::{
    exec::{Exec, ExecError},
    fence::{Deadline, Interrupt, WaitError},
    gem::{Advice, Graveyard, Object, ObjectData},
    resv::{ResvGuard, Usage},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Allocation, BuddyError, LruGroup, Region, RegionConfig, RegionError, RegionId, Residence, Role,
    lru::{Key, Lru},
};

/// The driver's part of a move.
pub trait Mover<D: ObjectData>: Send + Sync {
    /// The object's memory is about to change. Makes those stop that would not by themselves: starts the preemption
    /// of work without end, so that its fences on the reservation signal. Must not block.
    fn begin_move(&self, object: &Object<D>, guard: &mut ResvGuard<'_>) {
        let _ = (object, guard);
    }

    /// Whether somebody may need the object's memory, as far as the driver knows: what nobody needs makes room for what an
    /// operation needs even if that has both locked.
    fn is_needed(&self, object: &Object<D>) -> bool {
        let _ = object;
        true
    }

    /// The object's memory has changed and is idle. Makes page tables and translation caches forget the old addresses
    /// before returning (the old memory is another's afterwards), makes the bytes appear at the new ones, marks
    /// mappings for being bound again, tells importers. The residence is the new one already.
    fn moved(&self, object: &Object<D>, guard: &mut ResvGuard<'_>, change: &Move);
}

/// How an object's memory changes.
#[derive(Debug, Clone)]
pub struct Move {
    /// What it leaves; nothing on its first allocation.
    pub from: Option<Arc<Allocation>>,
    /// Where it is now; nothing if its content was given up.
    pub to: Option<Arc<Allocation>>,
}

/// How a manager is made.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// The device's regions.
    pub regions: Vec<RegionConfig>,
    /// Where evicted objects go.
    pub evict_to: RegionId,
    /// How long a search for memory waits for objects that are in use before it does without them: longer than work that
    /// ends takes. Work without end, of one client, must not stop the others for ever.
    pub patience: Duration,
}

/// What becomes of the objects whose reservations an operation has locked already, when one of them needs memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Companions {
    /// They stay.
    Stay,
    /// Those that may live where they would be evicted to go there, and those that nobody [needs](Mover::is_needed): the
    /// operation uses the others, wherever they are. It has to look again at those that were validated before.
    MayMove,
    /// They may be evicted like others: the operation needs this object alone.
    MayGo,
}

/// Why an object got no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResidencyError {
    /// A lock was not had; [`ExecError::Contended`] is to be passed on inside [`Exec::run`].
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// No region that the object may live in has room, and nothing more can be evicted.
    #[error("no room for {size:#x} bytes in any region the object may live in")]
    NoSpace {
        /// The object's size in bytes.
        size: u64,
    },
    /// The interrupt was raised while waiting for an object to become idle.
    #[error("interrupted while waiting for an object to become idle")]
    Interrupted,
    /// The object was still in use when patience ended.
    #[error("the object is in use without end")]
    Busy,
    /// The object's reservation is not locked by the `Exec`.
    #[error("the object's reservation is not locked")]
    NotLocked,
    /// The object must stay where it is.
    #[error("the object is pinned")]
    Pinned,
    /// The object may not live in the region, or there is no such region.
    #[error("the object may not live in region {0}")]
    WrongRegion(RegionId),
    /// The client allowed its content to be lost, and it was.
    #[error("the object's content was given up under memory pressure")]
    Purged,
}

impl From<WaitError> for ResidencyError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::Interrupted => Self::Interrupted,
            WaitError::TimedOut => Self::Busy,
        }
    }
}

/// A device's residency manager. Clones are handles to the same one.
pub struct Manager<D: ObjectData>(Arc<Inner<D>>);

struct Inner<D: ObjectData> {
    slots: Vec<Slot<D>>,
    evict_to: Region,
    graveyard: Graveyard,
    mover: Arc<dyn Mover<D>>,
    /// The time, in uses.
    clock: AtomicU64,
    patience: Duration,
    evictions: AtomicU64,
    bytes_evicted: AtomicU64,
}

struct Slot<D: ObjectData> {
    region: Region,
    lru: Lru<D>,
}

impl<D: ObjectData> Manager<D> {
    /// A manager of empty regions.
    ///
    /// # Errors
    /// [`BuddyError::BadGeometry`] if a region's numbers don't fit together, or if `evict_to` is none of them.
    pub fn new(
        config: ManagerConfig,
        graveyard: Graveyard,
        mover: Arc<dyn Mover<D>>,
    ) -> Result<Self, BuddyError> {
        let regions: Result<Vec<Region>, BuddyError> = config.regions.into_iter().map(Region::new).collect();
        let regions = regions?;
        let evict_to = regions.iter().find(|region| region.id() == config.evict_to).cloned();
        let evict_to = evict_to.ok_or(BuddyError::BadGeometry { size: 0, chunk: 0 })?;
        let slots = regions.into_iter().map(|region| Slot { region, lru: Lru::new() }).collect();
        Ok(Self(Arc::new(Inner {
            slots,
            evict_to,
            patience: config.patience,
            graveyard,
            mover,
            clock: AtomicU64::new(1),
            evictions: AtomicU64::new(0),
            bytes_evicted: AtomicU64::new(0),
        })))
    }

    /// The regions, in the order they were configured.
    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        self.0.slots.iter().map(|slot| &slot.region)
    }

    /// The region of an id.
    pub fn region(&self, id: RegionId) -> Option<&Region> {
        self.slot(id).map(|slot| &slot.region)
    }

    /// The graveyard whose memory is waited for before the manager gives up.
    pub fn graveyard(&self) -> &Graveyard {
        &self.0.graveyard
    }

    /// How many objects were evicted, and their bytes, since the start.
    pub fn evictions(&self) -> (u64, u64) {
        (self.0.evictions.load(Ordering::Relaxed), self.0.bytes_evicted.load(Ordering::Relaxed))
    }

    /// How many objects are in a region, those that go away included.
    pub fn objects_in(&self, id: RegionId) -> usize {
        self.slot(id).map_or(0, |slot| slot.lru.len())
    }

    /// Notes that an object is used now.
    pub fn touch(&self, object: &Object<D>) {
        object.place().recency.touch(self.tick());
    }

    /// Notes that all objects of a group are used now.
    pub fn touch_group(&self, group: &LruGroup) {
        group.0.fetch_max(self.tick(), Ordering::Relaxed);
    }

    /// Locks one object, with others as need be, and validates it: what creating an object with memory takes. Objects that
    /// share its reservation may go. The caller must hold no reservation.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    #[track_caller]
    pub fn populate(&self, object: &Object<D>, interrupt: &Interrupt) -> Result<(), ResidencyError> {
        let duplicates = crate::exec::Duplicates::Allow;
        Exec::run(duplicates, interrupt, |exec| {
            exec.lock(object.resv())?;
            self.validate_with(exec, object, Companions::MayGo, interrupt)
        })
        .map(|_| ())
    }

    /// Sees to it that an object has memory where it may live. `exec` has its reservation locked, and is used to lock victims'.
    /// Objects whose reservations are locked already are not evicted, so what was validated under the same `exec` stays.
    /// May wait for victims to become idle.
    ///
    /// # Errors
    /// [`ResidencyError`]. The object is where it was then.
    #[track_caller]
    pub fn validate(
        &self,
        exec: &mut Exec<'_>,
        object: &Object<D>,
        interrupt: &Interrupt,
    ) -> Result<(), ResidencyError> {
        self.validate_with(exec, object, Companions::Stay, interrupt)
    }

    /// [`validate`](Self::validate), with a say in what becomes of other objects whose reservations are locked.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    #[track_caller]
    pub fn validate_with(
        &self,
        exec: &mut Exec<'_>,
        object: &Object<D>,
        companions: Companions,
        interrupt: &Interrupt,
    ) -> Result<(), ResidencyError> {
        if !exec.is_locked(object.resv()) {
            return Err(ResidencyError::NotLocked);
        }
        self.touch(object);
        match object.residence() {
            Residence::Resident(_) => return Ok(()),
            Residence::Purged => return Err(ResidencyError::Purged),
            Residence::Nowhere if object.place().placements().is_empty() => return Ok(()),
            Residence::Nowhere | Residence::Evicted(_) => {}
        }
        match self.find_memory(exec, object, companions, interrupt)? {
            Found::New(memory) => self.relocate(
                exec,
                object,
                Residence::Resident(Arc::new(memory)),
                Deadline::never(),
                interrupt,
            ),
            Found::Stay(memory) => {
                object.place().set(Residence::Resident(memory));
                Ok(())
            }
        }
    }

    /// Moves an object to a region that it may live in: a prefetch, or sharing with a device that reaches only that region.
    ///
    /// # Errors
    /// [`ResidencyError`]. The object is where it was then.
    #[track_caller]
    pub fn migrate(
        &self,
        exec: &mut Exec<'_>,
        object: &Object<D>,
        to: RegionId,
        interrupt: &Interrupt,
    ) -> Result<(), ResidencyError> {
        if !exec.is_locked(object.resv()) {
            return Err(ResidencyError::NotLocked);
        }
        let slot = self.slot(to).filter(|_| object.place().role_in(to).is_some());
        let slot = slot.ok_or(ResidencyError::WrongRegion(to))?;
        self.touch(object);
        match object.residence() {
            Residence::Purged => return Err(ResidencyError::Purged),
            residence => match residence.allocation() {
                Some(memory) if memory.region().id() == to => {
                    object.place().set(Residence::Resident(memory.clone()));
                    return Ok(());
                }
                Some(_) if object.place().is_pinned() => return Err(ResidencyError::Pinned),
                _ => {}
            },
        }
        let memory = match self.allocate(slot, object) {
            Ok(memory) => memory,
            Err(_) => self.make_room(exec, slot, (object, Companions::Stay), interrupt)?,
        };
        self.relocate(exec, object, Residence::Resident(Arc::new(memory)), Deadline::never(), interrupt)
    }

    /// Evicts an object, whose reservation `exec` has locked, if it has memory in a region that objects are evicted from. Waits
    /// until it is idle.
    ///
    /// # Errors
    /// [`ResidencyError`]. The object is where it was then.
    #[track_caller]
    pub fn evict(
        &self,
        exec: &mut Exec<'_>,
        object: &Object<D>,
        interrupt: &Interrupt,
    ) -> Result<(), ResidencyError> {
        self.evict_by(exec, object, Deadline::never(), interrupt)
    }

    /// [`evict`](Self::evict), if the object is idle in time.
    fn evict_by(
        &self,
        exec: &mut Exec<'_>,
        object: &Object<D>,
        until: Deadline,
        interrupt: &Interrupt,
    ) -> Result<(), ResidencyError> {
        if !exec.is_locked(object.resv()) {
            return Err(ResidencyError::NotLocked);
        }
        if object.place().is_pinned() {
            return Err(ResidencyError::Pinned);
        }
        let size = object.size();
        let purge = object.advice() == Advice::DontNeed;
        match object.residence() {
            Residence::Resident(_) if purge => {
                self.relocate(exec, object, Residence::Purged, until, interrupt)?
            }
            Residence::Resident(memory) if memory.region().id() != self.0.evict_to.id() => {
                let shape = object.place().config.shape;
                let new = self.0.evict_to.allocate(size, shape, object.place().account());
                let new = new.map_err(|_| ResidencyError::NoSpace { size })?;
                self.relocate(exec, object, Residence::Evicted(Arc::new(new)), until, interrupt)?;
            }
            _ => return Ok(()),
        }
        self.0.evictions.fetch_add(1, Ordering::Relaxed);
        self.0.bytes_evicted.fetch_add(size, Ordering::Relaxed);
        tracing::debug!(object = object.id(), size, purge, "evict");
        Ok(())
    }

    /// Evicts everything from a region that is not pinned. The caller must hold no reservation.
    ///
    /// # Errors
    /// [`ResidencyError`]; what was evicted before stays evicted.
    #[track_caller]
    pub fn evict_all(&self, id: RegionId, interrupt: &Interrupt) -> Result<(), ResidencyError> {
        let slot = self.slot(id).ok_or(ResidencyError::WrongRegion(id))?;
        let (now, mut cursor) = (self.tick(), None);
        while let Some((key, object)) = slot.lru.next(cursor, now) {
            cursor = Some(key);
            let evicted = Exec::run(crate::exec::Duplicates::Allow, interrupt, |exec| {
                exec.lock(object.resv())?;
                self.evict(exec, &object, interrupt)
            });
            match evicted {
                Ok(_) | Err(ResidencyError::Pinned) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// New memory for an object, or word that it can stay where it was evicted to.
    fn find_memory(
        &self,
        exec: &mut Exec<'_>,
        object: &Object<D>,
        companions: Companions,
        interrupt: &Interrupt,
    ) -> Result<Found, ResidencyError> {
        if let Some(memory) =
            self.slots_of(object, Role::Preferred).find_map(|slot| self.allocate(slot, object).ok())
        {
            return Ok(Found::New(memory));
        }
        let here = object.allocation().filter(|here| object.place().role_in(here.region().id()).is_some());
        if let Some(here) = here {
            return Ok(Found::Stay(here));
        }
        let mut room = self.make_room_for(exec, object, Companions::Stay, interrupt)?;
        if room.is_none() {
            room = self.slots_of(object, Role::Fallback).find_map(|slot| self.allocate(slot, object).ok());
        }
        for whom in [Companions::MayMove, Companions::MayGo] {
            if room.is_none() && companions >= whom {
                room = self.make_room_for(exec, object, whom, interrupt)?;
            }
        }
        room.map(Found::New).ok_or(ResidencyError::NoSpace { size: object.size() })
    }

    /// Evicts until a preferred region has memory for an object. Nothing if none can have any.
    fn make_room_for(
        &self,
        exec: &mut Exec<'_>,
        object: &Object<D>,
        companions: Companions,
        interrupt: &Interrupt,
    ) -> Result<Option<Allocation>, ResidencyError> {
        for slot in self.slots_of(object, Role::Preferred) {
            match self.make_room(exec, slot, (object, companions), interrupt) {
                Err(ResidencyError::NoSpace { .. }) => {}
                room => return room.map(Some),
            }
        }
        Ok(None)
    }

    /// Evicts until the region has memory for an object.
    fn make_room(
        &self,
        exec: &mut Exec<'_>,
        slot: &Slot<D>,
        (object, companions): (&Object<D>, Companions),
        interrupt: &Interrupt,
    ) -> Result<Allocation, ResidencyError> {
        let no_space = ResidencyError::NoSpace { size: object.size() };
        if object.size() > slot.region.size() {
            return Err(no_space);
        }
        let until = Deadline::after(self.0.patience);
        self.0.graveyard.sweep();
        let may_go = |victim: &Object<D>| victim.id() != object.id() && self.may_go(victim, companions);
        if slot.region.id() != self.0.evict_to.id() {
            for (patience, until) in [(Patience::TryLock, Deadline::poll()), (Patience::Lock, until)] {
                let (now, mut cursor) = (self.tick(), None);
                loop {
                    if let Ok(memory) = self.allocate(slot, object) {
                        return Ok(memory);
                    }
                    let from = (slot, &mut cursor, now);
                    if !self.evict_next(exec, from, &may_go, (patience, until), interrupt)? {
                        break;
                    }
                }
            }
        }
        match self.0.graveyard.flush(until, interrupt) {
            Ok(()) | Err(WaitError::TimedOut) => {}
            Err(WaitError::Interrupted) => return Err(ResidencyError::Interrupted),
        }
        self.allocate(slot, object).map_err(|_| no_space)
    }

    /// Whether an object may go whose reservation the operation has locked already.
    fn may_go(&self, object: &Object<D>, companions: Companions) -> bool {
        match companions {
            Companions::Stay => false,
            Companions::MayMove => {
                object.place().role_in(self.0.evict_to.id()).is_some() || !self.0.mover.is_needed(object)
            }
            Companions::MayGo => true,
        }
    }

    /// Evicts one object of a region. False if there is none left that may be; of those that are locked, `may_go` says which.
    fn evict_next(
        &self,
        exec: &mut Exec<'_>,
        (slot, cursor, now): (&Slot<D>, &mut Option<Key>, u64),
        may_go: &dyn Fn(&Object<D>) -> bool,
        (patience, until): (Patience, Deadline),
        interrupt: &Interrupt,
    ) -> Result<bool, ResidencyError> {
        while let Some((key, victim)) = slot.lru.next(*cursor, now) {
            *cursor = Some(key);
            let locked = exec.is_locked(victim.resv()) && !exec.is_prelocked(victim.resv());
            if (locked && !may_go(&victim)) || victim.place().is_pinned() {
                continue;
            }
            match patience {
                Patience::TryLock if !exec.try_lock(victim.resv()) => continue,
                Patience::TryLock => {}
                Patience::Lock => exec.lock_owned(victim.resv().clone())?,
            }
            // It may have left before it was locked.
            let still_here =
                victim.allocation().is_some_and(|memory| memory.region().id() == slot.region.id());
            let evicted = match still_here {
                true => self.evict_by(exec, &victim, until, interrupt),
                false => Err(ResidencyError::Pinned),
            };
            if !locked {
                exec.unlock(victim.resv());
            }
            match evicted {
                Ok(()) => return Ok(true),
                Err(ResidencyError::Pinned | ResidencyError::Busy) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Changes where an object is, once it is idle.
    fn relocate(
        &self,
        exec: &mut Exec<'_>,
        object: &Object<D>,
        to: Residence,
        until: Deadline,
        interrupt: &Interrupt,
    ) -> Result<(), ResidencyError> {
        let guard = exec.guard(object.resv()).ok_or(ResidencyError::NotLocked)?;
        let from = object.allocation();
        if from.is_some() {
            self.0.mover.begin_move(object, guard);
            object.resv().wait(Usage::Bookkeep, until, interrupt)?;
        }
        let change = Move { from, to: to.allocation().cloned() };
        object.place().set(to);
        self.seat(object, change.to.as_deref());
        self.0.mover.moved(object, guard, &change);
        Ok(())
    }

    /// Puts an object on the list of the region it is in now, and only on that.
    fn seat(&self, object: &Object<D>, memory: Option<&Allocation>) {
        let slot = memory.and_then(|memory| self.slot(memory.region().id()));
        let seat = slot.map(|slot| slot.lru.seat(object));
        let old = std::mem::replace(&mut *object.place().seat.lock(), seat);
        drop(old);
    }

    fn allocate(&self, slot: &Slot<D>, object: &Object<D>) -> Result<Allocation, RegionError> {
        let place = object.place();
        slot.region.allocate(object.size(), place.config.shape, place.account())
    }

    fn slots_of<'a>(&'a self, object: &'a Object<D>, role: Role) -> impl Iterator<Item = &'a Slot<D>> {
        let placements = object.place().placements().iter().filter(move |placement| placement.role == role);
        placements.filter_map(|placement| self.slot(placement.region))
    }

    fn slot(&self, id: RegionId) -> Option<&Slot<D>> {
        self.0.slots.iter().find(|slot| slot.region.id() == id)
    }

    fn tick(&self) -> u64 {
        self.0.clock.fetch_add(1, Ordering::Relaxed)
    }
}

/// How a victim is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Only if nobody holds it.
    TryLock,
    /// Waiting for whoever holds it.
    Lock,
}

enum Found {
    New(Allocation),
    Stay(Arc<Allocation>),
}

impl<D: ObjectData> Clone for Manager<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: ObjectData> fmt::Debug for Manager<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let regions: Vec<&Region> = self.regions().collect();
        f.debug_struct("Manager").field("regions", &regions).field("evictions", &self.evictions()).finish()
    }
}
