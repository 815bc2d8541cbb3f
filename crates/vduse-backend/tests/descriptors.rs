// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A process without a descriptor to spare. A test program of its own: the limit is the process's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;

use common::Rig;
use vduse_backend::message::Request as Ask;
use virtio_blk_driver::request::Request;
use vm_memory::{Bytes, GuestAddress};

/// Opens files until there are no more descriptors.
fn use_all_up() -> Vec<File> {
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    files
}

/// A reset with requests that hang takes the driver's memory away from them, or it is none.
#[test]
fn a_reset_needs_no_descriptor() {
    let mut rig = Rig::new(1);
    rig.disk.inner().set_content(0, &[0xdd; 512]);
    rig.start();
    rig.check();
    let read = rig.hang(0, &Request::read(0, 512));
    let data = rig.queues[0].data(read).unwrap();
    let used = rig.queues[0].state().used_ring;
    let limit = libc::rlimit {
        rlim_cur: 128,
        rlim_max: 128,
    };
    // SAFETY: the pointer is valid.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(set, 0);
    let files = use_all_up();
    rig.ok(Ask::SetStatus(0));
    // From here on the memory is the driver's alone.
    let places = [(data.addr, 512), (GuestAddress(used), 128)];
    for (addr, len) in places {
        rig.guest.write_slice(&vec![0x77; len], addr).unwrap();
    }
    rig.disk.go_on();
    rig.disk.wait_idle();
    for (addr, len) in places {
        let mut found = vec![0; len];
        rig.guest.read_slice(&mut found, addr).unwrap();
        assert!(found.iter().all(|byte| *byte == 0x77), "{addr:?}");
    }
    // The next driver gets what can be had, as soon as it can.
    rig.start();
    rig.submit(0, &Request::read(0, 512));
    rig.settle();
    drop(files);
    assert!(rig.answer(0).is_ok());
    rig.check();
}
