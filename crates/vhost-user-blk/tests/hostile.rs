// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rubbish on the socket: whatever a client sends, the next one is served.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use common::{Served, count, serve};
use vblk_testing::frontend::{Client, Guest, Wire, event, header, memory_file};
use virtio_blk_core::device::Device;

const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ERR: u32 = 14;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const ADD_MEM_REG: u32 = 37;

const PROTOCOL_FEATURES: u64 = 1 << 30;

/// A connection with acknowledgements, and whether the server is still there afterwards.
fn greeted(served: &Served) -> Wire {
    let mut wire = Wire::connect(&served.socket()).unwrap();
    wire.message(1, &[], &[]);
    assert!(wire.answer().unwrap() & PROTOCOL_FEATURES != 0);
    wire.message(SET_PROTOCOL_FEATURES, &[0xb22b], &[]);
    wire
}

fn device_features(device: &Device) -> u64 {
    device.offered() | PROTOCOL_FEATURES
}

#[test]
fn bytes_without_sense() {
    let (_disk, served) = serve();
    let mut rng = 0x1234_5678_u64;
    for len in 0..200 {
        let bytes: Vec<u8> = (0..len)
            .map(|_| {
                rng = rng.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                (rng >> 56) as u8
            })
            .collect();
        let mut wire = Wire::connect(&served.socket()).unwrap();
        wire.bytes(&bytes);
        wire.finish().unwrap();
    }
    served.assert_serves();
}

#[test]
fn every_request_cut_off_anywhere() {
    let (_disk, served) = serve();
    for request in 0..46 {
        for size in [0u32, 7, 8, 40, 4096, 4097, u32::MAX] {
            let mut wire = greeted(&served);
            wire.bytes(&header(request, 1, size));
            wire.bytes(&vec![0; size.min(100) as usize / 2]);
            wire.finish().unwrap();
        }
        let whole = header(request, 1, 8);
        for len in 0..whole.len() {
            let mut wire = Wire::connect(&served.socket()).unwrap();
            wire.bytes(&whole[..len]);
            wire.finish().unwrap();
        }
    }
    served.assert_serves();
}

#[test]
fn things_that_are_no_eventfds() {
    let (_disk, served) = serve();
    let file = tempfile::tempfile().unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let wrong: [OwnedFd; 3] = [file.into(), reader.into(), socket.into()];
    let mut wire = greeted(&served);
    for fd in &wrong {
        for request in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
            let fds = [fd.as_raw_fd()];
            assert_ne!(wire.acked(request, &[0], &fds).unwrap(), 0);
            // Of a queue that is not there, too.
            assert_ne!(wire.acked(request, &[200], &fds).unwrap(), 0);
        }
    }
    // The session is as it was.
    let good = event().unwrap();
    assert_eq!(
        wire.acked(SET_VRING_CALL, &[0], &[good.as_raw_fd()])
            .unwrap(),
        0
    );
    assert_ne!(
        wire.acked(SET_VRING_KICK, &[0x100], &[]).unwrap(),
        0,
        "polling"
    );
    assert_eq!(
        wire.acked(SET_VRING_CALL, &[0x100], &[]).unwrap(),
        0,
        "none is fine"
    );
    drop(wire);
    served.assert_serves();
}

#[test]
fn memory_that_can_not_be() {
    let (_disk, served) = serve();
    let memory = memory_file(1 << 20).unwrap();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let (memory, pipe) = (memory.as_raw_fd(), pipe.as_raw_fd());
    let mb = 1u64 << 20;
    // Guest address, size, client address, offset.
    let refused: [([u64; 4], RawFd); 10] = [
        ([0, mb + 4096, 0, 0], memory),
        ([0, mb, 0, 4096], memory),
        ([0, mb, 0, 1], memory),
        ([0, 0, 0, 0], memory),
        ([u64::MAX - 4095, mb, 0, 0], memory),
        ([u64::MAX, 1, 0, 0], memory),
        ([0, u64::MAX, 0, 0], memory),
        ([0, mb, 0, u64::MAX], memory),
        ([0, u64::MAX, 0, u64::MAX], memory),
        ([0, mb, 0, 0], pipe),
    ];
    let mut wire = greeted(&served);
    for (region, fd) in refused {
        let [addr, len, user, offset] = region;
        let words = [0, addr, len, user, offset];
        assert_ne!(
            wire.acked(ADD_MEM_REG, &words, &[fd]).unwrap(),
            0,
            "{region:x?}"
        );
        let words = [1, addr, len, user, offset];
        // The crate ends a session over some of these by itself.
        let mut table = greeted_again(&served, &mut wire);
        assert_ne!(
            table.acked(SET_MEM_TABLE, &words, &[fd]).ok(),
            Some(0),
            "{region:x?}"
        );
        wire = greeted_again(&served, &mut table);
    }
    // Two that overlap, in a table and one by one.
    let words = [2, 0, mb, 0, 0, mb - 4096, mb, 1 << 40, 0];
    assert_ne!(
        wire.acked(SET_MEM_TABLE, &words, &[memory, memory])
            .unwrap(),
        0
    );
    assert_eq!(
        wire.acked(ADD_MEM_REG, &[0, 0, mb, 0, 0], &[memory])
            .unwrap(),
        0
    );
    let words = [0, 4096, 4096, 1 << 40, 0];
    assert_ne!(wire.acked(ADD_MEM_REG, &words, &[memory]).unwrap(), 0);
    // More than there is room for.
    for slot in 1..509 {
        let words = [0, slot * mb, 4096, slot * mb, 0];
        assert_eq!(
            wire.acked(ADD_MEM_REG, &words, &[memory]).unwrap(),
            0,
            "{slot}"
        );
    }
    let words = [0, 509 * mb, 4096, 509 * mb, 0];
    assert_ne!(wire.acked(ADD_MEM_REG, &words, &[memory]).unwrap(), 0);
    drop(wire);
    served.assert_serves();
}

/// Hangs up, and connects again.
fn greeted_again(served: &Served, wire: &mut Wire) -> Wire {
    // It may be shut already.
    let _ = wire.stream().shutdown(std::net::Shutdown::Both);
    served.wait_idle();
    greeted(served)
}

#[test]
fn rings_before_anything_else() {
    let (_disk, served) = serve();
    let mut guest = common::guest();
    let queue = guest.queue(16, 512, 0).unwrap();
    let layout = *queue.driver.ring().layout();
    let user = |addr: vm_memory::GuestAddress| Guest::user_address(addr.0);
    let [desc, avail, used] = [
        user(layout.desc()),
        user(layout.avail()),
        user(layout.used()),
    ];
    let mut wire = greeted(&served);
    // In the reverse of the usual order; nothing starts, and nothing is wrong yet.
    let kick = [queue.kick.as_raw_fd()];
    wire.message(SET_FEATURES, &[PROTOCOL_FEATURES], &[]);
    assert_eq!(wire.acked(SET_VRING_KICK, &[0], &kick).unwrap(), 0);
    assert_eq!(
        wire.acked(SET_VRING_ADDR, &[0, desc, used, avail, 0], &[])
            .unwrap(),
        0
    );
    assert_eq!(wire.acked(SET_VRING_BASE, &[0], &[]).unwrap(), 0);
    assert_eq!(wire.acked(SET_VRING_NUM, &[16 << 32], &[]).unwrap(), 0);
    // Sizes that can't be, queues that are not there.
    for size in [0, 3, 128, 1 << 16, u64::from(u32::MAX)] {
        assert_ne!(wire.acked(SET_VRING_NUM, &[size << 32], &[]).unwrap(), 0);
    }
    for queue in [4, 1 << 16, u64::from(u32::MAX)] {
        assert_ne!(
            wire.acked(SET_VRING_NUM, &[16 << 32 | queue], &[]).unwrap(),
            0
        );
        assert_ne!(wire.acked(SET_VRING_BASE, &[queue], &[]).unwrap(), 0);
    }
    assert_ne!(wire.acked(SET_VRING_BASE, &[1 << 48], &[]).unwrap(), 0);
    // Features that were not offered, or too few.
    let features = device_features(&served.device);
    for wrong in [1 << 63, 0, features | 1 << 34] {
        assert_ne!(wire.acked(SET_FEATURES, &[wrong], &[]).unwrap(), 0);
    }
    drop(wire);
    served.assert_serves();
}

#[test]
fn a_ring_outside_of_memory() {
    let (_disk, served) = serve();
    let guest = common::guest();
    let mut client = Client::connect(&served.socket()).unwrap();
    client.set_memory(&guest).unwrap();
    let mut wire = common::wire(&client);
    let kick = event().unwrap();
    let base = Guest::user_address(0);
    assert_eq!(wire.acked(SET_VRING_NUM, &[64 << 32], &[]).unwrap(), 0);
    assert_eq!(
        wire.acked(SET_VRING_KICK, &[0], &[kick.as_raw_fd()])
            .unwrap(),
        0
    );
    assert_eq!(
        wire.acked(SET_VRING_ENABLE, &[1 << 32], &[]).unwrap_or(0),
        0
    );
    let end = base + (2 << 20);
    for [desc, used, avail] in [
        [0, 0, 0],
        [base, base + 4096, u64::MAX - 1],
        [end - 16, base, base + 8192],
        [base, end - 4, base + 8192],
        [base, base + 8192, end - 2],
    ] {
        let words = [0, desc, used, avail, 0];
        assert_ne!(
            wire.acked(SET_VRING_ADDR, &words, &[]).unwrap(),
            0,
            "{words:x?}"
        );
    }
    drop((wire, client));
    served.assert_serves();
}

#[test]
fn a_flood_that_is_never_read() {
    let (_disk, mut served) = serve();
    let mut wire = Wire::connect(&served.socket()).unwrap();
    wire.stream()
        .set_write_timeout(Some(std::time::Duration::from_millis(200)))
        .unwrap();
    // Until both directions are full.
    let questions = header(1, 1, 0).repeat(100_000);
    wire.bytes(&questions);
    assert!(count("task") > 1);
    served.handle.stop();
    served.join();
}
