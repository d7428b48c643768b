//! Running checks: a line for each, a closing line, several processes at once.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::checks::{self, Check, Outcome};
use crate::gpu::{Choice, Context};

/// Begins the closing line, which other programs read.
const CLOSING: &str = "total: ";

/// Checks counted by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    fn closing_line(self) -> String {
        format!("{CLOSING}{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }

    fn parse(line: &str) -> Option<Counts> {
        let mut counts = line.strip_prefix(CLOSING)?.split(", ");
        let mut next = |word: &str| counts.next()?.strip_suffix(word)?.trim().parse().ok();
        Some(Counts { passed: next("passed")?, failed: next("failed")?, skipped: next("skipped")? })
    }
}

/// Prints the checks' names.
pub(crate) fn list() {
    for check in checks::all() {
        println!("{}", check.name);
    }
}

/// Runs the checks that `filters` choose. Returns whether all is well.
///
/// # Errors
/// When the device can't be opened or no check is chosen.
pub(crate) fn run(choice: &Choice, filters: &[String], strict: bool) -> Result<bool> {
    let mut chosen = checks::all();
    chosen.retain(|check| {
        filters.is_empty() || filters.iter().any(|filter| check.name.contains(filter.as_str()))
    });
    ensure!(!chosen.is_empty(), "no check has a name like that (--list prints them)");
    let context = Context::open(choice)?;
    println!("device: {}", context.device_name());
    let mut counts = Counts::default();
    for check in &chosen {
        run_check(&context, choice, check, &mut counts);
    }
    println!("{}", counts.closing_line());
    Ok(counts.failed == 0 && (!strict || counts.skipped == 0))
}

fn run_check(context: &Context, choice: &Choice, check: &Check, counts: &mut Counts) {
    let started = Instant::now();
    let outcome = (check.run)(context, choice);
    let time = started.elapsed().as_secs_f64() * 1000.0;
    let name = &check.name;
    match outcome {
        Ok(Outcome::Passed(detail)) => {
            counts.passed += 1;
            println!("ok    {name:<40} {time:>9.1} ms  {detail}");
        }
        Ok(Outcome::Skipped(reason)) => {
            counts.skipped += 1;
            println!("skip  {name:<40} {time:>9.1} ms  {reason}");
        }
        Err(error) => {
            counts.failed += 1;
            println!("FAIL  {name:<40} {time:>9.1} ms  {error:#}");
        }
    }
}

/// Runs this program `count` times at once with the same arguments. Returns whether all of them are well.
///
/// # Errors
/// When one can't be started.
pub(crate) fn run_processes(count: u32) -> Result<bool> {
    let children = (0..count).map(|_| start_copy()).collect::<Result<Vec<_>>>()?;
    let followers: Vec<_> = children
        .into_iter()
        .zip(1..)
        .map(|(child, number)| thread::spawn(move || follow(child, number)))
        .collect();
    let mut total = Counts::default();
    let mut well = true;
    for (follower, number) in followers.into_iter().zip(1..) {
        let (counts, success) = follower.join().unwrap_or_default();
        well &= success;
        match counts {
            Some(counts) => {
                total.passed += counts.passed;
                total.failed += counts.failed;
                total.skipped += counts.skipped;
            }
            None => {
                println!("FAIL  process {number} ended without a result");
                total.failed += 1;
                well = false;
            }
        }
    }
    println!("{}", total.closing_line());
    Ok(well)
}

fn start_copy() -> Result<Child> {
    let program = std::env::current_exe().context("can't find this program")?;
    let mut arguments = Vec::new();
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        if argument == "--processes" {
            given.next();
        } else if !argument.starts_with("--processes=") {
            arguments.push(argument);
        }
    }
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().context("can't start this program again")
}

/// Shows a process's lines under its number. Returns its counts and whether it ended well.
fn follow(mut child: Child, number: u32) -> (Option<Counts>, bool) {
    let mut counts = None;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            counts = Counts::parse(&line).or(counts);
            println!("[{number}] {line}");
        }
    }
    (counts, child.wait().is_ok_and(|status| status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_can_be_read_back() {
        let counts = Counts { passed: 3, failed: 2, skipped: 1 };
        assert_eq!(Counts::parse(&counts.closing_line()), Some(counts));
        assert_eq!(Counts::parse("ok    a 1 ms"), None);
    }
}
