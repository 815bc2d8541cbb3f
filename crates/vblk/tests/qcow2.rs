// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk serve` on a qcow2 image under a driver that shares no code with it; `qemu-img` judges the image.
//! Without `qemu-img` on this host nothing is tested.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use vblk_testing::verify::{self, Config};

const LEN: u64 = 32 << 20;

/// Runs `qemu-img`. `None` where there is none.
fn qemu_img(args: &[&str]) -> Option<()> {
    let output = match Command::new("qemu-img").args(args).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        other => other.unwrap(),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let answered = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{args:?}: {said}{answered}");
    Some(())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

struct Served {
    child: Child,
    /// Kept open: the server writes to it when it ends.
    _output: BufReader<ChildStdout>,
}

impl Served {
    fn start(image: &Path, socket: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vblk"))
            .args(["--json", "serve", "vhost-user", "--queues", "4", "--disk"])
            .arg(format!("qcow2:{}", text(image)))
            .arg("--socket")
            .arg(socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert!(line.contains("listening"), "{line}");
        Self {
            child,
            _output: output,
        }
    }

    fn kill(&mut self) {
        // It may have ended, when a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn stop(&mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Option<Self> {
        let this = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let len = LEN.to_string();
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            text(&this.path("image")),
            &len,
        ])?;
        Some(this)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[test]
fn every_byte_is_right_and_so_is_the_image() {
    let Some(place) = Place::new() else {
        return;
    };
    let (image, socket, raw) = (place.path("image"), place.path("socket"), place.path("raw"));
    let mut served = Served::start(&image, &socket);
    let (report, model) = verify::run(&Config::new(socket, 20_000)).unwrap();
    assert!(report.reads > 1000 && report.writes > 1000, "{report}");
    assert!(report.discards > 100 && report.flushes > 100, "{report}");
    served.stop();
    qemu_img(&["check", "-q", text(&image)]).unwrap();
    let args = ["convert", "-q", "-f", "qcow2", "-O", "raw"];
    let args: Vec<_> = args.into_iter().chain([text(&image), text(&raw)]).collect();
    qemu_img(&args).unwrap();
    model.check_file(&raw).unwrap();
}

#[test]
fn a_killed_server_leaves_an_image_that_is_right() {
    let Some(place) = Place::new() else {
        return;
    };
    let image = place.path("image");
    for round in 0..12_u64 {
        let socket = place.path(&format!("socket{round}"));
        let mut served = Served::start(&image, &socket);
        let mut config = Config::new(socket, 20_000);
        config.seed = round;
        // Nobody waits for the client: it finds another content than zeroes, or nobody to talk to.
        std::thread::spawn(move || verify::run(&config));
        std::thread::sleep(Duration::from_millis(20 + round * 37 % 200));
        served.kill();
        // Clusters may have been taken that nothing refers to yet; everything else must be right.
        let output = Command::new("qemu-img")
            .args(["check", "--output=json", text(&image)])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(matches!(output.status.code(), Some(0 | 3)), "{said}");
        assert!(!said.contains("\"corruptions\""), "{said}");
    }
}
