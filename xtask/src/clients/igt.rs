//! IGT's test programs from Debian's development suite, run with that suite's own C library and loader.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{ClientSet, private_home};

/// Only the development suite has the tests in binary form.
pub(crate) const SET: ClientSet = ClientSet {
    name: "igt",
    suites: &["sid"],
    target_suite: "sid",
    packages: &["igt-gpu-tools-tests"],
    left_out: &[],
    finish: check_layout,
};

const PROGRAMS: &str = "usr/libexec/igt-gpu-tools";
const LOADERS: [&str; 3] = [
    "usr/lib64/ld-linux-x86-64.so.2",
    "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "lib64/ld-linux-x86-64.so.2",
];
const LIBRARIES: [&str; 3] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib"];

/// The command line that starts a test program: its suite's loader, the libraries' folders, the program.
pub(crate) fn command_line(program: &str) -> Result<Vec<OsString>> {
    let dir = SET.dir();
    let libraries = std::env::join_paths(LIBRARIES.map(|below| dir.join(below)))
        .context("the target folder's path must not contain a colon")?;
    let path = dir.join(PROGRAMS).join(program);
    ensure!(path.is_file(), "IGT has no test program `{program}` (looked for {})", path.display());
    Ok(vec![loader(&dir)?.into(), "--library-path".into(), libraries, path.into()])
}

/// The environment of the test programs: plain output, nothing of the user's settings.
///
/// # Errors
/// When the clients' home can't be made.
pub(crate) fn environment() -> Result<Vec<(OsString, OsString)>> {
    let mut variables: Vec<(OsString, OsString)> =
        private_home()?.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    let config = super::clients_dir().join("home/igtrc");
    if !config.exists() {
        fs::write(&config, "").with_context(|| format!("can't write {}", config.display()))?;
    }
    variables.push(("IGT_CONFIG_PATH".into(), config.into()));
    variables.push(("IGT_DATA_PATH".into(), SET.dir().join("usr/share/igt-gpu-tools").into()));
    variables.push(("IGT_PLAIN_OUTPUT".into(), "1".into()));
    Ok(variables)
}

/// Names of all test programs, sorted.
///
/// # Errors
/// When the set is not unpacked.
pub(crate) fn programs() -> Result<Vec<String>> {
    let dir = SET.dir().join(PROGRAMS);
    let entries = fs::read_dir(&dir).with_context(|| format!("can't read {}", dir.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.contains('.'))
        .collect();
    names.sort();
    Ok(names)
}

fn loader(dir: &Path) -> Result<PathBuf> {
    let found = LOADERS.iter().map(|below| dir.join(below)).find(|path| path.is_file());
    found.with_context(|| format!("{} holds no program loader", dir.display()))
}

fn check_layout(unpacked: &Path, _place: &Path) -> Result<()> {
    loader(unpacked)?;
    let programs = unpacked.join(PROGRAMS);
    ensure!(programs.is_dir(), "the IGT package no longer has its tests in {PROGRAMS}");
    Ok(())
}
