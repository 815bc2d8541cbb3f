// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! SIGTERM ends a server in bounded time, whatever its disk does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Server, guest};
use virtio_blk_driver::request::Request;

/// Stops a thread for good, as a system call does that never returns. It must be this process's child.
fn hang(thread: libc::pid_t) {
    // SAFETY: ptrace(2) with these requests takes no pointers.
    let [seized, stopped] = [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT]
        .map(|request| unsafe { libc::ptrace(request, thread, 0, 0) });
    assert_eq!(
        [seized, stopped],
        [0, 0],
        "{}",
        std::io::Error::last_os_error()
    );
    assert!(libc::WIFSTOPPED(wait(thread)));
}

/// Waits for a thread that stops or ends.
fn wait(thread: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: the status is a variable of ours.
    let waited = unsafe { libc::waitpid(thread, &mut status, libc::__WALL) };
    assert_eq!(waited, thread, "{}", std::io::Error::last_os_error());
    status
}

/// The threads of a process whose names start like this.
fn threads(process: u32, name: &str) -> Vec<libc::pid_t> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks
        .map(|task| task.unwrap().path())
        .filter(|task| {
            fs::read_to_string(task.join("comm"))
                .unwrap()
                .starts_with(name)
        })
        .map(|task| task.file_name().unwrap().to_str().unwrap().parse().unwrap())
        .collect()
}

#[test]
fn a_disk_that_never_answers_is_named_and_left() {
    let args = [
        "-v",
        "--stop-timeout",
        "1",
        "--queues",
        "1",
        "--disk",
        "memory:1M",
    ];
    let mut server = Server::spawn(&[&["--json"], &args[..]].concat(), None, None);
    server.event("listening");
    let mut client = server.connect();
    let (_guest, mut queue) = guest(&mut client);
    queue.write(0, &[1; 512]).unwrap();
    let found = threads(server.child.id(), "vblk-queue");
    let [thread] = found[..] else {
        panic!("{found:?}")
    };
    hang(thread);
    queue.driver.submit(&Request::read(0, 512)).unwrap();
    queue.publish().unwrap();
    let started = Instant::now();
    server.signal(libc::SIGTERM);
    let said = server.complaint("not ended after 1s");
    assert!(
        said.contains(server.socket().file_name().unwrap().to_str().unwrap()),
        "{said}"
    );
    // Who traces a thread has to wait for it, or its process does not end.
    assert!(libc::WIFEXITED(wait(thread)));
    let (status, said) = server.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(started.elapsed() < Duration::from_secs(30));
}
