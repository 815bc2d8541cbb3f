// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests of the parts that need neither network nor machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use super::cpio::Writer;
use super::error::Error;
use super::modules::{canonical, depends, load_order, modules_dep};
use super::packages::{Package, is_kernel, is_tool_or_library, parse_simulation};
use super::qemu::Monitor;
use super::script::{Disk, Machine, parse};
use super::sources::{Archive, debian_codename, from_deb822, from_lines};
use super::tools::needed_libraries;
use super::vm::early_end;

/// One entry of an archive, read back by the format's description.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    mode: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

fn read_archive(mut bytes: &[u8]) -> Vec<Entry> {
    let total = bytes.len();
    let mut entries = Vec::new();
    let mut inodes = Vec::new();
    loop {
        let field = |index: usize| {
            let text = std::str::from_utf8(&bytes[6 + 8 * index..][..8]).unwrap();
            u32::from_str_radix(text, 16).unwrap()
        };
        assert_eq!(&bytes[..6], b"070701");
        let (name_size, size) = (field(11) as usize, field(6) as usize);
        assert_eq!(bytes[110 + name_size - 1], 0, "names end in NUL");
        let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
        let start = (110 + name_size).next_multiple_of(4);
        let entry = Entry {
            name,
            mode: field(1),
            device: (field(9), field(10)),
            data: bytes[start..start + size].to_vec(),
        };
        let inode = field(0);
        bytes = &bytes[(start + size).next_multiple_of(4)..];
        assert_eq!((total - bytes.len()) % 4, 0);
        if entry.name == "TRAILER!!!" {
            assert!(bytes.is_empty());
            return entries;
        }
        assert!(
            !inodes.contains(&inode),
            "equal inode numbers would be hard links"
        );
        inodes.push(inode);
        entries.push(entry);
    }
}

#[test]
fn an_archive_holds_the_tree_and_the_device() {
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir(tree.path().join("etc")).unwrap();
    for length in 0..5 {
        fs::write(
            tree.path().join(format!("etc/{length}")),
            vec![b'x'; length],
        )
        .unwrap();
    }
    symlink("etc/4", tree.path().join("link")).unwrap();
    let mut writer = Writer::new(Vec::new());
    writer.tree(tree.path()).unwrap();
    writer.character_device("dev/console", 5, 1).unwrap();
    let entries = read_archive(&writer.finish().unwrap());

    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let expected = [
        "etc",
        "etc/0",
        "etc/1",
        "etc/2",
        "etc/3",
        "etc/4",
        "link",
        "dev/console",
    ];
    assert_eq!(names, expected, "parents come first, names are sorted");
    assert_eq!(entries[0].mode & 0o170_000, 0o040_000);
    for length in 0..5 {
        assert_eq!(entries[1 + length].mode & 0o170_000, 0o100_000);
        assert_eq!(entries[1 + length].data, vec![b'x'; length]);
    }
    assert_eq!(entries[6].mode & 0o170_000, 0o120_000);
    assert_eq!(entries[6].data, b"etc/4");
    assert_eq!(entries[7].mode & 0o170_000, 0o020_000);
    assert_eq!(entries[7].device, (5, 1));
}

#[test]
fn an_archive_keeps_permissions_and_is_reproducible() {
    use std::os::unix::fs::PermissionsExt;
    let tree = tempfile::tempdir().unwrap();
    let file = tree.path().join("init");
    fs::write(&file, "#!").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o750)).unwrap();
    let build = || {
        let mut writer = Writer::new(Vec::new());
        writer.tree(tree.path()).unwrap();
        writer.finish().unwrap()
    };
    let first = build();
    assert_eq!(read_archive(&first)[0].mode, 0o100_750);
    fs::write(&file, "#!").unwrap();
    assert_eq!(first, build(), "times don't matter");
}

fn graph(edges: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    edges
        .iter()
        .map(|(name, needs)| ((*name).to_owned(), owned(needs)))
        .collect()
}

#[test]
fn modules_load_after_what_they_need() {
    let graph = graph(&[
        ("vhost_vdpa", &["vhost", "vhost_iotlb", "vdpa", "irqbypass"]),
        ("vhost", &["vhost_iotlb"]),
        ("vdpa", &[]),
        ("vduse", &["vdpa", "vhost_iotlb"]),
    ]);
    for module in graph.keys() {
        let order = load_order(&graph, module);
        assert_eq!(order.last(), Some(module));
        for (at, name) in order.iter().enumerate() {
            for needed in graph.get(name).into_iter().flatten() {
                let before = order.iter().position(|other| other == needed).unwrap();
                assert!(before < at, "{needed} before {name} in {order:?}");
            }
        }
    }
    assert_eq!(load_order(&graph, "vhost_vdpa").len(), 5, "each once");
}

#[test]
fn a_cycle_of_modules_ends() {
    let graph = graph(&[("a", &["b"]), ("b", &["a"])]);
    assert_eq!(load_order(&graph, "a"), ["b", "a"]);
}

#[test]
fn modules_dep_lists_what_is_loaded_last_first() {
    let graph = graph(&[("c", &["b"]), ("b", &["a"]), ("a", &[])]);
    assert_eq!(modules_dep(&graph), "a.ko:\nb.ko: a.ko\nc.ko: b.ko a.ko\n");
}

#[test]
fn module_information_names_the_needed_modules() {
    let module = b"\x7fELF\0license=GPL\0depends=vhost,vhost-iotlb\0retpoline=Y\0";
    assert_eq!(depends(module), ["vhost", "vhost_iotlb"]);
    assert!(depends(b"\x7fELF\0depends=\0name=vdpa\0").is_empty());
    assert!(depends(b"\x7fELF\0xdepends=no\0").is_empty());
    assert_eq!(canonical("kvm-amd"), "kvm_amd");
}

#[test]
fn a_simulated_installation_is_read() {
    let output = "NOTE: This is only a simulation!\n\
        Inst libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64])\n\
        Inst busybox-static (1:1.35.0-4+deb12u1+b1 Debian:12.15/oldstable [amd64])\n\
        Inst fio [3.33-2] (3.33-3 Debian:12.15/oldstable, Other:1 [amd64]) []\n\
        Inst libaio1:amd64 (0.3.113-4 Debian:12.15/oldstable [amd64])\n\
        Inst broken\n\
        Conf libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64])\n";
    let found: Vec<String> = parse_simulation(output)
        .iter()
        .map(ToString::to_string)
        .collect();
    let expected = [
        "libc6 2.36-9+deb12u14 amd64",
        "busybox-static 1:1.35.0-4+deb12u1+b1 amd64",
        "fio 3.33-3 amd64",
        "libaio1 0.3.113-4 amd64",
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_package_survives_the_plan_file_and_knows_its_file() {
    let package = package("busybox-static", "1:1.35.0-4", "amd64");
    assert_eq!(Package::parse(&package.to_string()), Some(package.clone()));
    assert_eq!(package.file_name(), "busybox-static_1%3a1.35.0-4_amd64.deb");
    assert_eq!(Package::parse("half a"), None);
}

fn package(name: &str, version: &str, arch: &str) -> Package {
    Package {
        name: name.to_owned(),
        version: version.to_owned(),
        arch: arch.to_owned(),
    }
}

#[test]
fn only_what_the_guest_needs_is_fetched() {
    let wanted = |name: &str| is_tool_or_library(&package(name, "1", "amd64"), &["fio"]);
    assert!(wanted("fio") && wanted("libc6"));
    assert!(!wanted("python3") && !wanted("libpython3.11-minimal") && !wanted("adduser"));
    let kernel = |name: &str| is_kernel(&package(name, "1", "amd64"));
    assert!(kernel("linux-image-6.12.95+deb12-cloud-amd64"));
    assert!(kernel("linux-modules-7.3.4+deb13-cloud-amd64"));
    assert!(!kernel("linux-base") && !kernel("kmod"));
}

#[test]
fn a_deb822_source_is_found() {
    let text = "Types: deb\nURIs: http://mirror/debian-security\nSuites: bookworm-security\n\
        Components: main\n\nTypes: deb\nEnabled: no\nURIs: http://off/debian\nSuites: bookworm\n\
        Components: main\n\nTypes: deb\n# an old snapshot\nURIs: http://mirror/debian\n\
        Suites: bookworm bookworm-updates\nComponents: main contrib\nSigned-By: /a/ring.gpg\n";
    let archive = from_deb822(text).unwrap();
    assert_eq!(archive.uri, "http://mirror/debian");
    assert_eq!(archive.signed_by.as_deref(), Some("/a/ring.gpg"));
    assert_eq!(
        from_deb822("Types: deb-src\nURIs: u\nSuites: s\nComponents: main\n"),
        None
    );

    let file = archive.sources_file(&["bookworm", "bookworm-backports"]);
    assert!(file.contains("\nSuites: bookworm bookworm-backports\n"));
    assert_eq!(from_deb822(&file), Some(archive));
}

#[test]
fn a_one_line_source_is_found() {
    let text = "# deb http://no/debian x main\ndeb http://s/debian-security bookworm-security main\n\
        deb [arch=amd64 signed-by=/a/ring.gpg] http://mirror/debian bookworm main contrib\n";
    let expected = Archive {
        uri: "http://mirror/debian".to_owned(),
        signed_by: Some("/a/ring.gpg".to_owned()),
    };
    assert_eq!(from_lines(text), Some(expected));
    assert_eq!(
        from_lines("deb http://x/ ./\ndeb [half http://x/ s main\n"),
        None
    );
}

#[test]
fn only_debian_has_a_debian_code_name() {
    let debian = "ID=debian\nVERSION_CODENAME=bookworm\n";
    assert_eq!(debian_codename(debian).as_deref(), Some("bookworm"));
    assert_eq!(debian_codename("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
}

#[test]
fn the_loaders_listing_names_libraries() {
    let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\
        \tlibm.so.6 => /root/lib/libm.so.6 (0x00007f)\n\
        \tlibgone.so.1 => not found\n\
        \t/lib64/ld-linux-x86-64.so.2 => /root/ld.so (0x00007f)\n";
    let found: Vec<String> = needed_libraries(listing).into_iter().collect();
    assert_eq!(found, ["ld-linux-x86-64.so.2", "libgone.so.1", "libm.so.6"]);
}

#[test]
fn a_header_describes_the_machine() {
    let text = "#!/bin/sh\n# about: all of it\n# lab: cpus=4 memory=512 timeout=60\n\
        # lab: modules=vdpa,vduse binaries=vblk gnu=other build=release run=named built=yes function=64\n# lab: disk=256 queues=4 root=yes\n\necho\n# lab: cpus=9\n";
    let (about, machine) = parse(text).unwrap();
    assert_eq!(about, "all of it");
    let expected = Machine {
        cpus: 4,
        memory: 512,
        timeout: Duration::from_secs(60),
        modules: vec!["vdpa".to_owned(), "vduse".to_owned()],
        binaries: vec!["vblk".to_owned()],
        gnu: vec!["other".to_owned()],
        kernel: false,
        built: true,
        function: Some(64),
        release: true,
        named: true,
        disk: Some(Disk {
            size: 256,
            queues: 4,
            root: true,
            crashes: false,
            migrates: false,
        }),
    };
    assert_eq!(machine, expected);
    assert_eq!(parse("# about: x\n").unwrap().1, Machine::default());
    let disk = |header: &str| {
        parse(&format!("# about: x\n# lab: {header}\n"))
            .unwrap()
            .1
            .disk
    };
    assert!(disk("disk=1 migrates=yes").unwrap().migrates);
    assert!(disk("disk=1 crashes=yes").unwrap().crashes);
}

#[test]
fn the_monitor_keeps_events_that_come_before_an_answer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let qemu = UnixStream::connect(&path).unwrap();
    // All it says, whatever it is asked.
    writeln!(&qemu, r#"{{"QMP":{{}}}}"#).unwrap();
    for line in [
        r#"{"return":{}}"#,
        r#"{"event":"MIGRATION","data":{"status":"active"}}"#,
        r#"{"event":"STOP"}"#,
        r#"{"return":{"running":false}}"#,
        r#"{"event":"MIGRATION","data":{"status":"completed"}}"#,
        r#"{"error":{"desc":"no"}}"#,
    ] {
        writeln!(&qemu, "{line}").unwrap();
    }
    qemu.shutdown(Shutdown::Write).unwrap();
    let mut monitor = Monitor::accept(&listener, &path).unwrap();
    assert_eq!(monitor.execute("status").unwrap()["running"], false);
    for status in ["active", "completed"] {
        assert_eq!(monitor.event("MIGRATION").unwrap()["status"], status);
    }
    let refused = monitor.execute("more").unwrap_err().to_string();
    assert!(refused.contains("no"), "{refused}");
    assert!(monitor.event("STOP").is_err(), "it is gone");
}

#[test]
fn a_bad_header_is_refused() {
    for header in [
        "cpus",
        "cpus=none",
        "cpus=0",
        "build=fast",
        "run=never",
        "built=no",
        "function=0",
        "queues=2",
        "disk=1 root=no",
        "what=1",
    ] {
        let error = parse(&format!("# about: x\n# lab: {header}\n")).unwrap_err();
        assert!(
            error.contains(header.split(' ').next_back().unwrap()),
            "{error}"
        );
    }
    assert!(parse("# lab: cpus=2\n").unwrap_err().contains("about"));
}

#[test]
fn all_scripts_of_the_repository_have_good_headers() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab");
    assert!(!super::script::Script::all(&directory).unwrap().is_empty());
}

#[test]
fn scripts_are_valid_shell() {
    let lab = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab");
    for directory in [lab.clone(), lab.join("guest")] {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() && path.extension().is_none_or(|extension| extension == "sh") {
                let status = Command::new("sh").arg("-n").arg(&path).status().unwrap();
                assert!(status.success(), "{}", path.display());
            }
        }
    }
}

#[test]
fn only_known_bugs_of_qemus_earn_another_try() {
    let (aborted, ended) = (ExitStatus::from_raw(6), ExitStatus::from_raw(0));
    let known = "; QEMU said:\nqemu-system-x86_64: hw/pci/msix.c:228: msix_table_mmio_write: Assertion \
                 `addr + size <= dev->msix_entries_nr * PCI_MSIX_ENTRY_SIZE' failed.";
    let again = |status, said: &str, console: &str| {
        matches!(early_end(status, said, console), Error::Emulator { .. })
    };
    assert!(again(aborted, known, ""));
    let other =
        "; QEMU said:\nqemu-system-x86_64: hw/virtio/vhost-user.c:1: x: Assertion `y' failed.";
    assert!(!again(aborted, other, ""));
    assert!(!again(aborted, "", ""));
    // A kernel that ends or dies says so, and then it is no emulator's fault.
    assert!(again(ended, "", "[    1.0] virtio_blk: up\n"));
    for words in ["reboot: Power down", "Kernel panic - not syncing: x"] {
        assert!(!again(ended, "", &format!("[    1.0] {words}\n")));
    }
    let trace = "[   60.884092] Kernel panic - not syncing: corrupted stack end detected inside scheduler\n\
                 [   60.889848]  shutdown_interception+0x34/0x50 [kvm_amd]\n";
    assert!(again(ended, "", trace));
}
