//! A GPU with some memory, and an assembler for the few commands that tests need.

// Each test binary uses its part.
#![allow(dead_code, unreachable_pub)]

use std::sync::{Arc, mpsc};

use lapidary::fence::{Deadline, Fence, FenceError, Interrupt, Timeline};
use lapidary_gpu::{
    Context, ContextEvents, EngineClass, EngineId, Gpu, GpuConfig, GpuVa, PendingFault, Priority, Submission,
    fault::{BanReason, JobReport},
    memory::{HostMemory, PhysAddr, SharedRegion},
    pagetable::{AddressSpace, PteAttrs, Target},
};

pub const RENDER: EngineId = EngineId { class: EngineClass::Render, instance: 0 };
pub const COPY: EngineId = EngineId { class: EngineClass::Copy, instance: 0 };

/// Bytes of a rig's memory, and where it is mapped.
pub const SIZE: u64 = 4 << 20;
pub const BASE: u64 = 0x10_0000_0000;

/// Attributes of an ordinary mapping.
pub fn rw() -> PteAttrs {
    PteAttrs::default()
}

/// A GPU, an address space, and device memory at [`BASE`] in it.
pub struct Rig {
    pub gpu: Gpu,
    pub space: Arc<AddressSpace>,
    pub memory: Arc<SharedRegion>,
    pub timeline: Timeline,
    /// Whether the test forgets an invalidation on purpose.
    pub forgetful: bool,
}

/// Every use of a translation that nobody invalidated fails its test.
impl Drop for Rig {
    fn drop(&mut self) {
        if !self.forgetful && !std::thread::panicking() {
            assert_eq!(self.gpu.stale_hits(), []);
        }
    }
}

impl Rig {
    pub fn new() -> Self {
        Self::with(GpuConfig::default())
    }

    pub fn with(config: GpuConfig) -> Self {
        let config = GpuConfig { tlb_check: true, ..config };
        let gpu = Gpu::new(config).expect("a GPU");
        let space = gpu.create_space(false).expect("an address space");
        let memory = Arc::new(SharedRegion::heap(SIZE as usize));
        gpu.memory().attach(PhysAddr::vram(0), memory.clone(), 0, SIZE).expect("free device memory");
        space.map(GpuVa::new(BASE), SIZE, Target::Memory(PhysAddr::vram(0)), rw()).expect("a free range");
        Self { gpu, space, memory, timeline: Timeline::new("test"), forgetful: false }
    }

    pub fn context(&self, engine: EngineId) -> Context {
        self.context_with(engine, Priority::Normal, Arc::new(()))
    }

    pub fn context_with(
        &self,
        engine: EngineId,
        priority: Priority,
        events: Arc<dyn ContextEvents>,
    ) -> Context {
        self.gpu.create_context(engine, Arc::clone(&self.space), priority, events).expect("an engine")
    }

    /// Writes a batch at `offset` of the memory, and returns its address.
    pub fn batch(&self, offset: u64, commands: &[&[u32]]) -> GpuVa {
        let bytes: Vec<u8> = commands.concat().iter().flat_map(|dword| dword.to_le_bytes()).collect();
        self.memory.write_at(offset, &bytes).expect("inside the memory");
        va(offset)
    }

    /// Submits a batch.
    pub fn run(&self, context: &Context, batch: GpuVa) -> Fence {
        let (fence, done) = self.timeline.next();
        context.submit(Submission::new(batch, done)).expect("an accepted job");
        fence
    }

    pub fn poke(&self, offset: u64, value: u32) {
        self.memory.write_at(offset, &value.to_le_bytes()).expect("inside the memory");
    }

    pub fn peek(&self, offset: u64) -> u32 {
        read_u32(&self.memory, offset)
    }

    /// Returns when the dword at `offset` is `value`.
    pub fn await_value(&self, offset: u64, value: u32) {
        while self.peek(offset) != value {
            std::thread::yield_now();
        }
    }
}

pub fn read_u32(memory: &SharedRegion, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    memory.read_at(offset, &mut bytes).expect("inside the memory");
    u32::from_le_bytes(bytes)
}

/// Waits for a fence, and says how it signalled.
pub fn outcome(fence: &Fence) -> Result<(), FenceError> {
    fence.wait(Deadline::never(), &Interrupt::none()).expect("an endless wait ends by the fence alone");
    fence.status().expect("a signalled fence")
}

/// The address of an offset in a rig's memory.
pub fn va(offset: u64) -> GpuVa {
    GpuVa::new(BASE + offset)
}

pub const END: [u32; 1] = [0x0a << 23];

fn split(va: GpuVa) -> (u32, u32) {
    (va.get() as u32, (va.get() >> 32) as u32)
}

pub fn store(va: GpuVa, value: u32) -> [u32; 4] {
    let (low, high) = split(va);
    [0x20 << 23 | 2, low, high, value]
}

pub fn jump(va: GpuVa) -> [u32; 3] {
    let (low, high) = split(va);
    [0x31 << 23 | 1 << 8 | 1, low, high]
}

/// Ends the batch when the dword at `va` is not `value`.
pub fn end_unless(va: GpuVa, value: u32) -> [u32; 4] {
    let (low, high) = split(va);
    [0x36 << 23 | 1 << 21 | 4 << 12 | 2, value, low, high]
}

/// Waits until the dword at `va` is `value`.
pub fn wait_for(va: GpuVa, value: u32) -> [u32; 5] {
    let (low, high) = split(va);
    [0x1c << 23 | 1 << 15 | 4 << 12 | 3, value, low, high, 0]
}

/// Copies `len` bytes on a copy engine.
pub fn copy(from: GpuVa, to: GpuVa, len: u32) -> [u32; 10] {
    let ((from_low, from_high), (to_low, to_high)) = (split(from), split(to));
    [2 << 29 | 0x5a << 22 | 8, len - 1, 0, 0, 0, from_low, from_high, to_low, to_high, 0]
}

/// What a context's events were.
#[derive(Debug)]
pub enum Event {
    Fault(PendingFault),
    Banned(BanReason),
    Completed(JobReport),
    Interrupt,
}

/// Sends a context's events to the test.
pub struct Recorder(mpsc::Sender<Event>);

impl Recorder {
    pub fn new() -> (Arc<Self>, mpsc::Receiver<Event>) {
        let (send, receive) = mpsc::channel();
        (Arc::new(Self(send)), receive)
    }

    fn record(&self, event: Event) {
        // A test that looks no more is no error; a fault then is dropped, which bans.
        let _ = self.0.send(event);
    }
}

impl ContextEvents for Recorder {
    fn fault(&self, fault: PendingFault) {
        self.record(Event::Fault(fault));
    }
    fn banned(&self, reason: &BanReason) {
        self.record(Event::Banned(*reason));
    }
    fn completed(&self, job: &JobReport) {
        self.record(Event::Completed(*job));
    }
    fn user_interrupt(&self) {
        self.record(Event::Interrupt);
    }
}
