// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! SIGTERM ends a server in bounded time, whatever its disk does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::fs;
use std::time::{Duration, Instant};

use calls::{Syncs, with_syncs};
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

/// A server whose only queue's thread hangs with a request; the thread.
fn hanging(more: &[&str]) -> (Server, libc::pid_t) {
    let args = ["--json", "-v", "--queues", "1", "--disk", "memory:1M"];
    let mut server = Server::spawn(&[&args[..], more].concat(), None, None);
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
    (server, thread)
}

#[test]
fn a_disk_that_never_answers_is_named_and_left() {
    let (mut server, thread) = hanging(&["--stop-timeout", "1"]);
    let started = Instant::now();
    server.signal(libc::SIGTERM);
    let said = server.complaint("not ended after 1s");
    assert!(said.contains("socket: not ended"), "{said}");
    // Who traces a thread has to wait for it, or its process does not end.
    assert!(libc::WIFEXITED(wait(thread)));
    let (status, said) = server.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_server_that_left_its_disk_at_work_has_not_done_well() {
    let (server, thread) = hanging(&["--stop-timeout", "3600"]);
    server.signal(libc::SIGTERM);
    assert!(libc::WIFEXITED(wait(thread)));
    let (status, said) = server.end();
    assert_eq!(status.code(), Some(1), "{said}");
    let last: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let message = last["message"].as_str().unwrap();
    assert!(
        message.contains("has not finished what 1 of its queues"),
        "{said}"
    );
}

#[test]
fn a_second_signal_ends_a_server_whose_disk_does_not_finish() {
    let (mut server, thread) = hanging(&["--stop-timeout", "3600"]);
    server.signal(libc::SIGTERM);
    server.complaint("a second signal ends at once");
    assert!(server.child.try_wait().unwrap().is_none());
    server.signal(libc::SIGINT);
    assert!(libc::WIFEXITED(wait(thread)));
    assert_eq!(server.end().0.code(), Some(128 + 2));
}

/// A server of an image that it lets go of at its end, whose fsync and fdatasync do that; a client has written.
fn handing_over(syncs: Syncs, more: &[&str]) -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    let disk = format!("raw:{},lock=handover", path.display());
    let args = ["--json", "-v", "--queues", "1", "--disk", &disk];
    let prepare = |command: &mut _| with_syncs(command, syncs);
    let mut server = Server::spawn_with(&[&args[..], more].concat(), None, None, prepare);
    server.event("listening");
    let mut client = server.connect();
    let (_guest, mut queue) = guest(&mut client);
    queue.write(0, &[1; 512]).unwrap();
    (server, dir)
}

/// The last line of what a server said.
fn last_error(said: &str) -> String {
    let last: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    last["message"].as_str().unwrap().to_owned()
}

/// The client is gone: the status is all there is to say so.
#[test]
fn a_server_that_lost_data_at_its_end_has_not_done_well() {
    let (server, _dir) = handing_over(Syncs::Fail, &[]);
    server.signal(libc::SIGTERM);
    let (status, said) = server.end();
    assert_eq!(status.code(), Some(1), "{said}");
    let error = last_error(&said);
    assert!(
        error.contains("lost") && error.contains("os error 5"),
        "{error}"
    );
}

/// What a disk keeps in memory would be lost with the process: that stays as long as it may.
#[test]
fn a_server_waits_for_what_its_disk_still_writes() {
    let started = Instant::now();
    // A second after the session has ended.
    let (mut server, _dir) = handing_over(Syncs::Hang, &["--stop-timeout", "6"]);
    server.signal(libc::SIGTERM);
    server.complaint("still makes stable");
    let (status, said) = server.end();
    assert_eq!(status.code(), Some(1), "{said}");
    let error = last_error(&said);
    assert!(error.contains("not ended after 6s"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(30));
}
