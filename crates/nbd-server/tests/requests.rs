// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What each request does, in each form of replies.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::ops::Range;
use std::sync::Arc;

use common::{Client, Reply, Serving, pattern, request};
use nbd_server::{Bitmaps, ExportOptions, Marked, ServerOptions};
use virtio_blk_core::disk::Disk;
use virtio_blk_disks::{MemoryDisk, NullDisk};
use virtio_blk_nbd::proto::*;

const MODES: [ReplyMode; 3] = [
    ReplyMode::Simple,
    ReplyMode::Structured,
    ReplyMode::Extended,
];
const SIZE: u64 = 64 << 20;

fn memory() -> Arc<dyn Disk> {
    Arc::new(MemoryDisk::new(SIZE).unwrap())
}

fn done() -> Reply {
    Reply::Done(vec![])
}

fn errno(reply: Reply) -> Errno {
    match reply {
        Reply::Failed(errno, _) => errno,
        Reply::Done(_) => Errno::OK,
    }
}

fn with(request: Request, flags: CommandFlags) -> Request {
    Request { flags, ..request }
}

#[test]
fn what_is_written_is_read() {
    let serving = Serving::new(memory());
    for mode in MODES {
        let mut client = serving.client(mode);
        let mut other = serving.client(ReplyMode::Structured);
        for (offset, len) in [
            (0, 512),
            (4096, 4096),
            (1 << 20, 100 << 10),
            (SIZE - 512, 512),
            (0, 32 << 20),
        ] {
            let data = pattern(offset + len as u64, len);
            let write = request(Command::WRITE, offset, len as u64);
            assert_eq!(client.ask(&write, &data), done(), "{mode:?}");
            assert!(client.read_at(offset, len as u64) == data, "{mode:?}");
            assert!(other.read_at(offset, len as u64) == data, "{mode:?}");
        }
        let fua = with(request(Command::WRITE, 0, 512), CommandFlags::FUA);
        assert_eq!(client.ask(&fua, &[7; 512]), done());
        assert_eq!(client.ask(&request(Command::FLUSH, 0, 0), &[]), done());
        for (command, flags) in [
            (Command::TRIM, CommandFlags::FUA),
            (Command::WRITE_ZEROES, CommandFlags::NONE),
            (
                Command::WRITE_ZEROES,
                CommandFlags::NO_HOLE | CommandFlags::FUA,
            ),
            (Command::WRITE_ZEROES, CommandFlags::FAST_ZERO),
        ] {
            assert_eq!(
                client.ask(&request(Command::WRITE, 0, 512), &[7; 512]),
                done()
            );
            assert_eq!(
                client.ask(&with(request(command, 0, 512), flags), &[]),
                done()
            );
            assert_eq!(client.read_at(0, 512), [0; 512], "{command:?}");
        }
        let slow = CommandFlags::FAST_ZERO | CommandFlags::NO_HOLE;
        let slow = with(request(Command::WRITE_ZEROES, 0, 512), slow);
        assert_eq!(errno(client.ask(&slow, &[])), Errno::NOTSUP);
    }
    serving.stop().unwrap();
}

#[test]
fn requests_that_make_no_sense_fail_and_the_next_one_works() {
    let serving = Serving::new(memory());
    for mode in MODES {
        let mut client = serving.client(mode);
        let inval = |request| (request, Errno::INVAL);
        let nospc = |request| (request, Errno::NOSPC);
        for (request, wanted) in [
            inval(request(Command::READ, 0, 0)),
            inval(request(Command::READ, 1, 512)),
            inval(request(Command::READ, 0, 513)),
            inval(request(Command::READ, SIZE, 512)),
            inval(request(Command::READ, SIZE - 512, 1024)),
            inval(request(Command::READ, u64::MAX - 511, 512)),
            inval(request(Command::READ, 0, (32 << 20) + 512)),
            inval(with(request(Command::READ, 0, 512), CommandFlags::NO_HOLE)),
            inval(with(request(Command::READ, 0, 512), CommandFlags(1 << 15))),
            inval(request(Command::WRITE, 0, 0)),
            inval(request(Command::WRITE, 0, 100)),
            nospc(request(Command::WRITE, SIZE, 512)),
            nospc(request(Command::WRITE, u64::MAX - 511, 4096)),
            inval(request(Command::WRITE, 0, (32 << 20) + 512)),
            inval(request(Command::TRIM, SIZE, 512)),
            inval(request(Command::TRIM, 0, SIZE + 512)),
            nospc(request(Command::WRITE_ZEROES, 0, SIZE + 512)),
            inval(request(Command::CACHE, 0, 512)),
            inval(request(Command(4711), 0, 512)),
            // No context was agreed upon.
            inval(request(Command::BLOCK_STATUS, 0, 512)),
        ] {
            let payload = match request.command {
                Command::WRITE => vec![1; request.length as usize],
                _ => vec![],
            };
            let reply = client.ask_failing(&request, &payload);
            assert_eq!(errno(reply), wanted, "{mode:?} {request:?}");
        }
        assert_eq!(client.read_at(0, 512), [0; 512], "{mode:?}");
    }
    serving.stop().unwrap();
}

trait AskFailing {
    fn ask_failing(&mut self, request: &Request, payload: &[u8]) -> Reply;
}

impl AskFailing for Client {
    /// As `ask`, without data in a simple reply.
    fn ask_failing(&mut self, request: &Request, payload: &[u8]) -> Reply {
        self.send(request, payload);
        let (cookie, reply) = self.reply(0);
        assert_eq!(cookie, request.cookie);
        reply
    }
}

#[test]
fn a_read_only_export_is_not_changed() {
    let options = ExportOptions {
        read_only: true,
        ..ExportOptions::default()
    };
    let serving = Serving::with(memory(), options, ServerOptions::default());
    let mut client = Client::greet(serving.connect());
    let (size, flags) = client.go();
    assert_eq!(size, SIZE);
    assert!(flags.contains(ExportFlags::READ_ONLY | ExportFlags::CAN_MULTI_CONN));
    assert!(!flags.contains(ExportFlags::SEND_TRIM));
    for command in [Command::WRITE, Command::TRIM, Command::WRITE_ZEROES] {
        let payload: &[u8] = if command == Command::WRITE {
            &[1; 512]
        } else {
            &[]
        };
        let reply = client.ask(&request(command, 0, 512), payload);
        assert_eq!(errno(reply), Errno::PERM, "{command:?}");
    }
    assert_eq!(client.read_at(0, 512), [0; 512]);
}

#[test]
fn more_than_there_is_memory_for_waits() {
    let serving = Serving::new(memory());
    let mut client = serving.client(ReplyMode::Structured);
    let mut reader = Client {
        stream: client.stream.try_clone().unwrap(),
        mode: client.mode,
    };
    // More than there are slots, and bytes.
    let asker = std::thread::spawn(move || {
        for cookie in 0..300 {
            let read = Request {
                cookie,
                ..request(Command::READ, (cookie % 60) << 20, 1 << 20)
            };
            client.send(&read, &[]);
        }
    });
    let mut seen = [false; 300];
    for _ in 0..300 {
        let (cookie, reply) = reader.reply(0);
        assert!(matches!(reply, Reply::Done(chunks) if chunks[0].1.len() == (1 << 20) + 8));
        assert!(!std::mem::replace(&mut seen[cookie as usize], true));
    }
    asker.join().unwrap();
    serving.stop().unwrap();
}

/// Changes in every second MiB.
struct Stripes;

impl Bitmaps for Stripes {
    fn names(&self) -> Vec<String> {
        vec!["stripes".to_owned(), "other".to_owned()]
    }

    fn marks(&self, name: &str, range: Range<u64>, most: usize) -> Option<Vec<Marked>> {
        if name != "stripes" {
            return None;
        }
        let mut marks = Vec::new();
        let mut at = range.start;
        while at < range.end && marks.len() < most {
            let end = ((at >> 20) + 1) << 20;
            let len = end.min(range.end) - at;
            let dirty = (at >> 20) % 2 == 1;
            marks.push(Marked { len, dirty });
            at += len;
        }
        Some(marks)
    }
}

fn statuses(reply: Reply) -> Vec<BlockStatus> {
    let Reply::Done(chunks) = reply else {
        panic!("{reply:?}");
    };
    let decode = |(kind, payload): &(_, Vec<u8>)| BlockStatus::decode(*kind, payload).unwrap();
    chunks.iter().map(decode).collect()
}

#[test]
fn block_status_in_several_contexts() {
    let disk = memory();
    let options = ExportOptions {
        bitmaps: Some(Box::new(Stripes)),
        ..ExportOptions::default()
    };
    let serving = Serving::with(disk, options, ServerOptions::default());
    for mode in [ReplyMode::Structured, ReplyMode::Extended] {
        let mut client = Client::greet(serving.connect());
        client.agree(mode);
        let list = MetaContextQuery {
            export: "disk",
            queries: vec!["qemu:"],
        };
        let listed = client.option(OptionKind::LIST_META_CONTEXT, &list.encode());
        assert_eq!(listed.len(), 3);
        let chosen = client.contexts(&["qemu:dirty-bitmap:stripes", BASE_ALLOCATION, "x:y"]);
        assert_eq!(chosen, [BASE_ALLOCATION, "qemu:dirty-bitmap:stripes"]);
        client.go();
        let zero = request(Command::WRITE_ZEROES, 0, SIZE);
        assert_eq!(client.ask(&zero, &[]), done());
        let write = request(Command::WRITE, 4 << 20, 512);
        assert_eq!(client.ask(&write, &[1; 512]), done());
        let all = statuses(client.ask(&request(Command::BLOCK_STATUS, 0, SIZE), &[]));
        let [allocation, stripes] = &all[..] else {
            panic!("{all:?}");
        };
        let extent = |length, flags| StatusExtent { length, flags };
        // The memory disk has chunks of 64 KiB.
        let data = extent(64 << 10, 0);
        let rest = extent(SIZE - (4 << 20) - (64 << 10), 3);
        assert_eq!(allocation.extents, [extent(4 << 20, 3), data, rest]);
        assert_eq!(stripes.extents.len(), 64);
        assert_eq!(stripes.extents[1], extent(1 << 20, 1));
        let one = with(
            request(Command::BLOCK_STATUS, 0, SIZE),
            CommandFlags::REQ_ONE,
        );
        let one = statuses(client.ask(&one, &[]));
        assert!(
            one.iter().all(|status| status.extents.len() == 1),
            "{one:?}"
        );
    }
}

#[test]
fn a_bitmap_that_is_gone_is_an_error() {
    let options = ExportOptions {
        bitmaps: Some(Box::new(Stripes)),
        ..ExportOptions::default()
    };
    let serving = Serving::with(memory(), options, ServerOptions::default());
    let mut client = Client::greet(serving.connect());
    client.agree(ReplyMode::Structured);
    client.contexts(&["qemu:dirty-bitmap:other"]);
    client.go();
    let Reply::Failed(errno, text) = client.ask(&request(Command::BLOCK_STATUS, 0, 512), &[])
    else {
        panic!("there is none");
    };
    assert_eq!(errno, Errno::IO);
    assert!(text.contains("other"), "{text}");
}

#[test]
fn many_extents_come_in_several_replies() {
    let disk = Arc::new(MemoryDisk::new(1 << 30).unwrap());
    let serving = Serving::new(disk);
    let mut client = Client::greet(serving.connect());
    client.agree(ReplyMode::Structured);
    client.contexts(&[BASE_ALLOCATION]);
    client.go();
    // A chunk of data, a chunk without.
    for at in (0..1 << 27).step_by(128 << 10) {
        let write = request(Command::WRITE, at, 512);
        assert_eq!(client.ask(&write, &[1; 512]), done());
    }
    let (mut at, mut replies, mut data) = (0, 0, 0);
    while at < 1 << 30 {
        let status = statuses(client.ask(&request(Command::BLOCK_STATUS, at, (1 << 30) - at), &[]));
        assert!(status[0].extents.len() <= 512);
        for extent in &status[0].extents {
            at += extent.length;
            data += u64::from(extent.flags == 0);
        }
        replies += 1;
    }
    assert_eq!((at, data), (1 << 30, 1024));
    assert!(replies > 3, "{replies}");
}

#[test]
fn a_disk_that_can_do_little_says_so() {
    let serving = Serving::new(Arc::new(NullDisk::new(1 << 20).unwrap().zero_fill(false)));
    let mut client = Client::greet(serving.connect());
    let (_, flags) = client.go();
    assert!(!flags.contains(ExportFlags::SEND_WRITE_ZEROES));
    assert!(!flags.contains(ExportFlags::SEND_FAST_ZERO));
    let zeroes = client.ask(&request(Command::WRITE_ZEROES, 0, 512), &[]);
    assert_eq!(errno(zeroes), Errno::INVAL);
}
