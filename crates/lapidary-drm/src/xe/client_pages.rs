//! Client memory on the GPU (userptr): a range of a process's own pages at device addresses.
//!
//! The pages are not pinned. The device reaches them through the process's memory at each access, so whatever the
//! process has mapped at the address at that moment is what the GPU sees; a page that is gone faults. While a job may use
//! them, the process's own unmapping waits, see [`notifier`](super::notifier). Their device addresses come from a window of
//! their own above the system region's.
//!
//! A [`ClientPages`] goes with the last mapping that shows it. That may be under any lock, and device addresses can be
//! used again only when no engine uses them any more, which takes waiting: so the drop hands them to the worker.

use std::sync::Arc;

use lapidary::reaper::Reaper;
use lapidary::residency::{Extent, RangeAllocator};
use lapidary::resv::Reservation;
use lapidary_gpu::Gpu;
use lapidary_gpu::memory::{HostMemory, PhysAddr};
use parking_lot::Mutex;

use super::XeDriver;
use super::notifier::ClientUserptr;
use crate::backing::ClientRange;
use crate::core::Error;
use crate::core::census::Live;
use crate::transport::Call;

/// Alignment of ranges in the window: that of the largest page-table leaf that client memory is mapped with.
const ALIGNMENT: u64 = 64 << 10;

/// The device addresses for client memory.
pub(super) struct ClientWindow {
    gpu: Gpu,
    worker: Reaper,
    ranges: Mutex<RangeAllocator>,
}

impl ClientWindow {
    /// The window `extent` of system device addresses.
    pub(super) fn new(gpu: &Gpu, worker: &Reaper, extent: Extent) -> Arc<Self> {
        let ranges = Mutex::new(RangeAllocator::new(extent));
        Arc::new(Self { gpu: gpu.clone(), worker: worker.clone(), ranges })
    }

    fn release(&self, range: Extent) {
        if let Err(error) = self.gpu.memory().detach(PhysAddr::system(range.start)) {
            tracing::error!(%error, "client memory was not attached");
        }
        self.ranges.lock().free(range);
    }
}

/// A range of a process's memory with device addresses.
pub struct ClientPages {
    number: usize,
    window: Arc<ClientWindow>,
    _userptr: ClientUserptr,
    bytes: Arc<ClientRange>,
    range: Extent,
    reservation: Reservation,
    _live: Live,
}

impl ClientPages {
    /// Gives `len` bytes at address `start` of the caller's memory, both multiples of the page size, device addresses. Its users'
    /// fences are kept in `reservation`, that of the address space it is mapped in.
    ///
    /// # Errors
    /// `EFAULT` if a page can't be read now; `ENOMEM` if no device addresses are left, or for more than clients can have of
    /// the machine's memory; `EINTR`.
    pub(super) fn new(
        driver: &XeDriver,
        call: &Call<'_>,
        start: u64,
        len: u64,
        reservation: &Reservation,
    ) -> Result<Arc<Self>, Error> {
        if len > driver.memory_usage().system_total {
            return Err(Error::OutOfMemory("that much client memory"));
        }
        let process = call.process();
        // Registered before the GPU can reach it: an unmapping from here on waits for its users.
        let userptr = driver.notifiers().register(process, start..start.saturating_add(len), reservation)?;
        let bytes = Arc::new(ClientRange::new(Arc::clone(process.memory()), start, len, call.interrupt())?);
        let window = Arc::clone(driver.client_window());
        let none_left = Error::OutOfMemory("device addresses for client memory");
        let range = window.ranges.lock().allocate(len, ALIGNMENT).map_err(|_| none_left)?;
        let attached = window.gpu.memory().attach(PhysAddr::system(range.start), bytes.clone(), 0, len);
        if let Err(error) = attached {
            tracing::error!(%error, "client memory not attached");
            window.ranges.lock().free(range);
            return Err(Error::OutOfMemory("the device's table of memory"));
        }
        let live = driver.kinds().client_ranges.enter();
        let number = super::object::next_number();
        Ok(Arc::new(Self {
            number,
            window,
            _userptr: userptr,
            bytes,
            range,
            reservation: reservation.clone(),
            _live: live,
        }))
    }

    /// A number that no other range has.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Where the bytes from `offset` on are.
    pub(super) fn address(&self, offset: u64) -> PhysAddr {
        PhysAddr::system(self.range.start + offset)
    }

    /// Whether the byte at `offset` can be read now.
    pub(super) fn is_accessible(&self, offset: u64) -> bool {
        self.bytes.read_at(offset, &mut [0]).is_ok()
    }

    /// The reservation with its users' fences.
    pub(super) fn reservation(&self) -> &Reservation {
        &self.reservation
    }
}

impl Drop for ClientPages {
    fn drop(&mut self) {
        let (window, range) = (Arc::clone(&self.window), self.range);
        self.window.worker.queue(Box::new(move || window.release(range)));
    }
}
