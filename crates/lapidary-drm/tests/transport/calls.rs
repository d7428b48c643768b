//! Calls: arguments, memory, errors, signals.

use std::io::{BufRead, BufReader};
use std::process::Child;

use crate::support::{Bench, Event, succeed};

#[test]
fn arguments_go_both_ways_from_stack_and_heap() {
    Bench::start().play("increment");
}

#[test]
fn bad_pointers_are_efault_and_unknown_commands_enotty() {
    Bench::start().play("errors");
}

#[test]
fn nested_memory_is_read_and_written_and_a_wild_length_costs_nothing() {
    Bench::start().play("memory");
}

#[test]
fn the_largest_argument_fits() {
    Bench::start().play("largest");
}

#[test]
fn threads_call_at_the_same_time_and_their_channels_are_reused() {
    let bench = Bench::start();
    bench.play("threads");
}

#[test]
fn ioctls_on_other_files_are_the_kernels() {
    Bench::start().play("foreign");
}

#[test]
fn a_signal_ends_a_wait_with_eintr() {
    signalled("signal");
}

#[test]
fn a_call_that_completes_in_spite_of_a_signal_keeps_its_result() {
    signalled("signal_stubborn");
}

#[test]
fn a_signal_handler_may_make_calls_in_the_middle_of_a_call() {
    signalled("in_handler");
}

#[test]
fn a_storm_of_signals_disturbs_no_call_that_does_not_wait() {
    Bench::start().play("alarms");
}

/// Plays a part that waits, and sends its thread a signal while it does.
fn signalled(part: &str) {
    let bench = Bench::start();
    let mut child = bench.client(part).spawn().unwrap();
    let thread: i32 = line(&mut child).parse().unwrap();
    let opened = bench.wait_opened();
    bench.wait_until(Event::Waiting(opened));
    // SAFETY: touches no memory; the thread exists.
    unsafe { libc::syscall(libc::SYS_tgkill, child.id(), thread, libc::SIGUSR1) };
    bench.wait_until(Event::WaitEnded(opened));
    succeed(child);
}

/// The next line a client says, past what the test harness says.
pub(crate) fn line(child: &mut Child) -> String {
    let stdout = child.stdout.take().unwrap();
    let mut reader = BufReader::with_capacity(1, stdout);
    loop {
        let mut line = String::new();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0, "the client ended");
        // The harness writes "test client ... " in front of the first.
        let said = line.trim().trim_start_matches("test client ... ");
        if !said.is_empty() && !said.starts_with("running") {
            child.stdout = Some(reader.into_inner());
            return said.to_owned();
        }
    }
}
