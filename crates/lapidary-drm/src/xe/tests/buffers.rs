//! Buffers: making, placing, mapping into the client, belonging to an address space.

use super::client::*;
use super::*;
use crate::uapi::drm;

#[test]
fn a_buffer_takes_memory_where_it_is_placed_and_gives_it_back() {
    let bench = Bench::new(&small());
    let mut client = Client::new(&bench);
    let used = || {
        let usage = bench.device.driver().memory_usage();
        (usage.system_used, usage.vram_used)
    };
    let near = client.buffer(VRAM, MIB, 0);
    let far = client.buffer(SYSTEM, 4096, 0);
    assert_eq!(used(), (4096, MIB));
    client.close(near);
    client.close(far);
    assert_eq!(used(), (0, 0));
}

#[test]
fn a_deferred_buffer_takes_memory_with_its_first_bind() {
    let bench = Bench::new(&small());
    let mut rig = Rig::new(&bench);
    let args = uapi::GemCreate {
        size: MIB,
        placement: VRAM,
        flags: uapi::GEM_CREATE_DEFER_BACKING,
        cpu_caching: uapi::CPU_CACHING_WC,
        ..Zeroable::zeroed()
    };
    let buffer = rig.client.xe(nr::GEM_CREATE, args).unwrap().handle;
    assert_eq!(bench.device.driver().memory_usage().vram_used, 0);
    rig.bind(&[map(buffer, 0, MIB * 2, MIB)]);
    assert_eq!(bench.device.driver().memory_usage().vram_used, MIB);
}

#[test]
fn wrong_arguments_are_refused_one_by_one() {
    let bench = Bench::new(&small());
    let mut client = Client::new(&bench);
    let good = uapi::GemCreate {
        size: CHUNK,
        placement: VRAM,
        cpu_caching: uapi::CPU_CACHING_WC,
        ..Zeroable::zeroed()
    };
    let protected = uapi::ExtSetProperty { value: uapi::PXP_TYPE_HWDRM, ..Zeroable::zeroed() };
    let unprotected = uapi::ExtSetProperty { value: uapi::PXP_TYPE_NONE, ..protected };
    let unknown = uapi::ExtSetProperty { property: 77, ..unprotected };
    let at = |extension: &uapi::ExtSetProperty| std::ptr::from_ref(extension) as u64;
    let mut create = |args| client.xe(nr::GEM_CREATE, args).err();
    let cases = [
        (good, None),
        (uapi::GemCreate { extensions: at(&unprotected), ..good }, None),
        (uapi::GemCreate { size: 0, ..good }, Some(Errno::INVAL)),
        (uapi::GemCreate { size: CHUNK + 4096, ..good }, Some(Errno::INVAL)),
        (uapi::GemCreate { size: !(CHUNK - 1), ..good }, Some(Errno::NOSPC)),
        (uapi::GemCreate { placement: 0, ..good }, Some(Errno::INVAL)),
        (uapi::GemCreate { placement: 4, ..good }, Some(Errno::INVAL)),
        (uapi::GemCreate { flags: 1 << 4, ..good }, Some(Errno::INVAL)),
        (uapi::GemCreate { cpu_caching: 0, ..good }, Some(Errno::INVAL)),
        (uapi::GemCreate { cpu_caching: 3, ..good }, Some(Errno::INVAL)),
        (uapi::GemCreate { cpu_caching: uapi::CPU_CACHING_WB, ..good }, Some(Errno::INVAL)),
        (uapi::GemCreate { handle: 1, ..good }, Some(Errno::INVAL)),
        (uapi::GemCreate { pad: [0, 0, 1], ..good }, Some(Errno::INVAL)),
        (uapi::GemCreate { reserved: [1, 0], ..good }, Some(Errno::INVAL)),
        (uapi::GemCreate { vm_id: 9, ..good }, Some(Errno::NOENT)),
        (uapi::GemCreate { extensions: 16, ..good }, Some(Errno::FAULT)),
        (uapi::GemCreate { extensions: at(&unknown), ..good }, Some(Errno::INVAL)),
        (uapi::GemCreate { extensions: at(&protected), ..good }, Some(Errno::NODEV)),
        (
            uapi::GemCreate { placement: SYSTEM, flags: uapi::GEM_CREATE_NEEDS_VISIBLE_VRAM, ..good },
            Some(Errno::INVAL),
        ),
    ];
    for (args, errno) in cases {
        assert_eq!(create(args), errno, "{args:?}");
    }
    drop(client);
    bench.assert_clean();
}

#[test]
fn another_file_can_not_map_a_buffer_by_its_offset() {
    let bench = Bench::new(&small());
    let (mut owner, mut stranger) = (Client::new(&bench), Client::new(&bench));
    let buffer = owner.buffer(SYSTEM, 4096, 0);
    let offset = owner.offset(buffer);
    assert!(owner.mmap(offset, 4096).is_ok());
    assert_eq!(owner.mmap(offset, 8192).err(), Some(Errno::INVAL));
    assert_eq!(owner.mmap(offset + 4096, 4096).err(), Some(Errno::INVAL));
    assert_eq!(stranger.mmap(offset, 4096).err(), Some(Errno::ACCESS));
    let args = uapi::GemMmapOffset { handle: buffer, flags: 1, ..Zeroable::zeroed() };
    assert_eq!(owner.xe(nr::GEM_MMAP_OFFSET, args).err(), Some(Errno::INVAL));
    assert_eq!(
        stranger.xe(nr::GEM_MMAP_OFFSET, uapi::GemMmapOffset { flags: 0, ..args }).err(),
        Some(Errno::NOENT)
    );
}

#[test]
fn a_buffer_of_an_address_space_can_be_neither_shared_nor_bound_elsewhere() {
    let bench = Bench::new(&small());
    let mut client = Client::new(&bench);
    let (home, other) = (client.vm(), client.vm());
    let private = client.buffer(VRAM, CHUNK, home);
    let share = drm::PrimeHandle { handle: private, flags: drm::PRIME_CLOEXEC, fd: -1 };
    assert_eq!(client.drm(drm::IOCTL_PRIME_HANDLE_TO_FD, share).err(), Some(Errno::PERM));
    assert_eq!(client.bind(other, &[map(private, 0, CHUNK, CHUNK)], &[]), Err(Errno::INVAL));
    assert_eq!(client.bind(home, &[map(private, 0, CHUNK, CHUNK)], &[]), Ok(()));
}
