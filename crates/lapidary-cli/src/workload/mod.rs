//! The embedded workload: client processes that use the device as any DRM program does, and check every byte.
//!
//! Four processes run at once, in two pairs. Each copies between all kinds of memory, plays with sparse ranges and
//! partial unbinds, shares a buffer with its partner, and fills its part of twice the device's memory before reading
//! it all back. They are started as separate programs and know nothing of the device but what `/dev/dri` shows them;
//! each prints a line per step, which is the progress shown here.

mod client;
mod gpu;
mod measure;
mod sys;

use std::io::{BufRead, BufReader, IsTerminal};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::report::Bytes;

pub(crate) use client::main as client_main;
pub(crate) use measure::{list as list_measurements, main as measure_main};

/// VRAM of the workload's own device, small so that over-committing it is quick.
pub(crate) const VRAM: u64 = 256 << 20;

/// Client processes; even, they work in pairs.
const CLIENTS: u32 = 4;
/// What all clients together allocate on a device without memory of its own.
const WITHOUT_VRAM: u64 = 512 << 20;

/// Arguments of one client process.
#[derive(Debug, clap::Args)]
pub(crate) struct ClientArgs {
    /// Which client this is; 2n and 2n+1 are partners.
    #[arg(long)]
    index: u32,
    /// Bytes it allocates to over-commit memory.
    #[arg(long)]
    bytes: u64,
    /// Socket where the partners meet.
    #[arg(long)]
    meet: PathBuf,
}

/// What a client process said.
enum Said {
    /// One more step, and the bytes it has checked in all.
    Step { client: u32, phase: String, checked: u64 },
    /// Its output ended: it is done, or it failed.
    End { client: u32 },
}

/// Runs the workload on the device that `env` leads to; `vram` is the size of its own memory, 0 where it has none.
pub(crate) fn run(env: &[(String, String)], vram: u64) -> Result<()> {
    let folder =
        tempfile::Builder::new().prefix("lapidary-workload-").tempdir().context("can't make a folder")?;
    let total = if vram == 0 { WITHOUT_VRAM } else { 2 * vram };
    let bytes = total / u64::from(CLIENTS);
    let program = std::env::current_exe().context("can't find my own program")?;
    let (sender, receiver) = mpsc::channel();
    let mut children = Vec::new();
    for index in 0..CLIENTS {
        let mut child = Command::new(&program)
            .arg("workload-client")
            .args(["--index", &index.to_string(), "--bytes", &bytes.to_string(), "--meet"])
            .arg(folder.path().join(format!("pair-{}", index / 2)))
            .envs(crate::launch::client_env(env))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("can't start a client process")?;
        listen(index, &mut child, sender.clone());
        children.push(child);
    }
    drop(sender);
    let places = if vram == 0 { 1 } else { 2 };
    let checked = follow(&receiver, &mut children, u64::from(CLIENTS) * client::steps(bytes, places))?;
    eprintln!(
        "workload: {CLIENTS} client processes, {} allocated at once, {} compared, every byte right",
        Bytes(total),
        Bytes(checked),
    );
    Ok(())
}

/// Turns a child's output into messages, on a thread of its own.
fn listen(client: u32, child: &mut Child, sender: mpsc::Sender<Said>) {
    let Some(output) = child.stdout.take() else { return };
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let (phase, checked) = line.split_once(' ').unwrap_or((&line, "0"));
            let said = Said::Step { client, phase: phase.to_owned(), checked: checked.parse().unwrap_or(0) };
            if sender.send(said).is_err() {
                return;
            }
        }
        // Nobody listens any more only when the coordinator is ending itself.
        let _ = sender.send(Said::End { client });
    });
}

/// Shows the clients' progress until all have ended; answers how many bytes they compared.
///
/// # Errors
/// When a client failed. The others are ended then: a partner would wait for it.
fn follow(receiver: &mpsc::Receiver<Said>, children: &mut [Child], steps: u64) -> Result<u64> {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{bar:32} {percent:>3}% {elapsed:>4} {msg}")
        .expect("a constant template");
    let bar = ProgressBar::with_draw_target(Some(steps), target).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    let mut checked = [0; CLIENTS as usize];
    let mut told = 0;
    let mut failures = Vec::new();
    for said in receiver {
        let (client, phase, bytes) = match said {
            Said::Step { client, phase, checked } => (client, phase, checked),
            Said::End { client } => {
                failures.extend(failure(client, children)?);
                continue;
            }
        };
        checked[client as usize] = bytes;
        bar.inc(1);
        bar.set_message(format!("client {client}: {phase}, {} compared", Bytes(checked.iter().sum())));
        let quarter = bar.position() * 4 / steps;
        if !terminal && quarter > told {
            told = quarter;
            eprintln!("workload: {} %, {} compared", quarter * 25, Bytes(checked.iter().sum()));
        }
    }
    bar.finish_and_clear();
    match failures.first() {
        None => Ok(checked.iter().sum()),
        Some(first) => bail!("the workload failed: {first}"),
    }
}

/// Collects a client that has ended; when it failed, says how and ends the others.
fn failure(client: u32, children: &mut [Child]) -> Result<Option<String>> {
    let status = children[client as usize].wait().context("a client process is lost")?;
    if status.success() {
        return Ok(None);
    }
    for child in children.iter_mut() {
        // One that has ended already needs no ending.
        let _ = child.kill();
    }
    Ok(Some(format!("client {client} ended with {status}")))
}
