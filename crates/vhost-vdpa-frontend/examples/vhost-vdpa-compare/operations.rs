// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operations of the vDPA table, in a device's life.

use vdpa_bus::{VqAddress, VqState};
use virtio_blk_core::memory::{HostMemory, IotlbMapping, IotlbTable, Permissions};
use virtio_blk_core::spec::feature;
use virtio_blk_driver::request::Request;

use crate::rig::Rig;

pub fn script(rig: &mut Rig) {
    constants(rig);
    config(rig);
    features_and_status(rig);
    queue_setup(rig);
    ready_and_kick(rig);
    state(rig);
    suspend_and_resume(rig);
    reset(rig);
    maps(rig);
}

fn constants(rig: &mut Rig) {
    let device = rig.device.clone();
    rig.note(
        "nvqs, ngroups, nas",
        (device.nvqs(), device.ngroups(), device.nas()),
    );
    rig.note("get_device_id", device.get_device_id());
    rig.note("get_vq_num_max", device.get_vq_num_max());
    rig.note("get_device_features", device.get_device_features());
    rig.note("get_backend_features", device.get_backend_features());
    rig.note("get_config_size", device.get_config_size());
    rig.note("get_iova_range", device.get_iova_range());
    for vq in [0, 1] {
        rig.result(&format!("get_vq_group {vq}"), device.get_vq_group(vq));
        rig.result(&format!("get_vq_size {vq}"), device.get_vq_size(vq));
    }
    rig.result("get_vq_desc_group", device.get_vq_desc_group(0));
    for (group, asid) in [(0, 0), (1, 0), (0, 1)] {
        let result = device.set_group_asid(group, asid);
        rig.result(&format!("set_group_asid {group} {asid}"), result);
    }
}

fn config(rig: &mut Rig) {
    let device = rig.device.clone();
    let read = |rig: &mut Rig, step: &str, offset: usize, len: usize| {
        let mut bytes = vec![0xcc; len];
        let result = device.get_config(offset, &mut bytes);
        rig.result(step, result.map(|()| bytes));
    };
    read(rig, "get_config, all of it", 0, 96);
    read(rig, "get_config, 3 bytes at 7", 7, 3);
    read(rig, "get_config, nothing", 0, 0);
    read(rig, "get_config beyond the end", 95, 2);
    let result = device.set_config(0, &[1; 8]);
    rig.result("set_config of the capacity", result);
    let result = device.set_config(32, &[0]);
    rig.result("set_config of writeback", result);
    read(rig, "get_config after set_config", 0, 96);
    rig.result("set_config beyond the end", device.set_config(95, &[1; 8]));
    rig.result("set_config_cb", device.set_config_cb(Some(rig.callback())));
}

fn features_and_status(rig: &mut Rig) {
    let device = rig.device.clone();
    device.reset().unwrap();
    for features in [0, feature::VERSION_1] {
        let result = device.set_driver_features(features);
        rig.result(&format!("set_driver_features {features:#x}"), result);
    }
    let result = device.set_driver_features(u64::MAX);
    rig.result("set_driver_features of everything", result);
    rig.note("get_driver_features", device.get_driver_features());
    for status in [1, 3, 11] {
        let result = device.set_status(status);
        rig.note(
            &format!("set_status {status}"),
            (result.map_err(|error| error.errno()), device.get_status()),
        );
    }
    let result = device.set_driver_features(feature::ACCESS_PLATFORM);
    rig.result("set_driver_features after FEATURES_OK", result);
    for status in [3, 0x8b, 0xcb, 15, 0] {
        let result = device.set_status(status);
        rig.note(
            &format!("set_status {status:#x}"),
            (result.map_err(|error| error.errno()), device.get_status()),
        );
    }
    rig.note(
        "get_driver_features after a reset",
        device.get_driver_features(),
    );
}

fn queue_setup(rig: &mut Rig) {
    rig.negotiated();
    let device = rig.device.clone();
    for num in [0, 1, 2, 77, 256, 512, 32768, 65536] {
        rig.result(&format!("set_vq_num {num}"), device.set_vq_num(0, num));
    }
    rig.result("set_vq_num of no queue", device.set_vq_num(1, 4));
    let address = |desc, driver, device| VqAddress {
        desc,
        driver,
        device,
    };
    for (step, address) in [
        ("in place", address(0x1000, 0x2000, 0x3000)),
        ("at 0", address(0, 0, 0)),
        ("nowhere", address(1 << 40, 1 << 41, 1 << 42)),
        ("with a misaligned table", address(0x1001, 0x2000, 0x3000)),
        (
            "with a misaligned available ring",
            address(0x1000, 0x2001, 0x3000),
        ),
        (
            "with a misaligned used ring",
            address(0x1000, 0x2000, 0x3002),
        ),
        (
            "at the end of all addresses",
            address(u64::MAX - 15, u64::MAX - 1, u64::MAX - 3),
        ),
    ] {
        let result = device.set_vq_address(0, address);
        rig.result(&format!("set_vq_address {step}"), result);
    }
    rig.result(
        "set_vq_address of no queue",
        device.set_vq_address(1, address(0, 0, 0)),
    );
    rig.result("set_vq_cb", device.set_vq_cb(0, Some(rig.callback())));
    rig.result(
        "set_vq_cb of no queue",
        device.set_vq_cb(1, Some(rig.callback())),
    );
    rig.result("set_vq_kick of no queue", device.set_vq_kick(1, None));
    let at = |avail_index| VqState::Split { avail_index };
    rig.result("set_vq_state of no queue", device.set_vq_state(1, at(0)));
    rig.result("set_vq_ready of no queue", device.set_vq_ready(1, true));
    rig.result("get_vq_state of no queue", device.get_vq_state(1));
    for index in [9, 0xffff, 0] {
        rig.result(
            &format!("set_vq_state {index}"),
            device.set_vq_state(0, at(index)),
        );
        rig.note(&format!("get_vq_state after {index}"), rig.index());
    }
    let packed = VqState::from_vring_base(0x8000_8000, true).unwrap();
    rig.result(
        "set_vq_state of a packed ring",
        device.set_vq_state(0, packed),
    );
}

fn ready_and_kick(rig: &mut Rig) {
    rig.start(0);
    let device = rig.device.clone();
    rig.note(
        "get_vq_ready",
        (device.get_vq_ready(0), device.get_vq_ready(1)),
    );
    rig.result("get_vq_size of a running device", device.get_vq_size(0));
    rig.result("set_vq_ready off", device.set_vq_ready(0, false));
    rig.submit(&Request::flush());
    rig.publish();
    rig.look("a kick for a queue that is not ready");
    rig.result("set_vq_ready on", device.set_vq_ready(0, true));
    rig.look("a queue that is ready again, without a kick");
    device.kick_vq(0);
    rig.look("and with one");
    rig.result("set_vq_ready twice", device.set_vq_ready(0, true));
    rig.ask("a request after it", &Request::flush());
    for _ in 0..12 {
        rig.submit(&Request::flush());
    }
    rig.publish();
    rig.look("12 requests with one kick");
    device.set_vq_cb(0, None).unwrap();
    rig.ask("a request without a callback", &Request::flush());
    rig.look("and nobody is called");
    rig.result(
        "set_vq_cb of a running queue",
        device.set_vq_cb(0, Some(rig.callback())),
    );
    rig.ask("a request with one", &Request::flush());
    rig.look("which is called");
    let memory = rig.memory.clone();
    let (ring, _) = rig.driver().ring_mut();
    ring.disable_interrupts(&*memory).unwrap();
    rig.ask(
        "a request whose driver asks for no interrupt",
        &Request::flush(),
    );
    rig.look("and is not interrupted");
    // Of a running queue.
    rig.result("set_vq_num of a running queue", device.set_vq_num(0, 64));
    let address = VqAddress {
        desc: 0x1000,
        driver: 0x2000,
        device: 0x3000,
    };
    rig.result(
        "set_vq_address of a running queue",
        device.set_vq_address(0, address),
    );
    rig.ask("a request after both", &Request::flush());
    // Before DRIVER_OK.
    rig.start(0);
    rig.device.reset().unwrap();
    device.kick_vq(0);
    rig.note("get_vq_ready after a reset", device.get_vq_ready(0));
    rig.look("a kick after a reset");
}

fn state(rig: &mut Rig) {
    rig.start(0xffff);
    let device = rig.device.clone();
    rig.ask("a request at the last index", &Request::flush());
    rig.ask("a request beyond it", &Request::flush());
    rig.note("get_vq_state of a running queue", rig.index());
    let at = VqState::Split { avail_index: 9 };
    rig.result(
        "set_vq_state of a running queue",
        device.set_vq_state(0, at),
    );
    rig.note("get_vq_state after it", rig.index());
    device.suspend().unwrap();
    let at = VqState::Split { avail_index: 5 };
    rig.result(
        "set_vq_state of a suspended queue",
        device.set_vq_state(0, at),
    );
    rig.note("get_vq_state of a suspended queue", rig.index());
    device.reset().unwrap();
    rig.note("get_vq_state after a reset", rig.index());
}

fn suspend_and_resume(rig: &mut Rig) {
    rig.negotiated();
    let device = rig.device.clone();
    rig.result("suspend before DRIVER_OK", device.suspend());
    rig.result("resume before DRIVER_OK", device.resume());
    rig.start(0);
    rig.ask("a request before suspend", &Request::flush());
    rig.calls();
    rig.result("suspend", device.suspend());
    rig.result("suspend twice", device.suspend());
    rig.note("get_status while suspended", device.get_status());
    rig.submit(&Request::flush());
    rig.publish();
    rig.look("a request while suspended");
    rig.result("resume", device.resume());
    rig.look("what was kicked while suspended");
    rig.result("resume twice", device.resume());
    rig.look("nothing is left");
    device.suspend().unwrap();
    rig.submit(&Request::flush());
    rig.driver().publish().unwrap();
    device.resume().unwrap();
    rig.look("what was not kicked while suspended");
    device.kick_vq(0);
    rig.look("and is kicked after it");
    // A kick of the life before.
    device.suspend().unwrap();
    device.kick_vq(0);
    rig.look("a kick in vain while suspended");
    rig.start(0);
    rig.submit(&Request::flush());
    rig.driver().publish().unwrap();
    rig.look("a life later, without a kick");
    device.resume().unwrap();
    rig.look("a resume that was not suspended");
    device.kick_vq(0);
    rig.look("a kick after it");
}

fn reset(rig: &mut Rig) {
    rig.start(0);
    let device = rig.device.clone();
    device.suspend().unwrap();
    rig.submit(&Request::flush());
    rig.publish();
    rig.result("reset while suspended", device.reset());
    rig.note("get_status after a reset", device.get_status());
    rig.look("requests of a device that was reset");
    // Its callbacks are gone, its maps are not.
    rig.start(0);
    rig.ask("a request after a reset", &Request::flush());
    let result = device.compat_reset(false);
    rig.result("compat_reset that keeps the map", result);
    rig.start(0);
    rig.ask("a request after it", &Request::flush());
}

fn maps(rig: &mut Rig) {
    rig.start(0);
    let device = rig.device.clone();
    let all = rig.table();
    rig.result("set_map of nothing", device.set_map(0, &IotlbTable::new()));
    rig.submit(&Request::flush());
    rig.publish();
    rig.look("a request with nothing mapped");
    rig.result("set_map of everything", device.set_map(0, &all));
    device.kick_vq(0);
    rig.look("a kick when it is mapped");
    rig.result("set_map of no address space", device.set_map(1, &all));
    let (_, memory) = HostMemory::of_map(&rig.memory).remove(0);
    let page = memory.slice(0, 4096).unwrap();
    let mapping = IotlbMapping::new(1 << 40, page, Permissions::ReadWrite).unwrap();
    rig.result("dma_map", device.dma_map(0, mapping));
    rig.result("dma_unmap", device.dma_unmap(0, 1 << 40, 4096));
    rig.ask("a request after it", &Request::flush());
    // What may only be read or only be written, page by page.
    let mut table = IotlbTable::new();
    for (iova, permissions) in [
        (0, Permissions::ReadWrite),
        (0x40_0000, Permissions::Read),
        (0x60_0000, Permissions::Write),
    ] {
        let part = memory.slice(iova as usize, 0x20_0000).unwrap();
        table
            .insert(IotlbMapping::new(iova, part, permissions).unwrap())
            .unwrap();
    }
    rig.result("set_map with permissions", device.set_map(0, &table));
    crate::requests::permissions(rig);
    device.set_map(0, &all).unwrap();
    rig.ask("a request with all of it again", &Request::flush());
}
