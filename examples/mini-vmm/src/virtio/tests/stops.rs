// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stops end in bounded time, whatever the disk and its layers do.

use virtio_blk_disks::stack::{Groups, LayerArg, Stack};

use super::disk::Silent;
use super::*;

/// What a disk that is only made to wait may cost: far from what its limit would.
const SOON: Duration = Duration::from_secs(3);

/// A disk of ten requests a second. 60 of them take 6 s.
fn throttled() -> Arc<dyn Disk> {
    let layers: [LayerArg; 1] = ["throttle=iops:10".parse().unwrap()];
    let stack = Stack::fixed(memory_disk(), &layers, Groups::default());
    stack.unwrap().disk()
}

fn timed(call: impl FnOnce()) -> Duration {
    let start = Instant::now();
    call();
    start.elapsed()
}

fn resets_soon<R: Registers>(mut guest: Guest<R>) {
    guest.start(feature::RING_RESET, 2);
    for queue in [0, 1] {
        guest.submit(queue, 60);
        guest.answer(queue);
    }
    assert!(timed(|| guest.registers.reset_queue(1)) < SOON);
    assert_eq!(guest.registers.queue(1), (false, false));
    assert!(timed(|| guest.registers.set_status(0)) < SOON);
    assert_eq!(guest.registers.status(), 0);
    // The driver's next life is as its first.
    guest.start(0, 1);
    guest.submit(0, 1);
    guest.answer(0);
}

#[test]
fn resets_do_not_wait_for_a_throttle() {
    resets_soon(Guest::pci(|_| own(throttled(), 2)));
    resets_soon(Guest::mmio(|_| own(throttled(), 2)));
}

/// A queue that was reset continues at its first entry, with the size and the rings that it is given then
/// (virtio 1.4, 2.6.1), and the other queue is not touched.
fn comes_back_with_another_size<R: Registers>(mut guest: Guest<R>) {
    guest.start(feature::RING_RESET, 2);
    for queue in [0, 1] {
        guest.submit(queue, 3);
        (0..3).for_each(|_| guest.answer(queue));
    }
    guest.registers.reset_queue(1);
    assert_eq!(guest.registers.queue(1), (false, false));
    // Nothing is executed meanwhile.
    guest.submit(1, 1);
    guest.submit(0, 1);
    guest.answer(0);
    assert!(guest.is_quiet(1));
    let small = guest.ring(SIZE / 4);
    assert_eq!((small.state().size, small.state().next_avail), (64, 0));
    guest.registers.enable(1, &small.state());
    guest.drivers[1] = small;
    // More than the new ring has entries for: it goes round.
    for _ in 0..80 {
        guest.submit(1, 1);
        guest.answer(1);
    }
    guest.submit(0, 1);
    guest.answer(0);
}

#[test]
fn a_queue_that_was_reset_comes_back_with_another_size() {
    comes_back_with_another_size(Guest::pci(|_| own(memory_disk(), 2)));
    comes_back_with_another_size(Guest::mmio(|_| own(memory_disk(), 2)));
}

#[test]
fn a_machine_that_ends_does_not_wait_for_a_throttle() {
    let mut guest = Guest::pci(|_| own(throttled(), 1));
    guest.start(0, 1);
    guest.submit(0, 60);
    guest.answer(0);
    assert!(timed(|| drop(guest.registers)) < SOON);
}

fn waits_for_the_disk<R: Registers>(mut guest: Guest<R>, silent: &Silent) {
    let patience = Duration::from_millis(50);
    guest.registers.block().patience = patience;
    guest.start(feature::RING_RESET, 1);
    guest.submit(0, 3);
    eventually(|| silent.with(|state| state.taken) == 3);

    let took = timed(|| guest.registers.reset_queue(0));
    assert!(took >= patience && took < SOON, "{took:?}");
    assert_eq!(guest.registers.queue(0), (true, true), "not over");
    guest.registers.enable(0, &guest.drivers[0].state());
    assert_eq!(guest.registers.queue(0), (true, true), "and not again");

    let took = timed(|| guest.registers.set_status(0));
    assert!(took >= patience && took < SOON, "{took:?}");
    assert_eq!(guest.registers.status(), status::DEVICE_NEEDS_RESET);
    guest.registers.set_status(status::ACKNOWLEDGE);
    assert_eq!(guest.registers.status(), status::DEVICE_NEEDS_RESET);
    let users = Arc::strong_count(&guest.memory);
    assert_eq!(silent.with(|state| state.calls.clone()), ["activate"]);

    silent.let_go();
    eventually(|| guest.registers.status() == 0);
    assert_eq!(guest.registers.queue(0), (false, false));
    let left = Arc::strong_count(&guest.memory);
    assert!(left < users, "the memory was kept until then");
    eventually(|| silent.with(|state| state.calls.clone()) == ["activate", "deactivate"]);
    guest.start(0, 1);
    guest.submit(0, 1);
    eventually(|| silent.with(|state| state.taken) == 4);
}

#[test]
fn a_reset_is_not_over_before_the_disk_lets_go() {
    let silent = Silent::default();
    let disk = Arc::new(silent.clone());
    waits_for_the_disk(Guest::pci(|_| own(disk, 1)), &silent);
    let silent = Silent::default();
    let disk = Arc::new(silent.clone());
    waits_for_the_disk(Guest::mmio(|_| own(disk, 1)), &silent);
}

#[test]
fn a_machine_ends_without_its_disk() {
    let silent = Silent::default();
    let mut guest = Guest::pci(|_| own(Arc::new(silent.clone()), 1));
    guest.registers.block.patience = Duration::from_millis(50);
    guest.start(0, 1);
    guest.submit(0, 1);
    eventually(|| silent.with(|state| state.taken) == 1);
    let Guest {
        registers,
        memory,
        drivers,
        ..
    } = guest;
    drop(drivers);
    assert!(timed(|| drop(registers)) < SOON);
    assert!(Arc::strong_count(&memory) > 1, "the disk may still write");
    silent.let_go();
    eventually(|| Arc::strong_count(&memory) == 1);
}

#[test]
fn a_pause_fails_in_time_and_what_stopped_goes_on() {
    let silent = Silent::default();
    let mut guest = Guest::mmio(|_| own(Arc::new(silent.clone()), 1));
    let patience = Duration::from_millis(50);
    guest.registers.block.patience = patience;
    guest.start(0, 1);
    guest.submit(0, 2);
    eventually(|| silent.with(|state| state.taken) == 2);
    let block = &mut guest.registers.block;
    let start = Instant::now();
    block.pause().unwrap_err();
    assert!(start.elapsed() < SOON);
    // The disk lets go: what it had is cancelled, and taken again.
    silent.let_go();
    eventually(|| block.pause().is_ok());
    let saved = block.save().unwrap();
    block.resume();
    eventually(|| silent.with(|state| state.taken) == 4);
    assert_eq!(guest.registers.status(), 0xf);
    drop(guest);

    // The same where the machine is another one.
    let silent = Silent::default();
    silent.let_go();
    let mut guest = Guest::mmio(|_| own(Arc::new(silent.clone()), 1));
    // It has the rings where the first one had them.
    guest.start(0, 1);
    guest.submit(0, 2);
    eventually(|| silent.with(|state| state.taken) == 2);
    guest.registers.set_status(0);
    let block = &mut guest.registers.block;
    block.restore(&saved).unwrap();
    block.resume();
    eventually(|| silent.with(|state| state.taken) == 4);
}

#[test]
fn a_pause_that_is_given_up_leaves_the_device_to_be_reset() {
    let silent = Silent::default();
    let mut guest = Guest::mmio(|_| own(Arc::new(silent.clone()), 1));
    guest.registers.block.patience = Duration::from_millis(50);
    guest.start(0, 1);
    guest.submit(0, 2);
    eventually(|| silent.with(|state| state.taken) == 2);
    guest.registers.block.pause().unwrap_err();
    guest.registers.block.resume();
    assert_eq!(guest.registers.status(), 0xf | status::DEVICE_NEEDS_RESET);
    silent.let_go();
}

#[test]
fn a_disk_is_in_use_while_queues_are() {
    let silent = Silent::default();
    silent.let_go();
    let mut guest = Guest::pci(|_| own(Arc::new(silent.clone()), 2));
    let calls = || silent.with(|state| std::mem::take(&mut state.calls));
    guest.start(feature::RING_RESET, 2);
    assert_eq!(calls(), ["activate"]);
    guest.registers.reset_queue(0);
    assert!(calls().is_empty());
    guest.registers.reset_queue(1);
    assert_eq!(calls(), ["deactivate"]);
    guest.registers.enable(0, &guest.drivers[0].state());
    assert_eq!(calls(), ["activate"]);
    guest.registers.block.pause().unwrap();
    assert_eq!(calls(), ["deactivate"]);
    guest.registers.block.resume();
    assert_eq!(calls(), ["activate"]);
    guest.registers.set_status(0);
    assert_eq!(calls(), ["deactivate"]);
    silent.with(|state| state.refuses = true);
    guest.start(0, 1);
    assert_eq!(guest.registers.status(), 0xf | status::DEVICE_NEEDS_RESET);
}

/// What a disk does before it is released may take for ever.
#[test]
fn no_vcpu_waits_for_a_disk_that_is_not_let_go_of() {
    let silent = Silent::default();
    silent.let_go();
    let mut guest = Guest::pci(|_| own(Arc::new(silent.clone()), 2));
    guest.registers.block.patience = Duration::from_millis(50);
    let needs_reset = status::DEVICE_NEEDS_RESET;

    guest.start(feature::RING_RESET, 1);
    silent.stay(true);
    assert!(timed(|| guest.registers.reset_queue(0)) < SOON);
    assert_eq!(guest.registers.queue(0), (false, false));
    // It can't be used before it was released.
    let state = guest.drivers[0].state();
    assert!(timed(|| guest.registers.enable(0, &state)) < SOON);
    assert_eq!(guest.registers.status() & needs_reset, needs_reset);
    assert!(timed(|| guest.registers.set_status(0)) < SOON);
    assert_eq!(guest.registers.status(), 0);
    guest.registers.block.pause().unwrap_err();
    silent.stay(false);
    eventually(|| guest.registers.block.pause().is_ok());
    guest.registers.block.resume();

    guest.start(0, 1);
    silent.stay(true);
    assert!(timed(|| guest.registers.block.set_dma(false)) < SOON);
    assert_eq!(guest.registers.status() & needs_reset, needs_reset);
    assert!(timed(|| drop(guest.registers)) < SOON);
    silent.stay(false);
}

#[test]
fn a_pause_tells_that_data_is_lost() {
    let silent = Silent::default();
    silent.let_go();
    let mut guest = Guest::mmio(|_| own(Arc::new(silent.clone()), 1));
    guest.start(feature::RING_RESET, 1);
    silent.with(|state| state.loses = true);
    let block = &mut guest.registers.block;
    for _ in 0..2 {
        let said = block.pause().unwrap_err().to_string();
        assert!(said.contains("no room"), "{said}");
        block.resume();
    }
    // Also what nobody was told of when it happened.
    guest.registers.reset_queue(0);
    for _ in 0..2 {
        guest.registers.block.pause().unwrap_err();
    }
    silent.with(|state| state.loses = false);
    guest.registers.enable(0, &guest.drivers[0].state());
    guest.registers.block.pause().unwrap();
}

/// Where its queue stood is not known: nothing is executed again.
#[test]
fn a_queue_whose_thread_panicked_does_not_start_again() {
    let silent = Silent::default();
    silent.let_go();
    let mut guest = Guest::mmio(|_| own(Arc::new(silent.clone()), 1));
    guest.start(0, 1);
    silent.with(|state| state.panics = true);
    guest.submit(0, 1);
    eventually(|| silent.with(|state| state.taken) == 1);
    silent.with(|state| state.panics = false);
    let block = &mut guest.registers.block;
    block.pause().unwrap();
    block.resume();
    assert_eq!(guest.registers.status(), 0xf | status::DEVICE_NEEDS_RESET);
    assert!(!guest.registers.block.serves(0));
    assert_eq!(silent.with(|state| state.taken), 1);
    guest.registers.set_status(0);
    guest.start(0, 1);
    guest.submit(0, 1);
    eventually(|| silent.with(|state| state.taken) == 2);
    assert_eq!(guest.registers.status(), 0xf);
}
