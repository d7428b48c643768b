//! A benchmark's line: `tag name median minimum maximum samples remark`, tab-separated.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// What one benchmark has measured.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    tag: String,
    pub(super) name: String,
    /// In nanoseconds per operation, unless the benchmark says otherwise.
    pub(super) median: f64,
    least: f64,
    most: f64,
    samples: u64,
    remark: String,
}

impl Figure {
    /// Reads a line; `None` if it is something else.
    pub(super) fn read(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split('\t').collect();
        let [tag, name, median, least, most, samples, remark] = fields[..] else { return None };
        Some(Self {
            tag: tag.to_owned(),
            name: name.to_owned(),
            median: median.parse().ok()?,
            least: least.parse().ok()?,
            most: most.parse().ok()?,
            samples: samples.parse().ok()?,
            remark: remark.to_owned(),
        })
    }

    /// What a remark `name=value` says.
    pub(super) fn remark(&self, name: &str) -> Option<&str> {
        self.remark.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tag, name, median, least, most, samples, remark } = self;
        write!(f, "{tag}\t{name}\t{median:.2}\t{least:.2}\t{most:.2}\t{samples}\t{remark}")
    }
}

/// The figures in a file, by name; of a name that comes twice the last counts.
///
/// # Errors
/// If the file can't be read or there is no figure in it.
pub(super) fn read_file(path: &Path) -> Result<BTreeMap<String, Figure>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    let figures = text.lines().filter_map(Figure::read);
    let figures: BTreeMap<_, _> = figures.map(|figure| (figure.name.clone(), figure)).collect();
    ensure!(
        !figures.is_empty(),
        "{} has no line of seven fields separated by tabs: tag, name, median, minimum, maximum, samples, remark",
        path.display()
    );
    Ok(figures)
}

/// For each figure, in the order of the first run, that of the run in the middle.
pub(super) fn middle_run(runs: &[Vec<Figure>]) -> Vec<Figure> {
    let names = runs.first().into_iter().flatten().map(|figure| &figure.name);
    let middle = |name: &String| {
        let mut all: Vec<_> = runs.iter().flatten().filter(|figure| figure.name == *name).collect();
        all.sort_by(|a, b| a.median.total_cmp(&b.median));
        all[(all.len() - 1) / 2].clone()
    };
    names.map(middle).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn figure(name: &str, median: f64) -> Figure {
        Figure::read(&format!("x\t{name}\t{median}\t{median}\t{median}\t1\t")).unwrap()
    }

    #[test]
    fn a_line_is_read_and_written_alike_and_others_are_not_read() {
        let line = "device\tioctl_hot\t900.00\t800.00\t1500.00\t31\tback to back sum=12";
        let read = Figure::read(line).unwrap();
        assert_eq!((read.name.as_str(), read.median, read.remark("sum")), ("ioctl_hot", 900.0, Some("12")));
        assert_eq!(read.to_string(), line);
        assert_eq!(Figure::read("lapidary: the device failed"), None);
        assert_eq!(Figure::read("device\tioctl_hot\tfast\t800\t1500\t31\t"), None);
    }

    #[test]
    fn the_middle_run_counts() {
        let runs = [9_000.0, 2_000.0, 1_000.0].map(|median| vec![figure("ioctl_hot", median)]);
        assert_eq!(middle_run(&runs), vec![figure("ioctl_hot", 2_000.0)]);
    }
}
