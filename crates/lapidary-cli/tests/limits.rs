//! A device without descriptors refuses clients; it keeps nobody waiting, and serves again when there are some.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketType};

/// Descriptors that the device may have.
const LIMIT: u32 = 40;

struct Served {
    process: Child,
    folder: PathBuf,
    report: PathBuf,
}

impl Served {
    fn start(folder: &Path) -> Self {
        let report = folder.join("report.json");
        let mut process = Command::new("sh")
            .args(["-c", &format!("ulimit -n {LIMIT}; exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_lapidary"))
            .args(["serve", "--check-tlb", "--vram", "64M", "--folder"])
            .arg(folder.join("device"))
            .arg("--report")
            .arg(&report)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("lapidary starts");
        let mut line = String::new();
        let out = process.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("it says where it serves");
        Self { process, folder: PathBuf::from(line.trim()), report }
    }

    /// One more connection, as the library in a client makes it.
    fn connect(&self) -> OwnedFd {
        let address = SocketAddrUnix::new(self.folder.join("control")).expect("a short path");
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("a socket");
        rustix::net::connect(&socket, &address).expect("it listens");
        socket
    }

    /// Two clients that work together, and whether both went well.
    fn pair(&self, meet: &Path) -> bool {
        let start = |index: u32| {
            Command::new(env!("CARGO_BIN_EXE_lapidary"))
                .arg("workload-client")
                .args(["--index", &index.to_string(), "--bytes", "16777216", "--meet"])
                .arg(meet)
                .envs(lapidary_drm::client_env(&self.folder))
                .env("LD_PRELOAD", self.folder.join("liblapidary_preload.so"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .expect("a client starts")
        };
        let mut pair = [start(0), start(1)];
        loop {
            let ended = pair.each_mut().map(|child| child.try_wait().expect("a child"));
            if let [Some(one), Some(other)] = ended {
                return one.success() && other.success();
            }
            if ended.into_iter().flatten().any(|status| !status.success()) {
                // The other would wait for its partner.
                pair.iter_mut().for_each(|child| child.kill().expect("a child"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(mut self) -> serde_json::Value {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is alive");
        let status = self.process.wait().expect("it ends");
        assert!(status.success(), "the server ended with {status}");
        serde_json::from_slice(&std::fs::read(&self.report).expect("it wrote a report")).expect("valid JSON")
    }
}

#[test]
fn clients_beyond_the_limit_of_descriptors_are_refused_and_served_when_there_is_room_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::start(folder.path());
    let connections: Vec<OwnedFd> = (0..2 * LIMIT).map(|_| served.connect()).collect();

    // The last of them are told that nobody answers.
    let last = connections.last().expect("many");
    let end = rustix::net::recv(last, &mut [0; 64], RecvFlags::empty());
    assert!(matches!(end, Ok((0, _)) | Err(rustix::io::Errno::CONNRESET)), "{end:?}");
    let refused = Command::new(env!("CARGO_BIN_EXE_lapidary"))
        .arg("workload-client")
        .args(["--index", "1", "--bytes", "0", "--meet", "nowhere"])
        .envs(lapidary_drm::client_env(&served.folder))
        .env("LD_PRELOAD", served.folder.join("liblapidary_preload.so"))
        .stdin(Stdio::null())
        .output()
        .expect("a client starts");
    assert!(!refused.status.success());

    drop(connections);
    // The ends of the connections reach the device when they do: the first clients may still find it full.
    let mut meets = (0..50).map(|number| folder.path().join(format!("meet-{number}")));
    assert!(meets.any(|meet| served.pair(&meet)), "the device serves nobody any more");
    let report = served.stop();
    assert_eq!(report["live"], serde_json::json!({}));
    assert_eq!(report["gpu"]["stale_hits"], 0);
}
