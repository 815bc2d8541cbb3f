// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The program as it is run: the built-in guest, where this host has KVM, and what is said where not.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

fn mini_vmm(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mini-vmm"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Whether a machine can be run here. If not, that the program says so and what to do instead.
fn has_kvm() -> bool {
    if File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
    {
        return true;
    }
    let output = mini_vmm(&[]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(error.contains("cargo xtask lab mini-vmm-pci"), "{error}");
    false
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

#[test]
fn the_default_writes_reads_and_compares() {
    if has_kvm() {
        let text = said(&mini_vmm(&[]).output().unwrap());
        assert!(
            text.contains("a disk of 64 MiB, serial mini-vmm-0"),
            "{text}"
        );
        assert!(text.contains("compared 128 chunks"), "{text}");
        assert!(text.ends_with("guest: done\n"), "{text}");
    }
}

#[test]
fn a_hostile_guest_does_not_take_the_vmm_down() {
    if has_kvm() {
        for seed in ["1", "2"] {
            let text = said(&mini_vmm(&["--hostile", seed]).output().unwrap());
            assert!(text.contains("the VMM survived 400 rounds"), "{text}");
            // And the device still does what it should.
            assert!(text.contains("compared 128 chunks"), "{text}");
        }
    }
}

#[test]
fn a_guest_without_a_device_ends_with_its_own_status() {
    if has_kvm() {
        let output = mini_vmm(&["--transport", "pci"]).output().unwrap();
        assert_eq!(output.status.code(), Some(3));
    }
}

#[test]
fn two_disks_and_a_bad_one() {
    if has_kvm() {
        said(
            &mini_vmm(&["--disk", "memory:8M", "--disk", "null:1G"])
                .output()
                .unwrap(),
        );
    }
    let output = mini_vmm(&["--disk", "tape:8M"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(error.contains("disk tape:8M"), "{error}");
}

/// A machine that is killed if a test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ctl(socket: &Path, arguments: &[&str]) -> Output {
    let mut command = mini_vmm(&["ctl", "--control"]);
    command.arg(socket).args(arguments).output().unwrap()
}

#[test]
fn pause_snapshot_and_restore_at_work() {
    if !has_kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (image, copy) = (path("image"), path("copy"));
    let (socket, snapshot) = (path("socket"), path("snapshot"));
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let disk = format!("raw:{}", image.display());
    let options = [
        "--memory",
        "32",
        "--disk",
        &disk,
        "--queues",
        "3",
        "--control",
    ];
    let mut command = mini_vmm(&options);
    let child = command.arg(&socket).stdout(Stdio::piped()).spawn().unwrap();
    let mut running = Running(child);
    while !ctl(&socket, &["pause"]).status.success() {
        assert!(
            running.0.try_wait().unwrap().is_none(),
            "it ended before it was paused"
        );
        sleep(Duration::from_millis(5));
    }
    let stats = said(&ctl(&socket, &["stats"]));
    assert!(stats.contains("\"paused\": true"), "{stats}");
    said(&ctl(&socket, &["snapshot", snapshot.to_str().unwrap()]));
    std::fs::copy(&image, &copy).unwrap();
    said(&ctl(&socket, &["resize", "0", "96"]));
    let stats = said(&ctl(&socket, &["stats"]));
    assert!(
        stats.contains(&format!("\"sectors\": {}", 96 << 11)),
        "{stats}"
    );
    let refused = ctl(&socket, &["resize", "7", "96"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no such disk"));
    said(&ctl(&socket, &["resume"]));
    // The machine itself continues to its end, and so does its copy.
    assert!(running.0.wait().unwrap().success());
    let disk = format!("raw:{}", copy.display());
    let mut restored = mini_vmm(&["--disk", &disk, "--restore"]);
    let text = said(&restored.arg(&snapshot).output().unwrap());
    assert!(text.ends_with("guest: done\n"), "{text}");
    // Other queues and disks than those of the snapshot are refused.
    let mut restored = mini_vmm(&["--disk", &disk, "--queues", "2", "--restore"]);
    let output = restored.arg(&snapshot).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("had 3 queues, not 2"));
    let mut restored = mini_vmm(&["--disk", &disk, "--disk", "null:1M", "--restore"]);
    let output = restored.arg(&snapshot).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("other disks"));
}

#[test]
fn disks_come_and_go() {
    if !has_kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let mut command = mini_vmm(&["--control"]);
    let child = command.arg(&socket).stdout(Stdio::piped()).spawn().unwrap();
    let mut running = Running(child);
    while !ctl(&socket, &["pause"]).status.success() {
        assert!(
            running.0.try_wait().unwrap().is_none(),
            "it ended before it was paused"
        );
        sleep(Duration::from_millis(5));
    }
    for _ in 0..40 {
        // More often than there are slots and interrupts: what was taken is given back.
        let added = said(&ctl(&socket, &["add-disk", "memory:1M"]));
        assert!(added.contains("\"disk\": 1"), "{added}");
        said(&ctl(&socket, &["remove-disk", "1"]));
    }
    let refused = ctl(&socket, &["remove-disk", "0"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no disk 0 on PCI"));
    said(&ctl(&socket, &["power-off"]));
    assert!(running.0.wait().unwrap().success());
}
