//! Command buffers: recorded, submitted, waited for.

#![allow(unsafe_code)]

use std::any::Any;
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use ash::vk;

use super::sync::Semaphore;
use super::{Buffer, Context, Image, PATIENCE, Queue};

/// A recorded command buffer. It holds what its commands use; clones are the same.
#[derive(Clone)]
pub(crate) struct CommandBuffer {
    shared: Rc<Shared>,
}

struct Shared {
    context: Context,
    pool: vk::CommandPool,
    handle: vk::CommandBuffer,
    _uses: Vec<Box<dyn Any>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: submissions hold the command buffer until they have ended; freeing the pool frees it.
        unsafe { self.context.device.destroy_command_pool(self.pool, None) };
    }
}

impl CommandBuffer {
    /// Records commands for a queue.
    ///
    /// # Errors
    /// When the device refuses, or `commands` fails.
    pub(crate) fn record(
        context: &Context,
        queue: Queue,
        commands: impl FnOnce(&mut Recorder<'_>) -> Result<()>,
    ) -> Result<CommandBuffer> {
        CommandBuffer::record_level(context, queue, vk::CommandBufferLevel::PRIMARY, commands)
    }

    /// Records commands that another command buffer calls.
    ///
    /// # Errors
    /// When the device refuses, or `commands` fails.
    pub(crate) fn record_secondary(
        context: &Context,
        queue: Queue,
        commands: impl FnOnce(&mut Recorder<'_>) -> Result<()>,
    ) -> Result<CommandBuffer> {
        CommandBuffer::record_level(context, queue, vk::CommandBufferLevel::SECONDARY, commands)
    }

    fn record_level(
        context: &Context,
        queue: Queue,
        level: vk::CommandBufferLevel,
        commands: impl FnOnce(&mut Recorder<'_>) -> Result<()>,
    ) -> Result<CommandBuffer> {
        let device = &context.device;
        let info = vk::CommandPoolCreateInfo::default().queue_family_index(queue.family);
        // SAFETY: the structure lives through the call; the family is one of the device's.
        let pool = unsafe { device.create_command_pool(&info, None) }.context("vkCreateCommandPool")?;
        let mut shared =
            Shared { context: context.clone(), pool, handle: vk::CommandBuffer::null(), _uses: Vec::new() };
        let info =
            vk::CommandBufferAllocateInfo::default().command_pool(pool).level(level).command_buffer_count(1);
        // SAFETY: the pool was made above.
        let handles =
            unsafe { device.allocate_command_buffers(&info) }.context("vkAllocateCommandBuffers")?;
        shared.handle = *handles.first().context("vkAllocateCommandBuffers returned nothing")?;
        let inheritance = vk::CommandBufferInheritanceInfo::default();
        let info = vk::CommandBufferBeginInfo::default()
            .flags(vk::CommandBufferUsageFlags::SIMULTANEOUS_USE)
            .inheritance_info(&inheritance);
        // SAFETY: the command buffer is new.
        unsafe { device.begin_command_buffer(shared.handle, &info) }.context("vkBeginCommandBuffer")?;
        let mut recorder = Recorder { context, handle: shared.handle, uses: Vec::new() };
        commands(&mut recorder)?;
        shared._uses = recorder.uses;
        // SAFETY: recording was begun above.
        unsafe { device.end_command_buffer(shared.handle) }.context("vkEndCommandBuffer")?;
        Ok(CommandBuffer { shared: Rc::new(shared) })
    }

    /// Submits to a queue.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn submit(
        &self,
        queue: Queue,
        waits: &[(&Semaphore, u64)],
        signals: &[(&Semaphore, u64)],
    ) -> Result<Submission> {
        Submission::new(&self.shared.context, queue, Some(self), waits, signals)
    }
}

/// Work given to a queue. Dropping it waits for its end.
pub(crate) struct Submission {
    context: Context,
    fence: vk::Fence,
    ended: bool,
    _commands: Option<CommandBuffer>,
    _semaphores: Vec<Semaphore>,
}

impl Drop for Submission {
    fn drop(&mut self) {
        let device = &self.context.device;
        if !self.ended {
            // SAFETY: the fence is alive and was submitted.
            let _ = unsafe { device.wait_for_fences(&[self.fence], true, PATIENCE) };
        }
        // SAFETY: the work has ended, or the device is lost.
        unsafe { device.destroy_fence(self.fence, None) };
    }
}

impl Submission {
    /// Submits commands, or nothing but waits and signals.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn new(
        context: &Context,
        queue: Queue,
        commands: Option<&CommandBuffer>,
        waits: &[(&Semaphore, u64)],
        signals: &[(&Semaphore, u64)],
    ) -> Result<Submission> {
        let info = |&(semaphore, value): &(&Semaphore, u64)| {
            vk::SemaphoreSubmitInfo::default()
                .semaphore(semaphore.handle())
                .value(value)
                .stage_mask(vk::PipelineStageFlags2::ALL_COMMANDS)
        };
        let wait_infos: Vec<_> = waits.iter().map(info).collect();
        let signal_infos: Vec<_> = signals.iter().map(info).collect();
        let command_infos: Vec<_> = commands
            .iter()
            .map(|commands| vk::CommandBufferSubmitInfo::default().command_buffer(commands.shared.handle))
            .collect();
        let submit = vk::SubmitInfo2::default()
            .wait_semaphore_infos(&wait_infos)
            .signal_semaphore_infos(&signal_infos)
            .command_buffer_infos(&command_infos);
        // SAFETY: the structure lives through the call.
        let fence = unsafe { context.device.create_fence(&vk::FenceCreateInfo::default(), None) }
            .context("vkCreateFence")?;
        let semaphores = waits.iter().chain(signals).map(|(semaphore, _)| (*semaphore).clone()).collect();
        let mut submission = Submission {
            context: context.clone(),
            fence,
            ended: true,
            _commands: commands.cloned(),
            _semaphores: semaphores,
        };
        // SAFETY: everything named is alive and kept by the submission; queues are used on one thread.
        unsafe { context.device.queue_submit2(queue.handle, &[submit], fence) }.context("vkQueueSubmit2")?;
        submission.ended = false;
        Ok(submission)
    }

    /// Whether the work has ended.
    ///
    /// # Errors
    /// When the device is lost.
    pub(crate) fn has_ended(&self) -> Result<bool> {
        // SAFETY: the fence is alive.
        unsafe { self.context.device.get_fence_status(self.fence) }.context("vkGetFenceStatus")
    }

    /// Waits; says whether the work ended within `nanoseconds`.
    ///
    /// # Errors
    /// When the device is lost.
    pub(crate) fn wait_for(&mut self, nanoseconds: u64) -> Result<bool> {
        // SAFETY: the fence is alive.
        match unsafe { self.context.device.wait_for_fences(&[self.fence], true, nanoseconds) } {
            Ok(()) => {
                self.ended = true;
                Ok(true)
            }
            Err(vk::Result::TIMEOUT) => Ok(false),
            Err(error) => Err(error).context("vkWaitForFences"),
        }
    }

    /// Waits until the work has ended.
    ///
    /// # Errors
    /// When it does not end in good time, or the device is lost.
    pub(crate) fn wait(mut self) -> Result<()> {
        if !self.wait_for(PATIENCE)? {
            bail!("the device has not finished within {} s", PATIENCE / 1_000_000_000);
        }
        Ok(())
    }
}

/// A command buffer being recorded.
pub(crate) struct Recorder<'a> {
    context: &'a Context,
    handle: vk::CommandBuffer,
    uses: Vec<Box<dyn Any>>,
}

impl Recorder<'_> {
    fn keep(&mut self, used: impl Any) {
        self.uses.push(Box::new(used));
    }

    /// Copies ranges of one buffer into another.
    pub(crate) fn copy(&mut self, from: &Buffer, to: &Buffer, regions: &[vk::BufferCopy]) {
        self.keep((from.clone(), to.clone()));
        // SAFETY: recording; both buffers are kept; the checks compute regions that lie inside them.
        unsafe { self.context.device.cmd_copy_buffer(self.handle, from.handle(), to.handle(), regions) };
    }

    /// Copies a whole buffer to the start of another.
    pub(crate) fn copy_all(&mut self, from: &Buffer, to: &Buffer) {
        let size = from.size().min(to.size());
        self.copy(from, to, &[vk::BufferCopy { src_offset: 0, dst_offset: 0, size }]);
    }

    /// Repeats a word over a range, as `vkCmdFillBuffer`.
    pub(crate) fn fill(&mut self, buffer: &Buffer, offset: u64, size: u64, word: u32) {
        self.keep(buffer.clone());
        // SAFETY: recording; the buffer is kept; offset and size are multiples of four inside it.
        unsafe { self.context.device.cmd_fill_buffer(self.handle, buffer.handle(), offset, size, word) };
    }

    /// Writes bytes that the command itself carries.
    pub(crate) fn update(&mut self, buffer: &Buffer, offset: u64, bytes: &[u8]) {
        self.keep(buffer.clone());
        // SAFETY: recording; the buffer is kept; offset and length are multiples of four inside it, at most 64 KiB.
        unsafe { self.context.device.cmd_update_buffer(self.handle, buffer.handle(), offset, bytes) };
    }

    /// Lets later transfers, and the program after the end, see what earlier transfers wrote.
    pub(crate) fn barrier(&mut self) {
        let barrier = vk::MemoryBarrier2::default()
            .src_stage_mask(vk::PipelineStageFlags2::ALL_TRANSFER)
            .src_access_mask(vk::AccessFlags2::TRANSFER_WRITE)
            .dst_stage_mask(vk::PipelineStageFlags2::ALL_TRANSFER | vk::PipelineStageFlags2::HOST)
            .dst_access_mask(
                vk::AccessFlags2::TRANSFER_READ
                    | vk::AccessFlags2::TRANSFER_WRITE
                    | vk::AccessFlags2::HOST_READ,
            );
        let barriers = [barrier];
        let info = vk::DependencyInfo::default().memory_barriers(&barriers);
        // SAFETY: recording; the structure lives through the call.
        unsafe { self.context.device.cmd_pipeline_barrier2(self.handle, &info) };
    }

    /// Moves an image from one layout to another, with the dependencies of [`Recorder::barrier`].
    pub(crate) fn transition(&mut self, image: &Image, from: vk::ImageLayout, to: vk::ImageLayout) {
        self.keep(image.clone());
        let whole = vk::ImageSubresourceRange {
            aspect_mask: vk::ImageAspectFlags::COLOR,
            base_mip_level: 0,
            level_count: vk::REMAINING_MIP_LEVELS,
            base_array_layer: 0,
            layer_count: vk::REMAINING_ARRAY_LAYERS,
        };
        let barrier = vk::ImageMemoryBarrier2::default()
            .src_stage_mask(vk::PipelineStageFlags2::ALL_TRANSFER)
            .src_access_mask(vk::AccessFlags2::TRANSFER_WRITE)
            .dst_stage_mask(vk::PipelineStageFlags2::ALL_TRANSFER)
            .dst_access_mask(vk::AccessFlags2::TRANSFER_READ | vk::AccessFlags2::TRANSFER_WRITE)
            .old_layout(from)
            .new_layout(to)
            .src_queue_family_index(vk::QUEUE_FAMILY_IGNORED)
            .dst_queue_family_index(vk::QUEUE_FAMILY_IGNORED)
            .image(image.handle())
            .subresource_range(whole);
        let barriers = [barrier];
        let info = vk::DependencyInfo::default().image_memory_barriers(&barriers);
        // SAFETY: recording; the image is kept; the structure lives through the call.
        unsafe { self.context.device.cmd_pipeline_barrier2(self.handle, &info) };
    }

    /// Copies from a buffer into an image that is a transfer's destination now.
    pub(crate) fn upload(&mut self, from: &Buffer, to: &Image, regions: &[vk::BufferImageCopy]) {
        self.keep((from.clone(), to.clone()));
        let layout = vk::ImageLayout::TRANSFER_DST_OPTIMAL;
        // SAFETY: recording; both are kept; the regions lie inside them.
        unsafe {
            let device = &self.context.device;
            device.cmd_copy_buffer_to_image(self.handle, from.handle(), to.handle(), layout, regions);
        }
    }

    /// Copies from an image that is a transfer's source now into a buffer.
    pub(crate) fn download(&mut self, from: &Image, to: &Buffer, regions: &[vk::BufferImageCopy]) {
        self.keep((from.clone(), to.clone()));
        let layout = vk::ImageLayout::TRANSFER_SRC_OPTIMAL;
        // SAFETY: recording; both are kept; the regions lie inside them.
        unsafe {
            let device = &self.context.device;
            device.cmd_copy_image_to_buffer(self.handle, from.handle(), layout, to.handle(), regions);
        }
    }

    /// Copies from one image into another.
    pub(crate) fn copy_image(&mut self, from: &Image, to: &Image, regions: &[vk::ImageCopy]) {
        self.keep((from.clone(), to.clone()));
        let (source, destination) =
            (vk::ImageLayout::TRANSFER_SRC_OPTIMAL, vk::ImageLayout::TRANSFER_DST_OPTIMAL);
        // SAFETY: recording; both are kept; the regions lie inside them.
        unsafe {
            let device = &self.context.device;
            device.cmd_copy_image(self.handle, from.handle(), source, to.handle(), destination, regions);
        }
    }

    /// Runs the commands of a secondary command buffer.
    pub(crate) fn call(&mut self, secondary: &CommandBuffer) {
        self.keep(secondary.clone());
        // SAFETY: recording a primary; the secondary is complete, kept, and of the same family.
        unsafe { self.context.device.cmd_execute_commands(self.handle, &[secondary.shared.handle]) };
    }

    /// Writes the time at which everything before it has ended.
    pub(crate) fn timestamp(&mut self, queries: &TimestampQueries, index: u32) {
        self.keep(queries.clone());
        let stage = vk::PipelineStageFlags2::ALL_COMMANDS;
        // SAFETY: recording; the pool is kept; the query was reset when the pool was made or by `reset`.
        unsafe { self.context.device.cmd_write_timestamp2(self.handle, stage, queries.shared.pool, index) };
    }
}

impl Context {
    /// Records commands, runs them on the transfer queue and waits for their end.
    ///
    /// # Errors
    /// When the device refuses or does not finish.
    pub(crate) fn run(&self, commands: impl FnOnce(&mut Recorder<'_>)) -> Result<()> {
        let recorded = CommandBuffer::record(self, self.transfer, |recorder| {
            commands(recorder);
            recorder.barrier();
            Ok(())
        })?;
        recorded.submit(self.transfer, &[], &[])?.wait()
    }
}

/// A pool of timestamps. Clones are the same pool.
#[derive(Clone)]
pub(crate) struct TimestampQueries {
    shared: Rc<QueryPool>,
}

struct QueryPool {
    context: Context,
    pool: vk::QueryPool,
    count: u32,
}

impl Drop for QueryPool {
    fn drop(&mut self) {
        // SAFETY: command buffers that write it hold it.
        unsafe { self.context.device.destroy_query_pool(self.pool, None) };
    }
}

impl TimestampQueries {
    /// Makes room for `count` timestamps.
    ///
    /// # Errors
    /// When the device refuses.
    pub(crate) fn new(context: &Context, count: u32) -> Result<TimestampQueries> {
        let info = vk::QueryPoolCreateInfo::default().query_type(vk::QueryType::TIMESTAMP).query_count(count);
        // SAFETY: the structure lives through the call.
        let pool = unsafe { context.device.create_query_pool(&info, None) }.context("vkCreateQueryPool")?;
        let shared = Rc::new(QueryPool { context: context.clone(), pool, count });
        // SAFETY: nothing uses the new pool; the feature that allows resets by the program is asked for.
        unsafe { context.device.reset_query_pool(pool, 0, count) };
        Ok(TimestampQueries { shared })
    }

    /// The timestamps, in ticks.
    ///
    /// # Errors
    /// When they are not there: the commands that write them have ended, so they must be.
    pub(crate) fn read(&self) -> Result<Vec<u64>> {
        let QueryPool { context, pool, count } = &*self.shared;
        let mut values = vec![0u64; *count as usize];
        // SAFETY: the pool is alive; the slice is as long as the count, in 64-bit values.
        unsafe {
            context.device.get_query_pool_results(*pool, 0, &mut values, vk::QueryResultFlags::TYPE_64)
        }
        .context("vkGetQueryPoolResults")?;
        Ok(values)
    }
}
