//! From a command number and bytes to a driver's function: the entry that all DRM ioctls share.
//!
//! A table entry says what the command is called, who may use it, and which structure it takes. The
//! client's structure may be shorter than ours (an older client) or longer (a newer one): what it lacks
//! is zero, what is too much is left alone, and as much is copied back as the client has room for. The
//! directions are those that client *and* table agree on. As in a kernel, the structure goes back even when the
//! request fails.
//!
//! ```text
//!  command, bytes ──► table entry ──► permission ──► structure ──► handler ──► structure ──► bytes
//!                     ENOTTY, EINVAL   EACCES         zero-extended             cut to the client's size
//! ```
//!
//! Tables are made once per driver and never change: no lock.

use std::sync::Arc;

use bytemuck::Pod;

use super::argument::{read_argument, write_argument};
use super::driver::Driver;
use super::error::Error;
use super::file::{DrmFile, Node};
use crate::transport::{Call, Errno};
use crate::uapi::drm;
use crate::uapi::ioctl::Command;

bitflags::bitflags! {
    /// Who may use a command.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Permit: u32 {
        /// Files of the render node, too.
        const RENDER = 1 << 0;
        /// On the primary node, only authenticated files.
        const AUTH = 1 << 1;
        /// On the primary node, only the current master.
        const MASTER = 1 << 2;
        /// Only a privileged process.
        const ADMIN = 1 << 3;
    }
}

/// What a handler gets besides its argument.
pub struct Request<'r, 'c, D: Driver> {
    /// The call: the client's memory, descriptors, interruption.
    pub call: &'r mut Call<'c>,
    /// The file it came through.
    pub file: &'r Arc<DrmFile<D>>,
}

type Entry<D> = Box<dyn Fn(&mut Request<'_, '_, D>, Command, &mut [u8]) -> Result<(), Error> + Send + Sync>;

struct Slot<D: Driver> {
    command: Command,
    name: &'static str,
    permit: Permit,
    quick: bool,
    run: Entry<D>,
}

/// The commands of a driver, those of the core included.
pub struct IoctlTable<D: Driver> {
    slots: Vec<Option<Slot<D>>>,
}

impl<D: Driver> IoctlTable<D> {
    /// A table with the core's commands.
    #[must_use]
    pub fn with_core_commands() -> Self {
        let empty = Self { slots: std::iter::repeat_with(|| None).take(1 << 8).collect() };
        let table = super::info::add_commands(empty);
        let table = super::master::add_commands(table);
        let table = super::gem::add_commands(table);
        let table = super::prime::add_commands(table);
        super::syncobj::add_commands(table)
    }

    /// Adds a command that takes a `T`.
    ///
    /// # Panics
    /// When the command's size isn't `T`'s, or its number is taken: mistakes in a driver's table, found at its
    /// first use.
    #[must_use]
    pub fn with<T: Pod>(
        self,
        name: &'static str,
        command: Command,
        permit: Permit,
        handler: impl Fn(&mut Request<'_, '_, D>, &mut T) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Self {
        assert_eq!(command.size(), size_of::<T>(), "{name}: size of {command:?}");
        let run = move |request: &mut Request<'_, '_, D>, theirs: Command, bytes: &mut [u8]| {
            let mut value = read_argument::<T>(command, theirs, bytes);
            let outcome = handler(request, &mut value);
            write_argument(command, theirs, &value, bytes);
            outcome
        };
        self.insert(name, command, permit, Box::new(run))
    }

    /// Adds a command that takes no argument.
    ///
    /// # Panics
    /// As [`IoctlTable::with`].
    #[must_use]
    pub fn with_bare(
        self,
        name: &'static str,
        command: Command,
        permit: Permit,
        handler: impl Fn(&mut Request<'_, '_, D>) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Self {
        assert_eq!(command.size(), 0, "{name}: size of {command:?}");
        let run = move |request: &mut Request<'_, '_, D>, _: Command, _: &mut [u8]| handler(request);
        self.insert(name, command, permit, Box::new(run))
    }

    /// Notes that these commands never wait for the GPU, another client or anything else that takes long: see
    /// [`File::is_quick`](crate::transport::File::is_quick).
    ///
    /// # Panics
    /// When there is no such command.
    #[must_use]
    pub fn with_quick(mut self, commands: &[Command]) -> Self {
        for command in commands {
            let slot = self.slots[usize::from(command.nr())].as_mut();
            slot.unwrap_or_else(|| panic!("{command:?} is not in the table")).quick = true;
        }
        self
    }

    /// Whether calls of this command never wait.
    pub(super) fn is_quick(&self, command: Command) -> bool {
        let slot = &self.slots[usize::from(command.nr())];
        command.kind() == drm::BASE && slot.as_ref().is_some_and(|slot| slot.quick)
    }

    fn insert(mut self, name: &'static str, command: Command, permit: Permit, run: Entry<D>) -> Self {
        let slot = &mut self.slots[usize::from(command.nr())];
        assert!(slot.is_none(), "{name}: number {command:?} is taken");
        *slot = Some(Slot { command, name, permit, quick: false, run });
        self
    }

    /// Carries a command out: `bytes` is the client's argument, as long as the command says.
    ///
    /// # Errors
    /// `ENOTTY` for another subsystem's command, `EINVAL` for one that isn't in the table, `EACCES` for one that
    /// the file may not use, and whatever the handler answers.
    pub fn run(
        &self,
        call: &mut Call<'_>,
        file: &Arc<DrmFile<D>>,
        command: Command,
        bytes: &mut [u8],
    ) -> Result<u32, Errno> {
        if command.kind() != drm::BASE {
            return Err(Errno::NOTTY);
        }
        let Some(slot) = &self.slots[usize::from(command.nr())] else {
            tracing::debug!(client = file.id().0, ?command, "unknown ioctl");
            return Err(Errno::INVAL);
        };
        let mut request = Request { call, file };
        let outcome =
            check_permission(slot.permit, &request).and_then(|()| (slot.run)(&mut request, command, bytes));
        file.count_ioctl();
        outcome.map(|()| 0).map_err(|error| {
            let errno = error.errno();
            tracing::debug!(client = file.id().0, ioctl = slot.name, command = ?slot.command, %error, ?errno, "ioctl refused");
            errno
        })
    }
}

fn check_permission<D: Driver>(permit: Permit, request: &Request<'_, '_, D>) -> Result<(), Error> {
    let file = request.file;
    let render = file.node() == Node::Render;
    if permit.contains(Permit::ADMIN) && !file.is_privileged() {
        return Err(Error::Denied("an administrator's command"));
    }
    if permit.contains(Permit::AUTH) && !render && !file.is_authenticated() {
        return Err(Error::Denied("a command for authenticated files"));
    }
    if permit.contains(Permit::MASTER) && !file.is_current_master() {
        return Err(Error::Denied("a command for the master"));
    }
    if !permit.contains(Permit::RENDER) && render {
        return Err(Error::Denied("a command of the primary node"));
    }
    Ok(())
}
