//! Clients that are killed at any moment take nothing with them and leave nothing behind.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Clients killed in all, and at most at once.
const KILLS: u32 = 300;
const AT_ONCE: usize = 4;

/// A device kept by a process of its own.
struct Served {
    process: Child,
    folder: PathBuf,
    report: PathBuf,
}

impl Served {
    fn start(folder: &Path) -> Self {
        let (device, report) = (folder.join("device"), folder.join("report.json"));
        let mut process = Command::new(env!("CARGO_BIN_EXE_lapidary"))
            .args(["serve", "--vram", "64M", "--check-tlb", "--folder"])
            .arg(&device)
            .arg("--report")
            .arg(&report)
            .stdout(Stdio::piped())
            .spawn()
            .expect("lapidary starts");
        // It prints its folder when it serves.
        let mut line = String::new();
        let out = process.stdout.take().expect("piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line)
            .expect("it says where it serves");
        Self { process, folder: PathBuf::from(line.trim()), report }
    }

    fn client(&self, index: u32, meet: &Path, bytes: u64) -> Child {
        let mut env = lapidary_drm::client_env(&self.folder);
        let preload = self.folder.join("liblapidary_preload.so");
        env.push(("LD_PRELOAD".into(), preload.to_str().expect("a UTF-8 path").into()));
        Command::new(env!("CARGO_BIN_EXE_lapidary"))
            .arg("workload-client")
            .args(["--index", &index.to_string(), "--bytes", &bytes.to_string(), "--meet"])
            .arg(meet)
            .envs(env)
            .stdout(Stdio::null())
            .spawn()
            .expect("a client starts")
    }

    fn stop(mut self) -> serde_json::Value {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is alive");
        let status = self.process.wait().expect("it ends");
        assert!(status.success(), "the server ended with {status}");
        serde_json::from_slice(&std::fs::read(&self.report).expect("it wrote a report")).expect("valid JSON")
    }
}

/// A simple generator is random enough for moments of death, and repeats.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn clients_killed_at_any_moment_harm_nobody_and_leak_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::start(folder.path());
    let mut random = 0x9e37_79b9_7f4a_7c15;
    let mut victims: Vec<Child> = Vec::new();
    let mut pairs = 0;
    let mut survivors: Vec<Child> = Vec::new();
    for kill in 0..KILLS {
        // Two partners work on in peace, all the time.
        if survivors.iter_mut().all(|child| child.try_wait().expect("a child").is_some()) {
            finish(&mut survivors);
            let meet = folder.path().join(format!("pair-{pairs}"));
            pairs += 1;
            survivors = (0..2).map(|index| served.client(index, &meet, 24 << 20)).collect();
        }
        victims.push(served.client(kill, &folder.path().join(format!("nobody-{kill}")), 48 << 20));
        if victims.len() == AT_ONCE {
            std::thread::sleep(Duration::from_micros(next(&mut random) % 60_000));
            let mut victim = victims.swap_remove((next(&mut random) % AT_ONCE as u64) as usize);
            victim.kill().expect("SIGKILL");
            victim.wait().expect("a child");
        }
    }
    for mut victim in victims {
        victim.kill().expect("SIGKILL");
        victim.wait().expect("a child");
    }
    finish(&mut survivors);

    let report = served.stop();
    assert_eq!(report["live"], serde_json::json!({}), "objects of dead clients are still alive");
    assert_eq!(report["gpu"]["stale_hits"], 0, "a stale translation was used");
    assert_eq!(report["gpu"]["faults"], 0, "a client's death made the GPU fault");
    for memory in report["memory"].as_array().expect("regions") {
        assert_eq!(memory["used"], 0, "memory of dead clients is still in use: {memory}");
    }
}

fn finish(children: &mut Vec<Child>) {
    for mut child in children.drain(..) {
        let status = child.wait().expect("a child");
        assert!(status.success(), "a client that nobody killed ended with {status}");
    }
}
