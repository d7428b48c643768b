//! Processes: many at once, killed in the middle, and what is left of them.

use crate::calls::line;
use crate::support::{Bench, Event, succeed};

#[test]
fn sixteen_clients_at_once() {
    let bench = Bench::start();
    let children: Vec<_> = (0..16)
        .map(|i| bench.client(["increment", "threads", "memory", "map"][i % 4]).spawn().unwrap())
        .collect();
    children.into_iter().for_each(succeed);
    (0..16).for_each(|_| bench.wait_until(Event::Gone));
    bench.transport.settle();
    let counts = bench.transport.counts();
    assert_eq!((counts.processes, counts.channels, counts.files), (0, 0, 0));
}

#[test]
fn a_client_killed_in_a_wait_is_gone_and_others_are_not_touched() {
    let bench = Bench::start();
    let mut other = bench.client("hold").spawn().unwrap();
    let held: u64 = line(&mut other).parse().unwrap();
    assert_eq!(bench.wait_opened(), held);
    for part in ["wait", "stubborn"] {
        let mut victim = bench.client(part).spawn().unwrap();
        let number = bench.wait_opened();
        bench.wait_until(Event::Waiting(number));
        victim.kill().unwrap();
        victim.wait().unwrap();
        // In this order: no file is released under a call.
        bench.wait_until(Event::WaitEnded(number));
        bench.wait_until(Event::Released(number));
    }
    drop(other.stdin.take());
    succeed(other);
    bench.wait_until(Event::Released(held));
}

#[test]
fn programs_that_never_touch_the_device_never_connect() {
    let bench = Bench::start();
    let status =
        bench.command("sh").args(["-c", "echo a | cat | sort > /dev/null; ls / > /dev/null"]).status();
    assert!(status.unwrap().success());
    assert_eq!(bench.told(), []);
}

#[test]
fn a_shutdown_ends_calls_and_releases_what_clients_hold() {
    let mut bench = Bench::start();
    let mut child = bench.client("wait").spawn().unwrap();
    let number = bench.wait_opened();
    bench.wait_until(Event::Waiting(number));
    bench.transport.shutdown();
    let told: Vec<_> = bench.events.try_iter().collect();
    assert!(told.contains(&Event::Released(number)), "{told:?}");
    child.wait().unwrap();
}
