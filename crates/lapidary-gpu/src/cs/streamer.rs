//! The instruction pointer of a context: fetch, nesting, waiting, resuming.

use crate::{
    blt::Blit,
    bus::{Bus, GpuVa, STEP_BYTES, Work},
    class::EngineClass,
    cs::{
        CsError,
        decode::{BlitOp, Command, Decoded, Mi, decode},
        mi::{Core, Flow, Stop},
        regs::Registers,
    },
};

/// Most commands that one step executes; short enough to acknowledge a TLB invalidation promptly.
const STEP_COMMANDS: usize = 64;

/// Most levels of nested batches that wait for one to return.
const MAX_LEVELS: usize = 8;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Commands ran, or a part of a long one. Step again.
    Ran,
    /// The batch jumped backward, and since its last jump backward it executed neither an atomic nor a copy nor a fill: it looks like
    /// somebody waiting in a loop. An engine may slow down when that repeats.
    JumpedBack,
    /// The batch waits at a semaphore. Nothing was consumed; the next step looks again.
    Waiting,
    /// The batch has ended. Steps answer this until the next [`Streamer::start`].
    BatchEnd,
}

/// A context's command streamer: registers, where it is in its batches, and a blit under way.
#[derive(Debug)]
pub struct Streamer {
    core: Core,
    place: Option<GpuVa>,
    returns: Vec<GpuVa>,
    blit: Option<Blit>,
    /// Whether work was done since the last jump backward.
    worked: bool,
    /// The command being executed; kept to save allocations.
    command: Vec<u32>,
    bytes: Vec<u8>,
}

impl Streamer {
    /// A streamer of a new context on an engine of `class`, with nothing to execute.
    pub fn new(class: EngineClass) -> Self {
        Self {
            core: Core::new(class),
            place: None,
            returns: Vec::new(),
            blit: None,
            worked: false,
            command: Vec::new(),
            bytes: Vec::new(),
        }
    }

    /// Begins a batch. What was left of the last one is forgotten; registers keep their values.
    pub fn start(&mut self, batch: GpuVa) {
        self.place = Some(batch);
        self.returns.clear();
        self.blit = None;
        self.worked = false;
        self.core.predicated_off = false;
    }

    /// Address of the command that is executed next, or is being executed. `None` when the batch has ended.
    pub fn place(&self) -> Option<GpuVa> {
        self.place
    }

    /// The context's registers.
    pub fn registers(&self) -> &Registers {
        &self.core.registers
    }

    /// Executes a bounded piece: some commands, or at most [`STEP_BYTES`] of a blit.
    ///
    /// # Errors
    /// See [`CsError`]. Commands before the failing one have taken effect.
    pub fn step(&mut self, bus: &(impl Bus + ?Sized)) -> Result<Progress, CsError> {
        for _ in 0..STEP_COMMANDS {
            let Some(place) = self.place else { return Ok(Progress::BatchEnd) };
            if self.blit.is_some() {
                self.continue_blit(place, bus)?;
                return Ok(Progress::Ran);
            }
            match self.execute_one(place, bus)? {
                Some(Progress::Ran) | None => {}
                Some(progress) => return Ok(progress),
            }
            if self.blit.is_some() {
                return Ok(Progress::Ran);
            }
        }
        Ok(Progress::Ran)
    }

    /// Executes the command at `place`, or begins it if it is a blit.
    fn execute_one(&mut self, place: GpuVa, bus: &(impl Bus + ?Sized)) -> Result<Option<Progress>, CsError> {
        let header = bus.read_u32(place)?;
        let stopped = |stop| match stop {
            Stop::Fault(fault) => CsError::Fault(fault),
            Stop::Invalid(reason) => CsError::InvalidCommand { dword: header, address: place, reason },
        };
        let Decoded { command, dwords } =
            decode(header, self.core.class).ok_or(Stop::Invalid("unknown")).map_err(stopped)?;
        let next = place.offset(4 * u64::from(dwords));

        let flow = match command {
            Command::Mi(mi) => {
                self.fetch(place, header, dwords, bus)?;
                self.worked |= matches!(mi, Mi::Atomic | Mi::CopyMemMem);
                if mi == Mi::Skipped {
                    bus.count(Work::SkippedState);
                }
                self.core.execute(mi, &self.command, bus).map_err(stopped)?
            }
            Command::PipeControl => {
                self.fetch(place, header, dwords, bus)?;
                self.core.pipe_control(&self.command, bus).map_err(stopped)?;
                Flow::Next
            }
            Command::Blit(_) if self.core.predicated_off => Flow::Next,
            Command::Blit(BlitOp::CtrlSurfCopy) => {
                bus.count(Work::SkippedState);
                Flow::Next
            }
            Command::Blit(op) => {
                self.fetch(place, header, dwords, bus)?;
                let sources_y = self.core.registers.legacy_y_tiling();
                self.blit =
                    Blit::new(op, &self.command, sources_y).map_err(Stop::Invalid).map_err(stopped)?;
                self.worked = true;
                if self.blit.is_some() {
                    return Ok(None);
                }
                Flow::Next
            }
            Command::State => {
                bus.count(Work::SkippedState);
                Flow::Next
            }
            Command::Draw => {
                bus.count(Work::SkippedDraw);
                Flow::Next
            }
            Command::Compute => {
                bus.count(Work::SkippedCompute);
                Flow::Next
            }
        };
        if flow == Flow::Wait {
            return Ok(Some(Progress::Waiting));
        }
        bus.count(Work::Command);
        self.follow(flow, place, next).map_err(stopped)
    }

    /// Moves the instruction pointer from `place`.
    fn follow(&mut self, flow: Flow, place: GpuVa, next: GpuVa) -> Result<Option<Progress>, Stop> {
        let target = match flow {
            Flow::Next | Flow::Wait => {
                self.place = Some(next);
                return Ok(None);
            }
            Flow::Jump(target) => target,
            Flow::Call(target) => {
                if self.returns.len() == MAX_LEVELS {
                    return Err(Stop::Invalid("batches nested too deeply"));
                }
                self.returns.push(next);
                target
            }
            Flow::Return => match self.returns.pop() {
                Some(back) => {
                    self.place = Some(back);
                    return Ok(None);
                }
                None => return Ok(Some(self.end())),
            },
            Flow::End => return Ok(Some(self.end())),
        };
        self.place = Some(target);
        if target > place {
            return Ok(None);
        }
        let worked = std::mem::take(&mut self.worked);
        Ok(Some(if worked { Progress::Ran } else { Progress::JumpedBack }))
    }

    fn end(&mut self) -> Progress {
        self.place = None;
        self.returns.clear();
        Progress::BatchEnd
    }

    fn continue_blit(&mut self, place: GpuVa, bus: &(impl Bus + ?Sized)) -> Result<(), CsError> {
        let Some(blit) = &mut self.blit else { return Ok(()) };
        if blit.run(bus, STEP_BYTES)? {
            self.place = Some(place.offset(blit.command_bytes()));
            self.blit = None;
            bus.count(Work::Command);
        }
        Ok(())
    }

    /// Reads the whole command into `self.command`.
    fn fetch(
        &mut self,
        place: GpuVa,
        header: u32,
        dwords: u32,
        bus: &(impl Bus + ?Sized),
    ) -> Result<(), CsError> {
        self.command.clear();
        self.command.push(header);
        let rest = dwords as usize - 1;
        if rest == 0 {
            return Ok(());
        }
        self.bytes.resize(4 * rest, 0);
        bus.read(place.offset(4), &mut self.bytes)?;
        let words = self.bytes.as_chunks::<4>().0;
        self.command.extend(words.iter().map(|&word| u32::from_le_bytes(word)));
        Ok(())
    }
}
