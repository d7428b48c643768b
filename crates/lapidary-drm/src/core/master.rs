//! Who is master of the device, and who is authenticated.
//!
//! Files of the primary node belong to a *group*: the one of the master at the time they were opened, or one of
//! their own once they became master. The first file opened while nobody is master becomes it. A file shows its
//! *magic*, a number unique in its group, to the master, who may authenticate it with that. Files of the render node
//! have nothing to do with all this.
//!
//! One lock per device ([`Masters`]) orders every change; each file's own record is behind a lock of its own, taken
//! inside the device's or alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::driver::Driver;
use super::error::Error;
use super::file::Node;
use super::ioctl::{IoctlTable, Permit, Request};
use crate::transport::Errno;
use crate::uapi::drm;

/// The masters of a device.
#[derive(Debug, Default)]
pub(super) struct Masters {
    current: Mutex<Option<Arc<Group>>>,
}

/// A master and those who opened the device under it.
#[derive(Debug, Default)]
struct Group {
    magics: Mutex<BTreeMap<u32, Option<Arc<AtomicBool>>>>,
    bus_id: Mutex<Option<String>>,
}

/// What a file of the primary node is in this.
#[derive(Debug)]
pub(super) struct Membership {
    privileged: bool,
    authenticated: Arc<AtomicBool>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    group: Option<Arc<Group>>,
    /// Whether the group is this file's own.
    founder: bool,
    magic: Option<u32>,
}

impl Membership {
    /// The record of a file that is being opened: of the primary node, it becomes master if there is none.
    pub(super) fn open(masters: &Masters, node: Node, privileged: bool) -> Self {
        let member = Self {
            privileged,
            authenticated: Arc::new(AtomicBool::new(privileged)),
            inner: Mutex::default(),
        };
        if node == Node::Render {
            return member;
        }
        let mut current = masters.current.lock();
        match &*current {
            Some(group) => member.inner.lock().group = Some(Arc::clone(group)),
            None => *current = Some(member.found_group()),
        }
        member
    }

    /// The file is gone: its magic is free, and if it was master, nobody is.
    pub(super) fn close(&self, masters: &Masters) {
        let mut current = masters.current.lock();
        let mut inner = self.inner.lock();
        if inner.is_current(current.as_ref()) {
            *current = None;
        }
        let magic = inner.magic.take();
        if let (Some(group), Some(magic)) = (inner.group.take(), magic) {
            group.magics.lock().remove(&magic);
        }
    }

    /// May it use commands for authenticated files?
    pub(super) fn is_authenticated(&self) -> bool {
        self.authenticated.load(Ordering::Acquire)
    }

    /// Does it belong to a privileged process?
    pub(super) fn is_privileged(&self) -> bool {
        self.privileged
    }

    /// Is it master now?
    pub(super) fn is_current_master(&self, masters: &Masters) -> bool {
        let current = masters.current.lock();
        self.inner.lock().is_current(current.as_ref())
    }

    fn found_group(&self) -> Arc<Group> {
        let group = Arc::new(Group::default());
        let mut inner = self.inner.lock();
        inner.group = Some(Arc::clone(&group));
        inner.founder = true;
        self.authenticated.store(true, Ordering::Release);
        group
    }

    /// Only who was master before, or may do anything, can ask for it.
    fn check_may_switch(&self) -> Result<(), Error> {
        if self.privileged || self.inner.lock().founder {
            return Ok(());
        }
        Err(Error::Denied("becoming or ceasing to be master"))
    }

    fn set_master(&self, masters: &Masters) -> Result<(), Error> {
        self.check_may_switch()?;
        let mut current = masters.current.lock();
        if self.inner.lock().is_current(current.as_ref()) {
            return Ok(());
        }
        if current.is_some() {
            return Err(Error::refused(Errno::INVAL, "another file is master"));
        }
        let own = self.inner.lock().own_group();
        *current = Some(own.unwrap_or_else(|| self.found_group()));
        Ok(())
    }

    fn drop_master(&self, masters: &Masters) -> Result<(), Error> {
        self.check_may_switch()?;
        let mut current = masters.current.lock();
        if !self.inner.lock().is_current(current.as_ref()) {
            return Err(Error::refused(Errno::INVAL, "the file is not master"));
        }
        *current = None;
        Ok(())
    }

    /// Its number within the group, given at the first call.
    fn magic(&self) -> Result<u32, Error> {
        let mut inner = self.inner.lock();
        if let Some(magic) = inner.magic {
            return Ok(magic);
        }
        let group = inner.group.clone().ok_or(Error::Denied("a magic number"))?;
        let mut magics = group.magics.lock();
        let lowest_free = (1..)
            .zip(magics.keys())
            .find(|(expected, taken)| expected != *taken)
            .map_or_else(|| magics.len() as u32 + 1, |(expected, _)| expected);
        magics.insert(lowest_free, Some(Arc::clone(&self.authenticated)));
        inner.magic = Some(lowest_free);
        Ok(lowest_free)
    }

    /// Authenticates the file of that number; a number can be used once.
    fn authenticate(&self, magic: u32) -> Result<(), Error> {
        let group = self.inner.lock().group.clone();
        let waiting = group.and_then(|group| group.magics.lock().get_mut(&magic)?.take());
        let Some(other) = waiting else {
            return Err(Error::invalid("a magic number", magic));
        };
        other.store(true, Ordering::Release);
        Ok(())
    }

    /// The bus id, if this file's group has asked for it.
    pub(super) fn bus_id(&self) -> String {
        let group = self.inner.lock().group.clone();
        group.and_then(|group| group.bus_id.lock().clone()).unwrap_or_default()
    }

    /// From now on the group sees the bus id.
    pub(super) fn set_bus_id(&self, bus_id: &str) {
        if let Some(group) = &self.inner.lock().group {
            *group.bus_id.lock() = Some(bus_id.to_owned());
        }
    }
}

impl Inner {
    fn is_current(&self, current: Option<&Arc<Group>>) -> bool {
        match (self.own_group(), current) {
            (Some(own), Some(current)) => Arc::ptr_eq(&own, current),
            _ => false,
        }
    }

    fn own_group(&self) -> Option<Arc<Group>> {
        self.group.clone().filter(|_| self.founder)
    }
}

/// Adds SET_MASTER, DROP_MASTER, GET_MAGIC and AUTH_MAGIC.
pub(super) fn add_commands<D: Driver>(table: IoctlTable<D>) -> IoctlTable<D> {
    table
        .with_bare("SET_MASTER", drm::IOCTL_SET_MASTER, Permit::empty(), set_master)
        .with_bare("DROP_MASTER", drm::IOCTL_DROP_MASTER, Permit::empty(), drop_master)
        .with("GET_MAGIC", drm::IOCTL_GET_MAGIC, Permit::empty(), get_magic)
        .with("AUTH_MAGIC", drm::IOCTL_AUTH_MAGIC, Permit::MASTER, auth_magic)
}

fn set_master<D: Driver>(request: &mut Request<'_, '_, D>) -> Result<(), Error> {
    let file = request.file;
    file.membership().set_master(file.device().masters())
}

fn drop_master<D: Driver>(request: &mut Request<'_, '_, D>) -> Result<(), Error> {
    let file = request.file;
    file.membership().drop_master(file.device().masters())
}

fn get_magic<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::Auth) -> Result<(), Error> {
    args.magic = request.file.membership().magic()?;
    Ok(())
}

fn auth_magic<D: Driver>(request: &mut Request<'_, '_, D>, args: &mut drm::Auth) -> Result<(), Error> {
    request.file.membership().authenticate(args.magic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(masters: &Masters) -> Membership {
        Membership::open(masters, Node::Primary, false)
    }

    #[test]
    fn the_first_file_of_the_primary_node_is_master_and_the_next_is_not() {
        let masters = Masters::default();
        let render = Membership::open(&masters, Node::Render, false);
        let (first, second) = (open(&masters), open(&masters));
        assert!(first.is_current_master(&masters) && first.is_authenticated());
        assert!(!second.is_current_master(&masters) && !second.is_authenticated());
        assert!(!render.is_current_master(&masters));
        assert!(second.set_master(&masters).is_err());
    }

    #[test]
    fn a_magic_stays_the_same_and_authenticates_once() {
        let masters = Masters::default();
        let (master, slave) = (open(&masters), open(&masters));
        let magic = slave.magic().unwrap();
        assert!(magic > 0);
        assert!(!slave.is_authenticated());
        master.authenticate(magic).unwrap();
        assert!(slave.is_authenticated());
        assert!(master.authenticate(magic).is_err());
        assert_eq!(slave.magic().unwrap(), magic);
    }

    #[test]
    fn magics_are_unique_among_open_files() {
        let masters = Masters::default();
        let _master = open(&masters);
        let files: Vec<_> = (0..3).map(|_| open(&masters)).collect();
        let magics: Vec<_> = files.iter().map(|file| file.magic().unwrap()).collect();
        assert_eq!(magics, [1, 2, 3]);
        files[1].close(&masters);
        assert_eq!(open(&masters).magic().unwrap(), 2);
    }

    #[test]
    fn a_master_that_dropped_it_can_take_it_again_and_another_only_in_between() {
        let masters = Masters::default();
        let first = open(&masters);
        first.drop_master(&masters).unwrap();
        assert!(first.drop_master(&masters).is_err());
        let second = open(&masters);
        assert!(second.is_current_master(&masters));
        assert!(first.set_master(&masters).is_err());
        second.close(&masters);
        first.set_master(&masters).unwrap();
        assert!(first.is_current_master(&masters));
    }
}
