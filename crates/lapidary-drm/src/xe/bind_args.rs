//! VM_BIND's operations, checked field by field as the interface documents them, before anything is looked up.

use lapidary::gpuvm::{Va, VaRange};

use super::pat::{Coherency, PatEntry, PatTable};
use super::uapi::{self, VmBindOp};
use crate::core::{Error, must_be_zero, only_bits};

/// The page size of the interface's alignment rules.
const PAGE: u64 = 4096;

/// Flags that the driver knows.
const FLAGS: u32 = uapi::BIND_FLAG_READONLY
    | uapi::BIND_FLAG_IMMEDIATE
    | uapi::BIND_FLAG_NULL
    | uapi::BIND_FLAG_DUMPABLE
    | uapi::BIND_FLAG_FORCE_ERROR
    // No effect on buffers without protected content, and there are no others.
    | uapi::BIND_FLAG_CHECK_PXP;

/// One operation whose fields are consistent; handles are not looked up yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckedOp {
    /// Map part of a buffer.
    MapObject { handle: u32, offset: u64, range: VaRange, attributes: Attributes },
    /// Map a sparse range: reads zero, drops writes.
    MapNull { range: VaRange, attributes: Attributes },
    /// Map the client's own memory.
    MapHost { address: u64, range: VaRange, attributes: Attributes },
    /// Unmap whatever is there.
    Unmap { range: VaRange },
    /// Unmap a buffer everywhere.
    UnmapObject { handle: u32 },
    /// Bring what is mapped there to a region, by instance, or where it belongs.
    Prefetch { range: VaRange, region: Option<u16> },
}

/// What a mapping says beyond its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    /// Writes fault.
    pub read_only: bool,
    /// Entries are written by the bind itself, even where faults are resolved.
    pub immediate: bool,
    /// Index into the page attribute table.
    pub pat_index: u16,
    /// What that entry says.
    pub pat: PatEntry,
}

/// Checks one operation.
///
/// # Errors
/// `EINVAL` for an unknown operation or flag, a field that the operation must leave zero, a misaligned or empty
/// range, one that leaves the address space, or a page attribute the device does not have.
pub(super) fn check(op: &VmBindOp, pat: &PatTable, regions: u32) -> Result<CheckedOp, Error> {
    must_be_zero("extensions", op.extensions)?;
    must_be_zero("pad", op.pad)?;
    must_be_zero("pad2", op.pad2)?;
    must_be_zero("reserved", op.reserved[0] | op.reserved[1] | op.reserved[2])?;
    only_bits("the flags of a bind", op.flags, FLAGS)?;
    must_be_zero("the offset within a page", op.obj_offset % PAGE)?;
    let pat = pat.get(op.pat_index).ok_or_else(|| Error::invalid("a PAT index", op.pat_index))?;
    let null = op.flags & uapi::BIND_FLAG_NULL != 0;
    if null && op.op != uapi::BIND_OP_MAP {
        return Err(Error::invalid("the operation of a null bind", op.op));
    }
    if op.op != uapi::BIND_OP_PREFETCH {
        must_be_zero("the region of a bind that is no prefetch", op.prefetch_mem_region_instance)?;
    }
    let attributes = Attributes {
        read_only: op.flags & uapi::BIND_FLAG_READONLY != 0,
        immediate: op.flags & uapi::BIND_FLAG_IMMEDIATE != 0,
        pat_index: op.pat_index,
        pat,
    };
    match op.op {
        uapi::BIND_OP_MAP if null => {
            must_be_zero("the buffer of this operation", op.obj)?;
            must_be_zero("the offset of a null bind", op.obj_offset)?;
            Ok(CheckedOp::MapNull { range: range(op)?, attributes })
        }
        uapi::BIND_OP_MAP => {
            nonzero(op.obj)?;
            Ok(CheckedOp::MapObject { handle: op.obj, offset: op.obj_offset, range: range(op)?, attributes })
        }
        uapi::BIND_OP_UNMAP => {
            must_be_zero("the buffer of this operation", op.obj)?;
            Ok(CheckedOp::Unmap { range: range(op)? })
        }
        uapi::BIND_OP_MAP_USERPTR => {
            must_be_zero("the buffer of this operation", op.obj)?;
            if pat.coherency == Coherency::None {
                return Err(Error::invalid("the PAT index of a userptr (it must be coherent)", op.pat_index));
            }
            if op.obj_offset.checked_add(op.range).is_none() {
                return Err(Error::invalid("the range of a userptr", op.range));
            }
            Ok(CheckedOp::MapHost { address: op.obj_offset, range: range(op)?, attributes })
        }
        uapi::BIND_OP_UNMAP_ALL => {
            nonzero(op.obj)?;
            must_be_zero("the address of an unmap-all", op.addr)?;
            must_be_zero("the range of an unmap-all", op.range)?;
            Ok(CheckedOp::UnmapObject { handle: op.obj })
        }
        uapi::BIND_OP_PREFETCH => {
            must_be_zero("the buffer of this operation", op.obj)?;
            Ok(CheckedOp::Prefetch { range: range(op)?, region: region(op, regions)? })
        }
        unknown => Err(Error::invalid("a bind operation", unknown)),
    }
}

/// The operation's GPU range: page-aligned, not empty, inside the 48-bit space.
fn range(op: &VmBindOp) -> Result<VaRange, Error> {
    must_be_zero("the address within a page", op.addr % PAGE)?;
    if !op.range.is_multiple_of(PAGE) || op.range == 0 {
        return Err(Error::invalid("the range of a bind", op.range));
    }
    match op.addr.checked_add(op.range) {
        Some(end) if end <= 1 << super::profile::VA_BITS => {}
        _ => return Err(Error::invalid("the address of a bind", op.addr)),
    }
    VaRange::new(Va::new(op.addr), op.range).ok_or_else(|| Error::invalid("the range of a bind", op.range))
}

/// Where a prefetch goes: one of `regions`, or nothing for where things belong.
fn region(op: &VmBindOp, regions: u32) -> Result<Option<u16>, Error> {
    match op.prefetch_mem_region_instance {
        uapi::CONSULT_MEM_ADVISE_PREF_LOC => Ok(None),
        region if region < 32 && regions & (1 << region) != 0 => Ok(Some(region as u16)),
        unknown => Err(Error::invalid("a region to prefetch to", unknown)),
    }
}

fn nonzero(handle: u32) -> Result<(), Error> {
    if handle != 0 { Ok(()) } else { Err(Error::invalid("a buffer's handle", handle)) }
}
