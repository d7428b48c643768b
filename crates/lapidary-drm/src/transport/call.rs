//! A call in progress: what it knows of its caller, and what it may ask of it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use lapidary::fence::Interrupt;
use lapidary_protocol::channel::{Identity, Kind, Op};

use super::channel::{Channel, Turns};
use super::registry::{Entry, identity_of};
use super::service::File;
use super::{ClientMemory, Errno, Process, Shared};

/// A client thread's call while the server carries it out.
///
/// Requests to the client ("upcalls") are answered by the very thread that made the call, which waits for the
/// call's end; each costs about as much as a call.
#[derive(Debug)]
pub struct Call<'a> {
    shared: &'a Arc<Shared>,
    process: &'a Arc<Process>,
    channel: &'a Channel,
    turns: &'a mut Turns,
    arg: u64,
    fd: i32,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        shared: &'a Arc<Shared>,
        process: &'a Arc<Process>,
        channel: &'a Channel,
        turns: &'a mut Turns,
        (fd, arg): (i32, u64),
    ) -> Self {
        Self { shared, process, channel, turns, arg, fd }
    }

    /// The caller's process.
    pub fn process(&self) -> &Arc<Process> {
        self.process
    }

    /// The caller's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The caller's memory.
    pub fn memory(&self) -> &Arc<ClientMemory> {
        self.process.memory()
    }

    /// Raised when the caller gets a signal or dies: give it to every wait, and return `EINTR` when it ends one.
    pub fn interrupt(&self) -> &Interrupt {
        self.channel.interrupt()
    }

    /// The third argument of the `ioctl` as the program gave it: an address, or the value itself for commands that carry
    /// no structure.
    pub fn arg_value(&self) -> u64 {
        self.arg
    }

    /// The number of the descriptor the call is made on, in the caller.
    pub fn fd(&self) -> i32 {
        self.fd
    }

    /// A copy of the caller's descriptor `fd`.
    ///
    /// # Errors
    /// `EBADF` if the caller has none.
    pub fn take_fd(&mut self, fd: i32) -> Result<OwnedFd, Errno> {
        if fd < 0 {
            return Err(Errno::BADF);
        }
        self.upcall(Kind::SendFd, 0, [fd as u64, 0, 0, 0, 0, 0])?;
        self.channel.receive_fd()
    }

    /// The file that the caller's descriptor `fd` stands for.
    ///
    /// # Errors
    /// `EBADF` if the caller has no such descriptor; `EINVAL` if it is not one of this server's.
    pub fn file_of(&mut self, fd: i32) -> Result<Arc<dyn File>, Errno> {
        let fd = self.take_fd(fd)?;
        self.file_of_owned(&fd)
    }

    /// The file that a descriptor taken from the caller stands for.
    ///
    /// # Errors
    /// `EINVAL` if it is not one of this server's.
    pub fn file_of_owned(&self, fd: impl AsFd) -> Result<Arc<dyn File>, Errno> {
        let entry = self.shared.registry().find_fd(fd).ok_or(Errno::INVAL)?;
        self.process.prove(&entry);
        Ok(entry.file().clone())
    }

    /// Gives the caller a new descriptor that stands for `file`, and returns its number.
    ///
    /// # Errors
    /// `EMFILE` if the caller has no number left; whatever the system refuses.
    pub fn install_file(&mut self, file: Arc<dyn File>, cloexec: bool) -> Result<i32, Errno> {
        let name = file.name();
        self.install_named(file, &name, cloexec)
    }

    pub(super) fn install_named(
        &mut self,
        file: Arc<dyn File>,
        name: &str,
        cloexec: bool,
    ) -> Result<i32, Errno> {
        let (entry, fd) = self.shared.registry().open(file, name)?;
        self.process.prove(&entry);
        self.install_fd(fd, cloexec)
    }

    /// Gives the caller a descriptor of `memfd` that stands for `file`: a dma-buf. Reads, seeks, maps natively; ioctls
    /// reach `file`. While any such descriptor or mapping exists, the same memfd must come with the same file.
    /// The memfd is sealed against changes of its size.
    ///
    /// # Errors
    /// `EPERM` if it was made without sealing, `EEXIST` if it stands for another file, `EMFILE`, or what the
    /// system refuses.
    pub fn install_dma_buf(
        &mut self,
        memfd: &Arc<OwnedFd>,
        file: Arc<dyn File>,
        writable: bool,
        cloexec: bool,
    ) -> Result<i32, Errno> {
        let (entry, fd) = self.shared.memfds().open(self.shared.registry(), memfd, file, writable)?;
        self.process.prove(&entry);
        self.install_fd(fd, cloexec)
    }

    /// Gives the caller any descriptor, and returns its number.
    ///
    /// # Errors
    /// `EMFILE` if the caller has no number left.
    pub fn install_fd(&mut self, fd: OwnedFd, cloexec: bool) -> Result<i32, Errno> {
        self.hand_over(Kind::ReceiveFd, 0, [u64::from(cloexec), 0, 0, 0, 0, 0]);
        let sent = self.channel.send_fd(fd.as_fd());
        drop(fd);
        if let Err(error) = sent {
            // The caller waits for a message that can't come.
            self.channel.close();
            return Err(error);
        }
        let number = self.answer()?;
        i32::try_from(number).map_err(|_| Errno::BADF)
    }

    /// Has the caller make a system call, and returns its value. Pointers are the caller's.
    ///
    /// # Errors
    /// What the system call failed with.
    pub fn syscall(&mut self, number: i64, args: [u64; 6]) -> Result<i64, Errno> {
        self.upcall(Kind::Syscall, number, args)
    }

    fn upcall(&mut self, kind: Kind, result: i64, args: [u64; 6]) -> Result<i64, Errno> {
        self.hand_over(kind, result, args);
        self.answer()
    }

    fn hand_over(&mut self, kind: Kind, result: i64, args: [u64; 6]) {
        self.turns.give(self.channel, kind, result, args);
    }

    fn answer(&mut self) -> Result<i64, Errno> {
        let request = self.turns.take(self.channel)?;
        if request.op != Op::Answer {
            self.channel.close();
            return Err(Errno::PROTO);
        }
        let value = request.arg.cast_signed();
        // The kernel's convention for results of system calls: the last page of values are errors.
        match value {
            -4095..=-1 => Err(Errno::from_raw_os_error(-value as i32)),
            _ => Ok(value),
        }
    }

    /// Has the caller show the descriptor it makes this call on, to prove that it has the file it names.
    pub(super) fn prove(&mut self, claimed: Identity) -> Option<Arc<Entry>> {
        let entry = self.shared.registry().find(claimed)?;
        let fd = self.take_fd(self.fd).ok()?;
        if identity_of(&fd) != Some(claimed) {
            return None;
        }
        self.process.prove(&entry);
        Some(entry)
    }
}
