//! What can be mapped: a buffer object, or a range of a client's memory. And where its bytes are.
//!
//! A buffer's bytes (a memfd, see [`Backing`]) are attached to the device addresses of its present allocation when it is
//! bound for the first time: what no address space shows costs no mapping. From then on they follow the buffer, and stay
//! attached until the allocation is left, or until the buffer is gone and idle.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lapidary::exec::Exec;
use lapidary::fence::Interrupt;
use lapidary::gem::{self, ObjectData};
use lapidary::gpuvm::{ObjectId, VmBoList};
use lapidary::residency::{Allocation, Companions, Manager, RegionKind, Residence};
use lapidary::resv::Reservation;
use lapidary_gpu::Gpu;
use lapidary_gpu::memory::PhysAddr;
use parking_lot::Mutex;

use super::client_pages::ClientPages;
use super::vm::XeTypes;
use crate::backing::Backing;
use crate::core::census::Live;
use crate::core::{self, Error};

/// A buffer object. Equal to every other reference to the same buffer.
pub type Buffer = gem::Object<BufferData>;

/// The driver's part of a buffer.
pub struct BufferData {
    bytes: Arc<Backing>,
    gpu: Gpu,
    attached: Mutex<Option<Attached>>,
    /// The address spaces that know the buffer.
    vm_bos: VmBoList<XeTypes>,
    traits: Traits,
    live: Live,
}

/// What a buffer was created with that its mappings must agree with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traits {
    /// Mappings are aligned to so many bytes.
    pub(super) alignment: u64,
    /// The CPU caches it, so that the GPU has to look at the CPU's caches.
    pub(super) cached: bool,
    /// The GPU may not compress it.
    pub(super) uncompressed: bool,
}

/// Bytes at device addresses, until dropped.
struct Attached {
    gpu: Gpu,
    at: Vec<PhysAddr>,
}

impl Drop for Attached {
    /// Waits until no engine uses the addresses, which takes at most a step of each; holds and takes no lock meanwhile.
    fn drop(&mut self) {
        if let Err(error) = self.gpu.memory().detach_all(self.at.drain(..)) {
            tracing::error!(%error, "a buffer was not attached where it should be");
        }
    }
}

/// What stays of a buffer that is gone until the GPU is done with it.
pub struct Remains {
    _attached: Option<Attached>,
    _bytes: Arc<Backing>,
    _live: Live,
}

impl ObjectData for BufferData {
    type Memory = Remains;

    fn into_memory(self) -> Remains {
        Remains { _attached: self.attached.into_inner(), _bytes: self.bytes, _live: self.live }
    }
}

impl BufferData {
    /// A buffer over `bytes`.
    pub(super) fn new(gpu: &Gpu, bytes: Backing, traits: Traits, live: Live) -> Self {
        Self {
            bytes: Arc::new(bytes),
            gpu: gpu.clone(),
            attached: Mutex::default(),
            vm_bos: VmBoList::new(),
            traits,
            live,
        }
    }

    /// What its mappings must agree with.
    pub(super) fn traits(&self) -> Traits {
        self.traits
    }

    /// The address spaces that know it.
    pub(super) fn vm_bos(&self) -> &VmBoList<XeTypes> {
        &self.vm_bos
    }

    /// Has the bytes follow the buffer to `memory`, if the GPU sees them. No engine may use the old addresses any more.
    pub(super) fn follow(&self, memory: Option<&Allocation>) {
        let mut attached = self.attached.lock();
        if attached.take().is_some() {
            *attached = memory.map(|memory| self.attach(memory));
        }
    }

    /// Lets the GPU see the bytes where the buffer is now.
    fn show(&self, memory: &Allocation) {
        let mut attached = self.attached.lock();
        if attached.is_none() {
            // Before they are attached: memory stays what it is then, mapped or not.
            self.bytes.map();
            *attached = Some(self.attach(memory));
        }
    }

    fn attach(&self, memory: &Allocation) -> Attached {
        let mut offset = 0;
        let mut new = Attached { gpu: self.gpu.clone(), at: Vec::with_capacity(memory.extents().len()) };
        for extent in memory.extents() {
            let at = address(memory, extent.start);
            let len = extent.len.min(self.bytes.size().saturating_sub(offset));
            if len == 0 {
                break;
            }
            match self.gpu.memory().attach(at, self.bytes.clone(), offset, len) {
                Ok(()) => new.at.push(at),
                // The allocator gave out addresses that are in use: the GPU will fault there, nobody's bytes are lost.
                Err(error) => tracing::error!(%error, "a buffer's bytes not attached"),
            }
            offset += extent.len;
        }
        new
    }
}

impl core::Object for Buffer {
    fn size(&self) -> u64 {
        gem::Object::size(self)
    }

    fn reservation(&self) -> &Reservation {
        self.resv()
    }

    fn memory(&self) -> Result<core::Memory, Error> {
        Ok(core::Memory { fd: Arc::clone(self.data().bytes.fd()) })
    }
}

/// Something with bytes that an address space can show.
#[derive(Clone)]
pub enum Object {
    /// A buffer.
    Buffer(Buffer),
    /// A range of a client's memory.
    Client(Arc<ClientPages>),
}

impl Object {
    /// Its identity among all that can be mapped.
    pub(super) fn id(&self) -> ObjectId {
        match self {
            // Buffers have odd numbers, client ranges even ones.
            Self::Buffer(buffer) => ObjectId(buffer.id() as usize * 2 + 1),
            Self::Client(pages) => ObjectId(pages.number() * 2),
        }
    }

    /// Where its users' fences are.
    pub(super) fn reservation(&self) -> &Reservation {
        match self {
            Self::Buffer(buffer) => buffer.resv(),
            Self::Client(pages) => pages.reservation(),
        }
    }

    /// Gives a buffer memory where it may live, evicting others if need be, those that are locked already as far as `companions`
    /// allows, and shows it to the GPU. `exec` has its reservation locked.
    ///
    /// # Errors
    /// `ENOMEM`, `EINTR`, and a lock that has to be waited for, which [`Exec::run`] takes care of.
    pub(super) fn make_resident(
        &self,
        manager: &Manager<BufferData>,
        exec: &mut Exec<'_>,
        companions: Companions,
        interrupt: &Interrupt,
    ) -> Result<(), Error> {
        let Self::Buffer(buffer) = self else { return Ok(()) };
        manager.validate_with(exec, buffer, companions, interrupt)?;
        if let Residence::Resident(memory) = buffer.residence() {
            buffer.data().show(&memory);
        }
        Ok(())
    }

    /// Calls `piece` for each contiguous stretch of the `len` bytes from `offset` on: how far it lies into them, where it
    /// is, and its length. Nothing for a buffer that is nowhere.
    pub(super) fn for_each_piece(&self, offset: u64, len: u64, mut piece: impl FnMut(u64, PhysAddr, u64)) {
        let buffer = match self {
            Self::Client(pages) => return piece(0, pages.address(offset), len),
            Self::Buffer(buffer) => buffer,
        };
        let (Residence::Resident(memory) | Residence::Evicted(memory)) = buffer.residence() else { return };
        let end = offset + len;
        let mut start = 0;
        for extent in memory.extents() {
            let (from, to) = (start.max(offset), (start + extent.len).min(end));
            if from < to {
                piece(from - offset, address(&memory, extent.start + (from - start)), to - from);
            }
            start += extent.len;
        }
    }
}

fn address(memory: &Allocation, at: u64) -> PhysAddr {
    match memory.region().kind() {
        RegionKind::System => PhysAddr::system(at),
        RegionKind::Vram => PhysAddr::vram(at),
    }
}

/// A number that no other client range of this process has.
pub(super) fn next_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
