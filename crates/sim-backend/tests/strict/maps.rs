// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device can reach.

use super::*;

#[test]
fn get_iova_range() {
    let mut options = SimOptions::strict();
    if let SimProfile::Strict(strict) = &mut options.profile {
        strict.iova_range = 0x1000..=0xffff;
    }
    let sim = bare(options);
    assert_eq!(sim.get_iova_range(), 0x1000..=0xffff);
    let memory = memory();
    sim.dma_map(0, mapping(&memory, 0x1000, 0, 0xf000)).unwrap();
    for (iova, len) in [(0x0, 0x1000), (0xf000, 0x2000)] {
        let outside = mapping(&memory, iova, 0, len);
        let mut table = IotlbTable::new();
        table.insert(outside.clone()).unwrap();
        assert_eq!(errno(sim.set_map(0, &table)), EINVAL);
        assert_eq!(
            errno(bare(SimOptions::strict()).dma_map(1, outside)),
            EINVAL
        );
    }
}

#[test]
fn set_group_asid() {
    let mut rig = Rig::new(grouped(2, 2, 2), 2);
    // The second address space differs in its upper half.
    let (half, elsewhere) = (MEMORY / 2, memory());
    let mut second = IotlbTable::new();
    second.insert(mapping(&rig.memory, 0, 0, half)).unwrap();
    second
        .insert(mapping(&elsewhere, half as u64, half, half))
        .unwrap();
    rig.sim.set_map(1, &second).unwrap();
    assert!(rig.ask(0, &Request::write(0, &[5; 512])).is_ok());
    let upper = GuestAddress(half as u64);
    let segments = [Segment::new(upper, 512)];
    let read = Request::read(0, 0).with_input(In::Segments(&segments));
    let fills = |rig: &mut Rig, vq| {
        for memory in [&rig.memory, &elsewhere] {
            memory.write_slice(&[0; 512], upper).unwrap();
        }
        assert!(rig.ask(vq, &read).is_ok());
        [&rig.memory, &elsewhere].map(|memory| memory.read_obj::<u8>(upper).unwrap())
    };
    assert_eq!([fills(&mut rig, 0), fills(&mut rig, 1)], [[5, 0], [5, 0]]);
    rig.sim.set_group_asid(1, 1).unwrap();
    assert_eq!([fills(&mut rig, 0), fills(&mut rig, 1)], [[5, 0], [0, 5]]);
    rig.sim.set_group_asid(1, 0).unwrap();
    assert_eq!([fills(&mut rig, 0), fills(&mut rig, 1)], [[5, 0], [5, 0]]);
    assert_eq!(errno(rig.sim.set_group_asid(2, 0)), EINVAL);
    assert_eq!(errno(rig.sim.set_group_asid(0, 2)), EINVAL);
    // A reset gives all groups the first.
    rig.sim.set_group_asid(0, 1).unwrap();
    rig.restart();
    assert_eq!(fills(&mut rig, 0), [5, 0]);
}

#[test]
fn set_map() {
    let mut rig = rig();
    assert!(rig.ask(0, &Request::flush()).is_ok());
    // Only the lower half: buffers in the upper one are not reached, the ring is.
    let half = MEMORY / 2;
    let mut lower = IotlbTable::new();
    lower.insert(mapping(&rig.memory, 0, 0, half)).unwrap();
    rig.sim.set_map(0, &lower).unwrap();
    let upper = [Segment::new(GuestAddress(half as u64), 512)];
    let read = Request::read(0, 0).with_input(In::Segments(&upper));
    assert_eq!(rig.ask(0, &read).status, wire::S_IOERR);
    let all = table(&rig.memory);
    rig.sim.set_map(0, &all).unwrap();
    assert!(rig.ask(0, &read).is_ok());
    assert_eq!(
        errno(rig.sim.set_map(1, &all)),
        EINVAL,
        "no such address space"
    );
}

#[test]
fn set_map_of_too_many_ranges() {
    let mut options = SimOptions::strict();
    options.max_mappings = 2;
    let sim = bare(options);
    let memory = memory();
    let mut table = IotlbTable::new();
    for page in 0..3 {
        let at = page * 0x2000;
        table
            .insert(mapping(&memory, at, at as usize, 0x1000))
            .unwrap();
        let answer = sim.set_map(0, &table);
        assert_eq!(answer.is_ok(), page < 2);
        assert!(page < 2 || errno(answer) == ENOSPC);
    }
}

#[test]
fn thousands_of_ranges_and_the_end_of_the_address_space() {
    const PAGES: u64 = 2048;
    let mut rig = rig();
    let high = memory();
    // The last pages of the address space, each somewhere else, one mapping after the other.
    let first = 0u64.wrapping_sub(PAGES * 4096);
    for page in 0..PAGES {
        let offset = (page * 1021 % PAGES) as usize * 4096;
        rig.sim
            .dma_map(0, mapping(&high, first + page * 4096, offset, 4096))
            .unwrap();
    }
    for sector in 0..8 {
        assert!(
            rig.ask(0, &Request::write(sector, &[sector as u8 + 1; 512]))
                .is_ok()
        );
    }
    // Buffers over the border of two pages, and up to the very end.
    let mut at = first + 4096 - 1024;
    for number in 0..200 {
        let segments = [Segment::new(GuestAddress(at), 4096)];
        let read = Request::read(0, 0).with_input(In::Segments(&segments));
        assert!(rig.ask(number % 2, &read).is_ok(), "{at:#x}");
        at += 4096 * 7;
    }
    let last = [Segment::new(GuestAddress(u64::MAX - 511), 512)];
    let read = Request::read(3, 0).with_input(In::Segments(&last));
    assert!(rig.ask(0, &read).is_ok());
    let offset = ((PAGES - 1) * 1021 % PAGES) * 4096 + 4096 - 512;
    assert_eq!(high.read_obj::<u8>(GuestAddress(offset)).unwrap(), 4);
    // One that wraps is refused, and nothing breaks.
    let wraps = [Segment::new(GuestAddress(u64::MAX - 511), 1024)];
    let read = Request::read(0, 0).with_input(In::Segments(&wraps));
    assert_eq!(rig.ask(0, &read).status, wire::S_IOERR);
    rig.sim.dma_unmap(0, first, PAGES * 4096).unwrap();
    assert_eq!(Arc::strong_count(&high), 1);
    assert!(rig.ask(0, &Request::flush()).is_ok());
}

#[test]
fn dma_map_and_dma_unmap() {
    let mut rig = rig();
    rig.sim.dma_unmap(0, 0, u64::MAX).unwrap();
    let (memory, half) = (rig.memory.clone(), MEMORY / 2);
    rig.sim.dma_map(0, mapping(&memory, 0, 0, half)).unwrap();
    assert!(
        rig.ask(0, &Request::flush()).is_ok(),
        "the ring is back, and goes on"
    );
    let upper = [Segment::new(GuestAddress(half as u64), 512)];
    let write = Request::write(0, &[]).with_out(Out::Segments(&upper));
    assert_eq!(rig.ask(0, &write).status, wire::S_IOERR);
    rig.sim
        .dma_map(0, mapping(&memory, half as u64, half, half))
        .unwrap();
    assert!(
        rig.ask(0, &write).is_ok(),
        "it is picked up without a restart"
    );
    let overlap = mapping(&memory, half as u64 - 1, 0, 2);
    assert_eq!(errno(rig.sim.dma_map(0, overlap)), EEXIST);
    assert_eq!(errno(rig.sim.dma_unmap(0, 0, 0)), EINVAL);
    assert_eq!(errno(rig.sim.dma_unmap(0, u64::MAX, 2)), EINVAL);
    assert_eq!(errno(rig.sim.dma_unmap(1, 0, 1)), EINVAL);
    // One byte of a mapping is enough to remove it, whole.
    rig.sim.dma_unmap(0, (MEMORY - 1) as u64, 1).unwrap();
    assert_eq!(rig.ask(0, &write).status, wire::S_IOERR);
    rig.sim.dma_unmap(0, u64::MAX, 1).unwrap();
}

#[test]
fn reset_map() {
    let memory = memory();
    let sim = Arc::new(
        BlkSim::in_memory(SimOptions::strict().stepped().physical(physical(&memory))).unwrap(),
    );
    let mut driver = VdpaDriver::start(sim.clone(), memory, &Setup::default()).unwrap();
    let mut works = || {
        driver.queues()[0].submit(&Request::flush()).unwrap();
        driver.publish(0).unwrap();
        sim.run();
        driver.queues()[0].poll().unwrap().is_some()
    };
    assert!(works(), "what is physical is mapped at the making");
    sim.set_map(0, &IotlbTable::new()).unwrap();
    assert!(!works());
    sim.reset_map(0).unwrap();
    assert!(works());
    assert_eq!(errno(sim.reset_map(1)), EINVAL);
}

#[test]
fn bind_mm_and_unbind_mm() {
    let mut rig = rig();
    assert!(rig.sim.use_va());
    rig.sim.unbind_mm();
    assert!(rig.ask(0, &Request::flush()).is_ok(), "nothing was bound");
    let process = Arc::new(());
    rig.sim.bind_mm(process.clone()).unwrap();
    assert!(rig.ask(0, &Request::flush()).is_ok());
    assert_eq!(Arc::strong_count(&process), 2);
    rig.sim.unbind_mm();
    assert_eq!(Arc::strong_count(&process), 1);
    rig.send(0, &Request::flush());
    rig.no_answer(0);
    rig.sim.bind_mm(process).unwrap();
    assert!(rig.answer(0).is_ok());
    let mut options = SimOptions::strict();
    options.use_va = false;
    assert_eq!(errno(bare(options).bind_mm(Arc::new(()))), EOPNOTSUPP);
}
