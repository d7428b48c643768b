//! Instance, device and queues.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use ash::{Device, Entry, Instance, ext, khr, vk};

/// What the command line says about the device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choice {
    /// A part of the wanted device's name; the first device without.
    pub(crate) device: Option<String>,
    /// Take any queue that can transfer, not only one that can do nothing else.
    pub(crate) any_queue: bool,
}

/// A queue and its family's properties.
#[derive(Clone, Copy)]
pub(crate) struct Queue {
    pub(crate) handle: vk::Queue,
    pub(crate) family: u32,
    pub(crate) timestamp_bits: u32,
}

/// Extensions that the checks use if they are there.
const WANTED_EXTENSIONS: [&CStr; 4] = [
    khr::external_memory_fd::NAME,
    ext::external_memory_dma_buf::NAME,
    ext::external_memory_host::NAME,
    khr::external_semaphore_fd::NAME,
];

/// The device and everything that lives as long as it. Clones are the same device.
#[derive(Clone)]
pub(crate) struct Context {
    shared: Rc<Shared>,
}

pub(crate) struct Shared {
    // Dropping the entry unloads the loader's library: it stays as long as the instance.
    _entry: Entry,
    instance: Instance,
    pub(super) physical: vk::PhysicalDevice,
    pub(crate) device: Device,
    pub(crate) properties: vk::PhysicalDeviceProperties,
    pub(crate) memory: vk::PhysicalDeviceMemoryProperties,
    pub(crate) families: Vec<vk::QueueFamilyProperties>,
    pub(crate) features: vk::PhysicalDeviceFeatures,
    pub(crate) extensions: Vec<&'static CStr>,
    pub(crate) transfer: Queue,
    /// A queue of another family, where there is one.
    pub(crate) other: Option<Queue>,
    /// A queue that binds sparse memory.
    pub(crate) sparse: Option<Queue>,
    pub(super) memory_fd: khr::external_memory_fd::Device,
    pub(super) memory_host: ext::external_memory_host::Device,
    pub(super) semaphore_fd: khr::external_semaphore_fd::Device,
}

impl std::ops::Deref for Context {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: every object made from the device holds a `Context`, so none is left; submissions were waited for.
        unsafe {
            let _ = self.device.device_wait_idle();
            self.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}

impl Context {
    /// Opens the device.
    ///
    /// # Errors
    /// When there is no Vulkan, no such device, or no suitable queue.
    pub(crate) fn open(choice: &Choice) -> Result<Context> {
        // SAFETY: the loader's library is the system's; running its initialisers is what every Vulkan program does.
        let entry = unsafe { Entry::load() }.context("can't load the Vulkan loader (libvulkan.so.1)")?;
        let instance = create_instance(&entry)?;
        match open_device(&entry, &instance, choice) {
            Ok(shared) => Ok(Context { shared: Rc::new(shared) }),
            Err(error) => {
                // SAFETY: no device was made from the instance, or it was destroyed.
                unsafe { instance.destroy_instance(None) };
                Err(error)
            }
        }
    }

    /// Whether the device has an extension (one of those that this program knows).
    pub(crate) fn has(&self, extension: &CStr) -> bool {
        self.extensions.contains(&extension)
    }

    /// The device's name.
    pub(crate) fn device_name(&self) -> String {
        name_of(&self.properties)
    }

    /// What an image of these properties may be; nothing when the device can't have one.
    pub(crate) fn image_limits(&self, info: &vk::ImageCreateInfo<'_>) -> Option<vk::ImageFormatProperties> {
        // SAFETY: the physical device belongs to the instance, both are alive.
        let limits = unsafe {
            self.instance.get_physical_device_image_format_properties(
                self.physical,
                info.format,
                info.image_type,
                info.tiling,
                info.usage,
                info.flags,
            )
        };
        limits.ok()
    }

    /// The alignment that imported host memory needs.
    pub(crate) fn host_pointer_alignment(&self) -> u64 {
        let mut host = vk::PhysicalDeviceExternalMemoryHostPropertiesEXT::default();
        let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut host);
        // SAFETY: the chain holds structures that Vulkan 1.1 and the extension define, alive through the call.
        unsafe { self.instance.get_physical_device_properties2(self.physical, &mut properties) };
        host.min_imported_host_pointer_alignment
    }
}

fn name_of(properties: &vk::PhysicalDeviceProperties) -> String {
    properties.device_name_as_c_str().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn create_instance(entry: &Entry) -> Result<Instance> {
    let application =
        vk::ApplicationInfo::default().application_name(c"vulkan-client").api_version(vk::API_VERSION_1_3);
    let info = vk::InstanceCreateInfo::default().application_info(&application);
    // SAFETY: the structures live through the call.
    unsafe { entry.create_instance(&info, None) }.context("vkCreateInstance")
}

fn open_device(entry: &Entry, instance: &Instance, choice: &Choice) -> Result<Shared> {
    let physical = choose_device(instance, choice)?;
    // SAFETY: the physical device was listed by this instance.
    let (properties, memory, families, features, offered) = unsafe {
        (
            instance.get_physical_device_properties(physical),
            instance.get_physical_device_memory_properties(physical),
            instance.get_physical_device_queue_family_properties(physical),
            instance.get_physical_device_features(physical),
            instance
                .enumerate_device_extension_properties(physical)
                .context("vkEnumerateDeviceExtensionProperties")?,
        )
    };
    let offers = |name: &CStr| offered.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
    let extensions: Vec<&CStr> = WANTED_EXTENSIONS.into_iter().filter(|name| offers(name)).collect();
    let roles = Roles::choose(&families, choice)?;
    let features = wanted_features(&features);
    let device = create_device(instance, physical, &roles, &features, &extensions)?;
    let queue = |family: u32| Queue {
        // SAFETY: each family of the roles was given one queue at the device's creation.
        handle: unsafe { device.get_device_queue(family, 0) },
        family,
        timestamp_bits: families[family as usize].timestamp_valid_bits,
    };
    Ok(Shared {
        physical,
        properties,
        memory,
        features,
        extensions,
        transfer: queue(roles.transfer),
        other: roles.other.map(queue),
        sparse: roles.sparse.map(queue),
        memory_fd: khr::external_memory_fd::Device::new(instance, &device),
        memory_host: ext::external_memory_host::Device::new(instance, &device),
        semaphore_fd: khr::external_semaphore_fd::Device::new(instance, &device),
        families,
        device,
        instance: instance.clone(),
        _entry: entry.clone(),
    })
}

fn choose_device(instance: &Instance, choice: &Choice) -> Result<vk::PhysicalDevice> {
    // SAFETY: the instance is alive.
    let devices = unsafe { instance.enumerate_physical_devices() }.context("vkEnumeratePhysicalDevices")?;
    // SAFETY: the device was listed by this instance.
    let name = |device| name_of(&unsafe { instance.get_physical_device_properties(device) });
    let fits = |device: &vk::PhysicalDevice| {
        choice.device.as_ref().is_none_or(|part| name(*device).contains(part.as_str()))
    };
    match devices.iter().copied().find(fits) {
        Some(device) => Ok(device),
        None => {
            let names: Vec<String> = devices.into_iter().map(name).collect();
            bail!(
                "no such device; there are: {}",
                if names.is_empty() { "none".into() } else { names.join(", ") }
            )
        }
    }
}

/// Which queue family does what.
struct Roles {
    transfer: u32,
    other: Option<u32>,
    sparse: Option<u32>,
}

impl Roles {
    fn choose(families: &[vk::QueueFamilyProperties], choice: &Choice) -> Result<Roles> {
        let find = |fits: &dyn Fn(u32, vk::QueueFlags) -> bool| {
            (0u32..)
                .zip(families)
                .find(|(index, family)| fits(*index, family.queue_flags))
                .map(|(index, _)| index)
        };
        let computes = vk::QueueFlags::GRAPHICS | vk::QueueFlags::COMPUTE;
        let only_transfers = |_, flags: vk::QueueFlags| {
            flags.contains(vk::QueueFlags::TRANSFER) && !flags.intersects(computes)
        };
        let transfer = match find(&only_transfers) {
            Some(family) => family,
            None if choice.any_queue => {
                find(&|_, flags| flags.intersects(vk::QueueFlags::TRANSFER | computes))
                    .context("the device has no queue that can transfer")?
            }
            None => bail!("the device has no queue family for transfers alone (--any-queue takes another)"),
        };
        let sparse = find(&|_, flags| flags.contains(vk::QueueFlags::SPARSE_BINDING));
        let other = find(&|index, _| index != transfer);
        Ok(Roles { transfer, other, sparse })
    }

    fn families(&self) -> Vec<u32> {
        let mut families = vec![self.transfer];
        families.extend(self.other);
        families.extend(self.sparse);
        families.sort_unstable();
        families.dedup();
        families
    }
}

/// Of the features that the device has, those that the checks use.
fn wanted_features(offered: &vk::PhysicalDeviceFeatures) -> vk::PhysicalDeviceFeatures {
    vk::PhysicalDeviceFeatures {
        sparse_binding: offered.sparse_binding,
        sparse_residency_buffer: offered.sparse_residency_buffer,
        sparse_residency_aliased: offered.sparse_residency_aliased,
        texture_compression_bc: offered.texture_compression_bc,
        ..Default::default()
    }
}

fn create_device(
    instance: &Instance,
    physical: vk::PhysicalDevice,
    roles: &Roles,
    features: &vk::PhysicalDeviceFeatures,
    extensions: &[&CStr],
) -> Result<Device> {
    let queues: Vec<_> = roles
        .families()
        .into_iter()
        .map(|family| {
            vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&[1.0])
        })
        .collect();
    let extension_names: Vec<_> = extensions.iter().map(|name| name.as_ptr()).collect();
    let mut vulkan12 =
        vk::PhysicalDeviceVulkan12Features::default().timeline_semaphore(true).host_query_reset(true);
    let mut vulkan13 = vk::PhysicalDeviceVulkan13Features::default().synchronization2(true);
    let info = vk::DeviceCreateInfo::default()
        .queue_create_infos(&queues)
        .enabled_extension_names(&extension_names)
        .enabled_features(features)
        .push_next(&mut vulkan12)
        .push_next(&mut vulkan13);
    // SAFETY: the structures live through the call; extensions and features are among those offered.
    unsafe { instance.create_device(physical, &info, None) }.context("vkCreateDevice")
}
