// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Layers on a served disk under a driver that shares no code with it: seen through `--metrics`, `vblk
//! ctl` and `vblk top`, and changed while every byte is compared.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use vblk_testing::client_disk::ClientDisk;
use vblk_testing::verify::{self, Config};
use virtio_blk_core::disk::{Completion, Disk, IoBuf, IoQueue, Op, OpKind, Submit, Token, Wait};

fn vblk(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vblk"))
        .args(args)
        .output()
        .unwrap()
}

struct Served {
    child: Child,
    output: BufReader<ChildStdout>,
    dir: tempfile::TempDir,
    /// What it said about `--metrics`.
    metrics: Value,
}

impl Served {
    fn start(disk: &str, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_vblk"))
            .args(["--json", "serve", "vhost-user", "--queues", "4", "--disk"])
            .arg(disk)
            .arg("--socket")
            .arg(dir.path().join("socket"))
            .arg("--control")
            .arg(dir.path().join("control"))
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut this = Self {
            child,
            output,
            dir,
            metrics: Value::Null,
        };
        if more.contains(&"--metrics") {
            this.metrics = this.line();
            assert_eq!(this.metrics["event"], "metrics");
        }
        // Last: everything else is there by then.
        assert_eq!(this.line()["event"], "listening");
        this
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// Runs `vblk ctl` and answers what it printed.
    fn ctl(&self, args: &[&str]) -> Value {
        let control = self.control();
        let mut all = vec!["--json", "ctl", control.to_str().unwrap()];
        all.extend(args);
        let output = vblk(&all);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refused(&self, args: &[&str]) -> String {
        let control = self.control();
        let mut all = vec!["ctl", control.to_str().unwrap()];
        all.extend(args);
        let output = vblk(&all);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // A test may have failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn layers_come_and_go_while_every_byte_is_compared() {
    let served = Served::start("memory:32M,verify,meter", &[]);
    let working = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let changer = scope.spawn(|| {
            let stacks = [
                "verify,throttle=iops:20000,meter",
                "verify,fault=seed:1/reorder:on,dirty=a,meter",
                "verify",
                "dirty=a,verify,throttle=bandwidth:200M/group:g,meter",
            ];
            let mut changes = 0;
            while working.load(Ordering::Relaxed) || changes < stacks.len() {
                let set = stacks[changes % stacks.len()];
                let answer = served.ctl(&["layers", set, "--drop-bitmaps"]);
                let layers: Vec<_> = answer["layers"].as_array().unwrap().iter().collect();
                assert_eq!(layers.len(), set.split(',').count(), "{answer}");
                assert_eq!(answer["settled"], true);
                changes += 1;
            }
        });
        let (report, _) = verify::run(&Config::new(served.socket(), 20_000)).unwrap();
        assert!(report.reads > 1000 && report.writes > 1000, "{report}");
        working.store(false, Ordering::Relaxed);
        changer.join().unwrap();
    });
    let stats = served.ctl(&["stats"]);
    assert_eq!(stats["lie"], Value::Null);
}

#[test]
fn what_changed_is_taken_in_two_steps() {
    let served = Served::start("memory:1M,dirty=backup/granularity:4K", &[]);
    let all = served.ctl(&["dirty", "backup"]);
    assert_eq!(
        all["incomplete"], true,
        "nobody has said what changed before"
    );
    assert_eq!(all["ranges"], serde_json::json!([[0, 1 << 20]]));
    assert_eq!(served.ctl(&["stats"])["dirty"][0]["bytes"], 1 << 20);
    // The first copy: of everything.
    let take = served.ctl(&["dirty", "backup", "--take"]);
    let token = take["token"].as_str().unwrap();
    assert_eq!(
        (&take["incomplete"], &take["bytes"]),
        (&true.into(), &(1 << 20).into())
    );
    let committed = served.ctl(&["dirty", "backup", "--commit", token]);
    assert_eq!(committed["bytes"], 0);
    let none = served.ctl(&["dirty", "backup"]);
    assert_eq!(
        (&none["ranges"], &none["incomplete"]),
        (&serde_json::json!([]), &false.into())
    );
    verify::run(&Config::new(served.socket(), 500)).unwrap();
    // A client that vanishes, or whose output nobody reads, takes nothing along.
    let control = served.control();
    let shell = format!(
        "{} ctl {} dirty backup --take | true",
        env!("CARGO_BIN_EXE_vblk"),
        control.display()
    );
    Command::new("sh").args(["-c", &shell]).status().unwrap();
    let some = served.ctl(&["dirty", "backup", "--take"]);
    assert!(!some["ranges"].as_array().unwrap().is_empty(), "{some}");
    assert_eq!(some["granularity"], 4096);
    assert_ne!(some["generation"], all["generation"]);
    let token = some["token"].as_str().unwrap();
    // The copy failed.
    served.ctl(&["dirty", "backup", "--abort", token]);
    assert_eq!(served.ctl(&["dirty", "backup"])["ranges"], some["ranges"]);
    let said = served.refused(&["dirty", "backup", "--commit", token]);
    assert!(said.contains(token) && said.lines().count() == 1, "{said}");
    assert!(
        served
            .refused(&["dirty", "backup", "--commit", "x"])
            .contains("`x`")
    );
    let file = served.dir.path().join("taken");
    let name = file.to_str().unwrap();
    // Taken and saved as one act; where that fails nothing is taken.
    let said = served.refused(&["dirty", "backup", "--take", "--save", "/nonexistent/x"]);
    assert!(said.contains("/nonexistent/x"), "{said}");
    assert_eq!(served.ctl(&["dirty", "backup"])["token"], Value::Null);
    let again = served.ctl(&["dirty", "backup", "--take", "--save", name]);
    assert_eq!(
        (&again["ranges"], &again["saved"]),
        (&some["ranges"], &name.into())
    );
    served.ctl(&[
        "dirty",
        "backup",
        "--commit",
        again["token"].as_str().unwrap(),
    ]);
    assert_eq!(served.ctl(&["dirty", "backup"])["bytes"], 0);
    served.ctl(&["dirty", "backup", "--load", name]);
    assert_eq!(served.ctl(&["dirty", "backup"])["ranges"], some["ranges"]);
    assert_eq!(served.ctl(&["dirty", "backup", "--new"])["bytes"], 0);
    assert!(served.refused(&["dirty", "other"]).contains("`other`"));
}

#[test]
fn no_bitmap_goes_without_a_word() {
    let served = Served::start("memory:1M,dirty=backup,meter", &[]);
    served.ctl(&["dirty", "backup", "--new"]);
    for args in [
        &["layers", "meter"][..],
        &["layers", "none"],
        &["layers", "dirty=other,meter"],
        &["layers", "dirty=backup/granularity:4K,meter"],
        &["layers", "--set", "dirty=backup/granularity:4K"],
    ] {
        let said = served.refused(args);
        assert!(
            said.contains("`dirty=backup`") && said.contains("--drop-bitmaps"),
            "{args:?}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let layers = |args: &[&str]| served.ctl(&[&["layers"], args].concat())["layers"].clone();
    let none = serde_json::json!(["dirty=backup", "meter"]);
    assert_eq!(layers(&[]), none);
    assert_eq!(
        layers(&["--add", "throttle=iops:5000", "--add", "werror=stop"]),
        serde_json::json!(["dirty=backup", "meter", "throttle=iops:5000", "werror=stop"])
    );
    assert_eq!(
        layers(&[
            "--set",
            "throttle=iops:6000",
            "--set",
            "rerror=stop",
            "--remove",
            "meter"
        ]),
        serde_json::json!([
            "dirty=backup",
            "throttle=iops:6000",
            "errors=rerror:stop/werror:stop"
        ])
    );
    for (args, word) in [
        (&["--set", "meter"], "--add"),
        (&["--remove", "meter"], "there is no layer `meter`"),
        (&["--add", "trottle=iops:1"], "`throttle`"),
        (&["--add", "dirty=backup"], "twice"),
    ] {
        let said = served.refused(&[&["layers"], &args[..]].concat());
        assert!(said.contains(word) && said.lines().count() == 1, "{said}");
    }
    assert_eq!(
        served.ctl(&["dirty", "backup"])["incomplete"],
        false,
        "it was there all the time"
    );
    // With a word. What comes after that knows nothing of what changed before.
    layers(&["--remove", "dirty=backup", "--remove", "errors"]);
    layers(&["--add", "dirty=backup"]);
    assert_eq!(served.ctl(&["dirty", "backup"])["incomplete"], true);
    assert_eq!(layers(&["none", "--drop-bitmaps"]), serde_json::json!([]));
}

#[test]
fn a_kept_bitmap_outlives_kill_9_and_says_when_it_was_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let (image, file) = (
        dir.path().join("disk.img"),
        dir.path().join("backup.bitmap"),
    );
    for sync in ["", "/sync:on"] {
        std::fs::File::create(&image)
            .unwrap()
            .set_len(16 << 20)
            .unwrap();
        let disk = format!(
            "raw:{},dirty=backup/granularity:4K/persist:{}{sync}",
            image.display(),
            file.display()
        );
        let mut served = Served::start(&disk, &[]);
        let all = served.ctl(&["dirty", "backup"]);
        assert_eq!(
            (&all["incomplete"], &all["why"]),
            (&true.into(), &"its file is new".into())
        );
        served.ctl(&["dirty", "backup", "--new"]);
        let before = std::fs::read(&image).unwrap();
        verify::run(&Config::new(served.socket(), 300)).unwrap();
        let marks = served.ctl(&["dirty", "backup"]);
        // Somebody has them when the server is killed.
        served.ctl(&["dirty", "backup", "--take"]);
        served.child.kill().unwrap();
        served.child.wait().unwrap();
        let mut served = Served::start(&disk, &[]);
        let found = served.ctl(&["dirty", "backup"]);
        assert_eq!(found["incomplete"], false, "{found}");
        assert_eq!(
            (&found["ranges"], &found["generation"]),
            (&marks["ranges"], &marks["generation"])
        );
        let after = std::fs::read(&image).unwrap();
        let mut copy = before;
        for range in found["ranges"].as_array().unwrap() {
            let [from, len] = [&range[0], &range[1]].map(|n| n.as_u64().unwrap() as usize);
            copy[from..from + len].copy_from_slice(&after[from..from + len]);
        }
        assert!(copy == after, "all that changed is listed");
        // A second server, and the same bitmap without its file.
        let second = vblk(&[
            "serve",
            "vhost-user",
            "--socket",
            "/nonexistent/s",
            "--disk",
            &format!(
                "memory:16M,dirty=backup/granularity:4K/persist:{}",
                file.display()
            ),
        ]);
        let said = String::from_utf8(second.stderr).unwrap();
        assert!(
            said.contains("backup.bitmap") && said.contains("in use"),
            "{said}"
        );
        // Removed while the guest goes on.
        served.ctl(&["layers", "--remove", "dirty=backup"]);
        let written = format!(
            "dirty=backup/granularity:4K/persist:{}{sync}",
            file.display()
        );
        served.ctl(&["layers", "--add", &written]);
        let doubted = served.ctl(&["dirty", "backup"]);
        assert_eq!(doubted["incomplete"], true, "{doubted}");
        served.ctl(&["dirty", "backup", "--new"]);
        let pid = served.child.id().try_into().unwrap();
        // SAFETY: plain kill(2), of a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        assert!(served.child.wait().unwrap().success());
        let served = Served::start(&disk, &[]);
        assert_eq!(
            served.ctl(&["dirty", "backup"])["ranges"],
            serde_json::json!([])
        );
        drop(served);
        std::fs::remove_file(&file).unwrap();
    }
}

/// Some of all layers in some order, all of which follows from the seed.
fn some_layers(seed: u64) -> Vec<&'static str> {
    let mut left = vec![
        "meter",
        "verify",
        "dirty=a",
        "dirty=b/granularity:4K",
        "throttle=iops:50000/bandwidth:1G",
        "throttle=write_iops:20000/burst:100000/group:g",
        "fault=seed:3/reorder:on",
    ];
    let mut random = seed;
    let mut next = |below: usize| {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (random >> 33) as usize % below
    };
    let count = 2 + next(5);
    (0..count).map(|_| left.remove(next(left.len()))).collect()
}

#[test]
fn any_stack_serves_a_driver_that_shares_no_code() {
    for seed in 1..=4 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(16 << 20)
            .unwrap();
        let layers = some_layers(seed);
        let disk = format!("raw:{},{}", path.display(), layers.join(","));
        let served = Served::start(&disk, &[]);
        let config = Config {
            seed,
            ..Config::new(served.socket(), 1200)
        };
        let (report, model) = verify::run(&config).unwrap();
        assert!(
            report.reads > 100 && report.writes > 100,
            "{disk}: {report}"
        );
        assert_eq!(served.ctl(&["stats"])["lie"], Value::Null, "{disk}");
        served.ctl(&["drain"]);
        model.check_file(&path).unwrap();
    }
}

#[test]
fn marks_are_saved_and_loaded() {
    let disk = "memory:1M,dirty=backup/granularity:4K";
    let (served, file) = (Served::start(disk, &[]), tempfile::tempdir().unwrap());
    let file = file.path().join("marks");
    let name = file.to_str().unwrap();
    served.ctl(&["dirty", "backup", "--new"]);
    verify::run(&Config::new(served.socket(), 200)).unwrap();
    let marks = served.ctl(&["dirty", "backup"]);
    let saved = served.ctl(&["dirty", "backup", "--save", name]);
    assert!(saved["bytes"].as_u64().unwrap() > 0, "{saved}");
    assert_eq!(served.ctl(&["dirty", "backup"]), marks);
    drop(served);
    let served = Served::start(disk, &[]);
    let loaded = served.ctl(&["dirty", "backup", "--load", name]);
    assert_eq!(
        (&loaded["bytes"], &loaded["incomplete"]),
        (&saved["bytes"], &false.into())
    );
    assert_eq!(served.ctl(&["dirty", "backup"])["ranges"], marks["ranges"]);
    // A disk that is larger than it was: what is new has changed.
    let larger = Served::start("memory:2M,dirty=backup/granularity:64K", &[]);
    larger.ctl(&["dirty", "backup", "--load", name]);
    let ranges = larger.ctl(&["dirty", "backup"]);
    let ranges = ranges["ranges"].as_array().unwrap();
    let last = ranges.last().unwrap().as_array().unwrap();
    let [start, len] = [&last[0], &last[1]].map(|number| number.as_u64().unwrap());
    assert!(start <= 1 << 20 && start + len == 2 << 20, "{ranges:?}");
    std::fs::write(&file, "rubbish").unwrap();
    for (args, word) in [
        (&["dirty", "backup", "--load", name][..], "begins otherwise"),
        (
            &["dirty", "backup", "--load", "/nonexistent/m"],
            "/nonexistent/m: No such",
        ),
        (
            &["dirty", "backup", "--save", "/nonexistent/m"],
            "/nonexistent/m: No such",
        ),
    ] {
        let said = served.refused(args);
        assert!(said.contains(word) && said.lines().count() == 1, "{said}");
    }
    assert_eq!(served.ctl(&["dirty", "backup"])["ranges"], marks["ranges"]);
}

#[test]
fn a_drained_disk_waits_and_a_raw_file_grows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    std::fs::write(&path, vec![0; 8 << 20]).unwrap();
    let disk = format!("raw:{},meter", path.display());
    let served = Served::start(&disk, &[]);
    let working = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let drainer = scope.spawn(|| {
            let mut rounds = 0;
            while working.load(Ordering::Relaxed) || rounds < 3 {
                assert_eq!(served.ctl(&["drain", "--hold", "60"])["drained"], true);
                let count = || served.ctl(&["stats"])["total"].clone();
                let (before, image) = (count(), std::fs::read(&path).unwrap());
                assert_eq!(before["depth"], 0);
                std::thread::sleep(std::time::Duration::from_millis(5));
                assert!(std::fs::read(&path).unwrap() == image);
                assert_eq!(count()["ops"], before["ops"], "nothing moves");
                served.ctl(&["resume"]);
                assert_eq!(served.ctl(&["drain"])["held_seconds"], 0);
                rounds += 1;
            }
        });
        verify::run(&Config::new(served.socket(), 6000)).unwrap();
        working.store(false, Ordering::Relaxed);
        drainer.join().unwrap();
    });
    let grown = served.ctl(&["resize", "16M"]);
    assert_eq!(grown["capacity"], 16 << 20);
    assert_eq!(served.ctl(&["stats"])["capacity"], 16 << 20);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 16 << 20);
    // Through the open file, wherever its name leads by now.
    let moved = dir.path().join("moved.img");
    std::fs::rename(&path, &moved).unwrap();
    std::fs::write(&path, [0; 512]).unwrap();
    served.ctl(&["resize", "17M"]);
    assert_eq!(std::fs::metadata(&moved).unwrap().len(), 17 << 20);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 512);
    for (size, word) in [("8M", "17825792"), ("512", "17825792")] {
        let said = served.refused(&["resize", size]);
        assert!(said.contains(word) && said.lines().count() == 1, "{said}");
    }
    let wide = format!("raw:{},block=4096", moved.display());
    drop(served);
    let served = Served::start(&wide, &[]);
    let said = served.refused(&["resize", "17826304"]);
    assert!(said.contains("4096"), "{said}");
    drop(served);
    let served = Served::start(&format!("raw:{},readonly=on", moved.display()), &[]);
    let said = served.refused(&["resize", "18M"]);
    assert!(said.contains("read-only"), "{said}");
    assert_eq!(std::fs::metadata(&moved).unwrap().len(), 17 << 20);
    let null = Served::start("null:1M", &[]);
    let said = null.refused(&["resize", "2M"]);
    assert!(said.contains("null:1M can't be made larger"), "{said}");
}

#[test]
fn a_hold_that_ended_before_is_told() {
    let served = Served::start("memory:1M", &[]);
    let said = served.refused(&["resume"]);
    assert!(said.contains("no request is held"), "{said}");
    assert_eq!(served.ctl(&["drain", "--hold", "1"])["held_seconds"], 1);
    // Its writes wait until the time has run out.
    verify::run(&Config::new(served.socket(), 10)).unwrap();
    let said = served.refused(&["resume"]);
    assert!(
        said.contains("seconds ago") && said.contains("not of one moment"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    served.ctl(&["drain", "--hold", "60"]);
    assert_eq!(served.ctl(&["resume"])["resumed"], true);
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

fn completion(queue: &mut dyn IoQueue) -> Completion {
    let mut done = Vec::new();
    queue.flush_batch().unwrap();
    while queue.reap(&mut done).unwrap() == 0 {
        let Wait::Fd(fd) = queue.wait() else {
            panic!("the driver has a descriptor");
        };
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid entry.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
    }
    done.pop().unwrap()
}

#[test]
fn what_the_host_fails_is_held_until_it_is_mended() {
    let broken = "fault=errors:1000,rerror=stop,werror=stop";
    let served = Served::start(&format!("memory:1M,{broken}"), &[]);
    let both = serde_json::json!(["fault=seed:0/errors:1000", "errors=rerror:stop/werror:stop"]);
    assert_eq!(served.ctl(&["layers"])["layers"], both);
    let disk = ClientDisk::connect(&served.socket(), 1).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    assert!(matches!(write_sector(&mut *queue, 3, 7), Submit::Queued));
    queue.flush_batch().unwrap();
    let held = || served.ctl(&["stats"])["held"].clone();
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
    let resumed = served.ctl(&["resume"]);
    assert_eq!(
        (&resumed["operations"], &resumed["hold"]),
        (&1.into(), &false.into())
    );
    served.ctl(&["drain", "--hold", "60"]);
    served.ctl(&["layers", "rerror=stop,werror=stop"]);
    assert_eq!(served.ctl(&["resume"])["hold"], true);
    let written = completion(&mut *queue);
    assert_eq!(written.token, Token(3));
    written.result.unwrap();
    assert_eq!(held()["operations"], 0);
    let said = served.refused(&["resume"]);
    assert!(said.contains("no request is held"), "{said}");
}

/// Ends a server with SIGTERM, which must not take as long as its layers would hold requests back.
fn ends_at_once(mut served: Served) {
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
    let served = Served::start("memory:1M,fault=errors:1000,werror=stop", &[]);
    let disk = ClientDisk::connect(&served.socket(), 1).unwrap();
    let mut queue = disk.open_queue(4).unwrap();
    write_sector(&mut *queue, 3, 7);
    queue.flush_batch().unwrap();
    while served.ctl(&["stats"])["held"]["operations"] != 1 {}
    ends_at_once(served);
}

#[test]
fn a_server_ends_under_a_throttle_and_under_a_hold() {
    for hold in [false, true] {
        let served = Served::start("memory:1M,throttle=iops:1", &[]);
        let disk = ClientDisk::connect(&served.socket(), 1).unwrap();
        let mut queue = disk.open_queue(64).unwrap();
        if hold {
            served.ctl(&["drain", "--hold", "3600"]);
        }
        for sector in 0..60 {
            write_sector(&mut *queue, sector, 7);
        }
        queue.flush_batch().unwrap();
        // What waits in the throttle, or in front of it.
        while !hold && served.ctl(&["stats"])["throttles"][0]["waiting"] == 0 {}
        ends_at_once(served);
    }
}

#[test]
fn the_file_of_a_bitmap_and_policies_stand_in_a_file_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.toml");
    let bitmap = dir.path().join("backup.bitmap");
    let text = format!(
        "format='memory'\nsize='1M'\n[[layer]]\ntype='dirty'\nname='backup'\npersist='{}'\nsync=true\n\
         [[layer]]\ntype='errors'\nwerror='enospc'\nrerror='stop'\n",
        bitmap.display()
    );
    std::fs::write(&path, text).unwrap();
    let served = Served::start(&format!("toml:{}", path.display()), &[]);
    let layers = serde_json::json!([
        format!("dirty=backup/sync:on/persist:{}", bitmap.display()),
        "errors=rerror:stop/werror:enospc"
    ]);
    assert_eq!(served.ctl(&["layers"])["layers"], layers);
    assert!(bitmap.exists());
}

#[test]
fn numbers_agree_wherever_they_are_shown() {
    let served = Served::start(
        "memory:32M,throttle=iops:1000000",
        &["--metrics", "127.0.0.1:0"],
    );
    let address = served.metrics["address"].as_str().unwrap().to_owned();
    let fetch = |path: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    verify::run(&Config::new(served.socket(), 3000)).unwrap();
    let stats = served.ctl(&["stats"]);
    let text = fetch("/metrics");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let sum = |name: &str, op: &str| -> f64 {
        let label = format!("op=\"{op}\"");
        let lines = text
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(&label));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    };
    for op in ["read", "write", "flush", "discard", "write_zeroes"] {
        let ops = &stats["total"]["ops"][op];
        let count = ops["count"].as_f64().unwrap();
        assert!(count > 0.0, "{op}: {stats}");
        assert_eq!(sum("vblk_operations_total{", op), count, "{text}");
        assert_eq!(sum("vblk_latency_seconds_count{", op), count, "{text}");
        let bytes = ops["bytes"].as_f64().unwrap();
        assert_eq!(sum("vblk_transferred_bytes_total{", op), bytes, "{text}");
    }
    assert!(text.contains("} 33554432\n"), "{text}");
    assert!(fetch("/").starts_with("HTTP/1.1 404 "));
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(b"rubbish\r\n\r\n").unwrap();
    text_of(stream, "HTTP/1.1 400 ");

    let control = served.control();
    let top = vblk(&[
        "top",
        control.to_str().unwrap(),
        "--count",
        "2",
        "--interval",
        "0.01",
    ]);
    let table = String::from_utf8(top.stdout).unwrap();
    assert!(top.status.success());
    assert!(table.contains("memory:32M  32 MiB"), "{table}");
    assert!(
        table.contains("depth 0") && table.contains("p99.99"),
        "{table}"
    );
    assert!(
        table.contains("throttle=iops:1000000: 0 waiting"),
        "{table}"
    );
}

fn text_of(mut stream: TcpStream, start: &str) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with(start), "{text}");
}

#[test]
fn wrong_requests_get_errors_and_change_nothing() {
    let served = Served::start("memory:1M,meter", &[]);
    for (set, word) in [
        ("metre", "`metre`"),
        ("meter,meter", "twice"),
        ("throttle=iops:x", "`x`"),
        ("meter,verify", "from the start"),
    ] {
        let said = served.refused(&["layers", set]);
        assert!(said.contains(word), "{set}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let mut stream = UnixStream::connect(served.control()).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for line in [
        "rubbish",
        "{}",
        "[1]",
        "{\"command\":\"fly\"}",
        "{\"command\":\"layers\",\"set\":7}",
        "{\"command\":\"dirty\"}",
        "{\"command\":\"stats\",\"more\":1}",
        "{\"command\":\"drain\",\"hold\":4000}",
        "{\"command\":\"resize\",\"bytes\":-1}",
        "{\"command\":\"dirty\",\"bitmap\":\"a\",\"take\":true,\"load\":\"/x\"}",
        "\u{0}",
    ] {
        writeln!(stream, "{line}").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["error"].is_string(), "{line}: {answer}");
    }
    // A line without an end is not kept for ever.
    let mut endless = UnixStream::connect(served.control()).unwrap();
    let closed = (0..64).any(|_| endless.write_all(&[b' '; 4096]).is_err())
        || endless.read(&mut [0]).is_ok_and(|read| read == 0);
    assert!(closed);
    assert_eq!(
        served.ctl(&["layers"]),
        serde_json::json!({"layers": ["meter"], "settled": true})
    );
    let refreshed = served.ctl(&["refresh"]);
    assert_eq!(refreshed["capacity"], 1 << 20);
    let mode = std::fs::metadata(served.control())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_disk_is_described_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.toml");
    let disk = format!("toml:{}", path.display());
    let text = "format='memory'\nsize='1M'\n[[layer]]\ntype='throttle'\niops={rate=5,burst=9}\n";
    std::fs::write(&path, text).unwrap();
    let served = Served::start(&disk, &[]);
    assert_eq!(
        served.ctl(&["layers"])["layers"],
        serde_json::json!(["throttle=iops:5/burst:9"])
    );
    std::fs::write(&path, "format='raw'\npath='x'\ncolour='red'").unwrap();
    let output = vblk(&[
        "serve",
        "vhost-user",
        "--socket",
        "/nonexistent/s",
        "--disk",
        &disk,
    ]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    let words = ["disk.toml, line 3: ", "`colour`"];
    assert!(
        words.iter().all(|word| said.contains(word)) && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn nobody_to_talk_to_is_one_line() {
    for args in [
        &["ctl", "/nonexistent/c", "stats"][..],
        &["top", "/nonexistent/c"],
    ] {
        let output = vblk(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("--control") && said.lines().count() == 1,
            "{said}"
        );
    }
}

#[test]
fn help_shows_the_layers() {
    for args in [&["serve", "vhost-user", "--help"][..], &["ctl", "--help"]] {
        let text = String::from_utf8(vblk(args).stdout).unwrap();
        for word in [
            "throttle=",
            "dirty=",
            "meter",
            "verify",
            "fault=",
            "toml:FILE",
        ] {
            assert!(text.contains(word), "{args:?}: {text}");
        }
    }
}

/// A format writes its last when nobody has the disk any longer, which the servers of metrics and control must not hinder.
#[test]
fn the_disk_is_let_go_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    let qemu_img = |args: &[&str]| {
        let mut command = Command::new("qemu-img");
        command.args(args).arg(&path).stdout(Stdio::null());
        command
    };
    let made = qemu_img(&["create", "-q", "-f", "qcow2", "-o", "size=32M"]).status();
    let made =
        made.unwrap_or_else(|e| panic!("can't run qemu-img ({e}): apt-get install qemu-utils"));
    assert!(made.success());
    let mut served = Served::start(
        &format!("qcow2:{}", path.display()),
        &["--metrics", "127.0.0.1:0"],
    );
    verify::run(&Config::new(served.socket(), 300)).unwrap();
    // A client that stays.
    let mut idle = UnixStream::connect(served.control()).unwrap();
    idle.write_all(b"{\"command\":\"disks\"}\n").unwrap();
    let mut answer = String::new();
    BufReader::new(&idle).read_line(&mut answer).unwrap();
    assert!(answer.contains("ok"), "{answer}");
    let pid = served.child.id().try_into().unwrap();
    // SAFETY: plain kill(2), of a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    assert!(served.child.wait().unwrap().success());
    let checked = qemu_img(&["check", "-q", "-f", "qcow2"]).status().unwrap();
    assert_eq!(checked.code(), Some(0), "clusters that belong to nobody");
}
