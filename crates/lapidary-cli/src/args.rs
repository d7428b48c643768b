//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lapidary_drm::{DeviceConfig, Profile};

/// A virtual GPU for unmodified DRM programs: no GPU, no kernel module, no root.
///
/// The device looks like an Intel GPU under the kernel's Xe driver: Mesa's Vulkan driver, the IGT tests and libdrm's
/// tools find it under /dev/dri and use it as they use real hardware. Memory is really bound, evicted, shared and
/// copied; shaders are not executed, and the report says what was skipped.
#[derive(Debug, Parser)]
#[command(name = "lapidary", version, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program on a device of its own, then report what the device did.
    ///
    /// Without a program it runs the embedded workload: several client processes that allocate, bind, copy, share and
    /// over-commit memory, and check every byte. Exits with the program's own status; 125 when the device failed, 126
    /// when the program can't be run on it, 127 when it can't be found.
    #[command(after_help = "Examples:\n  lapidary run\n  lapidary run -- vulkaninfo --summary\n  \
        lapidary run --gpu lunarlake -- ./my-vulkan-program --flag\n  \
        lapidary run --vram 512M --report report.json -- ./my-test\n  \
        lapidary run --connect /run/user/1000/lapidary -- ./my-test")]
    Run(RunArgs),
    /// Keep a device for programs started later, until interrupted.
    ///
    /// Prints the folder that `lapidary run --connect FOLDER -- PROGRAM` takes, then the report at the end. The signal USR1
    /// has it print what is mapped in every client's address spaces.
    Serve(ServeArgs),
    /// One process of the embedded workload; it finds its device under /dev/dri as any program does.
    #[command(hide = true)]
    WorkloadClient(crate::workload::ClientArgs),
    /// Measure the device as one of its clients: `lapidary run -- lapidary measure`.
    #[command(hide = true)]
    Measure {
        /// Only benchmarks whose name contains one of these.
        names: Vec<String>,
        /// Print the names that there are, a line each, and measure nothing. Needs no device.
        #[arg(long)]
        list: bool,
    },
}

/// Which device.
#[derive(Clone, Debug, Args)]
pub(crate) struct DeviceArgs {
    /// Which GPU the device shows.
    #[arg(long, value_enum, default_value_t = Gpu::Battlemage)]
    pub(crate) gpu: Gpu,
    /// Size of the device's own memory, e.g. 512M or 8G. Costs what is used. [default: 8G; 256M for the embedded
    /// workload, so that it over-commits it]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) vram: Option<u64>,
    /// How long a job may run on an engine before it is killed and its queue banned, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    pub(crate) job_timeout: Duration,
    /// Check every hit of a translation cache against the page tables: a stale one is a failure of the device. Slower.
    #[arg(long)]
    pub(crate) check_tlb: bool,
    /// Most mappings that one address space may have; a client that wants more gets an error.
    #[arg(long, value_name = "COUNT", default_value_t = 1 << 30)]
    pub(crate) max_mappings: u32,
    /// How much of this machine's memory the device may use for page tables and mappings of one client.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_memory)]
    pub(crate) client_memory: u64,
}

/// The GPUs that the device can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Gpu {
    /// Arc B580: system memory and VRAM.
    Battlemage,
    /// Core Ultra 200V: one memory, the system's.
    #[value(name = "lunarlake", alias = "lunar-lake")]
    LunarLake,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Use the device that `lapidary serve` keeps in this folder instead of a new one.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["gpu", "vram", "job_timeout", "check_tlb", "max_mappings",
        "client_memory", "report"])]
    pub(crate) connect: Option<PathBuf>,
    /// Also write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Print no report.
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// The program and its arguments.
    #[arg(last = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Where to keep the device's socket and files. [default: a new folder under $XDG_RUNTIME_DIR or the temporary one]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) folder: Option<PathBuf>,
    /// Also write the report as JSON at the end.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
}

/// VRAM of a device for programs.
const DEFAULT_VRAM: u64 = 8 << 30;

impl DeviceArgs {
    /// The device's configuration; `default_vram` is what `--vram` falls back to, the usual 8 GiB where it is `None`.
    pub(crate) fn config(&self, default_vram: Option<u64>) -> DeviceConfig {
        DeviceConfig {
            profile: match self.gpu {
                Gpu::Battlemage => Profile::Battlemage,
                Gpu::LunarLake => Profile::LunarLake,
            },
            vram_size: self.vram.or(default_vram).unwrap_or(DEFAULT_VRAM),
            job_timeout: self.job_timeout,
            check_tlb: self.check_tlb,
            max_mappings: self.max_mappings,
            client_memory: self.client_memory,
        }
    }
}

/// Reads the size of the VRAM.
fn parse_size(text: &str) -> Result<u64, String> {
    const SMALLEST: u64 = 16 << 20;
    const LARGEST: u64 = 1 << 40;
    let size = parse_memory(text)?;
    if !(SMALLEST..=LARGEST).contains(&size) {
        return Err("must lie between 16M and 1T".to_owned());
    }
    // The buddy allocator and the interface's alignment both want whole 64 KiB pages.
    Ok(size.next_multiple_of(64 << 10))
}

/// Reads a size such as `64M`, `8G`, `8GiB` or a number of bytes.
fn parse_memory(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        unit => return Err(format!("unknown unit '{unit}': use K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number such as 512M or 8G".to_owned())?;
    Ok(number.checked_mul(1 << shift).ok_or("too large")?)
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 =
        text.parse().map_err(|_| "expected a number of seconds such as 5 or 0.5".to_owned())?;
    if !(0.01..=86_400.0).contains(&seconds) {
        return Err("must lie between 0.01 and 86400".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_with_their_unit() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("8GiB"), Ok(8 << 30));
        assert_eq!(parse_size("16777217"), Ok((16 << 20) + (64 << 10)));
        for bad in ["", "G", "1X", "1K", "99999999999G", "-1G", "é"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_program_follows_two_dashes() {
        let cli = Cli::try_parse_from(["lapidary", "run", "--vram", "1G", "--", "ls", "-l"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("not a run") };
        assert_eq!(run.program, ["ls", "-l"]);
        assert_eq!(run.device.config(None).vram_size, 1 << 30);
    }
}
