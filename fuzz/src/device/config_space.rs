// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configuration space, as a driver reads and writes it, and a disk that changes its size.

use virtio_blk_core::device::Device;
use virtio_blk_core::spec::{config, feature};
use vm_memory::GuestMemory;

use super::World;
use super::model::MAX_SECTORS;
use super::spy::Stability;

impl<M: GuestMemory + Send + Sync + 'static> World<M> {
    pub(super) fn read_config(&mut self, offset: u64, width: usize) {
        let mut whole = [0; 256];
        self.device.read_config(0, &mut whole);
        let rules = &self.model.rules;
        assert_eq!(whole[..8], rules.capacity.to_le_bytes());
        if self.device.offered() & feature::BLK_SIZE != 0 {
            assert_eq!(whole[20..24], (rules.block as u32).to_le_bytes());
        }
        if self.device.offered() & feature::CONFIG_WCE != 0 {
            assert_eq!(whole[config::WRITEBACK_OFFSET], u8::from(self.writeback));
        }
        let mut part = vec![0xaa; width];
        self.device.read_config(offset, &mut part);
        for (index, byte) in (offset.into()..).zip(&part) {
            let index: u128 = index;
            let known = usize::try_from(index).ok().and_then(|i| whole.get(i));
            assert_eq!(byte, known.unwrap_or(&0), "byte {index}");
        }
    }

    pub(super) fn write_config(&mut self, offset: u64, bytes: &[u8]) {
        let snapshot = |device: &Device| {
            let mut bytes = [0; config::SIZE];
            device.read_config(0, &mut bytes);
            bytes
        };
        let mut wanted = snapshot(&self.device);
        let writable = self.model.rules.features & feature::CONFIG_WCE != 0
            && offset == config::WRITEBACK_OFFSET as u64
            && matches!(bytes, [0 | 1] | [0 | 1, 0]);
        let result = self.device.write_config(offset, bytes);
        assert_eq!(result.is_ok(), writable, "{offset} {bytes:?}: {result:?}");
        if writable {
            wanted[config::WRITEBACK_OFFSET] = bytes[0];
            if self.writeback != (bytes[0] == 1) {
                self.writeback = bytes[0] == 1;
                self.spy.expect(Stability::Any);
            }
        }
        assert_eq!(snapshot(&self.device), wanted);
    }

    pub(super) fn resize(&mut self, sectors: u64) {
        let per_block = self.model.rules.block / 512;
        let sectors = (sectors / per_block * per_block).min(MAX_SECTORS);
        let generation = self.device.config_generation();
        let changed = sectors != self.model.rules.capacity;
        self.spy.disk.resize(sectors).unwrap();
        assert_eq!(self.device.config_generation() != generation, changed);
        let open = self.open.values_mut().collect();
        self.model.resize(sectors, open);
    }
}
