// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! TLS, with nbdkit at the other end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod certificates;
#[path = "../../virtio-blk-disks/tests/common/mod.rs"]
mod common;
mod fake;
mod servers;

use std::time::{Duration, Instant};

use certificates::Certificates;
use common::{Act, BLOCK, Layout, Rig, read, write};
use fake::{Config, Fake};
use servers::Server;
use virtio_blk_core::disk::Disk;
use virtio_blk_nbd::{NbdDisk, NbdOptions, TlsOptions};

fn nbdkit(of: &Certificates, tcp: bool, more: &[&str]) -> Server {
    let certificates = format!("--tls-certificates={}", of.directory().display());
    let options = [&["--tls=require", certificates.as_str()], more].concat();
    Server::nbdkit_with(1 << 20, tcp, &options, &[])
}

/// Why a disk can't be opened.
fn refusal(options: &NbdOptions) -> String {
    NbdDisk::open(options)
        .err()
        .expect("the disk was opened")
        .to_string()
}

#[test]
fn data_is_as_without() {
    let certificates = Certificates::new();
    for tcp in [false, true] {
        let server = nbdkit(&certificates, tcp, &[]);
        let disk = NbdDisk::open(&server.options().tls(certificates.options())).unwrap();
        let mut rig = Rig::new(&disk, 16, BLOCK);
        for round in 0..120_u64 {
            let layout = Layout {
                shift: round as usize % 7,
                piece: [usize::MAX >> 1, 4096, 512, 1000][round as usize % 4],
            };
            let at = round * 37 % 1000;
            let len = if round % 10 == 0 { 1000 } else { round % 40 };
            rig.act(Act::Write(at, len, layout, round % 5 == 0));
            rig.act(Act::Read(round * 61 % 1000, len / 2, layout));
            if round % 9 == 0 {
                rig.act(Act::Flush);
            }
        }
        let model = rig.finish();
        drop(disk);
        assert!(std::fs::read(server.file()).unwrap() == model);
    }
}

#[test]
fn who_is_not_known_is_refused() {
    let certificates = Certificates::new();
    let others = Certificates::new();
    let server = nbdkit(&certificates, true, &["--tls-verify-peer"]);
    let with = |tls| server.options().tls(tls);
    let good = TlsOptions {
        identity: certificates.identity(),
        ..certificates.options()
    };
    let disk = NbdDisk::open(&with(good.clone())).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    write(&mut *queue, 0, vec![1; 512]).unwrap();
    assert_eq!(read(&mut *queue, 0, 512).unwrap(), [1; 512]);

    // A server of another authority's.
    let error = refusal(&with(TlsOptions {
        ca: others.path("ca-cert.pem"),
        ..good.clone()
    }));
    assert!(error.contains("TLS failed"), "{error}");
    // Another server of the same authority's.
    let name = Some("elsewhere.example".to_owned());
    let error = refusal(&with(TlsOptions {
        name,
        ..good.clone()
    }));
    assert!(error.contains("TLS failed"), "{error}");
    // A client without a certificate, and one of another authority's.
    for identity in [None, others.identity()] {
        refusal(&with(TlsOptions {
            identity,
            ..good.clone()
        }));
    }
    // Without TLS at all.
    let error = refusal(&server.options());
    assert!(error.contains("tls=on"), "{error}");
    // Files that hold something else.
    let error = refusal(&with(TlsOptions {
        ca: certificates.path("names"),
        ..good.clone()
    }));
    assert!(error.contains("names"), "{error}");
    let identity = Some((
        certificates.path("client-cert.pem"),
        certificates.path("nothing"),
    ));
    let error = refusal(&with(TlsOptions { identity, ..good }));
    assert!(error.contains("nothing"), "{error}");
}

#[test]
fn a_server_without_tls_is_not_used_in_the_clear() {
    let certificates = Certificates::new();
    let fake = Fake::start(Config::default());
    let error = refusal(&fake.options().tls(certificates.options()));
    assert!(error.contains("TLS"), "{error}");
}

#[test]
fn a_lost_connection_is_made_anew_with_tls() {
    let certificates = Certificates::new();
    let mut server = nbdkit(&certificates, false, &[]);
    let options = server.options().tls(certificates.options()).reconnect(30);
    let disk = NbdDisk::open(&options).unwrap();
    let mut queue = disk.open_queue(1).unwrap();
    for round in 0..3_u8 {
        write(&mut *queue, 4096, vec![round; 8192]).unwrap();
        server.kill();
        server.run();
        let since = Instant::now();
        assert_eq!(read(&mut *queue, 4096, 8192).unwrap(), [round; 8192]);
        assert!(since.elapsed() < Duration::from_secs(20));
    }
}
