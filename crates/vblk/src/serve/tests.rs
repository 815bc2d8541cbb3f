// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

use clap::Parser;
use vduse_backend::fake::FakeKernel;
use vduse_backend::{F_QUEUE_READY, F_SUSPEND};

use super::*;
use crate::cli::{Cli, Command};

fn command(args: &[&str]) -> ServeCommand {
    let line = [&["vblk", "serve"], args].concat();
    match Cli::try_parse_from(line).unwrap().command {
        Command::Serve(command) => command,
        other => panic!("{other:?}"),
    }
}

/// Whatever fails once there are devices and sockets, nothing is left of them.
#[test]
fn a_server_that_does_not_start_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (nowhere, state, socket) = (path("gone/control"), path("state"), path("socket"));
    let vduse = |name: &str, more: &[&str]| {
        let args = ["vduse", "--disk", "memory:1M", "--state-dir", &state];
        command(&[&args[..], &["--name", name], more].concat())
    };
    for more in [["--metrics", &address], ["--control", &nowhere]] {
        let kernel = FakeKernel::new(1, F_QUEUE_READY | F_SUSPEND);
        let commands = [
            vduse("a", &more),
            vduse("b", &[]),
            command(&["vhost-user", "--disk", "memory:1M", "--socket", &socket]),
        ];
        let before = kernel.calls();
        let error = run_on(Arc::new(kernel.clone()), &commands, true).unwrap_err();
        assert!(
            error.to_string().contains(&more[0][2..]) || error.to_string().contains(more[1]),
            "{error}"
        );
        assert!(kernel.calls() > before, "they were made");
        assert!(!kernel.has("a") && !kernel.has("b"), "{more:?}");
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);
        assert!(!std::path::Path::new(&socket).exists());
    }
}

#[test]
fn a_stop_is_heard_whenever_it_comes() {
    let calls = Arc::new(AtomicU32::new(0));
    let stop = || -> Vec<Stop> {
        let calls = calls.clone();
        vec![Box::new(move || {
            calls.fetch_add(1, Ordering::Relaxed);
        })]
    };
    let stopping = Stopping::default();
    assert!(stopping.arm(stop()));
    stopping.begin();
    stopping.begin();
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    let early = Stopping::default();
    early.begin();
    assert!(!early.arm(stop()), "nothing is begun any more");
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}
