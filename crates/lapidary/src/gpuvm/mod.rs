//! GPU address spaces: what is mapped where, and the steps by which that changes.
//!
//! This module keeps the *book* of an address space. It decides what a request to map or unmap means for the
//! mappings that are there, and tells the driver in [steps](Step). Writing page-table entries and invalidating
//! translations is the driver's part.
//!
//! # Vocabulary
//!
//! - An *address space* ([`GpuVm`]) covers a range of GPU virtual addresses ([`Va`], [`VaRange`]).
//! - A *mapping* ([`MappingRef`], [`Mapping`]) is a range with a *backing* ([`Backing`]): an object from some
//!   offset on, nothing (*null*: reads give zero, writes are dropped), or the client's own memory (*host*).
//!   Mappings don't overlap. Each carries the driver's *tag*: caching, flags.
//! - A *tie* ([`VmBo`]) stands for one object in one address space. It is *local* if the object shares the
//!   address space's reservation, else *external*; and it is *evicted* while the object's memory is elsewhere.
//! - The *right to change* ([`VmGuard`]) is held for a request, or shared by submissions ([`VmSharedGuard`]).
//! - A request is carried out *immediately*, its steps passed to a [`Steps`] as they arise, or in a [`Batch`],
//!   whose [`StepList`] is carried out later.
//!
//! # What a map does to what is there
//!
//! The new mapping `N` takes its range. Of each old one `o` it meets, what lies outside stays: `p` (prev) below and
//! `n` (next) above, their backing advanced to match. Offsets are written as `@`.
//!
//! ```text
//!  1  the same range                     2  o ends inside N's end            3  o reaches beyond N
//!     |---o @0---|                          |--o @0--|                          |------o @0------|
//!     |---N------|                          |-----N------|                      |---N----|
//!     Unmap o, Map N                        Unmap o, Map N                      Remap o {next: n@N's length}, Map N
//!                                                                               |---N----|--n----|
//!
//!  4  o begins below, both end alike     5  N lies within o                  6  o begins below, ends inside N
//!     |-----o @0-----|                      |--------o @0---------|             |----o @0----|
//!            |---N---|                            |---N---|                            |-----N-----|
//!     Remap o {prev: p}, Map N              Remap o {prev: p, next: n}, Map N   Remap o {prev: p}, Map N
//!     |--p---|---N---|                      |-p @0|---N---|--n @…-|             |--p---|-----N-----|
//!
//!  7  o begins inside, both end alike    8  o lies within N                  9  o begins inside, ends beyond
//!           |--o--|                             |-o-|                                |-----o @0----|
//!     |-----N-----|                         |-----N-----|                       |------N------|
//!     Unmap o, Map N                        Unmap o, Map N                      Remap o {next: n}, Map N
//!                                                                               |------N------|-n--|
//! ```
//!
//! An unmap is the same without `N`. What is not mapped in its range is no error.
//!
//! ```text
//!     |---a---|  |-b-|     |-----c-----|      Remap a {prev}, Unmap b, Remap c {next}
//!         |-----unmap---------|
//!     |-a-|                   |--c'----|
//! ```
//!
//! Neighbours are never joined, not even where they show one stretch of an object: a client may unmap exactly what
//! it mapped. But where the part that goes and `N` show the same bytes under the same tag, the step says
//! `keep`: the page-table entries there may stay.
//!
//! ```text
//!     |----o = A@0x0000----|                   A: an object
//!            |----N = A@0x7000 ...----|        if N starts 0x7000 behind o: keep
//! ```
//!
//! # What else a request can be
//!
//! A *retag* gives what is mapped in a range another tag: caching, access, advice on where memory should be. Each mapping
//! whose tag that changes is split at the range's ends and becomes one `Retag`; a mapping that has the tag is left alone.
//!
//! ```text
//!     |--a, tag 0--|  |-b, 0-|-c, 1-|  |----d, 0----|      Retag a {a2}, Retag b, Retag d {d1}
//!            |---------retag to 1----------|
//!     |-a1,0-|a2,1-|  |-b, 1-|-c, 1-|  |d1,1|-d2, 0-|
//! ```
//!
//! A *prefetch* changes nothing on record: it is one `Prefetch` for each mapping in a range, for the driver to bring memory
//! and page-table entries where they will be wanted.
//!
//! # How a driver uses it
//!
//! At once, when the page tables can be changed right away:
//!
//! ```text
//! let vm_bo = vm.obtain(&object)?;
//! let mut guard = vm.lock()?;
//! guard.map(&MapRequest::object(range, &vm_bo, offset, tag), &mut page_tables)?;
//! ```
//!
//! Later, when it has to wait for fences:
//!
//! ```text
//! let mut guard = vm.lock()?;
//! let mut batch = guard.batch();
//! for op in request.ops {
//!     batch.map(..)?;  // or unmap, unmap_object, retag, prefetch: an error takes the whole batch back
//! }
//! page_tables.reserve(batch.steps())?;
//! let steps = batch.commit();
//! queue.push(move || { for step in steps.iter() { page_tables.carry_out(step) }; invalidate(); drop(steps) });
//! ```
//!
//! The list holds references to what it unmaps; dropping it after the invalidation is what keeps memory from
//! being reused too early.
//!
//! A driver that keeps something per client mapping (a userptr's pages) can make that an *object*: parts of a
//! split mapping then share it, and it goes with the last of them.
//!
//! # Locking and lifetimes
//!
//! See [`GpuVm`] for the locks and [`VmBo`] for who keeps whom alive. In short: nothing mapped keeps the address
//! space alive, the address space keeps mapped objects alive, and the last handle of anything may be
//! dropped anywhere. What the page-table entries of an object say is under the object's reservation: who maps it
//! or moves it holds that.
//!
//! # Without memory
//!
//! A request that finds none is [refused](VmError::OutOfMemory) and changes nothing; what must not fail asks for none:
//! steps, undoing a batch, going through a step list, evicting, letting go, closing. Two things have no such way out in
//! Rust's library and end the program instead, as they do everywhere in it: the shared pointers behind a new address space
//! and a new tie, and the reaper's note that the last handle of an address space is gone.
//!
//! # Left to others
//!
//! Page tables, memory, moving objects (`residency`), job order, the memory of clients.

pub mod store;
mod va;

#[cfg(feature = "std")]
mod batch;
#[cfg(feature = "std")]
mod book;
#[cfg(feature = "std")]
mod dump;
#[cfg(feature = "std")]
mod error;
#[cfg(feature = "std")]
mod mapping;
#[cfg(feature = "std")]
mod read;
#[cfg(feature = "std")]
mod steps;
#[cfg(feature = "std")]
mod submission;
#[cfg(feature = "std")]
mod vm;
#[cfg(feature = "std")]
mod vm_bo;

pub use va::{Va, VaRange};

#[cfg(feature = "std")]
pub use self::{
    batch::Batch,
    book::Recorded,
    dump::Dump,
    error::VmError,
    mapping::{Backing, BackingRef, Mapping, MappingRef},
    read::VmRead,
    steps::{Plan, Step, StepList, Steps},
    submission::Locked,
    vm::{GpuVm, VmConfig, VmGuard, VmSharedGuard},
    vm_bo::{VmBo, VmBoList},
};

/// A mapping that is asked for.
#[cfg(feature = "std")]
pub type MapRequest<'a, T> = MappingRef<'a, T>;

/// What tells objects apart: two live objects never have the same. An address or a number will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub usize);

/// The types a driver's address spaces are made of.
#[cfg(feature = "std")]
pub trait VmTypes: Sized + 'static {
    /// A reference to a buffer object. Dropping one must be possible anywhere.
    type Object: Clone + Send + Sync + 'static;
    /// What the driver notes with each mapping. Splits copy it; mappings are told apart by it when it comes to
    /// keeping page-table entries. Four bytes come free.
    type Tag: Copy + PartialEq + Send + Sync + 'static;
    /// The driver's part of an address space: its page tables.
    type Space: Send + Sync + 'static;

    /// The object's identity.
    fn id(object: &Self::Object) -> ObjectId;

    /// The object's reservation. A driver that only tracks mappings has none to give.
    fn reservation(object: &Self::Object) -> Option<&crate::resv::Reservation> {
        let _ = object;
        None
    }

    /// Where the object lists the address spaces that know it, which eviction goes by.
    fn vm_bos(object: &Self::Object) -> Option<&VmBoList<Self>> {
        let _ = object;
        None
    }

    /// Takes the page tables down when an address space ends with mappings in it: gets an [`Unmap`](Step::Unmap)
    /// for each and one [`flush`](Steps::flush), even if there was none. [`Steps::reserve`] is not called. Runs
    /// on the thread that closes the address space, or on the reaper's.
    fn teardown(space: &Self::Space) -> impl Steps<Self>;

    /// Charges the address space's owner for `bytes` more of memory for its mappings' records. `false`: too much, the
    /// request fails with [`VmError::OutOfMemory`]. Called with the book's lock held; what is charged for objects
    /// themselves is not in it.
    fn charge(space: &Self::Space, bytes: usize) -> bool {
        let _ = (space, bytes);
        true
    }

    /// Takes back so much of what was [charged](Self::charge): when nothing is mapped any more, at the latest when the
    /// address space ends.
    fn credit(space: &Self::Space, bytes: usize) {
        let _ = (space, bytes);
    }
}
