// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vDPA device under the built-in guest, on both paths; where this host has KVM.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

fn mini_vmm(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mini-vmm"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn has_kvm() -> bool {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    kvm.is_ok()
}

/// A machine with a control socket, in a directory of its own. It is killed if a test fails.
struct Running {
    child: Child,
    socket: PathBuf,
}

impl Running {
    /// Starts it and stops it as early as possible.
    fn paused(directory: &Path, disk: &str) -> Self {
        let socket = directory.join("socket");
        let mut command = mini_vmm(&["--memory", "32", "--disk", disk, "--control"]);
        let command = command.arg(&socket).stdout(Stdio::piped());
        let mut running = Self {
            child: command.spawn().unwrap(),
            socket,
        };
        while running.ask(&["pause"]).is_err() {
            let ended = running.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended before it was paused");
            sleep(Duration::from_millis(5));
        }
        running
    }

    fn ask(&self, arguments: &[&str]) -> Result<Value, String> {
        let mut command = mini_vmm(&["ctl", "--control"]);
        let output = command.arg(&self.socket).args(arguments).output().unwrap();
        if output.status.success() {
            Ok(serde_json::from_slice(&output.stdout).unwrap())
        } else {
            Err(String::from_utf8(output.stderr).unwrap())
        }
    }

    fn end(mut self) -> String {
        let output = self.child.stdout.take().unwrap();
        let status = self.child.wait().unwrap();
        let text = std::io::read_to_string(output).unwrap();
        assert!(status.success(), "{text}");
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{error}");
    text
}

#[test]
fn each_path_serves() {
    for disk in ["sim:64M,path=fast", "sim:64M,path=slow", "sim:64M,meter"] {
        if has_kvm() {
            let text = said(&mini_vmm(&["--disk", disk]).output().unwrap());
            assert!(text.contains("compared 128 chunks"), "{disk}: {text}");
        }
    }
    for (disk, why) in [
        ("sim:8M,path=on", "use path=fast"),
        ("sim:8M,path=fast,meter", "give path=auto"),
        ("sim:raw:/nowhere", "/nowhere"),
        ("vdpa:/nowhere", "/nowhere"),
    ] {
        let output = mini_vmm(&["--disk", disk]).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && error.contains(why),
            "{disk}: {error}"
        );
    }
}

#[test]
fn a_guest_is_moved_while_it_works() {
    if !has_kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let running = Running::paused(directory.path(), "sim:64M");
    let needs = |answer: Value| answer["needs"].as_array().unwrap().len();
    assert_eq!(needs(running.ask(&["layers", "meter"]).unwrap()), 1);
    // What layers need is not overruled.
    assert_eq!(needs(running.ask(&["switch", "slow"]).unwrap()), 2);
    assert_eq!(needs(running.ask(&["switch", "fast"]).unwrap()), 1);
    assert_eq!(needs(running.ask(&["layers"]).unwrap()), 0);
    assert!(
        running
            .ask(&["layers", "cake"])
            .unwrap_err()
            .contains("cake")
    );
    let refused = running.ask(&["switch", "slow", "--disk", "3"]);
    assert!(refused.unwrap_err().contains("no such disk"));
    running.ask(&["resume"]).unwrap();
    // To and fro until it is done; the guest compares what it reads.
    while running.ask(&["switch", "slow"]).is_ok() && running.ask(&["switch", "fast"]).is_ok() {}
    assert!(running.end().ends_with("guest: done\n"));
}

#[test]
fn a_snapshot_goes_on_on_either_path() {
    if !has_kvm() {
        return;
    }
    for (path, other) in [("fast", "slow"), ("slow", "fast"), ("auto", "auto,meter")] {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let (image, copy, snapshot) = (file("image"), file("copy"), file("snapshot"));
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let disk = format!("sim:raw:{image},path={path}");
        let running = Running::paused(directory.path(), &disk);
        running.ask(&["snapshot", &snapshot]).unwrap();
        std::fs::copy(&image, &copy).unwrap();
        running.ask(&["resize", "0", "96"]).unwrap();
        let stats = running.ask(&["stats"]).unwrap();
        assert_eq!(stats["disks"][0]["sectors"], 96 << 11);
        running.ask(&["resume"]).unwrap();
        assert!(running.end().ends_with("guest: done\n"));
        let disk = format!("sim:raw:{copy},path={other}");
        let restored = mini_vmm(&["--disk", &disk, "--restore", &snapshot]).output();
        assert!(said(&restored.unwrap()).ends_with("guest: done\n"));
        // Another kind of disk can't continue there.
        let disk = format!("raw:{copy}");
        let refused = mini_vmm(&["--disk", &disk, "--restore", &snapshot]).output();
        let error = String::from_utf8(refused.unwrap().stderr).unwrap();
        assert!(error.contains("another kind"), "{error}");
    }
}
