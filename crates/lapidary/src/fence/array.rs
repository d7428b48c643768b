//! Arrays: a fence that signals with all, or with any, of its members.

use crate::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use super::{
    Fence, FenceContext, Seqno,
    callbacks::{CallbackId, tell},
    core::{Body, Inner, MadeOf, Outcome},
    shared::Shared,
};

/// When an array signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ArrayMode {
    /// When the last member has signalled.
    All,
    /// When the first member has signalled.
    Any,
}

pub(super) struct Array {
    pub(super) members: Box<[Fence]>,
    mode: ArrayMode,
    /// How many members must still report before an armed array signals.
    missing: AtomicUsize,
    /// What an armed array has registered with its members.
    registered: Mutex<Vec<(u32, CallbackId)>>,
}

impl Fence {
    /// A fence of its own context that signals with all, or any, of `members`. Without members it has signalled.
    pub fn array(members: Vec<Fence>, mode: ArrayMode) -> Fence {
        if members.is_empty() {
            return Fence::signalled();
        }
        let missing = match mode {
            ArrayMode::All => members.len(),
            ArrayMode::Any => 1,
        };
        let depth = 1 + members.iter().map(|member| member.0.depth()).max().unwrap_or(0);
        let array = Array {
            members: members.into_boxed_slice(),
            mode,
            missing: AtomicUsize::new(missing),
            registered: Mutex::new(Vec::new()),
        };
        Fence::container(FenceContext::alloc(), Seqno(1), MadeOf::Array(array), depth)
    }

    /// The members of an array, in the order they were given; `None` for other fences.
    pub fn members(&self) -> Option<&[Fence]> {
        match self.0.body() {
            Body::Array(array) => Some(&array.members),
            _ => None,
        }
    }

    /// When an array signals; `None` for other fences.
    pub fn array_mode(&self) -> Option<ArrayMode> {
        match self.0.body() {
            Body::Array(array) => Some(array.mode),
            _ => None,
        }
    }
}

impl Array {
    /// How the members' states make the array end, if they do.
    pub(super) fn poll(&self) -> Option<Outcome> {
        let mut outcomes = self.members.iter().map(|member| member.0.poll());
        match self.mode {
            ArrayMode::All => {
                let mut all = outcomes.next()??;
                for outcome in outcomes {
                    let outcome = outcome?;
                    all.error = all.error.or(outcome.error);
                    all.timestamp = all.timestamp.max(outcome.timestamp);
                }
                Some(all)
            }
            ArrayMode::Any => outcomes.flatten().min_by_key(|outcome| outcome.timestamp),
        }
    }

    /// Registers with every member.
    pub(super) fn arm(&self, this: &Shared<Inner>) {
        for (index, member) in self.members.iter().enumerate() {
            if this.is_settled() && self.missing.load(Ordering::Relaxed) == 0 {
                return;
            }
            match member.register(tell(this)) {
                // An array of more than 2^32 fences does not fit in memory.
                Ok(id) => self.registered.lock().push((index as u32, id)),
                Err(_) => self.member_signalled(this, member),
            }
        }
    }

    /// Counts a member that has signalled, and signals the array if it was the one that was missing.
    pub(super) fn member_signalled(&self, this: &Shared<Inner>, member: &Fence) {
        // Acquire and release: the thread that counts the last one has seen all the others' states.
        let counted = self.missing.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1));
        if counted != Ok(1) {
            return;
        }
        let outcome = self.poll().or_else(|| member.0.poll());
        if let Some(outcome) = outcome {
            Fence(this.clone()).finish(outcome);
        }
        for fence in self.withdraw() {
            drop(fence);
        }
    }

    /// Removes what is still registered with members. What that releases is to be dropped by the caller.
    fn withdraw(&self) -> Vec<Fence> {
        let registered = std::mem::take(&mut *self.registered.lock());
        let mut released = Vec::new();
        for (index, id) in registered {
            let member = &self.members[index as usize];
            if member.0.is_settled() {
                continue;
            }
            let (_, keep) = member.0.state.lock().remove(id);
            released.extend(keep);
        }
        released
    }

    /// Gives up everything the array holds.
    pub(super) fn release(self, into: &mut Vec<Fence>) {
        into.extend(self.withdraw());
        into.extend(self.members);
    }
}
