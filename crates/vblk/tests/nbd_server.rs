// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk serve nbd`, judged by clients that are not ours: libnbd's tools and QEMU's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::fs::{File, read};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use common::vblk;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Runs a judge.
fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output();
    output.unwrap_or_else(|error| {
        panic!("{program} ({error}): on Debian, it is in libnbd-bin or qemu-utils")
    })
}

/// Runs a judge that must be content; returns what it prints.
fn judge(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

struct Serving {
    child: Child,
    output: BufReader<ChildStdout>,
    dir: tempfile::TempDir,
}

impl Serving {
    /// A server with these arguments and its socket, once `exports` of them can be used.
    fn start(dir: tempfile::TempDir, exports: usize, args: &[&str]) -> Self {
        let socket = dir.path().join("socket");
        let mut child = Command::new(env!("CARGO_BIN_EXE_vblk"))
            .args(["--json", "serve", "nbd", "--socket"])
            .arg(socket)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut this = Self { child, output, dir };
        for _ in 0..exports {
            this.event("listening");
        }
        this
    }

    fn event(&mut self, event: &str) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["event"], event, "{line}");
        value
    }

    fn uri(&self, export: &str) -> String {
        let socket = self.dir.path().join("socket");
        format!("nbd+unix:///{export}?socket={}", socket.display())
    }

    fn path(&self, name: &str) -> String {
        path(self.dir.path(), name)
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
    }

    /// Waits for the end. Returns the exit code and what was said.
    fn end(&mut self) -> (Option<i32>, String) {
        let code = self.child.wait().unwrap().code();
        let mut said = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        (code, said)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It has ended, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

/// A file of 64 MiB with data in some places.
fn image(dir: &Path, name: &str) -> String {
    let path = path(dir, name);
    let file = File::create(&path).unwrap();
    file.set_len(64 * MIB).unwrap();
    for (seed, at) in [(3, 5), (5, 6), (7, 40)] {
        let data: Vec<u8> = (0..MIB).map(|i| (i * seed % 251) as u8).collect();
        file.write_all_at(&data, at * MIB).unwrap();
    }
    path
}

/// The ranges of a map in a state.
fn ranges(map: &str, state: u64) -> Vec<(u64, u64)> {
    let map: Value = serde_json::from_str(map).unwrap();
    let all = map.as_array().unwrap().iter();
    let chosen = all.filter(|extent| extent["type"] == state);
    let number = |extent: &Value, field: &str| extent[field].as_u64().unwrap();
    chosen
        .map(|extent| (number(extent, "offset"), number(extent, "length")))
        .collect()
}

#[test]
fn the_tools_of_others_copy_compare_and_map() {
    let dir = tempfile::tempdir().unwrap();
    let raw = image(dir.path(), "a.img");
    let qcow2 = path(dir.path(), "b.qcow2");
    judge(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", &raw, &qcow2],
    );
    let (a, b) = (format!("raw:{raw}"), format!("qcow2:{qcow2}"));
    let args = ["--disk", &a, "--export", "a", "--disk", &b, "--export", "b"];
    let mut serving = Serving::start(dir, 2, &args);
    let listed = judge("nbdinfo", &["--json", "--list", &serving.uri("")]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let names: Vec<_> = listed["exports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["export-name"])
        .collect();
    assert_eq!(names, ["a", "b"]);
    for export in ["a", "b"] {
        let uri = serving.uri(export);
        let map = judge("nbdinfo", &["--json", "--map", &uri]);
        assert_eq!(
            ranges(&map, 0),
            [(5 * MIB, 2 * MIB), (40 * MIB, MIB)],
            "{export}"
        );
        // There, and back with zeroes, trims and several connections.
        let copy = serving.path("copy.img");
        judge("nbdcopy", &[&uri, &copy]);
        assert!(read(&copy).unwrap() == read(&raw).unwrap(), "{export}");
        judge(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", &uri, &raw],
        );
        let wiped = serving.path("wiped.img");
        File::create(&wiped).unwrap().set_len(64 * MIB).unwrap();
        judge("nbdcopy", &[&wiped, &uri]);
        let map = judge("nbdinfo", &["--json", "--map", &uri]);
        assert_eq!(ranges(&map, 3), [(0, 64 * MIB)], "{export}");
        judge(
            "qemu-img",
            &["convert", "-n", "-f", "raw", "-O", "raw", &copy, &uri],
        );
        judge(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", &uri, &copy],
        );
        // Not cut short in between, which the server would notice.
        let served = File::options().write(true).open(&raw).unwrap();
        served.write_all_at(&read(&copy).unwrap(), 0).unwrap();
        let io = "-c|write -P 7 1M 64k|-c|write -z 5M 64k|-c|write -zu 6M 1M|-c|write -f -P 8 4M 4k|-c|discard 40M 1M|\
                  -c|flush|-c|read -P 7 1M 64k|-c|read -P 0 5M 64k|-c|read -P 0 6M 1M|-c|read -P 8 4M 4k";
        let io: Vec<_> = io.split('|').chain(["-f", "raw", &uri]).collect();
        let said = judge("qemu-io", &io);
        assert!(!said.contains("failed"), "{said}");
        judge("nbdcopy", &[&copy, &uri]);
    }
    serving.terminate();
    let ended = [serving.event("ended"), serving.event("ended")];
    let counted = |field: &str| ended.iter().map(|e| e[field].as_u64().unwrap()).min();
    assert!(
        counted("clients") > Some(10) && counted("written_bytes") > Some(MIB),
        "{ended:?}"
    );
    assert_eq!(serving.end().0, Some(0));
}

#[test]
fn an_incremental_backup_is_pulled_by_a_dirty_bitmap() {
    let dir = tempfile::tempdir().unwrap();
    let raw = image(dir.path(), "disk.img");
    let (control, copy) = (path(dir.path(), "control"), path(dir.path(), "copy.img"));
    let disk = format!("raw:{raw},dirty=backup");
    let args = ["--disk", &disk, "--control", &control];
    let serving = Serving::start(dir, 1, &args);
    let uri = serving.uri("");
    let map = || {
        judge(
            "nbdinfo",
            &["--json", "--map=qemu:dirty-bitmap:backup", &uri],
        )
    };
    let ctl = |args: &[&str]| {
        let output = vblk(&[&["--json", "ctl", &control], args].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    // It does not know what happened before: everything, once.
    assert_eq!(ranges(&map(), 1), [(0, 64 * MIB)]);
    let taken = ctl(&["dirty", "backup", "--take"]);
    judge("nbdcopy", &[&uri, &copy]);
    ctl(&[
        "dirty",
        "backup",
        "--commit",
        taken["token"].as_str().unwrap(),
    ]);
    assert_eq!(ranges(&map(), 1), []);
    let write =
        "-c|write -P 1 1M 64k|-c|write -P 2 33M 192k|-c|write -z 40M 64k|-c|discard 41M 64k";
    let write: Vec<_> = write.split('|').chain(["-f", "raw", &uri]).collect();
    judge("qemu-io", &write);
    let taken = ctl(&["dirty", "backup", "--take"]);
    let changed = ranges(&map(), 1);
    let bytes: u64 = changed.iter().map(|(_, len)| len).sum();
    assert_eq!(changed.first(), Some(&(MIB, 64 << 10)), "{changed:?}");
    assert_eq!(bytes, (64 + 192 + 64 + 64) << 10, "{changed:?}");
    // What a backup tool does: it reads these, and no others.
    let piece = serving.path("piece.img");
    let file = File::options().write(true).open(&copy).unwrap();
    for (offset, len) in changed {
        // Its count begins at the disk's first byte, whatever is skipped.
        let (skip, count) = (offset >> 16, (offset + len) >> 16);
        let (skip, count) = (format!("skip={skip}"), format!("count={count}"));
        let (from, to) = (format!("if={uri}"), format!("of={piece}"));
        let dd = [
            "dd", "-f", "raw", "-O", "raw", "bs=64k", &skip, &count, &from, &to,
        ];
        judge("qemu-img", &dd);
        let data = read(&piece).unwrap();
        assert_eq!(data.len() as u64, len);
        file.write_all_at(&data, offset).unwrap();
    }
    ctl(&[
        "dirty",
        "backup",
        "--commit",
        taken["token"].as_str().unwrap(),
    ]);
    judge(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &uri, &copy],
    );
    assert_eq!(ctl(&["stats"])["dirty"][0]["bytes"], json!(0));
}

#[test]
fn a_read_only_export_on_tcp_where_the_network_is_vouched_for() {
    let dir = tempfile::tempdir().unwrap();
    let raw = image(dir.path(), "disk.img");
    let disk = format!("raw:{raw}");
    let listen = ["serve", "nbd", "--disk", &disk, "--listen", "127.0.0.1:0"];
    let refused = vblk(&listen);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("--trusted-network"), "{said}");
    let mut child = Command::new(env!("CARGO_BIN_EXE_vblk"))
        .arg("--json")
        .args(listen)
        .args([
            "--trusted-network",
            "--read-only",
            "--description",
            "a test's",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let listening: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(listening["read_only"], true);
    let uri = format!("nbd://{}", listening["address"].as_str().unwrap());
    let info = judge("nbdinfo", &["--json", &uri]);
    let info: Value = serde_json::from_str(&info).unwrap();
    let export = &info["exports"][0];
    assert_eq!(export["is_read_only"], true);
    assert_eq!(export["description"], "a test's");
    let written = run("qemu-io", &["-f", "raw", "-c", "write 0 512", &uri]);
    assert!(!written.status.success());
    judge("nbdcopy", &[&uri, &path(dir.path(), "copy.img")]);
    assert!(read(path(dir.path(), "copy.img")).unwrap() == read(&raw).unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_can_not_be_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let socket = path(dir.path(), "socket");
    let serve = |args: &[&str]| {
        let output = vblk(&[&["serve", "nbd"], args].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said)
    };
    let (code, said) = serve(&["--disk", "memory:1M"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--socket"), "{said}");
    let twice = [
        "--socket",
        &socket,
        "--disk",
        "memory:1M",
        "--disk",
        "memory:1M",
    ];
    let (code, said) = serve(&twice);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("--export") && said.contains("two disks"),
        "{said}"
    );
    assert!(!Path::new(&socket).exists());
}

#[test]
fn a_killed_server_has_what_it_acknowledged_and_leaves_its_socket_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let raw = image(dir.path(), "disk.img");
    let disk = format!("raw:{raw}");
    let mut serving = Serving::start(dir, 1, &["--disk", &disk]);
    let uri = serving.uri("");
    judge("qemu-io", &["-f", "raw", "-c", "write -P 9 8M 1M", &uri]);
    serving.child.kill().unwrap();
    serving.child.wait().unwrap();
    assert!(
        serving
            .path("socket")
            .parse::<std::path::PathBuf>()
            .unwrap()
            .exists()
    );
    let dir = std::mem::replace(&mut serving.dir, tempfile::tempdir().unwrap());
    let serving = Serving::start(dir, 1, &["--disk", &disk]);
    judge(
        "qemu-io",
        &["-f", "raw", "-c", "read -P 9 8M 1M", &serving.uri("")],
    );
    assert!(
        read(&raw).unwrap()[8 << 20..9 << 20]
            .iter()
            .all(|byte| *byte == 9)
    );
}

#[test]
fn a_disk_that_a_driver_writes_is_exported_beside_its_server() {
    use vblk_testing::verify::{self, Config};

    let mut server = common::Server::of("memory:64M,dirty=backup");
    let socket = path(server.dir.path(), "nbd");
    let exported = server.ask(&["export", "nbd", "--socket", &socket, "--export", "live"]);
    assert_eq!(exported["read_only"], true);
    let again = server.refused(&["export", "nbd", "--socket", &socket]);
    assert!(again.contains("export stop"), "{again}");
    let taken = server.ask(&["dirty", "backup", "--take"]);
    server.ask(&[
        "dirty",
        "backup",
        "--commit",
        taken["token"].as_str().unwrap(),
    ]);
    // A driver at work, and a client that copies meanwhile.
    let config = Config::new(server.socket(), 5000);
    // The directory has a name that a URI can't hold as it is.
    let quoted = socket
        .replace('"', "%22")
        .replace('\\', "%5C")
        .replace(' ', "%20");
    let uri = format!("nbd+unix:///live?socket={quoted}");
    let copy = path(server.dir.path(), "copy.img");
    std::thread::scope(|scope| {
        let driver = scope.spawn(|| verify::run(&config).unwrap());
        judge("nbdcopy", &[&uri, &copy]);
        driver.join().unwrap();
    });
    // It is at rest now: the whole disk, and what changed of it.
    judge("nbdcopy", &[&uri, &copy]);
    judge(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &uri, &copy],
    );
    let map = judge(
        "nbdinfo",
        &["--json", "--map=qemu:dirty-bitmap:backup", &uri],
    );
    let dirty: u64 = ranges(&map, 1).iter().map(|(_, len)| len).sum();
    assert_eq!(json!(dirty), server.ask(&["stats"])["dirty"][0]["bytes"]);
    assert_ne!(dirty, 0);
    let written = run("qemu-io", &["-f", "raw", "-c", "write 0 512", &uri]);
    assert!(!written.status.success());
    server.ask(&["export", "stop"]);
    assert!(!Path::new(&socket).exists());
    assert!(server.refused(&["export", "stop"]).contains("not exported"));
    // One that is there at the end goes with the server.
    server.ask(&["export", "nbd", "--socket", &socket]);
    server.signal(libc::SIGTERM);
    let ended = server.event("ended");
    assert!(ended["writes"].as_u64() > Some(0), "{ended}");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(!Path::new(&socket).exists());
}

#[test]
fn a_disk_that_is_handed_over_is_not_exported_beside_its_server() {
    let dir = tempfile::tempdir().unwrap();
    let raw = image(dir.path(), "disk.img");
    let server = common::Server::of(&format!("raw:{raw},lock=handover"));
    let said = server.refused(&["export", "nbd", "--socket", "/nonexistent/s"]);
    assert!(said.contains("lock=handover"), "{said}");
}

/// A directory with certificates, named as libnbd and QEMU want them: of an authority, a server and a client.
fn certificates() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let openssl = |line: &str| {
        let mut command = Command::new("openssl");
        let command = command.args(line.split(' ')).current_dir(dir.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "openssl {line}: {output:?}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!(
        "req -x509 {key} -keyout ca-key.pem -out ca-cert.pem -days 2 -subj /CN=authority"
    ));
    let names = "subjectAltName=DNS:localhost,IP:127.0.0.1";
    std::fs::write(dir.path().join("names"), names).unwrap();
    for who in ["server", "client"] {
        openssl(&format!(
            "req {key} -keyout {who}-key.pem -out {who}.csr -subj /CN={who}"
        ));
        openssl(&format!(
            "x509 -req -in {who}.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -out {who}-cert.pem -days 2 \
             -extfile names"
        ));
    }
    dir
}

#[test]
fn with_tls_nothing_is_told_in_the_clear() {
    let (ours, others) = (certificates(), certificates());
    let dir = tempfile::tempdir().unwrap();
    let raw = image(dir.path(), "disk.img");
    let mut child = Command::new(env!("CARGO_BIN_EXE_vblk"))
        .args(["--json", "serve", "nbd", "--listen", "127.0.0.1:0"])
        .args([
            "--disk",
            &format!("raw:{raw}"),
            "--tls-verify-peer",
            "--tls",
        ])
        .arg(ours.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let listening: Value = serde_json::from_str(&line).unwrap();
    let port = listening["address"]
        .as_str()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap();
    let with = |dir: &tempfile::TempDir| {
        let certificates = dir.path().display();
        format!("nbds://localhost:{port}/?tls-certificates={certificates}")
    };
    let (uri, copy) = (with(&ours), path(dir.path(), "copy.img"));
    judge("nbdcopy", &[&uri, &copy]);
    assert!(read(&copy).unwrap() == read(&raw).unwrap());
    let data: Vec<u8> = (0..64 * MIB).map(|i| (i % 253) as u8).collect();
    std::fs::write(&copy, &data).unwrap();
    judge("nbdcopy", &[&copy, &uri]);
    assert!(read(&raw).unwrap() == data);
    let info = judge("nbdinfo", &["--json", "--map", &uri]);
    assert_eq!(ranges(&info, 0), [(0, 64 * MIB)]);
    // Without TLS, with a certificate of others, and without any.
    let plain = format!("nbd://localhost:{port}");
    for uri in [plain, with(&others)] {
        let refused = run("nbdinfo", &[&uri]);
        assert!(!refused.status.success(), "{uri}: {refused:?}");
    }
    // What is not TLS where TLS has to come, options before it, and the old way to an export.
    let option = |kind: u32, payload: &[u8]| {
        let len = payload.len() as u32;
        [
            &b"IHAVEOPT"[..],
            &kind.to_be_bytes(),
            &len.to_be_bytes(),
            payload,
        ]
        .concat()
    };
    for (sent, wanted) in [
        ([option(5, &[]), vec![0x16; 40_000]].concat(), 1),
        ([option(3, &[]), option(2, &[])].concat(), 0x8000_0005),
        (option(1, &[]), 0),
    ] {
        let mut client = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
        client
            .write_all(&[&[0, 0, 0, 3], &sent[..]].concat())
            .unwrap();
        let _ = client.shutdown(std::net::Shutdown::Write);
        let mut got = Vec::new();
        // It may be reset, as not all that was sent is read.
        let _ = client.read_to_end(&mut got);
        let reply = got.get(18 + 12..18 + 16).unwrap_or(&[0; 4]);
        assert_eq!(reply, u32::to_be_bytes(wanted), "{got:?}");
    }
    judge("nbdinfo", &[&uri]);
    std::fs::remove_file(ours.path().join("client-cert.pem")).unwrap();
    let refused = run("nbdinfo", &[&uri]);
    assert!(!refused.status.success(), "{refused:?}");
    child.kill().unwrap();
    child.wait().unwrap();

    let missing = [
        "serve",
        "nbd",
        "--disk",
        "memory:1M",
        "--listen",
        "127.0.0.1:0",
        "--tls",
    ];
    let missing = vblk(&[&missing[..], &["/nonexistent"]].concat());
    assert_eq!(missing.status.code(), Some(1));
    let said = String::from_utf8(missing.stderr).unwrap();
    assert!(said.contains("/nonexistent/server-cert.pem"), "{said}");
}
