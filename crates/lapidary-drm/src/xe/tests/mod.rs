//! The Xe driver's rules, seen by clients without processes of their own: what fails changes nothing, what ends leaves
//! nothing, and no argument is too wild.

mod binds;
mod buffers;
mod client;
mod evictions;
mod execs;
mod failures;
mod faults;
mod fuzz;
mod lifetimes;
mod limits;
mod queries;
mod sharing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytemuck::{Pod, Zeroable};

use super::uapi::{self, nr};
use super::{COMMAND_BASE, XeDriver};
use crate::core::census::Census;
use crate::core::{DrmDevice, Node};
use crate::server::DeviceConfig;
use crate::transport::testing::TestClient;
use crate::transport::{Errno, File};
use crate::uapi::ioctl::Command;

/// A device and its first client.
struct Bench {
    client: TestClient,
    device: Arc<DrmDevice<XeDriver>>,
}

impl Bench {
    fn new(config: &DeviceConfig) -> Self {
        let config = &DeviceConfig { check_tlb: true, ..*config };
        let census = Census::new();
        let driver = XeDriver::new(config, &census).unwrap();
        Self { client: TestClient::new(), device: DrmDevice::new(driver, &census) }
    }

    fn open(&self) -> Arc<dyn File> {
        self.device.open(self.client.process(), Node::Render).unwrap()
    }

    /// Waits until nothing is left of what clients made; what is left after a time in which it should have gone.
    fn survivors(&self) -> Vec<(&'static str, u64)> {
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            self.device.driver().worker().flush();
            let survivors = self.device.census().survivors();
            if survivors.is_empty() || Instant::now() > give_up {
                return survivors;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Bench {
    /// Whatever a test is about: no engine used what page tables no longer said.
    fn drop(&mut self) {
        self.device.driver().shut_down();
        if !std::thread::panicking() {
            assert_eq!(self.device.driver().gpu().stale_hits(), []);
        }
    }
}

const fn xe<T>(number: u8) -> Command {
    Command::iowr::<T>(b'd', COMMAND_BASE + number)
}

/// An ioctl of the driver; the structure as it comes back, or the errno.
fn run<T: Pod>(client: &mut TestClient, file: &dyn File, number: u8, args: T) -> Result<T, Errno> {
    let mut args = args;
    client.ioctl(file, xe::<T>(number).0, &mut args)?;
    Ok(args)
}

/// Whether a file answers as it should.
fn assert_alive(client: &mut TestClient, file: &dyn File) {
    let query = uapi::DeviceQuery { query: uapi::query::CONFIG, ..Zeroable::zeroed() };
    assert_eq!(run(client, file, nr::DEVICE_QUERY, query).unwrap().size, 48);
    let vm = run(client, file, nr::VM_CREATE, uapi::VmCreate::default()).unwrap().vm_id;
    let destroy = uapi::Destroy { id: vm, ..Zeroable::zeroed() };
    run(client, file, nr::VM_DESTROY, destroy).unwrap();
}
