//! Translation caches of the engines, and how they are kept honest.
//!
//! * [`cache`]: the cache itself, one per engine, touched by that engine's thread only.
//! * [`shootdown`]: how a driver's change reaches all caches: invalidations and their acknowledgement.
//!
//! A cache really caches: an entry that was changed in the page tables and not invalidated goes on being used, as on hardware. What
//! it caches is device addresses, never host pointers, so a stale entry gives a wrong access and no undefined behaviour.

mod cache;
mod shootdown;

pub(crate) use cache::Tlb;
pub(crate) use shootdown::{Online, Scope, Shootdown};
