//! A Vulkan program that exercises a device's memory through its transfer queue and compares every byte.
//!
//! It is written as any Vulkan program is and knows nothing of what stands behind the device. [`checks`] says what is
//! checked, a module for each subject; [`gpu`] is the layer over Vulkan's functions; [`runner`] runs the checks and prints
//! a line for each; [`pattern`] makes the bytes and finds the first that differs.
//!
//! Two kinds of copies of itself take part: with `--processes N` the program runs N of itself at once, and the checks of
//! sharing start one as their peer (a hidden option), connected by a socket.

mod checks;
mod gpu;
mod pattern;
mod runner;

use std::process::ExitCode;

use clap::Parser;

/// Exercise a Vulkan device's memory through its transfer queue.
#[derive(Clone, Debug, Parser)]
#[command(name = "vulkan-client")]
struct Cli {
    /// Run only checks whose name contains one of these.
    filters: Vec<String>,
    /// Print the names of the checks.
    #[arg(long)]
    list: bool,
    /// A part of the device's name; the first device without.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Take another queue when there is none for transfers alone.
    #[arg(long)]
    any_queue: bool,
    /// Count a check that can't run on the device as a failure.
    #[arg(long)]
    strict: bool,
    /// Run that many of this program at once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    processes: u32,
    /// Serve the sharing checks of another process, over the socket that is this process's standard input.
    #[arg(long, hide = true)]
    peer: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = if cli.list {
        runner::list();
        Ok(true)
    } else if cli.peer {
        checks::sharing::serve(&cli.choice()).map(|()| true)
    } else if cli.processes > 1 {
        runner::run_processes(cli.processes)
    } else {
        runner::run(&cli.choice(), &cli.filters, cli.strict)
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vulkan-client: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    fn choice(&self) -> gpu::Choice {
        gpu::Choice { device: self.device.clone(), any_queue: self.any_queue }
    }
}
