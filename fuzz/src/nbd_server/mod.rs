// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A hostile client of the NBD server, and a good one after it.
//!
//! The client sends options and requests of all kinds, right and wrong, with raw bytes anywhere between, and hangs up. The
//! server ends the connection, and serves a good client afterwards; what it sends to that is right.

pub mod seeds;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, OnceLock};

use nbd_server::{
    Bitmaps, Export, ExportOptions, Exports, Listener, Marked, Server, ServerOptions,
};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_nbd::proto::{
    BASE_ALLOCATION, ClientFlags, Command, CommandFlags, ExportRequest, InfoKind, MetaContextQuery,
    OptionHeader, OptionKind, ReplyMode, Request,
};

/// Bytes of the disk.
const SIZE: u64 = 1 << 20;

input! {
    /// What a client sends before it hangs up.
    pub struct Input {
        /// Its flags.
        pub flags: u8,
        /// The export is read-only.
        pub read_only: bool,
        /// What it sends.
        pub steps: Vec<Step>,
    }
}

input! {
    /// Something that a client sends.
    pub enum Step {
        /// Anything.
        Bytes {
            /// As it is sent.
            bytes: Vec<u8>,
        },
        /// An option with any payload.
        Option {
            /// Its number.
            kind: u8,
            /// After its header.
            payload: Vec<u8>,
        },
        /// An option of another length than it says.
        Cut {
            /// Its number.
            kind: u8,
            /// What it says.
            length: u32,
            /// What there is.
            payload: Vec<u8>,
        },
        /// Asks for structured replies, or extended headers. Later requests have that form.
        Agree {
            /// Extended headers.
            extended: bool,
        },
        /// Lists or sets contexts.
        Contexts {
            /// Sets them.
            set: bool,
            /// Which: a set of bits.
            which: u8,
        },
        /// Asks about the export, or begins to use it.
        Export {
            /// Begins.
            go: bool,
            /// What it wants to know: a set of bits.
            infos: u8,
        },
        /// A request, with a payload if it is a write.
        Request {
            /// The command.
            command: u8,
            /// Its flags.
            flags: u16,
            /// In blocks of 512 bytes, at most 2^32 of them.
            block: u32,
            /// In blocks of 512 bytes.
            blocks: u16,
            /// Added to offset and length.
            odd: u8,
        },
    }
}

/// Every second block of 64 KiB changed.
struct Stripes;

impl Bitmaps for Stripes {
    fn names(&self) -> Vec<String> {
        vec!["b".to_owned(), "gone".to_owned()]
    }

    fn marks(&self, name: &str, range: Range<u64>, most: usize) -> Option<Vec<Marked>> {
        if name != "b" {
            return None;
        }
        let mut marks = Vec::new();
        let mut at = range.start;
        while at < range.end && marks.len() < most {
            let end = (((at >> 16) + 1) << 16).min(range.end);
            marks.push(Marked {
                len: end - at,
                dirty: (at >> 16) % 2 == 1,
            });
            at = end;
        }
        Some(marks)
    }
}

/// A socket for servers that never accept: clients come by pairs of sockets.
fn unused_socket() -> Listener {
    static SOCKET: OnceLock<UnixListener> = OnceLock::new();
    let socket = SOCKET.get_or_init(|| {
        let name = format!("vblk-fuzz-nbd-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        UnixListener::bind_addr(&address).expect("a name of our own")
    });
    Listener::Unix(socket.try_clone().expect("a descriptor"))
}

fn option(out: &mut Vec<u8>, kind: OptionKind, len: u32, payload: &[u8]) {
    out.extend_from_slice(&OptionHeader { kind, len }.encode());
    out.extend_from_slice(payload);
}

fn whole(out: &mut Vec<u8>, kind: OptionKind, payload: &[u8]) {
    option(out, kind, payload.len() as u32, payload);
}

/// The bytes of a client's.
fn bytes_of(input: &Input) -> Vec<u8> {
    let mut out = u32::from(input.flags).to_be_bytes().to_vec();
    let mut mode = ReplyMode::Simple;
    for step in &input.steps {
        match step {
            Step::Bytes { bytes } => out.extend_from_slice(bytes),
            Step::Option { kind, payload } => {
                whole(&mut out, OptionKind((*kind).into()), payload);
            }
            Step::Cut {
                kind,
                length,
                payload,
            } => option(&mut out, OptionKind((*kind).into()), *length, payload),
            Step::Agree { extended: false } => {
                mode = mode.max(ReplyMode::Structured);
                whole(&mut out, OptionKind::STRUCTURED_REPLY, &[]);
            }
            Step::Agree { extended: true } => {
                mode = ReplyMode::Extended;
                whole(&mut out, OptionKind::EXTENDED_HEADERS, &[]);
            }
            Step::Contexts { set, which } => {
                let names = [
                    BASE_ALLOCATION,
                    "qemu:dirty-bitmap:b",
                    "qemu:dirty-bitmap:gone",
                    "qemu:",
                    "base:",
                    "",
                    "x:y",
                    "disk",
                ];
                let chosen = (0..).zip(names).filter(|(bit, _)| which >> bit & 1 != 0);
                let query = MetaContextQuery {
                    export: "disk",
                    queries: chosen.map(|(_, name)| name).collect(),
                };
                let kind = match set {
                    true => OptionKind::SET_META_CONTEXT,
                    false => OptionKind::LIST_META_CONTEXT,
                };
                whole(&mut out, kind, &query.encode());
            }
            Step::Export { go, infos } => {
                let chosen = (0..8_u16).filter(|bit| infos >> bit & 1 != 0);
                let request = ExportRequest {
                    name: if infos & 128 == 0 { "disk" } else { "" },
                    infos: chosen.map(InfoKind).collect(),
                };
                let kind = if *go {
                    OptionKind::GO
                } else {
                    OptionKind::INFO
                };
                whole(&mut out, kind, &request.encode());
            }
            Step::Request {
                command,
                flags,
                block,
                blocks,
                odd,
            } => {
                let request = Request {
                    flags: CommandFlags(*flags),
                    command: Command((*command).into()),
                    cookie: out.len() as u64,
                    offset: u64::from(*block) * 512 + u64::from(*odd),
                    length: u64::from(*blocks) * 512 + u64::from(*odd),
                };
                let header = request.encode(mode).expect("a length below 4 GiB");
                out.extend_from_slice(&header[..Request::len(mode)]);
                // Longer payloads are cut: the fuzzer's time is not for them.
                let payload = request.payload_len(mode).min(64 << 10);
                out.resize(out.len() + payload as usize, *odd);
            }
        }
    }
    out
}

/// Has the server talk with a client that sends these bytes. Returns what the server sent.
fn talk(server: &Server, bytes: Vec<u8>) -> Vec<u8> {
    let (client, socket) = UnixStream::pair().expect("two sockets");
    let mut writer = client.try_clone().expect("a descriptor");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // The server may close before all is sent.
            let _ = writer.write_all(&bytes);
            let _ = writer.shutdown(Shutdown::Write);
        });
        let reader = scope.spawn(move || {
            let mut got = Vec::new();
            let mut client = client;
            let _ = client.read_to_end(&mut got);
            got
        });
        server.serve(socket.into());
        reader.join().expect("it does not panic")
    })
}

/// Plays an input.
pub fn run(input: &Input) {
    let disk = MemoryDisk::new(SIZE).expect("a disk");
    let options = ExportOptions {
        name: "disk".to_owned(),
        read_only: input.read_only,
        bitmaps: Some(Box::new(Stripes)),
        ..ExportOptions::default()
    };
    let export = Export::new(Arc::new(disk), options).expect("an export");
    let exports = Exports::default();
    exports.add(export.clone()).expect("the first");
    let server = Server::new(unused_socket(), exports, ServerOptions::default());
    let server = server.expect("a server");
    talk(&server, bytes_of(input));
    assert_eq!(export.connections(), 0, "a connection is left");

    let good = Input {
        flags: (ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES).0 as u8,
        read_only: false,
        steps: vec![
            Step::Export { go: true, infos: 8 },
            Step::Request {
                command: Command::READ.0 as u8,
                flags: 0,
                block: 0,
                blocks: (SIZE / 512) as u16,
                odd: 0,
            },
            Step::Request {
                command: Command::DISC.0 as u8,
                flags: 0,
                block: 0,
                blocks: 0,
                odd: 0,
            },
        ],
    };
    let got = talk(&server, bytes_of(&good));
    assert!(
        got.len() as u64 > SIZE,
        "{} bytes for a good client",
        got.len()
    );
}
