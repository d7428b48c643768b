//! Developer tasks, run as `cargo xtask TASK`.
//!
//! | task | what it does | module |
//! | --- | --- | --- |
//! | `bench` | measures the library, and the device as its clients see it, next to other figures | [`bench`](mod@bench) |
//! | `clients` | unpacks the real clients (Mesa, IGT) below `target/clients`, without root | [`clients`] |
//! | `igt` | runs IGT's test programs on the virtual device and judges them by `tests/igt/*.list` | [`igt`] |
//! | `test` | everything that must hold before a change is accepted, phase by phase | [`test`](mod@test) |
//!
//! The tasks only drive other programs: nothing here knows how the device works.

mod bench;
mod clients;
mod igt;
mod process;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Lapidary's developer tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure the library and the device, and compare with the aims or with other figures.
    Bench(bench::Args),
    /// Install the real clients (Mesa's Vulkan driver, IGT) below target/clients, without root.
    Clients(clients::Args),
    /// Run IGT's test programs on the virtual device.
    Igt(igt::Args),
    /// Run every check: formatting, lints, documentation, tests, and the real clients.
    Test(test::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Bench(args) => bench::run(&args),
        Task::Clients(args) => clients::run(&args),
        Task::Igt(args) => igt::run(&args),
        Task::Test(args) => test::run(&args),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
