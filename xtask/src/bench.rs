//! `cargo xtask bench`: how fast the device is, next to what it aims at.
//!
//! The measuring is done by `lapidary measure`, which runs as a client of the device; this task starts it several times,
//! takes the middle run for each figure, and prints a table. Figures are of this machine at this moment: aims are written as
//! bounds that hold on a quiet machine of two processors, or as a ratio of two figures of the same run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{self, Limits, Line};
use crate::workspace::{self, Gpu};

/// Building the release programs on a slow machine.
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);
/// One run of all measurements.
const RUN_LIMIT: Duration = Duration::from_secs(5 * 60);

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only measurements whose name contains one of these.
    names: Vec<String>,
    /// How many times to run them; each figure is that of the middle run.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// The device.
    #[arg(long, value_enum, default_value_t = Gpu::Battlemage)]
    gpu: Gpu,
    /// Also write the lines of all runs to this file, tab-separated: tag, name, median, minimum, maximum, samples,
    /// remark.
    #[arg(long, value_name = "FILE")]
    tsv: Option<PathBuf>,
}

/// What a measurement should reach.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Aim {
    /// At most this much, in the measurement's own unit.
    AtMost(f64),
    /// At least this part of the speed of another measurement of the same run.
    OfSpeed { other: &'static str, least: f64 },
}

/// The aims there are.
const AIMS: &[(&str, Aim)] = &[
    ("idle_memory", Aim::AtMost(20.0 * 1024.0)),
    // Nothing is due in a server whose clients are idle; a page fault or a late timer of its own may be.
    ("idle_processor", Aim::AtMost(1e6)),
    ("ioctl_hot", Aim::AtMost(2_000.0)),
    ("copy_64M", Aim::OfSpeed { other: "memcpy_64M", least: 0.8 }),
];

/// Runs the task. False if an aim was missed.
///
/// # Errors
/// When something can't be built or run.
pub(crate) fn run(args: &Args) -> Result<bool> {
    build()?;
    let mut lines = String::new();
    let mut runs = Vec::new();
    for number in 1..=args.runs {
        eprintln!("run {number} of {}", args.runs);
        runs.push(measure(args, &mut lines)?);
    }
    if let Some(path) = &args.tsv {
        std::fs::write(path, &lines).with_context(|| format!("can't write {}", path.display()))?;
    }
    let rows = rows(&runs);
    print!("{}", table(&rows));
    Ok(rows.iter().all(|row| row.met != Some(false)))
}

fn build() -> Result<()> {
    let mut command = Command::new(workspace::cargo());
    command.current_dir(workspace::root()).args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "lapidary-cli",
    ]);
    let ended = process::run(&mut command, Limits::total(BUILD_LIMIT), |line| {
        eprintln!("{line}");
        Line::Other
    })?;
    ensure!(ended.success(), "the release build: {}", ended.describe());
    Ok(())
}

/// One run: what it measured, in its order. Its lines are added to `lines`.
fn measure(args: &Args, lines: &mut String) -> Result<Vec<Figure>> {
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
            Some(figure) => {
                figures.push(figure);
                // Writing to a string can't fail.
                let _ = writeln!(lines, "{line}");
            }
            None => eprintln!("{line}"),
        }
        Line::Other
    })?;
    ensure!(ended.success(), "the measurements: {}", ended.describe());
    Ok(figures)
}

/// One measurement of one run.
#[derive(Clone, Debug, PartialEq)]
struct Figure {
    name: String,
    median: f64,
    least: f64,
    most: f64,
    remark: String,
}

impl Figure {
    fn read(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split('\t').collect();
        let ["device", name, median, least, most, _samples, remark] = fields[..] else { return None };
        Some(Self {
            name: name.to_owned(),
            median: median.parse().ok()?,
            least: least.parse().ok()?,
            most: most.parse().ok()?,
            remark: remark.to_owned(),
        })
    }
}

/// A line of the table.
#[derive(Debug, PartialEq)]
struct Row {
    figure: Figure,
    aim: String,
    met: Option<bool>,
}

/// One row for each measurement, in the order of the first run.
fn rows(runs: &[Vec<Figure>]) -> Vec<Row> {
    let mut by_name: BTreeMap<&str, Vec<&Figure>> = BTreeMap::new();
    for figure in runs.iter().flatten() {
        by_name.entry(&figure.name).or_default().push(figure);
    }
    let names = runs.first().into_iter().flatten().map(|figure| figure.name.as_str());
    names.map(|name| row(name, &by_name[name], runs)).collect()
}

fn row(name: &str, figures: &[&Figure], runs: &[Vec<Figure>]) -> Row {
    let figure = middle(figures.to_vec(), |figure| figure.median).clone();
    let aim = AIMS.iter().find(|(of, _)| *of == name).map(|(_, aim)| *aim);
    match aim {
        None => Row { figure, aim: String::new(), met: None },
        Some(Aim::AtMost(bound)) => {
            Row { aim: format!("≤ {}", quantity(name, bound)), met: Some(figure.median <= bound), figure }
        }
        Some(Aim::OfSpeed { other, least }) => {
            let ratios: Vec<f64> = runs.iter().filter_map(|run| speed_ratio(run, name, other)).collect();
            let reached = (!ratios.is_empty()).then(|| middle(ratios, |ratio| *ratio));
            let shown = reached.map_or("not measured".to_owned(), |ratio| format!("{ratio:.2}"));
            let aim = format!("≥ {least} of {other}: {shown}");
            Row { figure, aim, met: reached.map(|ratio| ratio >= least) }
        }
    }
}

/// The speed of one measurement as a part of another's, in one run.
fn speed_ratio(run: &[Figure], name: &str, other: &str) -> Option<f64> {
    let median = |name: &str| run.iter().find(|figure| figure.name == name).map(|figure| figure.median);
    Some(median(other)? / median(name)?)
}

/// The item in the middle when they are sorted by `key`; there is at least one.
fn middle<T>(mut items: Vec<T>, key: impl Fn(&T) -> f64) -> T {
    items.sort_by(|a, b| key(a).total_cmp(&key(b)));
    let middle = (items.len() - 1) / 2;
    items.swap_remove(middle)
}

/// A measurement's number with its unit.
fn quantity(name: &str, value: f64) -> String {
    if name == "idle_memory" {
        return format!("{:.1} MiB", value / 1024.0);
    }
    match value {
        ..1e3 => format!("{value:.0} ns"),
        ..1e6 => format!("{:.2} µs", value / 1e3),
        _ => format!("{:.2} ms", value / 1e6),
    }
}

fn table(rows: &[Row]) -> String {
    let mut cells = vec![["measurement", "median", "least", "most", "aim", "", "remark"].map(str::to_owned)];
    for Row { figure, aim, met } in rows {
        let number = |value| quantity(&figure.name, value);
        let verdict = match met {
            None => "",
            Some(true) => "met",
            Some(false) => "MISSED",
        };
        cells.push([
            figure.name.clone(),
            number(figure.median),
            number(figure.least),
            number(figure.most),
            aim.clone(),
            verdict.to_owned(),
            figure.remark.clone(),
        ]);
    }
    let widths: [usize; 7] =
        std::array::from_fn(|column| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in &cells {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            // Numbers end in one line, words begin in one.
            let cell = if (1..=3).contains(&column) { pad + cell } else { cell.to_owned() + &pad };
            line += &cell;
            line += "  ";
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, median: f64) -> Figure {
        Figure { name: name.to_owned(), median, least: median, most: median, remark: String::new() }
    }

    #[test]
    fn a_line_of_a_measurement_is_read_and_others_are_not() {
        let read = Figure::read("device\tioctl_hot\t900\t800\t1500\t31\tback to back").unwrap();
        assert_eq!((read.name.as_str(), read.median, read.most), ("ioctl_hot", 900.0, 1500.0));
        assert_eq!(Figure::read("lapidary: the device failed"), None);
        assert_eq!(Figure::read("device\tioctl_hot\tfast\t800\t1500\t31\t"), None);
    }

    #[test]
    fn the_middle_run_counts_and_a_bound_is_inclusive() {
        let runs = [9_000.0, 2_000.0, 1_000.0].map(|median| vec![figure("ioctl_hot", median)]);
        let rows = rows(&runs);
        assert_eq!((rows[0].figure.median, rows[0].met), (2_000.0, Some(true)));
        assert_eq!(rows[0].aim, "≤ 2.00 µs");
    }

    #[test]
    fn a_ratio_is_of_one_run() {
        let run = |copy, memcpy| vec![figure("copy_64M", copy), figure("memcpy_64M", memcpy)];
        let mixed = rows(&[run(10.0, 9.0), run(100.0, 50.0), run(50.0, 35.0)]);
        assert_eq!(mixed[0].aim, "≥ 0.8 of memcpy_64M: 0.70");
        assert_eq!((mixed[0].met, mixed[1].met), (Some(false), None));
    }

    #[test]
    fn numbers_have_a_readable_unit() {
        assert_eq!(quantity("ioctl_hot", 950.4), "950 ns");
        assert_eq!(quantity("exec_empty_wait", 12_340.0), "12.34 µs");
        assert_eq!(quantity("copy_64M", 8.5e6), "8.50 ms");
        assert_eq!(quantity("idle_memory", 20_480.0), "20.0 MiB");
    }
}
