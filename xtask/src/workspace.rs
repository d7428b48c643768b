//! Where things are: the workspace, its target folder, the programs that cargo builds; and which device is meant.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::process::{self, Limits, Line};

/// A device profile of `lapidary run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Gpu {
    /// Intel Battlemage: VRAM and system memory.
    Battlemage,
    /// Intel Lunar Lake: system memory only.
    Lunarlake,
}

impl Gpu {
    /// The name as `lapidary run --gpu` takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Gpu::Battlemage => "battlemage",
            Gpu::Lunarlake => "lunarlake",
        }
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The workspace's root folder.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The folder cargo builds into.
pub(crate) fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// A program of the workspace, built with the release profile.
pub(crate) fn release_program(name: &str) -> PathBuf {
    target_dir().join("release").join(name)
}

/// Building the workspace on a slow machine.
pub(crate) const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Builds the program `lapidary` and its preload library with the release profile.
///
/// # Errors
/// If that fails.
pub(crate) fn build_release() -> Result<()> {
    let mut command = Command::new(cargo());
    command.current_dir(root()).args(["build", "--quiet", "--release", "--package", "lapidary-cli"]);
    let ended = process::run(&mut command, Limits::total(BUILD_LIMIT), |line| {
        eprintln!("{line}");
        Line::Other
    })?;
    ensure!(ended.success(), "the release build: {}", ended.describe());
    Ok(())
}

/// The cargo that started this task.
pub(crate) fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
