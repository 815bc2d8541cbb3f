// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A server in this process, and a client that sends what a test wants.

#![allow(dead_code, reason = "each test uses a part")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nbd_server::{
    Export, ExportOptions, Exports, Listener, Server, ServerError, ServerHandle, ServerOptions,
};
use tempfile::TempDir;
use virtio_blk_core::disk::Disk;
use virtio_blk_nbd::proto::*;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server with one export, `disk`.
pub struct Serving {
    directory: TempDir,
    pub handle: ServerHandle,
    pub export: Arc<Export>,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

impl Serving {
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self::with(disk, ExportOptions::default(), ServerOptions::default())
    }

    pub fn with(disk: Arc<dyn Disk>, export: ExportOptions, options: ServerOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let export = ExportOptions {
            name: "disk".to_owned(),
            ..export
        };
        let export = Export::new(disk, export).unwrap();
        let exports = Exports::default();
        exports.add(export.clone()).unwrap();
        let server = Server::new(Listener::Unix(listener), exports, options).unwrap();
        let handle = server.handle();
        let thread = std::thread::spawn(move || server.run());
        Self {
            directory,
            handle,
            export,
            thread: Some(thread),
        }
    }

    /// A connection on which nothing was said yet.
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.path().join("s")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A client that uses the export.
    pub fn client(&self, mode: ReplyMode) -> Client {
        let mut client = Client::greet(self.connect());
        client.agree(mode);
        client.go();
        client
    }

    /// Ends the server.
    pub fn stop(mut self) -> Result<(), ServerError> {
        self.handle.stop();
        self.thread.take().unwrap().join().unwrap()
    }

    /// Waits until there are as many connections.
    pub fn wait_connections(&self, wanted: usize) {
        let until = std::time::Instant::now() + PATIENCE;
        while self.handle.connections() != wanted {
            assert!(
                std::time::Instant::now() < until,
                "{} connections",
                self.handle.connections()
            );
            std::thread::yield_now();
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The end of a reply.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// With what was read, or the payloads of block status, each with its kind.
    Done(Vec<(ChunkKind, Vec<u8>)>),
    Failed(Errno, String),
}

pub struct Client {
    pub stream: UnixStream,
    pub mode: ReplyMode,
}

impl Client {
    /// Up to the options.
    pub fn greet(mut stream: UnixStream) -> Self {
        let mut greeting = [0; Greeting::LEN];
        stream.read_exact(&mut greeting).unwrap();
        let greeting = Greeting::decode(&greeting).unwrap();
        assert!(greeting.flags.contains(HandshakeFlags::FIXED_NEWSTYLE));
        let flags = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
        stream.write_all(&flags.0.to_be_bytes()).unwrap();
        Self {
            stream,
            mode: ReplyMode::Simple,
        }
    }

    pub fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn send_option(&mut self, kind: OptionKind, payload: &[u8]) {
        let len = payload.len() as u32;
        let header = OptionHeader { kind, len }.encode();
        self.stream.write_all(&[&header, payload].concat()).unwrap();
    }

    pub fn option_reply(&mut self, kind: OptionKind) -> (OptionReplyKind, Vec<u8>) {
        let header = self.read(OptionReply::LEN);
        let reply = OptionReply::decode(header.first_chunk().unwrap(), kind).unwrap();
        (reply.kind, self.read(reply.len as usize))
    }

    /// An option, and all replies to it.
    pub fn option(&mut self, kind: OptionKind, payload: &[u8]) -> Vec<(OptionReplyKind, Vec<u8>)> {
        self.send_option(kind, payload);
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply(kind);
            let last = reply.0 == OptionReplyKind::ACK || reply.0.is_error();
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    pub fn agree(&mut self, mode: ReplyMode) {
        let kind = match mode {
            ReplyMode::Simple => return,
            ReplyMode::Structured => OptionKind::STRUCTURED_REPLY,
            ReplyMode::Extended => OptionKind::EXTENDED_HEADERS,
        };
        assert_eq!(self.option(kind, &[]), [(OptionReplyKind::ACK, vec![])]);
        self.mode = mode;
    }

    /// Sets contexts, and returns the names of those that there are.
    pub fn contexts(&mut self, queries: &[&str]) -> Vec<String> {
        let query = MetaContextQuery {
            export: "disk",
            queries: queries.to_vec(),
        };
        let replies = self.option(OptionKind::SET_META_CONTEXT, &query.encode());
        let (last, contexts) = replies.split_last().unwrap();
        assert_eq!(last.0, OptionReplyKind::ACK);
        let name =
            |(_, payload): &(_, Vec<u8>)| MetaContext::decode(payload).unwrap().name.to_owned();
        contexts.iter().map(name).collect()
    }

    /// Begins to use the export; returns its size and flags.
    pub fn go(&mut self) -> (u64, ExportFlags) {
        let request = ExportRequest {
            name: "disk",
            infos: vec![InfoKind::BLOCK_SIZE],
        };
        let replies = self.option(OptionKind::GO, &request.encode());
        let (kind, payload) = replies.last().unwrap();
        assert_eq!(
            *kind,
            OptionReplyKind::ACK,
            "{}",
            OptionReply::error_text(payload)
        );
        let export = replies
            .iter()
            .find_map(|(_, payload)| match Info::decode(payload) {
                Ok(Info::Export { size, flags }) => Some((size, flags)),
                _ => None,
            });
        export.unwrap()
    }

    pub fn send(&mut self, request: &Request, payload: &[u8]) {
        let bytes = request.encode(self.mode).unwrap();
        let header = &bytes[..Request::len(self.mode)];
        self.stream.write_all(&[header, payload].concat()).unwrap();
    }

    /// The next reply, whichever request it is to; `read` is the length of each read in flight.
    pub fn reply(&mut self, read: usize) -> (u64, Reply) {
        let mut chunks = Vec::new();
        loop {
            let magic = self.read(ReplyHeader::MAGIC_LEN);
            let len = ReplyHeader::len(*magic.first_chunk().unwrap(), self.mode).unwrap();
            let rest = self.read(len - magic.len());
            match ReplyHeader::decode(&[magic, rest].concat(), self.mode).unwrap() {
                ReplyHeader::Simple(reply) if reply.error == Errno::OK => {
                    let data = self.read(read);
                    if read > 0 {
                        chunks.push((ChunkKind::NONE, data));
                    }
                    return (reply.cookie, Reply::Done(chunks));
                }
                ReplyHeader::Simple(reply) => {
                    return (reply.cookie, Reply::Failed(reply.error, String::new()));
                }
                ReplyHeader::Chunk(chunk) => {
                    let payload = self.read(chunk.length as usize);
                    if chunk.kind.is_error() {
                        let error = ChunkError::decode(chunk.kind, &payload).unwrap();
                        let failed = Reply::Failed(error.error, error.message.to_owned());
                        assert!(chunk.is_last());
                        return (chunk.cookie, failed);
                    }
                    if chunk.kind != ChunkKind::NONE {
                        chunks.push((chunk.kind, payload));
                    }
                    if chunk.is_last() {
                        return (chunk.cookie, Reply::Done(chunks));
                    }
                }
            }
        }
    }

    /// A request and its reply.
    pub fn ask(&mut self, request: &Request, payload: &[u8]) -> Reply {
        self.send(request, payload);
        let read = match (request.command, self.mode) {
            (Command::READ, ReplyMode::Simple) => request.length as usize,
            _ => 0,
        };
        let (cookie, reply) = self.reply(read);
        assert_eq!(cookie, request.cookie);
        reply
    }

    /// What is read.
    pub fn read_at(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let reply = self.ask(&request(Command::READ, offset, len), &[]);
        let Reply::Done(chunks) = reply else {
            panic!("{reply:?}");
        };
        let [(kind, data)] = &chunks[..] else {
            panic!("{} chunks", chunks.len());
        };
        if *kind == ChunkKind::OFFSET_DATA {
            let (at, data) = split_offset(data).unwrap();
            assert_eq!(at, offset);
            return data.to_vec();
        }
        data.clone()
    }

    /// Whether the server has closed the connection.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => true,
            Err(error) => panic!("{error}"),
        }
    }
}

pub const fn request(command: Command, offset: u64, length: u64) -> Request {
    Request {
        flags: CommandFlags::NONE,
        command,
        cookie: 0x0123_4567_89ab_cdef,
        offset,
        length,
    }
}

/// Data that is different everywhere, but repeats itself after 64 KiB and 8 bytes.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let word = |i: u64| (seed.wrapping_add(i)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words: Vec<u8> = (0..8193).flat_map(|i| word(i + 1).to_le_bytes()).collect();
    let mut data = words.repeat(len.div_ceil(words.len()));
    data.truncate(len);
    data
}
