//! `lapidary run`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::args::{Gpu, RunArgs};
use crate::device::{self, LocalDevice};
use crate::report::JsonFile;
use crate::{launch, report, workload};

/// Exit status when the device itself failed, as for `env` and `timeout`.
pub(crate) const DEVICE_FAILED: u8 = 125;

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    if let Some(folder) = &args.connect {
        return connect(folder, args);
    }
    let program = match args.program.first() {
        Some(name) => {
            match launch::find(name).and_then(|path| launch::check_preloadable(&path).map(|()| path)) {
                Ok(path) => Some(path),
                Err(error) => return Ok(refuse(&error)),
            }
        }
        None => None,
    };
    let json = args.report.as_deref().map(JsonFile::create).transpose()?;
    let config = args.device.config(program.is_none().then_some(workload::VRAM));
    let vram = if args.device.gpu == Gpu::LunarLake { 0 } else { config.vram_size };
    let device = LocalDevice::start(config, None)?;
    let env = device.client_env();
    let outcome = match &program {
        Some(path) => {
            launch::run(path, &args.program[1..], &env).map(launch::exit_code).map_err(Outcome::Launch)
        }
        None => workload::run(&env, vram).map(|()| 0).map_err(Outcome::Workload),
    };
    let done = device.finish();
    if !args.quiet {
        eprint!("{}", report::text(&done));
    }
    if let Some(json) = json {
        json.write(&done)?;
    }
    if let Some(failure) = report::failure(&done) {
        eprintln!("lapidary: {failure}");
        return Ok(ExitCode::from(DEVICE_FAILED));
    }
    match outcome {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(Outcome::Launch(error)) => Ok(refuse(&error)),
        Err(Outcome::Workload(error)) => Err(error),
    }
}

enum Outcome {
    Launch(launch::LaunchError),
    Workload(anyhow::Error),
}

/// Runs the program on a device that another process keeps.
fn connect(folder: &Path, args: &RunArgs) -> Result<ExitCode> {
    let folder = folder.canonicalize().with_context(|| {
        format!("no device in {}; `lapidary serve --folder {0}` keeps one there", folder.display())
    })?;
    let Some(name) = args.program.first() else {
        bail!(
            "name the program to run on that device: lapidary run --connect {} -- PROGRAM",
            folder.display()
        );
    };
    if !lapidary_drm::is_served(&folder) {
        bail!("nobody serves a device in {}; start one: lapidary serve --folder {0}", folder.display());
    }
    let path = match launch::find(name).and_then(|path| launch::check_preloadable(&path).map(|()| path)) {
        Ok(path) => path,
        Err(error) => return Ok(refuse(&error)),
    };
    match launch::run(&path, &args.program[1..], &device::client_env(&folder)) {
        Ok(status) => Ok(ExitCode::from(launch::exit_code(status))),
        Err(error) => Ok(refuse(&error)),
    }
}

fn refuse(error: &launch::LaunchError) -> ExitCode {
    eprintln!("lapidary: {error}");
    ExitCode::from(error.exit_code())
}
