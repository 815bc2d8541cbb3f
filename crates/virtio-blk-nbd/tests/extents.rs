// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an export holds: block status of servers that tell it well, badly, late, and not at all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod fake;
mod servers;

use std::ops::Range;
use std::os::unix::fs::FileExt;

use common::{read, write};
use fake::{Act, CONTEXT, Config, Fake, chunk, failure, simple};
use servers::Server;
use virtio_blk_core::disk::Allocation::{Data, Hole};
use virtio_blk_core::disk::{Allocation, Disk};
use virtio_blk_nbd::NbdDisk;
use virtio_blk_nbd::proto::{
    BlockSizes, BlockStatus, ChunkKind, Command, Errno, ExportFlags, ReplyMode, Request,
    StatusExtent,
};

fn extents(disk: &NbdDisk, range: Range<u64>, most: usize) -> Vec<(u64, Allocation)> {
    let extents = disk.extents(range, most).unwrap().into_iter();
    extents
        .map(|extent| (extent.len, extent.allocation))
        .collect()
}

/// All of the disk, asked for in several calls.
fn all(disk: &NbdDisk, most: usize) -> Vec<(u64, Allocation)> {
    let (mut at, end) = (0, disk.caps().capacity_bytes());
    let mut list: Vec<(u64, Allocation)> = Vec::new();
    while at < end {
        for (len, allocation) in extents(disk, at..end, most) {
            at += len;
            match list.last_mut() {
                Some(last) if last.1 == allocation => last.0 += len,
                _ => list.push((len, allocation)),
            }
        }
    }
    assert_eq!(at, end);
    list
}

#[test]
fn extents_are_told_with_and_without_queues() {
    for mode in [ReplyMode::Structured, ReplyMode::Extended] {
        for flags in [fake::ALL, fake::ALL.without(ExportFlags::CAN_MULTI_CONN)] {
            let fake = Fake::start(Config {
                mode,
                flags,
                ..Config::default()
            });
            let disk = NbdDisk::open(&fake.options()).unwrap();
            fake.shared.data.lock().unwrap().fill(1);
            fake.shared.data.lock().unwrap()[8192..12288].fill(0);
            let wanted = [(8192, Data), (4096, Hole), ((1 << 20) - 12288, Data)];
            for most in [1, 2, 1000] {
                assert_eq!(all(&disk, most), wanted, "{mode:?} {most}");
            }
            // On the queue's connection.
            let mut queue = disk.open_queue(4).unwrap();
            assert_eq!(all(&disk, 3), wanted);
            write(&mut *queue, 8192, vec![1; 4096]).unwrap();
            assert_eq!(all(&disk, 3), [(1 << 20, Data)]);
            assert_eq!(extents(&disk, 512..1024, 3), [(512, Data)]);
            assert_eq!(fake.connections(), 1);
            assert!(disk.extents(0..(1 << 20) + 512, 1).is_err());
            assert!(disk.extents(512..512, 1).is_err());
        }
    }
}

#[test]
fn all_is_data_where_the_server_does_not_tell() {
    let fake = Fake::start(Config {
        mode: ReplyMode::Simple,
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options()).unwrap();
    assert_eq!(extents(&disk, 0..1 << 20, 9), [(1 << 20, Data)]);
    assert!(fake.commands().is_empty());
}

#[test]
fn the_bounds_of_blocks_are_kept() {
    // The server checks them.
    let fake = Fake::start(Config {
        sizes: Some(BlockSizes {
            minimum: 4096,
            preferred: 4096,
            maximum: 1 << 20,
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options()).unwrap();
    fake.shared.data.lock().unwrap()[..8192].fill(0);
    assert_eq!(extents(&disk, 1000..9000, 9), [(7192, Hole), (808, Data)]);
}

#[test]
fn other_servers_tell_what_their_files_hold() {
    let sparse = |server: &Server| {
        let file = std::fs::File::create(server.file()).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; 65536], 0).unwrap();
        file.write_all_at(&[1; 65536], 524_288).unwrap();
    };
    let mut nbdkit = Server::nbdkit(1 << 20, false, &[], &[]);
    let mut qemu = Server::qemu_nbd(1 << 20, &["--shared=4"]);
    for server in [&mut nbdkit, &mut qemu] {
        server.kill();
        sparse(server);
        server.run();
        let disk = NbdDisk::open(&server.options()).unwrap();
        let _queue = disk.open_queue(4).unwrap();
        let wanted = [
            (65536, Data),
            (458_752, Hole),
            (65536, Data),
            (458_752, Hole),
        ];
        assert_eq!(all(&disk, 1), wanted);
        assert_eq!(all(&disk, 100), wanted);
    }
}

fn status(request: &Request, mode: ReplyMode, context: u32, list: &[(u64, u64)]) -> Vec<u8> {
    let extents = list
        .iter()
        .map(|&(length, flags)| StatusExtent { length, flags });
    let status = BlockStatus {
        context,
        extents: extents.collect(),
    };
    let kind = ChunkKind::BLOCK_STATUS;
    chunk(request, mode, kind, true, &status.encode(kind))
}

/// No replies to a request.
type Reply = fn(&Request, ReplyMode) -> Vec<u8>;

const BAD: &[(&str, Reply)] = &[
    ("nothing", |r, m| chunk(r, m, ChunkKind::NONE, true, &[])),
    ("a simple reply", |r, _| simple(r, Errno::OK)),
    ("data", |r, m| {
        chunk(r, m, ChunkKind::OFFSET_DATA, true, &[0; 16])
    }),
    ("a context alone", |r, m| {
        chunk(r, m, ChunkKind::BLOCK_STATUS, true, &CONTEXT.to_be_bytes())
    }),
    ("another context", |r, m| {
        status(r, m, CONTEXT + 1, &[(512, 0)])
    }),
    ("an empty extent", |r, m| {
        status(r, m, CONTEXT, &[(512, 0), (0, 0)])
    }),
    ("half an extent", |r, m| {
        chunk(
            r,
            m,
            ChunkKind::BLOCK_STATUS,
            true,
            &[0, 0, 0, 7, 0, 0, 2, 0, 0, 0, 0, 0, 1],
        )
    }),
    ("a count that is not true", |r, m| {
        let mut bytes = vec![0, 0, 0, 7, 0, 0, 0, 2];
        bytes.extend([1; 16]);
        chunk(r, m, ChunkKind::BLOCK_STATUS_EXT, true, &bytes)
    }),
    ("two lists", |r, m| {
        let mut first = status(r, m, CONTEXT, &[(512, 0)]);
        // Not the last.
        first[5] = 0;
        [first, status(r, m, CONTEXT, &[(512, 0)])].concat()
    }),
    ("a list for a read", |r, m| {
        let read = Request {
            cookie: r.cookie ^ 1 << 32,
            ..*r
        };
        status(&read, m, CONTEXT, &[(512, 0)])
    }),
];

#[test]
fn what_is_no_answer_breaks_the_connection_and_no_more() {
    for (what, reply) in BAD {
        let fake = Fake::start(Config {
            hook: Box::new(
                move |number, request, mode| match (number, request.command) {
                    (0, Command::BLOCK_STATUS) => Act::Say(reply(request, mode)),
                    _ => Act::Serve,
                },
            ),
            ..Config::default()
        });
        let disk = NbdDisk::open(&fake.options()).unwrap();
        let error = disk.extents(0..4096, 9).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EPROTO), "{what}: {error}");
        // In a window it is asked again.
        let disk = NbdDisk::open(&fake.options().reconnect(20)).unwrap();
        let mut queue = disk.open_queue(4).unwrap();
        assert_eq!(extents(&disk, 512..1024, 9), [(512, Data)], "{what}");
        assert_eq!(read(&mut *queue, 512, 512).unwrap(), [1; 512]);
    }
}

#[test]
fn an_error_is_an_error() {
    let fake = Fake::start(Config {
        hook: Box::new(|_, request, mode| match request.command {
            Command::BLOCK_STATUS => Act::Say(failure(request, mode, Errno::IO)),
            _ => Act::Serve,
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let error = disk.extents(0..4096, 9).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EIO));
    assert_eq!(fake.connections(), 1);
}

/// A million extents, of which few are asked for: they are received and forgotten, also in pieces.
#[test]
fn a_list_without_end_takes_no_memory() {
    let fake = Fake::start(Config {
        hook: Box::new(|_, request, mode| match request.command {
            Command::BLOCK_STATUS => {
                let list: Vec<_> = (0..1 << 20).map(|at| (512, at % 2 * 3)).collect();
                Act::Say(status(request, mode, CONTEXT, &list))
            }
            _ => Act::Serve,
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    assert_eq!(
        extents(&disk, 0..1 << 20, 3),
        [(512, Data), (512, Hole), (512, Data)]
    );
    assert_eq!(read(&mut *queue, 512, 512).unwrap(), [1; 512]);
    assert_eq!(fake.connections(), 1);
}
