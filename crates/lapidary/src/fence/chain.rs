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

use crate::sync::{Arc, Mutex};

use super::{
    Fence, FenceContext, Seqno,
    callbacks::{Action, CallbackId},
    core::{Body, Inner, Outcome},
    merge::{holds_chain, merge},
};

pub(super) struct Chain {
    /// The link's own fence; never a chain itself.
    contained: Fence,
    /// The point before this one in the same context; 0 at the first.
    prev_seqno: u64,
    links: Mutex<Links>,
}

struct Links {
    /// The link, or plain fence, before this one, as far as unfinished ones are known.
    prev: Option<Fence>,
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
        let prev_depth = prev.as_ref().map_or(0, |prev| prev.0.depth);
        let prev_depth = if link.is_some() { prev_depth } else { prev_depth + 1 };
        let depth = prev_depth.max(contained.0.depth + 1);
        let links = Links { prev, registered: None, advancing: Advancing::No };
        let chain = Chain { contained, prev_seqno, links: Mutex::new(links) };
        Fence::container(context, Seqno(seqno), Body::Chain(Box::new(chain)), depth)
    }

    /// Whether the fence is a link of a chain.
    pub fn is_chain(&self) -> bool {
        matches!(self.0.body, Body::Chain(_))
    }

    /// The own fence of a link; the fence itself if it is no link.
    pub fn chain_contained(&self) -> &Fence {
        match &self.0.body {
            Body::Chain(chain) => &chain.contained,
            _ => self,
        }
    }

    /// The next earlier link, or plain fence at the chain's start, that is not known to have signalled. Forgets the
    /// finished ones between. `None` at the end, and for fences that are no link.
    pub fn chain_prev(&self) -> Option<Fence> {
        match &self.0.body {
            Body::Chain(chain) => chain.walk(),
            _ => None,
        }
    }

    /// The point before this link in its context, signalled or not; `None` for fences that are no link.
    pub fn chain_prev_seqno(&self) -> Option<Seqno> {
        match &self.0.body {
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
        let mut found = self.clone();
        loop {
            let in_context = found.context() == self.context();
            let prev_seqno = found.chain_prev_seqno().filter(|_| in_context);
            // The link whose predecessor lies before the point is the one that completes it.
            if prev_seqno.is_none_or(|prev| prev.get() < point) {
                return Some(found);
            }
            match found.chain_prev() {
                Some(prev) => found = prev,
                // Everything up to the point is done, and forgotten.
                None => return Some(Fence::signalled()),
            }
        }
    }
}

impl Chain {
    fn prev(&self) -> Option<Fence> {
        self.links.lock().prev.clone()
    }

    /// See [`Fence::chain_prev`].
    fn walk(&self) -> Option<Fence> {
        loop {
            let prev = self.prev()?;
            let replacement = match &prev.0.body {
                Body::Chain(link) if link.contained.is_signalled() => link.prev(),
                Body::Chain(_) => return Some(prev),
                _ if prev.is_signalled() => None,
                _ => return Some(prev),
            };
            let mut links = self.links.lock();
            // Somebody else may have walked here meanwhile; what they found is at least as good.
            let replaced = match &links.prev {
                Some(current) if current.ptr_eq(&prev) => std::mem::replace(&mut links.prev, replacement),
                _ => None,
            };
            drop(links);
            drop(replaced);
        }
    }

    /// How the link ends, if its own fence and all before have signalled.
    pub(super) fn poll(&self) -> Option<Outcome> {
        let outcome = self.contained.0.poll()?;
        // Walking skips what has signalled, so anything it finds has not.
        match self.walk() {
            Some(_) => None,
            None => Some(outcome),
        }
    }

    /// Registers with the fence that the link waits for next, or signals the link if there is none.
    ///
    /// Runs when the link is armed and each time what it registered with signals.
    pub(super) fn advance(&self, this: &Arc<Inner>) {
        {
            let mut links = self.links.lock();
            links.registered = None;
            if links.advancing != Advancing::No {
                links.advancing = Advancing::Again;
                return;
            }
            links.advancing = Advancing::Yes;
        }
        loop {
            let next = if self.contained.is_signalled() { self.walk() } else { Some(self.contained.clone()) };
            let Some(next) = next else {
                if let Some(outcome) = self.contained.0.poll() {
                    this.finish(outcome);
                }
                return;
            };
            let Ok(id) = next.0.add_action(&next, Arc::downgrade(this), Action::Member) else { continue };
            let mut links = self.links.lock();
            // It may have signalled, in another thread, before we could note that we are registered.
            if links.advancing == Advancing::Yes {
                links.advancing = Advancing::No;
                links.registered = Some((next, id));
                return;
            }
            links.advancing = Advancing::Yes;
        }
    }

    /// Lets go of the links before a link that has signalled.
    pub(super) fn forget_prev(&self) {
        let prev = self.links.lock().prev.take();
        drop(prev);
    }

    /// The link's own fence and the next before it, for passing hints on.
    pub(super) fn contained_and_prev(&self) -> impl Iterator<Item = Fence> {
        [Some(self.contained.clone()), self.walk()].into_iter().flatten()
    }

    /// Gives up everything the link holds.
    pub(super) fn release(self, into: &mut Vec<Fence>) {
        let links = self.links.into_inner();
        into.extend(links.prev);
        if let Some((fence, id)) = links.registered {
            let (_, keep) = fence.0.callbacks.lock().remove(id);
            into.extend(keep);
            into.push(fence);
        }
        into.push(self.contained);
    }
}
