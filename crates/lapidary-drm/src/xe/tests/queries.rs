//! DEVICE_QUERY, for both profiles.

use super::client::*;
use super::*;

fn query(client: &mut Client, query: u32) -> Vec<u8> {
    let size = client.xe(nr::DEVICE_QUERY, uapi::DeviceQuery { query, ..Zeroable::zeroed() }).unwrap().size;
    let answer = vec![0_u8; size as usize];
    let args = uapi::DeviceQuery { query, size, data: answer.as_ptr() as u64, ..Zeroable::zeroed() };
    client.xe(nr::DEVICE_QUERY, args).unwrap();
    answer
}

fn records<T: Pod>(answer: &[u8]) -> Vec<T> {
    let count: uapi::QueryCount = bytemuck::pod_read_unaligned(&answer[..8]);
    let records: Vec<T> =
        answer[8..].chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect();
    assert_eq!((count.count as usize, count.pad), (records.len(), 0));
    records
}

fn device(profile: crate::Profile) -> Bench {
    Bench::new(&DeviceConfig { profile, ..small() })
}

#[test]
fn a_battlemage_has_two_regions_and_pages_of_64_kib() {
    let bench = device(crate::Profile::Battlemage);
    let mut client = Client::new(&bench);
    let regions: Vec<uapi::MemRegion> = records(&query(&mut client, uapi::query::MEM_REGIONS));
    let [system, vram] = regions[..] else { panic!("{regions:?}") };
    assert_eq!((system.mem_class, system.instance, system.min_page_size), (0, 0, 4096));
    assert_eq!((vram.mem_class, vram.instance, vram.min_page_size), (1, 1, 65536));
    assert_eq!((vram.total_size, vram.cpu_visible_size, vram.used), (64 * MIB, 64 * MIB, 0));
    let config: Vec<u64> = records(&query(&mut client, uapi::query::CONFIG));
    assert_eq!(config[0] & 0xffff, 0xe20b);
    assert_eq!(config[1] & uapi::CONFIG_FLAG_HAS_VRAM, 1);
    assert_eq!(config[2..4], [65536, 48]);
    let gts: Vec<uapi::Gt> = records(&query(&mut client, uapi::query::GT_LIST));
    assert_eq!((gts.len(), gts[0].near_mem_regions, gts[0].far_mem_regions), (1, 2, 1));
}

#[test]
fn a_lunar_lake_has_one_region_and_pages_of_4_kib() {
    let bench = device(crate::Profile::LunarLake);
    let mut client = Client::new(&bench);
    let regions: Vec<uapi::MemRegion> = records(&query(&mut client, uapi::query::MEM_REGIONS));
    assert_eq!((regions.len(), regions[0].mem_class, regions[0].cpu_visible_size), (1, 0, 0));
    let config: Vec<u64> = records(&query(&mut client, uapi::query::CONFIG));
    assert_eq!((config[0] & 0xffff, config[1] & uapi::CONFIG_FLAG_HAS_VRAM, config[2]), (0x64a0, 0, 4096));
    assert_eq!(client.try_buffer(VRAM, CHUNK, 0), Err(Errno::INVAL));
    let small = client.buffer(SYSTEM, 4096, 0);
    client.close(small);
}

#[test]
fn every_profile_has_a_render_a_copy_and_a_compute_engine() {
    for profile in crate::Profile::ALL {
        let bench = device(profile);
        let mut client = Client::new(&bench);
        let engines: Vec<uapi::Engine> = records(&query(&mut client, uapi::query::ENGINES));
        let classes: Vec<u16> = engines.iter().map(|engine| engine.instance.engine_class).collect();
        assert_eq!(classes, [0, 1, 4]);
        let vm = client.vm();
        for class in classes {
            client.queue(vm, class);
        }
        assert_eq!(query(&mut client, uapi::query::GT_TOPOLOGY).len(), 4 * 16);
        assert_eq!(query(&mut client, uapi::query::UC_FW_VERSION).len(), 32);
    }
}

#[test]
fn the_clock_of_an_engine_goes_on() {
    let bench = device(crate::Profile::Battlemage);
    let mut client = Client::new(&bench);
    let mut read = || -> uapi::EngineCycles {
        bytemuck::pod_read_unaligned(&query(&mut client, uapi::query::ENGINE_CYCLES))
    };
    let (first, second) = (read(), read());
    assert!(second.engine_cycles >= first.engine_cycles);
    assert!(second.cpu_timestamp >= first.cpu_timestamp + first.cpu_delta);
}

#[test]
fn what_is_wrong_with_a_query_is_told() {
    let bench = device(crate::Profile::Battlemage);
    let mut client = Client::new(&bench);
    let good = uapi::DeviceQuery { query: uapi::query::CONFIG, ..Zeroable::zeroed() };
    let place = [0_u64; 6];
    let full = uapi::DeviceQuery { size: 48, data: place.as_ptr() as u64, ..good };
    let mut try_with = |args| client.xe(nr::DEVICE_QUERY, args).err();
    assert_eq!(try_with(full), None);
    assert_eq!(try_with(uapi::DeviceQuery { size: 40, ..full }), Some(Errno::INVAL));
    assert_eq!(try_with(uapi::DeviceQuery { data: 8, ..full }), Some(Errno::FAULT));
    assert_eq!(try_with(uapi::DeviceQuery { query: 99, ..good }), Some(Errno::INVAL));
    assert_eq!(try_with(uapi::DeviceQuery { extensions: 8, ..good }), Some(Errno::INVAL));
    assert_eq!(try_with(uapi::DeviceQuery { reserved: [0, 1], ..good }), Some(Errno::INVAL));
}
