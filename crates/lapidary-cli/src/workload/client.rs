//! One client process of the workload: what it does to its device, and how it checks every byte.

use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::ClientArgs;
use super::gpu::{Batch, Buffer, Gpu, Place};
use super::sys::Mapping;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Size of the buffers of the first phases.
const BUFFER: u64 = 4 * MIB;
/// Size of the buffers that over-commit memory.
const LARGE: u64 = 8 * MIB;
/// Where the phases map their buffers.
const SOURCE: u64 = 1 << 32;
const TARGET: u64 = 2 << 32;
const SPARSE: u64 = 3 << 32;
const LARGE_BASE: u64 = 4 << 32;

/// Runs the client named by `args`; prints a line for every step, which the coordinator counts.
pub(crate) fn main(args: &ClientArgs) -> Result<()> {
    let gpu = Gpu::open()?;
    let mut client = Client { gpu, seed: u64::from(args.index) + 1, checked: 0 };
    let places: &[Place] =
        if client.gpu.has_vram() { &[Place::System, Place::Vram] } else { &[Place::System] };
    for &from in places {
        for &to in places {
            client.copy_between(from, to).with_context(|| format!("copying from {from:?} to {to:?}"))?;
            client.step("copy")?;
        }
    }
    client.sparse().context("sparse ranges and partial unbinds")?;
    client.step("sparse")?;
    client
        .share(&args.meet, args.index.is_multiple_of(2))
        .context("sharing a buffer with another process")?;
    client.step("share")?;
    client.over_commit(args.bytes)?;
    client.step("done")
}

/// Steps that one client reports, for a budget of `bytes` on a device with `places` kinds of memory.
pub(super) fn steps(bytes: u64, places: u64) -> u64 {
    places * places + 3 + 2 * (bytes / LARGE)
}

struct Client {
    gpu: Gpu,
    seed: u64,
    checked: u64,
}

/// A buffer that this process has mapped and the GPU too.
struct Bound {
    buffer: Buffer,
    map: Mapping,
    address: u64,
}

impl Client {
    /// Tells the coordinator of one more step; the number is of bytes checked so far.
    fn step(&self, phase: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{phase} {}", self.checked)
            .and_then(|()| out.flush())
            .context("the coordinator is gone")
    }

    fn bound(&self, place: Place, size: u64, address: u64, shared: bool) -> Result<Bound> {
        let buffer = self.gpu.create(place, size, shared)?;
        let map = self.gpu.map(buffer)?;
        self.gpu.bind(buffer, 0, address, buffer.size)?;
        Ok(Bound { buffer, map, address })
    }

    fn release(&self, bound: Bound) -> Result<()> {
        self.gpu.unbind(bound.address, bound.buffer.size)?;
        self.gpu.close(bound.buffer)
    }

    fn fill(&self, map: &Mapping, seed: u64) {
        (0..map.words()).for_each(|index| map.write(index, pattern(seed, index as u64)));
    }

    fn expect(
        &mut self,
        map: &Mapping,
        words: std::ops::Range<u64>,
        want: impl Fn(u64) -> u64,
    ) -> Result<()> {
        self.checked += (words.end - words.start) * 8;
        for index in words {
            let (got, want) = (map.read(index as usize), want(index));
            ensure!(got == want, "byte {:#x} holds {got:#018x}, expected {want:#018x}", index * 8);
        }
        Ok(())
    }

    /// Whole and odd copies through the copy engine, each byte compared.
    fn copy_between(&mut self, from: Place, to: Place) -> Result<()> {
        let seed = self.seed;
        let source = self.bound(from, BUFFER, SOURCE, false)?;
        let target = self.bound(to, BUFFER, TARGET, false)?;
        self.fill(&source.map, seed);
        self.gpu.run(&Batch::default().copy(SOURCE, TARGET, BUFFER).end())?;
        self.expect(&target.map, 0..BUFFER / 8, |index| pattern(seed, index))?;

        // Odd offsets and an odd length: every byte of the target is either the old one or its source's.
        let (skip, shift, len) = (13, 4099, 300_001);
        self.gpu.run(&Batch::default().copy(SOURCE + skip, TARGET + shift, len).end())?;
        self.expect(&target.map, 0..MIB / 8, |index| {
            u64::from_le_bytes(std::array::from_fn(|byte| {
                let at = index * 8 + byte as u64;
                let copied = (shift..shift + len).contains(&at);
                pattern_byte(seed, if copied { at - shift + skip } else { at })
            }))
        })?;
        self.release(source)?;
        self.release(target)
    }

    /// A sparse range, mappings inside it, and pieces of them unmapped and replaced.
    fn sparse(&mut self) -> Result<()> {
        let (range, hole) = (16 * MIB, 4 * MIB);
        let inner = SPARSE + hole;
        let seed = self.seed << 8;
        let place = if self.gpu.has_vram() { Place::Vram } else { Place::System };
        let data = self.gpu.create(place, MIB, false)?;
        let data_map = self.gpu.map(data)?;
        self.fill(&data_map, seed);
        let staging = self.bound(Place::System, 2 * MIB, TARGET, false)?;

        // Reads of a null range are zero on both sides of what is mapped inside it.
        self.gpu.bind_null(SPARSE, range)?;
        self.gpu.bind(data, 0, inner, MIB)?;
        let words = |bytes: u64| bytes / 8;
        let margin = 512 * KIB;
        self.fill(&staging.map, !0);
        self.gpu.run(&Batch::default().copy(inner - margin, TARGET, 2 * MIB).end())?;
        self.expect(&staging.map, 0..words(2 * MIB), |index| {
            let at = index * 8;
            if (margin..margin + MIB).contains(&at) { pattern(seed, words(at - margin)) } else { 0 }
        })?;

        // Writes to it vanish.
        self.gpu.run(&Batch::default().copy(inner, SPARSE, MIB).copy(SPARSE, TARGET, MIB).end())?;
        self.expect(&staging.map, 0..words(MIB), |_| 0)?;

        // The middle of the mapping becomes null again; its front is unmapped and mapped to the buffer's end.
        let quarter = MIB / 4;
        self.gpu.bind_null(inner + quarter, 2 * quarter)?;
        self.gpu.unbind(inner, quarter)?;
        self.gpu.bind(data, 3 * quarter, inner, quarter)?;
        self.gpu.run(&Batch::default().copy(inner, TARGET, MIB).end())?;
        self.expect(&staging.map, 0..words(MIB), |index| match index * 8 / quarter {
            0 => pattern(seed, index + words(3 * quarter)),
            3 => pattern(seed, index),
            _ => 0,
        })?;
        self.gpu.unbind(SPARSE, range)?;
        self.gpu.close(data)?;
        self.release(staging)
    }

    /// Gives a buffer to the partner process, which copies it, inverts it and gives it back.
    fn share(&mut self, meet: &Path, leader: bool) -> Result<()> {
        if leader {
            let listener =
                UnixListener::bind(meet).with_context(|| format!("can't listen at {}", meet.display()))?;
            let shared = self.bound(Place::System, BUFFER, SOURCE, true)?;
            let seed = self.seed << 16;
            shared.map.write(0, 0);
            self.fill(&shared.map, seed);
            let (stream, _) = listener.accept().context("the partner did not come")?;
            send_buffer(&stream, &self.gpu.export(shared.buffer)?, seed)?;
            receive_word(&stream)?;
            // The partner wrote through its own mapping; the GPU's copy here must see the same bytes.
            let target = self.bound(Place::System, BUFFER, TARGET, false)?;
            self.gpu.run(&Batch::default().copy(SOURCE, TARGET, BUFFER).end())?;
            self.expect(&target.map, 0..BUFFER / 8, |index| !pattern(seed, index))?;
            self.release(target)?;
            return self.release(shared);
        }
        let stream = connect(meet)?;
        let (fd, seed) = receive_buffer(&stream)?;
        let buffer = self.gpu.import(&fd, BUFFER)?;
        self.gpu.bind(buffer, 0, SOURCE, BUFFER)?;
        let place = if self.gpu.has_vram() { Place::Vram } else { Place::System };
        let target = self.bound(place, BUFFER, TARGET, false)?;
        self.gpu.run(&Batch::default().copy(SOURCE, TARGET, BUFFER).end())?;
        self.expect(&target.map, 0..BUFFER / 8, |index| pattern(seed, index))?;
        for index in 0..target.map.words() {
            target.map.write(index, !target.map.read(index));
        }
        self.gpu.run(&Batch::default().copy(TARGET, SOURCE, BUFFER).end())?;
        (&stream).write_all(&1u64.to_le_bytes()).context("the partner is gone")?;
        self.release(target)?;
        self.gpu.unbind(SOURCE, BUFFER)?;
        self.gpu.close(buffer)
    }

    /// Fills more buffers than the device's memory holds, then reads each one back, last first.
    fn over_commit(&mut self, bytes: u64) -> Result<()> {
        let place = if self.gpu.has_vram() { Place::Vram } else { Place::System };
        let staging = self.bound(Place::System, LARGE, TARGET, false)?;
        let count = bytes / LARGE;
        let tag = |index: u64, seed: u64| (seed as u32) << 24 | index as u32 | 0x00c0_0000;
        let mut buffers = Vec::new();
        for index in 0..count {
            let address = LARGE_BASE + index * LARGE;
            let buffer = self.gpu.create(place, LARGE, false)?;
            self.gpu.bind(buffer, 0, address, LARGE)?;
            self.gpu.run(&Batch::default().fill(address, LARGE, tag(index, self.seed)).end())?;
            buffers.push((buffer, address));
            self.step("fill")?;
        }
        for (index, (buffer, address)) in buffers.into_iter().enumerate().rev() {
            self.gpu.run(&Batch::default().copy(address, TARGET, LARGE).end())?;
            let word = u64::from(tag(index as u64, self.seed));
            self.expect(&staging.map, 0..LARGE / 8, |_| word << 32 | word).with_context(|| {
                format!("reading back buffer {index} of {count} after over-committing memory")
            })?;
            self.gpu.unbind(address, LARGE)?;
            self.gpu.close(buffer)?;
            self.step("check")?;
        }
        self.release(staging)
    }
}

/// Word `index` of the test pattern `seed`: splitmix64, so that no two places look alike.
fn pattern(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn pattern_byte(seed: u64, at: u64) -> u8 {
    pattern(seed, at / 8).to_le_bytes()[(at % 8) as usize]
}

fn connect(meet: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(meet) {
            Ok(stream) => return Ok(stream),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(error).context("the partner process did not come up"),
        }
    }
}

fn send_buffer(stream: &UnixStream, fd: &OwnedFd, seed: u64) -> Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [fd.as_fd()];
    ensure!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "no room for a descriptor");
    sendmsg(stream, &[std::io::IoSlice::new(&seed.to_le_bytes())], &mut control, SendFlags::empty())
        .context("can't send the buffer")?;
    Ok(())
}

fn receive_buffer(stream: &UnixStream) -> Result<(OwnedFd, u64)> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut seed = [0; 8];
    let got =
        recvmsg(stream, &mut [std::io::IoSliceMut::new(&mut seed)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .context("can't receive the buffer")?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    match fd {
        Some(fd) if got.bytes == seed.len() => Ok((fd, u64::from_le_bytes(seed))),
        _ => bail!("the partner ended before it sent its buffer"),
    }
}

fn receive_word(mut stream: &UnixStream) -> Result<u64> {
    let mut word = [0; 8];
    std::io::Read::read_exact(&mut stream, &mut word).context("the partner ended early")?;
    Ok(u64::from_le_bytes(word))
}
