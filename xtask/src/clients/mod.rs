//! Real clients: Debian's packages of Mesa's Vulkan driver and of IGT, unpacked below `target/clients`.
//!
//! Nothing is installed on the machine and root is not needed: [`apt`] runs the machine's own apt-get with a private
//! configuration, lists and cache, resolves each set's whole closure as if no package were installed, and unpacks it.
//! [`mesa`] and [`igt`] know what each set consists of and how its programs are started.
//!
//! ```text
//! target/clients/
//!   apt/mesa, apt/igt    private apt state: lists, archives, configuration
//!   mesa, igt            the unpacked packages
//!   mesa.packages, …     what is unpacked: written last, so it says that the folder is complete
//!   home                 HOME and XDG folders of the clients
//! ```

mod apt;
pub(crate) mod igt;
pub(crate) mod mesa;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::workspace;

/// Arguments of `cargo xtask clients`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which sets to install; all without any.
    sets: Vec<SetName>,
    /// Unpack again even when the versions have not changed.
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SetName {
    /// Mesa's Vulkan driver and vulkaninfo.
    Mesa,
    /// The IGT GPU test programs.
    Igt,
}

/// How hard [`install`] tries to be up to date.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// A complete copy will do, whatever its age: no network is used when there is one.
    Present,
    /// Ask the mirror, unpack when versions have changed.
    Latest,
    /// Ask the mirror and unpack in any case.
    Forced,
}

/// Runs the task.
///
/// # Errors
/// When a set can be neither installed nor found complete.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let freshness = if args.force { Freshness::Forced } else { Freshness::Latest };
    let wanted = |set| args.sets.is_empty() || args.sets.contains(&set);
    if wanted(SetName::Mesa) {
        install(&mesa::SET, freshness)?;
    }
    if wanted(SetName::Igt) {
        install(&igt::SET, freshness)?;
    }
    Ok(true)
}

/// A group of Debian packages that is unpacked into one folder.
pub(crate) struct ClientSet {
    /// The folder's name.
    pub(crate) name: &'static str,
    /// Suites to look in.
    pub(crate) suites: &'static [&'static str],
    /// The suite whose versions win.
    pub(crate) target_suite: &'static str,
    /// The packages wanted; their dependencies follow.
    pub(crate) packages: &'static [&'static str],
    /// Dependencies that the machine itself provides.
    pub(crate) left_out: &'static [&'static str],
    /// What remains to be done in the unpacked folder before it is moved to its place (second argument).
    pub(crate) finish: fn(unpacked: &std::path::Path, place: &std::path::Path) -> Result<()>,
}

impl ClientSet {
    /// The folder that holds the unpacked set.
    pub(crate) fn dir(&self) -> PathBuf {
        clients_dir().join(self.name)
    }

    fn stamp(&self) -> PathBuf {
        clients_dir().join(format!("{}.packages", self.name))
    }

    /// What is unpacked, if the folder is complete.
    fn unpacked(&self) -> Option<String> {
        if !self.dir().is_dir() {
            return None;
        }
        fs::read_to_string(self.stamp()).ok()
    }
}

/// Makes sure that `set` is unpacked. A complete copy stands in when the mirror can't be reached.
///
/// # Errors
/// When there is no complete copy and none can be made; the message says what to do.
pub(crate) fn install(set: &ClientSet, freshness: Freshness) -> Result<()> {
    let present = set.unpacked();
    if freshness == Freshness::Present && present.is_some() {
        return Ok(());
    }
    let planned = apt::Archive::open(set).and_then(|archive| {
        let plan = archive.plan()?;
        Ok((archive, plan))
    });
    let (archive, plan) = match (planned, &present) {
        (Ok(planned), _) => planned,
        (Err(error), Some(_)) if freshness != Freshness::Forced => {
            eprintln!("{}: keeping the copy that is there: {error:#}", set.name);
            return Ok(());
        }
        (Err(error), _) => return Err(error),
    };
    let wanted = plan.join("\n") + "\n";
    if freshness != Freshness::Forced && present.as_deref() == Some(wanted.as_str()) {
        println!("{}: up to date, {} packages", set.name, plan.len());
        return Ok(());
    }
    println!("{}: fetching {} packages", set.name, plan.len());
    let debs = archive.download(&plan)?;
    unpack(set, &debs)?;
    fs::write(set.stamp(), wanted).with_context(|| format!("can't write {}", set.stamp().display()))?;
    println!("{}: unpacked into {}", set.name, set.dir().display());
    Ok(())
}

/// Unpacks into a new folder beside the final one and swaps them, so that an interrupted run leaves no half of one.
fn unpack(set: &ClientSet, debs: &[PathBuf]) -> Result<()> {
    let place = set.dir();
    let fresh = clients_dir().join(format!("{}.new", set.name));
    remove_if_present(&fresh)?;
    fs::create_dir_all(&fresh).with_context(|| format!("can't create {}", fresh.display()))?;
    for deb in debs {
        let status = Command::new("dpkg-deb")
            .arg("--extract")
            .arg(deb)
            .arg(&fresh)
            .status()
            .context("can't run dpkg-deb: is this a Debian system?")?;
        anyhow::ensure!(status.success(), "dpkg-deb can't unpack {}", deb.display());
    }
    (set.finish)(&fresh, &place)?;
    let _ = fs::remove_file(set.stamp());
    remove_if_present(&place)?;
    fs::rename(&fresh, &place).with_context(|| format!("can't move {} into place", fresh.display()))
}

fn remove_if_present(dir: &std::path::Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The folder below which everything of the clients lives.
pub(crate) fn clients_dir() -> PathBuf {
    workspace::target_dir().join("clients")
}

/// A home of their own for the clients, so that they neither read nor write the user's.
///
/// # Errors
/// When the folders can't be made.
pub(crate) fn private_home() -> Result<Vec<(&'static str, PathBuf)>> {
    let home = clients_dir().join("home");
    let dirs = [
        ("HOME", home.clone()),
        ("XDG_CONFIG_HOME", home.join("config")),
        ("XDG_CACHE_HOME", home.join("cache")),
        ("XDG_DATA_HOME", home.join("data")),
    ];
    for (_, dir) in &dirs {
        fs::create_dir_all(dir).with_context(|| format!("can't create {}", dir.display()))?;
    }
    Ok(dirs.to_vec())
}
