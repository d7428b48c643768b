//! A device inside this process, and the folder through which programs reach it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lapidary_drm::{DeviceConfig, Report, Server};
use tempfile::TempDir;

/// The library that the dynamic loader puts into clients.
static PRELOAD: &[u8] = include_bytes!(env!("LAPIDARY_PRELOAD_LIBRARY"));
/// Its name in the device's folder.
const PRELOAD_NAME: &str = "liblapidary_preload.so";

/// A running device. Its folder goes when it does, unless the caller chose the folder.
pub(crate) struct LocalDevice {
    server: Server,
    folder: PathBuf,
    _temporary: Option<TempDir>,
}

impl LocalDevice {
    /// Starts a device in `folder`, or in a new one.
    pub(crate) fn start(config: DeviceConfig, folder: Option<&Path>) -> Result<Self> {
        let (folder, temporary) = match folder {
            Some(folder) => {
                fs::create_dir_all(folder)
                    .with_context(|| format!("can't make the folder {}", folder.display()))?;
                (folder.canonicalize()?, None)
            }
            None => {
                let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
                let temporary = tempfile::Builder::new()
                    .prefix("lapidary-")
                    .tempdir_in(&base)
                    .or_else(|_| tempfile::Builder::new().prefix("lapidary-").tempdir())
                    .with_context(|| format!("can't make a folder in {}", base.display()))?;
                (temporary.path().to_path_buf(), Some(temporary))
            }
        };
        let preload = folder.join(PRELOAD_NAME);
        fs::write(&preload, PRELOAD).with_context(|| format!("can't write {}", preload.display()))?;
        let server = Server::start(config, &folder).context("the device can't be started")?;
        Ok(Self { server, folder, _temporary: temporary })
    }

    /// Where programs find it.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What a program needs in its environment.
    pub(crate) fn client_env(&self) -> Vec<(String, String)> {
        client_env(&self.folder)
    }

    /// The address spaces of all clients as text.
    pub(crate) fn gpuvas(&self) -> String {
        self.server.gpuvas()
    }

    /// Ends the device; the report tells what it did and what its clients left behind.
    pub(crate) fn finish(self) -> Report {
        self.server.shutdown()
    }
}

/// What a program needs in its environment to use the device in `folder`.
pub(crate) fn client_env(folder: &Path) -> Vec<(String, String)> {
    let mut env = lapidary_drm::client_env(folder);
    env.push(("LD_PRELOAD".into(), folder.join(PRELOAD_NAME).to_string_lossy().into_owned()));
    env
}
