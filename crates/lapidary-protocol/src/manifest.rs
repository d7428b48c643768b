//! The manifest: which paths the tree stands for, and which of its entries are nodes: files that the server opens.
//!
//! A text file named [`FILE`] at the root of the tree. One entry per line, fields separated by single spaces:
//!
//! ```text
//! own PATH                 PATH and everything below it is the tree's, whether it exists there or not
//! own PATH*                the same for everything that begins with PATH
//! node PATH MAJOR MINOR INODE
//!                          opens of PATH go to the server; it shows as that device, or, if both numbers are 0, as a
//!                          regular file; INODE is that of its stand-in
//! device NUMBER            st_dev of the stand-ins
//! ```

/// Name of the manifest in the tree.
pub const FILE: &str = "manifest";

/// A line of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'a> {
    /// Paths that are the tree's.
    Own(Prefix<'a>),
    /// A node.
    Node {
        /// Where programs see it.
        path: &'a [u8],
        /// Major device number; 0 with minor 0 for a regular file.
        major: u32,
        /// Minor device number.
        minor: u32,
        /// Inode of the stand-in.
        inode: u64,
    },
    /// `st_dev` of the stand-ins.
    Device(u64),
}

/// The beginning of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix<'a> {
    bytes: &'a [u8],
    open: bool,
}

impl Prefix<'_> {
    /// Whether this absolute path is covered.
    pub fn covers(&self, path: &[u8]) -> bool {
        let Some(rest) = path.strip_prefix(self.bytes) else { return false };
        self.open || rest.first().is_none_or(|byte| *byte == b'/')
    }
}

/// The entries of a manifest. Lines that make no sense are skipped.
pub fn entries(text: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    text.split(|byte| *byte == b'\n').filter_map(entry)
}

fn entry(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.split(|byte| *byte == b' ');
    match fields.next()? {
        b"own" => {
            let path = fields.next()?;
            Some(Entry::Own(match path.strip_suffix(b"*") {
                Some(bytes) => Prefix { bytes, open: true },
                None => Prefix { bytes: path, open: false },
            }))
        }
        b"node" => Some(Entry::Node {
            path: fields.next()?,
            major: u32::try_from(number(fields.next()?)?).ok()?,
            minor: u32::try_from(number(fields.next()?)?).ok()?,
            inode: number(fields.next()?)?,
        }),
        b"device" => Some(Entry::Device(number(fields.next()?)?)),
        _ => None,
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    core::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_at_a_component_unless_it_is_starred() {
        let text = b"own /dev/dri\nown /sys/dev/char/226:*\n";
        let mut prefixes = entries(text).map(|entry| match entry {
            Entry::Own(prefix) => prefix,
            other => panic!("{other:?}"),
        });
        let dri = prefixes.next().unwrap();
        assert!(dri.covers(b"/dev/dri") && dri.covers(b"/dev/dri/card0") && !dri.covers(b"/dev/drill"));
        let char = prefixes.next().unwrap();
        assert!(char.covers(b"/sys/dev/char/226:128/device") && !char.covers(b"/sys/dev/char/22"));
    }

    #[test]
    fn nonsense_is_skipped() {
        let text = b"node /dev/x 226\n\nnode /dev/y 226 0 99\nwhat\ndevice 7";
        let mut all = entries(text);
        assert_eq!(all.next(), Some(Entry::Node { path: b"/dev/y", major: 226, minor: 0, inode: 99 }));
        assert_eq!(all.next(), Some(Entry::Device(7)));
        assert_eq!(all.next(), None);
    }
}
