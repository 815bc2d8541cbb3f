// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device that does what the input says, and its driver's rings as it sees them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vdpa_bus::{Callback, VdpaDevice, VdpaError, VqAddress, VqState};
use virtio_blk_core::memory::IotlbTable;
use virtio_blk_core::spec::config::Config;
use virtio_blk_core::spec::{config, feature};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::Shape;

/// Queues, of which one is used.
const QUEUES: u16 = 2;
/// The largest chain that the device follows.
const LONGEST: usize = 1024;

/// A part of a chain: where, bytes, whether the device may write there.
pub type Piece = (u64, u32, bool);

#[derive(Default)]
struct Vq {
    num: u32,
    address: VqAddress,
    callback: Option<Callback>,
    ready: bool,
    /// Where the device stands.
    avail: u16,
    used: u16,
}

struct State {
    features: u64,
    config: Vec<u8>,
    status: u8,
    vqs: Vec<Vq>,
    table: IotlbTable,
    config_callback: Option<Callback>,
    /// Calls until one fails.
    failing: Option<u8>,
    /// It did nothing that a device must not.
    behaves: bool,
    /// What each block reads as, once it was written.
    content: HashMap<u64, u8>,
}

/// The device.
pub struct Hostile(Mutex<State>);

/// The byte that a block holds that was never written.
pub const fn fresh(block: u64) -> u8 {
    block as u8 ^ 0x5a
}

impl Hostile {
    pub fn new(shape: &Shape) -> Self {
        let mut config = Config {
            capacity: u64::from(shape.blocks),
            size_max: shape.size_max.into(),
            seg_max: shape.seg_max.into(),
            blk_size: 512,
            num_queues: QUEUES,
            max_discard_sectors: 64,
            max_discard_seg: 1,
            discard_sector_alignment: 1,
            max_write_zeroes_sectors: 16,
            max_write_zeroes_seg: 1,
            max_secure_erase_sectors: 64,
            max_secure_erase_seg: 1,
            secure_erase_sector_alignment: 1,
            ..Config::default()
        }
        .to_bytes()
        .to_vec();
        if shape.value != 0 {
            put(&mut config, shape.field, shape.value);
        }
        let mut features = feature::VERSION_1
            | feature::ACCESS_PLATFORM
            | feature::RING_EVENT_IDX
            | feature::RING_INDIRECT_DESC
            | 0x00ff_ffff;
        features &= !u64::from(shape.without & 0x00ff_ffff);
        for (off, bit) in [
            (shape.no_event_idx, feature::RING_EVENT_IDX),
            (shape.no_indirect, feature::RING_INDIRECT_DESC),
        ] {
            if off {
                features &= !bit;
            }
        }
        Self(Mutex::new(State {
            features,
            config,
            status: 0,
            vqs: (0..QUEUES).map(|_| Vq::default()).collect(),
            table: IotlbTable::new(),
            config_callback: None,
            failing: shape.failing.checked_sub(1),
            behaves: true,
            content: HashMap::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call of the driver's.
    fn call(&self) -> Result<MutexGuard<'_, State>, VdpaError> {
        let mut state = self.state();
        state.failing = match state.failing {
            Some(0) => {
                state.failing = None;
                return Err(VdpaError::Failed("it fails".into()));
            }
            other => other.map(|left| left - 1),
        };
        Ok(state)
    }

    /// Whether it did nothing that a device must not.
    pub fn behaves(&self) -> bool {
        self.state().behaves
    }

    /// Lets a call of the driver's fail, after so many others.
    pub fn fail(&self, after: u8) {
        self.state().failing = Some(after);
    }

    /// Every call succeeds again, and the device says that it needs a reset.
    pub fn give_in(&self) {
        let mut state = self.state();
        state.failing = None;
        state.status |= 64;
    }

    pub fn set_status_byte(&self, byte: u8) {
        let mut state = self.state();
        state.behaves &= byte == state.status;
        state.status = byte;
    }

    pub fn set_config_word(&self, at: u8, value: u32) {
        let mut state = self.state();
        // A capacity that changes is no fault, but the model does not follow it.
        state.behaves = false;
        put(&mut state.config, at, value);
    }

    /// Notifies the driver, of its queue and its configuration.
    pub fn interrupt(&self) {
        let (queue, config) = {
            let state = self.state();
            let queue = state.vqs.first().and_then(|vq| vq.callback.clone());
            (queue, state.config_callback.clone())
        };
        queue
            .into_iter()
            .chain(config)
            .for_each(|call| call.notify());
    }

    /// Writes to the window. The driver has nothing else mapped so high.
    pub fn scribble(&self, at: u16, value: u64) {
        let mut state = self.state();
        state.behaves = false;
        let window = state.table.mappings().last().map(|mapping| mapping.iova());
        if let Some(window) = window {
            let at = GuestAddress(window + 8 * u64::from(at));
            let _ = state.table.write_obj(value, at);
        }
    }

    /// Says that the used ring stands somewhere else.
    pub fn jump(&self, by: i16) {
        let mut state = self.state();
        state.behaves &= by == 0;
        let State { vqs, table, .. } = &mut *state;
        if let Some(vq) = vqs.first_mut() {
            vq.used = vq.used.wrapping_add_signed(by);
            let _ = table.write_obj(vq.used, GuestAddress(vq.address.device.wrapping_add(2)));
        }
    }

    /// Returns a head that was taken, or not.
    pub fn use_head(&self, head: u16, len: u32) {
        let mut state = self.state();
        state.behaves = false;
        state.push_used(head, len);
    }

    /// Carries out the next request as a device does, with `status` where that isn't 0. Returns its parts, `None` if there is
    /// none, or it can't be read.
    pub fn serve(&self, status: u8) -> Option<Vec<Piece>> {
        let mut state = self.state();
        if !state.vqs.first()?.ready || state.status & 4 == 0 {
            return None;
        }
        let head = state.next_head()?;
        let chain = state.chain(head)?;
        let len = state.carry_out(&chain, status);
        state.push_used(head, len);
        Some(chain)
    }
}

fn put(config: &mut [u8], at: u8, value: u32) {
    let at = usize::from(at) * 4 % config::SIZE;
    config[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

impl State {
    fn next_head(&mut self) -> Option<u16> {
        let vq = self.vqs.first_mut()?;
        let avail = vq.address.driver;
        let index: u16 = self.table.read_obj(GuestAddress(avail + 2)).ok()?;
        if index == vq.avail || vq.num == 0 {
            return None;
        }
        let at = avail + 4 + 2 * u64::from(u32::from(vq.avail) % vq.num);
        vq.avail = vq.avail.wrapping_add(1);
        self.table.read_obj(GuestAddress(at)).ok()
    }

    /// The parts of a chain. Every one of a driver that behaves is mapped.
    fn chain(&self, head: u16) -> Option<Vec<Piece>> {
        let table = self.vqs.first()?.address.desc;
        let mut pieces = Vec::new();
        let (mut base, mut index) = (table, u64::from(head));
        while pieces.len() < LONGEST {
            let mut bytes = [0; 16];
            let at = GuestAddress(base.checked_add(16 * index)?);
            self.table.read_slice(&mut bytes, at).ok()?;
            let (addr, rest) = bytes.split_first_chunk::<8>()?;
            let (len, rest) = rest.split_first_chunk::<4>()?;
            let (flags, next) = rest.split_first_chunk::<2>()?;
            let flags = u16::from_le_bytes(*flags);
            let addr = u64::from_le_bytes(*addr);
            if flags & 4 != 0 {
                (base, index) = (addr, 0);
                continue;
            }
            pieces.push((addr, u32::from_le_bytes(*len), flags & 2 != 0));
            if flags & 1 == 0 {
                return Some(pieces);
            }
            index = u64::from(u16::from_le_bytes(next.try_into().ok()?));
        }
        None
    }

    /// Does what a request asks for. Returns the bytes written.
    fn carry_out(&mut self, chain: &[Piece], status: u8) -> u32 {
        let table = self.table.clone();
        let mut header = [0; 16];
        if let Some((at, 16, false)) = chain.first() {
            let _ = table.read_slice(&mut header, GuestAddress(*at));
        }
        let kind = header[0];
        let sector = header.last_chunk::<8>();
        let mut block = sector.map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let Some(((status_at, _, true), data)) = chain.split_last() else {
            return 0;
        };
        let mut written = 1;
        // Bytes of `block` that were passed over.
        let mut within = 0;
        for (at, len, writable) in data.iter().skip(1) {
            let mut bytes = vec![0; (*len).min(1 << 20) as usize];
            let at = GuestAddress(*at);
            if !writable {
                let _ = table.read_slice(&mut bytes, at);
            }
            for byte in &mut bytes {
                match (kind, status) {
                    (0, 0) => *byte = *self.content.get(&block).unwrap_or(&fresh(block)),
                    (1, 0) => {
                        self.content.insert(block, *byte);
                    }
                    _ => {}
                }
                within += 1;
                if within == 512 {
                    (block, within) = (block.wrapping_add(1), 0);
                }
            }
            if *writable && kind == 0 {
                let _ = table.write_slice(&bytes, at);
                written += *len;
            }
        }
        let _ = table.write_obj(status, GuestAddress(*status_at));
        written
    }

    fn push_used(&mut self, head: u16, len: u32) {
        let Some(vq) = self.vqs.first_mut() else {
            return;
        };
        if vq.num == 0 {
            return;
        }
        let ring = vq.address.device;
        let entry = ring.wrapping_add(4 + 8 * u64::from(u32::from(vq.used) % vq.num));
        let element = u64::from(head) | u64::from(len) << 32;
        vq.used = vq.used.wrapping_add(1);
        let _ = self.table.write_obj(element, GuestAddress(entry));
        let _ = self
            .table
            .write_obj(vq.used, GuestAddress(ring.wrapping_add(2)));
    }
}

impl VdpaDevice for Hostile {
    fn nvqs(&self) -> u16 {
        QUEUES
    }

    fn ngroups(&self) -> u32 {
        1
    }

    fn nas(&self) -> u32 {
        1
    }

    fn set_vq_address(&self, vq: u16, address: VqAddress) -> Result<(), VdpaError> {
        let mut state = self.call()?;
        if let Some(vq) = state.vqs.get_mut(usize::from(vq)) {
            vq.address = address;
        }
        Ok(())
    }

    fn set_vq_num(&self, vq: u16, num: u32) -> Result<(), VdpaError> {
        let mut state = self.call()?;
        if let Some(vq) = state.vqs.get_mut(usize::from(vq)) {
            vq.num = num;
        }
        Ok(())
    }

    fn kick_vq(&self, _: u16) {}

    fn set_vq_kick(&self, _: u16, _: Option<Arc<EventFd>>) -> Result<(), VdpaError> {
        self.call().map(drop)
    }

    fn set_vq_cb(&self, vq: u16, callback: Option<Callback>) -> Result<(), VdpaError> {
        let mut state = self.call()?;
        if let Some(vq) = state.vqs.get_mut(usize::from(vq)) {
            vq.callback = callback;
        }
        Ok(())
    }

    fn set_vq_ready(&self, vq: u16, ready: bool) -> Result<(), VdpaError> {
        let mut state = self.call()?;
        if let Some(vq) = state.vqs.get_mut(usize::from(vq)) {
            vq.ready = ready;
        }
        Ok(())
    }

    fn get_vq_ready(&self, vq: u16) -> bool {
        let state = self.state();
        state.vqs.get(usize::from(vq)).is_some_and(|vq| vq.ready)
    }

    fn set_vq_state(&self, vq: u16, state: VqState) -> Result<(), VdpaError> {
        let mut this = self.call()?;
        if let (Some(vq), VqState::Split { avail_index }) =
            (this.vqs.get_mut(usize::from(vq)), state)
        {
            (vq.avail, vq.used) = (avail_index, avail_index);
        }
        Ok(())
    }

    fn get_vq_state(&self, _: u16) -> Result<VqState, VdpaError> {
        Err(VdpaError::NotSupported("it does not tell"))
    }

    fn get_vq_align(&self) -> u32 {
        4096
    }

    fn get_vq_num_max(&self) -> u16 {
        1024
    }

    fn get_device_features(&self) -> u64 {
        self.state().features
    }

    fn set_driver_features(&self, _: u64) -> Result<(), VdpaError> {
        self.call().map(drop)
    }

    fn get_driver_features(&self) -> u64 {
        self.state().features
    }

    fn set_config_cb(&self, callback: Option<Callback>) -> Result<(), VdpaError> {
        self.call()?.config_callback = callback;
        Ok(())
    }

    fn get_device_id(&self) -> u32 {
        2
    }

    fn get_vendor_id(&self) -> u32 {
        0
    }

    fn get_status(&self) -> u8 {
        self.state().status
    }

    fn set_status(&self, status: u8) -> Result<(), VdpaError> {
        if status == 0 {
            return self.reset();
        }
        self.call()?.status = status;
        Ok(())
    }

    fn reset(&self) -> Result<(), VdpaError> {
        let mut state = self.call()?;
        state.status = 0;
        state.config_callback = None;
        state.vqs.fill_with(Vq::default);
        Ok(())
    }

    fn get_config_size(&self) -> usize {
        config::SIZE
    }

    fn get_config(&self, offset: usize, buf: &mut [u8]) -> Result<(), VdpaError> {
        let state = self.call()?;
        let end = offset.checked_add(buf.len());
        let found = end.and_then(|end| state.config.get(offset..end));
        buf.copy_from_slice(found.ok_or(VdpaError::NotSupported("there is nothing"))?);
        Ok(())
    }

    fn set_config(&self, _: usize, _: &[u8]) -> Result<(), VdpaError> {
        Err(VdpaError::NotSupported("it has nothing to write"))
    }

    fn set_map(&self, _: u32, table: &IotlbTable) -> Result<(), VdpaError> {
        self.call()?.table = table.clone();
        Ok(())
    }

    fn free(&self) {
        let mut state = self.state();
        state.vqs.fill_with(Vq::default);
        state.table = IotlbTable::new();
        state.config_callback = None;
        state.status = 0;
    }
}
