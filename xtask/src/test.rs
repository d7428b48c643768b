//! `cargo xtask test`: everything that must hold before a change is accepted, phase by phase.
//!
//! Each phase prints a heading, what its programs say, and its time. A phase that fails does not keep the others from
//! running; a phase whose programs could not be built or unpacked is a failure too, never silently left out. The last
//! line counts single checks: a test function, a check of the Vulkan client, a subtest of IGT, or a phase that is one.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::clients::{self, Freshness};
use crate::igt::{self, Device};
use crate::process::{self, Limits, Line};
use crate::workspace::{self, Gpu};

/// Building and testing the workspace on a slow machine.
const CARGO_LIMIT: Duration = workspace::BUILD_LIMIT;
/// One run of a client program.
const CLIENT_LIMIT: Duration = Duration::from_secs(5 * 60);

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out the real clients: Mesa, the Vulkan client and IGT.
    #[arg(long)]
    no_clients: bool,
}

/// Runs the task.
///
/// # Errors
/// Never by a phase's failure, which is a result.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let mut report = Report::default();
    report.phase("formatting", || cargo_check(&["fmt", "--all", "--check"]));
    report.phase("lints", || {
        cargo_check(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])
    });
    report.phase("documentation", documentation);
    report.phase("library without std", || {
        cargo_check(&["check", "--quiet", "--package", "lapidary", "--no-default-features"])
    });
    report.phase("unit, rule and integration tests", workspace_tests);
    report.phase("release build", || cargo_check(&["build", "--quiet", "--release"]));
    report.phase("embedded workload", embedded_workload);
    if !args.no_clients {
        client_phases(&mut report);
    }
    println!("\n{}", report.summary());
    Ok(report.accepted())
}

fn client_phases(report: &mut Report) {
    report.phase("real clients", real_clients);
    for gpu in [Gpu::Battlemage, Gpu::Lunarlake] {
        report.phase(&format!("vulkaninfo on {gpu}"), || vulkaninfo(gpu));
    }
    for gpu in [Gpu::Battlemage, Gpu::Lunarlake] {
        report.phase(&format!("Vulkan client on {gpu}"), || vulkan_client(gpu, &[]));
    }
    report.phase("two Vulkan clients at once", || vulkan_client(Gpu::Battlemage, &["--processes", "2"]));
    for gpu in [Gpu::Battlemage, Gpu::Lunarlake] {
        report.phase(&format!("IGT on {gpu}"), || igt_lists(gpu));
    }
}

/// What a phase found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Checks {
    passed: usize,
    failed: usize,
}

impl Checks {
    const ONE_PASSED: Checks = Checks { passed: 1, failed: 0 };

    fn add(&mut self, more: Checks) {
        self.passed += more.passed;
        self.failed += more.failed;
    }
}

struct Phase {
    name: String,
    time: Duration,
    checks: Checks,
}

#[derive(Default)]
struct Report {
    phases: Vec<Phase>,
}

impl Report {
    fn phase(&mut self, name: &str, work: impl FnOnce() -> Result<Checks>) {
        println!("\n== {name}");
        let started = Instant::now();
        let checks = match work() {
            Ok(checks) if checks == Checks::default() => {
                println!("error: nothing was checked");
                Checks { passed: 0, failed: 1 }
            }
            Ok(checks) => checks,
            Err(error) => {
                println!("error: {error:#}");
                Checks { passed: 0, failed: 1 }
            }
        };
        let time = started.elapsed();
        println!(
            "-- {name}: {} passed, {} failed, {:.1} s",
            checks.passed,
            checks.failed,
            time.as_secs_f64()
        );
        self.phases.push(Phase { name: name.to_owned(), time, checks });
    }

    fn total(&self) -> Checks {
        let mut total = Checks::default();
        self.phases.iter().for_each(|phase| total.add(phase.checks));
        total
    }

    fn accepted(&self) -> bool {
        self.total().failed == 0
    }

    fn summary(&self) -> String {
        let mut text = String::from("== summary\n");
        for Phase { name, time, checks } in &self.phases {
            let mark = if checks.failed == 0 { "ok  " } else { "FAIL" };
            let line = format!(
                "{mark} {:>8.1} s  {:>5} passed {:>4} failed  {name}\n",
                time.as_secs_f64(),
                checks.passed,
                checks.failed
            );
            text.push_str(&line);
        }
        let total = self.total();
        text.push_str(&format!("{} passed, {} failed", total.passed, total.failed));
        text
    }
}

/// Runs a command, shows what it prints, and gives each line to `on_line` too. Its failure is an error.
fn run_shown(command: &mut Command, limit: Duration, mut on_line: impl FnMut(&str)) -> Result<()> {
    let ended = process::run(command, Limits::total(limit), |line| {
        println!("{line}");
        on_line(line);
        Line::Other
    })?;
    if !ended.success() {
        let program = command.get_program().to_string_lossy().into_owned();
        bail!("{program}: {}", ended.describe());
    }
    Ok(())
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(workspace::cargo());
    command.current_dir(workspace::root()).args(args);
    command
}

fn cargo_check(args: &[&str]) -> Result<Checks> {
    run_shown(&mut cargo(args), CARGO_LIMIT, |_| {})?;
    Ok(Checks::ONE_PASSED)
}

/// The program `lapidary` and the library of that name would write their pages over one another's: the program goes
/// first, so that the library's stay.
fn documentation() -> Result<Checks> {
    for packages in [["--package", "lapidary-cli"].as_slice(), &["--workspace", "--exclude", "lapidary-cli"]]
    {
        let mut command = cargo(&["doc", "--quiet", "--no-deps", "--document-private-items"]);
        command.args(packages).env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links");
        run_shown(&mut command, CARGO_LIMIT, |_| {})?;
    }
    Ok(Checks::ONE_PASSED)
}

/// Counts test functions over all test programs. One that fails, or a program that ends early, is an error of cargo's as
/// well: it counts once.
fn workspace_tests() -> Result<Checks> {
    let mut checks = Checks::default();
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    let outcome = run_shown(&mut command, CARGO_LIMIT, |line| {
        if let Some(more) = harness_result(line) {
            checks.add(more);
        }
    });
    match outcome {
        Err(error) if checks.failed == 0 => Err(error),
        _ => Ok(checks),
    }
}

/// `test result: ok. 12 passed; 0 failed; …`
fn harness_result(line: &str) -> Option<Checks> {
    let rest = line.strip_prefix("test result: ")?;
    let counts = rest.split_once(". ")?.1;
    let count = |what: &str| {
        let part = counts.split("; ").find_map(|part| part.strip_suffix(what))?;
        part.trim().parse().ok()
    };
    Some(Checks { passed: count("passed")?, failed: count("failed")? })
}

fn embedded_workload() -> Result<Checks> {
    let mut command = Command::new(workspace::release_program("lapidary"));
    command.args(["run", "--check-tlb"]);
    let mut reported = false;
    run_shown(&mut command, CLIENT_LIMIT, |line| reported |= !line.is_empty())?;
    ensure!(reported, "the workload ended without its report");
    Ok(Checks::ONE_PASSED)
}

fn real_clients() -> Result<Checks> {
    clients::install(&clients::mesa::SET, Freshness::Present)?;
    clients::install(&clients::igt::SET, Freshness::Present)?;
    cargo_check(&["build", "--quiet", "--release", "--package", "vulkan-client"])
}

fn on_device(gpu: Gpu) -> Device {
    Device { gpu, vram: None }
}

fn vulkaninfo(gpu: Gpu) -> Result<Checks> {
    let mut command = on_device(gpu).run_command();
    command.envs(clients::mesa::environment()?);
    command.arg(clients::mesa::vulkaninfo()).arg("--summary");
    let wanted = match gpu {
        Gpu::Battlemage => "0xe20b",
        Gpu::Lunarlake => "0x64a0",
    };
    let mut found = false;
    run_shown(&mut command, CLIENT_LIMIT, |line| {
        found |= line.trim_start().starts_with("deviceID") && line.contains(wanted);
    })?;
    if !found {
        bail!("vulkaninfo does not list the device {wanted}");
    }
    Ok(Checks::ONE_PASSED)
}

/// The client's own closing line counts its checks; with `--strict` it fails for one that it had to skip.
fn vulkan_client(gpu: Gpu, args: &[&str]) -> Result<Checks> {
    let mut command = on_device(gpu).run_command();
    command.envs(clients::mesa::environment()?);
    command.arg(workspace::release_program("vulkan-client")).arg("--strict").args(args);
    let mut closing = None;
    let outcome = run_shown(&mut command, CLIENT_LIMIT, |line| closing = client_result(line).or(closing));
    match (outcome, closing) {
        (Err(error), Some(checks)) if checks.failed == 0 => Err(error),
        (Err(_), Some(checks)) => Ok(checks),
        (outcome, closing) => outcome.and_then(|()| closing.context("the client said no result")),
    }
}

/// `total: 12 passed, 0 failed, 0 skipped`. Under `--strict` a skipped check is a failed one.
fn client_result(line: &str) -> Option<Checks> {
    let counts = line.strip_prefix("total: ")?;
    let count = |what: &str| -> Option<usize> {
        counts.split(", ").find_map(|part| part.strip_suffix(what))?.trim().parse().ok()
    };
    Some(Checks { passed: count("passed")?, failed: count("failed")? + count("skipped")? })
}

fn igt_lists(gpu: Gpu) -> Result<Checks> {
    let counts = igt::run_lists(&on_device(gpu))?;
    println!("{counts}");
    // Known skips and failures are neither.
    let failed = counts.worse.max(usize::from(!counts.accepted()));
    Ok(Checks { passed: counts.passed, failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_harness_counts_are_read() {
        let line =
            "test result: ok. 12 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(harness_result(line), Some(Checks { passed: 12, failed: 1 }));
        assert_eq!(harness_result("test a ... ok"), None);
    }

    #[test]
    fn a_skipped_check_of_the_client_counts_as_failed() {
        let read = client_result("total: 30 passed, 1 failed, 2 skipped");
        assert_eq!(read, Some(Checks { passed: 30, failed: 3 }));
    }
}
