// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whatever a client sends or leaves out, its connection ends in time and the next client is served.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use common::{Client, Reply, Serving, request};
use nbd_server::{ExportOptions, ServerOptions};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_nbd::proto::*;

fn serving() -> Serving {
    Serving::new(Arc::new(MemoryDisk::new(1 << 20).unwrap()))
}

/// Everything that a client sends which does a bit of all.
fn conversation(mode: ReplyMode) -> Vec<u8> {
    let mut bytes = ClientFlags::FIXED_NEWSTYLE.0.to_be_bytes().to_vec();
    let mut option = |kind, payload: &[u8]| {
        let len = payload.len() as u32;
        bytes.extend_from_slice(&OptionHeader { kind, len }.encode());
        bytes.extend_from_slice(payload);
    };
    match mode {
        ReplyMode::Simple => {}
        ReplyMode::Structured => option(OptionKind::STRUCTURED_REPLY, &[]),
        ReplyMode::Extended => option(OptionKind::EXTENDED_HEADERS, &[]),
    }
    option(OptionKind::LIST, &[]);
    let query = MetaContextQuery {
        export: "disk",
        queries: vec![BASE_ALLOCATION],
    };
    option(OptionKind::SET_META_CONTEXT, &query.encode());
    let export = ExportRequest {
        name: "disk",
        infos: vec![InfoKind::BLOCK_SIZE, InfoKind::NAME],
    };
    option(OptionKind::GO, &export.encode());
    for (command, len) in [
        (Command::WRITE, 512),
        (Command::READ, 4096),
        (Command::BLOCK_STATUS, 1 << 20),
        (Command::WRITE_ZEROES, 512),
        (Command::FLUSH, 0),
        (Command::DISC, 0),
    ] {
        let request = request(command, 0, len);
        bytes.extend_from_slice(&request.encode(mode).unwrap()[..Request::len(mode)]);
        if command == Command::WRITE {
            bytes.extend_from_slice(&[7; 512]);
        }
    }
    bytes
}

#[test]
fn a_conversation_may_end_after_each_byte() {
    let serving = serving();
    for mode in [
        ReplyMode::Simple,
        ReplyMode::Structured,
        ReplyMode::Extended,
    ] {
        let bytes = conversation(mode);
        for end in 0..=bytes.len() {
            let mut stream = serving.connect();
            stream.write_all(&bytes[..end]).unwrap();
            // Half of them wait for replies, the others are gone at once.
            if end % 2 == 0 {
                stream.shutdown(Shutdown::Write).unwrap();
                std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
            }
            drop(stream);
            if end % 16 == 0 {
                serving.wait_connections(0);
            }
        }
    }
    serving.wait_connections(0);
    assert_eq!(
        serving.client(ReplyMode::Extended).read_at(512, 512),
        [0; 512]
    );
    assert!(serving.export.counters().clients > 100);
    serving.stop().unwrap();
}

#[test]
fn a_conversation_may_have_any_byte_wrong() {
    let serving = serving();
    for mode in [ReplyMode::Structured, ReplyMode::Extended] {
        let bytes = conversation(mode);
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            let mut stream = serving.connect();
            // It may be closed before all is sent.
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Write);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
            if at % 16 == 0 {
                drop(stream);
                serving.wait_connections(0);
            }
        }
    }
    serving.wait_connections(0);
    assert_eq!(
        serving.client(ReplyMode::Simple).read_at(4096, 512),
        [0; 512]
    );
    serving.stop().unwrap();
}

#[test]
fn options_of_all_kinds_and_lengths_have_a_reply() {
    let serving = serving();
    let mut client = Client::greet(serving.connect());
    for kind in (0..20).chain([77, u32::MAX]).map(OptionKind) {
        if [OptionKind::EXPORT_NAME, OptionKind::ABORT].contains(&kind) {
            continue;
        }
        for len in [1, 3, 4, 5, 7, 100, 64 << 10, (64 << 10) + 1, 1 << 20] {
            let replies = client.option(kind, &vec![0xff; len]);
            let (reply, _) = replies.last().unwrap();
            assert!(reply.is_error(), "{kind:?} of {len} bytes: {reply:?}");
        }
    }
    // A length inside of the payload that is not there.
    for kind in [
        OptionKind::GO,
        OptionKind::INFO,
        OptionKind::SET_META_CONTEXT,
    ] {
        let replies = client.option(kind, &u32::MAX.to_be_bytes());
        assert!(replies[0].0.is_error(), "{replies:?}");
    }
    let nobody = ExportRequest {
        name: "nobody",
        infos: vec![],
    };
    let replies = client.option(OptionKind::GO, &nobody.encode());
    assert_eq!(replies[0].0, OptionReplyKind::ERR_UNKNOWN);
    let contexts = MetaContextQuery {
        export: "disk",
        queries: vec![],
    };
    let replies = client.option(OptionKind::LIST_META_CONTEXT, &contexts.encode());
    assert_eq!(
        replies[0].0,
        OptionReplyKind::ERR_INVALID,
        "without structured replies"
    );
    client.agree(ReplyMode::Extended);
    let replies = client.option(OptionKind::STRUCTURED_REPLY, &[]);
    assert_eq!(
        replies[0].0,
        OptionReplyKind::ERR_EXT_HEADER_REQD,
        "there is no way back"
    );
    client.go();
    assert_eq!(client.read_at(0, 512), [0; 512]);
}

#[test]
fn a_flood_of_options_ends() {
    let serving = serving();
    let mut client = Client::greet(serving.connect());
    let mut writer = client.stream.try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        let header = OptionHeader {
            kind: OptionKind(4711),
            len: 0,
        };
        let options = header.encode().repeat(64);
        while writer.write_all(&options).is_ok() {}
    });
    let mut replies = 0;
    let mut header = [0; OptionReply::LEN];
    while std::io::Read::read_exact(&mut client.stream, &mut header).is_ok() {
        replies += 1;
    }
    drop(client);
    flood.join().unwrap();
    assert_eq!(replies, 1024);
    serving.wait_connections(0);
}

#[test]
fn an_option_that_is_endless_does_not_outlive_the_deadline() {
    let options = ServerOptions {
        handshake_time: Duration::from_millis(300),
        ..ServerOptions::default()
    };
    let disk = Arc::new(MemoryDisk::new(1 << 20).unwrap());
    let serving = Serving::with(disk, ExportOptions::default(), options);
    // Silent from the start, after its flags, in an option, and while it is skipped.
    let silent = serving.connect();
    let flags = Client::greet(serving.connect());
    let mut within = Client::greet(serving.connect());
    within.stream.write_all(b"IHAVEOPT\0\0").unwrap();
    let mut endless = Client::greet(serving.connect());
    let header = OptionHeader {
        kind: OptionKind::LIST,
        len: u32::MAX,
    };
    endless.stream.write_all(&header.encode()).unwrap();
    let sender = std::thread::spawn({
        let mut stream = endless.stream.try_clone().unwrap();
        move || while stream.write_all(&[0; 4096]).is_ok() {}
    });
    serving.wait_connections(0);
    sender.join().unwrap();
    // A client that is through may be silent for as long as it likes.
    let mut client = serving.client(ReplyMode::Structured);
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(client.read_at(0, 512), [0; 512]);
    drop((silent, flags, within, endless));
}

#[test]
fn more_connections_than_allowed_are_closed() {
    let options = ServerOptions {
        connections: 2,
        ..ServerOptions::default()
    };
    let disk = Arc::new(MemoryDisk::new(1 << 20).unwrap());
    let serving = Serving::with(disk, ExportOptions::default(), options);
    let mut first = serving.client(ReplyMode::Structured);
    let second = serving.client(ReplyMode::Structured);
    let mut third = Client {
        stream: serving.connect(),
        mode: ReplyMode::Simple,
    };
    assert!(third.is_closed());
    drop(second);
    serving.wait_connections(1);
    let mut again = serving.client(ReplyMode::Structured);
    assert_eq!(again.read_at(0, 512), first.read_at(0, 512));
}

#[test]
fn a_client_that_reads_no_replies_is_held_back() {
    let serving = serving();
    let mut client = serving.client(ReplyMode::Structured);
    client
        .stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let request = request(Command::READ, 0, 1 << 20)
        .encode(client.mode)
        .unwrap();
    let mut sent = 0_u64;
    // Until the socket is full: the server has stopped to read.
    while client.stream.write_all(&request[..Request::LEN]).is_ok() {
        sent += 1;
        assert!(sent < 1 << 20);
    }
    // What it has taken is far from what was sent: 32 MiB of data, and what is in sockets.
    assert!(
        serving.export.counters().reads < 100,
        "{:?}",
        serving.export.counters()
    );
    assert!(sent > 100);
    // Others are served meanwhile, and a stop does not wait for it longer than it must.
    assert_eq!(serving.client(ReplyMode::Simple).read_at(0, 512), [0; 512]);
}

#[test]
fn a_client_without_the_fixed_handshake_gets_zeroes() {
    let serving = serving();
    let mut stream = serving.connect();
    let mut bytes = 0_u32.to_be_bytes().to_vec();
    let len = 4;
    let kind = OptionKind::EXPORT_NAME;
    bytes.extend_from_slice(&OptionHeader { kind, len }.encode());
    bytes.extend_from_slice(b"disk");
    stream.write_all(&bytes).unwrap();
    let mut client = Client {
        stream,
        mode: ReplyMode::Simple,
    };
    client.read(Greeting::LEN);
    let export = client.read(OldExport::LEN);
    let export = OldExport::decode(export.first_chunk().unwrap()).unwrap();
    assert_eq!(export.size, 1 << 20);
    assert_eq!(client.read(EXPORT_NAME_ZEROES), [0; EXPORT_NAME_ZEROES]);
    assert_eq!(client.read_at(0, 512), [0; 512]);
    let flush = client.ask(&request(Command::FLUSH, 0, 0), &[]);
    assert_eq!(flush, Reply::Done(vec![]));
}
