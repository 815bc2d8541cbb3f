// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests that are held back, by a drain, a policy for errors or a throttle: until `vblk ctl resume`, or the end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{Server, completion, guest};
use vblk_testing::client_disk::ClientDisk;
use vblk_testing::verify::{self, Config};
use virtio_blk_core::disk::{Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token};

#[test]
fn a_drained_disk_waits_and_a_raw_file_grows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    std::fs::write(&path, vec![0; 8 << 20]).unwrap();
    let disk = format!("raw:{},meter", path.display());
    let served = Server::of(&disk);
    let working = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let drainer = scope.spawn(|| {
            let mut rounds = 0;
            while working.load(Ordering::Relaxed) || rounds < 3 {
                assert_eq!(served.ask(&["drain", "--hold", "60"])["drained"], true);
                let count = || served.ask(&["stats"])["total"].clone();
                let (before, image) = (count(), std::fs::read(&path).unwrap());
                assert_eq!(before["depth"], 0);
                std::thread::sleep(std::time::Duration::from_millis(5));
                assert!(std::fs::read(&path).unwrap() == image);
                assert_eq!(count()["ops"], before["ops"], "nothing moves");
                served.ask(&["resume"]);
                assert_eq!(served.ask(&["drain"])["held_seconds"], 0);
                rounds += 1;
            }
        });
        verify::run(&Config::new(served.socket(), 6000)).unwrap();
        working.store(false, Ordering::Relaxed);
        drainer.join().unwrap();
    });
    let grown = served.ask(&["resize", "16M"]);
    assert_eq!(grown["capacity"], 16 << 20);
    assert_eq!(served.ask(&["stats"])["capacity"], 16 << 20);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 16 << 20);
    // Through the open file, wherever its name leads by now.
    let moved = dir.path().join("moved.img");
    std::fs::rename(&path, &moved).unwrap();
    std::fs::write(&path, [0; 512]).unwrap();
    served.ask(&["resize", "17M"]);
    assert_eq!(std::fs::metadata(&moved).unwrap().len(), 17 << 20);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 512);
    for (size, word) in [("8M", "17825792"), ("512", "17825792")] {
        let said = served.refused(&["resize", size]);
        assert!(said.contains(word) && said.lines().count() == 1, "{said}");
    }
    let wide = format!("raw:{},block=4096", moved.display());
    drop(served);
    let served = Server::of(&wide);
    let said = served.refused(&["resize", "17826304"]);
    assert!(said.contains("4096"), "{said}");
    drop(served);
    let served = Server::of(&format!("raw:{},readonly=on", moved.display()));
    let said = served.refused(&["resize", "18M"]);
    assert!(said.contains("read-only"), "{said}");
    assert_eq!(std::fs::metadata(&moved).unwrap().len(), 17 << 20);
    let null = Server::of("null:1M");
    let said = null.refused(&["resize", "2M"]);
    assert!(said.contains("null:1M can't be made larger"), "{said}");
}

#[test]
fn a_hold_that_ended_before_is_told() {
    let served = Server::of("memory:1M");
    let said = served.refused(&["resume"]);
    assert!(said.contains("no request is held"), "{said}");
    assert_eq!(served.ask(&["drain", "--hold", "1"])["held_seconds"], 1);
    // Its writes wait until the time has run out.
    verify::run(&Config::new(served.socket(), 10)).unwrap();
    let said = served.refused(&["resume"]);
    assert!(
        said.contains("seconds ago") && said.contains("not of one moment"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    served.ask(&["drain", "--hold", "60"]);
    assert_eq!(served.ask(&["resume"])["resumed"], true);
}

/// Writes a sector of `byte`, as a driver of the server.
fn write_sector(queue: &mut dyn IoQueue, sector: u64, byte: u8) -> Submit {
    queue.submit(Op {
        token: Token(sector),
        kind: OpKind::Write {
            offset: sector * 512,
            fua: false,
        },
        buf: IoBuf::from_vec(vec![byte; 512]),
    })
}

#[test]
fn what_the_host_fails_is_held_until_it_is_mended() {
    let broken = "fault=errors:1000,rerror=stop,werror=stop";
    let served = Server::of(&format!("memory:1M,{broken}"));
    let both = serde_json::json!(["fault=seed:0/errors:1000", "errors=rerror:stop/werror:stop"]);
    assert_eq!(served.ask(&["layers"])["layers"], both);
    let disk = ClientDisk::connect(&served.socket(), 1).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    assert!(matches!(write_sector(&mut *queue, 3, 7), Submit::Queued));
    queue.flush_batch().unwrap();
    let held = || served.ask(&["stats"])["held"].clone();
    while held()["operations"] != 1 {}
    let last = held()["last"].as_str().unwrap().to_owned();
    assert!(last.contains("write of 512 bytes at byte 1536"), "{last}");
    // A flush is never held.
    queue.submit(Op {
        token: Token(9),
        kind: OpKind::Flush,
        buf: IoBuf::new(),
    });
    let flushed = completion(&mut *queue);
    assert_eq!(flushed.token, Token(9));
    assert!(flushed.result.is_err());
    // Broken as before: it is held again.
    let resumed = served.ask(&["resume"]);
    assert_eq!(
        (&resumed["operations"], &resumed["hold"]),
        (&1.into(), &false.into())
    );
    served.ask(&["drain", "--hold", "60"]);
    served.ask(&["layers", "rerror=stop,werror=stop"]);
    assert_eq!(served.ask(&["resume"])["hold"], true);
    let written = completion(&mut *queue);
    assert_eq!(written.token, Token(3));
    written.result.unwrap();
    assert_eq!(held()["operations"], 0);
    let said = served.refused(&["resume"]);
    assert!(said.contains("no request is held"), "{said}");
}

/// Ends a server with SIGTERM, which must not take as long as its layers would hold requests back.
fn ends_at_once(mut served: Server) {
    let begin = std::time::Instant::now();
    let pid = served.child.id().try_into().unwrap();
    // SAFETY: plain kill(2), of a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    assert!(served.child.wait().unwrap().success());
    let took = begin.elapsed();
    assert!(took < std::time::Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_server_ends_with_operations_held() {
    let served = Server::of("memory:1M,fault=errors:1000,werror=stop");
    let disk = ClientDisk::connect(&served.socket(), 1).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    write_sector(&mut *queue, 3, 7);
    queue.flush_batch().unwrap();
    while served.ask(&["stats"])["held"]["operations"] != 1 {}
    ends_at_once(served);
}

#[test]
fn a_server_ends_under_a_throttle_and_under_a_hold() {
    for hold in [false, true] {
        let served = Server::of("memory:1M,throttle=iops:1");
        let disk = ClientDisk::connect(&served.socket(), 1).unwrap();
        let mut queue = disk.open_queue(64).unwrap();
        if hold {
            served.ask(&["drain", "--hold", "3600"]);
        }
        for sector in 0..60 {
            write_sector(&mut *queue, sector, 7);
        }
        queue.flush_batch().unwrap();
        // What waits in the throttle, or in front of it.
        while !hold && served.ask(&["stats"])["throttles"][0]["waiting"] == 0 {}
        ends_at_once(served);
    }
}

/// What is drained is the disk, and that may be at work elsewhere.
#[test]
fn a_disk_that_another_server_may_have_is_not_drained() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let served = Server::of(&format!("raw:{},lock=handover", path.display()));
    let mut client = served.connect();
    let used = |is_used: bool| {
        for command in [&["drain"][..], &["resize", "2M"]] {
            let output = served.ctl(command);
            assert_eq!(output.status.success(), is_used, "{command:?}: {output:?}");
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(
                said.contains("another server may have it"),
                !is_used,
                "{said}"
            );
        }
    };
    used(false);
    let driver = guest(&mut client);
    used(true);
    client.stop(0).unwrap();
    used(false);
    drop(driver);
}
