//! What one open of the device has: its VMs and exec queues, by handle. The tables have a lock each, held for a lookup
//! only.

use std::sync::Arc;

use lapidary::gem::{Handle, HandleTable};

use super::allowance::Allowance;
use super::exec_queue::ExecQueue;
use super::vm::Vm;
use crate::core::Error;

/// Most VMs, and most queues, of one file.
const LIMIT: u32 = 1 << 16;

/// The driver's part of a DRM file.
pub struct XeFile {
    vms: HandleTable<Arc<Vm>>,
    queues: HandleTable<Arc<ExecQueue>>,
    allowance: Arc<Allowance>,
}

impl XeFile {
    /// With `allowance` bytes for its address spaces.
    pub(super) fn new(allowance: u64) -> Self {
        Self {
            vms: HandleTable::with_limit(LIMIT),
            queues: HandleTable::with_limit(LIMIT),
            allowance: Allowance::new(allowance),
        }
    }

    /// What its address spaces may have.
    pub(super) fn allowance(&self) -> &Arc<Allowance> {
        &self.allowance
    }

    /// # Errors
    /// `ENOENT`.
    pub(super) fn vm(&self, id: u32) -> Result<Arc<Vm>, Error> {
        self.vms.get(Handle(id)).ok_or_else(|| Error::not_found("VM", id))
    }

    /// # Errors
    /// `ENOMEM` when there are too many.
    pub(super) fn add_vm(&self, vm: Arc<Vm>) -> Result<u32, Error> {
        let handle = self.vms.insert(vm).map_err(|_| Error::OutOfMemory("one more VM"))?;
        Ok(handle.get())
    }

    /// # Errors
    /// `ENOENT`.
    pub(super) fn remove_vm(&self, id: u32) -> Result<Arc<Vm>, Error> {
        self.vms.remove(Handle(id)).ok_or_else(|| Error::not_found("VM", id))
    }

    /// # Errors
    /// `ENOENT`.
    pub(super) fn queue(&self, id: u32) -> Result<Arc<ExecQueue>, Error> {
        self.queues.get(Handle(id)).ok_or_else(|| Error::not_found("exec queue", id))
    }

    /// Whether a queue of this VM exists.
    pub(super) fn has_queues_of(&self, vm: &Arc<Vm>) -> bool {
        self.queues.find(|queue| Arc::ptr_eq(queue.vm(), vm)).is_some()
    }

    /// # Errors
    /// `ENOMEM` when there are too many.
    pub(super) fn add_queue(&self, queue: Arc<ExecQueue>) -> Result<u32, Error> {
        let handle = self.queues.insert(queue).map_err(|_| Error::OutOfMemory("one more exec queue"))?;
        Ok(handle.get())
    }

    /// # Errors
    /// `ENOENT`.
    pub(super) fn remove_queue(&self, id: u32) -> Result<Arc<ExecQueue>, Error> {
        self.queues.remove(Handle(id)).ok_or_else(|| Error::not_found("exec queue", id))
    }

    /// Its address spaces as text, a line per mapping, each as it is when it is printed.
    pub(super) fn dump(&self) -> String {
        let spaces = self.vms.snapshot();
        spaces.iter().map(|(handle, vm)| format!("VM {}: {}", handle.get(), vm.gpu_vm().dump())).collect()
    }

    /// Lets go of everything: the file is closed. Queues first, so that what runs stops before its memory goes.
    pub(super) fn close(&self) {
        let queues = self.queues.take_all();
        queues.iter().for_each(|(_, queue)| queue.kill());
        drop(queues);
        for (_, vm) in self.vms.take_all() {
            vm.close();
        }
    }
}

impl Drop for XeFile {
    /// A call that was under way when the file was closed may have made more.
    fn drop(&mut self) {
        self.close();
    }
}
