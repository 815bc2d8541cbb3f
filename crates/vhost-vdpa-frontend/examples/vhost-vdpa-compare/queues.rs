// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table of malformed queues: how each device takes them, whether that is right or not.

use malformed_queues::testmem::Space;
use malformed_queues::{Case, Expect, HostileError, HostileRing, Planned, cases};
use vdpa_bus::{VdpaError, VqAddress, VqState};
use virtio_blk_driver::wire::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::rig::{MEMORY, Rig};

/// Descriptors.
const SIZE: u16 = 16;
/// Where queues are built: at the end of memory, so that its end can be reached beyond.
const BASE: u64 = MEMORY as u64 - 0x1_0000;
/// These make the kernel's device read outside its buffer, see `requests.rs`.
const OUTSIDE: [&str; 2] = ["the sector is 2^64 - 1", "the sector in bytes wraps to 0"];

/// Tens of thousands of requests come of these, which takes minutes in an emulated machine. Compared once by hand: both
/// devices serve all of them.
const LONG: [&str; 2] = [
    "the available index is half way round",
    "the available index goes back",
];

/// What only the kernel's ring makes something special of.
const OWN: [Case; 2] = [
    Case {
        name: "a chain goes on at descriptor 0 behind its indirect table",
        build: on_at_0,
        expect: Expect::Survives,
    },
    Case {
        name: "a descriptor of an indirect table is its own next",
        build: table_again,
        expect: Expect::Survives,
    },
];

fn on_at_0(ring: &mut HostileRing<'_>) -> Result<(), HostileError> {
    let (header, status) = (ring.read_header()?, ring.writable(1)?);
    let table = ring.table(&[header, status])?;
    ring.descriptor(0, Descriptor::writable(ring.unmapped(), 1))?;
    ring.descriptor(1, table.then(0))?;
    ring.offer(Planned {
        head: 1,
        status: Some(status.addr),
        max_len: 1,
    })
}

fn table_again(ring: &mut HostileRing<'_>) -> Result<(), HostileError> {
    let header = ring.read_header()?;
    let table = ring.table(&[header])?;
    ring.descriptor(1, table.then(1))?;
    ring.offer(Planned {
        head: 1,
        status: None,
        max_len: 0,
    })
}

pub fn script(rig: &mut Rig) {
    let all = cases().chain(&OWN);
    let left_out = [OUTSIDE, LONG].concat();
    for case in all.filter(|case| !left_out.contains(&case.name)) {
        play(rig, case);
    }
    rig.start(0);
    let request = virtio_blk_driver::request::Request::flush();
    rig.ask("a request after all of them", &request);
}

fn play(rig: &mut Rig, case: &Case) {
    rig.negotiated();
    let memory = rig.memory.clone();
    let zeroes = vec![0; 0x1_0000];
    memory.write_slice(&zeroes, GuestAddress(BASE)).unwrap();
    let space = Space::new(&[(GuestAddress(BASE), 0x1_0000)]);
    let mut ring = HostileRing::new(&*memory, space, SIZE, 0, false).unwrap();
    (case.build)(&mut ring).unwrap();
    let step = format!("queue: {}", case.name);
    if let Err(error) = set_up(rig, &ring) {
        rig.note(&step, format!("refused with {}", error.errno()));
        return;
    }
    rig.device.set_status(15).unwrap();
    rig.device.kick_vq(0);
    rig.work();
    let index = rig.index();
    let used = ring.used_idx().unwrap();
    // All of it, where the ring lies on itself.
    let entries: Vec<_> = (0..used.min(SIZE))
        .map(|at| ring.used_entry(at).unwrap())
        .collect();
    let statuses: Vec<_> = ring
        .planned()
        .iter()
        .filter_map(|planned| planned.status)
        .map(|at| memory.read_obj::<u8>(at).map_err(drop))
        .collect();
    let calls = rig.calls();
    rig.note(&step, (index, used, entries, statuses, calls));
}

fn set_up(rig: &Rig, ring: &HostileRing<'_>) -> Result<(), VdpaError> {
    let (device, state) = (&rig.device, ring.state);
    device.set_vq_num(0, state.size.into())?;
    let avail_index = state.next_avail;
    device.set_vq_state(0, VqState::Split { avail_index })?;
    let address = VqAddress {
        desc: state.desc_table,
        driver: state.avail_ring,
        device: state.used_ring,
    };
    device.set_vq_address(0, address)?;
    device.set_vq_cb(0, Some(rig.callback()))?;
    device.set_vq_ready(0, true)
}
