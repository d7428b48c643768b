//! A timeline's value and its points.
//!
//! ```text
//!            value                           a fence at 3: passed, signals at once
//!   ──┬────────┼────┬────────┬───►           advance by 4: those at 9 and 10 signal, in this order
//!     3        6    9        12
//! ```
//!
//! Clients count in 32 bits and go round: what is less than half of the numbers ahead is to come, the rest has passed. In
//! here the count is 64 bits long and never goes round, so a fence's sequence number orders it among all fences of the
//! timeline.
//!
//! Locks: `state`, held while fences signal and their callbacks run. So a fence that was passed has signalled for whoever
//! creates another after it, and fences signal in order whoever advances. It is taken with nothing else held, and never by
//! a callback: a deadline hint, which may come from one, goes past it through an atomic word.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lapidary::fence::{Fence, FenceContext, Seqno, Signaller, Timestamp};
use parking_lot::Mutex;

use crate::core::{Error, NamedContext, fence_error};
use crate::transport::Errno;

/// Most points of one timeline that are to come: a fence is kept until it signals, whether or not anybody still has it.
const MAX_POINTS: usize = 1 << 16;
/// What a point's deadline says before there is one.
const NO_DEADLINE: u64 = u64::MAX;

/// A counter, and fences that signal when it comes to their value.
pub(super) struct Timeline {
    context: NamedContext,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    value: u64,
    /// What is above the value.
    points: BTreeMap<u64, Point>,
}

struct Point {
    signaller: Signaller,
    /// Nanoseconds.
    deadline: Arc<AtomicU64>,
}

impl State {
    /// The count that a client means by `value`: above the present one if it is to come. What would lie before the
    /// beginning is 0.
    fn count(&self, value: u32) -> u64 {
        let ahead = value.wrapping_sub(self.value as u32).cast_signed();
        self.value.saturating_add_signed(ahead.into())
    }
}

impl Timeline {
    /// A timeline at 0, called `name`.
    pub(super) fn new(name: &str) -> Self {
        Self { context: NamedContext::new("sw_sync", name), state: Mutex::default() }
    }

    /// The context of its fences.
    pub(super) fn context(&self) -> FenceContext {
        self.context.context()
    }

    /// The fence at `value`: one that has signalled, if it has passed. As long as it is to come, it is the same for all who
    /// ask.
    ///
    /// # Errors
    /// `ENOMEM` when too many points are to come.
    pub(super) fn fence(&self, value: u32) -> Result<Fence, Error> {
        let mut state = self.state.lock();
        let point = state.count(value);
        if point <= state.value {
            let (fence, signaller) = Fence::new(self.context(), Seqno(point));
            signaller.signal();
            return Ok(fence);
        }
        if let Some(there) = state.points.get(&point) {
            return Ok(there.signaller.fence().clone());
        }
        if state.points.len() >= MAX_POINTS {
            return Err(Error::OutOfMemory("another point of a timeline"));
        }
        let (fence, signaller) = Fence::new(self.context(), Seqno(point));
        let deadline = Arc::new(AtomicU64::new(NO_DEADLINE));
        let hint = Arc::clone(&deadline);
        signaller.on_deadline(move |time| {
            hint.fetch_min(time.as_nanos(), Ordering::Relaxed);
        });
        state.points.insert(point, Point { signaller, deadline });
        Ok(fence)
    }

    /// Advances the timeline and signals what it passes, in order.
    pub(super) fn advance(&self, by: u32) {
        let mut state = self.state.lock();
        state.value += u64::from(by);
        let value = state.value;
        while let Some(first) = state.points.first_entry().filter(|first| *first.key() <= value) {
            first.remove().signaller.signal();
        }
    }

    /// The earliest deadline that was given to a fence of this timeline; `None` if there is none, or the fence has signalled.
    pub(super) fn deadline(&self, fence: &Fence) -> Option<Timestamp> {
        let state = self.state.lock();
        let point = state.points.get(&fence.seqno().get())?;
        match point.deadline.load(Ordering::Relaxed) {
            NO_DEADLINE => None,
            time => Some(Timestamp::from_nanos(time)),
        }
    }

    /// Fails what is to come with `ENOENT`: nobody is left to advance the timeline.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        while let Some((_, point)) = state.points.pop_first() {
            point.signaller.fail(fence_error(Errno::NOENT));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use lapidary::fence::{Deadline, Interrupt, merge};

    use super::*;

    fn timeline() -> Timeline {
        Timeline::new("test")
    }

    #[test]
    fn a_fence_signals_when_the_timeline_comes_to_its_value() {
        let timeline = timeline();
        let fence = timeline.fence(5).unwrap();
        timeline.advance(4);
        assert!(!fence.is_signalled());
        timeline.advance(1);
        assert_eq!(fence.status(), Some(Ok(())));
        assert!(timeline.fence(5).unwrap().is_signalled());
        assert!(timeline.fence(0).unwrap().is_signalled());
    }

    #[test]
    fn those_passed_together_signal_in_order() {
        let (sender, order) = channel();
        let timeline = timeline();
        for value in [7, 2, 9, 4] {
            let sender = sender.clone();
            timeline.fence(value).unwrap().on_signal(move |_| sender.send(value).unwrap());
        }
        timeline.advance(8);
        assert_eq!(order.try_iter().collect::<Vec<_>>(), [2, 4, 7]);
    }

    #[test]
    fn a_value_to_come_is_one_fence_for_all() {
        let timeline = timeline();
        let (one, other) = (timeline.fence(3).unwrap(), timeline.fence(3).unwrap());
        assert!(one.ptr_eq(&other));
        timeline.advance(3);
        assert!(!one.ptr_eq(&timeline.fence(3).unwrap()));
    }

    #[test]
    fn numbers_go_round_and_order_stays() {
        let timeline = timeline();
        timeline.advance(u32::MAX);
        let (before, after) = (timeline.fence(u32::MAX).unwrap(), timeline.fence(2).unwrap());
        assert!(before.is_signalled() && !after.is_signalled());
        let nearer = timeline.fence(1).unwrap();
        assert!(after.is_later_than(&nearer), "the later number is the smaller one's successor");
        assert!(merge([after.clone(), nearer.clone()]).ptr_eq(&after));
        timeline.advance(2);
        assert!(nearer.is_signalled() && !after.is_signalled());
        timeline.advance(1);
        assert!(after.is_signalled());
    }

    #[test]
    fn a_fence_that_was_passed_is_never_later_than_one_to_come() {
        let timeline = timeline();
        let to_come = timeline.fence(1).unwrap();
        for passed in [0, u32::MAX, 1 << 31] {
            let passed = timeline.fence(passed).unwrap();
            assert!(passed.is_signalled() && to_come.is_later_than(&passed));
        }
    }

    #[test]
    fn half_of_the_numbers_are_to_come_and_half_have_passed() {
        let timeline = timeline();
        timeline.advance(10);
        let last = timeline.fence(10 + i32::MAX as u32).unwrap();
        assert!(!last.is_signalled());
        assert!(timeline.fence(11 + i32::MAX as u32).unwrap().is_signalled());
        timeline.advance(i32::MAX as u32);
        assert!(last.is_signalled());
    }

    #[test]
    fn what_is_left_when_the_timeline_closes_fails() {
        let timeline = timeline();
        let (passed, left) = (timeline.fence(1).unwrap(), timeline.fence(2).unwrap());
        timeline.advance(1);
        timeline.close();
        assert_eq!(passed.status(), Some(Ok(())));
        assert_eq!(left.status(), Some(Err(fence_error(Errno::NOENT))));
    }

    #[test]
    fn the_earliest_deadline_counts_until_the_signal() {
        let timeline = timeline();
        let fence = timeline.fence(1).unwrap();
        assert_eq!(timeline.deadline(&fence), None);
        for time in [30, 20, 40] {
            fence.set_deadline(Timestamp::from_nanos(time));
        }
        assert_eq!(timeline.deadline(&fence), Some(Timestamp::from_nanos(20)));
        timeline.advance(1);
        assert_eq!(timeline.deadline(&fence), None);
    }

    #[test]
    fn a_deadline_may_be_given_by_what_another_fence_of_the_timeline_sets_off() {
        let timeline = timeline();
        let (first, second) = (timeline.fence(1).unwrap(), timeline.fence(2).unwrap());
        let hinted = second.clone();
        first.on_signal(move |_| hinted.set_deadline(Timestamp::from_nanos(7)));
        timeline.advance(1);
        assert_eq!(timeline.deadline(&second), Some(Timestamp::from_nanos(7)));
    }

    #[test]
    fn the_points_to_come_are_limited_and_passing_makes_room() {
        let timeline = timeline();
        for value in 1..=MAX_POINTS as u32 {
            timeline.fence(value).unwrap();
        }
        let one_more = MAX_POINTS as u32 + 1;
        assert!(timeline.fence(one_more).is_err());
        assert!(timeline.fence(MAX_POINTS as u32).is_ok(), "one that is there");
        timeline.advance(1);
        assert!(timeline.fence(one_more).is_ok());
    }

    /// Whoever sees a fence signalled sees all before it signalled, and what is created then.
    #[test]
    fn fences_signal_in_order_whoever_advances() {
        const VALUES: u32 = 2_000;
        let timeline = timeline();
        let fences: Vec<Fence> = (1..=VALUES).map(|value| timeline.fence(value).unwrap()).collect();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..VALUES / 2).for_each(|_| timeline.advance(1)));
            }
            scope.spawn(|| {
                for value in (1..=VALUES).step_by(41) {
                    let (passed, _) = fences.split_at(value as usize);
                    passed[passed.len() - 1].wait(Deadline::never(), &Interrupt::none()).unwrap();
                    assert!(passed.iter().all(Fence::is_signalled));
                    assert!(timeline.fence(value).unwrap().is_signalled());
                }
            });
        });
        assert!(!timeline.fence(VALUES + 1).unwrap().is_signalled());
    }
}
