//! Page tables: 4 levels for 48 bits, in memory, walked by engines while drivers edit them.
//!
//! ```text
//!   bits 47..39    38..30     29..21     20..12     11..0
//!   root ───────▶ L3 ──────▶ L2 ──────▶ L1 ──────▶ 4 KiB     (16 aligned ones that belong together: 64 KiB)
//!                  │          └────────▶ 2 MiB leaf
//!                  └───────────────────▶ 1 GiB leaf
//! ```
//!
//! * *Leaf*: an entry that translates; the largest that alignment and contiguity of one piece allow is chosen when the piece is mapped.
//! * *Node*: a table of 512 entries. Nodes come from a [`NodePool`]; a change reserves what it may need before, and nodes that became empty
//!   return after the invalidation.
//! * *Null*: a present entry without memory (a sparse resource): reads give zero, writes go nowhere. *Scratch*: an address space in which
//!   everything unmapped behaves so.
//! * *Edit*: a set of changes under the writer's lock. *Stale*: what an edit leaves to be invalidated; see [`AddressSpace`].
//!
//! Entries and nodes are atomics: a walk that races with an edit sees old or new entries, never garbage. Locking: one writer's lock
//! per address space, and the pool's, are leaves: nothing is awaited under them.
//!
//! # Large leaves
//!
//! A change that covers part of a large leaf splits it. Small leaves become a large one again where a piece is mapped over them that
//! allows it: a bind of the whole stretch, or the return of an evicted buffer, and the tables below go. Pieces that were mapped one
//! by one are not joined, though they may happen to lie side by side in memory: a leaf would then belong to two mappings, and to unmap
//! one of them would take a node for the split, which may not be had. As it is, whatever was mapped as a piece can be unmapped as
//! a piece without memory: by an eviction, by the end of a client, by a client that may have no more.
//!
//! Which mapping belongs to which object is not known here; a driver keeps that in `lapidary::gpuvm`.

mod edit;
mod entry;
mod needs;
mod pool;
mod space;
#[cfg(test)]
mod tests;
mod types;

pub use edit::{Edit, Stale};
pub use needs::Needs;
pub(crate) use pool::Unlimited;
pub use pool::{NodePool, NodeQuota, Nodes};
pub use space::AddressSpace;
pub use types::{Asid, Leaf, PAGE_SHIFT, PageTableError, Pat, PteAttrs, Target, VaSpan};
