//! Paths: what programs see of the device tree.

use std::process::Command;

use crate::support::Bench;

fn output(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn shell(bench: &Bench, script: &str) -> String {
    let mut command = bench.command("sh");
    command.args(["-c", script]);
    output(command)
}

#[test]
fn ls_shows_character_devices() {
    let bench = Bench::start();
    let listing = shell(&bench, "ls -l /dev/dri/");
    let lines: Vec<Vec<&str>> = listing
        .lines()
        .map(|line| line.split_whitespace().collect())
        .filter(|l: &Vec<_>| l.len() > 5)
        .collect();
    let of = |name: &str| lines.iter().find(|line| line.last() == Some(&name)).unwrap();
    assert!(of("card0")[0].starts_with("crw-rw-rw-"), "{listing}");
    assert_eq!(of("card0")[4..6], ["226,", "0"]);
    assert_eq!(of("renderD128")[4..6], ["226,", "128"]);
    assert!(of("by-path")[0].starts_with('d'));
}

#[test]
fn stat_tells_the_numbers() {
    let bench = Bench::start();
    assert_eq!(shell(&bench, "stat -c %t:%T:%F /dev/dri/renderD128"), "e2:80:character special file\n");
    assert_eq!(shell(&bench, "cd /dev/dri && stat -c %t:%T card0 && pwd -P"), "e2:0\n/dev/dri\n");
    bench.play("node_stat");
}

#[test]
fn a_node_that_is_no_cards_shows_as_a_device_or_a_file() {
    let bench = Bench::start();
    assert_eq!(shell(&bench, "stat -c %t:%T:%F /dev/sw_sync"), "a:3f:character special file\n");
    let debugfs = "/sys/kernel/debug/sync";
    assert_eq!(shell(&bench, &format!("stat -c %t:%F {debugfs}/sw_sync")), "0:regular empty file\n");
    assert_eq!(
        shell(&bench, &format!("ls {debugfs}; test -r {debugfs}/sw_sync && echo yes")),
        "sw_sync\nyes\n"
    );
    bench.play("file_node");
}

#[test]
fn sysfs_says_what_libdrm_asks() {
    let bench = Bench::start();
    let device = "/sys/devices/pci0000:00/0000:03:00.0";
    let char = "/sys/dev/char/226:128";
    assert_eq!(shell(&bench, &format!("realpath {char}/device")), format!("{device}\n"));
    assert_eq!(shell(&bench, &format!("readlink -f {char}/device/subsystem")), "/sys/bus/pci\n");
    let subsystem = shell(&bench, &format!("readlink {char}/device/subsystem"));
    assert!(subsystem.ends_with("/pci\n"), "{subsystem}");
    let ids =
        shell(&bench, &format!("cd {device}; cat vendor device subsystem_vendor subsystem_device revision"));
    assert_eq!(ids, "0x8086\n0xe20b\n0x8086\n0x1100\n0x00\n");
    let uevent = shell(&bench, &format!("cat {char}/device/uevent"));
    assert!(uevent.contains("PCI_SLOT_NAME=0000:03:00.0\n"), "{uevent}");
    assert_eq!(shell(&bench, &format!("wc -c < {device}/config")), "64\n");
    assert_eq!(shell(&bench, &format!("ls {char}/device/drm")), "card0\nrenderD128\n");
    assert_eq!(shell(&bench, "cat /sys/class/drm/renderD128/dev"), "226:128\n");
}

#[test]
fn globs_answer_paths_that_programs_know() {
    let bench = Bench::start();
    assert_eq!(
        shell(&bench, "echo /dev/dri/card* /sys/class/drm/r*"),
        "/dev/dri/card0 /sys/class/drm/renderD128\n"
    );
    let found = shell(&bench, "find /dev/dri -name 'pci*' | sort");
    let by_path = "/dev/dri/by-path/pci-0000:03:00.0";
    assert_eq!(found, format!("{by_path}-card\n{by_path}-render\n"));
}

#[test]
fn walks_and_searches_answer_paths_that_programs_know() {
    Bench::start().play("walk");
}

#[test]
fn what_is_not_the_trees_is_the_systems() {
    let bench = Bench::start();
    assert_eq!(shell(&bench, "test -e /proc/sys/dev/xe/observation_paranoid || echo absent"), "absent\n");
    assert_eq!(
        shell(&bench, "test -c /dev/null && test -d /sys/devices && test -e /proc/self/exe && echo there"),
        "there\n"
    );
    let link = shell(&bench, "cd /tmp && pwd -P && readlink -f .");
    assert_eq!(link, "/tmp\n/tmp\n");
}
