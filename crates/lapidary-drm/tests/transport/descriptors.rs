//! Descriptors: copies, other processes, release, mappings, kinds.

use crate::calls::line;
use crate::support::{Bench, Event, succeed};

#[test]
fn copies_name_one_file_which_is_released_with_the_last() {
    let bench = Bench::start();
    let mut child = bench.client("copies").spawn().unwrap();
    let first = bench.wait_opened();
    assert_eq!(line(&mut child), "replaced");
    bench.wait_until(Event::Released(first));
    let more = bench.told();
    assert!(!more.iter().any(|event| matches!(event, Event::Released(_))), "{more:?}");
    drop(child.stdin.take());
    succeed(child);
    bench.wait_for(|event| matches!(event, Event::Released(_)).then_some(()));
}

#[test]
fn parent_and_child_use_a_file_after_fork() {
    let bench = Bench::start();
    bench.play("fork");
    let first = bench.wait_opened();
    // Three children ended without harm to it.
    bench.wait_until(Event::Released(first));
    assert_eq!(bench.transport.counts().files, 0);
}

#[test]
fn a_file_survives_exec() {
    Bench::start().play("exec");
}

#[test]
fn a_descriptor_works_in_the_process_it_was_sent_to() {
    let bench = Bench::start();
    bench.play("pass");
    let number = bench.wait_opened();
    bench.wait_until(Event::Released(number));
}

#[test]
fn mappings_are_the_kernels_own() {
    Bench::start().play("map");
}

#[test]
fn a_mapping_outlives_its_descriptor() {
    Bench::start().play("map_after_close");
}

#[test]
fn a_sync_file_becomes_readable_and_stays_so() {
    Bench::start().play("sync");
}

#[test]
fn a_dma_buf_is_a_memfd_that_is_released_with_its_last_descriptor_and_mapping() {
    let bench = Bench::start();
    let mut child = bench.client("dma_buf").spawn().unwrap();
    let buffer: u64 = line(&mut child).parse().unwrap();
    let told = bench.told();
    assert!(!told.contains(&Event::Released(buffer)), "{told:?}");
    use std::io::Write;
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    assert_eq!(line(&mut child), "unmapped");
    bench.wait_until(Event::Released(buffer));
    drop(child.stdin.take());
    succeed(child);
}

#[test]
fn the_link_of_a_descriptor_is_the_nodes_path_and_opens_a_new_file() {
    Bench::start().play("same_file");
}

#[test]
fn fdinfo_is_the_files() {
    Bench::start().play("proc");
}

#[test]
fn a_file_is_released_when_close_returns() {
    let bench = Bench::start();
    let mut child = bench.client("close_is_prompt").spawn().unwrap();
    assert_eq!(line(&mut child), "closed");
    let released = bench.events.try_iter().filter(|event| matches!(event, Event::Released(_))).count();
    assert_eq!(released, 50);
    drop(child.stdin.take());
    succeed(child);
}

#[test]
fn a_program_that_closes_every_number_keeps_its_connection() {
    Bench::start().play("close_all");
}

#[test]
fn a_poll_on_a_dma_buf_ends_when_its_device_says_so() {
    let bench = Bench::start();
    let mut child = bench.client("poll_dma_buf").spawn().unwrap();
    assert_eq!(line(&mut child), "polling");
    // Once for the poll that does not wait, and once for the one that does.
    (0..2).for_each(|_| bench.wait_for(|event| matches!(event, Event::Waiting(_)).then_some(())));
    drop(child.stdin.take());
    succeed(child);
}

#[test]
fn a_descriptor_sent_over_itself_keeps_nothing_open() {
    let bench = Bench::start();
    bench.play("send_to_itself");
    bench.wait_until(Event::Gone);
    bench.transport.settle();
    assert_eq!(bench.transport.counts().files, 0);
}
