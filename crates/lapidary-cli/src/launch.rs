//! Starting a program on the device: finding it, seeing whether it can be preloaded, and passing its end through.
//!
//! A program reaches the device through a library that the dynamic loader puts before all others. A statically linked
//! program has no loader, and for a set-uid program the loader ignores the request: both are told apart here, with
//! what to do instead, because they would otherwise just not see the device.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use object::Endianness;
use object::read::elf::{FileHeader, ProgramHeader};
use object::read::{ReadCache, ReadRef};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use thiserror::Error;

/// Why a program can't run on the device.
#[derive(Debug, Error)]
pub(crate) enum LaunchError {
    /// There is no such program.
    #[error("{0}: no such program; check the spelling, or give its path")]
    NotFound(String),
    /// It is there, but not executable.
    #[error("{0} is not executable; `chmod +x` it, or name the interpreter: lapidary run -- INTERPRETER {0}")]
    NotExecutable(PathBuf),
    /// No dynamic loader.
    #[error(
        "{0} is statically linked, so nothing can be loaded into it and it would not see the device; \
         run a dynamically linked build of it"
    )]
    Static(PathBuf),
    /// The loader drops preloads.
    #[error(
        "{0} runs with another user's rights (set-uid or set-gid), and the dynamic loader loads nothing into such \
         programs; run a copy without those rights: cp {0} /tmp/ && lapidary run -- /tmp/{1}"
    )]
    SetUid(PathBuf, String),
    /// Another machine's program.
    #[error(
        "{0} is built for another kind of machine or word size, which the device's library can't be loaded into"
    )]
    OtherMachine(PathBuf),
    /// The system refused.
    #[error("{0} can't be started: {1}")]
    Start(PathBuf, std::io::Error),
}

impl LaunchError {
    /// The shell's exit status for it.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound(_) => 127,
            _ => 126,
        }
    }
}

/// Finds `name` as a shell does.
///
/// # Errors
/// [`LaunchError::NotFound`] and [`LaunchError::NotExecutable`].
pub(crate) fn find(name: &OsStr) -> Result<PathBuf, LaunchError> {
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return match fs::metadata(&path) {
            Ok(meta) if is_executable(&meta) => Ok(path),
            Ok(_) => Err(LaunchError::NotExecutable(path)),
            Err(_) => Err(LaunchError::NotFound(name.to_string_lossy().into_owned())),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| fs::metadata(file).is_ok_and(|meta| is_executable(&meta)))
        .ok_or_else(|| LaunchError::NotFound(name.to_string_lossy().into_owned()))
}

fn is_executable(meta: &fs::Metadata) -> bool {
    meta.is_file() && meta.permissions().mode() & 0o111 != 0
}

/// Sees whether the dynamic loader will take a preload for the program at `path`.
///
/// # Errors
/// [`LaunchError::Static`], [`LaunchError::SetUid`], [`LaunchError::OtherMachine`].
pub(crate) fn check_preloadable(path: &Path) -> Result<(), LaunchError> {
    let mut file = path.to_path_buf();
    // A script may name a script, as deep as the kernel follows them.
    for _ in 0..5 {
        match interpreter(&file) {
            Some(next) => file = next,
            None => break,
        }
    }
    let Ok(meta) = fs::metadata(&file) else { return Ok(()) };
    let foreign_owner = meta.mode() & 0o4000 != 0 && meta.uid() != rustix::process::geteuid().as_raw();
    let foreign_group = meta.mode() & 0o2000 != 0 && meta.gid() != rustix::process::getegid().as_raw();
    if foreign_owner || foreign_group {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Err(LaunchError::SetUid(file, name));
    }
    // What can't be read or is no ELF file is the system's to judge when it starts.
    match fs::File::open(&file).map(linkage) {
        Ok(Linkage::Static) => Err(LaunchError::Static(file)),
        Ok(Linkage::OtherMachine) => Err(LaunchError::OtherMachine(file)),
        Ok(Linkage::Dynamic | Linkage::Unknown) | Err(_) => Ok(()),
    }
}

/// The interpreter that a script's first line names.
fn interpreter(path: &Path) -> Option<PathBuf> {
    let mut line = Vec::new();
    let file = fs::File::open(path).ok()?;
    std::io::BufReader::new(file.take(256)).read_until(b'\n', &mut line).ok()?;
    let rest = line.strip_prefix(b"#!")?.trim_ascii();
    let word = rest.split(|b| b.is_ascii_whitespace()).next()?;
    let interpreter = PathBuf::from(OsStr::from_bytes(word));
    if interpreter.file_name() != Some(OsStr::new("env")) {
        return Some(interpreter);
    }
    let program =
        rest.split(|b| b.is_ascii_whitespace()).skip(1).find(|w| !w.is_empty() && !w.starts_with(b"-"))?;
    find(OsStr::from_bytes(program)).ok()
}

#[derive(Debug, PartialEq, Eq)]
enum Linkage {
    Dynamic,
    Static,
    OtherMachine,
    Unknown,
}

/// How an ELF file is linked. A file with dynamic information and no interpreter is a static program, unless it is the
/// dynamic loader itself, which has a name of its own (`DT_SONAME`) and takes preloads for the program it is given.
fn linkage(file: impl Read + Seek) -> Linkage {
    let file = &ReadCache::new(file);
    if file.read_bytes_at(0, 4) != Ok(b"\x7fELF") {
        return Linkage::Unknown;
    }
    let Ok(header) = object::elf::FileHeader64::<Endianness>::parse(file) else {
        return Linkage::OtherMachine;
    };
    let Ok(endian) = header.endian() else { return Linkage::OtherMachine };
    let native = if cfg!(target_arch = "aarch64") { object::elf::EM_AARCH64 } else { object::elf::EM_X86_64 };
    if header.e_machine(endian) != native {
        return Linkage::OtherMachine;
    }
    let Ok(segments) = header.program_headers(endian, file) else { return Linkage::Unknown };
    if segments.iter().any(|segment| segment.p_type(endian) == object::elf::PT_INTERP) {
        return Linkage::Dynamic;
    }
    // Static position-independent programs carry DF_1_PIE; the loader, a shared object, does not.
    let mut dynamic =
        segments.iter().filter_map(|segment| segment.dynamic(endian, file).ok().flatten()).flatten();
    let pie = dynamic.any(|entry| {
        entry.d_tag.get(endian) == u64::from(object::elf::DT_FLAGS_1)
            && entry.d_val.get(endian) & u64::from(object::elf::DF_1_PIE) != 0
    });
    if header.e_type(endian) == object::elf::ET_DYN && !pie { Linkage::Unknown } else { Linkage::Static }
}

/// Starts `path` with `args` and the device's environment, and waits for its end.
///
/// Signals meant for the program don't end this process first, so that there is a report whatever ends the program: an
/// interrupt from the terminal reaches the program by itself, a request to terminate is passed on.
///
/// # Errors
/// [`LaunchError::Start`].
pub(crate) fn run(
    path: &Path,
    args: &[OsString],
    env: &[(String, String)],
) -> Result<ExitStatus, LaunchError> {
    let failed = |error| LaunchError::Start(path.to_path_buf(), error);
    let mut signals = Signals::new([SIGINT, SIGQUIT, SIGTERM, SIGHUP]).map_err(failed)?;
    let mut child = Command::new(path).args(args).envs(client_env(env)).spawn().map_err(failed)?;
    let id = Pid::from_child(&child);
    let handle = signals.handle();
    let forward = std::thread::spawn(move || {
        for signal in signals.forever() {
            let pass_on = match signal {
                SIGTERM => Signal::TERM,
                SIGHUP => Signal::HUP,
                _ => continue,
            };
            // It may have ended in this moment, which is what was asked for.
            let _ = kill_process(id, pass_on);
        }
    });
    let status = child.wait().map_err(failed);
    handle.close();
    // The thread only forwards; it can't fail.
    let _ = forward.join();
    status
}

/// The device's environment, added to what the caller already preloads.
pub(crate) fn client_env(env: &[(String, String)]) -> Vec<(OsString, OsString)> {
    env.iter()
        .map(|(name, value)| {
            let mut value = OsString::from(value);
            let before = std::env::var_os("LD_PRELOAD").filter(|before| !before.is_empty());
            if let Some(before) = before.filter(|_| name == "LD_PRELOAD") {
                value.push(":");
                value.push(before);
            }
            (OsString::from(name), value)
        })
        .collect()
}

/// The exit status that passes `status` through: a program killed by a signal counts as 128 + the signal, as in a shell.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => 128u8.wrapping_add(signal as u8),
        (None, None) => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn this_test_is_dynamically_linked() {
        let file = fs::File::open(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(linkage(file), Linkage::Dynamic);
    }

    #[test]
    fn a_program_is_found_on_the_path_and_a_missing_one_is_named() {
        assert!(find(OsStr::new("sh")).is_ok());
        let missing = find(OsStr::new("no-such-program-here")).unwrap_err();
        assert_eq!(missing.exit_code(), 127);
        assert!(missing.to_string().contains("no-such-program-here"));
        assert!(matches!(find(OsStr::new("/etc/passwd")), Err(LaunchError::NotExecutable(_))));
    }

    #[test]
    fn text_is_not_an_elf_file() {
        assert_eq!(linkage(Cursor::new(b"hello")), Linkage::Unknown);
        assert_eq!(linkage(Cursor::new(b"\x7fELF")), Linkage::OtherMachine);
    }
}
