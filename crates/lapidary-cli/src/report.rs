//! The closing report, as text and as JSON.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use lapidary_drm::Report;

/// A size in the largest unit that leaves at least one before the point.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        if unit == 0 || value.fract() == 0.0 {
            write!(f, "{value:.0} {}", UNITS[unit])
        } else {
            write!(f, "{value:.1} {}", UNITS[unit])
        }
    }
}

/// The report for people: a line per subject, nothing that is zero and unremarkable.
pub(crate) fn text(report: &Report) -> String {
    let mut out = String::new();
    let mut line = |name: &str, what: String| {
        let _ = writeln!(out, "  {name:<12} {what}");
    };
    let (clients, gpu, spaces) = (&report.clients, &report.gpu, &report.address_spaces);
    line(
        "clients",
        format!("{} processes, {} files, {} calls", clients.processes, clients.files, clients.ioctls),
    );
    line("submissions", format!("{} jobs, {} commands", gpu.submissions, gpu.commands));
    line("copied", Bytes(gpu.bytes_copied).to_string());
    line(
        "mappings",
        format!("{} binds in {} address spaces, {} rebinds", spaces.binds, spaces.created, spaces.rebinds),
    );
    for memory in &report.memory {
        let mut what = format!("peak {} of {}", Bytes(memory.peak), Bytes(memory.total));
        if memory.evictions > 0 {
            let _ = write!(what, ", {} evictions ({})", memory.evictions, Bytes(memory.evicted_bytes));
        }
        line(&memory.region, what);
    }
    if gpu.faults + gpu.bans > 0 {
        line("faults", format!("{} faults, {} queues banned", gpu.faults, gpu.bans));
        for fault in &gpu.latest_faults {
            line("", fault.clone());
        }
    }
    if gpu.stale_hits > 0 {
        line(
            "STALE",
            format!("{} stale translations used: a bug in the device, please report it", gpu.stale_hits),
        );
    }
    if !report.skipped.is_empty() {
        line("skipped", list(report.skipped.iter()));
    }
    if !report.live.is_empty() {
        line("LEAKED", list(report.live.iter()));
    }
    format!("lapidary: {} for {:.1} s\n{out}", report.device, report.seconds)
}

/// What the device did wrong, whatever became of its clients.
pub(crate) fn failure(report: &Report) -> Option<String> {
    let stale = report.gpu.stale_hits;
    (stale > 0).then(|| format!("the device used {stale} stale translations, which is a bug of its own"))
}

fn list<'a>(counts: impl Iterator<Item = (&'a String, &'a u64)>) -> String {
    counts.map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ")
}

/// Where the report goes as JSON. Made before the device starts, so that a path that can't be written to is said at once.
pub(crate) struct JsonFile {
    path: PathBuf,
    file: File,
}

impl JsonFile {
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let file =
            File::create(path).with_context(|| format!("can't write the report to {}", path.display()))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    pub(crate) fn write(self, report: &Report) -> anyhow::Result<()> {
        serde_json::to_writer_pretty(&self.file, report)
            .with_context(|| format!("can't write the report to {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(Bytes(0).to_string(), "0 B");
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
        assert_eq!(Bytes(8 << 30).to_string(), "8 GiB");
    }

    #[test]
    fn a_stale_translation_is_a_failure_of_the_device() {
        let mut report = Report::default();
        assert_eq!(failure(&report), None);
        report.gpu.stale_hits = 3;
        assert!(failure(&report).is_some_and(|failure| failure.contains("3 stale")));
    }

    #[test]
    fn what_leaked_is_told() {
        let mut report = Report { device: "battlemage".into(), ..Report::default() };
        assert!(!text(&report).contains("LEAKED"));
        report.live.insert("buffers".into(), 2);
        assert!(text(&report).contains("2 buffers"));
    }
}
