// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Servers that say what they must not, or a part of what they should.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod fake;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use common::{read, run, write};
use fake::{Act, Config, Fake, chunk, data, failure, simple};
use virtio_blk_core::disk::{Disk, DiskError, IoBuf, OpKind};
use virtio_blk_nbd::proto::{
    BlockSizes, Chunk, ChunkError, ChunkFlags, ChunkKind, Command, Errno, ExportFlags, Greeting,
    HandshakeFlags, Info, OffsetHole, OptionKind, OptionReply, OptionReplyKind, ReplyMode, Request,
};
use virtio_blk_nbd::{Address, NbdDisk, NbdOptions};

const S: ReplyMode = ReplyMode::Structured;
const E: ReplyMode = ReplyMode::Extended;

type Reply = fn(&Request, ReplyMode) -> Vec<u8>;

fn hole(request: &Request, mode: ReplyMode, last: bool, offset: u64, length: u32) -> Vec<u8> {
    let hole = OffsetHole { offset, length }.encode();
    chunk(request, mode, ChunkKind::OFFSET_HOLE, last, &hole)
}

/// The header of a chunk with a length that its payload does not have.
fn header(request: &Request, mode: ReplyMode, kind: ChunkKind, length: u64) -> Vec<u8> {
    let chunk = Chunk {
        flags: ChunkFlags::DONE,
        kind,
        cookie: request.cookie,
        offset: request.offset,
        length,
    };
    chunk.encode(mode)[..Chunk::len(mode)].to_vec()
}

fn other(request: &Request, cookie: u64) -> Request {
    Request { cookie, ..*request }
}

/// Replies to a read of 1024 bytes at 4096, none of which may be taken for one.
const BAD_READS: &[(&str, Reply)] = &[
    ("another protocol", |_, _| {
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()
    }),
    ("zeroes", |_, _| vec![0; 2000]),
    ("an unknown cookie", |r, m| {
        data(&other(r, 1 << 40), m, true, 4096, &[1; 1024])
    }),
    ("a cookie of no place", |r, m| {
        data(&other(r, u64::MAX), m, true, 4096, &[1; 1024])
    }),
    ("an older cookie", |r, m| {
        data(&other(r, r.cookie ^ 1 << 32), m, true, 4096, &[1; 1024])
    }),
    ("too much data", |r, m| data(r, m, true, 4096, &[1; 1025])),
    ("4 GiB of data", |r, m| {
        header(r, m, ChunkKind::OFFSET_DATA, u32::MAX.into())
    }),
    ("too little data", |r, m| data(r, m, true, 4096, &[1; 1023])),
    ("no data", |r, m| chunk(r, m, ChunkKind::NONE, true, &[])),
    ("data before", |r, m| data(r, m, true, 4095, &[1; 1024])),
    ("data behind", |r, m| data(r, m, true, 4097, &[1; 1024])),
    ("data elsewhere", |r, m| {
        data(r, m, true, u64::MAX - 100, &[1; 1024])
    }),
    ("data from its own beginning", |r, m| {
        data(r, m, true, 0, &[1; 1024])
    }),
    ("an empty piece", |r, m| data(r, m, false, 4096, &[])),
    ("a piece shorter than an offset", |r, m| {
        chunk(r, m, ChunkKind::OFFSET_DATA, true, &[0; 7])
    }),
    ("data twice", |r, m| {
        [
            data(r, m, false, 4096, &[1; 1024]),
            data(r, m, true, 5000, &[1; 8]),
        ]
        .concat()
    }),
    ("a hole over data", |r, m| {
        [
            data(r, m, false, 4096, &[1; 1024]),
            hole(r, m, true, 4096, 1024),
        ]
        .concat()
    }),
    ("data over a hole", |r, m| {
        [
            hole(r, m, false, 4096, 1024),
            data(r, m, true, 5119, &[1; 1]),
        ]
        .concat()
    }),
    ("a hole of no length", |r, m| hole(r, m, true, 4096, 0)),
    ("a hole of 4 GiB", |r, m| hole(r, m, true, 4096, u32::MAX)),
    ("a hole at the end of all", |r, m| {
        hole(r, m, true, u64::MAX, 2)
    }),
    ("a short hole", |r, m| {
        chunk(r, m, ChunkKind::OFFSET_HOLE, true, &[0; 11])
    }),
    ("a long hole", |r, m| {
        chunk(r, m, ChunkKind::OFFSET_HOLE, true, &[0; 13])
    }),
    ("a gap", |r, m| {
        [
            data(r, m, false, 4096, &[1; 511]),
            data(r, m, true, 4608, &[1; 512]),
        ]
        .concat()
    }),
    ("nothing, without an end", |r, m| {
        chunk(r, m, ChunkKind::NONE, false, &[])
    }),
    ("nothing, with a payload", |r, m| {
        chunk(r, m, ChunkKind::NONE, true, &[0; 4])
    }),
    ("block status", |r, m| {
        chunk(r, m, ChunkKind::BLOCK_STATUS, true, &[1; 12])
    }),
    ("an unknown kind", |r, m| {
        chunk(r, m, ChunkKind(99), true, &[1; 12])
    }),
    ("an error without a number", |r, m| {
        chunk(r, m, ChunkKind::ERROR, true, &[0; 3])
    }),
    ("an error that is none", |r, m| {
        let error = ChunkError {
            error: Errno::OK,
            message: "",
            offset: None,
        };
        chunk(r, m, ChunkKind::ERROR, true, &error.encode())
    }),
    ("an error with a long message", |r, m| {
        chunk(r, m, ChunkKind::ERROR, true, b"\0\0\0\x05\xff\xff")
    }),
    ("an error of 4 GiB", |r, m| {
        header(r, m, ChunkKind::ERROR, u32::MAX.into())
    }),
    ("an unknown error of a mebibyte", |r, m| {
        header(r, m, ChunkKind(1 << 15 | 99), 1 << 20)
    }),
];

/// The operation fails, and the next connection is used as if nothing had been.
fn is_refused(name: &str, mode: ReplyMode, command: Command, reply: Reply) {
    let fake = Fake::start(Config {
        mode,
        hook: Box::new(move |number, request, mode| {
            if number == 0 && request.command == command {
                return Act::Say(reply(request, mode));
            }
            Act::Serve
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    let (kind, buf) = match command {
        Command::READ => (OpKind::Read { offset: 4096 }, IoBuf::zeroed(1024)),
        Command::WRITE => (
            OpKind::Write {
                offset: 4096,
                fua: false,
            },
            IoBuf::zeroed(1024),
        ),
        _ => (OpKind::Flush, IoBuf::new()),
    };
    let result = run(&mut *queue, kind, buf).result;
    assert!(
        matches!(result, Err(DiskError::Io(_))),
        "{name} ({mode:?}): {result:?}"
    );
    let since = Instant::now();
    while read(&mut *queue, 8192, 512).is_err() {
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "{name}: not connected again"
        );
        std::thread::yield_now();
    }
    assert!(
        fake.connections() >= 2,
        "{name} ({mode:?}): the connection was kept"
    );
}

#[test]
fn replies_to_reads_that_cannot_be() {
    for mode in [S, E] {
        for (name, reply) in BAD_READS {
            is_refused(name, mode, Command::READ, *reply);
        }
    }
    is_refused("a simple reply", S, Command::READ, |r, _| {
        [simple(r, Errno::OK), vec![1; 1024]].concat()
    });
    is_refused("a simple reply", E, Command::READ, |r, _| {
        simple(r, Errno::IO)
    });
    is_refused("a chunk", ReplyMode::Simple, Command::READ, |r, _| {
        data(r, S, true, 4096, &[1; 1024])
    });
    is_refused("an extended chunk", S, Command::READ, |r, _| {
        data(r, E, true, 4096, &[1; 1024])
    });
    is_refused("2^64 bytes of data", E, Command::READ, |r, m| {
        header(r, m, ChunkKind::OFFSET_DATA, u64::MAX)
    });
}

#[test]
fn replies_to_others_that_cannot_be() {
    for mode in [ReplyMode::Simple, S, E] {
        for command in [Command::WRITE, Command::FLUSH] {
            is_refused("an unknown cookie", mode, command, |r, m| {
                let r = other(r, r.cookie + 1);
                if m == ReplyMode::Simple {
                    simple(&r, Errno::OK)
                } else {
                    failure(&r, m, Errno::IO)
                }
            });
        }
    }
    for mode in [S, E] {
        for command in [Command::WRITE, Command::FLUSH] {
            is_refused("data", mode, command, |r, m| {
                data(r, m, true, r.offset, &[1; 512])
            });
            is_refused("a hole", mode, command, |r, m| {
                hole(r, m, true, r.offset, 512)
            });
        }
    }
}

#[test]
fn a_second_reply_is_refused() {
    for mode in [ReplyMode::Simple, S, E] {
        let fake = Fake::start(Config {
            mode,
            hook: Box::new(|number, request, mode| match number {
                0 => Act::Say(match mode {
                    ReplyMode::Simple => [
                        simple(request, Errno::OK),
                        vec![1; 512],
                        simple(request, Errno::OK),
                    ]
                    .concat(),
                    _ => data(request, mode, true, request.offset, &[1; 512]).repeat(2),
                }),
                _ => Act::Serve,
            }),
            ..Config::default()
        });
        let disk = NbdDisk::open(&fake.options().reconnect(20)).unwrap();
        let mut queue = disk.open_queue(4).unwrap();
        // The first was good, and may be in before the second is seen.
        let first = read(&mut *queue, 512, 512).unwrap();
        assert_eq!(first, [1; 512]);
        // The connection is a new one.
        assert_eq!(read(&mut *queue, 1024, 512).unwrap(), [2; 512]);
        assert_eq!(fake.connections(), 2);
    }
}

#[test]
fn errors_fail_their_request_alone() {
    for mode in [ReplyMode::Simple, S, E] {
        for (number, errno) in [
            (Errno::IO, libc::EIO),
            (Errno::PERM, libc::EPERM),
            (Errno::NOSPC, libc::ENOSPC),
            (Errno::NOMEM, libc::ENOMEM),
            (Errno::OVERFLOW, libc::EOVERFLOW),
            (Errno(4711), libc::EINVAL),
            (Errno(u32::MAX), libc::EINVAL),
        ] {
            let fake = Fake::start(Config {
                mode,
                hook: Box::new(move |_, request, _| match request.offset {
                    512 => Act::Fail(number),
                    _ => Act::Serve,
                }),
                ..Config::default()
            });
            let disk = NbdDisk::open(&fake.options()).unwrap();
            let mut queue = disk.open_queue(1).unwrap();
            let failed = read(&mut *queue, 512, 512).unwrap_err();
            assert_eq!(failed.errno(), Some(errno), "{mode:?}");
            let failed = write(&mut *queue, 512, vec![1; 512]).unwrap_err();
            assert_eq!(failed.errno(), Some(errno), "{mode:?}");
            assert_eq!(read(&mut *queue, 1024, 512).unwrap(), [2; 512]);
            assert_eq!(fake.connections(), 1);
        }
    }
}

#[test]
fn a_part_of_the_data_and_an_error_is_an_error() {
    let fake = Fake::start(Config {
        hook: Box::new(|_, request, mode| {
            Act::Say(
                [
                    data(request, mode, false, request.offset, &[1; 100]),
                    failure(request, mode, Errno::IO),
                ]
                .concat(),
            )
        }),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    assert_eq!(
        read(&mut *queue, 0, 512).unwrap_err().errno(),
        Some(libc::EIO)
    );
    assert_eq!(fake.connections(), 1);
}

#[test]
fn a_request_that_the_server_does_not_have_is_unsupported() {
    let fake = Fake::start(Config {
        hook: Box::new(|_, _, _| Act::Fail(Errno::NOTSUP)),
        ..Config::default()
    });
    let disk = NbdDisk::open(&fake.options()).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    let kind = OpKind::Discard {
        offset: 0,
        len: 512,
    };
    let result = run(&mut *queue, kind, IoBuf::new()).result;
    assert!(matches!(result, Err(DiskError::Unsupported)), "{result:?}");
}

/// What a good server says in the handshake, in one piece.
fn good_handshake() -> Vec<u8> {
    let say = |option, kind, payload: &[u8]| OptionReply::message(option, kind, payload);
    let export = Info::Export {
        size: 1 << 20,
        flags: fake::ALL,
    };
    let sizes = Info::BlockSize(BlockSizes::default());
    [
        Greeting {
            flags: HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES,
        }
        .encode()
        .to_vec(),
        say(
            OptionKind::EXTENDED_HEADERS,
            OptionReplyKind::ERR_UNSUP,
            b"no",
        ),
        say(OptionKind::STRUCTURED_REPLY, OptionReplyKind::ACK, &[]),
        say(
            OptionKind::SET_META_CONTEXT,
            OptionReplyKind::META_CONTEXT,
            b"\0\0\0\x01base:allocation",
        ),
        say(OptionKind::SET_META_CONTEXT, OptionReplyKind::ACK, &[]),
        say(OptionKind::GO, OptionReplyKind::INFO, &export.encode()),
        say(OptionKind::GO, OptionReplyKind::INFO, &sizes.encode()),
        say(OptionKind::GO, OptionReplyKind::ACK, &[]),
    ]
    .concat()
}

/// Opens a disk on a server that says this, whatever it is asked, and then nothing more.
fn handshake(words: &[u8]) -> Result<NbdDisk, DiskError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("n.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let words = words.to_vec();
    let thread = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let _ = stream.write_all(&words);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let disk = NbdDisk::open(&NbdOptions::new(Address::Unix(path)));
    // It may have gone away without reading all.
    drop(thread);
    disk
}

#[test]
fn every_cut_and_every_wrong_byte_of_a_handshake_is_survived() {
    let good = good_handshake();
    handshake(&good).unwrap();
    for len in 0..good.len() {
        assert!(
            handshake(&good[..len]).is_err(),
            "{len} of {} bytes",
            good.len()
        );
    }
    for at in 0..good.len() {
        for flip in [1, 0x80] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            // A different size, say, is none of our business: no panic, no hang.
            let _ = handshake(&bad);
        }
    }
}

#[test]
fn a_handshake_has_an_end() {
    let good = good_handshake();
    let info = OptionReply::message(
        OptionKind::GO,
        OptionReplyKind::INFO,
        &Info::Name("x").encode(),
    );
    // Before the first reply to GO.
    let go = good.len() - 20 - (20 + 14) - (20 + 12);
    let error = handshake(&[&good[..go], &info.repeat(5000)].concat())
        .err()
        .unwrap();
    assert!(error.to_string().contains("without end"), "{error}");
}

#[test]
fn exports_that_cannot_be_disks_are_refused() {
    let open = |config: Config| {
        let fake = Fake::start(config);
        NbdDisk::open(&fake.options()).map(|disk| disk.caps())
    };
    let sizes = |minimum, preferred, maximum| {
        Some(BlockSizes {
            minimum,
            preferred,
            maximum,
        })
    };
    for bad in [
        sizes(0, 1, 1),
        sizes(3, 4, 4),
        sizes(1 << 17, 1 << 17, 1 << 20),
        sizes(512, 256, 4096),
    ] {
        let error = open(Config {
            sizes: bad,
            ..Config::default()
        })
        .unwrap_err();
        assert!(error.to_string().contains("block size"), "{error}");
    }
    let caps = open(Config {
        sizes: sizes(4096, 1 << 20, 1 << 25),
        ..Config::default()
    })
    .unwrap();
    assert_eq!(caps.align.guest_block, 4096);
    caps.validate().unwrap();
    // The last bytes are no whole block.
    let caps = open(Config {
        size: 10_000,
        ..Config::default()
    })
    .unwrap();
    assert_eq!(caps.capacity, 19);
    let caps = open(Config {
        flags: ExportFlags::HAS_FLAGS | ExportFlags::READ_ONLY,
        ..Config::default()
    })
    .unwrap();
    assert!(caps.read_only && !caps.flush && caps.discard.is_none());
    // Without HAS_FLAGS no flag counts.
    let fake = Fake::start(Config::default());
    let error = NbdDisk::open(&fake.options().export("nothing"))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("never heard of it") && error.contains("export=NAME"),
        "{error}"
    );
}

/// A read of each mode, cut at each of its bytes.
fn cuts(mode: ReplyMode, fragment: Option<usize>) {
    // Headers and payloads of both ends, and some of the middle.
    let step = if fake::is_long() { 1 } else { 9 };
    let places = (0..80)
        .step_by(step)
        .chain((80..1500).step_by(97))
        .chain((1020..1110).step_by(step));
    for cut in places {
        let fake = Fake::start(Config {
            mode,
            fragment,
            hook: Box::new(move |number, request, _| match (number, request.command) {
                (0, Command::READ) => Act::Cut(cut),
                _ => Act::Serve,
            }),
            ..Config::default()
        });
        let disk = NbdDisk::open(&fake.options().reconnect(20)).unwrap();
        let mut queue = disk.open_queue(1).unwrap();
        let data = read(&mut *queue, 1024, 1024).unwrap();
        assert!(
            data[..512] == [2; 512] && data[512..] == [3; 512],
            "{mode:?}, cut at {cut}"
        );
    }
}

#[test]
fn cut_simple_replies() {
    cuts(ReplyMode::Simple, None);
}

#[test]
fn cut_structured_replies() {
    cuts(S, Some(300));
}

#[test]
fn cut_extended_replies() {
    cuts(E, Some(300));
}
