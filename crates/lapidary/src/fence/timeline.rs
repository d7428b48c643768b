//! Contexts, sequence numbers, and timelines that hand them out.

use crate::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::core::{Fence, Signaller};

/// An ordered series of fences: those of one context signal in the order of their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FenceContext(u64);

impl FenceContext {
    /// The context of fences that are signalled from the start.
    pub(super) const SIGNALLED: Self = Self(0);

    /// A context nobody else has.
    pub fn alloc() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The context's number, for messages.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A fence's place in its context. All 64 bits count; there is no wrap-around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seqno(pub u64);

impl Seqno {
    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A named context that numbers its fences from 1.
///
/// Clones are handles to the same timeline.
#[derive(Debug, Clone)]
pub struct Timeline(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: Arc<str>,
    context: FenceContext,
    last: AtomicU64,
}

impl Timeline {
    /// A timeline of its own context. The name appears in messages and traces.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(Arc::new(Shared { name: name.into(), context: FenceContext::alloc(), last: AtomicU64::new(0) }))
    }

    /// The next fence, not signalled, and its signaller.
    pub fn next(&self) -> (Fence, Signaller) {
        let seqno = Seqno(self.0.last.fetch_add(1, Ordering::Relaxed) + 1);
        Fence::on_timeline(self.clone(), self.0.context, seqno)
    }

    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The context of this timeline's fences.
    pub fn context(&self) -> FenceContext {
        self.0.context
    }

    /// The number of the fence made last; 0 if there is none yet.
    pub fn last_seqno(&self) -> Seqno {
        Seqno(self.0.last.load(Ordering::Relaxed))
    }
}
