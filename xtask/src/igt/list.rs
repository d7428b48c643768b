//! `tests/igt/PROGRAM.list`: what is expected of each subtest.
//!
//! ```text
//! # A comment.
//! step 120                       # seconds that one subtest may take
//! total 900                      # seconds that the program may take
//! vram 3G                        # the device's VRAM, where it has any
//! pass once-basic                # must pass
//! skip@lunarlake vram*           # is known to skip on that device only; the comment is the reason
//! skip multigpu-*                # needs two GPUs
//! fail some-name                 # is known to fail
//! omit another                   # is not run
//! ```
//!
//! The first line whose pattern (`*` and `?` as in file names) fits a subtest, and whose device fits, counts. Every line
//! but `pass` needs its reason. A program without subtests has one, named `(program)`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::process::Limits;
use crate::workspace::{self, Gpu};

const DEFAULT_STEP: Duration = Duration::from_secs(60);
const DEFAULT_TOTAL: Duration = Duration::from_secs(600);

/// What a list says of a subtest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expectation {
    /// It must pass.
    Pass,
    /// It is known to skip.
    Skip,
    /// It is known to fail.
    Fail,
    /// It is not run.
    Omit,
}

#[derive(Debug)]
struct Entry {
    expectation: Expectation,
    gpu: Option<Gpu>,
    pattern: String,
    reason: String,
}

/// One program's list.
#[derive(Debug)]
pub(super) struct List {
    /// The times its program is given.
    pub(super) limits: Limits,
    /// The VRAM its program needs, or is content with.
    pub(super) vram: Option<String>,
    entries: Vec<Entry>,
}

impl Default for List {
    fn default() -> Self {
        List { limits: Limits { total: DEFAULT_TOTAL, step: DEFAULT_STEP }, vram: None, entries: Vec::new() }
    }
}

impl List {
    /// The list of `program`; an empty one when there is none.
    ///
    /// # Errors
    /// When the list can't be read or has a line that is not understood.
    pub(super) fn load(program: &str) -> Result<List> {
        let path = dir().join(format!("{program}.list"));
        if !path.exists() {
            return Ok(List::default());
        }
        let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        List::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> Result<List> {
        let mut list = List::default();
        for (number, line) in text.lines().enumerate() {
            list.parse_line(line).with_context(|| format!("line {}: `{line}`", number + 1))?;
        }
        Ok(list)
    }

    fn parse_line(&mut self, line: &str) -> Result<()> {
        let (content, reason) = line.split_once('#').unwrap_or((line, ""));
        let words: Vec<&str> = content.split_whitespace().collect();
        let (word, value) = match words[..] {
            [] => return Ok(()),
            [word, value] => (word, value),
            _ => bail!("expected two words and a comment"),
        };
        let (word, gpu) = match word.split_once('@') {
            Some((word, gpu)) => (word, Some(Gpu::from_str(gpu, false).map_err(anyhow::Error::msg)?)),
            None => (word, None),
        };
        let expectation = match word {
            "step" => return set_seconds(&mut self.limits.step, value),
            "total" => return set_seconds(&mut self.limits.total, value),
            "vram" => {
                self.vram = Some(value.to_owned());
                return Ok(());
            }
            "pass" => Expectation::Pass,
            "skip" => Expectation::Skip,
            "fail" => Expectation::Fail,
            "omit" => Expectation::Omit,
            _ => bail!("`{word}` is none of pass, skip, fail, omit, step, total, vram"),
        };
        let reason = reason.trim().to_owned();
        ensure!(expectation == Expectation::Pass || !reason.is_empty(), "the reason is missing");
        self.entries.push(Entry { expectation, gpu, pattern: value.to_owned(), reason });
        Ok(())
    }

    /// What is expected of a subtest on a device, and why; nothing when the list does not know it.
    pub(super) fn expectation(&self, subtest: &str, gpu: Gpu) -> Option<(Expectation, &str)> {
        let fits =
            |entry: &&Entry| entry.gpu.is_none_or(|only| only == gpu) && matches(&entry.pattern, subtest);
        self.entries.iter().find(fits).map(|entry| (entry.expectation, entry.reason.as_str()))
    }

    /// Lines that fit none of the program's subtests any more.
    pub(super) fn vanished<'a>(&'a self, subtests: &'a [String]) -> impl Iterator<Item = &'a str> {
        let gone = |entry: &&Entry| !subtests.iter().any(|subtest| matches(&entry.pattern, subtest));
        self.entries.iter().filter(gone).map(|entry| entry.pattern.as_str())
    }
}

/// Programs that have a list, sorted.
///
/// # Errors
/// When the folder of lists can't be read.
pub(super) fn programs() -> Result<Vec<String>> {
    let dir = dir();
    let entries = fs::read_dir(&dir).with_context(|| format!("can't read {}", dir.display()))?;
    let names = entries.filter_map(Result::ok).filter_map(|entry| program_of(&entry.path()));
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

fn program_of(path: &Path) -> Option<String> {
    let is_list = path.extension().is_some_and(|extension| extension == "list");
    is_list.then(|| path.file_stem()?.to_str().map(str::to_owned)).flatten()
}

fn dir() -> PathBuf {
    workspace::root().join("tests/igt")
}

fn set_seconds(limit: &mut Duration, value: &str) -> Result<()> {
    let seconds = value.parse().with_context(|| format!("`{value}` is no number of seconds"))?;
    *limit = Duration::from_secs(seconds);
    Ok(())
}

/// Whether a pattern with `*` and `?` fits a whole name.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where to take up again when a guess about the last star's length was wrong.
    let mut retry = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match retry {
                Some((star, taken)) => {
                    retry = Some((star, taken + 1));
                    p = star + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_in_file_names() {
        for (pattern, name, fits) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("*-basic*", "once-basic-defer", true),
            ("m*-x*y", "many-xx-y", true),
            ("m*-x*y", "many-xx-z", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} against {name}");
        }
    }

    #[test]
    fn the_first_line_that_fits_name_and_device_counts() {
        let list =
            List::parse("skip@lunarlake vram # no VRAM\npass vram\nskip multigpu-* # one GPU\n").unwrap();
        assert_eq!(list.expectation("vram", Gpu::Battlemage), Some((Expectation::Pass, "")));
        assert_eq!(list.expectation("vram", Gpu::Lunarlake), Some((Expectation::Skip, "no VRAM")));
        assert_eq!(list.expectation("multigpu-a", Gpu::Battlemage), Some((Expectation::Skip, "one GPU")));
        assert_eq!(list.expectation("new", Gpu::Battlemage), None);
        let subtests = ["vram".to_owned()];
        assert_eq!(list.vanished(&subtests).collect::<Vec<_>>(), ["multigpu-*"]);
    }

    #[test]
    fn a_list_says_what_its_program_needs() {
        let list = List::parse("step 5\ntotal 7\nvram 3G\n").unwrap();
        assert_eq!((list.limits.step.as_secs(), list.limits.total.as_secs()), (5, 7));
        assert_eq!(list.vram.as_deref(), Some("3G"));
        assert_eq!(List::parse("pass x\n").unwrap().vram, None);
    }

    #[test]
    fn a_known_failure_needs_its_reason() {
        assert!(List::parse("fail x\n").is_err());
        assert!(List::parse("pass x\n").is_ok());
        assert!(List::parse("maybe x # y\n").is_err());
        assert!(List::parse("pass@voodoo x\n").is_err());
    }

    #[test]
    fn the_lists_of_the_project_are_understood() {
        for program in programs().unwrap() {
            List::load(&program).unwrap();
        }
    }
}
