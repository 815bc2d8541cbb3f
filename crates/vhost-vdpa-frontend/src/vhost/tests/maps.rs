// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Maps as messages to the kernel.

use super::*;

fn memory(len: usize) -> HostMemory {
    let bytes = Arc::new(vec![0u8; len]);
    let base = bytes.as_ptr().cast_mut();
    // SAFETY: the allocation lives as long as the Arc, and nobody touches it.
    unsafe { HostMemory::new(base, len, bytes) }
}

fn mapping(iova: u64, len: usize, permissions: Permissions) -> IotlbMapping {
    IotlbMapping::new(iova, memory(len), permissions).unwrap()
}

fn message(v2: bool, asid: u32, map: [u64; 3], permissions: u8, kind: u8) -> Call {
    let mut all = ints(&[if v2 { 2 } else { 1 }, asid]);
    all.extend(longs(&map));
    all.extend([permissions, kind]);
    all.resize(72, 0);
    Call::Write(all)
}

fn update(mapping: &IotlbMapping, permissions: u8) -> Call {
    let memory = mapping.memory();
    let map = [mapping.iova(), memory.len() as u64, memory.as_ptr() as u64];
    message(true, 1, map, permissions, 2)
}

fn invalidate(mapping: &IotlbMapping) -> Call {
    let map = [mapping.iova(), mapping.memory().len() as u64, 0];
    message(true, 1, map, 0, 3)
}

#[test]
fn maps_change_by_one_batch_of_what_differs() {
    let (device, calls) = with(ALL & !backend_feature::IOTLB_PERSIST);
    let (begin, end) = (
        message(true, 1, [0; 3], 0, 5),
        message(true, 1, [0; 3], 0, 6),
    );
    let a = mapping(0x1000, 0x1000, Permissions::ReadWrite);
    let b = mapping(0x4000, 0x2000, Permissions::Read);
    let c = mapping(0x4000, 0x1000, Permissions::Write);
    let mut table = IotlbTable::new();
    table.insert(a.clone()).unwrap();
    table.insert(b.clone()).unwrap();
    device.set_map(1, &table).unwrap();
    assert_eq!(
        taken(&calls),
        [begin.clone(), update(&a, 3), update(&b, 1), end.clone()]
    );

    device.set_map(1, &table).unwrap();
    assert_eq!(taken(&calls), [], "nothing differs");

    table.remove(0x4000, 0x4000);
    table.insert(c.clone()).unwrap();
    device.set_map(1, &table).unwrap();
    assert_eq!(
        taken(&calls),
        [begin.clone(), invalidate(&b), update(&c, 2), end.clone()]
    );

    // A part is asked for, the whole of exactly what was mapped goes.
    device.dma_unmap(1, 0x4fff, 1).unwrap();
    assert_eq!(taken(&calls), [begin.clone(), invalidate(&c), end.clone()]);
    device.dma_map(1, b.clone()).unwrap();
    assert_eq!(taken(&calls), [begin.clone(), update(&b, 1), end.clone()]);
    assert!(
        device.dma_map(1, c).is_err(),
        "an overlap never reaches the kernel"
    );
    assert!(device.dma_unmap(1, 1, 0).is_err() && device.dma_unmap(1, 2, u64::MAX).is_err());
    assert!(device.set_map(2, &table).is_err());
    assert_eq!(taken(&calls), []);

    // The kernel may forget in a reset what vhost still has: all is sent again, once, before DRIVER_OK.
    device.reset().unwrap();
    assert_eq!(taken(&calls), [Call::Ioctl(0x4001_af72, vec![0])]);
    device.set_status(11).unwrap();
    assert_eq!(taken(&calls), [Call::Ioctl(0x4001_af72, vec![11])]);
    device.set_status(15).unwrap();
    let again = [
        begin,
        invalidate(&a),
        invalidate(&b),
        update(&a, 3),
        update(&b, 1),
        end,
    ];
    let ok = Call::Ioctl(0x4001_af72, vec![15]);
    assert_eq!(
        taken(&calls),
        [again.as_slice(), std::slice::from_ref(&ok)].concat()
    );
    device.set_status(15).unwrap();
    assert_eq!(taken(&calls), [ok]);
}

#[test]
fn maps_that_persist_are_not_sent_again() {
    let (device, calls) = with(ALL);
    device
        .dma_map(0, mapping(0x1000, 0x1000, Permissions::Read))
        .unwrap();
    device.reset().unwrap();
    taken(&calls);
    device.set_status(15).unwrap();
    assert_eq!(taken(&calls), [Call::Ioctl(0x4001_af72, vec![15])]);
}

#[test]
fn old_kernels_get_old_messages() {
    let (device, calls) = with(0);
    let a = mapping(0x1000, 0x1000, Permissions::ReadWrite);
    let at = a.memory().as_ptr() as u64;
    device.dma_map(0, a).unwrap();
    assert_eq!(
        taken(&calls),
        [message(false, 0, [0x1000, 0x1000, at], 3, 2)]
    );
}

#[test]
fn a_refused_message_leaves_the_table_as_the_kernel_has_it() {
    let (device, calls) = open(Fake {
        backend_features: ALL,
        bad_message: Some(2),
        ..Fake::default()
    });
    let (a, b) = (
        mapping(0x1000, 0x1000, Permissions::Read),
        mapping(0x4000, 0x1000, Permissions::Read),
    );
    let mut table = IotlbTable::new();
    table.insert(a.clone()).unwrap();
    table.insert(b.clone()).unwrap();
    assert_eq!(device.set_map(1, &table).unwrap_err().errno(), libc::EFAULT);
    let end = message(true, 1, [0; 3], 0, 6);
    assert_eq!(taken(&calls).last(), Some(&end), "the batch was closed");
    device.set_map(1, &table).unwrap();
    let begin = message(true, 1, [0; 3], 0, 5);
    assert_eq!(
        taken(&calls),
        [begin, update(&b, 1), end],
        "only what was missing"
    );
}
