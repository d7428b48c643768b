//! Syncobjs as clients handle them: the per-file table, and the commands.
//!
//! What a syncobj *is*, binary or timeline, and how waiting for one goes, is the library's
//! ([`lapidary::syncobj`]). Here are handles, descriptors, arrays in the client's memory and the checks of each command.
//!
//! | file | commands |
//! | --- | --- |
//! | `handles` | CREATE, DESTROY, HANDLE_TO_FD, FD_TO_HANDLE |
//! | `points` | RESET, SIGNAL, TIMELINE_SIGNAL, QUERY, TRANSFER |
//! | `wait` | WAIT, TIMELINE_WAIT |
//! | `eventfd` | EVENTFD; `aio` does the signalling |

mod aio;
mod eventfd;
mod handles;
mod points;
mod wait;

use std::ops::Deref;
use std::sync::Arc;

use lapidary::gem::{Handle, HandleMap};
use lapidary::syncobj::Syncobj;
use parking_lot::Mutex;

use super::census::{Kind, Live};
use super::driver::{Driver, Features};
use super::error::Error;
use super::ioctl::{IoctlTable, Request};
use crate::transport::Errno;

/// Most syncobjs in one command: what a kernel's largest allocation holds pointers for.
const MAX_ARRAY: u32 = 1 << 19;

/// A syncobj that clients know, counted as long as any of them does.
#[derive(Clone)]
pub struct SyncobjRef(Arc<Counted>);

struct Counted {
    syncobj: Syncobj,
    _live: Live,
}

impl SyncobjRef {
    fn new(signalled: bool, kind: &Kind) -> Self {
        Self(Arc::new(Counted { syncobj: Syncobj::new(signalled), _live: kind.enter() }))
    }
}

impl Deref for SyncobjRef {
    type Target = Syncobj;

    fn deref(&self) -> &Syncobj {
        &self.0.syncobj
    }
}

/// A file's syncobj handles. Its lock is held for a lookup only.
#[derive(Default)]
pub struct SyncobjTable {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    handles: HandleMap<SyncobjRef>,
    closed: bool,
}

impl SyncobjTable {
    /// Gives a syncobj one more handle.
    ///
    /// # Errors
    /// When there is no handle left, or the file is closed.
    pub fn insert(&self, syncobj: SyncobjRef) -> Result<u32, Error> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Error::refused(Errno::BADF, "the file is closed"));
        }
        Ok(state.handles.insert(syncobj)?.get())
    }

    /// The syncobj of that handle.
    ///
    /// # Errors
    /// `ENOENT` without one.
    pub fn get(&self, handle: u32) -> Result<SyncobjRef, Error> {
        let found = self.state.lock().handles.get(Handle(handle)).cloned();
        found.ok_or_else(|| Error::not_found("syncobj", handle))
    }

    /// Takes a handle back.
    ///
    /// # Errors
    /// `EINVAL` without such a handle.
    pub fn remove(&self, handle: u32) -> Result<(), Error> {
        let removed = self.state.lock().handles.remove(Handle(handle));
        removed.map(drop).ok_or_else(|| Error::invalid("a syncobj's handle", handle))
    }

    /// How many handles there are.
    pub fn len(&self) -> usize {
        self.state.lock().handles.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes all handles back, and gives no more.
    pub(super) fn clear(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let handles = std::mem::take(&mut state.handles);
        drop(state);
        drop(handles);
    }
}

pub(super) fn add_commands<D: Driver>(table: IoctlTable<D>) -> IoctlTable<D> {
    let table = handles::add_commands(table);
    let table = points::add_commands(table);
    let table = wait::add_commands(table);
    eventfd::add_commands(table)
}

/// A handler that answers only if the driver has the feature.
fn with_feature<D: Driver, T>(
    feature: Features,
    handler: impl Fn(&mut Request<'_, '_, D>, &mut T) -> Result<(), Error> + Send + Sync + 'static,
) -> impl Fn(&mut Request<'_, '_, D>, &mut T) -> Result<(), Error> + Send + Sync + 'static {
    move |request: &mut Request<'_, '_, D>, args: &mut T| {
        if !request.file.driver().info().features.contains(feature) {
            return Err(Error::Unsupported("a syncobj"));
        }
        handler(request, args)
    }
}

/// The syncobjs of an array of handles in the client's memory.
fn read_handles<D: Driver>(
    request: &Request<'_, '_, D>,
    address: u64,
    count: u32,
) -> Result<Vec<SyncobjRef>, Error> {
    if count > MAX_ARRAY {
        return Err(Error::OutOfMemory("that many syncobjs"));
    }
    let handles = request.call.memory().read_array::<u32>(address, count as usize)?;
    let table = request.file.syncobjs();
    handles.into_iter().map(|handle| table.get(handle)).collect()
}

/// An array of points in the client's memory; all zero without an address.
fn read_points<D: Driver>(
    request: &Request<'_, '_, D>,
    address: u64,
    count: usize,
) -> Result<Vec<u64>, Error> {
    if address == 0 {
        return Ok(vec![0; count]);
    }
    Ok(request.call.memory().read_array(address, count)?)
}
