//! The device tree: real files that stand for `/dev/dri` and the sysfs entries of the server's cards.
//!
//! ```text
//!   TREE/manifest                                    what is the tree's, see `lapidary_protocol::manifest`
//!   TREE/dev/dri/card0, renderD128                   stand-ins of the nodes
//!   TREE/dev/dri/by-path/pci-0000:03:00.0-card       ─► ../card0
//!   TREE/sys/devices/pci0000:00/0000:03:00.0/        vendor, device, uevent, config, …
//!            └ drm/card0/, drm/renderD128/           dev, uevent, links
//!   TREE/sys/dev/char/226:0, sys/class/drm/card0     ─► sys/devices/…/drm/card0
//!   TREE/sys/bus/pci/devices/0000:03:00.0            ─► sys/devices/…
//!   TREE/dev/sw_sync, TREE/sys/kernel/debug/sync/…   stand-ins of other nodes
//! ```
//!
//! The preload library leads programs here, and libc, udev and libdrm then walk real files and links. What is listed in a
//! [`Card`] is all there is to a card: another one is another value.
//!
//! A node's stand-in is a character device 0:0, which anybody may make (the kernel calls it a whiteout and opens it for
//! nobody), so that folder listings tell its kind; where that is refused, an empty file.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use lapidary_protocol::manifest;
use rustix::fs::{CWD, FileType, Mode, mknodat};

/// Major device number of DRM.
pub const DRM_MAJOR: u32 = 226;
/// Distance between the numbers of a card's primary and render node.
const RENDER_OFFSET: u32 = 128;

/// A card of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Number of the primary node: `card0`. The render node, if there is one, is `renderD128` plus this.
    pub index: u32,
    /// Whether it has a render node.
    pub render: bool,
    /// Name of the kernel driver.
    pub driver: String,
    /// Where it sits.
    pub bus: Bus,
}

/// Where a card sits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bus {
    /// On PCI.
    Pci(PciFunction),
    /// Nowhere: a device of that name on the platform bus.
    Platform(String),
}

/// A PCI function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciFunction {
    /// Domain, bus, device, function: `0000:03:00.0`.
    pub slot: String,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Vendor id of the board.
    pub subsystem_vendor: u16,
    /// Device id of the board.
    pub subsystem_device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass, interface: `0x03_00_00` is a VGA display.
    pub class: u32,
}

/// A file that is no card's and whose opens go to the server, such as `/dev/sw_sync`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where programs see it.
    pub path: String,
    /// What they take it for.
    pub kind: NodeKind,
}

/// What a node shows as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A character device.
    Device {
        /// Major device number.
        major: u32,
        /// Minor device number.
        minor: u32,
    },
    /// A regular file, as debugfs has them.
    File,
}

/// The tree could not be built.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The system refused something.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was being made.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A name would leave the tree or break the manifest.
    #[error("{0:?} can't be a name in the device tree")]
    BadName(String),
}

/// A built tree. The folder stays when the value is dropped.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Builds a tree in `root`, which must not exist or be empty.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn build(root: &Path, cards: &[Card], nodes: &[Node]) -> Result<Self, TreeError> {
        let root = make_folder(root).and_then(|()| canonical(root))?;
        let mut builder = Builder { root, manifest: String::new() };
        builder.commons()?;
        for card in cards {
            builder.card(card)?;
        }
        for node in nodes {
            builder.own(&node.path)?;
            builder.node(&node.path, node.kind)?;
        }
        builder.finish()
    }

    /// The folder, links resolved.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

struct Builder {
    root: PathBuf,
    manifest: String,
}

impl Builder {
    /// What is the same whatever the cards.
    fn commons(&mut self) -> Result<(), TreeError> {
        // Real cards are hidden, and so is what real drivers say about themselves.
        let hidden = [
            "/dev/dri",
            "/sys/class/drm",
            "/sys/kernel/debug/dri",
            "/sys/kernel/debug/sync",
            "/proc/sys/dev/xe",
            "/proc/sys/dev/i915",
        ];
        for path in hidden {
            self.own(path)?;
        }
        self.own(&format!("/sys/dev/char/{DRM_MAJOR}:*"))?;
        self.folder("/dev/dri")?;
        self.file("/sys/class/drm/version", "drm 1.1.0 20060810\n")
    }

    fn card(&mut self, card: &Card) -> Result<(), TreeError> {
        checked(&card.driver)?;
        let device = match &card.bus {
            Bus::Pci(function) => self.pci(card, function)?,
            Bus::Platform(name) => self.platform(name)?,
        };
        self.minor(card, &device, "card", card.index)?;
        if card.render {
            self.minor(card, &device, "renderD", card.index + RENDER_OFFSET)?;
        }
        Ok(())
    }

    /// The folder of a PCI function. Its path.
    fn pci(&mut self, card: &Card, function: &PciFunction) -> Result<String, TreeError> {
        let slot = checked(&function.slot)?;
        let domain = slot.split(':').next().unwrap_or_default();
        let device = format!("/sys/devices/pci{domain}:00/{slot}");
        let driver = format!("/sys/bus/pci/drivers/{}", card.driver);
        let on_bus = format!("/sys/bus/pci/devices/{slot}");
        for path in [&device, &driver, &on_bus] {
            self.own(path)?;
        }
        self.link(&on_bus, &device)?;
        self.link(&format!("{driver}/{slot}"), &device)?;
        self.link(&format!("{device}/driver"), &driver)?;
        self.link(&format!("{device}/subsystem"), "/sys/bus/pci")?;
        for (name, text) in function.files(&card.driver) {
            self.file(&format!("{device}/{name}"), &text)?;
        }
        self.bytes(&format!("{device}/config"), &function.config())?;
        Ok(device)
    }

    /// The folder of a platform device. Its path.
    fn platform(&mut self, name: &str) -> Result<String, TreeError> {
        let name = checked(name)?;
        let device = format!("/sys/devices/platform/{name}");
        self.own(&device)?;
        self.folder("/sys/bus/platform")?;
        self.link(&format!("{device}/subsystem"), "/sys/bus/platform")?;
        self.file(&format!("{device}/uevent"), &format!("DRIVER={name}\nMODALIAS=platform:{name}\n"))?;
        Ok(device)
    }

    /// A node of a card, and what sysfs says about it.
    fn minor(&mut self, card: &Card, device: &str, kind: &str, minor: u32) -> Result<(), TreeError> {
        let name = format!("{kind}{minor}");
        let node = format!("/dev/dri/{name}");
        self.node(&node, NodeKind::Device { major: DRM_MAJOR, minor })?;
        if let Bus::Pci(function) = &card.bus {
            let role = if kind == "card" { "card" } else { "render" };
            self.link(&format!("/dev/dri/by-path/pci-{}-{role}", function.slot), &node)?;
        }
        let folder = format!("{device}/drm/{name}");
        self.file(&format!("{folder}/dev"), &format!("{DRM_MAJOR}:{minor}\n"))?;
        let uevent = format!("MAJOR={DRM_MAJOR}\nMINOR={minor}\nDEVNAME=dri/{name}\nDEVTYPE=drm_minor\n");
        self.file(&format!("{folder}/uevent"), &uevent)?;
        self.link(&format!("{folder}/device"), device)?;
        self.link(&format!("{folder}/subsystem"), "/sys/class/drm")?;
        self.link(&format!("/sys/class/drm/{name}"), &folder)?;
        self.link(&format!("/sys/dev/char/{DRM_MAJOR}:{minor}"), &folder)
    }

    /// Adds a prefix to the manifest.
    fn own(&mut self, path: &str) -> Result<(), TreeError> {
        let line = format!("own {}\n", checked(path)?);
        if !self.manifest.contains(&line) {
            self.manifest.push_str(&line);
        }
        Ok(())
    }

    /// Makes the stand-in of a node.
    fn node(&mut self, path: &str, kind: NodeKind) -> Result<(), TreeError> {
        let real = self.place(checked(path)?)?;
        if mknodat(CWD, &real, FileType::CharacterDevice, Mode::from_raw_mode(0o666), 0).is_err() {
            fs::write(&real, "").map_err(|source| TreeError::Io { path: real.clone(), source })?;
        }
        // The mode is what programs see; the umask took some of it.
        let mode = fs::Permissions::from_mode(0o666);
        let metadata = fs::set_permissions(&real, mode).and_then(|()| fs::symlink_metadata(&real));
        let metadata = metadata.map_err(|source| TreeError::Io { path: real, source })?;
        if !self.manifest.contains("device ") {
            let _ = writeln!(self.manifest, "device {}", metadata.dev());
        }
        let _ = match kind {
            NodeKind::Device { major, minor } => {
                writeln!(self.manifest, "node {path} {major} {minor} {}", metadata.ino())
            }
            NodeKind::File => writeln!(self.manifest, "node {path} 0 0 {}", metadata.ino()),
        };
        Ok(())
    }

    fn folder(&self, path: &str) -> Result<(), TreeError> {
        make_folder(&self.real(path))
    }

    fn file(&self, path: &str, text: &str) -> Result<(), TreeError> {
        self.bytes(path, text.as_bytes())
    }

    fn bytes(&self, path: &str, bytes: &[u8]) -> Result<(), TreeError> {
        let real = self.place(path)?;
        fs::write(&real, bytes).map_err(|source| TreeError::Io { path: real, source })
    }

    /// Makes `path` a link to `target`, relative as sysfs' links are.
    fn link(&self, path: &str, target: &str) -> Result<(), TreeError> {
        let real = self.place(path)?;
        symlink(relative(path, target), &real).map_err(|source| TreeError::Io { path: real, source })
    }

    /// The real path of one that programs see, with the folder above it made.
    fn place(&self, path: &str) -> Result<PathBuf, TreeError> {
        let real = self.real(path);
        if let Some(folder) = real.parent() {
            make_folder(folder)?;
        }
        Ok(real)
    }

    fn real(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn finish(self) -> Result<Tree, TreeError> {
        let path = self.root.join(manifest::FILE);
        fs::write(&path, &self.manifest).map_err(|source| TreeError::Io { path, source })?;
        Ok(Tree { root: self.root })
    }
}

impl PciFunction {
    /// The text files that sysfs has of it, as far as programs read them.
    fn files(&self, driver: &str) -> [(&'static str, String); 9] {
        let (vendor, device) = (self.vendor, self.device);
        let (sub_vendor, sub_device) = (self.subsystem_vendor, self.subsystem_device);
        let [_, class, subclass, interface] = self.class.to_be_bytes();
        let modalias = format!(
            "pci:v{vendor:08X}d{device:08X}sv{sub_vendor:08X}sd{sub_device:08X}bc{class:02X}sc{subclass:02X}i{interface:02X}"
        );
        let uevent = format!(
            "DRIVER={driver}\nPCI_CLASS={:X}\nPCI_ID={vendor:04X}:{device:04X}\n\
             PCI_SUBSYS_ID={sub_vendor:04X}:{sub_device:04X}\nPCI_SLOT_NAME={}\nMODALIAS={modalias}\n",
            self.class, self.slot
        );
        [
            ("vendor", format!("{vendor:#06x}\n")),
            ("device", format!("{device:#06x}\n")),
            ("subsystem_vendor", format!("{sub_vendor:#06x}\n")),
            ("subsystem_device", format!("{sub_device:#06x}\n")),
            ("revision", format!("{:#04x}\n", self.revision)),
            ("class", format!("{:#08x}\n", self.class)),
            ("modalias", format!("{modalias}\n")),
            ("uevent", uevent),
            ("numa_node", "-1\n".to_owned()),
        ]
    }

    /// The first 64 bytes of configuration space.
    fn config(&self) -> [u8; 64] {
        let mut config = [0; 64];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.vendor.to_le_bytes());
        put(0x02, &self.device.to_le_bytes());
        // Command: memory space, bus master. Status: capability list.
        put(0x04, &[0x06, 0x00, 0x10, 0x00]);
        put(0x08, &[self.revision]);
        put(0x09, &self.class.to_le_bytes()[..3]);
        put(0x2c, &self.subsystem_vendor.to_le_bytes());
        put(0x2e, &self.subsystem_device.to_le_bytes());
        config
    }
}

/// A name that can be part of a path and of a manifest's line.
fn checked(name: &str) -> Result<&str, TreeError> {
    let bad = name.is_empty()
        || name.chars().any(|c| c.is_whitespace() || c.is_control())
        || name.split('/').any(|component| component == "..");
    if bad { Err(TreeError::BadName(name.to_owned())) } else { Ok(name) }
}

/// The way from the folder of `path` to `target`, both absolute.
fn relative(path: &str, target: &str) -> OsString {
    let from: Vec<&str> = path.split('/').collect();
    let to: Vec<&str> = target.split('/').collect();
    let folder = &from[..from.len() - 1];
    // The last component of the target stays, so that a link's text tells a name.
    let shared = folder.iter().zip(&to[..to.len() - 1]).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n("..", folder.len() - shared);
    let way: Vec<&str> = up.chain(to[shared..].iter().copied()).collect();
    way.join("/").into()
}

fn make_folder(path: &Path) -> Result<(), TreeError> {
    fs::create_dir_all(path).map_err(|source| TreeError::Io { path: path.to_owned(), source })
}

fn canonical(path: &Path) -> Result<PathBuf, TreeError> {
    fs::canonicalize(path).map_err(|source| TreeError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_relative_to_their_own_folder() {
        let target = "/sys/devices/pci0000:00/0000:03:00.0/drm/card0";
        assert_eq!(
            relative("/sys/dev/char/226:0", target),
            "../../devices/pci0000:00/0000:03:00.0/drm/card0"
        );
        assert_eq!(relative("/dev/dri/by-path/x", "/dev/dri/card0"), "../card0");
        assert_eq!(
            relative(&format!("{target}/device"), "/sys/devices/pci0000:00/0000:03:00.0"),
            "../../../0000:03:00.0"
        );
    }

    #[test]
    fn names_stay_in_the_tree_and_on_their_line() {
        for bad in ["", "a b", "a\nnode /x 1 1 1", "/dev/../etc", ".."] {
            assert!(checked(bad).is_err(), "{bad:?}");
        }
    }
}
