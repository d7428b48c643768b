//! Mesa's Vulkan drivers, the Vulkan loader and `vulkaninfo`, run with the machine's own libc.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{ClientSet, private_home};

/// The backport is the newest Mesa whose libc is that of Debian 12; machines with a newer libc run it as well.
pub(crate) const SET: ClientSet = ClientSet {
    name: "mesa",
    suites: &["bookworm", "bookworm-backports"],
    target_suite: "bookworm-backports",
    packages: &["mesa-vulkan-drivers", "vulkan-tools", "libvulkan1"],
    // Two C libraries in one process don't get along: the machine's loader brings the machine's.
    left_out: &["libc6"],
    finish: rewrite_manifests,
};

const MANIFESTS: &str = "usr/share/vulkan/icd.d";
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// The `vulkaninfo` program.
pub(crate) fn vulkaninfo() -> PathBuf {
    SET.dir().join("usr/bin/vulkaninfo")
}

/// The environment in which a Vulkan program finds the unpacked loader and Intel's driver, and nothing of the machine's
/// Vulkan installation.
///
/// # Errors
/// When the clients' home can't be made.
pub(crate) fn environment() -> Result<Vec<(OsString, OsString)>> {
    let dir = SET.dir();
    let manifest = intel_manifest(&dir)?;
    let libraries = env::join_paths(LIBRARIES.map(|below| dir.join(below)))
        .context("the target folder's path must not contain a colon")?;
    let mut variables: Vec<(OsString, OsString)> = vec![
        ("LD_LIBRARY_PATH".into(), libraries),
        // The older and the newer name of the same setting.
        ("VK_ICD_FILENAMES".into(), manifest.clone().into()),
        ("VK_DRIVER_FILES".into(), manifest.into()),
        ("VK_LOADER_LAYERS_DISABLE".into(), "~all~".into()),
        ("MESA_SHADER_CACHE_DISABLE".into(), "true".into()),
    ];
    variables.extend(private_home()?.into_iter().map(|(key, value)| (key.into(), value.into())));
    Ok(variables)
}

/// The manifest of ANV; its name has carried the machine's architecture in some versions.
fn intel_manifest(dir: &Path) -> Result<PathBuf> {
    let manifests = dir.join(MANIFESTS);
    let names = fs::read_dir(&manifests).with_context(|| format!("can't read {}", manifests.display()))?;
    let found = names
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("intel_icd.")));
    found.with_context(|| format!("{} holds no manifest of Intel's driver", manifests.display()))
}

/// Driver manifests name their library by absolute path, so that no other copy is found.
fn rewrite_manifests(unpacked: &Path, place: &Path) -> Result<()> {
    let dir = unpacked.join(MANIFESTS);
    let libraries = place.join(LIBRARIES[0]);
    for entry in fs::read_dir(&dir).with_context(|| format!("{} holds no Vulkan driver", dir.display()))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        fs::write(&path, with_absolute_library(&text, &libraries))
            .with_context(|| format!("can't write {}", path.display()))?;
    }
    intel_manifest(unpacked).map(drop)
}

/// Puts `libraries` before the file name in a manifest's `"library_path": "…"`.
fn with_absolute_library(manifest: &str, libraries: &Path) -> String {
    let rewrite = |line: &str| {
        let (key, value) = line.split_once(':').filter(|(key, _)| key.contains("\"library_path\""))?;
        let file = value.rsplit(['"', '/']).find(|part| part.ends_with(".so"))?;
        let comma = if value.trim_end().ends_with(',') { "," } else { "" };
        Some(format!("{key}: \"{}\"{comma}", libraries.join(file).display()))
    };
    manifest.lines().map(|line| rewrite(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_library_becomes_absolute() {
        let manifest = "{\n  \"ICD\": {\n    \"library_path\": \"/usr/lib/libvulkan_intel.so\",\n    \"api_version\": \"1.4.305\"\n";
        let rewritten = with_absolute_library(manifest, Path::new("/a b/lib"));
        assert!(rewritten.contains("\"library_path\": \"/a b/lib/libvulkan_intel.so\",\n"), "{rewritten}");
        assert!(rewritten.contains("\"api_version\": \"1.4.305\""), "{rewritten}");
    }
}
