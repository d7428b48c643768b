//! `cargo xtask igt`: IGT's test programs on the virtual device, judged by the project's lists.
//!
//! [`runner`] runs a program and gets a result for each of its subtests; [`output`] reads what it prints; [`list`] says
//! what was expected. A subtest that must pass and does not fails the run; so does a known skip that breaks. A subtest
//! that no list knows is reported and does not fail; one that has vanished from IGT is said.

mod list;
mod output;
mod runner;

use anyhow::{Context, Result, ensure};

use crate::clients::{self, Freshness};
use crate::workspace::{self, Gpu};
use list::{Expectation, List};
use output::{Finished, Outcome};
pub(crate) use runner::Device;

/// Families of programs that test what this project is about: `--all` runs them.
const FAMILIES: [&str; 9] =
    ["xe_", "gem_", "prime_", "syncobj_", "vgem_", "core_get", "core_auth", "dmabuf_", "dumb_"];
const SINGLE_PROGRAMS: [&str; 1] = ["sw_sync"];

/// Arguments of `cargo xtask igt`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to run: PROGRAM or PROGRAM@SUBTEST, both with `*` and `?`; every program with a list without any.
    #[arg(value_name = "TEST")]
    tests: Vec<String>,
    /// The device to run on.
    #[arg(long, value_enum, default_value_t = Gpu::Battlemage)]
    gpu: Gpu,
    /// The device's VRAM, as `lapidary run` takes it; what a program's list says without it.
    #[arg(long, value_name = "SIZE")]
    vram: Option<String>,
    /// Run the installed programs of every family, those without a list included.
    #[arg(long)]
    all: bool,
}

/// Runs the task.
///
/// # Errors
/// When IGT or the device can't be started.
pub(crate) fn run(args: &Args) -> Result<bool> {
    workspace::build_release()?;
    clients::install(&clients::igt::SET, Freshness::Present)?;
    let choices = choices(args)?;
    let device = Device { gpu: args.gpu, vram: args.vram.clone() };
    let counts = run_choices(&choices, &device)?;
    println!("{counts}");
    Ok(counts.accepted())
}

/// Runs every program that has a list.
///
/// # Errors
/// When IGT or the device can't be started.
pub(crate) fn run_lists(device: &Device) -> Result<Counts> {
    let programs = list::programs()?;
    let choices: Vec<Choice> = programs.into_iter().map(Choice::whole).collect();
    run_choices(&choices, device)
}

/// A program and the pattern of its subtests.
struct Choice {
    program: String,
    subtests: String,
}

impl Choice {
    fn whole(program: String) -> Choice {
        Choice { program, subtests: "*".to_owned() }
    }
}

fn choices(args: &Args) -> Result<Vec<Choice>> {
    if args.tests.is_empty() {
        let programs = if args.all { programs_of_families()? } else { list::programs()? };
        return Ok(programs.into_iter().map(Choice::whole).collect());
    }
    let installed = clients::igt::programs()?;
    let mut choices = Vec::new();
    for test in &args.tests {
        let (pattern, subtests) = test.split_once('@').unwrap_or((test, "*"));
        let before = choices.len();
        for program in installed.iter().filter(|program| list::matches(pattern, program)) {
            choices.push(Choice { program: program.clone(), subtests: subtests.to_owned() });
        }
        ensure!(choices.len() > before, "IGT has no test program `{pattern}`");
    }
    Ok(choices)
}

fn programs_of_families() -> Result<Vec<String>> {
    let mut programs = clients::igt::programs()?;
    programs.retain(|program| {
        FAMILIES.iter().any(|family| program.starts_with(family))
            || SINGLE_PROGRAMS.contains(&program.as_str())
    });
    Ok(programs)
}

fn run_choices(choices: &[Choice], device: &Device) -> Result<Counts> {
    let mut counts = Counts::default();
    for choice in choices {
        run_choice(choice, device, &mut counts).with_context(|| format!("can't run {}", choice.program))?;
    }
    Ok(counts)
}

fn run_choice(choice: &Choice, device: &Device, counts: &mut Counts) -> Result<()> {
    let program = &choice.program;
    let list = List::load(program)?;
    let names = runner::subtests(program)?;
    for pattern in list.vanished(&names) {
        println!("gone     {program}@{pattern}: the list names it, IGT no longer has it");
    }
    let mut chosen = Vec::new();
    for name in names.into_iter().filter(|name| list::matches(&choice.subtests, name)) {
        match list.expectation(&name, device.gpu) {
            Some((Expectation::Omit, reason)) => println!("omit     {program}@{name}: {reason}"),
            _ => chosen.push(name),
        }
    }
    let mut unexpected = 0;
    let device = Device { vram: device.vram.clone().or_else(|| list.vram.clone()), ..device.clone() };
    let ran = runner::run(program, &chosen, &device, list.limits, |finished| {
        let expected = list.expectation(&finished.name, device.gpu);
        let verdict = Verdict::of(finished.outcome, expected.map(|(expectation, _)| expectation));
        unexpected += usize::from(verdict == Verdict::Worse);
        counts.add(finished.outcome, verdict);
        print_result(program, finished, verdict, expected.map(|(_, reason)| reason));
    })?;
    if ran.device_failed {
        println!("WORSE    {program}: the device itself failed");
        counts.worse += 1;
    }
    if unexpected > 0 || ran.device_failed {
        println!("         {program}: what it printed is in {}", ran.log.display());
    }
    Ok(())
}

fn print_result(program: &str, finished: &Finished, verdict: Verdict, known: Option<&str>) {
    let Finished { name, outcome, time, reason } = finished;
    let seconds = time.as_secs_f64();
    let mark = verdict.mark();
    let known = known.filter(|text| verdict == Verdict::AsExpected && !text.is_empty());
    let why = known.or(reason.as_deref()).map(|text| format!(": {text}")).unwrap_or_default();
    println!("{outcome:<8} {program}@{name} {seconds:.3} s{mark}{why}");
}

/// A result against what the list says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    AsExpected,
    Better,
    Worse,
    New,
}

impl Verdict {
    fn of(outcome: Outcome, expectation: Option<Expectation>) -> Verdict {
        let Some(expectation) = expectation else { return Verdict::New };
        match (expectation, outcome) {
            (Expectation::Pass, Outcome::Pass) | (Expectation::Skip, Outcome::Skip) => Verdict::AsExpected,
            (Expectation::Fail, Outcome::Fail | Outcome::Crash | Outcome::Timeout) => Verdict::AsExpected,
            (Expectation::Skip, Outcome::Pass) | (Expectation::Fail, Outcome::Pass | Outcome::Skip) => {
                Verdict::Better
            }
            (Expectation::Pass | Expectation::Skip, _) => Verdict::Worse,
            (Expectation::Omit, _) => Verdict::New,
        }
    }

    fn mark(self) -> &'static str {
        match self {
            Verdict::AsExpected => "",
            Verdict::Better => " [better than its list says]",
            Verdict::Worse => " [WORSE than its list says]",
            Verdict::New => " [in no list]",
        }
    }
}

/// Results added up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Subtests that passed.
    pub(crate) passed: usize,
    /// Subtests that skipped.
    pub(crate) skipped: usize,
    /// Subtests that failed, crashed or took too long.
    pub(crate) broken: usize,
    /// Subtests that did worse than their list says, and runs in which the device failed.
    pub(crate) worse: usize,
    better: usize,
    new: usize,
}

impl Counts {
    fn add(&mut self, outcome: Outcome, verdict: Verdict) {
        match outcome {
            Outcome::Pass => self.passed += 1,
            Outcome::Skip => self.skipped += 1,
            Outcome::Fail | Outcome::Crash | Outcome::Timeout => self.broken += 1,
        }
        match verdict {
            Verdict::AsExpected => {}
            Verdict::Better => self.better += 1,
            Verdict::Worse => self.worse += 1,
            Verdict::New => self.new += 1,
        }
    }

    /// Whether the run is one to accept: something ran, and nothing did worse than its list says.
    pub(crate) fn accepted(&self) -> bool {
        self.worse == 0 && self.passed + self.skipped + self.broken > 0
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counts { passed, skipped, broken, worse, better, new } = self;
        write!(f, "IGT: {passed} passed, {broken} failed, {skipped} skipped; against the lists: ")?;
        write!(f, "{worse} worse, {better} better, {new} in no list")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_judged_by_its_list() {
        let judge = Verdict::of;
        assert_eq!(judge(Outcome::Pass, Some(Expectation::Pass)), Verdict::AsExpected);
        assert_eq!(judge(Outcome::Skip, Some(Expectation::Pass)), Verdict::Worse);
        assert_eq!(judge(Outcome::Pass, Some(Expectation::Skip)), Verdict::Better);
        assert_eq!(judge(Outcome::Crash, Some(Expectation::Skip)), Verdict::Worse);
        assert_eq!(judge(Outcome::Timeout, Some(Expectation::Fail)), Verdict::AsExpected);
        assert_eq!(judge(Outcome::Fail, None), Verdict::New);
    }
}
