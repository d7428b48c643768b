//! Running one IGT program: all its chosen subtests, whatever happens to the program on the way.
//!
//! ```text
//! chosen subtests ──▶ lapidary run -- PROGRAM --run-subtest a,b,c ──▶ results of a, b …
//!        ▲                                                                 │
//!        └────────── what is left after a crash or a hang ◀────────────────┘
//! ```

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::output::{Event, Finished, Outcome, Parser};
use crate::clients;
use crate::process::{self, Ended, Limits, Line};
use crate::workspace::{self, Gpu};

/// IGT's exit status when subtests of a program that has none are asked for.
const NO_SUBTESTS: i32 = 79;
/// The name under which a program without subtests appears.
pub(super) const WHOLE_PROGRAM: &str = "(program)";
/// How long a program may take to say which subtests it has.
const LISTING: Duration = Duration::from_secs(30);
/// Linux takes no longer argument; the subtests' names are one.
const LONGEST_ARGUMENT: usize = 100_000;

/// The exit status of `lapidary run` when the device itself failed.
const DEVICE_FAILED: i32 = 125;

/// The device that the programs run on.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    /// Its profile.
    pub(crate) gpu: Gpu,
    /// Its VRAM, as `lapidary run` takes it.
    pub(crate) vram: Option<String>,
}

impl Device {
    /// `lapidary run … --`, to be followed by a program and its arguments. The device checks itself.
    pub(crate) fn run_command(&self) -> Command {
        let mut command = Command::new(workspace::release_program("lapidary"));
        command.args(["run", "--check-tlb", "--gpu", self.gpu.name()]);
        if let Some(vram) = &self.vram {
            command.args(["--vram", vram]);
        }
        command.arg("--");
        command
    }
}

/// The names of a program's subtests, in its order.
///
/// # Errors
/// When the program does not tell.
pub(super) fn subtests(program: &str) -> Result<Vec<String>> {
    let mut command = Command::new("env");
    forget_users_settings(&mut command);
    command.envs(clients::igt::environment()?);
    command.args(clients::igt::command_line(program)?).arg("--list-subtests");
    let mut names = Vec::new();
    let ended = process::run(&mut command, Limits::total(LISTING), |line| {
        names.push(line.to_owned());
        Line::Other
    })?;
    match ended {
        Ended::Exited(status) if status.code() == Some(NO_SUBTESTS) => Ok(vec![WHOLE_PROGRAM.to_owned()]),
        Ended::Exited(status) if status.success() && !names.is_empty() => Ok(names),
        other => bail!("{program} --list-subtests: {} {}", other.describe(), names.join(" ")),
    }
}

/// What is to be said of a program's run beside its subtests' results.
pub(super) struct Ran {
    /// Where its whole output is.
    pub(super) log: PathBuf,
    /// Whether the device said that it did something wrong.
    pub(super) device_failed: bool,
}

/// Runs `chosen` subtests of `program` and calls `on_result` as each ends.
///
/// # Errors
/// When the program can't be started or the log not be written.
pub(super) fn run(
    program: &str,
    chosen: &[String],
    device: &Device,
    limits: Limits,
    mut on_result: impl FnMut(&Finished),
) -> Result<Ran> {
    let (path, mut log) = open_log(program, device.gpu)?;
    let command = |names: &[String]| command(program, names, device);
    let device_failed = run_rounds(chosen, limits, command, &mut log, &mut on_result)?;
    Ok(Ran { log: path, device_failed })
}

/// Runs the commands that `command` makes for what is left, until nothing is. Whether the device failed in any.
fn run_rounds(
    chosen: &[String],
    limits: Limits,
    command: impl Fn(&[String]) -> Result<Command>,
    log: &mut impl Write,
    on_result: &mut impl FnMut(&Finished),
) -> Result<bool> {
    let deadline = Instant::now() + limits.total;
    let mut left: Vec<String> = chosen.to_vec();
    let mut device_failed = false;
    while !left.is_empty() {
        let total = deadline.saturating_duration_since(Instant::now());
        let round = Limits { total, step: limits.step };
        let batch = first_that_fit(&left);
        let (done, ended) = run_round(command(batch)?, batch, round, log, on_result)?;
        device_failed |= matches!(ended, Ended::Exited(status) if status.code() == Some(DEVICE_FAILED));
        let before = left.len();
        left.retain(|name| !done.contains(name));
        if left.len() == before || ended == Ended::TooLong {
            give_up(&left, ended, on_result);
            break;
        }
    }
    Ok(device_failed)
}

/// One run of the program. Returns the subtests that have a result now.
fn run_round(
    mut command: Command,
    names: &[String],
    limits: Limits,
    log: &mut impl Write,
    on_result: &mut impl FnMut(&Finished),
) -> Result<(BTreeSet<String>, Ended)> {
    writeln!(log, "$ {command:?}")?;
    let mut parser = Parser::default();
    let mut done = BTreeSet::new();
    let started = Instant::now();
    let mut step_started = started;
    let ended = process::run(&mut command, limits, |line| {
        // The log is an aid: a full disk must not end the tests.
        let _ = writeln!(log, "{line}");
        let Some(event) = parser.line(line) else { return Line::Other };
        step_started = Instant::now();
        if let Event::Finished(mut finished) = event {
            if finished.name.is_empty() {
                WHOLE_PROGRAM.clone_into(&mut finished.name);
            }
            if names.contains(&finished.name) && done.insert(finished.name.clone()) {
                on_result(&finished);
            }
        }
        Line::Step
    })?;
    let unfinished = parser.unfinished().or_else(|| whole_program_unfinished(names, &done));
    if let Some((name, reason)) = unfinished
        && names.contains(&name)
        && done.insert(name.clone())
    {
        let (outcome, how) = match ended {
            Ended::Exited(status) => (Outcome::Crash, status.to_string()),
            Ended::StepTooLong | Ended::TooLong => (Outcome::Timeout, "killed".to_owned()),
        };
        let reason = reason.map_or(how.clone(), |reason| format!("{how}; {reason}"));
        on_result(&Finished { name, outcome, time: step_started.elapsed(), reason: Some(reason) });
    }
    Ok((done, ended))
}

/// A program without subtests does not announce that it starts.
fn whole_program_unfinished(names: &[String], done: &BTreeSet<String>) -> Option<(String, Option<String>)> {
    let only = names.first().filter(|name| *name == WHOLE_PROGRAM && !done.contains(*name))?;
    Some((only.clone(), None))
}

/// The program reports nothing any more: what is left is lost.
fn give_up(left: &[String], ended: Ended, on_result: &mut impl FnMut(&Finished)) {
    let (outcome, reason) = match ended {
        Ended::Exited(status) => (Outcome::Crash, format!("the program reported nothing: {status}")),
        Ended::StepTooLong => (Outcome::Timeout, "the program hung before its first subtest".to_owned()),
        Ended::TooLong => (Outcome::Timeout, "the program's time was used up".to_owned()),
    };
    for name in left {
        let reason = Some(reason.clone());
        on_result(&Finished { name: name.clone(), outcome, time: Duration::ZERO, reason });
    }
}

fn command(program: &str, names: &[String], device: &Device) -> Result<Command> {
    let mut command = device.run_command();
    forget_users_settings(&mut command);
    command.envs(clients::igt::environment()?);
    command.args(clients::igt::command_line(program)?);
    if names.first().is_some_and(|name| name != WHOLE_PROGRAM) {
        command.arg("--run-subtest").arg(names.join(","));
    }
    Ok(command)
}

/// As many names as fit into one argument.
fn first_that_fit(names: &[String]) -> &[String] {
    let mut length = 0;
    let fit = names.iter().take_while(|name| {
        length += name.len() + 1;
        length <= LONGEST_ARGUMENT
    });
    let count = fit.count().max(1);
    &names[..count]
}

/// IGT takes its settings from variables; those of the user's session are not meant for these runs.
fn forget_users_settings(command: &mut Command) {
    let ours = |name: &OsString| name.to_string_lossy().starts_with("IGT_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
}

fn open_log(program: &str, gpu: Gpu) -> Result<(PathBuf, File)> {
    let dir = workspace::target_dir().join("igt").join(gpu.name());
    fs::create_dir_all(&dir).with_context(|| format!("can't create {}", dir.display()))?;
    let path = dir.join(format!("{program}.log"));
    let file = File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
    Ok((path, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a script in which `$1` is the list of subtests to run, and gives what became of each.
    fn outcomes(script: &str, names: &[&str], limits: Limits) -> Vec<(String, Outcome)> {
        let chosen: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let command = |names: &[String]| {
            let mut command = Command::new("sh");
            command.args(["-c", script, "sh"]).arg(names.join(","));
            Ok(command)
        };
        let mut seen = Vec::new();
        let mut on_result = |finished: &Finished| seen.push((finished.name.clone(), finished.outcome));
        run_rounds(&chosen, limits, command, &mut Vec::new(), &mut on_result).unwrap();
        seen
    }

    fn expected(results: &[(&str, Outcome)]) -> Vec<(String, Outcome)> {
        results.iter().map(|&(name, outcome)| (name.to_owned(), outcome)).collect()
    }

    /// Runs subtests in order; `b` does what it is told.
    fn program(b: &str) -> String {
        format!(
            "IFS=,; for name in $1; do echo \"Starting subtest: $name\"; [ $name = b ] && {b}; \
             echo \"Subtest $name: SUCCESS (0.0s)\"; done"
        )
    }

    #[test]
    fn a_device_that_failed_is_noticed_though_every_subtest_passed() {
        let names = ["a".to_owned()];
        for (status, failed) in [(0, false), (1, false), (DEVICE_FAILED, true)] {
            let script = format!("{}; exit {status}", program("true"));
            let command = |_: &[String]| {
                let mut command = Command::new("sh");
                command.args(["-c", &script, "sh", "a"]);
                Ok(command)
            };
            let mut passed = 0;
            let mut count = |finished: &Finished| passed += u32::from(finished.outcome == Outcome::Pass);
            let noticed = run_rounds(&names, AMPLE, command, &mut Vec::new(), &mut count).unwrap();
            assert_eq!((noticed, passed), (failed, 1));
        }
    }

    const AMPLE: Limits = Limits { total: Duration::from_secs(60), step: Duration::from_secs(60) };

    #[test]
    fn what_comes_after_a_crash_still_runs() {
        let found = outcomes(&program("kill -SEGV $$"), &["a", "b", "c"], AMPLE);
        assert_eq!(found, expected(&[("a", Outcome::Pass), ("b", Outcome::Crash), ("c", Outcome::Pass)]));
    }

    #[test]
    fn what_comes_after_a_hang_still_runs() {
        let limits = Limits { step: Duration::from_millis(500), ..AMPLE };
        let found = outcomes(&program("exec sleep 1000"), &["a", "b", "c"], limits);
        assert_eq!(found, expected(&[("a", Outcome::Pass), ("b", Outcome::Timeout), ("c", Outcome::Pass)]));
    }

    #[test]
    fn a_program_that_reports_nothing_loses_all_its_subtests() {
        let found = outcomes("exit 1", &["a", "b"], AMPLE);
        assert_eq!(found, expected(&[("a", Outcome::Crash), ("b", Outcome::Crash)]));
    }

    #[test]
    fn a_program_without_subtests_that_crashes_has_crashed() {
        let found = outcomes("kill -SEGV $$", &[WHOLE_PROGRAM], AMPLE);
        assert_eq!(found, expected(&[(WHOLE_PROGRAM, Outcome::Crash)]));
    }
}
