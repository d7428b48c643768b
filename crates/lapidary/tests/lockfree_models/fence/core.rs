//! A stand-in for a fence.

use std::sync::atomic::{AtomicBool, Ordering};

use loom::alloc::Track;

use crate::watch::{ALIGN, Watched};

use super::{shared::Shared, slot::Slot};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FenceContext(pub(crate) u64);

impl FenceContext {
    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub struct Seqno(pub(crate) u64);

#[derive(Clone)]
pub struct Fence(pub(super) Shared<Inner>);

/// Looked at by readers, and written to when it is dropped: without an order between the two, `loom` reports a race.
#[repr(align(256))]
pub struct Inner {
    alive: Watched<bool>,
    /// Reported if it is never dropped.
    _leak: Track<()>,
    context: FenceContext,
    seqno: Seqno,
    /// Set before a model's threads begin; not part of what is modelled.
    signalled: AtomicBool,
    /// What comes before it, if it is a link.
    pub(super) prev: Option<Slot>,
}

impl Fence {
    pub(crate) fn new(context: u64, seqno: u64) -> Self {
        Self::made_of(context, seqno, false, None)
    }

    pub(crate) fn signalled(context: u64) -> Self {
        Self::made_of(context, 0, true, None)
    }

    /// For models whose threads have not begun.
    pub(crate) fn signal(&self) {
        self.inner().signalled.store(true, Ordering::Relaxed);
    }

    pub(super) fn link(seqno: u64, prev: Slot) -> Self {
        Self::made_of(0, seqno, false, Some(prev))
    }

    fn made_of(context: u64, seqno: u64, signalled: bool, prev: Option<Slot>) -> Self {
        let before = crate::watch::live();
        let fence = Self(Shared::new(Inner::new(context, seqno, signalled, prev)));
        assert_eq!(crate::watch::live(), before + 1, "a stand-in is not aligned to {ALIGN}");
        fence
    }

    pub(super) fn inner(&self) -> &Inner {
        self.look();
        &self.0
    }

    /// Looks at the fence, as a reader does.
    pub(crate) fn look(&self) {
        self.0.look();
    }

    pub(crate) fn context(&self) -> FenceContext {
        self.inner().context
    }

    pub(crate) fn seqno(&self) -> Seqno {
        self.inner().seqno
    }

    pub(crate) fn is_signalled(&self) -> bool {
        self.inner().signalled.load(Ordering::Relaxed)
    }
}

impl Inner {
    pub(super) fn new(context: u64, seqno: u64, signalled: bool, prev: Option<Slot>) -> Self {
        Self {
            alive: Watched::new(true),
            _leak: Track::new(()),
            context: FenceContext(context),
            seqno: Seqno(seqno),
            signalled: AtomicBool::new(signalled),
            prev,
        }
    }

    pub(super) fn look(&self) {
        assert!(self.alive.read(), "a fence is looked at after it was dropped");
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        assert!(self.alive.read(), "a fence is dropped twice");
        self.alive.write(false);
    }
}
