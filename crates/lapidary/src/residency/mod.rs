//! Where buffers live: memory regions, their allocators, and who must leave when one is full.
//!
//! # Vocabulary
//!
//! - *region*: memory of one kind, system or device. See [`Region`].
//! - *allocation*: memory of a region, in one or more *extents*; free when dropped.
//! - *place*: where an object may live (its *placements*, best first) and where it does (its *residence*).
//! - *validate*: give an object memory where it may live, if it is not there; others are *evicted* for it.
//! - *evict*: move an object to system memory because another needs its place. It is validated before its next use.
//! - *mover*: the driver's part of a move: it stops users, rewrites page tables, tells importers.
//!
//! # How a driver uses it
//!
//! ```
//! # use std::{sync::Arc, time::Duration};
//! use lapidary::{exec::{Duplicates, Exec}, fence::Interrupt, gem::*, reaper::Reaper, residency::*, resv::ResvGuard};
//!
//! struct Bo { bytes: Arc<[u8]> } // the memfd, the list of its mappings, …
//! impl ObjectData for Bo {
//!     type Memory = Arc<[u8]>; // what must outlive the GPU's use
//!     fn into_memory(self) -> Self::Memory { self.bytes }
//! }
//! struct Driver;
//! impl Mover<Bo> for Driver {
//!     fn moved(&self, object: &Object<Bo>, _: &mut ResvGuard<'_>, change: &Move) {
//!         // detach the bytes from `change.from`, attach them at `change.to`, zap page tables, mark mappings
//!     }
//! }
//!
//! let (system, vram) = (RegionId::new(0).unwrap(), RegionId::new(1).unwrap());
//! let regions = vec![
//!     RegionConfig { id: system, kind: RegionKind::System, size: 1 << 34, chunk: 1 << 12 },
//!     RegionConfig { id: vram, kind: RegionKind::Vram, size: 1 << 33, chunk: 1 << 16 },
//! ];
//! let graveyard = Graveyard::new(Reaper::new());
//! let config = ManagerConfig { regions, evict_to: system, patience: Duration::from_secs(10) };
//! let manager = Manager::new(config, graveyard.clone(), Arc::new(Driver))?;
//!
//! // Creating a buffer: `placements` are what the client allowed.
//! let placements = vec![Placement::preferred(vram), Placement::fallback(system)];
//! let place = PlaceConfig { placements, account: Some(Account::new()), ..PlaceConfig::default() };
//! let config = ObjectConfig { size: 1 << 20, resv: None, place };
//! let object = Object::new(&graveyard, config, Bo { bytes: Arc::from([]) });
//! manager.populate(&object, &Interrupt::none())?;
//!
//! // Before a submission: lock what it uses, bring back what was evicted.
//! let interrupt = Interrupt::none();
//! let (exec, ()) = Exec::run(Duplicates::Allow, &interrupt, |exec| {
//!     exec.lock(object.resv())?;
//!     manager.validate(exec, &object, &interrupt)
//! })?;
//! assert_eq!(object.allocation().unwrap().region().id(), vram);
//! # drop(exec);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Locking and order
//!
//! ```text
//!   reservation (of the object, of victims: one Exec)
//!      └─ list of a region (Lru)      held for a lookup
//!      └─ residence of an object      held for a copy
//!      └─ space of a region           held for one allocation
//! ```
//!
//! The inner three are never held together and no foreign code runs under them. An object moves only with its reservation
//! locked and after all of its fences have signalled; both happen in [`Manager`].
//!
//! [`Buddy`] and [`RangeAllocator`] are pure structures that need `alloc` alone.
//!
//! What this module leaves to others: the bytes and their copying (the driver), when an object is used
//! ([`gpuvm`](crate::gpuvm) and the driver's submissions).

mod bitmap;
pub mod buddy;
pub mod range;

#[cfg(feature = "std")]
mod account;
#[cfg(feature = "std")]
mod lru;
#[cfg(feature = "std")]
mod manager;
#[cfg(feature = "std")]
mod place;
#[cfg(feature = "std")]
mod region;

pub use buddy::{Buddy, BuddyError, Extent, Shape};
pub use range::{RangeAllocator, RangeError};

#[cfg(feature = "std")]
pub use account::Account;
#[cfg(feature = "std")]
pub use manager::{Companions, Manager, ManagerConfig, Move, Mover, ResidencyError};
#[cfg(feature = "std")]
pub use place::{LruGroup, Place, PlaceConfig, Placement, Residence, Role};
#[cfg(feature = "std")]
pub use region::{Allocation, Region, RegionConfig, RegionError, RegionId, RegionKind};
