//! Fences: one-shot completion events.
//!
//! A [`Fence`] tells when a piece of work, on a GPU or elsewhere, is done. Its producer holds the unique
//! [`Signaller`]; consumers hold any number of clones of the fence. A fence signals once, with success or a
//! [`FenceError`], and never goes back; it is never recycled for other work. A signaller that is dropped
//! signals [`FenceError::Cancelled`], so nobody waits for a producer that died.
//!
//! # Vocabulary
//!
//! - *context*, *sequence number*: fences of one context are ordered by their numbers and signal in that
//!   order; a [`Timeline`] hands out both.
//! - *callback*: a closure that runs once, when the fence signals. See [`Fence::add_callback`].
//! - *container*: a fence made of fences. [`Fence::array`] signals with all or any of its members;
//!   [`Fence::chain`] is one point of a timeline and signals with its own fence and every earlier point.
//!   Containers nest. [`unwrap`] walks the plain fences inside, [`merge()`] makes the smallest fence that
//!   stands for many.
//! - *signalling section*: a scope that some fence's signalling depends on. Waiting for a fence or taking a
//!   reservation in one can deadlock, and panics in debug builds; see [`signalling()`].
//!
//! # How a container learns of its members
//!
//! A container nobody has asked for a callback is *idle*: it has registered nothing with its members, and
//! [`Fence::is_signalled`] looks at them. The first callback *arms* it: it registers with its members (an
//! array with each, a chain link with its own fence and, once that has signalled, with the next earlier
//! point) and its state then follows by itself. What a container leaves with its members is a weak
//! reference, so an armed container nobody wants any more can go; while it has callbacks of its own it keeps
//! itself alive, as a plain fence is kept alive by its signaller.
//!
//! # Locking, memory ordering, recursion
//!
//! Each fence has one small lock over its list of callbacks. No code outside this module runs under it, and
//! no two fences' locks are ever held together, so a fence may be used under any lock. The state is one word,
//! stored with release ordering after timestamp and error are in place: whoever sees a fence signalled also
//! sees everything its producer did before signalling.
//!
//! Callbacks run in the signalling thread, after the state has changed, in the order they were added, and
//! with no lock of the fence held. A callback may signal other fences: their callbacks are queued behind it
//! in the same thread instead of nesting, so that no dependency graph, however deep, can exhaust the stack.
//! Dropping a fence is iterative too, and runs no foreign code.
//!
//! What this module leaves to others: files and numbers for fences (`syncobj`, and the device server above),
//! lists of fences on buffers (`resv`).

mod array;
mod callbacks;
mod chain;
mod core;
mod desks;
mod error;
mod future;
mod interrupt;
mod merge;
mod park;
pub(crate) mod pins;
mod shared;
mod signalling;
mod slot;
mod time;
mod timeline;
mod wait;
mod word;

pub use array::ArrayMode;
pub use callbacks::CallbackId;
pub use chain::ChainLinks;
pub use core::{Fence, Signaller};
pub use error::{FenceError, WaitError};
pub use future::FenceFuture;
pub use interrupt::Interrupt;
pub use merge::{Unwrap, merge, unwrap};
pub use park::WaitQueue;
pub use pins::FenceRef;
pub use signalling::{SignallingSection, signalling};
pub use time::{Deadline, Timestamp};
pub use timeline::{FenceContext, Seqno, Timeline};
pub use wait::{wait_all, wait_any};

pub(crate) use park::{Parker, park_until};
pub(crate) use signalling::assert_may_block;
pub(crate) use wait::Wakes;
