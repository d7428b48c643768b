//! Watching jobs that are in flight: has the first of a queue had its time?
//!
//! Jobs of a queue complete in order, so only the first in flight is watched. Its time runs from when it was handed over or, if
//! that was later, from when the one before it ended. Nothing is asked of the fences: a worker looks when the time may be up,
//! and goes by what has signalled by then and when.
//!
//! ```text
//!   handed over ──▶ watched ──time is up, still in flight──▶ Backend::timed_out ──▶ watched, for as long again
//!                      │
//!                      └──signalled──▶ the next in flight, or nothing to watch
//! ```
//!
//! A look is put on the scheduler's list with the watch's generation. A later one makes earlier ones void, so that of all
//! looks on the list one counts.

use std::collections::VecDeque;
use std::time::Duration;

use crate::fence::{Fence, Timestamp};

/// What a queue notes of its jobs in flight. Part of its state.
#[derive(Default)]
pub(super) struct Watch {
    timeout: Option<Duration>,
    /// What was handed over and was not seen to have signalled, with when that was.
    in_flight: VecDeque<(Fence, Timestamp)>,
    /// Since when the first of them has had its time.
    since: Timestamp,
    /// Its time counts as up.
    given_up: bool,
    /// The backend is being told of it: nobody looks until that is over.
    reported: bool,
    /// The look that counts.
    generation: u64,
    /// Whether that look is on the scheduler's list, or on its way there.
    listed: bool,
}

/// When to look, and for which generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) at: Timestamp,
    pub(super) generation: u64,
}

impl Watch {
    /// Watches what is handed over from now on for `timeout`, or no longer if there is none.
    pub(super) fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
        if timeout.is_none() {
            self.in_flight.clear();
        }
    }

    /// Notes a job that is being handed over. Answers when to look, if nobody will yet.
    pub(super) fn hand_over(&mut self, job: &Fence) -> Option<Look> {
        self.timeout?;
        self.pass_signalled();
        let now = Timestamp::now();
        if self.in_flight.is_empty() {
            (self.since, self.given_up) = (now, false);
        }
        self.in_flight.push_back((job.clone(), now));
        if self.listed { None } else { self.next_look() }
    }

    /// Counts the time of the job in flight as up. Answers the look that is to find that.
    pub(super) fn give_up(&mut self) -> Option<Look> {
        self.pass_signalled();
        self.given_up = !self.reported && !self.in_flight.is_empty();
        if self.given_up { self.next_look() } else { None }
    }

    /// Starts the time of the job in flight anew. Answers when to look.
    pub(super) fn start_anew(&mut self) -> Option<Look> {
        self.pass_signalled();
        (self.since, self.given_up) = (Timestamp::now(), false);
        self.next_look()
    }

    /// Looks. Answers the job whose time is up, and nobody looks until [`was_reported`](Self::was_reported) follows.
    /// Otherwise when to look again, or nothing.
    pub(super) fn look(&mut self, generation: u64) -> Result<Option<Look>, Fence> {
        if generation != self.generation {
            return Ok(None);
        }
        self.pass_signalled();
        match (self.next_look(), self.in_flight.front()) {
            (Some(next), Some((job, _))) if next.at <= Timestamp::now() => {
                self.reported = true;
                Err(job.clone())
            }
            (next, _) => Ok(next),
        }
    }

    /// The backend was told of a job whose time was up. What is in flight has its whole time again. Answers when to look.
    pub(super) fn was_reported(&mut self) -> Option<Look> {
        self.reported = false;
        self.start_anew()
    }

    /// Nobody looks until the time is [started anew](Self::start_anew).
    pub(super) fn rest(&mut self) {
        self.generation += 1;
        self.listed = false;
    }

    /// The look at the end of the first job's time, which is the one that counts from now on.
    fn next_look(&mut self) -> Option<Look> {
        self.rest();
        let timeout = self.timeout.filter(|_| !self.reported && !self.in_flight.is_empty())?;
        let at = if self.given_up { Timestamp::default() } else { after(self.since, timeout) };
        self.listed = true;
        Some(Look { at, generation: self.generation })
    }

    /// Forgets jobs that have signalled. The time of the next began when the last of them did.
    fn pass_signalled(&mut self) {
        while let Some(ended) = self.in_flight.front().and_then(|(job, _)| job.timestamp()) {
            self.in_flight.pop_front();
            self.given_up = false;
            if let Some((_, handed_over)) = self.in_flight.front() {
                self.since = ended.max(*handed_over);
            }
        }
    }
}

fn after(time: Timestamp, duration: Duration) -> Timestamp {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    Timestamp::from_nanos(time.as_nanos().saturating_add(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::{Signaller, Timeline};

    const HOUR: Duration = Duration::from_secs(3600);

    fn watch(timeout: Duration) -> Watch {
        let mut watch = Watch::default();
        watch.set_timeout(Some(timeout));
        watch
    }

    fn hand_over(watch: &mut Watch, timeline: &Timeline) -> (Option<Look>, Fence, Signaller) {
        let (job, done) = timeline.next();
        (watch.hand_over(&job), job, done)
    }

    #[test]
    fn the_time_runs_from_the_hand_over_or_from_the_end_of_the_one_before() {
        let (mut watch, timeline) = (watch(HOUR), Timeline::new("test"));
        let (look, first, first_done) = hand_over(&mut watch, &timeline);
        let look = look.expect("somebody has to look");
        assert!(look.at.as_nanos() >= Timestamp::now().as_nanos() + HOUR.as_nanos() as u64 / 2);
        let (none, _second, _second_done) = hand_over(&mut watch, &timeline);
        assert_eq!(none, None, "one look is on the list");
        first_done.signal();
        let next = watch.look(look.generation).unwrap().expect("the second is in flight");
        assert_eq!(next.at, after(first.timestamp().unwrap(), HOUR));
        assert!(matches!(watch.look(look.generation), Ok(None)), "a look that was replaced is void");
    }

    #[test]
    fn what_is_still_in_flight_when_its_time_is_up_is_found_and_then_has_as_long_again() {
        let (mut watch, timeline) = (watch(Duration::ZERO), Timeline::new("test"));
        let (look, job, done) = hand_over(&mut watch, &timeline);
        let found = watch.look(look.unwrap().generation).unwrap_err();
        assert!(found.ptr_eq(&job));
        // While the backend deals with it, it is not found again, whatever happens.
        assert_eq!((watch.give_up(), watch.start_anew()), (None, None));
        watch.set_timeout(Some(HOUR));
        let again = watch.was_reported().expect("still in flight");
        assert_eq!(watch.look(again.generation).unwrap().map(|look| look.at), Some(again.at));
        done.signal();
        assert_eq!(watch.start_anew(), None);
    }

    #[test]
    fn a_job_that_is_given_up_is_found_at_once_and_its_successor_is_not() {
        let (mut watch, timeline) = (watch(HOUR), Timeline::new("test"));
        assert_eq!(watch.give_up(), None, "nothing is in flight");
        let (_, job, done) = hand_over(&mut watch, &timeline);
        let (_, _second, _second_done) = hand_over(&mut watch, &timeline);
        let look = watch.give_up().unwrap();
        assert!(watch.look(look.generation).unwrap_err().ptr_eq(&job));
        watch.was_reported();
        // Given up once more, but it ends before anybody looks.
        let look = watch.give_up().unwrap();
        done.signal();
        assert!(watch.look(look.generation).unwrap().unwrap().at > Timestamp::now());
    }

    #[test]
    fn without_a_timeout_nothing_is_kept() {
        let (mut watch, timeline) = (Watch::default(), Timeline::new("test"));
        let (look, _job, _done) = hand_over(&mut watch, &timeline);
        assert_eq!((look, watch.in_flight.len()), (None, 0));
        let mut watch = self::watch(HOUR);
        let (look, _job, _done) = hand_over(&mut watch, &timeline);
        watch.set_timeout(None);
        assert!(matches!(watch.look(look.unwrap().generation), Ok(None)));
    }
}
