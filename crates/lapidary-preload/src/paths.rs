//! Paths: which are the tree's, and how they read from inside and outside.

use std::ffi::{CStr, c_char, c_int};

use crate::config::{self, Config, Node};
use crate::sys;

/// Longest path, with the zero at its end.
const PATH_BYTES: usize = libc::PATH_MAX as usize;

/// A path inside the tree, as the kernel is to see it.
pub(crate) struct TreePath {
    bytes: [u8; PATH_BYTES],
    len: usize,
    /// Where what the program sees begins.
    visible: usize,
}

impl TreePath {
    /// The real path for one that a program gave; `None` if the path is not the tree's.
    pub(crate) fn of(path: &[u8]) -> Option<Self> {
        // What can't be ours is out after a comparison or two.
        if path.first() != Some(&b'/') {
            return None;
        }
        let config = config::get()?;
        let mut tree_path = Self { bytes: [0; PATH_BYTES], len: 0, visible: config.tree().len() };
        tree_path.push(config.tree())?;
        tree_path.push_normalized(path)?;
        config.owns(tree_path.visible()).then_some(tree_path)
    }

    /// Whether a path is the tree's, without building the other.
    pub(crate) fn may_own(path: &[u8]) -> bool {
        matches!(path, [b'/', b'd' | b's' | b'p' | b'/' | b'.', ..])
    }

    fn push(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.len.checked_add(bytes.len()).filter(|end| *end < PATH_BYTES)?;
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.len = end;
        Some(())
    }

    /// Adds a path without empty and `.` components.
    fn push_normalized(&mut self, path: &[u8]) -> Option<()> {
        for component in path.split(|byte| *byte == b'/') {
            if !component.is_empty() && component != b"." {
                self.push(b"/")?;
                self.push(component)?;
            }
        }
        Some(())
    }

    /// As the program sees it.
    pub(crate) fn visible(&self) -> &[u8] {
        &self.bytes[self.visible..self.len]
    }

    /// For system calls.
    pub(crate) fn as_ptr(&self) -> *const c_char {
        self.bytes.as_ptr().cast()
    }

    /// The device node that this is the path of.
    pub(crate) fn node(&self) -> Option<&'static Node> {
        config::get()?.node_at(self.visible())
    }
}

/// The path to give to the kernel or the next library for one that a program gave.
///
/// # Safety
/// `path` is null or a C string.
pub(crate) unsafe fn tree_path(path: *const c_char) -> Option<TreePath> {
    // SAFETY: the caller vouches for it.
    let bytes = unsafe { sys::bytes(path) }?;
    if TreePath::may_own(bytes) { TreePath::of(bytes) } else { None }
}

/// Takes the tree's folder off a path that the kernel or the next library answered, in place. Returns the new length.
pub(crate) fn strip(path: &mut [u8], len: usize) -> usize {
    let Some(config) = config::get() else { return len };
    let Some(rest) = below_tree(config, &path[..len]) else { return len };
    let start = len - rest.len();
    if start == len {
        // The tree itself: what is above the devices.
        path[0] = b'/';
        return 1;
    }
    path.copy_within(start..len, 0);
    len - start
}

fn below_tree<'a>(config: &Config, path: &'a [u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(config.tree())?;
    rest.first().is_none_or(|byte| *byte == b'/').then_some(rest)
}

/// The same on a C string.
///
/// # Safety
/// `path` is null or a C string that may be written.
pub(crate) unsafe fn strip_string(path: *mut c_char) {
    if path.is_null() {
        return;
    }
    // SAFETY: the caller vouches for it.
    let len = unsafe { CStr::from_ptr(path) }.count_bytes();
    // SAFETY: a string is valid up to and with its zero.
    let bytes = unsafe { std::slice::from_raw_parts_mut(path.cast::<u8>(), len + 1) };
    let len = strip(bytes, len);
    bytes[len] = 0;
}

/// The part of a path that the program sees, if it begins with the tree's folder.
///
/// # Safety
/// `path` is null or a C string.
pub(crate) unsafe fn visible_part(path: *const c_char) -> *const c_char {
    // SAFETY: the caller vouches for it.
    let (Some(bytes), Some(config)) = (unsafe { sys::bytes(path) }, config::get()) else { return path };
    match below_tree(config, bytes) {
        Some(rest) if !rest.is_empty() => rest.as_ptr().cast(),
        _ => path,
    }
}

/// What a path under `/proc` says about a descriptor of this process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcPath {
    /// `/proc/self/fd/N`, `/dev/fd/N`.
    Fd(c_int),
    /// `/proc/self/fdinfo/N`.
    FdInfo(c_int),
}

impl ProcPath {
    pub(crate) fn of(path: &[u8]) -> Option<Self> {
        if let Some(number) = path.strip_prefix(b"/dev/fd/") {
            return parse(number).map(Self::Fd);
        }
        let mut parts = path.strip_prefix(b"/proc/")?.split(|byte| *byte == b'/');
        let who = parts.next()?;
        if who != b"self" && who != b"thread-self" && parse(who) != Some(own_pid()) {
            return None;
        }
        let kind = parts.next()?;
        let number = parse(parts.next()?)?;
        match (kind, parts.next()) {
            (b"fd", None) => Some(Self::Fd(number)),
            (b"fdinfo", None) => Some(Self::FdInfo(number)),
            _ => None,
        }
    }
}

/// A decimal number, and nothing else.
pub(crate) fn parse(digits: &[u8]) -> Option<c_int> {
    std::str::from_utf8(digits)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?
        .parse()
        .ok()
}

fn own_pid() -> c_int {
    // SAFETY: touches no memory.
    unsafe { sys::quiet(libc::SYS_getpid, [0; 6]) as c_int }
}
