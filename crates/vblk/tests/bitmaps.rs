// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Dirty bitmaps of a server: taken, saved, kept over a kill, and never dropped without a word.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::process::Command;

use common::{Server, vblk};
use serde_json::Value;
use vblk_testing::verify::{self, Config};

#[test]
fn what_changed_is_taken_in_two_steps() {
    let served = Server::of("memory:1M,dirty=backup/granularity:4K");
    let all = served.ask(&["dirty", "backup"]);
    assert_eq!(
        all["incomplete"], true,
        "nobody has said what changed before"
    );
    assert_eq!(all["ranges"], serde_json::json!([[0, 1 << 20]]));
    assert_eq!(served.ask(&["stats"])["dirty"][0]["bytes"], 1 << 20);
    // The first copy: of everything.
    let take = served.ask(&["dirty", "backup", "--take"]);
    let token = take["token"].as_str().unwrap();
    assert_eq!(
        (&take["incomplete"], &take["bytes"]),
        (&true.into(), &(1 << 20).into())
    );
    let committed = served.ask(&["dirty", "backup", "--commit", token]);
    assert_eq!(committed["bytes"], 0);
    let none = served.ask(&["dirty", "backup"]);
    assert_eq!(
        (&none["ranges"], &none["incomplete"]),
        (&serde_json::json!([]), &false.into())
    );
    verify::run(&Config::new(served.socket(), 500)).unwrap();
    // A client that vanishes, or whose output nobody reads, takes nothing along.
    let control = served.control();
    let shell = "\"$0\" ctl \"$1\" dirty backup --take | true";
    let mut client = Command::new("sh");
    client.args(["-c", shell, env!("CARGO_BIN_EXE_vblk"), &control]);
    client.status().unwrap();
    let some = served.ask(&["dirty", "backup", "--take"]);
    assert!(!some["ranges"].as_array().unwrap().is_empty(), "{some}");
    assert_eq!(some["granularity"], 4096);
    assert_ne!(some["generation"], all["generation"]);
    let token = some["token"].as_str().unwrap();
    // The copy failed.
    served.ask(&["dirty", "backup", "--abort", token]);
    assert_eq!(served.ask(&["dirty", "backup"])["ranges"], some["ranges"]);
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
    assert_eq!(served.ask(&["dirty", "backup"])["token"], Value::Null);
    let again = served.ask(&["dirty", "backup", "--take", "--save", name]);
    assert_eq!(
        (&again["ranges"], &again["saved"]),
        (&some["ranges"], &name.into())
    );
    served.ask(&[
        "dirty",
        "backup",
        "--commit",
        again["token"].as_str().unwrap(),
    ]);
    assert_eq!(served.ask(&["dirty", "backup"])["bytes"], 0);
    served.ask(&["dirty", "backup", "--load", name]);
    assert_eq!(served.ask(&["dirty", "backup"])["ranges"], some["ranges"]);
    assert_eq!(served.ask(&["dirty", "backup", "--new"])["bytes"], 0);
    assert!(served.refused(&["dirty", "other"]).contains("`other`"));
}

#[test]
fn no_bitmap_goes_without_a_word() {
    let served = Server::of("memory:1M,dirty=backup,meter");
    served.ask(&["dirty", "backup", "--new"]);
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
    let layers = |args: &[&str]| served.ask(&[&["layers"], args].concat())["layers"].clone();
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
        served.ask(&["dirty", "backup"])["incomplete"],
        false,
        "it was there all the time"
    );
    // With a word. What comes after that knows nothing of what changed before.
    layers(&["--remove", "dirty=backup", "--remove", "errors"]);
    layers(&["--add", "dirty=backup"]);
    assert_eq!(served.ask(&["dirty", "backup"])["incomplete"], true);
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
        let mut served = Server::of(&disk);
        let all = served.ask(&["dirty", "backup"]);
        assert_eq!(
            (&all["incomplete"], &all["why"]),
            (&true.into(), &"its file is new".into())
        );
        served.ask(&["dirty", "backup", "--new"]);
        let before = std::fs::read(&image).unwrap();
        verify::run(&Config::new(served.socket(), 300)).unwrap();
        let marks = served.ask(&["dirty", "backup"]);
        // Somebody has them when the server is killed.
        served.ask(&["dirty", "backup", "--take"]);
        served.kill();
        let mut served = Server::of(&disk);
        let found = served.ask(&["dirty", "backup"]);
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
        // Removed while the guest runs.
        served.ask(&["layers", "--remove", "dirty=backup"]);
        let written = format!(
            "dirty=backup/granularity:4K/persist:{}{sync}",
            file.display()
        );
        served.ask(&["layers", "--add", &written]);
        let doubted = served.ask(&["dirty", "backup"]);
        assert_eq!(doubted["incomplete"], true, "{doubted}");
        served.ask(&["dirty", "backup", "--new"]);
        served.signal(libc::SIGTERM);
        assert!(served.child.wait().unwrap().success());
        let served = Server::of(&disk);
        assert_eq!(
            served.ask(&["dirty", "backup"])["ranges"],
            serde_json::json!([])
        );
        drop(served);
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn marks_are_saved_and_loaded() {
    let disk = "memory:1M,dirty=backup/granularity:4K";
    let (served, file) = (Server::of(disk), tempfile::tempdir().unwrap());
    let file = file.path().join("marks");
    let name = file.to_str().unwrap();
    served.ask(&["dirty", "backup", "--new"]);
    verify::run(&Config::new(served.socket(), 200)).unwrap();
    let marks = served.ask(&["dirty", "backup"]);
    let saved = served.ask(&["dirty", "backup", "--save", name]);
    assert!(saved["bytes"].as_u64().unwrap() > 0, "{saved}");
    assert_eq!(served.ask(&["dirty", "backup"]), marks);
    drop(served);
    let served = Server::of(disk);
    let loaded = served.ask(&["dirty", "backup", "--load", name]);
    assert_eq!(
        (&loaded["bytes"], &loaded["incomplete"]),
        (&saved["bytes"], &false.into())
    );
    assert_eq!(served.ask(&["dirty", "backup"])["ranges"], marks["ranges"]);
    // A disk that is larger than it was: what is new has changed.
    let larger = Server::of("memory:2M,dirty=backup/granularity:64K");
    larger.ask(&["dirty", "backup", "--load", name]);
    let ranges = larger.ask(&["dirty", "backup"]);
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
    assert_eq!(served.ask(&["dirty", "backup"])["ranges"], marks["ranges"]);
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
    let served = Server::of(&format!("toml:{}", path.display()));
    let layers = serde_json::json!([
        format!("dirty=backup/sync:on/persist:{}", bitmap.display()),
        "errors=rerror:stop/werror:enospc"
    ]);
    assert_eq!(served.ask(&["layers"])["layers"], layers);
    assert!(bitmap.exists());
}
