// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A server in the test's process that does what the test tells it to.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use virtio_blk_nbd::proto::{
    BASE_ALLOCATION, BlockSizes, BlockStatus, Chunk, ChunkError, ChunkFlags, ChunkKind, Command,
    CommandFlags, Errno, ExportFlags, ExportRequest, Greeting, HandshakeFlags, Info, MetaContext,
    OffsetHole, OldExport, OptionHeader, OptionKind, OptionReply, OptionReplyKind, ReplyMode,
    Request, SimpleReply, StatusExtent,
};
use virtio_blk_nbd::{Address, NbdOptions};

/// The number of the context `base:allocation`.
pub const CONTEXT: u32 = 7;

/// All that a server can do.
pub const ALL: ExportFlags = ExportFlags(
    ExportFlags::HAS_FLAGS.0
        | ExportFlags::SEND_FLUSH.0
        | ExportFlags::SEND_FUA.0
        | ExportFlags::SEND_TRIM.0
        | ExportFlags::SEND_WRITE_ZEROES.0
        | ExportFlags::CAN_MULTI_CONN.0,
);

/// What to do with a request.
pub enum Act {
    /// What it asks for, with a good reply.
    Serve,
    /// What it asks for, without a reply.
    Swallow,
    /// Nothing but an error.
    Fail(Errno),
    /// Nothing but these bytes.
    Say(Vec<u8>),
    /// Nothing but these bytes, in so many parts with a pause after each.
    Dribble(Vec<u8>, usize, Duration),
    /// What it asks for, so many bytes of the reply, and the end of the connection.
    Cut(usize),
    /// The end of the connection.
    Close,
    /// What it asks for, with a reply once the gate is open.
    Wait(Arc<Gate>),
}

/// Something to wait for.
#[derive(Default)]
pub struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    pub fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    pub fn wait(&self) {
        let open = self.open.lock().unwrap();
        let wait = self
            .changed
            .wait_timeout_while(open, Duration::from_secs(30), |open| !*open);
        assert!(*wait.unwrap().0, "the gate stays shut");
    }
}

type Hook = Box<dyn Fn(usize, &Request, ReplyMode) -> Act + Send + Sync>;

/// What the server is like.
pub struct Config {
    pub size: usize,
    pub flags: ExportFlags,
    pub handshake: HandshakeFlags,
    pub sizes: Option<BlockSizes>,
    pub mode: ReplyMode,
    /// Replies to reads come in chunks of so many bytes, zeroes as holes, from the end to the beginning.
    pub fragment: Option<usize>,
    /// GO is not known.
    pub old: bool,
    pub tcp: bool,
    pub hook: Hook,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            size: 1 << 20,
            flags: ALL,
            handshake: HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES,
            sizes: None,
            mode: ReplyMode::Structured,
            fragment: None,
            old: false,
            tcp: false,
            hook: Box::new(|_, _, _| Act::Serve),
        }
    }
}

/// What is known of the server's work.
pub struct Shared {
    config: Mutex<Config>,
    pub data: Mutex<Vec<u8>>,
    /// Requests in the order in which they came, with the number of the connection.
    pub log: Mutex<Vec<(usize, Request)>>,
    came: Condvar,
    pub connections: AtomicUsize,
    stopped: AtomicBool,
    /// Connections are closed as soon as they are there.
    pub refuses: AtomicBool,
}

pub struct Fake {
    pub shared: Arc<Shared>,
    address: Address,
    _directory: Option<tempfile::TempDir>,
    thread: Option<JoinHandle<()>>,
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

trait Both: Read + Write + Send {}
impl<T: Read + Write + Send> Both for T {}

impl Listener {
    fn accept(&self) -> io::Result<Box<dyn Both>> {
        Ok(match self {
            Self::Unix(listener) => Box::new(listener.accept()?.0),
            Self::Tcp(listener) => Box::new(listener.accept()?.0),
        })
    }
}

impl Fake {
    pub fn start(config: Config) -> Self {
        let tcp = config.tcp;
        let shared = Arc::new(Shared {
            data: Mutex::new((0..config.size).map(|i| (i / 512) as u8).collect()),
            config: Mutex::new(config),
            log: Mutex::default(),
            came: Condvar::new(),
            connections: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
        });
        let (listener, address, directory) = if tcp {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let host = "127.0.0.1".to_owned();
            (Listener::Tcp(listener), Address::Tcp { host, port }, None)
        } else {
            let directory = tempfile::tempdir().unwrap();
            let path: PathBuf = directory.path().join("n.sock");
            let listener = UnixListener::bind(&path).unwrap();
            (
                Listener::Unix(listener),
                Address::Unix(path),
                Some(directory),
            )
        };
        let mine = shared.clone();
        let thread = std::thread::spawn(move || {
            loop {
                let stream = listener.accept().unwrap();
                if mine.stopped.load(Ordering::SeqCst) {
                    return;
                }
                if mine.refuses.load(Ordering::SeqCst) {
                    continue;
                }
                let number = mine.connections.fetch_add(1, Ordering::SeqCst);
                let mine = mine.clone();
                // The client goes away sooner or later, and the thread with it.
                std::thread::spawn(move || {
                    let _ = serve(&mine, number, stream);
                });
            }
        });
        Self {
            shared,
            address,
            _directory: directory,
            thread: Some(thread),
        }
    }

    pub fn options(&self) -> NbdOptions {
        NbdOptions::new(self.address.clone())
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    pub fn set(&self, change: impl FnOnce(&mut Config)) {
        change(&mut self.shared.config.lock().unwrap());
    }

    /// Waits until `count` requests for which `chosen` says yes have come.
    pub fn wait_for(&self, count: usize, chosen: impl Fn(usize, &Request) -> bool) {
        let log = self.shared.log.lock().unwrap();
        let wait = self
            .shared
            .came
            .wait_timeout_while(log, Duration::from_secs(30), |log| {
                log.iter()
                    .filter(|(number, request)| chosen(*number, request))
                    .count()
                    < count
            });
        assert!(!wait.unwrap().1.timed_out(), "the requests don't come");
    }

    /// The commands that came, in order.
    pub fn commands(&self) -> Vec<Command> {
        let log = self.shared.log.lock().unwrap();
        log.iter().map(|(_, request)| request.command).collect()
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        match &self.address {
            Address::Unix(path) => drop(UnixStream::connect(path)),
            Address::Tcp { host, port } => drop(TcpStream::connect((host.as_str(), *port))),
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn array<const N: usize>(stream: &mut dyn Both) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn bytes(stream: &mut dyn Both, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn serve(shared: &Shared, number: usize, mut stream: Box<dyn Both>) -> io::Result<()> {
    let stream = &mut *stream;
    let (size, flags, handshake, sizes, most, old) = {
        let config = shared.config.lock().unwrap();
        (
            config.size as u64,
            config.flags,
            config.handshake,
            config.sizes,
            config.mode,
            config.old,
        )
    };
    stream.write_all(&Greeting { flags: handshake }.encode())?;
    array::<4>(stream)?;
    let mut mode = ReplyMode::Simple;
    loop {
        let option = OptionHeader::decode(&array(stream)?).unwrap();
        let payload = bytes(stream, option.len as usize)?;
        let mut say = |kind, payload: &[u8]| {
            stream.write_all(&OptionReply::message(option.kind, kind, payload))
        };
        match option.kind {
            OptionKind::EXTENDED_HEADERS if most == ReplyMode::Extended => {
                mode = most;
                say(OptionReplyKind::ACK, &[])?;
            }
            OptionKind::STRUCTURED_REPLY if most == ReplyMode::Structured => {
                mode = most;
                say(OptionReplyKind::ACK, &[])?;
            }
            OptionKind::SET_META_CONTEXT => {
                let context = MetaContext {
                    id: CONTEXT,
                    name: BASE_ALLOCATION,
                };
                say(OptionReplyKind::META_CONTEXT, &context.encode())?;
                say(OptionReplyKind::ACK, &[])?;
            }
            OptionKind::INFO | OptionKind::GO if !old => {
                let request = ExportRequest::decode(&payload).unwrap();
                if !["", "disk"].contains(&request.name) {
                    say(OptionReplyKind::ERR_UNKNOWN, b"never heard of it")?;
                    continue;
                }
                say(
                    OptionReplyKind::INFO,
                    &Info::Export { size, flags }.encode(),
                )?;
                if let Some(sizes) = sizes {
                    say(OptionReplyKind::INFO, &Info::BlockSize(sizes).encode())?;
                }
                say(OptionReplyKind::ACK, &[])?;
                if option.kind == OptionKind::GO {
                    break;
                }
            }
            OptionKind::EXPORT_NAME => {
                stream.write_all(&OldExport { size, flags }.encode())?;
                if !handshake.contains(HandshakeFlags::NO_ZEROES) {
                    stream.write_all(&[0; 124])?;
                }
                break;
            }
            OptionKind::ABORT => return Ok(()),
            _ => say(OptionReplyKind::ERR_UNSUP, &[])?,
        }
    }
    loop {
        let header = bytes(stream, Request::len(mode))?;
        let request = Request::decode(&header, mode).unwrap();
        let payload = bytes(stream, request.payload_len(mode) as usize)?;
        if let Some(sizes) = sizes {
            let least = u64::from(sizes.minimum);
            assert!(
                (request.offset | request.length).is_multiple_of(least),
                "{request:?}"
            );
            if matches!(request.command, Command::READ | Command::WRITE) {
                assert!(request.length <= sizes.maximum.into(), "{request:?}");
            }
        }
        let act = {
            let config = shared.config.lock().unwrap();
            (config.hook)(number, &request, mode)
        };
        let note = || {
            shared.log.lock().unwrap().push((number, request));
            shared.came.notify_all();
        };
        if request.command == Command::DISC {
            note();
            return Ok(());
        }
        let reply = match act {
            Act::Fail(error) => failure(&request, mode, error),
            Act::Say(ref bytes) | Act::Dribble(ref bytes, ..) => bytes.clone(),
            Act::Close => {
                note();
                return Ok(());
            }
            _ => execute(shared, &request, mode, &payload),
        };
        note();
        match act {
            Act::Swallow => {}
            Act::Dribble(_, parts, pause) => {
                for part in reply.chunks(reply.len().div_ceil(parts)) {
                    stream.write_all(part)?;
                    std::thread::sleep(pause);
                }
            }
            Act::Cut(len) => {
                stream.write_all(&reply[..len.min(reply.len())])?;
                return Ok(());
            }
            Act::Wait(gate) => {
                gate.wait();
                stream.write_all(&reply)?;
            }
            _ => stream.write_all(&reply)?,
        }
    }
}

/// A chunk with its payload.
pub fn chunk(
    request: &Request,
    mode: ReplyMode,
    kind: ChunkKind,
    last: bool,
    payload: &[u8],
) -> Vec<u8> {
    let chunk = Chunk {
        flags: ChunkFlags::NONE.with(ChunkFlags::DONE, last),
        kind,
        cookie: request.cookie,
        offset: request.offset,
        length: payload.len() as u64,
    };
    [&chunk.encode(mode)[..Chunk::len(mode)], payload].concat()
}

/// A chunk of data.
pub fn data(request: &Request, mode: ReplyMode, last: bool, offset: u64, data: &[u8]) -> Vec<u8> {
    let payload = [&offset.to_be_bytes(), data].concat();
    chunk(request, mode, ChunkKind::OFFSET_DATA, last, &payload)
}

/// A simple reply.
pub fn simple(request: &Request, error: Errno) -> Vec<u8> {
    let reply = SimpleReply {
        error,
        cookie: request.cookie,
    };
    reply.encode().to_vec()
}

pub fn failure(request: &Request, mode: ReplyMode, error: Errno) -> Vec<u8> {
    if mode == ReplyMode::Simple {
        return simple(request, error);
    }
    let error = ChunkError {
        error,
        message: "as the test wants it",
        offset: None,
    };
    chunk(request, mode, error.kind(), true, &error.encode())
}

fn execute(shared: &Shared, request: &Request, mode: ReplyMode, payload: &[u8]) -> Vec<u8> {
    let fragment = shared.config.lock().unwrap().fragment;
    let mut disk = shared.data.lock().unwrap();
    let (start, len) = (request.offset as usize, request.length as usize);
    let Some(range) = disk.get_mut(start..start + len) else {
        return failure(request, mode, Errno::INVAL);
    };
    match request.command {
        Command::READ => {
            let content = range.to_vec();
            drop(disk);
            if mode == ReplyMode::Simple {
                return [simple(request, Errno::OK), content].concat();
            }
            let Some(size) = fragment else {
                return data(request, mode, true, request.offset, &content);
            };
            let mut reply = Vec::new();
            for (number, piece) in content
                .chunks(size)
                .enumerate()
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
            {
                let offset = request.offset + (number * size) as u64;
                if piece.iter().all(|byte| *byte == 0) {
                    let hole = OffsetHole {
                        offset,
                        length: piece.len() as u32,
                    };
                    reply.extend(chunk(
                        request,
                        mode,
                        ChunkKind::OFFSET_HOLE,
                        false,
                        &hole.encode(),
                    ));
                } else {
                    reply.extend(data(request, mode, false, offset, piece));
                }
            }
            reply.extend(chunk(request, mode, ChunkKind::NONE, true, &[]));
            return reply;
        }
        Command::WRITE => range.copy_from_slice(payload),
        Command::TRIM | Command::WRITE_ZEROES => range.fill(0),
        Command::FLUSH => {}
        Command::BLOCK_STATUS => {
            let kind = match mode {
                ReplyMode::Extended => ChunkKind::BLOCK_STATUS_EXT,
                _ => ChunkKind::BLOCK_STATUS,
            };
            let zero = |sector: &[u8]| sector.iter().all(|byte| *byte == 0);
            let extents = range.chunks(512).map(|sector| StatusExtent {
                length: 512,
                flags: if zero(sector) { 3 } else { 0 },
            });
            let extents = extents.collect();
            return chunk(
                request,
                mode,
                kind,
                true,
                &BlockStatus {
                    context: CONTEXT,
                    extents,
                }
                .encode(kind),
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(
        request.command != Command::WRITE
            || request.flags.contains(CommandFlags::PAYLOAD_LEN) == (mode == ReplyMode::Extended)
    );
    match mode {
        // Both kinds are allowed.
        ReplyMode::Simple => simple(request, Errno::OK),
        ReplyMode::Structured if request.cookie.is_multiple_of(2) => simple(request, Errno::OK),
        _ => chunk(request, mode, ChunkKind::NONE, true, &[]),
    }
}

/// Whether tests may take long.
pub fn is_long() -> bool {
    std::env::var_os("VBLK_LONG_TESTS").is_some()
}
