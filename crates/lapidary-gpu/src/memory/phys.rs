//! The spaces of device addresses, and what is attached where.
//!
//! Each space is a table with one entry per page (4 KiB of system memory, 64 KiB of device memory), in leaves that are made when first
//! needed. An entry points to the attachment that covers the page. Engines look up without a lock; drivers change the table under one.
//!
//! Lifetimes: an attachment is freed only after its entries are cleared and every engine has passed a checkpoint since; until then
//! engines may still hold pointers into its memory. That is what `Online` proves at each look-up.
//!
//! Locking: `attachments` is a leaf, held for the table's change only and not while waiting for engines.

#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    fmt,
    ptr::{self, NonNull},
    sync::atomic::{AtomicPtr, AtomicU64, Ordering::*},
};

use lapidary::sync::{Arc, Mutex};

use super::HostMemory;
use crate::{
    bus::{Access, GpuVa},
    chunk::Chunk,
    tlb::{Online, Scope, Shootdown},
};

/// Entries of a leaf of the table.
const LEAF: usize = 1 << 14;

/// A device address: an offset in one of the spaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevAddr(pub u64);

impl fmt::Display for DevAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Which memory a device address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// System memory, at DMA addresses; pages of 4 KiB.
    System,
    /// Device memory; pages of 64 KiB.
    Vram,
}

impl Space {
    /// log2 of the page size: attachments start and end at multiples of it.
    pub const fn page_shift(self) -> u32 {
        match self {
            Self::System => 12,
            Self::Vram => 16,
        }
    }

    /// Bytes of a page.
    pub const fn page_size(self) -> u64 {
        1 << self.page_shift()
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "system",
            Self::Vram => "vram",
        })
    }
}

/// A device address with its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysAddr {
    /// Which memory.
    pub space: Space,
    /// Where in it.
    pub addr: DevAddr,
}

impl PhysAddr {
    /// An address in system memory.
    pub const fn system(addr: u64) -> Self {
        Self { space: Space::System, addr: DevAddr(addr) }
    }

    /// An address in device memory.
    pub const fn vram(addr: u64) -> Self {
        Self { space: Space::Vram, addr: DevAddr(addr) }
    }

    /// The address `bytes` further on in the same space.
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        Self { space: self.space, addr: DevAddr(self.addr.0.wrapping_add(bytes)) }
    }
}

impl fmt::Display for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.space, self.addr)
    }
}

/// Why memory could not be attached or detached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Address or length is no multiple of the page size, or the length is 0.
    #[error("{len:#x} bytes at {at} are not whole pages")]
    Misaligned {
        /// Where.
        at: PhysAddr,
        /// How much.
        len: u64,
    },
    /// The range leaves the space.
    #[error("{len:#x} bytes at {at} are outside a space of {size:#x} bytes")]
    OutsideSpace {
        /// Where.
        at: PhysAddr,
        /// How much.
        len: u64,
        /// Size of the space.
        size: u64,
    },
    /// Something is attached there already.
    #[error("memory at {at} is in use by an attachment at {other}")]
    InUse {
        /// Where.
        at: PhysAddr,
        /// The attachment in the way.
        other: DevAddr,
    },
    /// The host memory is too small.
    #[error("{len:#x} bytes at offset {offset:#x} are outside host memory of {size:#x} bytes")]
    OutsideMemory {
        /// Offset in the host memory.
        offset: u64,
        /// How much.
        len: u64,
        /// Size of the host memory.
        size: u64,
    },
    /// Nothing was attached at this address.
    #[error("nothing is attached at {0}")]
    NotAttached(PhysAddr),
}

/// Host memory at device addresses `start..start + len`.
struct Attachment {
    start: u64,
    len: u64,
    /// Offset in `memory` of the byte at `start`.
    offset: u64,
    /// The byte at `start`, if the memory is mapped: valid for `len` bytes.
    ptr: Option<NonNull<u8>>,
    memory: Arc<dyn HostMemory>,
}

// SAFETY: `ptr` points into `memory`, which is `Send + Sync` and may be used from any thread.
unsafe impl Send for Attachment {}
// SAFETY: as above.
unsafe impl Sync for Attachment {}

/// All physical memory of a GPU.
pub struct PhysMem {
    shootdown: Arc<Shootdown>,
    system: Table,
    vram: Table,
}

impl PhysMem {
    pub(crate) fn new(shootdown: Arc<Shootdown>, system_size: u64, vram_size: u64) -> Self {
        Self {
            shootdown,
            system: Table::new(Space::System, system_size),
            vram: Table::new(Space::Vram, vram_size),
        }
    }

    /// Bytes of a space.
    pub fn size(&self, space: Space) -> u64 {
        self.table(space).size
    }

    /// Bytes that have memory attached.
    pub fn attached(&self, space: Space) -> u64 {
        self.table(space).attached.load(Relaxed)
    }

    /// Puts `len` bytes of `memory`, from `offset` on, at device addresses from `at` on.
    ///
    /// # Errors
    /// [`AttachError`]; nothing has changed then.
    pub fn attach(
        &self,
        at: PhysAddr,
        memory: Arc<dyn HostMemory>,
        offset: u64,
        len: u64,
    ) -> Result<(), AttachError> {
        let ptr = host_pointer(&*memory, offset, len)?;
        let attachment = Attachment { start: at.addr.0, len, offset, ptr, memory };
        self.table(at.space).attach(attachment)
    }

    /// Takes the attachment away that starts at `at`; see [`detach_all`](Self::detach_all).
    ///
    /// # Errors
    /// [`AttachError::NotAttached`].
    pub fn detach(&self, at: PhysAddr) -> Result<(), AttachError> {
        self.detach_all([at])
    }

    /// Takes the attachments away that start at the given addresses. When it returns no engine uses their memory, and it has been released. Waits
    /// for engines to pass a checkpoint (once, however many there are), which is a matter of microseconds; no lock that a caller can hold
    /// matters, but those that a [`HostMemory`] takes.
    ///
    /// The page tables should not lead to the addresses any more: an access through an entry that still does faults.
    ///
    /// # Errors
    /// [`AttachError::NotAttached`] names the first unknown address; the others are detached all the same.
    pub fn detach_all(&self, at: impl IntoIterator<Item = PhysAddr>) -> Result<(), AttachError> {
        let mut unknown = None;
        let mut gone = Vec::new();
        for at in at {
            match self.table(at.space).detach(at.addr.0) {
                Some(attachment) => gone.push(attachment),
                None => unknown = unknown.or(Some(at)),
            }
        }
        if !gone.is_empty() {
            self.shootdown.invalidate(Scope::Checkpoint);
        }
        drop(gone);
        unknown.map_or(Ok(()), |at| Err(AttachError::NotAttached(at)))
    }

    /// At most `len` bytes at `at`, for an access at `va`; none if nothing is attached there.
    #[inline]
    pub(crate) fn chunk<'a>(
        &'a self,
        _online: &'a Online<'_>,
        at: PhysAddr,
        len: u64,
        va: GpuVa,
        access: Access,
    ) -> Option<Chunk<'a>> {
        let attachment = self.table(at.space).entry(at.addr.0)?;
        // SAFETY: an attachment is freed only after its entries were cleared and all engines passed a checkpoint since. We found it through an
        // entry while online, and the borrow of `Online` forbids a checkpoint for `'a`.
        let attachment: &'a Attachment = unsafe { attachment.as_ref() };
        let skip = at.addr.0 - attachment.start;
        let len = len.min(attachment.len - skip) as usize;
        Some(match attachment.ptr {
            // SAFETY: `ptr` is valid for the attachment's length and lives as long as the attachment, so for `'a`; `SharedRegion` promises that
            // nobody holds references to the bytes.
            Some(ptr) => unsafe { Chunk::mapped(va, access, ptr.add(skip as usize), len) },
            None => Chunk::remote(va, access, Arc::clone(&attachment.memory), attachment.offset + skip, len),
        })
    }

    fn table(&self, space: Space) -> &Table {
        match space {
            Space::System => &self.system,
            Space::Vram => &self.vram,
        }
    }
}

impl fmt::Debug for PhysMem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PhysMem")
            .field("system_attached", &self.attached(Space::System))
            .field("vram_attached", &self.attached(Space::Vram))
            .finish_non_exhaustive()
    }
}

/// Where `len` bytes at `offset` of `memory` are in this process, if they are mapped.
fn host_pointer(memory: &dyn HostMemory, offset: u64, len: u64) -> Result<Option<NonNull<u8>>, AttachError> {
    let Some(region) = memory.mapped() else { return Ok(None) };
    let size = region.len() as u64;
    match offset.checked_add(len) {
        // SAFETY: within the region.
        Some(end) if end <= size => Ok(Some(unsafe { region.as_ptr().add(offset as usize) })),
        _ => Err(AttachError::OutsideMemory { offset, len, size }),
    }
}

type Entry = AtomicPtr<Attachment>;

/// One space: page number to attachment.
///
/// # Invariants
/// A non-null entry points to an attachment that covers its page and is owned by `attachments`, or by a `detach_all` that waits for engines.
/// A leaf, once made, stays until the table is dropped.
struct Table {
    space: Space,
    size: u64,
    attached: AtomicU64,
    leaves: Box<[AtomicPtr<[Entry; LEAF]>]>,
    attachments: Mutex<BTreeMap<u64, Owned>>,
}

/// An attachment that entries point to: a raw pointer from `Box::into_raw`, since a `Box` may not be moved while others read through it.
struct Owned(NonNull<Attachment>);

// SAFETY: stands for a `Box<Attachment>`.
unsafe impl Send for Owned {}

impl Owned {
    fn new(attachment: Attachment) -> Self {
        Self(NonNull::from(Box::leak(Box::new(attachment))))
    }

    fn get(&self) -> &Attachment {
        // SAFETY: allocated by `new`, freed by `drop` alone, and never changed in between.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: `new` took it from a `Box`, and nobody else frees it.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Table {
    fn new(space: Space, size: u64) -> Self {
        let leaf_bytes = (LEAF as u64) << space.page_shift();
        let leaves = null_pointers(size.div_ceil(leaf_bytes) as usize);
        Self { space, size, attached: AtomicU64::new(0), leaves, attachments: Mutex::default() }
    }

    fn attach(&self, attachment: Attachment) -> Result<(), AttachError> {
        let (start, len) = (attachment.start, attachment.len);
        self.check(start, len)?;
        let mut attachments = self.attachments.lock();
        let before = attachments.range(..start + len).next_back();
        if let Some((&other, found)) = before
            && other + found.get().len > start
        {
            return Err(AttachError::InUse { at: self.addr(start), other: DevAddr(other) });
        }
        let owned = Owned::new(attachment);
        // Release: an engine that finds the entry sees the attachment.
        self.for_each_entry(start, len, |entry| entry.store(owned.0.as_ptr(), Release));
        attachments.insert(start, owned);
        self.attached.fetch_add(len, Relaxed);
        Ok(())
    }

    fn detach(&self, start: u64) -> Option<Owned> {
        let mut attachments = self.attachments.lock();
        let owned = attachments.remove(&start)?;
        let len = owned.get().len;
        self.for_each_entry(start, len, |entry| entry.store(ptr::null_mut(), Release));
        self.attached.fetch_sub(len, Relaxed);
        Some(owned)
    }

    #[inline]
    fn entry(&self, addr: u64) -> Option<NonNull<Attachment>> {
        let page = (addr >> self.space.page_shift()) as usize;
        let leaf = self.leaves.get(page / LEAF)?.load(Acquire);
        // SAFETY: leaves live as long as the table.
        let leaf = unsafe { leaf.as_ref() }?;
        NonNull::new(leaf[page % LEAF].load(Acquire))
    }

    /// Calls `change` for each page's entry. Leaves are made as needed: under the lock of `attachments`.
    fn for_each_entry(&self, start: u64, len: u64, change: impl Fn(&Entry)) {
        let shift = self.space.page_shift();
        let mut page = (start >> shift) as usize;
        let end = ((start + len) >> shift) as usize;
        while page < end {
            let stop = end.min((page / LEAF + 1) * LEAF);
            let leaf = self.leaf(page / LEAF);
            let first = page % LEAF;
            leaf[first..first + (stop - page)].iter().for_each(&change);
            page = stop;
        }
    }

    fn leaf(&self, index: usize) -> &[Entry; LEAF] {
        let slot = &self.leaves[index];
        // SAFETY: leaves live as long as the table.
        if let Some(leaf) = unsafe { slot.load(Acquire).as_ref() } {
            return leaf;
        }
        let leaf = Box::leak(null_pointers::<Attachment>(LEAF));
        slot.store(leaf.as_mut_ptr().cast(), Release);
        // SAFETY: `leaf` has exactly `LEAF` entries; from here on it is shared and freed by `drop` alone.
        unsafe { &*leaf.as_ptr().cast::<[Entry; LEAF]>() }
    }

    fn check(&self, start: u64, len: u64) -> Result<(), AttachError> {
        let at = self.addr(start);
        let mask = self.space.page_size() - 1;
        if (start | len) & mask != 0 || len == 0 {
            return Err(AttachError::Misaligned { at, len });
        }
        match start.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(AttachError::OutsideSpace { at, len, size: self.size }),
        }
    }

    fn addr(&self, start: u64) -> PhysAddr {
        PhysAddr { space: self.space, addr: DevAddr(start) }
    }
}

/// Null pointers, in memory that the allocator gets zeroed and nobody has touched: what of a large table is not used costs nothing.
fn null_pointers<T>(count: usize) -> Box<[AtomicPtr<T>]> {
    let zeros = Box::into_raw(vec![0_usize; count].into_boxed_slice());
    // SAFETY: an `AtomicPtr` has a `usize`'s size and alignment, and zero is the null pointer.
    unsafe { Box::from_raw(zeros as *mut [AtomicPtr<T>]) }
}

impl Drop for Table {
    fn drop(&mut self) {
        for leaf in &mut self.leaves {
            let leaf = *leaf.get_mut();
            if !leaf.is_null() {
                // SAFETY: made by `leaf()` from a boxed slice of `LEAF` entries; nobody uses the table any more.
                drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(leaf.cast::<Entry>(), LEAF)) });
            }
        }
    }
}
