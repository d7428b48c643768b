//! Running programs that may hang: their output line by line, within a time, and their whole process group ended.
//!
//! Standard output and error go into one pipe, so that their lines keep the order in which they were written. A thread
//! reads the pipe; the caller's thread handles the lines and watches the time.

use std::io::{BufRead, BufReader, PipeReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

/// How long a program has between TERM and KILL.
const GRACE: Duration = Duration::from_secs(3);
/// How often a silent program is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long the pipe may stay open after the program has gone: something it left behind holds it.
const LINGER: Duration = Duration::from_secs(1);
/// Longer lines are cut: a program may write megabytes without a newline.
const LINE_LIMIT: u64 = 1 << 16;

/// How long a program may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From start to end.
    pub(crate) total: Duration,
    /// From one step to the next; what a step is, the caller says.
    pub(crate) step: Duration,
}

impl Limits {
    /// A limit for the whole run only.
    pub(crate) fn total(total: Duration) -> Self {
        Limits { total, step: total }
    }
}

/// Whether a line moved the program forward.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// A new step begins here: its time starts anew.
    Step,
    /// Nothing of note.
    Other,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself.
    Exited(ExitStatus),
    /// A step took too long; the program was killed.
    StepTooLong,
    /// The whole took too long; the program was killed.
    TooLong,
}

impl Ended {
    /// Whether the program ended by itself and reported success.
    pub(crate) fn success(self) -> bool {
        matches!(self, Ended::Exited(status) if status.success())
    }

    /// In words, for a message.
    pub(crate) fn describe(self) -> String {
        match self {
            Ended::Exited(status) => status.to_string(),
            Ended::StepTooLong | Ended::TooLong => "killed: it took too long".to_owned(),
        }
    }
}

/// Runs `command` in a process group of its own and gives each line of its output to `on_line`.
///
/// # Errors
/// When the program can't be started.
pub(crate) fn run(
    command: &mut Command,
    limits: Limits,
    mut on_line: impl FnMut(&str) -> Line,
) -> Result<Ended> {
    let (reader, mut child) = start(command)?;
    let (sender, lines) = channel();
    thread::spawn(move || forward_lines(reader, &sender));
    let ended = watch(&mut child, &lines, limits, &mut on_line)?;
    if !matches!(ended, Ended::Exited(_)) {
        end_group(&mut child)?;
    }
    // What the program left behind must not outlive it.
    signal_group(&child, Signal::KILL);
    while let Ok(line) = lines.recv_timeout(LINGER) {
        on_line(&line);
    }
    Ok(ended)
}

fn start(command: &mut Command) -> Result<(PipeReader, Child)> {
    let name = command.get_program().to_string_lossy().into_owned();
    let (reader, writer) = std::io::pipe().context("can't make a pipe")?;
    let errors = writer.try_clone().context("can't copy a pipe's end")?;
    command.stdin(Stdio::null()).stdout(writer).stderr(errors).process_group(0);
    let child = command.spawn().with_context(|| format!("can't start {name}"))?;
    // The command keeps its copies of the pipe's end: without this the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok((reader, child))
}

fn forward_lines(reader: PipeReader, lines: &Sender<String>) {
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match reader.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&bytes);
        if lines.send(line.trim_end_matches(['\n', '\r']).to_owned()).is_err() {
            return;
        }
    }
}

fn watch(
    child: &mut Child,
    lines: &Receiver<String>,
    limits: Limits,
    on_line: &mut impl FnMut(&str) -> Line,
) -> Result<Ended> {
    let started = Instant::now();
    let mut step_started = started;
    let mut gone_since = None;
    loop {
        match lines.recv_timeout(TICK) {
            Ok(line) => {
                if on_line(&line) == Line::Step {
                    step_started = Instant::now();
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(status) = child.try_wait()? {
                    let since = *gone_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= LINGER {
                        return Ok(Ended::Exited(status));
                    }
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                // The output is closed, but the program may go on without it.
                if let Some(status) = child.try_wait()? {
                    return Ok(Ended::Exited(status));
                }
                thread::sleep(TICK / 10);
            }
        }
        if started.elapsed() >= limits.total {
            return Ok(Ended::TooLong);
        }
        if gone_since.is_none() && step_started.elapsed() >= limits.step {
            return Ok(Ended::StepTooLong);
        }
    }
}

/// TERM first, so that the program can tidy up, then KILL.
fn end_group(child: &mut Child) -> Result<()> {
    signal_group(child, Signal::TERM);
    let asked = Instant::now();
    while asked.elapsed() < GRACE {
        if child.try_wait()?.is_some() {
            break;
        }
        thread::sleep(TICK);
    }
    signal_group(child, Signal::KILL);
    child.wait()?;
    Ok(())
}

fn signal_group(child: &Child, signal: Signal) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // No such group: nothing is left of it.
        let _ = kill_process_group(group, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_of_both_streams_come_in_the_order_written() {
        let mut seen = Vec::new();
        let limits = Limits::total(Duration::from_secs(60));
        let ended = run(&mut shell("echo a; echo b >&2; echo c"), limits, |line| {
            seen.push(line.to_owned());
            Line::Other
        });
        assert!(ended.unwrap().success());
        assert_eq!(seen, ["a", "b", "c"]);
    }

    #[test]
    fn a_program_that_ignores_term_is_killed() {
        let limits = Limits::total(Duration::from_millis(300));
        let ended =
            run(&mut shell("trap '' TERM; while :; do sleep 1; done"), limits, |_| Line::Other).unwrap();
        assert_eq!(ended, Ended::TooLong);
    }

    #[test]
    fn a_child_left_behind_with_the_output_does_not_hold_the_run() {
        let limits = Limits::total(Duration::from_secs(60));
        let ended = run(&mut shell("sleep 1000 & exit 3"), limits, |_| Line::Other).unwrap();
        assert!(matches!(ended, Ended::Exited(status) if status.code() == Some(3)));
    }
}
