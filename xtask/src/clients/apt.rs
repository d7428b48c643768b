//! The machine's apt-get over a private state: own lists, own cache, no installed packages.
//!
//! The configuration is given by `APT_CONFIG` and points every folder below the state's own, the machine's
//! configuration files included: its hooks (some clean the machine's cache) must not run. What its administrator set
//! about reaching the network (proxies, credentials, retries) is carried over. Expired `Release` files are accepted,
//! signatures and hashes are still checked. An empty dpkg status makes apt resolve the whole closure.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::{ClientSet, clients_dir};

/// Overrides the mirror, for machines whose own apt is not Debian's.
const MIRROR_VARIABLE: &str = "LAPIDARY_DEBIAN_MIRROR";

/// Debian's signing keys, from the package `debian-archive-keyring`.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// A set's private apt state.
pub(super) struct Archive<'a> {
    set: &'a ClientSet,
    state: PathBuf,
}

impl<'a> Archive<'a> {
    /// Prepares the state's folders and configuration.
    ///
    /// # Errors
    /// When apt, a mirror or Debian's keys are missing, or the folders can't be written.
    pub(super) fn open(set: &'a ClientSet) -> Result<Self> {
        ensure!(
            cfg!(target_arch = "x86_64"),
            "the clients are Intel's drivers and tests: they exist for x86_64 machines only"
        );
        let archive = Archive { set, state: clients_dir().join("apt").join(set.name) };
        for dir in
            ["lists/partial", "archives/partial", "empty/partial", "etc/apt.conf.d", "etc/preferences.d"]
        {
            let dir = archive.state.join(dir);
            fs::create_dir_all(&dir).with_context(|| format!("can't create {}", dir.display()))?;
        }
        archive.write("status", "")?;
        archive.write("sources.list", &sources(set)?)?;
        archive.write("apt.conf", &archive.configuration()?)?;
        Ok(archive)
    }

    /// Asks the mirror and returns the package files that make up the set, sorted.
    ///
    /// # Errors
    /// When the mirror can't be reached or the closure can't be resolved.
    pub(super) fn plan(&self) -> Result<Vec<String>> {
        println!("{}: asking the mirror for {}", self.set.name, self.set.packages.join(", "));
        let update = self.apt_get(&["update", "--error-on=any"])?;
        if !update.status.success() {
            bail!(
                "apt-get update failed:\n{}\nThe network or the mirror can't be reached. Run again when it can; \
                 {MIRROR_VARIABLE} names another mirror.",
                tail(&update)
            );
        }
        // An empty archive folder: what is already there would be left out of the answer.
        let empty = format!("Dir::Cache::archives={}", self.state.join("empty").display());
        let uris = self.install(&["--print-uris", "-o", &empty])?;
        let files: BTreeSet<String> = String::from_utf8_lossy(&uris.stdout)
            .lines()
            .filter_map(package_file)
            .filter(|file| !self.is_left_out(file))
            .map(str::to_owned)
            .collect();
        ensure!(!files.is_empty(), "apt-get named no package for {}", self.set.name);
        Ok(files.into_iter().collect())
    }

    /// Downloads what is planned and not there yet, and returns the files.
    ///
    /// # Errors
    /// When a download fails.
    pub(super) fn download(&self, plan: &[String]) -> Result<Vec<PathBuf>> {
        self.forget_other_versions(plan)?;
        self.install(&["--download-only"])?;
        let paths: Vec<PathBuf> = plan.iter().map(|file| self.state.join("archives").join(file)).collect();
        for path in &paths {
            ensure!(path.is_file(), "apt-get did not deliver {}", path.display());
        }
        Ok(paths)
    }

    fn install(&self, options: &[&str]) -> Result<Output> {
        let mut args = vec!["install", "--yes", "--no-install-recommends", "-t", self.set.target_suite];
        args.extend(options);
        args.extend(self.set.packages);
        let output = self.apt_get(&args)?;
        ensure!(
            output.status.success(),
            "apt-get can't get {} from {}:\n{}",
            self.set.packages.join(", "),
            self.set.suites.join(", "),
            tail(&output)
        );
        Ok(output)
    }

    fn apt_get(&self, args: &[&str]) -> Result<Output> {
        Command::new("apt-get")
            .args(args)
            .env("APT_CONFIG", self.state.join("apt.conf"))
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .output()
            .context("can't run apt-get, which fetches the clients: this needs a Debian system (or a container of one)")
    }

    fn forget_other_versions(&self, plan: &[String]) -> Result<()> {
        let archives = self.state.join("archives");
        for entry in fs::read_dir(&archives).with_context(|| format!("can't read {}", archives.display()))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".deb") && !plan.iter().any(|file| *file == name) && !self.is_left_out(&name) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn is_left_out(&self, file: &str) -> bool {
        file.split('_').next().is_some_and(|package| self.set.left_out.contains(&package))
    }

    fn configuration(&self) -> Result<String> {
        let state = self.state.display();
        let mut conf = inherited_network_settings()?;
        let folders = [
            ("Dir::State", ""),
            ("Dir::State::status", "/status"),
            ("Dir::State::lists", "/lists"),
            ("Dir::Cache", ""),
            ("Dir::Cache::archives", "/archives"),
            ("Dir::Etc", "/etc"),
            ("Dir::Etc::main", "/etc/apt.conf"),
            ("Dir::Etc::parts", "/etc/apt.conf.d"),
            ("Dir::Etc::preferencesparts", "/etc/preferences.d"),
            ("Dir::Etc::sourcelist", "/sources.list"),
        ];
        for (key, below) in folders {
            let _ = writeln!(conf, "{key} \"{state}{below}\";");
        }
        conf.push_str(concat!(
            "Dir::Etc::sourceparts \"-\";\n",
            "Dir::Etc::netrc \"/etc/apt/auth.conf\";\n",
            "Dir::Etc::netrcparts \"/etc/apt/auth.conf.d\";\n",
            "Acquire::Check-Valid-Until \"false\";\n",
            "Acquire::Languages \"none\";\n",
            "Acquire::GzipIndexes \"true\";\n",
            "Dir::Cache::pkgcache \"\";\n",
            "Dir::Cache::srcpkgcache \"\";\n",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n",
            "APT::Architecture \"amd64\";\n",
            "APT::Architectures { \"amd64\"; };\n",
            "APT::Install-Recommends \"false\";\n",
            "Debug::NoLocking \"true\";\n",
        ));
        if rustix::process::geteuid().is_root() {
            // apt would drop to a user who may not enter this folder.
            conf.push_str("APT::Sandbox::User \"root\";\n");
        }
        Ok(conf)
    }

    /// Readable by this user only: a proxy setting may hold a password.
    fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.state.join(name);
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|file| file.set_permissions(fs::Permissions::from_mode(0o600)))
            .and_then(|()| fs::write(&path, content));
        written.with_context(|| format!("can't write {}", path.display()))
    }
}

/// One line per suite, on the machine's own mirror.
fn sources(set: &ClientSet) -> Result<String> {
    let mirror = mirror()?;
    let keyring = KEYRINGS
        .iter()
        .find(|path| Path::new(path).is_file())
        .with_context(|| format!("{} is missing: install the package debian-archive-keyring", KEYRINGS[0]))?;
    let lines = set.suites.iter().map(|suite| format!("deb [signed-by={keyring}] {mirror} {suite} main\n"));
    Ok(lines.collect())
}

/// The Debian mirror that this machine's apt is configured with.
fn mirror() -> Result<String> {
    if let Ok(mirror) = env::var(MIRROR_VARIABLE) {
        return Ok(mirror);
    }
    let system = os_release();
    ensure!(
        system.id == "debian",
        "this machine's apt is not Debian's (ID={}): set {MIRROR_VARIABLE} to the address of a Debian mirror",
        system.id
    );
    let targets = Command::new("apt-get")
        .args(["indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"])
        .arg("Created-By: Packages")
        .output()
        .context("can't run apt-get, which fetches the clients: this needs a Debian system (or a container of one)")?;
    choose_mirror(&String::from_utf8_lossy(&targets.stdout), &system.codename).with_context(|| {
        format!("apt knows no mirror with `main` for {}: set {MIRROR_VARIABLE} to one", system.codename)
    })
}

/// From lines of address, release and component, the address that serves the system's own release.
fn choose_mirror(targets: &str, codename: &str) -> Option<String> {
    let mut candidates = targets.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (uri, release, component) = (words.next()?, words.next()?, words.next()?);
        (component == "main" && !uri.contains("security")).then_some((uri, release))
    });
    let own_suite = |release: &str| {
        release == codename
            || ["stable", "oldstable", "oldoldstable", "testing", "unstable", "sid"].contains(&release)
    };
    candidates.find(|(_, release)| own_suite(release)).map(|(uri, _)| uri.to_owned())
}

struct OsRelease {
    id: String,
    codename: String,
}

fn os_release() -> OsRelease {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    OsRelease { id: value("ID"), codename: value("VERSION_CODENAME") }
}

/// Settings of the machine's apt that say how the network is reached, in apt's own syntax.
fn inherited_network_settings() -> Result<String> {
    let dump = Command::new("apt-config")
        .arg("dump")
        .output()
        .context("can't run apt-config: is this a Debian system?")?;
    let dump = String::from_utf8_lossy(&dump.stdout);
    let wanted =
        ["Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::ForceIPv", "Acquire::Proxy"];
    let lines = dump.lines().filter(|line| wanted.iter().any(|prefix| line.starts_with(prefix)));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

/// The file name in a line of `--print-uris`: `'URI' FILE SIZE HASH`.
fn package_file(line: &str) -> Option<&str> {
    let after_uri = line.strip_prefix('\'')?.split_once("' ")?.1;
    after_uri.split(' ').next().filter(|file| file.ends_with(".deb"))
}

/// The end of what apt-get said, for an error message.
fn tail(output: &Output) -> String {
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_that_serves_the_systems_release() {
        let targets = "http://a.example/debian-security/ bookworm-security main\n\
                       http://b.example/tools/ any main\n\
                       http://c.example/debian/ bookworm contrib\n\
                       http://c.example/debian/ bookworm main\n";
        assert_eq!(choose_mirror(targets, "bookworm").as_deref(), Some("http://c.example/debian/"));
        assert_eq!(choose_mirror("", "bookworm"), None);
    }

    #[test]
    fn package_files_are_read_from_the_list_of_addresses() {
        let line = "'http://c.example/pool/a_1%253a2_amd64.deb' a_1%3a2_amd64.deb 392 SHA256:00";
        assert_eq!(package_file(line), Some("a_1%3a2_amd64.deb"));
        assert_eq!(package_file("Reading package lists..."), None);
    }
}
