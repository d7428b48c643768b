//! What the device says of itself, and whether it makes sense.

use anyhow::{Result, ensure};
use ash::vk;

use super::{Check, Outcome, passed};
use crate::gpu::Context;

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check::new("device.properties", properties),
        Check::new("device.memory", memory),
        Check::new("device.queues", queues),
    ]
}

fn properties(context: &Context) -> Result<Outcome> {
    let properties = &context.properties;
    let version = properties.api_version;
    ensure!(version >= vk::API_VERSION_1_3, "the device is older than Vulkan 1.3");
    ensure!(!context.device_name().is_empty(), "the device has no name");
    passed(format!(
        "{:04x}:{:04x}, Vulkan {}.{}.{}, {} of the extensions used here",
        properties.vendor_id,
        properties.device_id,
        vk::api_version_major(version),
        vk::api_version_minor(version),
        vk::api_version_patch(version),
        context.extensions.len()
    ))
}

fn memory(context: &Context) -> Result<Outcome> {
    let heaps = context.memory.memory_heaps_as_slice();
    let types = context.memory.memory_types_as_slice();
    let has = |flags| types.iter().any(|kind| kind.property_flags.contains(flags));
    let coherent = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
    ensure!(has(vk::MemoryPropertyFlags::DEVICE_LOCAL), "no memory type is local to the device");
    ensure!(has(coherent), "no memory type is visible to the program and coherent");
    for (number, kind) in types.iter().enumerate() {
        ensure!(
            (kind.heap_index as usize) < heaps.len(),
            "memory type {number} names a heap that is not there"
        );
    }
    let sizes: Vec<String> = heaps
        .iter()
        .map(|heap| {
            let local = heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL);
            format!("{} MiB{}", heap.size >> 20, if local { " local" } else { "" })
        })
        .collect();
    ensure!(heaps.iter().all(|heap| heap.size > 0), "a heap is empty: {}", sizes.join(", "));
    passed(format!("{} types; heaps: {}", types.len(), sizes.join(", ")))
}

fn queues(context: &Context) -> Result<Outcome> {
    let families: Vec<String> =
        context.families.iter().map(|family| format!("{:?}", family.queue_flags)).collect();
    passed(format!("transfers on family {} of {}", context.transfer.family, families.join("; ")))
}
