//! Taking containers apart, and making one fence of many.

use super::{ArrayMode, Fence, Timestamp, core::Body};

/// The plain fences inside a fence; see [`unwrap`].
#[derive(Debug)]
pub struct Unwrap {
    /// What is still to be looked at, next last.
    todo: Vec<Fence>,
}

/// Walks the plain fences that `fence` waits for: itself if it is plain, else those of its links and members, however
/// they nest.
///
/// Links of a chain that are known to be finished are left out. An array that waits for *any* of its members can't be
/// taken apart without changing what it means, so it counts as plain.
pub fn unwrap(fence: &Fence) -> Unwrap {
    Unwrap { todo: vec![fence.clone()] }
}

impl Iterator for Unwrap {
    type Item = Fence;

    fn next(&mut self) -> Option<Fence> {
        while let Some(fence) = self.todo.pop() {
            match &fence.0.body {
                Body::Array(array) if fence.array_mode() == Some(ArrayMode::All) => {
                    self.todo.extend(array.members.iter().rev().cloned());
                }
                Body::Chain(_) => {
                    self.todo.extend(fence.chain_prev());
                    self.todo.push(fence.chain_contained().clone());
                }
                Body::Plain | Body::Array(_) => return Some(fence),
            }
        }
        None
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
    for fence in fences.into_iter().flat_map(|fence| unwrap(&fence)) {
        match fence.status() {
            None => waiting.push(fence),
            Some(status) => {
                last = last.max(fence.timestamp());
                if status.is_err() {
                    failed.get_or_insert(fence);
                }
            }
        }
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
