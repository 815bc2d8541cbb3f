// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

//! Registers that a vCPU reads while its guest is moved, and what they say when a ring breaks.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use common::bench::{Bench, Setup, Switch, bench, progress};
use common::device::{Profile, TestDevice};
use common::guest::{Gate, Guest, disk_bytes};
use vdpa_bus::{Callback, VdpaDevice};
use vhost_vdpa_frontend::{DataPath, PathState, SwitchOptions, SwitchParts, ThreadExecutor, Vmm};
use virtio_blk_disks::MemoryDisk;
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic};

/// A VMM with one vCPU, which sees that it is to pause only between two exits, and which is waited for without limit.
struct OneVcpu {
    requests: SyncSender<SyncSender<()>>,
    /// The guest's other threads.
    gate: Arc<Gate>,
}

impl Vmm for OneVcpu {
    fn pause_vcpus(&self) -> bool {
        self.gate.close();
        let (stopped, wait) = sync_channel(0);
        self.requests.send(stopped).unwrap();
        wait.recv_timeout(Duration::from_secs(60))
            .expect("the vCPU waits for the switch, which waits for the vCPU");
        true
    }

    fn resume_vcpus(&self) {
        self.gate.open();
    }
}

/// Reads registers all the time, and pauses between two reads when asked to.
fn vcpu(switch: &Switch, requests: Receiver<SyncSender<()>>, ending: &AtomicBool) -> u64 {
    let mut reads = 0;
    while !ending.load(Ordering::SeqCst) {
        switch.read_config(0, &mut [0; 8]).unwrap();
        assert_eq!(switch.status(), 15);
        reads += 1;
        while let Ok(stopped) = requests.try_recv() {
            stopped.send(()).unwrap();
        }
    }
    reads
}

#[test]
fn a_vcpu_that_reads_registers_in_a_loop_can_be_paused() {
    let disk = Arc::new(MemoryDisk::new(disk_bytes(1, 8)).unwrap());
    let profile = Profile {
        queues: 1,
        suspend: false,
        resume: false,
        ..Profile::default()
    };
    let device = TestDevice::new(disk, profile);
    let mut guest = Guest::new(1, 8, device.get_device_features());
    let (sender, requests) = sync_channel(1);
    let parts = SwitchParts {
        device,
        memory: GuestMemoryAtomic::from(guest.memory.clone()),
        executor: Box::new(ThreadExecutor::new(Duration::ZERO)),
        vmm: Arc::new(OneVcpu {
            requests: sender,
            gate: guest.gate.clone(),
        }),
        layers: None,
    };
    let switch = Switch::new(parts, SwitchOptions::default()).unwrap();
    for byte in [0, 1, 3] {
        switch.set_status(byte).unwrap();
    }
    switch.set_features(switch.offered()).unwrap();
    switch.set_status(11).unwrap();
    switch.set_queue(0, guest.queues[0].setup()).unwrap();
    switch.set_status(15).unwrap();
    let (stop, total) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| guest.queues[0].run(&stop, &total));
        let (vcpu_switch, ending) = (&switch, &stop);
        let reader = scope.spawn(move || vcpu(vcpu_switch, requests, ending));
        for _ in 0..20 {
            progress(&total);
            switch.switch_to(DataPath::Slow).unwrap().unwrap();
            progress(&total);
            switch.switch_to(DataPath::Fast).unwrap().unwrap();
        }
        stop.store(true, Ordering::SeqCst);
        assert!(reader.join().unwrap() > 40);
    });
}

#[test]
fn a_ring_that_breaks_asks_for_a_reset_on_either_path() {
    for path in [DataPath::Fast, DataPath::Slow] {
        let mut bench = bench(Setup::default());
        let (switch, irq) = (bench.switch.clone(), common::eventfd());
        switch.set_status(0).unwrap();
        switch.set_config_call(Some(Callback::Trigger(irq.clone())));
        bench.load_again();
        switch.switch_to(path).unwrap();
        assert!(irq.read().is_err());
        // An available index further ahead than the ring has entries.
        let queue = bench.guest.queues[1].setup();
        let index = GuestAddress(queue.address.driver + 2);
        bench.guest.memory.write_obj(0x4000u16, index).unwrap();
        queue.kick.write(1).unwrap();
        while irq.read().is_err() {
            std::thread::yield_now();
        }
        assert_eq!(switch.status(), 15 | 64, "{path:?}");
        assert_eq!(switch.path(), PathState::from(path));
        // It is the device's bit: a driver that writes the byte does not clear it.
        switch.set_status(15).unwrap();
        assert_eq!(switch.status(), 15 | 64);
        bench.load_again();
        assert_eq!(switch.status(), 15);
        bench.run(|_, _, total| progress(total));
    }
}

/// The serial number is asked for when the switch is made, not while a guest waits.
#[test]
fn no_request_is_made_for_the_serial_number_in_a_switch() {
    let mut bench = bench(Setup::default());
    let requests = |bench: &Bench| {
        let stats = bench.device.device.sim().get_vendor_vq_stats(0).unwrap();
        let others = stats.iter().find(|(name, _)| name == "others");
        others.unwrap().1
    };
    let before = requests(&bench);
    assert_eq!(before, 1, "it was asked before");
    bench.switch.switch_to(DataPath::Slow).unwrap().unwrap();
    assert_eq!(requests(&bench), before, "nobody asked for anything");
    assert_eq!(&bench.guest.queues[0].serial()[..8], b"a serial");
}
