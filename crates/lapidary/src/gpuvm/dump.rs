//! An address space as text, a line per mapping, as drivers show it in a debug file.

use std::fmt;

use super::VmTypes;
use super::mapping::BackingRef;
use super::vm::GpuVm;

/// Prints an address space's mappings. Made by [`GpuVm::dump`].
pub struct Dump<'a, T: VmTypes>(&'a GpuVm<T>);

impl<T: VmTypes> GpuVm<T> {
    /// The mappings as text, in order, as they are when it is printed.
    pub fn dump(&self) -> Dump<'_, T> {
        Dump(self)
    }
}

impl<T: VmTypes> fmt::Display for Dump<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = self.0.config();
        let read = self.0.read();
        writeln!(
            f,
            "address space {}, {} mappings, {} bytes of records",
            config.range,
            read.len(),
            read.bytes()
        )?;
        if let Some(kernel) = config.kernel {
            writeln!(f, "  {kernel} kernel")?;
        }
        for mapping in read.iter().map(|mapping| mapping.get()) {
            write!(f, "  {} {:>#14x} ", mapping.range, mapping.range.len())?;
            match mapping.backing {
                BackingRef::Null => writeln!(f, "null")?,
                BackingRef::Host { addr } => writeln!(f, "host {addr:#x}")?,
                BackingRef::Object { vm_bo, offset } => {
                    let place = if vm_bo.is_external() { "external" } else { "local" };
                    let state = if vm_bo.is_evicted() { ", evicted" } else { "" };
                    writeln!(f, "object {:#x} + {offset:#x} ({place}{state})", vm_bo.object_id().0)?;
                }
            }
        }
        Ok(())
    }
}

impl<T: VmTypes> fmt::Debug for Dump<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
