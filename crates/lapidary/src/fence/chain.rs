//! Chains: the points of a timeline.
//!
//! ```text
//!   head: point 9 ──prev──▶ point 7 ──prev──▶ point 4 ──prev──▶ (nothing, or a fence that is no link)
//!           │                 │                 │
//!        own fence         own fence         own fence
//! ```
//!
//! A link has signalled when its own fence has and every earlier link has. Walking from a link to the one before
//! skips, and frees, links whose own fence has signalled, so a chain stays as long as its unfinished part.

use crate::sync::Mutex;

use super::{
    Fence, FenceContext, FenceRef, Seqno,
    callbacks::{CallbackId, tell},
    core::{Body, Inner, MadeOf, Outcome},
    merge::{holds_chain, merge},
    shared::Shared,
    slot::{DeskId, Pinned, Slot},
};

pub(super) struct Chain {
    /// The link's own fence; never a chain itself.
    contained: Fence,
    /// The point before this one in the same context; 0 at the first.
    prev_seqno: u64,
    /// The link, or plain fence, before this one, as far as unfinished ones are known. All links that hang together have
    /// their readers at one desk.
    prev: Slot,
    registration: Mutex<Registration>,
}

struct Registration {
    /// What an armed link has registered: always one thing at a time.
    registered: Option<(Fence, CallbackId)>,
    /// Whether somebody is registering for this link, and whether to look again when that is done.
    advancing: Advancing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Advancing {
    No,
    Yes,
    Again,
}

impl Fence {
    /// One point of a timeline: signals when `fence` and everything in `prev` have signalled.
    ///
    /// If `prev` is a link with a lower point, the new link continues its context; otherwise it starts one, and its
    /// number is at least that of `prev`'s link. If `fence` is made of links itself, their plain fences take its
    /// place.
    pub fn chain(prev: Option<Fence>, fence: Fence, point: u64) -> Fence {
        let contained = if holds_chain(&fence) { merge([fence]) } else { fence };
        let link = prev.as_ref().filter(|prev| prev.is_chain());
        let (context, prev_seqno, seqno) = match link {
            Some(link) if point > link.seqno().get() => (link.context(), link.seqno().get(), point),
            Some(link) => (FenceContext::alloc(), 0, point.max(link.seqno().get())),
            None => (FenceContext::alloc(), 0, point),
        };
        let prev_depth = prev.as_ref().map_or(0, |prev| prev.0.depth());
        let prev_depth = if link.is_some() { prev_depth } else { prev_depth + 1 };
        let depth = prev_depth.max(contained.0.depth() + 1);
        let desk = match link.map(|link| link.0.body()) {
            Some(Body::Chain(chain)) => chain.prev.desk(),
            _ => DeskId::of(context.get()),
        };
        let registration = Mutex::new(Registration { registered: None, advancing: Advancing::No });
        let chain = Chain { contained, prev_seqno, prev: Slot::new(prev, desk), registration };
        Fence::container(context, Seqno(seqno), MadeOf::Chain(chain), depth)
    }

    /// Whether the fence is a link of a chain.
    pub fn is_chain(&self) -> bool {
        matches!(self.0.body(), Body::Chain(_))
    }

    /// The own fence of a link; the fence itself if it is no link.
    pub fn chain_contained(&self) -> &Fence {
        match self.0.body() {
            Body::Chain(chain) => &chain.contained,
            _ => self,
        }
    }

    /// The next earlier link, or plain fence at the chain's start, that is not known to have signalled. Forgets the
    /// finished ones between. `None` at the end, and for fences that are no link.
    pub fn chain_prev(&self) -> Option<Fence> {
        match self.0.body() {
            Body::Chain(chain) => chain.unfinished_prev(),
            _ => None,
        }
    }

    /// The links from this one back, as far as they are not known to have signalled, and the plain fence at the chain's
    /// start. Forgets the finished ones between. A fence that is no link is the only one of its kind.
    ///
    /// While the answer is held, what others forget of this chain is kept; hold it for the walk alone.
    pub fn chain_links(&self) -> ChainLinks<'_> {
        let desk = match self.0.body() {
            Body::Chain(chain) => chain.prev.desk(),
            _ => DeskId::of(0),
        };
        ChainLinks { head: self, pinned: Pinned::new(desk) }
    }

    /// The point before this link in its context, signalled or not; `None` for fences that are no link.
    pub fn chain_prev_seqno(&self) -> Option<Seqno> {
        match self.0.body() {
            Body::Chain(chain) => Some(Seqno(chain.prev_seqno)),
            _ => None,
        }
    }

    /// The fence that stands for `point` in the chain that ends with this link: it signals when that point and all
    /// before have.
    ///
    /// Point 0 stands for the fence itself, whatever it is. `None` if the point has not been submitted: it is later
    /// than the last one, or this fence is no link.
    pub fn chain_point(&self, point: u64) -> Option<Fence> {
        if point == 0 {
            return Some(self.clone());
        }
        if !self.is_chain() || self.seqno().get() < point {
            return None;
        }
        let links = self.chain_links();
        let mut found = None;
        for link in links.iter() {
            let in_context = link.context() == self.context();
            let prev_seqno = link.chain_prev_seqno().filter(|_| in_context);
            // The link whose predecessor lies before the point is the one that completes it.
            let completes = prev_seqno.is_none_or(|prev| prev.get() < point);
            if completes {
                found = Some(link);
                break;
            }
        }
        // If there is none, everything up to the point is done, and forgotten.
        Some(found.map_or_else(Fence::signalled, |link| link.clone()))
    }
}

/// The unfinished links of a chain; see [`Fence::chain_links`].
pub struct ChainLinks<'a> {
    head: &'a Fence,
    pinned: Pinned,
}

impl ChainLinks<'_> {
    /// Walks the links, the latest first.
    pub fn iter(&self) -> impl Iterator<Item = FenceRef<'_>> {
        let mut next = Some(FenceRef::new(self.head));
        std::iter::from_fn(move || {
            let link = next.take()?;
            next = match link.0.body() {
                Body::Chain(chain) => chain.walk(&self.pinned),
                _ => None,
            };
            Some(link)
        })
    }
}

impl Chain {
    /// See [`Fence::chain_prev`].
    fn unfinished_prev(&self) -> Option<Fence> {
        self.walk(&Pinned::new(self.prev.desk())).map(|prev| prev.clone())
    }

    /// The next earlier link or plain fence that is not known to have signalled. Forgets those between.
    #[inline]
    fn walk<'p>(&self, pinned: &'p Pinned) -> Option<FenceRef<'p>> {
        let first = self.prev.load(pinned)?;
        match behind_finished(&first, pinned) {
            None => Some(first),
            Some(next) => self.skip_finished(&first, next, pinned),
        }
    }

    /// Goes on behind `first`, which is finished, and leaves out what is.
    #[cold]
    fn skip_finished<'p>(
        &self,
        first: &FenceRef<'p>,
        mut next: Option<FenceRef<'p>>,
        pinned: &'p Pinned,
    ) -> Option<FenceRef<'p>> {
        while let Some(link) = &next {
            match behind_finished(link, pinned) {
                Some(after) => next = after,
                None => break,
            }
        }
        self.prev.replace(first, next.as_deref().cloned());
        next
    }

    /// How the link ends, if its own fence and all before have signalled.
    pub(super) fn poll(&self) -> Option<Outcome> {
        let outcome = self.contained.0.poll()?;
        // Walking skips what has signalled, so anything it finds has not.
        match self.walk(&Pinned::new(self.prev.desk())) {
            Some(_) => None,
            None => Some(outcome),
        }
    }

    /// Registers with the fence that the link waits for next, or signals the link if there is none.
    ///
    /// Runs when the link is armed and each time what it registered with signals.
    pub(super) fn advance(&self, this: &Shared<Inner>) {
        {
            let mut registration = self.registration.lock();
            registration.registered = None;
            if registration.advancing != Advancing::No {
                registration.advancing = Advancing::Again;
                return;
            }
            registration.advancing = Advancing::Yes;
        }
        loop {
            let next = if self.contained.is_signalled() {
                self.unfinished_prev()
            } else {
                Some(self.contained.clone())
            };
            let Some(next) = next else {
                if let Some(outcome) = self.contained.0.poll() {
                    Fence(this.clone()).finish(outcome);
                }
                return;
            };
            let Ok(id) = next.register(tell(this)) else { continue };
            let mut registration = self.registration.lock();
            // It may have signalled, in another thread, before we could note that we are registered.
            if registration.advancing == Advancing::Yes {
                registration.advancing = Advancing::No;
                registration.registered = Some((next, id));
                return;
            }
            registration.advancing = Advancing::Yes;
        }
    }

    /// Lets go of the links before a link that has signalled.
    pub(super) fn forget_prev(&self) {
        self.prev.clear();
    }

    /// The link's own fence and the next before it, for passing hints on.
    pub(super) fn contained_and_prev(&self) -> impl Iterator<Item = Fence> {
        [Some(self.contained.clone()), self.unfinished_prev()].into_iter().flatten()
    }

    /// Gives up everything the link holds.
    pub(super) fn release(mut self, into: &mut Vec<Fence>) {
        into.extend(self.prev.take());
        if let Some((fence, id)) = self.registration.into_inner().registered {
            let (_, keep) = fence.0.state.lock().remove(id);
            into.extend(keep);
            into.push(fence);
        }
        into.push(self.contained);
    }
}

/// What comes before a link, or plain fence, that is finished; `None` if it is not.
#[inline]
fn behind_finished<'p>(fence: &Fence, pinned: &'p Pinned) -> Option<Option<FenceRef<'p>>> {
    match fence.0.body() {
        Body::Chain(link) => link.contained.is_signalled().then(|| link.prev.load(pinned)),
        _ => fence.is_signalled().then_some(None),
    }
}
