// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device can reach.

use super::*;

#[test]
fn set_map() {
    let mut rig = rig();
    let all = table(&rig.memory);
    assert!(rig.ask(0, &Request::flush()).is_ok());
    rig.sim.set_map(0, &IotlbTable::new()).unwrap();
    rig.send(0, &Request::flush());
    rig.no_answer(0);
    rig.sim.set_map(0, &all).unwrap();
    rig.sim.kick_vq(0);
    assert!(rig.answer(0).is_ok());
    assert_eq!(errno(rig.sim.set_map(1, &all)), EINVAL);
    let page = mapping(&rig.memory, 0, 0, 0x1000);
    assert_eq!(errno(rig.sim.dma_map(0, page)), EOPNOTSUPP);
    assert_eq!(errno(rig.sim.dma_unmap(0, 0, 1)), EOPNOTSUPP);
}

#[test]
fn set_map_that_fails_leaves_an_empty_map() {
    let mut options = SimOptions::compat().stepped();
    options.max_mappings = 1;
    let mut rig = Rig::new(options, 1);
    let mut two = IotlbTable::new();
    for page in [0, 0x2000] {
        two.insert(mapping(&rig.memory, page, 0, 0x1000)).unwrap();
    }
    assert_eq!(errno(rig.sim.set_map(0, &two)), 28);
    rig.send(0, &Request::flush());
    rig.no_answer(0);
}

#[test]
fn dma_map_and_dma_unmap() {
    let memory = memory();
    let sim = Arc::new(BlkSim::in_memory(unbatched().physical(physical(&memory))).unwrap());
    let mut driver = VdpaDriver::start(sim.clone(), memory.clone(), &Setup::default()).unwrap();
    let mut works = || {
        driver.queues()[0].submit(&Request::flush()).unwrap();
        driver.publish(0).unwrap();
        sim.kick_vq(0);
        sim.run();
        let mut answers = 0;
        while driver.queues()[0].poll().unwrap().is_some() {
            answers += 1;
        }
        answers
    };
    assert_eq!(works(), 1, "the identity map");
    // The first mapping takes its place.
    let high = 1 << 40;
    sim.dma_map(0, mapping(&memory, high, 0, 0x1000)).unwrap();
    assert_eq!(works(), 0);
    sim.dma_map(0, mapping(&memory, 0, 0, MEMORY)).unwrap();
    assert_eq!(works(), 2);
    assert_eq!(
        errno(sim.dma_map(0, mapping(&memory, high + 1, 0, 1))),
        EEXIST
    );
    sim.dma_unmap(0, 5, 1).unwrap();
    assert_eq!(works(), 0, "whole");
    sim.reset_map(0).unwrap();
    assert_eq!(works(), 2);
    // So does the removal of nothing.
    sim.dma_unmap(0, high, 1).unwrap();
    assert_eq!(works(), 0);
    assert_eq!(errno(sim.set_map(0, &IotlbTable::new())), EOPNOTSUPP);
    assert_eq!(errno(sim.dma_map(1, mapping(&memory, 0, 0, 1))), EINVAL);
    assert_eq!(errno(sim.dma_unmap(1, 0, 1)), EINVAL);
}

#[test]
fn reset_map() {
    let memory = memory();
    let mut rig = Rig::new(
        SimOptions::compat().stepped().physical(physical(&memory)),
        1,
    );
    // Its driver's memory is not the one it was made with: nothing is found there.
    rig.sim.reset_map(0).unwrap();
    rig.send(0, &Request::flush());
    rig.no_answer(0);
    rig.sim.reset_map(0).unwrap();
    assert_eq!(errno(rig.sim.reset_map(1)), EINVAL);
    let all = table(&rig.memory);
    rig.sim.set_map(0, &all).unwrap();
    rig.sim.kick_vq(0);
    assert!(rig.answer(0).is_ok());
}

#[test]
fn bind_mm_and_unbind_mm() {
    let mut rig = rig();
    let process = Arc::new(());
    rig.sim.bind_mm(process.clone()).unwrap();
    assert!(rig.ask(0, &Request::flush()).is_ok());
    rig.sim.unbind_mm();
    assert_eq!(Arc::strong_count(&process), 1);
    rig.send(0, &Request::flush());
    rig.no_answer(0);
    rig.sim.bind_mm(process).unwrap();
    rig.sim.kick_vq(0);
    assert!(rig.answer(0).is_ok());
}
