//! Clients that are killed at any moment take nothing with them and leave nothing behind.
//!
//! The device is in this process, so that its counts can be seen while it serves: what is left only until a shutdown
//! sweeps it away counts as left.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lapidary_drm::{DeviceConfig, Report, Server};

/// The library that clients are started with.
static PRELOAD: &[u8] = include_bytes!(env!("LAPIDARY_PRELOAD_LIBRARY"));

/// Device memory: less than the clients that run at once want.
const VRAM: u64 = 64 << 20;
/// Clients killed in all, and most at once; both even, they come in pairs.
const KILLS: u32 = 300;
const AT_ONCE: usize = 4;
/// What each of them fills in the end, if it lives that long.
const VICTIM_BYTES: u64 = 48 << 20;
/// What each of the two that nobody kills fills: together more than there is.
const SURVIVOR_BYTES: u64 = 40 << 20;

/// Threads of the device that panicked.
static PANICS: AtomicUsize = AtomicUsize::new(0);

struct Served {
    server: Server,
    folder: PathBuf,
}

impl Served {
    fn start(folder: &Path) -> Self {
        count_panics();
        std::fs::write(folder.join("liblapidary_preload.so"), PRELOAD).expect("a writable folder");
        let config = DeviceConfig { vram_size: VRAM, check_tlb: true, ..DeviceConfig::default() };
        let server = Server::start(config, folder).expect("the device starts");
        Self { server, folder: folder.to_owned() }
    }

    fn client(&self, index: u32, meet: &Path, bytes: u64, stderr: Stdio) -> Child {
        let preload = self.folder.join("liblapidary_preload.so");
        Command::new(env!("CARGO_BIN_EXE_lapidary"))
            .arg("workload-client")
            .args(["--index", &index.to_string(), "--bytes", &bytes.to_string(), "--meet"])
            .arg(meet)
            .envs(lapidary_drm::client_env(&self.folder))
            .env("LD_PRELOAD", preload)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("a client starts")
    }

    /// Two clients that work together.
    fn pair(&self, number: u32, meet: &Path, bytes: u64, stderr: fn() -> Stdio) -> [Child; 2] {
        [0, 1].map(|side| self.client(2 * number + side, meet, bytes, stderr()))
    }

    /// The counts once nothing is left, or what they are after a time in which it should have gone.
    fn settled(&self) -> Report {
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            let report = self.server.report();
            let empty = report.live.is_empty() && report.memory.iter().all(|memory| memory.used == 0);
            if empty || Instant::now() > give_up {
                return report;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Counts panics of any thread; those of a test end it anyway.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            report(info);
        }));
    });
}

/// A simple generator is random enough for moments of death, and repeats.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// How long to let them live: mostly until somewhere in their first steps, now and then up to the last ones.
fn life(state: &mut u64) -> Duration {
    let bound = if next(state).is_multiple_of(16) { 800_000 } else { 50_000 };
    Duration::from_micros(next(state) % bound)
}

#[test]
fn a_device_that_ends_while_clients_are_at_work_leaves_nothing_of_theirs() {
    let mut random = 0xd1b5_4a32_d192_ed03;
    for number in 0..8 {
        let folder = tempfile::tempdir().expect("a folder");
        let served = Served::start(folder.path());
        let meets = [0, 1].map(|pair| folder.path().join(format!("pair-{pair}")));
        let clients: Vec<Child> =
            meets.iter().flat_map(|meet| served.pair(number, meet, VICTIM_BYTES, Stdio::null)).collect();
        std::thread::sleep(life(&mut random));
        let last = served.server.shutdown();
        assert_eq!(last.live, Default::default(), "the shutdown left something behind");
        assert_eq!(last.gpu.stale_hits, 0, "a stale translation was used");
        // One may still wait for a partner that gave up.
        clients.into_iter().for_each(kill);
    }
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "a thread of the device panicked");
}

#[test]
fn clients_killed_at_any_moment_harm_nobody_and_leak_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::start(folder.path());
    let mut random = 0x9e37_79b9_7f4a_7c15;
    let mut victims: Vec<Child> = Vec::new();
    let mut survivors: Vec<Child> = Vec::new();
    let (mut pairs, mut killed) = (0, 0);
    while killed < KILLS {
        // Two partners work on in peace, all the time.
        if survivors.iter_mut().all(|child| child.try_wait().expect("a child").is_some()) {
            finish(&mut survivors);
            let meet = folder.path().join(format!("pair-{pairs}"));
            survivors.extend(served.pair(pairs, &meet, SURVIVOR_BYTES, Stdio::inherit));
            pairs += 1;
        }
        if victims.len() < AT_ONCE - 1 {
            // What they have to say of a partner that vanishes is of no interest.
            let meet = folder.path().join(format!("victims-{killed}"));
            victims.extend(served.pair(1000 + killed, &meet, VICTIM_BYTES, Stdio::null));
        }
        std::thread::sleep(life(&mut random));
        let chosen = next(&mut random) as usize % victims.len();
        kill(victims.swap_remove(chosen));
        killed += 1;
    }
    victims.into_iter().for_each(kill);
    finish(&mut survivors);

    let report = served.settled();
    assert_eq!(report.live, Default::default(), "objects of dead clients are still alive");
    for memory in &report.memory {
        assert_eq!(memory.used, 0, "memory of dead clients is still in use: {memory:?}");
    }
    assert_eq!(report.gpu.stale_hits, 0, "a stale translation was used");
    assert_eq!(report.gpu.faults, 0, "a client's death made the GPU fault: {:?}", report.gpu.latest_faults);
    assert!(report.memory.iter().any(|memory| memory.evictions > 0), "there was room for all: {report:?}");
    let last = served.server.shutdown();
    assert_eq!(last.live, Default::default(), "the shutdown left something behind");
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "a thread of the device panicked");
}

fn kill(mut victim: Child) {
    victim.kill().expect("SIGKILL");
    victim.wait().expect("a child");
}

fn finish(children: &mut Vec<Child>) {
    for mut child in children.drain(..) {
        let status = child.wait().expect("a child");
        assert!(status.success(), "a client that nobody killed ended with {status}");
    }
}
