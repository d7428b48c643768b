//! Taking containers apart, and making one fence of many.

use super::{ArrayMode, Fence, Timestamp, core::Body};

/// The plain fences inside a fence; see [`unwrap`].
#[derive(Debug)]
pub struct Unwrap<'a> {
    root: Option<&'a Fence>,
    /// The containers that the walk is in, the innermost last; `root`, if it is an array, is not among them.
    inside: Vec<Inside>,
    /// How far an array at the root was walked.
    next_of_root: usize,
}

/// A container that is being walked.
#[derive(Debug)]
enum Inside {
    /// An array, and which of its members is next.
    Array(Fence, usize),
    /// A link whose own fence is next.
    Link(Fence),
    /// A link whose own fence has been walked.
    Before(Fence),
}

/// Walks the plain fences that `fence` waits for: itself if it is plain, else those of its links and members, however
/// they nest.
///
/// Links of a chain that are known to be finished are left out. An array that waits for *any* of its members can't be
/// taken apart without changing what it means, so it counts as plain.
///
/// As an iterator it gives references of their own; [`Unwrap::look`] goes without.
pub fn unwrap(fence: &Fence) -> Unwrap<'_> {
    Unwrap { root: Some(fence), inside: Vec::new(), next_of_root: 0 }
}

/// The members, if `fence` waits for all of several.
#[inline]
fn all_members(fence: &Fence) -> Option<&[Fence]> {
    match fence.0.body() {
        Body::Array(array) if fence.array_mode() == Some(ArrayMode::All) => Some(&array.members),
        _ => None,
    }
}

impl Unwrap<'_> {
    /// Shows `see` the next plain fence; `None` at the end.
    #[inline]
    pub fn look<R>(&mut self, mut see: impl FnMut(&Fence) -> R) -> Option<R> {
        loop {
            if !self.inside.is_empty() {
                match self.look_inside(&mut see) {
                    None => continue,
                    found => return found,
                }
            }
            // The common case, an array of plain fences, needs no memory.
            let root = self.root?;
            let next = match all_members(root) {
                Some(members) => {
                    let member = members.get(self.next_of_root);
                    self.next_of_root += 1;
                    member
                }
                None => self.root.take(),
            };
            let Some(next) = next else {
                self.root = None;
                return None;
            };
            if !self.enter(next) {
                return Some(see(next));
            }
        }
    }

    /// As [`look`](Self::look) in the innermost container; `None` if nothing was found yet.
    #[cold]
    fn look_inside<R>(&mut self, see: &mut impl FnMut(&Fence) -> R) -> Option<R> {
        let next = match self.inside.pop()? {
            Inside::Array(array, at) => {
                let member = all_members(&array)?.get(at)?.clone();
                self.inside.push(Inside::Array(array, at + 1));
                member
            }
            Inside::Link(link) => {
                let own = link.chain_contained().clone();
                self.inside.push(Inside::Before(link));
                own
            }
            Inside::Before(link) => link.chain_prev()?,
        };
        if self.enter(&next) { None } else { Some(see(&next)) }
    }

    /// Goes into a container; false if the fence is none.
    #[inline]
    fn enter(&mut self, fence: &Fence) -> bool {
        let inside = match fence.0.body() {
            Body::Plain => return false,
            Body::Chain(_) => Inside::Link(fence.clone()),
            Body::Array(_) if all_members(fence).is_some() => Inside::Array(fence.clone(), 0),
            Body::Array(_) => return false,
        };
        self.inside.push(inside);
        true
    }
}

impl Iterator for Unwrap<'_> {
    type Item = Fence;

    fn next(&mut self) -> Option<Fence> {
        self.look(Fence::clone)
    }
}

/// Whether `fence` is a link of a chain or an array with one inside.
pub(super) fn holds_chain(fence: &Fence) -> bool {
    let mut todo = vec![fence];
    while let Some(fence) = todo.pop() {
        if fence.is_chain() {
            return true;
        }
        if fence.array_mode() == Some(ArrayMode::All) {
            todo.extend(fence.members().unwrap_or_default());
        }
    }
    false
}

/// The smallest fence that signals when all of `fences` have.
///
/// They are unwrapped; of each context only the latest fence counts; what has signalled with success is left out. If
/// one fence remains it is returned as it is; if none does, the answer has signalled, at the time of the last of them.
pub fn merge(fences: impl IntoIterator<Item = Fence>) -> Fence {
    let mut waiting = Vec::new();
    let mut failed = None;
    let mut last: Option<Timestamp> = None;
    for fence in fences {
        let mut plain = unwrap(&fence);
        let mut sort = |fence: &Fence| match fence.status() {
            None => waiting.push(fence.clone()),
            Some(status) => {
                last = last.max(fence.timestamp());
                if status.is_err() {
                    failed.get_or_insert_with(|| fence.clone());
                }
            }
        };
        while plain.look(&mut sort).is_some() {}
    }
    keep_latest_of_each_context(&mut waiting);
    // An error must not get lost: the first fence that failed stays.
    waiting.extend(failed);
    if waiting.len() > 1 {
        return Fence::array(waiting, ArrayMode::All);
    }
    waiting.pop().unwrap_or_else(|| last.map_or_else(Fence::signalled, Fence::signalled_at))
}

fn keep_latest_of_each_context(fences: &mut Vec<Fence>) {
    fences.sort_by_key(|fence| (fence.context(), std::cmp::Reverse(fence.seqno())));
    fences.dedup_by_key(|fence| fence.context());
}
