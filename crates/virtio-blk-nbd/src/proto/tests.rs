// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use proptest::prelude::*;

use super::*;

const MODES: [ReplyMode; 3] = [
    ReplyMode::Simple,
    ReplyMode::Structured,
    ReplyMode::Extended,
];

/// Each proper beginning of a message is refused, and so is each with something behind it.
fn refuses_other_lengths<T: std::fmt::Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, ProtoError>,
) {
    decode(bytes).unwrap();
    for len in 0..bytes.len() {
        let got = decode(&bytes[..len]);
        assert!(got.is_err(), "{len} of {} bytes: {got:?}", bytes.len());
    }
    let got = decode(&[bytes, &[0]].concat());
    assert!(got.is_err(), "a byte more: {got:?}");
}

#[test]
fn headers_are_on_the_wire_as_the_specification_has_them() {
    let greeting = Greeting {
        flags: HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES,
    };
    assert_eq!(&greeting.encode(), b"NBDMAGICIHAVEOPT\0\x03");
    let option = OptionHeader {
        kind: OptionKind::GO,
        len: 0x0102,
    };
    assert_eq!(&option.encode(), b"IHAVEOPT\0\0\0\x07\0\0\x01\x02");
    let reply = OptionReply {
        option: OptionKind::GO,
        kind: OptionReplyKind::ERR_UNSUP,
        len: 3,
    };
    assert_eq!(
        &reply.encode(),
        b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\x80\0\0\x01\0\0\0\x03"
    );
    let request = Request {
        flags: CommandFlags::FUA,
        command: Command::WRITE,
        cookie: 0x0102_0304_0506_0708,
        offset: 0x1000,
        length: 0x200,
    };
    assert_eq!(
        &request.encode(ReplyMode::Simple).unwrap()[..Request::LEN],
        b"\x25\x60\x95\x13\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\0\0\x02\0"
    );
    assert_eq!(
        &request.encode(ReplyMode::Extended).unwrap(),
        b"\x21\xe4\x1c\x71\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x02\0"
    );
    let reply = SimpleReply {
        error: Errno::NOSPC,
        cookie: 1,
    };
    assert_eq!(
        &reply.encode(),
        b"\x67\x44\x66\x98\0\0\0\x1c\0\0\0\0\0\0\0\x01"
    );
    let chunk = Chunk {
        flags: ChunkFlags::DONE,
        kind: ChunkKind::ERROR_OFFSET,
        cookie: 1,
        offset: 7,
        length: 14,
    };
    assert_eq!(
        &chunk.encode(ReplyMode::Structured)[..Chunk::LEN],
        b"\x66\x8e\x33\xef\0\x01\x80\x02\0\0\0\0\0\0\0\x01\0\0\0\x0e"
    );
    assert_eq!(
        &chunk.encode(ReplyMode::Extended),
        b"\x6e\x8a\x27\x8c\0\x01\x80\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x0e"
    );
}

#[test]
fn greetings_of_others_are_refused() {
    let good = Greeting {
        flags: HandshakeFlags::FIXED_NEWSTYLE,
    };
    assert_eq!(Greeting::decode(&good.encode()), Ok(good));
    let mut old = good.encode();
    old[8..16].copy_from_slice(&0x0000_4202_8186_1253_u64.to_be_bytes());
    assert_eq!(Greeting::decode(&old), Err(ProtoError::OldStyle));
    for at in 0..16 {
        let mut bad = good.encode();
        bad[at] ^= 0x40;
        let got = Greeting::decode(&bad);
        assert!(
            matches!(got, Err(ProtoError::Magic { .. })),
            "{at}: {got:?}"
        );
    }
}

#[test]
fn a_reply_belongs_to_its_option_and_is_not_too_long() {
    let reply = OptionReply {
        option: OptionKind::GO,
        kind: OptionReplyKind::INFO,
        len: MAX_OPTION as u32,
    };
    assert_eq!(
        OptionReply::decode(&reply.encode(), OptionKind::GO),
        Ok(reply)
    );
    let got = OptionReply::decode(&reply.encode(), OptionKind::INFO);
    assert!(
        matches!(got, Err(ProtoError::Value { found: 7, .. })),
        "{got:?}"
    );
    for len in [MAX_OPTION as u32 + 1, u32::MAX] {
        let long = OptionReply { len, ..reply };
        let got = OptionReply::decode(&long.encode(), OptionKind::GO);
        assert!(matches!(got, Err(ProtoError::Length { .. })), "{got:?}");
    }
}

#[test]
fn lengths_inside_of_payloads_are_not_believed() {
    // A name of 4 GiB, one that is longer than the payload, and one beyond the limit that is there in full.
    for (len, there) in [(u32::MAX, 4), (5, 4), (4097, 5000)] {
        let payload = [&len.to_be_bytes()[..], &vec![b'a'; there]].concat();
        assert!(ExportRequest::decode(&payload).is_err(), "{len}");
        assert!(MetaContextQuery::decode(&payload).is_err(), "{len}");
        assert!(ServerExport::decode(&payload).is_err(), "{len}");
    }
    // More kinds of information, or queries, than there are bytes for.
    let payload = [&[0; 4][..], &u16::MAX.to_be_bytes(), &[0; 20]].concat();
    assert!(ExportRequest::decode(&payload).is_err());
    let payload = [&[0; 4][..], &u32::MAX.to_be_bytes(), &[0; 20]].concat();
    assert!(MetaContextQuery::decode(&payload).is_err());
    // A message that is longer than its chunk.
    let payload = [&5_u32.to_be_bytes()[..], &9_u16.to_be_bytes(), b"12345678"].concat();
    let got = ChunkError::decode(ChunkKind::ERROR, &payload);
    assert!(matches!(got, Err(ProtoError::Short { .. })), "{got:?}");
    // More extents than the chunk holds, fewer, none, and a part of one.
    for (count, there) in [(u32::MAX, 16), (1, 32), (0, 0), (1, 15), (1, 0)] {
        let payload = [&[0; 4][..], &count.to_be_bytes(), &vec![1; there]].concat();
        let got = BlockStatus::decode(ChunkKind::BLOCK_STATUS_EXT, &payload);
        assert!(got.is_err(), "{count} in {there}: {got:?}");
    }
}

#[test]
fn text_must_be_text() {
    for name in [&b"\xff"[..], b"a\0b"] {
        let payload = [&(name.len() as u32).to_be_bytes()[..], name, &[0; 4]].concat();
        let got = MetaContextQuery::decode(&payload);
        assert!(matches!(got, Err(ProtoError::Text { .. })), "{got:?}");
    }
    // What a server says of an error is for people only.
    assert_eq!(OptionReply::error_text(b"no\xff way\n"), "no\u{fffd} way");
    assert_eq!(OptionReply::error_text(&[b'x'; 9000]).len(), MAX_STRING);
}

#[test]
fn what_is_sent_is_never_longer_than_a_string_may_be() {
    let long = "ü".repeat(MAX_STRING);
    let request = ExportRequest {
        name: &long,
        infos: vec![InfoKind::NAME],
    };
    let bytes = request.encode();
    assert_eq!(
        ExportRequest::decode(&bytes).unwrap().name.len(),
        MAX_STRING
    );
    let error = ChunkError {
        error: Errno::IO,
        message: &long,
        offset: Some(1),
    };
    assert_eq!(error.encode().len(), ChunkError::MAX_LEN);
}

#[test]
fn block_sizes_make_sense() {
    let sizes = |minimum, preferred, maximum| BlockSizes {
        minimum,
        preferred,
        maximum,
    };
    for good in [
        BlockSizes::default(),
        sizes(1, 1, 1),
        sizes(65536, 65536, 65536),
        sizes(512, 1 << 31, u32::MAX),
        sizes(512, 4096, 512),
    ] {
        let bytes = Info::BlockSize(good).encode();
        assert_eq!(Info::decode(&bytes), Ok(Info::BlockSize(good)));
    }
    for bad in [
        sizes(0, 4096, 4096),
        sizes(3, 4096, 4096),
        sizes(1 << 17, 1 << 17, 1 << 17),
        sizes(512, 0, 4096),
        sizes(512, 256, 4096),
        sizes(512, 1000, 4096),
        sizes(512, 4096, 0),
        sizes(512, 4096, 511),
    ] {
        let bytes = Info::BlockSize(bad).encode();
        let got = Info::decode(&bytes);
        assert!(
            matches!(got, Err(ProtoError::Value { .. })),
            "{bad:?}: {got:?}"
        );
    }
}

#[test]
fn sizes_beyond_offsets_are_refused() {
    let flags = ExportFlags::HAS_FLAGS;
    for (size, good) in [(i64::MAX as u64, true), (1 << 63, false), (u64::MAX, false)] {
        let info = Info::Export { size, flags }.encode();
        assert_eq!(Info::decode(&info).is_ok(), good);
        let old = OldExport { size, flags }.encode();
        assert_eq!(OldExport::decode(&old).is_ok(), good);
    }
}

#[test]
fn messages_of_other_lengths_are_refused() {
    for mode in MODES {
        let request = Request {
            flags: CommandFlags::NONE,
            command: Command::READ,
            cookie: 1,
            offset: 2,
            length: 3,
        };
        let bytes = request.encode(mode).unwrap();
        refuses_other_lengths(&bytes[..Request::len(mode)], |b| Request::decode(b, mode));
        if mode != ReplyMode::Simple {
            let chunk = Chunk {
                flags: ChunkFlags::DONE,
                kind: ChunkKind::NONE,
                cookie: 1,
                offset: 0,
                length: 0,
            };
            let bytes = chunk.encode(mode);
            refuses_other_lengths(&bytes[..Chunk::len(mode)], |b| ReplyHeader::decode(b, mode));
        }
        if mode != ReplyMode::Extended {
            let reply = SimpleReply {
                error: Errno::OK,
                cookie: 1,
            };
            refuses_other_lengths(&reply.encode(), |b| ReplyHeader::decode(b, mode));
        }
    }
    let hole = OffsetHole {
        offset: 1,
        length: 2,
    };
    refuses_other_lengths(&hole.encode(), OffsetHole::decode);
    for offset in [None, Some(9)] {
        let error = ChunkError {
            error: Errno::IO,
            message: "because",
            offset,
        };
        refuses_other_lengths(&error.encode(), |b| {
            ChunkError::decode(error.kind(), b).map(drop)
        });
    }
    let request = ExportRequest {
        name: "disk",
        infos: vec![InfoKind::BLOCK_SIZE, InfoKind::NAME],
    };
    refuses_other_lengths(&request.encode(), |b| ExportRequest::decode(b).map(drop));
    let query = MetaContextQuery {
        export: "disk",
        queries: vec![BASE_ALLOCATION, "qemu:"],
    };
    refuses_other_lengths(&query.encode(), |b| MetaContextQuery::decode(b).map(drop));
    let flags = ExportFlags::HAS_FLAGS;
    let info = Info::Export { size: 1, flags };
    refuses_other_lengths(&info.encode(), |b| Info::decode(b).map(drop));
}

#[test]
fn a_reply_must_fit_the_mode() {
    let simple = SimpleReply {
        error: Errno::OK,
        cookie: 0,
    }
    .encode();
    let chunk = Chunk {
        flags: ChunkFlags::DONE,
        kind: ChunkKind::NONE,
        cookie: 0,
        offset: 0,
        length: 0,
    };
    let structured = chunk.encode(ReplyMode::Structured);
    let extended = chunk.encode(ReplyMode::Extended);
    for mode in MODES {
        let fits = |bytes: &[u8]| ReplyHeader::len(*bytes.first_chunk().unwrap(), mode).is_ok();
        assert_eq!(fits(&simple), mode != ReplyMode::Extended);
        assert_eq!(fits(&structured), mode == ReplyMode::Structured);
        assert_eq!(fits(&extended), mode == ReplyMode::Extended);
        assert!(!fits(b"HTTP"));
    }
}

#[test]
fn a_chunk_with_an_error_has_one() {
    let none = ChunkError {
        error: Errno::OK,
        message: "",
        offset: None,
    };
    let bytes = none.encode();
    let got = ChunkError::decode(ChunkKind::ERROR, &bytes);
    assert!(matches!(got, Err(ProtoError::Value { .. })), "{got:?}");
    // What a later version adds is passed over.
    let later = ChunkKind(1 << 15 | 77);
    assert!(later.is_error());
    let payload = [&5_u32.to_be_bytes()[..], &2_u16.to_be_bytes(), b"ohmore"].concat();
    let got = ChunkError::decode(later, &payload).unwrap();
    assert_eq!((got.error, got.message), (Errno::IO, "oh"));
}

#[test]
fn a_request_beyond_4_gib_needs_extended_headers() {
    let request = Request {
        flags: CommandFlags::NONE,
        command: Command::TRIM,
        cookie: 0,
        offset: 0,
        length: 1 << 32,
    };
    assert!(request.encode(ReplyMode::Structured).is_err());
    let bytes = request.encode(ReplyMode::Extended).unwrap();
    assert_eq!(Request::decode(&bytes, ReplyMode::Extended), Ok(request));
}

#[test]
fn payloads_of_requests() {
    let request = |command, flags| Request {
        flags,
        command,
        cookie: 0,
        offset: 0,
        length: 10,
    };
    let (none, payload) = (CommandFlags::NONE, CommandFlags::PAYLOAD_LEN);
    for (command, flags, simple, extended) in [
        (Command::WRITE, none, 10, 10),
        (Command::WRITE, payload, 10, 10),
        (Command::READ, none, 0, 0),
        (Command::BLOCK_STATUS, payload, 0, 10),
    ] {
        let request = request(command, flags);
        assert_eq!(request.payload_len(ReplyMode::Structured), simple);
        assert_eq!(request.payload_len(ReplyMode::Extended), extended);
    }
}

#[test]
fn errors_have_numbers_on_both_sides() {
    for errno in [
        Errno::PERM,
        Errno::IO,
        Errno::NOMEM,
        Errno::INVAL,
        Errno::NOSPC,
        Errno::OVERFLOW,
        Errno::NOTSUP,
        Errno::SHUTDOWN,
    ] {
        let host = errno.to_host().unwrap();
        assert_eq!(Errno::of_host(host), errno);
    }
    assert_eq!(Errno::OK.to_host(), None);
    assert_eq!(Errno(4711).to_host(), Some(libc::EINVAL));
    assert_eq!(Errno::of_host(libc::EROFS), Errno::PERM);
    assert_eq!(Errno::of_host(libc::ENODEV), Errno::IO);
}

proptest! {
    #[test]
    fn nothing_panics_at_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = ExportRequest::decode(&bytes);
        let _ = MetaContextQuery::decode(&bytes);
        let _ = MetaContext::decode(&bytes);
        let _ = ServerExport::decode(&bytes);
        let _ = Info::decode(&bytes);
        let _ = OffsetHole::decode(&bytes);
        let _ = split_offset(&bytes);
        for kind in [ChunkKind::ERROR, ChunkKind::ERROR_OFFSET, ChunkKind(u16::MAX)] {
            let _ = ChunkError::decode(kind, &bytes);
        }
        for kind in [ChunkKind::BLOCK_STATUS, ChunkKind::BLOCK_STATUS_EXT] {
            if let Ok(status) = BlockStatus::decode(kind, &bytes) {
                prop_assert_eq!(status.encode(kind), bytes.clone());
            }
        }
        for mode in MODES {
            let _ = Request::decode(&bytes, mode);
            let _ = ReplyHeader::decode(&bytes, mode);
        }
    }

    #[test]
    fn requests_and_chunks_come_back(
        flags in any::<u16>(), kind in any::<u16>(), cookie in any::<u64>(), offset in any::<u64>(),
        length in any::<u64>(),
    ) {
        for mode in MODES {
            let extended = mode == ReplyMode::Extended;
            let length = if extended { length } else { length >> 32 };
            let request = Request {
                flags: CommandFlags(flags), command: Command(kind), cookie, offset, length,
            };
            let bytes = request.encode(mode).unwrap();
            prop_assert_eq!(Request::decode(&bytes[..Request::len(mode)], mode), Ok(request));
            if mode == ReplyMode::Simple {
                continue;
            }
            let chunk = Chunk {
                flags: ChunkFlags(flags), kind: ChunkKind(kind), cookie,
                offset: if extended { offset } else { 0 }, length,
            };
            let bytes = chunk.encode(mode);
            let len = ReplyHeader::len(*bytes.first_chunk().unwrap(), mode).unwrap();
            prop_assert_eq!(ReplyHeader::decode(&bytes[..len], mode), Ok(ReplyHeader::Chunk(chunk)));
        }
    }

    #[test]
    fn names_come_back(
        name in "[^\0]{0,40}", queries in proptest::collection::vec("[^\0]{0,20}", 0..9), id in any::<u32>(),
        infos in proptest::collection::vec(any::<u16>(), 0..9),
    ) {
        let request = ExportRequest { name: &name, infos: infos.into_iter().map(InfoKind).collect() };
        let bytes = request.encode();
        prop_assert_eq!(ExportRequest::decode(&bytes).unwrap(), request);
        let query = MetaContextQuery {
            export: &name, queries: queries.iter().map(String::as_str).collect(),
        };
        let bytes = query.encode();
        prop_assert_eq!(MetaContextQuery::decode(&bytes).unwrap(), query);
        let context = MetaContext { id, name: &name };
        let bytes = context.encode();
        prop_assert_eq!(MetaContext::decode(&bytes).unwrap(), context);
        let export = ServerExport { name: &name, description: &name };
        let bytes = export.encode();
        prop_assert_eq!(ServerExport::decode(&bytes).unwrap(), export);
        for info in [Info::Name(&name), Info::Description(&name)] {
            let bytes = info.encode();
            prop_assert_eq!(Info::decode(&bytes).unwrap(), info);
        }
    }
}
