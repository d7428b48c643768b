//! `cargo xtask bench`: how fast it is, next to what it is to be compared with.
//!
//! The library's benchmarks are programs of their own (`crates/*/benches`); the device is measured by `lapidary measure`,
//! which runs as its client, several times over. Whatever a name given asks for is run, and each benchmark becomes one
//! line on standard output, tab-separated:
//!
//! ```text
//! name    ours    theirs    ratio
//! ```
//!
//! in nanoseconds (memory in KiB). *Theirs* comes from a file in the format that `--tsv` writes, by name: an earlier run of
//! ours, or the kernel's own code measured on the same machine. What misses an [aim](aims) is said on standard error, and
//! makes the task fail. Figures are of this machine at this moment; only a ratio of one run says much.

mod aims;
mod figure;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use self::figure::Figure;
use crate::process::{self, Limits, Line};
use crate::workspace::{self, Gpu};

/// One program's benchmarks.
const RUN_LIMIT: Duration = Duration::from_secs(20 * 60);

/// The benchmark programs that print our lines: package and name.
const PROGRAMS: &[(&str, &str)] =
    &[("lapidary", "fence"), ("lapidary", "address_space"), ("lapidary-gpu", "pagetable")];

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only benchmarks whose name contains one of these.
    names: Vec<String>,
    /// Compare with the figures in this file: the format is that of `--tsv`.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Also write what was measured to this file, tab-separated: tag, name, median, minimum, maximum, samples, remark.
    #[arg(long, value_name = "FILE")]
    tsv: Option<PathBuf>,
    /// How many times to measure the device; each figure is that of the middle run.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// The device to measure.
    #[arg(long, value_enum, default_value_t = Gpu::Battlemage)]
    gpu: Gpu,
}

/// Runs the task. False if an aim was missed.
///
/// # Errors
/// When something can't be built, run, read or written, or no benchmark has such a name.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let theirs = args.against.as_ref().map(|path| figure::read_file(path)).transpose()?.unwrap_or_default();
    let mut report = Report { theirs, ours: Vec::new() };
    println!("name\tours\ttheirs\tratio");
    for (package, bench) in PROGRAMS {
        library(args, package, bench, &mut report)?;
    }
    device(args, &mut report)?;
    ensure!(!report.ours.is_empty(), "no benchmark has a name that contains any of {:?}", args.names);
    if let Some(path) = &args.tsv {
        let lines: String = report.ours.iter().map(|figure| format!("{figure}\n")).collect();
        std::fs::write(path, lines).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(report.judge())
}

/// What was measured, and what it is compared with.
struct Report {
    theirs: BTreeMap<String, Figure>,
    ours: Vec<Figure>,
}

impl Report {
    /// Shows a figure at once: the whole takes minutes.
    fn add(&mut self, figure: Figure) {
        let (name, ours) = (&figure.name, figure.median);
        match self.theirs.get(name).map(|theirs| theirs.median) {
            Some(theirs) => println!("{name}\t{ours:.2}\t{theirs:.2}\t{:.2}", ours / theirs),
            None => println!("{name}\t{ours:.2}\t\t"),
        }
        self.ours.push(figure);
    }

    /// Says which aims were missed. True if none was.
    fn judge(&self) -> bool {
        let verdicts = aims::verdicts(&self.ours, &self.theirs);
        let missed: Vec<_> = verdicts.iter().filter(|verdict| !verdict.met).collect();
        for verdict in &missed {
            eprintln!("missed: {verdict}");
        }
        eprintln!("{} of {} aims met", verdicts.len() - missed.len(), verdicts.len());
        missed.is_empty()
    }
}

fn library(args: &Args, package: &str, bench: &str, report: &mut Report) -> Result<()> {
    let mut command = Command::new(workspace::cargo());
    command
        .current_dir(workspace::root())
        .args(["bench", "--quiet", "--package", package, "--bench", bench, "--"])
        .args(&args.names);
    let ended = process::run(&mut command, Limits::total(workspace::BUILD_LIMIT + RUN_LIMIT), |line| {
        match Figure::read(line) {
            Some(figure) => report.add(figure),
            None => eprintln!("{line}"),
        }
        Line::Other
    })?;
    ensure!(ended.success(), "the benchmark {bench} of {package}: {}", ended.describe());
    Ok(())
}

/// Measures the device several times, and reports the middle run of each figure.
fn device(args: &Args, report: &mut Report) -> Result<()> {
    workspace::build_release()?;
    if !known(&["measure", "--list"])?.iter().any(|name| is_wanted(args, name)) {
        return Ok(());
    }
    let mut runs: Vec<Vec<Figure>> = Vec::new();
    for number in 1..=args.runs {
        eprintln!("device: run {number} of {}", args.runs);
        runs.push(measure(args)?);
    }
    figure::middle_run(&runs).into_iter().for_each(|figure| report.add(figure));
    Ok(())
}

fn is_wanted(args: &Args, name: &str) -> bool {
    args.names.is_empty() || args.names.iter().any(|part| name.contains(part.as_str()))
}

/// The lines that `lapidary` prints when it is asked with these arguments.
fn known(args: &[&str]) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut command = Command::new(workspace::release_program("lapidary"));
    let ended = process::run(command.args(args), Limits::total(RUN_LIMIT), |line| {
        lines.push(line.to_owned());
        Line::Other
    })?;
    ensure!(ended.success(), "lapidary {}: {}", args.join(" "), ended.describe());
    Ok(lines)
}

/// One run of the device's measurements, in their order.
fn measure(args: &Args) -> Result<Vec<Figure>> {
    let program = workspace::release_program("lapidary");
    let mut command = Command::new(&program);
    command
        .args(["run", "--quiet", "--gpu", args.gpu.name(), "--"])
        .arg(&program)
        .arg("measure")
        .args(&args.names);
    let mut figures = Vec::new();
    let ended = process::run(&mut command, Limits::total(RUN_LIMIT), |line| {
        match Figure::read(line) {
            Some(figure) => figures.push(figure),
            None => eprintln!("{line}"),
        }
        Line::Other
    })?;
    ensure!(ended.success(), "the measurements: {}", ended.describe());
    Ok(figures)
}
