//! What an IGT test program prints, line by line.
//!
//! ```text
//! Starting subtest: NAME
//! Starting dynamic subtest: NAME
//! Dynamic subtest NAME: SUCCESS (0.001s)
//! Test requirement not met in function …, file …:
//! Test requirement: CONDITION
//! EXPLANATION
//! (program:pid) CRITICAL: Failed assertion: CONDITION
//! (program:pid) CRITICAL: error: 1 != 0
//! Subtest NAME: SUCCESS (0.003s)
//! ```

use std::fmt;
use std::time::Duration;

/// What became of a subtest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It passed.
    Pass,
    /// It found that it can't run here.
    Skip,
    /// It failed.
    Fail,
    /// The program died in it.
    Crash,
    /// It took too long and was killed.
    Timeout,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Outcome::Pass => "pass",
            Outcome::Skip => "skip",
            Outcome::Fail => "fail",
            Outcome::Crash => "crash",
            Outcome::Timeout => "timeout",
        })
    }
}

/// A subtest's result with what explains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finished {
    /// The subtest's name; empty for a program without subtests.
    pub(super) name: String,
    /// What became of it.
    pub(super) outcome: Outcome,
    /// How long it took.
    pub(super) time: Duration,
    /// The unmet requirement or the failed assertion, if one was printed.
    pub(super) reason: Option<String>,
}

/// Something that a line told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A subtest, or a dynamic part of one, has begun.
    Started,
    /// A subtest has ended.
    Finished(Finished),
}

/// Follows a program's output.
#[derive(Default)]
pub(super) struct Parser {
    /// The subtest that has started and not ended.
    running: Option<String>,
    /// The dynamic subtest in it, likewise.
    dynamic: Option<String>,
    reason: Option<String>,
    /// The line after a requirement explains it.
    explanation_follows: bool,
}

impl Parser {
    /// The subtest that had started and not ended, with its dynamic part and what it last complained of.
    pub(super) fn unfinished(self) -> Option<(String, Option<String>)> {
        let reason = match (self.dynamic, self.reason) {
            (Some(part), Some(reason)) => Some(format!("in {part}: {reason}")),
            (Some(part), None) => Some(format!("in {part}")),
            (None, reason) => reason,
        };
        self.running.map(|name| (name, reason))
    }

    /// Takes the next line.
    pub(super) fn line(&mut self, line: &str) -> Option<Event> {
        let explains = std::mem::take(&mut self.explanation_follows);
        if let Some(name) = line.strip_prefix("Starting subtest: ") {
            self.running = Some(name.to_owned());
            self.dynamic = None;
            self.reason = None;
            return Some(Event::Started);
        }
        if let Some(name) = line.strip_prefix("Starting dynamic subtest: ") {
            self.dynamic = Some(name.to_owned());
            return Some(Event::Started);
        }
        if let Some(rest) = line.strip_prefix("Dynamic subtest ") {
            self.dynamic_finished(rest);
            return None;
        }
        if let Some(rest) = line.strip_prefix("Subtest ")
            && let Some((name, outcome, time)) = result(rest)
        {
            return Some(Event::Finished(self.finished(name.to_owned(), outcome, time)));
        }
        if let Some((outcome, time)) = whole_program_result(line) {
            return Some(Event::Finished(self.finished(String::new(), outcome, time)));
        }
        self.complaint(line, explains);
        None
    }

    fn finished(&mut self, name: String, outcome: Outcome, time: Duration) -> Finished {
        // An unmet requirement before the first subtest explains every skip that follows: keep it then.
        let reason = if self.running.take().is_some() { self.reason.take() } else { self.reason.clone() };
        self.dynamic = None;
        let reason = reason.filter(|_| outcome != Outcome::Pass);
        Finished { name, outcome, time, reason }
    }

    fn dynamic_finished(&mut self, rest: &str) {
        let part = self.dynamic.take();
        let Some((name, outcome, _)) = result(rest) else { return };
        match outcome {
            Outcome::Pass | Outcome::Skip => {}
            _ => {
                let reason = self.reason.take().map(|reason| format!(": {reason}")).unwrap_or_default();
                self.reason = Some(format!("in {}{reason}", part.as_deref().unwrap_or(name)));
            }
        }
    }

    fn complaint(&mut self, line: &str, explains_requirement: bool) {
        if let Some(condition) = line.strip_prefix("Test requirement: ") {
            self.reason = Some(condition.to_owned());
            self.explanation_follows = true;
        } else if explains_requirement && !line.is_empty() && !line.starts_with("Last errno") {
            self.reason = Some(line.to_owned());
        } else if let Some((_, message)) = line.split_once(" CRITICAL: ") {
            self.critical(message);
        } else if let Some(signal) = line.strip_prefix("Received signal ") {
            self.reason = Some(signal.trim_end_matches('.').to_owned());
        }
    }

    fn critical(&mut self, message: &str) {
        if let Some(assertion) = message.strip_prefix("Failed assertion: ") {
            self.reason = Some(assertion.to_owned());
        } else if let (Some(numbers), Some(reason)) = (message.strip_prefix("error: "), &mut self.reason) {
            reason.push_str(&format!(" ({numbers})"));
        }
    }
}

/// `NAME: RESULT (SECONDSs)`.
fn result(text: &str) -> Option<(&str, Outcome, Duration)> {
    let (name, rest) = text.split_once(": ")?;
    let (outcome, time) = word_and_time(rest)?;
    Some((name, outcome, time))
}

/// `RESULT (SECONDSs)`: the only result line of a program without subtests.
fn whole_program_result(line: &str) -> Option<(Outcome, Duration)> {
    line.starts_with(char::is_uppercase).then(|| word_and_time(line)).flatten()
}

fn word_and_time(text: &str) -> Option<(Outcome, Duration)> {
    let (word, time) = text.split_once(" (")?;
    let outcome = match word {
        "SUCCESS" => Outcome::Pass,
        "SKIP" => Outcome::Skip,
        "FAIL" => Outcome::Fail,
        "CRASH" => Outcome::Crash,
        "TIMEOUT" => Outcome::Timeout,
        _ => return None,
    };
    let seconds: f64 = time.strip_suffix("s)")?.parse().ok()?;
    Some((outcome, Duration::try_from_secs_f64(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(text: &str) -> Vec<(String, Outcome, Option<String>)> {
        let mut parser = Parser::default();
        let events = text.lines().filter_map(|line| parser.line(line));
        let finished = events.filter_map(|event| match event {
            Event::Finished(finished) => Some((finished.name, finished.outcome, finished.reason)),
            Event::Started => None,
        });
        finished.collect()
    }

    #[test]
    fn each_subtests_result_is_read_with_what_explains_it() {
        let text = "Starting subtest: a\nSubtest a: SUCCESS (0.003s)\n\
                    Starting subtest: b\n(xe_b:12) CRITICAL: Failed assertion: ret == 0\n\
                    (xe_b:12) CRITICAL: error: -22 != 0\nSubtest b failed.\nSubtest b: FAIL (0.1s)\n\
                    Starting subtest: c\nTest requirement not met in function f, file g.c:1:\n\
                    Test requirement: has_vram\nno VRAM here\nSubtest c: SKIP (0.000s)\n";
        assert_eq!(
            results(text),
            [
                ("a".into(), Outcome::Pass, None),
                ("b".into(), Outcome::Fail, Some("ret == 0 (-22 != 0)".into())),
                ("c".into(), Outcome::Skip, Some("no VRAM here".into())),
            ]
        );
    }

    #[test]
    fn a_requirement_of_the_whole_program_explains_each_skip() {
        let text = "Test requirement: !(fd<0)\nNo known gpu found\nLast errno: 2, No such file or directory\n\
                    Subtest a: SKIP (0.000s)\nSubtest b: SKIP (0.000s)\n";
        let skipped = |name: &str| (name.to_owned(), Outcome::Skip, Some("No known gpu found".to_owned()));
        assert_eq!(results(text), [skipped("a"), skipped("b")]);
    }

    #[test]
    fn a_failing_dynamic_part_is_named() {
        let text = "Starting subtest: all\nStarting dynamic subtest: engine-1\n\
                    (x:1) CRITICAL: Failed assertion: ok\nDynamic subtest engine-1: FAIL (0.0s)\n\
                    Subtest all: FAIL (0.0s)\n";
        assert_eq!(results(text), [("all".into(), Outcome::Fail, Some("in engine-1: ok".into()))]);
    }

    #[test]
    fn what_was_running_when_the_program_died_is_known() {
        let mut parser = Parser::default();
        parser.line("Starting subtest: a");
        parser.line("Starting dynamic subtest: part");
        assert_eq!(parser.unfinished(), Some(("a".into(), Some("in part".into()))));
    }

    #[test]
    fn a_program_without_subtests_has_one_result() {
        assert_eq!(results("SUCCESS (1.500s)\n"), [(String::new(), Outcome::Pass, None)]);
        assert_eq!(results("Done (after 3s)\n"), []);
    }
}
