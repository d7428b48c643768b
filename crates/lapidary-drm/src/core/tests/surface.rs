//! Files, handles, offsets, and what every client asks first.

use super::*;

#[test]
fn handles_are_the_lowest_free_number_and_close_once() {
    let mut bench = Bench::new();
    let file = bench.file();
    let handles = [0; 3].map(|_| bench.create(&file, MEBIBYTE));
    assert_eq!(handles, [1, 2, 3]);
    bench.close_handle(&file, 2).unwrap();
    assert_eq!(bench.close_handle(&file, 2), Err(Errno::INVAL));
    assert_eq!(bench.close_handle(&file, 0), Err(Errno::INVAL));
    assert_eq!(bench.create(&file, MEBIBYTE), 2);
}

#[test]
fn a_closed_file_leaves_nothing() {
    let mut bench = Bench::new();
    let file = bench.file();
    for _ in 0..3 {
        bench.create(&file, MEBIBYTE);
        bench.run(&file, drm::IOCTL_SYNCOBJ_CREATE, drm::SyncobjCreate { handle: 0, flags: 0 }).unwrap();
    }
    assert_eq!(bench.device.clients()[0].buffer_bytes, 3 * MEBIBYTE);
    file.released();
    assert!(bench.device.clients().is_empty());
    assert_eq!(bench.device.driver().last_handles.load(Ordering::Relaxed), 3);
    assert_eq!((bench.live("buffers"), bench.live("syncobjs")), (0, 0));
    let late = bench.run(&file, IOCTL_CREATE, Create { size: 4096, handle: 0, flags: 0 });
    assert_eq!(late.err(), Some(Errno::BADF), "nothing is added to a closed file");
    drop(file);
    assert_eq!(bench.census.survivors(), []);
}

#[test]
fn a_foreign_offset_is_denied_and_an_unknown_one_invalid() {
    let mut bench = Bench::new();
    let (mine, other) = (bench.file(), bench.file());
    let handle = bench.create(&mine, MEBIBYTE);
    let offset = mine.0.buffer(handle).unwrap().mmap_offset().unwrap();
    assert_eq!(mine.0.buffer(handle).unwrap().mmap_offset().unwrap(), offset);

    bench.mmap(&mine, offset, MEBIBYTE).unwrap();
    assert_eq!(bench.mmap(&other, offset, MEBIBYTE).err(), Some(Errno::ACCESS));
    assert_eq!(bench.mmap(&mine, offset, MEBIBYTE + 1).err(), Some(Errno::INVAL));
    assert_eq!(bench.mmap(&mine, offset + 4096, 4096).err(), Some(Errno::INVAL));
    assert_eq!(bench.mmap(&mine, 0, 4096).err(), Some(Errno::INVAL));
    bench.close_handle(&mine, handle).unwrap();
    assert_eq!(bench.mmap(&mine, offset, MEBIBYTE).err(), Some(Errno::INVAL));
}

#[test]
fn version_tells_lengths_first_and_texts_then() {
    let mut bench = Bench::new();
    let file = bench.file();
    let lengths: drm::Version = bench.run(&file, drm::IOCTL_VERSION, bytemuck::Zeroable::zeroed()).unwrap();
    assert_eq!((lengths.version_major, lengths.version_minor, lengths.version_patchlevel), (1, 2, 3));
    assert_eq!((lengths.name_len, lengths.date_len, lengths.desc_len), (5, 8, 18));
    let mut name = [0xff_u8; 8];
    let request = drm::Version { name: name.as_mut_ptr() as u64, name_len: 5, ..lengths };
    let request = drm::Version { date_len: 0, desc_len: 0, ..request };
    bench.run(&file, drm::IOCTL_VERSION, request).unwrap();
    assert_eq!(&name, b"memfd\xff\xff\xff");
    let bad = drm::Version { name: 8, ..request };
    assert_eq!(bench.run(&file, drm::IOCTL_VERSION, bad).err(), Some(Errno::FAULT));
}

#[test]
fn capabilities_are_those_of_a_device_without_display() {
    let mut bench = Bench::new();
    let file = bench.file();
    let mut ask = |capability| {
        let answer = bench.run(&file, drm::IOCTL_GET_CAP, drm::GetCap { capability, value: 9 });
        answer.map(|answer| answer.value)
    };
    assert_eq!(ask(drm::CAP_SYNCOBJ), Ok(1));
    assert_eq!(ask(drm::CAP_SYNCOBJ_TIMELINE), Ok(1));
    assert_eq!(ask(drm::CAP_PRIME), Ok(3));
    assert_eq!(ask(drm::CAP_DUMB_BUFFER), Ok(0));
    assert_eq!(ask(drm::CAP_TIMESTAMP_MONOTONIC), Ok(1));
    assert_eq!(ask(0x10), Err(Errno::OPNOTSUPP));
}

#[test]
fn unknown_commands_and_other_subsystems_are_told_apart() {
    let mut bench = Bench::new();
    let file = bench.file();
    let nobody = Command::iowr::<u64>(drm::BASE, 0x7f);
    assert_eq!(bench.run(&file, nobody, 0_u64), Err(Errno::INVAL));
    let foreign = Command::iowr::<u64>(b'x', 0x00);
    assert_eq!(bench.run(&file, foreign, 0_u64), Err(Errno::NOTTY));
}

#[test]
fn the_render_node_has_no_masters_and_the_primary_node_one() {
    let mut bench = Bench::new();
    let (render, first, second) = (bench.file(), bench.open(Node::Primary), bench.open(Node::Primary));
    let magic = |bench: &mut Bench, file: &OpenFile<_>| {
        bench.run(file, drm::IOCTL_GET_MAGIC, drm::Auth { magic: 0 }).map(|auth| auth.magic)
    };
    assert_eq!(magic(&mut bench, &render), Err(Errno::ACCESS));
    let token = magic(&mut bench, &second).unwrap();
    let auth = |bench: &mut Bench, file: &OpenFile<_>| {
        bench.run(file, drm::IOCTL_AUTH_MAGIC, drm::Auth { magic: token }).map(drop)
    };
    assert_eq!(auth(&mut bench, &second), Err(Errno::ACCESS));
    assert_eq!(auth(&mut bench, &first), Ok(()));
    assert_eq!(auth(&mut bench, &first), Err(Errno::INVAL));
    let take = |bench: &mut Bench, file: &OpenFile<_>| {
        bench.client.call(0, |call| file.ioctl(call, drm::IOCTL_SET_MASTER.0, &mut [])).map(drop)
    };
    assert_eq!(take(&mut bench, &second), Err(Errno::INVAL));
    drop(first);
    assert_eq!(take(&mut bench, &second), Ok(()));
}

#[test]
fn the_bus_id_is_visible_once_a_version_was_agreed_on() {
    let mut bench = Bench::new();
    let file = bench.open(Node::Primary);
    let mut text = [0_u8; 32];
    let ask = drm::Unique { unique_len: 32, unique: text.as_mut_ptr() as u64 };
    assert_eq!(bench.run(&file, drm::IOCTL_GET_UNIQUE, ask).unwrap().unique_len, 0);
    let version = drm::SetVersion { drm_di_major: 1, drm_di_minor: 4, drm_dd_major: -1, drm_dd_minor: 0 };
    let agreed = bench.run(&file, drm::IOCTL_SET_VERSION, version).unwrap();
    assert_eq!((agreed.drm_dd_major, agreed.drm_dd_minor), (1, 2));
    assert_eq!(bench.run(&file, drm::IOCTL_GET_UNIQUE, ask).unwrap().unique_len, 16);
    assert!(text.starts_with(b"pci:0000:03:00.0\0"));
    let future = drm::SetVersion { drm_di_minor: 5, ..version };
    assert_eq!(bench.run(&file, drm::IOCTL_SET_VERSION, future).err(), Some(Errno::INVAL));
}

#[test]
fn a_client_sees_itself_alone_and_can_take_a_name() {
    let mut bench = Bench::new();
    let file = bench.open(Node::Primary);
    let ask = |idx| drm::Client { idx, ..bytemuck::Zeroable::zeroed() };
    let me = bench.run(&file, drm::IOCTL_GET_CLIENT, ask(0)).unwrap();
    assert_eq!((me.auth, me.pid), (1, std::process::id().into()));
    assert_eq!(bench.run(&file, drm::IOCTL_GET_CLIENT, ask(1)).err(), Some(Errno::INVAL));

    let mut name = |text: &str| {
        let args = drm::SetClientName { name_len: text.len() as u64, name: text.as_ptr() as u64 };
        bench.run(&file, drm::IOCTL_SET_CLIENT_NAME, args).map(drop)
    };
    assert_eq!(name("two words"), Err(Errno::INVAL));
    assert_eq!(name(&"x".repeat(65)), Err(Errno::INVAL));
    assert_eq!(name("compositor"), Ok(()));
    assert_eq!(file.0.record().name.as_deref(), Some("compositor"));
    assert!(file.fdinfo().unwrap().contains("drm-pdev:\t0000:03:00.0\n"));
}
