//! The program `lapidary`: a virtual GPU for unmodified DRM programs.
//!
//! `run` keeps a device for one program, or for the embedded [`workload`]; `serve` keeps one for programs started
//! later. Both hold the device inside this process ([`device`]) and start programs with the preload library in front
//! of the C library ([`launch`]).

mod args;
mod device;
mod launch;
mod report;
mod run;
mod serve;
mod workload;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Events are for who asks: LAPIDARY_LOG=debug, or any other filter of `tracing`.
    let filter = EnvFilter::try_from_env("LAPIDARY_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let outcome = match &cli.command {
        Command::Run(args) => run::run(args),
        Command::Serve(args) => serve::serve(args),
        Command::Measure { list: true, .. } => {
            workload::list_measurements();
            Ok(ExitCode::SUCCESS)
        }
        Command::Measure { names, .. } => workload::measure_main(names).map(|()| ExitCode::SUCCESS),
        Command::WorkloadClient(args) => workload::client_main(args).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("lapidary: {error:#}");
        ExitCode::from(run::DEVICE_FAILED)
    })
}
