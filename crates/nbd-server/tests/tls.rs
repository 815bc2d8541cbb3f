// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections under TLS: what is served, and whatever a client does to it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "../../virtio-blk-nbd/tests/certificates/mod.rs"]
mod certificates;
mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use certificates::Certificates;
use common::{Client, Serving, pattern, request};
use nbd_server::{ExportOptions, Security, ServerOptions, TlsFiles, TlsIdentity};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto};
use virtio_blk_core::disk::{Completion, Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token};
use virtio_blk_disks::MemoryDisk;
use virtio_blk_nbd::proto::*;
use virtio_blk_nbd::{NbdDisk, NbdOptions, TlsOptions, tls_session};

const SIZE: usize = 8 << 20;

fn serving(certificates: &Certificates, verify: bool, options: ServerOptions) -> Serving {
    let files = TlsFiles {
        certificate: certificates.path("server-cert.pem"),
        key: certificates.path("server-key.pem"),
        client_ca: verify.then(|| certificates.path("ca-cert.pem")),
    };
    let options = ServerOptions {
        security: Security::Tls(TlsIdentity::load(&files).unwrap()),
        ..options
    };
    let disk = Arc::new(MemoryDisk::new(SIZE as u64).unwrap());
    Serving::with(disk, ExportOptions::default(), options)
}

fn disk(serving: &Serving, tls: TlsOptions) -> Result<NbdDisk, String> {
    let options = NbdOptions::new(virtio_blk_nbd::Address::Unix("".into()));
    let options = options.export("disk").tls(tls);
    NbdDisk::over(&options, serving.connect().into()).map_err(|error| error.to_string())
}

fn run(queue: &mut dyn IoQueue, kind: OpKind, buf: IoBuf) -> Completion {
    let token = Token(1);
    if let Submit::Done(done) = queue.submit(Op { token, kind, buf }) {
        return done;
    }
    queue.flush_batch().unwrap();
    let mut done = Vec::new();
    while queue.reap(&mut done).unwrap() == 0 {
        std::thread::yield_now();
    }
    done.pop().unwrap()
}

#[test]
fn what_is_written_is_read() {
    let certificates = Certificates::new();
    let serving = serving(&certificates, true, ServerOptions::default());
    let options = TlsOptions {
        identity: certificates.identity(),
        ..certificates.options()
    };
    let disk = disk(&serving, options).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    for len in [512, 4096, 16384, 65536 + 512, 4 << 20] {
        let data = pattern(len as u64, len);
        let kind = OpKind::Write {
            offset: 1024,
            fua: false,
        };
        let written = run(&mut *queue, kind, IoBuf::from_vec(data.clone()));
        written.result.unwrap();
        let read = run(
            &mut *queue,
            OpKind::Read { offset: 1024 },
            IoBuf::zeroed(len),
        );
        read.result.unwrap();
        assert!(read.buf.to_vec() == data, "{len}");
    }
    drop(queue);
    drop(disk);
    serving.stop().unwrap();
}

#[test]
fn a_client_without_a_certificate_is_not_served_where_one_is_asked_for() {
    let certificates = Certificates::new();
    let serving = serving(&certificates, true, ServerOptions::default());
    let error = disk(&serving, certificates.options()).err().unwrap();
    assert!(error.contains("CertificateRequired"), "{error}");
    // One of somebody else.
    let others = Certificates::new();
    let options = TlsOptions {
        identity: others.identity(),
        ..certificates.options()
    };
    disk(&serving, options).err().unwrap();
    serving.wait_connections(0);
    assert_eq!(serving.export.counters().clients, 0);
}

/// A connection that has asked for TLS, and was told to begin.
fn begun(serving: &Serving) -> UnixStream {
    let mut client = Client::greet(serving.connect());
    let replies = client.option(OptionKind::STARTTLS, &[]);
    assert_eq!(replies, [(OptionReplyKind::ACK, vec![])]);
    client.stream
}

#[test]
fn nothing_that_came_in_the_clear_is_taken_for_what_is_under_tls() {
    let certificates = Certificates::new();
    let serving = serving(&certificates, false, ServerOptions::default());
    // Options behind the request for TLS, as somebody in between would add them.
    let mut client = Client::greet(serving.connect());
    let mut bytes = Vec::new();
    for kind in [OptionKind::STARTTLS, OptionKind::LIST] {
        bytes.extend_from_slice(&OptionHeader { kind, len: 0 }.encode());
    }
    client.stream.write_all(&bytes).unwrap();
    let (kind, _) = client.option_reply(OptionKind::STARTTLS);
    assert_eq!(kind, OptionReplyKind::ACK);
    // An alert, perhaps, and no list.
    let mut rest = Vec::new();
    let _ = client.stream.read_to_end(&mut rest);
    assert!(rest.len() < OptionReply::LEN, "{rest:?}");
    serving.wait_connections(0);
    // Nor is TLS begun twice, or forgotten.
    let mut client = Client::greet(serving.connect());
    let replies = client.option(OptionKind::LIST, &[]);
    assert_eq!(replies[0].0, OptionReplyKind::ERR_TLS_REQD);
}

#[test]
fn what_is_no_tls_ends_the_connection() {
    let certificates = Certificates::new();
    let options = ServerOptions {
        handshake_time: Duration::from_millis(500),
        ..ServerOptions::default()
    };
    let serving = serving(&certificates, false, options);
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 100_000],
        vec![0xff; 100_000],
        // A record that is announced and does not come.
        vec![22, 3, 1, 0x40, 0],
    ] {
        let mut stream = begun(&serving);
        let _ = stream.write_all(&bytes);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    serving.wait_connections(0);
}

/// A client of rustls on a connection.
struct Secret {
    tls: ClientConnection,
    stream: UnixStream,
}

impl Secret {
    fn new(certificates: &Certificates, stream: UnixStream) -> Self {
        let mut roots = RootCertStore::empty();
        for root in tls_session::certificates(&certificates.path("ca-cert.pem")).unwrap() {
            roots.add(root).unwrap();
        }
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut secret = Self { tls, stream };
        while secret.tls.is_handshaking() {
            secret.tls.complete_io(&mut secret.stream).unwrap();
        }
        secret
    }

    /// What goes over the wire for these bytes.
    fn wire(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut wire = Vec::new();
        for part in bytes.chunks(1024) {
            self.tls.writer().write_all(part).unwrap();
            while self.tls.wants_write() {
                self.tls.write_tls(&mut wire).unwrap();
            }
        }
        wire
    }
}

/// Some options, and requests.
fn conversation() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut option = |kind, payload: &[u8]| {
        let len = payload.len() as u32;
        bytes.extend_from_slice(&OptionHeader { kind, len }.encode());
        bytes.extend_from_slice(payload);
    };
    option(OptionKind::STRUCTURED_REPLY, &[]);
    let export = ExportRequest {
        name: "disk",
        infos: vec![InfoKind::BLOCK_SIZE],
    };
    option(OptionKind::GO, &export.encode());
    for (command, len) in [(Command::WRITE, 2048), (Command::READ, 4096)] {
        let request = request(command, 0, len);
        let header = request.encode(ReplyMode::Structured).unwrap();
        bytes.extend_from_slice(&header[..Request::LEN]);
        if command == Command::WRITE {
            bytes.extend_from_slice(&[7; 2048]);
        }
    }
    bytes
}

#[test]
fn records_may_be_cut_or_changed_anywhere() {
    let certificates = Certificates::new();
    let serving = serving(&certificates, false, ServerOptions::default());
    let bytes = conversation();
    let len = {
        let mut secret = Secret::new(&certificates, begun(&serving));
        secret.wire(&bytes).len()
    };
    for at in (0..len).step_by(41) {
        for change in [false, true] {
            let mut secret = Secret::new(&certificates, begun(&serving));
            let mut wire = secret.wire(&bytes);
            match change {
                true => wire[at] ^= 1 << (at % 8),
                false => wire.truncate(at),
            }
            let _ = secret.stream.write_all(&wire);
            let _ = secret.stream.shutdown(Shutdown::Write);
            let _ = secret.stream.read_to_end(&mut Vec::new());
        }
    }
    serving.wait_connections(0);
    disk(&serving, certificates.options()).unwrap();
}

/// Records without anything for the protocol, without end.
#[test]
fn a_flood_of_records_keeps_nobody_from_stopping() {
    let certificates = Certificates::new();
    let serving = serving(&certificates, false, ServerOptions::default());
    let mut secret = Secret::new(&certificates, begun(&serving));
    let wire = secret.wire(&conversation());
    secret.stream.write_all(&wire).unwrap();
    let mut stream = secret.stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || stream.read_to_end(&mut Vec::new()).map(drop));
    let flood = std::thread::spawn(move || {
        loop {
            let mut records = Vec::new();
            for _ in 0..16 {
                if secret.tls.refresh_traffic_keys().is_err() {
                    return;
                }
                while secret.tls.wants_write() {
                    secret.tls.write_tls(&mut records).unwrap();
                }
            }
            if secret.stream.write_all(&records).is_err() {
                return;
            }
        }
    });
    // Either it is too much for the server, which ends the connection, or it stops in time.
    let since = Instant::now();
    serving.stop().unwrap();
    assert!(
        since.elapsed() < Duration::from_secs(4),
        "{:?}",
        since.elapsed()
    );
    flood.join().unwrap();
    let _ = reader.join().unwrap();
}

#[test]
fn a_client_that_reads_no_replies_is_held_back() {
    let certificates = Certificates::new();
    let options = ServerOptions {
        stop_time: Duration::from_millis(500),
        ..ServerOptions::default()
    };
    let serving = serving(&certificates, false, options);
    let mut secret = Secret::new(&certificates, begun(&serving));
    let wire = secret.wire(&conversation());
    secret.stream.write_all(&wire).unwrap();
    let timeout = Some(Duration::from_millis(300));
    secret.stream.set_write_timeout(timeout).unwrap();
    let read = request(Command::READ, 0, 1 << 20);
    let header = read.encode(ReplyMode::Structured).unwrap()[..Request::LEN].to_vec();
    let mut sent = 0;
    loop {
        let wire = secret.wire(&header);
        if secret.stream.write_all(&wire).is_err() {
            break;
        }
        sent += 1;
        assert!(sent < 1 << 20);
    }
    assert!(sent > 100);
    assert!(
        serving.export.counters().reads < 100,
        "{:?}",
        serving.export.counters()
    );
    // Others are served meanwhile, and the stop is in time.
    disk(&serving, certificates.options()).unwrap();
    let since = Instant::now();
    serving.stop().unwrap();
    assert!(
        since.elapsed() < Duration::from_secs(4),
        "{:?}",
        since.elapsed()
    );
}
