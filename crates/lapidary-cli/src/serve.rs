//! `lapidary serve`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::args::ServeArgs;
use crate::device::LocalDevice;
use crate::report::{self, JsonFile};
use crate::run::DEVICE_FAILED;

pub(crate) fn serve(args: &ServeArgs) -> Result<ExitCode> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1]).context("can't watch for signals")?;
    let json = args.report.as_deref().map(JsonFile::create).transpose()?;
    let device = LocalDevice::start(args.device.config(None), args.folder.as_deref())?;
    let folder = device.folder().display();
    println!("{folder}");
    eprintln!("lapidary: serving until interrupted; lapidary run --connect {folder} -- PROGRAM");
    for signal in signals.forever() {
        match signal {
            SIGUSR1 => eprint!("{}", device.gpuvas()),
            _ => break,
        }
    }
    let done = device.finish();
    eprint!("{}", report::text(&done));
    if let Some(json) = json {
        json.write(&done)?;
    }
    if let Some(failure) = report::failure(&done) {
        eprintln!("lapidary: {failure}");
        return Ok(ExitCode::from(DEVICE_FAILED));
    }
    Ok(ExitCode::SUCCESS)
}
