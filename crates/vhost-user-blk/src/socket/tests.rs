// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o777
}

fn with_mode(mode: u32) -> SocketOptions {
    SocketOptions {
        mode: Some(mode),
        ..SocketOptions::default()
    }
}

#[test]
fn mode_and_group_are_as_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    for bits in [0o600, 0o660, 0o666, 0o777, 0o060, 0] {
        let listener = Listener::bind(&path, &with_mode(bits)).unwrap();
        assert_eq!(mode(&path), bits);
        drop(listener);
        assert!(!path.exists());
    }
    let ours = group_id(&rustix::process::getgid().as_raw().to_string()).unwrap();
    let options = SocketOptions {
        mode: None,
        group: Some(ours),
    };
    let _listener = Listener::bind(&path, &options).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.gid(), mode(&path)), (ours, 0o660));
    let refused = Listener::bind(&path, &with_mode(0o1777));
    assert!(matches!(refused, Err(SocketError::Mode(0o1777))));
    assert_eq!(group_id("root").unwrap(), 0);
    assert!(group_id("no such group").is_err() && group_id("nul\0").is_err());
}

/// Nobody can connect before the mode is right, though the path exists.
#[test]
fn there_is_no_moment_with_another_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if let Ok(meta) = fs::symlink_metadata(&path) {
                    assert!(
                        matches!(meta.mode() & 0o777, 0 | 0o600),
                        "{:o}",
                        meta.mode()
                    );
                }
            }
        });
        for _ in 0..500 {
            drop(Listener::bind(&path, &with_mode(0o600)).unwrap());
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn only_what_a_dead_server_left_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let bind = || Listener::bind(&path, &SocketOptions::default());
    let first = bind().unwrap();
    assert!(matches!(bind(), Err(SocketError::InUse(_))));
    // A server too busy to take connections, too.
    let waiting: Vec<_> = std::iter::from_fn(|| {
        let flags = SocketFlags::NONBLOCK;
        let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let address = SocketAddrUnix::new(&path).unwrap();
        connect(&client, &address).ok().map(|()| client)
    })
    .take(1000)
    .collect();
    assert!(waiting.len() < 1000);
    assert!(matches!(bind(), Err(SocketError::InUse(_))));
    drop((first, waiting));
    // A dead one leaves its file.
    drop(UnixListener::bind(&path).unwrap());
    let second = bind().unwrap();
    UnixStream::connect(&path).unwrap();
    drop(second);
    // Another kind of socket in use, a file, a directory.
    let datagram = UnixDatagram::bind(&path).unwrap();
    assert!(matches!(bind(), Err(SocketError::InUse(_))));
    drop(datagram);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "content").unwrap();
    assert!(matches!(bind(), Err(SocketError::NotASocket(_))));
    assert_eq!(fs::read(&path).unwrap(), b"content");
    let nowhere = dir.path().join("nowhere/socket");
    let refused = Listener::bind(&nowhere, &SocketOptions::default());
    assert!(matches!(refused, Err(SocketError::Bind { .. })));
}

#[test]
fn of_many_starters_one_gets_a_stale_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    for _ in 0..100 {
        drop(UnixListener::bind(&path).unwrap());
        let (barrier, won) = (Barrier::new(4), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    barrier.wait();
                    let bound = Listener::bind(&path, &with_mode(0o600));
                    // The one that has it keeps it until all have tried.
                    barrier.wait();
                    match bound {
                        Ok(_) => drop(won.fetch_add(1, Ordering::Relaxed)),
                        Err(SocketError::InUse(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                });
            }
        });
        assert_eq!(won.into_inner(), 1);
        assert!(!path.exists());
    }
}

#[test]
fn another_server_s_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let ours = Listener::bind(&path, &SocketOptions::default()).unwrap();
    fs::remove_file(&path).unwrap();
    let _theirs = UnixListener::bind(&path).unwrap();
    drop(ours);
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_descriptor_that_listens_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let theirs = UnixListener::bind(&path).unwrap();
    let ours = Listener::inherit(theirs.as_raw_fd()).unwrap();
    drop(theirs);
    let mut client = UnixStream::connect(&path).unwrap();
    let (mut accepted, _) = ours.socket().accept().unwrap();
    client.write_all(b"x").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    drop(ours);
    assert!(path.exists(), "it belongs to whoever made it");
    let (stream, _other) = UnixStream::pair().unwrap();
    let datagram = UnixDatagram::unbound().unwrap();
    let inet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = tempfile::tempfile().unwrap();
    for wrong in [
        stream.as_raw_fd(),
        datagram.as_raw_fd(),
        inet.as_raw_fd(),
        file.as_raw_fd(),
        -1,
        1 << 30,
    ] {
        let refused = Listener::inherit(wrong);
        assert!(
            matches!(refused, Err(SocketError::Descriptor { .. })),
            "{wrong}"
        );
    }
}

#[test]
fn addresses_as_text() {
    let parse = |text: &str| text.parse::<SocketAddress>();
    assert_eq!(parse("fd:3"), Ok(SocketAddress::Descriptor(3)));
    assert_eq!(parse("a/b"), Ok(SocketAddress::Path("a/b".into())));
    assert_eq!(parse("./fd:3"), Ok(SocketAddress::Path("./fd:3".into())));
    for wrong in ["fd:", "fd:x", "fd:-1", "fd:99999999999"] {
        assert!(parse(wrong).unwrap_err().contains("./fd:"), "{wrong}");
    }
    for text in ["fd:3", "/run/x"] {
        assert_eq!(parse(text).unwrap().to_string(), text);
    }
}

/// What can't be asked is not dead: another user's server keeps its socket.
#[test]
fn a_socket_that_may_not_be_asked_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let path = dir.path().join("socket");
    let listener = Listener::bind(&path, &with_mode(0)).unwrap();
    let asked = path.clone();
    let result = std::thread::spawn(move || {
        // SAFETY: a number. Of this thread alone, which loses root's privileges for files with it.
        unsafe { libc::setfsuid(65_534) };
        Listener::bind(&asked, &SocketOptions::default())
    });
    let error = result.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("may not connect"), "{error}");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(listener);
    assert!(!path.exists());
}
