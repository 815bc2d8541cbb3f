// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How chains are followed through indirect tables. The lab's `vdpa-compat` compares this with the kernel's.

use malformed_queues::testmem::Space;
use malformed_queues::{HostileError, HostileRing, Planned};
use virtio_blk_driver::wire::Descriptor;

use super::*;

const SIZE: u16 = 16;

/// What becomes of a chain that starts at descriptor 1: its status, and whether it came back.
fn serve(
    build: impl FnOnce(&mut HostileRing<'_>) -> Result<Descriptor, HostileError>,
) -> (u8, bool) {
    let rig = rig();
    rig.sim.reset().unwrap();
    negotiate(&*rig.sim.clone(), LEAST).unwrap();
    let memory = rig.memory.clone();
    let space = Space::new(&[(GuestAddress(0x40_0000), 0x1_0000)]);
    let mut ring = HostileRing::new(&*memory, space, SIZE, 0, false).unwrap();
    let status = build(&mut ring).unwrap().addr;
    let planned = Planned {
        head: 1,
        status: Some(status),
        max_len: 0,
    };
    ring.offer(planned).unwrap();
    rig.sim.set_vq_num(0, SIZE.into()).unwrap();
    let address = VqAddress {
        desc: ring.state.desc_table,
        driver: ring.state.avail_ring,
        device: ring.state.used_ring,
    };
    rig.sim.set_vq_address(0, address).unwrap();
    rig.sim.set_vq_ready(0, true).unwrap();
    rig.sim.set_status(15).unwrap();
    rig.sim.kick_vq(0);
    rig.sim.run();
    assert_eq!(rig.state(0), 1, "taken");
    (
        memory.read_obj(status).unwrap(),
        ring.used_idx().unwrap() == 1,
    )
}

/// Header, `pieces` of a byte each, and status; the last is the status.
fn parts(ring: &mut HostileRing<'_>, pieces: usize) -> Result<Vec<Descriptor>, HostileError> {
    let mut list = vec![ring.read_header()?];
    let data = ring.writable(1)?;
    list.extend(std::iter::repeat_n(data, pieces));
    list.push(ring.writable(1)?);
    Ok(list)
}

#[test]
fn an_indirect_table_may_be_longer_than_the_ring() {
    let served = serve(|ring| {
        let list = parts(ring, 4 * usize::from(SIZE))?;
        let table = ring.table(&list)?;
        ring.descriptor(1, table)?;
        Ok(list[list.len() - 1])
    });
    assert_eq!(served, (wire::S_OK, true));
}

#[test]
fn descriptors_of_the_ring_and_of_tables_are_counted_apart() {
    let served = serve(|ring| {
        let list = parts(ring, 2 * usize::from(SIZE))?;
        // The header in the ring, the data in a table, the status in the ring.
        let (header, status) = (list[0], list[list.len() - 1]);
        let table = ring.table(&list[1..list.len() - 1])?;
        ring.descriptor(1, header.then(2))?;
        ring.descriptor(2, table.then(3))?;
        ring.descriptor(3, status)?;
        Ok(status)
    });
    assert_eq!(served, (wire::S_OK, true));
}

#[test]
fn a_chain_that_goes_on_at_descriptor_0_behind_its_table_ends_there() {
    let served = serve(|ring| {
        let list = parts(ring, 0)?;
        let table = ring.table(&list)?;
        ring.descriptor(0, Descriptor::writable(ring.unmapped(), 1))?;
        ring.descriptor(1, table.then(0))?;
        Ok(list[1])
    });
    assert_eq!(served, (wire::S_OK, true));
}

#[test]
fn a_loop_through_a_table_is_swallowed() {
    let (status, used) = serve(|ring| {
        let list = parts(ring, 0)?;
        // The descriptor that names the table is its own next, and is not counted.
        let table = ring.table(&list[..1])?;
        ring.descriptor(1, table.then(1))?;
        Ok(list[1])
    });
    assert_eq!((status, used), (wire::S_UNWRITTEN, false));
    let (status, used) = serve(|ring| {
        let list = parts(ring, 0)?;
        let table = ring.table(&[list[0].then(0)])?;
        ring.descriptor(1, table)?;
        Ok(list[1])
    });
    assert_eq!((status, used), (wire::S_UNWRITTEN, false));
}
