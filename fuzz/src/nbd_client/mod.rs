// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The NBD client against a server that says anything.
//!
//! Both ends of a pair of sockets are in one thread, so that each run is the same. Whatever the server says, each operation
//! completes once, after the end of the connection at the latest; reads and writes touch their buffers alone.

mod input;
pub mod seeds;

use std::collections::HashMap;
use std::os::fd::OwnedFd;

pub use input::{Flip, Input, Server, Step};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send, shutdown,
    socketpair,
};
use virtio_blk_core::disk::{Caps, Completion, Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token};
use virtio_blk_nbd::proto::{
    BlockSizes, Chunk, ChunkFlags, ChunkKind, Errno, ExportFlags, Greeting, HandshakeFlags, Info,
    OptionKind, OptionReply, OptionReplyKind, ReplyMode, Request, SimpleReply,
};
use virtio_blk_nbd::{Address, NbdDisk, NbdOptions};

/// The longest operation in blocks.
const LONGEST: u16 = 64;
/// Operations in flight.
const DEPTH: u16 = 8;
/// The most steps: an input is not better for being long.
const STEPS: usize = 200;

/// The server's end.
struct Peer {
    socket: OwnedFd,
    mode: ReplyMode,
    /// What it received and did not understand yet.
    received: Vec<u8>,
    /// Requests, as they came.
    requests: Vec<Request>,
}

impl Peer {
    fn say(&self, bytes: &[u8]) {
        // What finds no room is lost, and the client out of step.
        let _ = send(
            &self.socket,
            bytes,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        );
    }

    /// Takes requests. Once it is out of step it takes nothing more.
    fn take(&mut self) {
        let mut bytes = [0; 4096];
        while let Ok((len, _)) = recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT) {
            if len == 0 {
                break;
            }
            self.received.extend_from_slice(&bytes[..len]);
        }
        let len = Request::len(self.mode);
        while let Some(header) = self.received.get(..len) {
            // The client is not out of step, as it sends its own numbers only.
            let request = Request::decode(header, self.mode).expect("a request of the client's");
            let whole = len + request.payload_len(self.mode) as usize;
            if self.received.len() < whole {
                break;
            }
            self.received.drain(..whole);
            self.requests.push(request);
        }
    }

    fn request(&self, back: u8) -> Request {
        let at = self.requests.len().checked_sub(1 + usize::from(back));
        let none = Request {
            flags: virtio_blk_nbd::proto::CommandFlags::NONE,
            command: virtio_blk_nbd::proto::Command::READ,
            cookie: u64::from(back),
            offset: 0,
            length: 512,
        };
        at.and_then(|at| self.requests.get(at))
            .copied()
            .unwrap_or(none)
    }
}

/// As many bytes as are asked for.
fn count(len: u8, request: &Request) -> usize {
    match len {
        u8::MAX => request.length.min(u64::from(LONGEST) * 512) as usize,
        len => len.into(),
    }
}

/// The whole handshake of a server, and how it replies then.
fn handshake(server: &Server) -> (Vec<u8>, ReplyMode) {
    let say = |option, kind, payload: &[u8]| OptionReply::message(option, kind, payload);
    let answer = |yes| {
        if yes {
            OptionReplyKind::ACK
        } else {
            OptionReplyKind::ERR_UNSUP
        }
    };
    let mode = match server.mode % 3 {
        0 => ReplyMode::Simple,
        1 => ReplyMode::Structured,
        _ => ReplyMode::Extended,
    };
    let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
    let mut words = Greeting { flags }.encode().to_vec();
    words.extend(say(
        OptionKind::EXTENDED_HEADERS,
        answer(mode == ReplyMode::Extended),
        b"",
    ));
    if mode != ReplyMode::Extended {
        words.extend(say(
            OptionKind::STRUCTURED_REPLY,
            answer(mode == ReplyMode::Structured),
            b"",
        ));
    }
    if mode != ReplyMode::Simple {
        let context = b"\0\0\0\x01base:allocation";
        words.extend(say(
            OptionKind::SET_META_CONTEXT,
            OptionReplyKind::META_CONTEXT,
            context,
        ));
        words.extend(say(OptionKind::SET_META_CONTEXT, OptionReplyKind::ACK, b""));
    }
    let export = Info::Export {
        size: u64::from(server.blocks) * 512,
        flags: ExportFlags(server.flags),
    };
    words.extend(say(OptionKind::GO, OptionReplyKind::INFO, &export.encode()));
    if server.minimum <= 16 {
        let minimum = 1 << server.minimum;
        let sizes = Info::BlockSize(BlockSizes {
            minimum,
            preferred: minimum.max(4096),
            maximum: (u32::from(server.maximum) * 512).max(minimum),
        });
        words.extend(say(OptionKind::GO, OptionReplyKind::INFO, &sizes.encode()));
    }
    words.extend(say(OptionKind::GO, OptionReplyKind::ACK, b""));
    (words, mode)
}

/// Operations of a queue, and their ends.
struct Operations {
    queue: Box<dyn IoQueue>,
    caps: Caps,
    next: u64,
    /// What was accepted and did not complete yet: its buffer's length, and what a write holds.
    in_flight: HashMap<Token, (usize, Option<u8>)>,
    done: Vec<Completion>,
}

impl Operations {
    fn open(disk: &NbdDisk) -> Self {
        Self {
            queue: disk.open_queue(DEPTH).expect("there are descriptors"),
            caps: disk.caps(),
            next: 0,
            in_flight: HashMap::new(),
            done: Vec::new(),
        }
    }

    fn submit(&mut self, kind: OpKind, blocks: u16) {
        self.next += 1;
        let token = Token(self.next);
        let len = usize::from(blocks % (LONGEST + 1)) * 512;
        let fill = matches!(kind, OpKind::Write { .. }).then_some(self.next as u8);
        let buf = match kind {
            OpKind::Read { .. } | OpKind::Write { .. } => {
                IoBuf::from_vec(vec![fill.unwrap_or(0xEE); len])
            }
            _ => IoBuf::new(),
        };
        let state = (buf.len(), fill);
        let before = self.in_flight.len();
        match self.queue.submit(Op { token, kind, buf }) {
            Submit::Queued => {
                self.in_flight.insert(token, state);
            }
            Submit::Done(completion) => {
                self.in_flight.insert(token, state);
                self.end(completion);
            }
            Submit::Full(op) => {
                assert_eq!(op.token, token);
                assert!(
                    before >= usize::from(DEPTH),
                    "full with {before} operations"
                );
            }
        }
    }

    fn end(&mut self, completion: Completion) {
        let (len, fill) = self
            .in_flight
            .remove(&completion.token)
            .expect("completed twice, or never submitted");
        assert_eq!(completion.buf.len(), len);
        if let Some(fill) = fill {
            assert!(
                completion.buf.to_vec().iter().all(|byte| *byte == fill),
                "a write's data was changed"
            );
        }
    }

    fn reap(&mut self) -> usize {
        let mut done = std::mem::take(&mut self.done);
        let count = self
            .queue
            .reap(&mut done)
            .expect("the queue is never broken");
        assert_eq!(count, done.len());
        done.drain(..).for_each(|completion| self.end(completion));
        self.done = done;
        count
    }
}

/// Runs an input.
///
/// # Panics
/// The client did what it must not.
pub fn run(input: &Input) {
    let flags = SocketFlags::CLOEXEC;
    let (client, server) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("sockets");
    let (mut words, mode) = handshake(&input.server);
    for flip in input.flips.iter().take(8) {
        match words.get_mut(usize::from(flip.at)) {
            Some(byte) => *byte ^= flip.with,
            None => words.truncate(usize::from(flip.at) % words.len().max(1)),
        }
    }
    let mut peer = Peer {
        socket: server,
        mode,
        received: Vec::new(),
        requests: Vec::new(),
    };
    peer.say(&words);
    let is_good = input.flips.is_empty();
    if !is_good {
        // Else the client waits for what does not come.
        let _ = shutdown(&peer.socket, Shutdown::Write);
    }
    let options = NbdOptions::new(Address::Unix("x".into()));
    let Ok(disk) = NbdDisk::over(&options, client) else {
        return;
    };
    disk.caps()
        .validate()
        .expect("what the disk says of itself makes sense");
    let mut operations = Operations::open(&disk);
    if is_good {
        drain_options(&peer);
        play(&input.steps, &mut peer, &disk, &mut operations);
    } else {
        operations.submit(OpKind::Read { offset: 0 }, 1);
        operations.submit(OpKind::Flush, 0);
    }
    let _ = shutdown(&peer.socket, Shutdown::Both);
    let _ = operations.queue.flush_batch();
    for _ in 0..64 {
        operations.reap();
    }
    assert!(
        operations.in_flight.is_empty(),
        "{} operations never complete",
        operations.in_flight.len()
    );
}

/// Passes over what the client said in the handshake.
fn drain_options(peer: &Peer) {
    let mut bytes = [0; 4096];
    while let Ok((1.., _)) = recv(&peer.socket, &mut bytes, RecvFlags::DONTWAIT) {}
}

fn play(steps: &[Step], peer: &mut Peer, disk: &NbdDisk, operations: &mut Operations) {
    for step in steps.iter().take(STEPS) {
        let place = |at: u16| u64::from(at) * 512;
        match step {
            Step::Read { at, len } => {
                operations.submit(OpKind::Read { offset: place(*at) }, (*len).into());
            }
            Step::Write { at, len, fua } => {
                let offset = place(*at);
                operations.submit(OpKind::Write { offset, fua: *fua }, (*len).into());
            }
            Step::Flush => operations.submit(OpKind::Flush, 0),
            Step::Erase { at, len, zero } => {
                let (offset, len) = (place(*at), place(*len));
                let kind = match zero {
                    true => OpKind::WriteZeroes {
                        offset,
                        len,
                        unmap: true,
                        fua: false,
                    },
                    false => OpKind::Discard { offset, len },
                };
                operations.submit(kind, 0);
            }
            Step::Start => operations
                .queue
                .flush_batch()
                .expect("the queue is never broken"),
            Step::Reap => {
                operations.reap();
            }
            Step::Cancel { token } => operations.queue.cancel(Token((*token).into())),
            Step::Release => operations.queue.release_held(),
            // Not while it would have to wait for replies.
            Step::Reopen if operations.in_flight.is_empty() => {
                *operations = Operations::open(disk);
            }
            Step::Reopen => {}
            Step::Take => peer.take(),
            Step::Say { bytes } => peer.say(bytes),
            Step::Simple {
                request,
                error,
                data,
            } => {
                let request = peer.request(*request);
                let reply = SimpleReply {
                    error: Errno(*error),
                    cookie: request.cookie,
                };
                let data = vec![0xDA; count(*data, &request)];
                peer.say(&[&reply.encode(), &data[..]].concat());
            }
            Step::Chunk {
                request,
                kind,
                last,
                skip,
                len,
                more,
            } => {
                let request = peer.request(*request);
                let len = count(*len, &request);
                let offset = request.offset.wrapping_add_signed((*skip).into());
                let mut payload = match ChunkKind(*kind) {
                    ChunkKind::OFFSET_DATA => {
                        [&offset.to_be_bytes()[..], &vec![0xDA; len]].concat()
                    }
                    ChunkKind::OFFSET_HOLE => {
                        [&offset.to_be_bytes()[..], &(len as u32).to_be_bytes()].concat()
                    }
                    ChunkKind::NONE => Vec::new(),
                    _ => vec![0; len],
                };
                if ChunkKind(*kind).is_error()
                    && let Some(byte) = payload.get_mut(3)
                {
                    *byte = 5;
                }
                let chunk = Chunk {
                    flags: ChunkFlags::NONE.with(ChunkFlags::DONE, *last),
                    kind: ChunkKind(*kind),
                    cookie: request.cookie,
                    offset: request.offset,
                    length: (payload.len() as u64 + u64::from(*more)).min(u32::MAX.into()),
                };
                let header = chunk.encode(peer.mode);
                peer.say(&[&header[..Chunk::len(peer.mode)], &payload[..]].concat());
            }
            Step::Close => {
                let _ = shutdown(&peer.socket, Shutdown::Write);
            }
        }
    }
    assert!(operations.in_flight.len() <= usize::from(DEPTH));
    let _ = operations.caps;
}
