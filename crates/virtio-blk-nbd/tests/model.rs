// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The disk against a vector of bytes, over a server in the process and over servers of others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod fake;
mod servers;

use common::{Act, BLOCK, Rig, act, read, write};
use fake::{Config, Fake};
use proptest::prelude::*;
use servers::Server;
use virtio_blk_core::disk::Disk;
use virtio_blk_nbd::proto::{BlockSizes, ExportFlags, HandshakeFlags, ReplyMode};
use virtio_blk_nbd::{NbdDisk, NbdOptions};

const BLOCKS: u64 = 512;

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let most = prop_oneof![6 => Just(16_u64), 1 => Just(300)];
    proptest::collection::vec(most.prop_flat_map(|most| act(BLOCKS, most)), 1..60)
}

fn depth() -> impl Strategy<Value = u16> {
    prop_oneof![Just(1), Just(2), Just(32)]
}

fn mode() -> impl Strategy<Value = ReplyMode> {
    prop_oneof![
        Just(ReplyMode::Simple),
        Just(ReplyMode::Structured),
        Just(ReplyMode::Extended)
    ]
}

fn flags() -> impl Strategy<Value = ExportFlags> {
    any::<(bool, bool, bool)>().prop_map(|(flush, fua, zeroes)| {
        ExportFlags::HAS_FLAGS
            .with(ExportFlags::SEND_TRIM, zeroes)
            .with(ExportFlags::SEND_FLUSH, flush)
            .with(ExportFlags::SEND_FUA, fua)
            .with(ExportFlags::SEND_WRITE_ZEROES, zeroes)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn in_the_process(
        acts in acts(), depth in depth(), mode in mode(), flags in flags(), tcp in any::<bool>(),
        maximum in prop_oneof![Just(None), Just(Some(512)), Just(Some(5000)), Just(Some(u32::MAX))],
        fragment in prop_oneof![Just(None), Just(Some(512)), Just(Some(700))],
    ) {
        let sizes = maximum.map(|maximum| BlockSizes { minimum: 512, preferred: 4096, maximum });
        let size = BLOCKS as usize * BLOCK;
        let fake = Fake::start(Config { size, mode, flags, sizes, fragment, tcp, ..Config::default() });
        let disk = NbdDisk::open(&fake.options()).unwrap();
        let mut rig = Rig::new(&disk, depth, BLOCK);
        acts.into_iter().for_each(|act| rig.act(act));
        let model = rig.finish();
        prop_assert!(*fake.shared.data.lock().unwrap() == model);
    }
}

/// A sequence on a server of another program, which is compared with its file.
fn others(server: &Server, options: &NbdOptions, acts: Vec<Act>, depth: u16) {
    let disk = NbdDisk::open(options).unwrap();
    let mut rig = Rig::new(&disk, depth, BLOCK);
    acts.into_iter().for_each(|act| rig.act(act));
    let model = rig.finish();
    drop(disk);
    assert!(std::fs::read(server.file()).unwrap() == model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn qemu_nbd(acts in acts(), depth in depth()) {
        let server = Server::qemu_nbd(BLOCKS as usize * BLOCK, &["--shared=8", "--discard=unmap"]);
        others(&server, &server.options(), acts, depth);
    }

    #[test]
    fn nbdkit(acts in acts(), depth in depth(), tcp in any::<bool>()) {
        let server = Server::nbdkit(BLOCKS as usize * BLOCK, tcp, &[], &[]);
        others(&server, &server.options(), acts, depth);
    }
}

#[test]
fn old_servers_work() {
    for (handshake, old) in [
        (HandshakeFlags::NONE, false),
        (HandshakeFlags::FIXED_NEWSTYLE, true),
        (
            HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES,
            true,
        ),
    ] {
        let fake = Fake::start(Config {
            handshake,
            old,
            mode: ReplyMode::Simple,
            ..Config::default()
        });
        let disk = NbdDisk::open(&fake.options()).unwrap();
        let mut queue = disk.open_queue(1).unwrap();
        write(&mut *queue, 512, vec![7; 1024]).unwrap();
        assert_eq!(read(&mut *queue, 0, 1024).unwrap()[512..], [7; 512]);
    }
}

/// Four queues at once, each on sectors of its own.
fn at_once(disk: &dyn Disk) {
    std::thread::scope(|scope| {
        for number in 0..4_u64 {
            let mut queue = disk.open_queue(8).unwrap();
            scope.spawn(move || {
                for round in 0..60_u64 {
                    let offset = (round % 20 * 4 + number) * 512;
                    let data = vec![(round * 4 + number) as u8; 512];
                    write(&mut *queue, offset, data.clone()).unwrap();
                    assert!(read(&mut *queue, offset, 512).unwrap() == data);
                }
            });
        }
    });
}

#[test]
fn queues_have_a_connection_each_or_share_one() {
    let multiple = Fake::start(Config::default());
    at_once(&NbdDisk::open(&multiple.options()).unwrap());
    assert!((1..=4).contains(&multiple.connections()));
    let disk = NbdDisk::open(&multiple.options()).unwrap();
    let before = multiple.connections();
    let queues: Vec<_> = (0..4).map(|_| disk.open_queue(1).unwrap()).collect();
    assert_eq!(multiple.connections(), before + 3);
    // They are used again.
    drop(queues);
    let _queues: Vec<_> = (0..4).map(|_| disk.open_queue(1).unwrap()).collect();
    assert_eq!(multiple.connections(), before + 3);
    let disk = NbdDisk::open(&multiple.options().connections(2.try_into().unwrap())).unwrap();
    at_once(&disk);
    assert_eq!(multiple.connections(), before + 5);

    let single = Fake::start(Config {
        flags: fake::ALL.without(ExportFlags::CAN_MULTI_CONN),
        ..Config::default()
    });
    at_once(&NbdDisk::open(&single.options()).unwrap());
    assert_eq!(single.connections(), 1);
}

#[test]
fn a_server_with_fewer_clients_than_queues_works() {
    let server = Server::qemu_nbd(1 << 20, &["--shared=2"]);
    at_once(&NbdDisk::open(&server.options()).unwrap());
}
