//! Memory and semaphores shared with another process, as descriptors over a socket.
//!
//! The other process is a copy of this program (`--peer`) whose standard input is the socket. Each message is one packet:
//! words, and at most one descriptor.
//!
//! ```text
//! this process                                  peer
//!   make, fill, export ── import … + fd ──────▶  import, compare, write other bytes
//!   compare            ◀───────── ok ──────────
//! ```

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use ash::{ext, khr, vk};
use rustix::fs::{SeekFrom, seek};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::{Check, CheckFn, Outcome, missing, passed, skipped};
use crate::gpu::{Buffer, Choice, Context, Memory, PATIENCE, Semaphore, Source, map_shared};
use crate::pattern::{self, compare};

type Kind = vk::ExternalMemoryHandleTypeFlags;

const SIZE: u64 = 400_000;
/// The bytes of the first process and the second's answer.
const OURS: u64 = 101;
const THEIRS: u64 = 103;
/// Packets are shorter than this.
const PACKET: usize = 4096;

pub(super) fn checks() -> Vec<Check> {
    let check = |name: &str, run: CheckFn| Check { name: format!("sharing.{name}"), run };
    let local = vk::MemoryPropertyFlags::DEVICE_LOCAL;
    let visible = vk::MemoryPropertyFlags::HOST_VISIBLE;
    vec![
        check("dma_buf_local", Box::new(move |c, choice| both_ways(c, choice, Kind::DMA_BUF_EXT, local))),
        check("dma_buf_visible", Box::new(move |c, choice| both_ways(c, choice, Kind::DMA_BUF_EXT, visible))),
        check("opaque_local", Box::new(move |c, choice| both_ways(c, choice, Kind::OPAQUE_FD, local))),
        check("dma_buf_from_peer", Box::new(from_peer)),
        check("dma_buf_mapped_by_peer", Box::new(mapped_by_peer)),
        check("dma_buf_outlives_exporter", Box::new(outlives_exporter)),
        check("dma_buf_same_process", Box::new(|c, _| same_process(c))),
        check("timeline_with_peer", Box::new(timeline_with_peer)),
    ]
}

fn lacking(context: &Context, kind: Kind) -> Option<String> {
    match kind {
        Kind::DMA_BUF_EXT => {
            missing(context, &[khr::external_memory_fd::NAME, ext::external_memory_dma_buf::NAME])
        }
        _ => missing(context, &[khr::external_memory_fd::NAME]),
    }
}

fn both_ways(
    context: &Context,
    choice: &Choice,
    kind: Kind,
    wanted: vk::MemoryPropertyFlags,
) -> Result<Outcome> {
    if let Some(reason) = lacking(context, kind) {
        return skipped(reason);
    }
    let peer = Peer::start(choice)?;
    let shared = Shared::exportable(context, kind, wanted)?;
    upload(context, &shared.buffer, OURS)?;
    peer.ask(&shared.message("import", kind), Some(shared.memory.export(kind)?.as_fd()))?;
    compare_buffer(context, &shared.buffer, THEIRS, "what the other process wrote")?;
    passed(format!("{SIZE} bytes, memory type {}", shared.type_index))
}

fn from_peer(context: &Context, choice: &Choice) -> Result<Outcome> {
    if let Some(reason) = lacking(context, Kind::DMA_BUF_EXT) {
        return skipped(reason);
    }
    let peer = Peer::start(choice)?;
    let (answer, fd) = peer.ask("export", None)?;
    let fd = fd.context("the other process sent no descriptor")?;
    let allocation = answer.parse().with_context(|| format!("the other process answered `{answer}`"))?;
    let shared = Shared::imported(context, Kind::DMA_BUF_EXT, fd, allocation, None)?;
    compare_buffer(context, &shared.buffer, THEIRS, "what the other process exported")?;
    upload(context, &shared.buffer, OURS)?;
    peer.ask("compare", None)?;
    passed(format!("{SIZE} bytes"))
}

fn mapped_by_peer(context: &Context, choice: &Choice) -> Result<Outcome> {
    if let Some(reason) = lacking(context, Kind::DMA_BUF_EXT) {
        return skipped(reason);
    }
    let peer = Peer::start(choice)?;
    let shared = Shared::exportable(context, Kind::DMA_BUF_EXT, vk::MemoryPropertyFlags::HOST_VISIBLE)?;
    upload(context, &shared.buffer, OURS)?;
    let fd = shared.memory.export(Kind::DMA_BUF_EXT)?;
    peer.ask(&shared.message("map", Kind::DMA_BUF_EXT), Some(fd.as_fd()))?;
    compare_buffer(context, &shared.buffer, THEIRS, "what the other process wrote through its mapping")?;
    passed(format!("{SIZE} bytes through mmap of the descriptor"))
}

fn outlives_exporter(context: &Context, choice: &Choice) -> Result<Outcome> {
    if let Some(reason) = lacking(context, Kind::DMA_BUF_EXT) {
        return skipped(reason);
    }
    let peer = Peer::start(choice)?;
    let shared = Shared::exportable(context, Kind::DMA_BUF_EXT, vk::MemoryPropertyFlags::DEVICE_LOCAL)?;
    upload(context, &shared.buffer, OURS)?;
    let fd = shared.memory.export(Kind::DMA_BUF_EXT)?;
    let message = shared.message("import", Kind::DMA_BUF_EXT);
    let allocation = shared.memory.size();
    drop(shared);
    peer.ask(&message, Some(fd.as_fd()))?;
    drop(peer);
    // Nothing but the descriptor holds it now.
    let again = Shared::imported(context, Kind::DMA_BUF_EXT, fd, allocation, None)?;
    compare_buffer(context, &again.buffer, THEIRS, "imported back")?;
    passed("the memory stays while a descriptor does")
}

fn same_process(context: &Context) -> Result<Outcome> {
    if let Some(reason) = lacking(context, Kind::DMA_BUF_EXT) {
        return skipped(reason);
    }
    let original = Shared::exportable(context, Kind::DMA_BUF_EXT, vk::MemoryPropertyFlags::DEVICE_LOCAL)?;
    upload(context, &original.buffer, OURS)?;
    let fd = original.memory.export(Kind::DMA_BUF_EXT)?;
    let copy = Shared::imported(context, Kind::DMA_BUF_EXT, fd, original.memory.size(), None)?;
    compare_buffer(context, &copy.buffer, OURS, "through the import")?;
    upload(context, &copy.buffer, THEIRS)?;
    compare_buffer(context, &original.buffer, THEIRS, "through the original")?;
    drop(original);
    compare_buffer(context, &copy.buffer, THEIRS, "after the original has gone")?;
    passed("import into the device it came from")
}

fn timeline_with_peer(context: &Context, choice: &Choice) -> Result<Outcome> {
    if let Some(reason) = missing(context, &[khr::external_semaphore_fd::NAME]) {
        return skipped(reason);
    }
    let kind = vk::ExternalSemaphoreHandleTypeFlags::OPAQUE_FD;
    let peer = Peer::start(choice)?;
    let timeline = Semaphore::new(context, vk::SemaphoreType::TIMELINE, kind)?;
    let fd = timeline.export(kind)?;
    send(peer.socket.as_fd(), "timeline", Some(fd.as_fd()))?;
    timeline.signal(1)?;
    ensure!(timeline.wait(2, PATIENCE)?, "the other process does not signal 2");
    peer.answer()?;
    passed("signalled here, there, and seen on both sides")
}

/// A buffer in memory that is shared.
struct Shared {
    buffer: Buffer,
    memory: Memory,
    type_index: u32,
}

impl Shared {
    fn exportable(context: &Context, kind: Kind, wanted: vk::MemoryPropertyFlags) -> Result<Shared> {
        let buffer = Buffer::unbound(context, SIZE, Default::default(), kind)?;
        let requirements = buffer.requirements();
        let type_index = context
            .memory_type(requirements.memory_type_bits, wanted)
            .context("no memory type suits the shared buffer")?;
        Shared::bound(context, buffer, requirements.size, type_index, Source::Exportable(kind))
    }

    /// Memory that comes as a descriptor; of a type of the exporter's where the kind of descriptor asks for it.
    fn imported(
        context: &Context,
        kind: Kind,
        fd: OwnedFd,
        allocation: u64,
        exporters_type: Option<u32>,
    ) -> Result<Shared> {
        let buffer = Buffer::unbound(context, SIZE, Default::default(), kind)?;
        let type_index = match exporters_type {
            Some(index) => index,
            None => {
                let allowed = buffer.requirements().memory_type_bits & context.importable_types(&fd)?;
                context
                    .memory_type(allowed, vk::MemoryPropertyFlags::empty())
                    .context("no memory type suits the imported buffer")?
            }
        };
        Shared::bound(context, buffer, allocation, type_index, Source::Descriptor(fd, kind))
    }

    fn bound(
        context: &Context,
        buffer: Buffer,
        allocation: u64,
        type_index: u32,
        source: Source<'_>,
    ) -> Result<Shared> {
        let dedicated = vk::MemoryDedicatedAllocateInfo::default().buffer(buffer.handle());
        let memory = Memory::with_dedication(context, allocation, type_index, source, dedicated)?;
        buffer.bind(&memory, 0)?;
        Ok(Shared { buffer, memory, type_index })
    }

    fn message(&self, verb: &str, kind: Kind) -> String {
        format!("{verb} {} {} {}", kind.as_raw(), self.memory.size(), self.type_index)
    }
}

fn upload(context: &Context, buffer: &Buffer, seed: u64) -> Result<()> {
    let source = Buffer::holding(context, &pattern::bytes(seed, usize::try_from(SIZE)?))?;
    context.run(|commands| commands.copy_all(&source, buffer))
}

fn compare_buffer(context: &Context, buffer: &Buffer, seed: u64, what: &str) -> Result<()> {
    let target = Buffer::staging(context, SIZE)?;
    context.run(|commands| commands.copy_all(buffer, &target))?;
    compare(what, &pattern::bytes(seed, usize::try_from(SIZE)?), &target.contents()?)
}

/// The other process.
struct Peer {
    child: Child,
    socket: OwnedFd,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The end of the socket ends it; none may outlive the check.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

impl Peer {
    fn start(choice: &Choice) -> Result<Peer> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .context("socketpair")?;
        let mut command = Command::new(std::env::current_exe().context("can't find this program")?);
        command.arg("--peer").stdin(Stdio::from(theirs)).stdout(Stdio::null());
        if let Some(device) = &choice.device {
            command.args(["--device", device]);
        }
        if choice.any_queue {
            command.arg("--any-queue");
        }
        let child = command.spawn().context("can't start the other process")?;
        Ok(Peer { child, socket: ours })
    }

    /// Sends a request and gives the words of the answer after `ok`, with its descriptor.
    fn ask(&self, message: &str, fd: Option<BorrowedFd<'_>>) -> Result<(String, Option<OwnedFd>)> {
        send(self.socket.as_fd(), message, fd).context("can't send to the other process")?;
        self.answer()
    }

    fn answer(&self) -> Result<(String, Option<OwnedFd>)> {
        let Some((answer, fd)) = receive(self.socket.as_fd())? else {
            bail!("the other process ended without an answer");
        };
        match answer.strip_prefix("ok") {
            Some(rest) => Ok((rest.trim().to_owned(), fd)),
            None => bail!("the other process: {answer}"),
        }
    }
}

/// The other process's part: answers requests that come over standard input until it is closed.
///
/// # Errors
/// When the device can't be opened or the socket breaks.
pub(crate) fn serve(choice: &Choice) -> Result<()> {
    let stdin = io::stdin();
    let socket = stdin.as_fd();
    let mut server = Server { context: Context::open(choice)?, exported: None };
    while let Some((message, fd)) = receive(socket)? {
        let answer = server.handle(&message, fd);
        match &answer {
            Ok((words, fd)) => send(socket, &format!("ok {words}"), fd.as_ref().map(AsFd::as_fd))?,
            Err(error) => send(socket, &format!("{error:#}"), None)?,
        }
    }
    Ok(())
}

struct Server {
    context: Context,
    exported: Option<Shared>,
}

impl Server {
    fn handle(&mut self, message: &str, fd: Option<OwnedFd>) -> Result<(String, Option<OwnedFd>)> {
        let mut words = message.split(' ');
        let verb = words.next().unwrap_or_default();
        let numbers =
            words.map(str::parse).collect::<Result<Vec<u64>, _>>().context("a number was expected")?;
        match (verb, &numbers[..], fd) {
            ("import", &[kind, allocation, type_index], Some(fd)) => {
                self.import(
                    Kind::from_raw(u32::try_from(kind)?),
                    allocation,
                    u32::try_from(type_index)?,
                    fd,
                )?;
            }
            ("map", &[_, allocation, _], Some(fd)) => map(&fd, allocation)?,
            ("export", [], None) => return self.export(),
            ("compare", [], None) => {
                let shared = self.exported.as_ref().context("nothing was exported")?;
                compare_buffer(&self.context, &shared.buffer, OURS, "what the importer wrote")?;
            }
            ("timeline", [], Some(fd)) => self.timeline(fd)?,
            _ => bail!("`{message}` is not understood"),
        }
        Ok((String::new(), None))
    }

    fn import(&self, kind: Kind, allocation: u64, type_index: u32, fd: OwnedFd) -> Result<()> {
        let exporters_type = (kind != Kind::DMA_BUF_EXT).then_some(type_index);
        let shared = Shared::imported(&self.context, kind, fd, allocation, exporters_type)?;
        compare_buffer(&self.context, &shared.buffer, OURS, "what was imported")?;
        upload(&self.context, &shared.buffer, THEIRS)
    }

    fn export(&mut self) -> Result<(String, Option<OwnedFd>)> {
        let kind = Kind::DMA_BUF_EXT;
        let shared = Shared::exportable(&self.context, kind, vk::MemoryPropertyFlags::DEVICE_LOCAL)?;
        upload(&self.context, &shared.buffer, THEIRS)?;
        let fd = shared.memory.export(kind)?;
        let allocation = shared.memory.size().to_string();
        self.exported = Some(shared);
        Ok((allocation, Some(fd)))
    }

    fn timeline(&self, fd: OwnedFd) -> Result<()> {
        let timeline = Semaphore::timeline(&self.context)?;
        let kind = vk::ExternalSemaphoreHandleTypeFlags::OPAQUE_FD;
        timeline.import(fd, kind, vk::SemaphoreImportFlags::empty())?;
        ensure!(timeline.wait(1, PATIENCE)?, "the first process does not signal 1");
        timeline.signal(2)
    }
}

/// Reads and writes the memory of a dma-buf with no device at all.
fn map(fd: &OwnedFd, allocation: u64) -> Result<()> {
    let size = seek(fd, SeekFrom::End(0)).context("seeking to the end of the dma-buf")?;
    ensure!(size >= allocation, "the dma-buf says it has {size} bytes, the allocation has {allocation}");
    let len = usize::try_from(SIZE)?;
    let mapping = map_shared(fd.as_fd(), usize::try_from(allocation)?)?;
    compare("what was mapped", &pattern::bytes(OURS, len), &mapping.read(0, len)?)?;
    mapping.write(0, &pattern::bytes(THEIRS, len))
}

fn send(socket: BorrowedFd<'_>, message: &str, fd: Option<BorrowedFd<'_>>) -> Result<()> {
    ensure!(message.len() <= PACKET, "a message of {} bytes is too long", message.len());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() {
        ensure!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)), "no room for a descriptor");
    }
    sendmsg(socket, &[IoSlice::new(message.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL)
        .context("sendmsg")?;
    Ok(())
}

/// The next message; nothing at the end.
fn receive(socket: BorrowedFd<'_>) -> Result<Option<(String, Option<OwnedFd>)>> {
    let mut bytes = [0; PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    });
    let count = received.context("recvmsg")?.bytes;
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((count > 0).then(|| (String::from_utf8_lossy(&bytes[..count]).into_owned(), fd)))
}
