// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table of operations.

use std::ops::RangeInclusive;
use std::sync::Arc;

use virtio_blk_core::memory::KeepAlive;
use virtio_blk_core::memory::{IotlbMapping, IotlbTable};
use vmm_sys_util::eventfd::EventFd;

use crate::{Callback, VdpaError, VqAddress, VqState};

/// A vDPA device: a virtio data path that a driver stack sets up and controls. The user-space counterpart of the
/// kernel's `struct vdpa_config_ops` (`include/linux/vdpa.h`), under the same names.
///
/// **Order.** [`reset`](Self::reset); status ACKNOWLEDGE, DRIVER; features, FEATURES_OK, and reading the status
/// back; maps; for each queue size, state, addresses, callback; ready; DRIVER_OK; one kick for each queue,
/// as those from before DRIVER_OK may be lost. After DRIVER_OK the status is read back as well: a parent may have
/// failed to start. All methods may be called from any thread at any time: a call that makes no sense at that moment
/// returns an error or has the effect that its description gives, and the device stays usable.
///
/// **Cost.** [`kick_vq`](Self::kick_vq) and the callbacks are for data paths: they take no lock for
/// longer than a pointer's exchange and never wait for I/O. The others may wait until requests in
/// flight have ended.
///
/// **Queues** are counted from 0. An operation on one that does not exist is an [`VdpaError::Invalid`].
pub trait VdpaDevice: Send + Sync {
    /// Virtqueues it has (`vdpa_device.nvqs`).
    fn nvqs(&self) -> u16;

    /// Virtqueue groups it has (`vdpa_device.ngroups`).
    fn ngroups(&self) -> u32;

    /// Address spaces it has (`vdpa_device.nas`).
    fn nas(&self) -> u32;

    /// Whether its maps name virtual addresses of the bound process and not memory that is pinned
    /// (`vdpa_device.use_va`).
    fn use_va(&self) -> bool {
        false
    }

    // Virtqueues

    /// Sets where queue `vq` lies. Takes effect when the queue becomes ready.
    ///
    /// # Errors
    /// No such queue; or the device checks addresses and these are misaligned.
    fn set_vq_address(&self, vq: u16, address: VqAddress) -> Result<(), VdpaError>;

    /// Sets the number of descriptors of queue `vq`. Takes effect when the queue becomes ready.
    ///
    /// # Errors
    /// No such queue; or the device checks sizes and this one is too large or no power of two.
    fn set_vq_num(&self, vq: u16, num: u32) -> Result<(), VdpaError>;

    /// Notifies the device that queue `vq` has new buffers. Never blocks; an unknown queue is ignored.
    fn kick_vq(&self, vq: u16);

    /// Has the device listen to an eventfd for kicks of queue `vq` in addition to
    /// [`kick_vq`](Self::kick_vq), or no longer (`None`). What vhost does with `VHOST_SET_VRING_KICK`: the
    /// counter is never read, so a kick that came while nothing listened counts at once when the
    /// eventfd is given again. When it returns, the eventfd it had before is no longer used.
    ///
    /// # Errors
    /// No such queue; the system has no room to wait for one more.
    fn set_vq_kick(&self, vq: u16, kick: Option<Arc<EventFd>>) -> Result<(), VdpaError>;

    /// Sets what happens when queue `vq` has used buffers that the driver wants to be notified of. When it
    /// returns, the callback it had before is not called any more. A reset clears it.
    ///
    /// # Errors
    /// No such queue; a kernel device was given [`Callback::Call`].
    fn set_vq_cb(&self, vq: u16, callback: Option<Callback>) -> Result<(), VdpaError>;

    /// Starts queue `vq` or stops it. Not a way to quiesce it: requests in flight may continue; use
    /// [`suspend`](Self::suspend).
    ///
    /// # Errors
    /// No such queue. A ring that can't be used makes a queue that does nothing, as in the kernel, where
    /// the device does not say otherwise.
    fn set_vq_ready(&self, vq: u16, ready: bool) -> Result<(), VdpaError>;

    /// Whether queue `vq` was started; false for an unknown one.
    fn get_vq_ready(&self, vq: u16) -> bool;

    /// Sets where queue `vq` continues. Before it becomes ready.
    ///
    /// # Errors
    /// No such queue; a state of another kind of ring than was negotiated; or the device can't start in the middle of
    /// a ring.
    fn set_vq_state(&self, vq: u16, state: VqState) -> Result<(), VdpaError>;

    /// Returns the position of queue `vq`. Exact while it is suspended or was never kicked, otherwise a snapshot.
    ///
    /// # Errors
    /// No such queue; the device can't tell.
    fn get_vq_state(&self, vq: u16) -> Result<VqState, VdpaError>;

    /// Statistics of queue `vq`, by name.
    ///
    /// # Errors
    /// No such queue; the device keeps none.
    fn get_vendor_vq_stats(&self, vq: u16) -> Result<Vec<(String, u64)>, VdpaError> {
        let _ = vq;
        Err(VdpaError::NotSupported("it keeps no statistics"))
    }

    /// Alignment of queues, in bytes: a power of two.
    fn get_vq_align(&self) -> u32;

    /// The group of queue `vq`: queues of a group share an address space.
    ///
    /// # Errors
    /// No such queue.
    fn get_vq_group(&self, vq: u16) -> Result<u32, VdpaError> {
        self.check_vq(vq)?;
        Ok(0)
    }

    /// The group of the descriptor table of queue `vq`, where that differs from the buffers'.
    ///
    /// # Errors
    /// No such queue; the device has no such groups.
    fn get_vq_desc_group(&self, vq: u16) -> Result<u32, VdpaError> {
        let _ = vq;
        Err(VdpaError::NotSupported("it has no groups for descriptors"))
    }

    /// The size of queue `vq`: the largest allowed before DRIVER_OK, the one in use after it.
    ///
    /// # Errors
    /// No such queue; the device only has [`get_vq_num_max`](Self::get_vq_num_max).
    fn get_vq_size(&self, vq: u16) -> Result<u16, VdpaError> {
        let _ = vq;
        Err(VdpaError::NotSupported("it has one size for all queues"))
    }

    /// The largest size of any queue, in descriptors.
    fn get_vq_num_max(&self) -> u16;

    /// The smallest size of a queue, in descriptors.
    fn get_vq_num_min(&self) -> u16 {
        1
    }

    // The device

    /// Feature bits it offers.
    fn get_device_features(&self) -> u64;

    /// What it can do beyond virtio: [`crate::backend_feature`].
    fn get_backend_features(&self) -> u64 {
        0
    }

    /// Sets the bits that the driver acknowledges. Before FEATURES_OK.
    ///
    /// # Errors
    /// The device refuses them; [`VdpaError::Busy`] after FEATURES_OK.
    fn set_driver_features(&self, features: u64) -> Result<(), VdpaError>;

    /// The bits that the driver acknowledged and the device took.
    fn get_driver_features(&self) -> u64;

    /// Sets what happens when the configuration space changes.
    ///
    /// # Errors
    /// A kernel device was given [`Callback::Call`].
    fn set_config_cb(&self, callback: Option<Callback>) -> Result<(), VdpaError>;

    /// The virtio device number: 2 for a block device.
    fn get_device_id(&self) -> u32;

    /// The vendor's number.
    fn get_vendor_id(&self) -> u32;

    /// The status byte (virtio 1.4, 2.1). Read it after setting FEATURES_OK: the device may not have
    /// taken it.
    fn get_status(&self) -> u8;

    /// Writes the status byte. 0 resets, as [`reset`](Self::reset).
    ///
    /// # Errors
    /// A bit other than all of them was cleared; the device failed.
    fn set_status(&self, status: u8) -> Result<(), VdpaError>;

    /// Resets the device to its initial state: nothing negotiated, no queue ready, no callbacks. When it
    /// returns, nothing is in flight and no memory of the driver's is touched. Maps stay, see
    /// [`compat_reset`](Self::compat_reset); kick eventfds stay.
    ///
    /// # Errors
    /// The device failed.
    fn reset(&self) -> Result<(), VdpaError>;

    /// As [`reset`](Self::reset), and forgets all maps where `clean_map`
    /// (`VDPA_RESET_F_CLEAN_MAP`; for drivers that don't know [`crate::backend_feature::IOTLB_PERSIST`]).
    ///
    /// # Errors
    /// The device failed.
    fn compat_reset(&self, clean_map: bool) -> Result<(), VdpaError> {
        let _ = clean_map;
        self.reset()
    }

    /// Stops all queues after their requests in flight have ended; their states can be read then. Kicks
    /// that come meanwhile are remembered. Before DRIVER_OK nothing happens.
    ///
    /// # Errors
    /// The device can't: [`crate::backend_feature::SUSPEND`] says so.
    fn suspend(&self) -> Result<(), VdpaError> {
        Err(VdpaError::NotSupported("it can't be suspended"))
    }

    /// Ends a [`suspend`](Self::suspend).
    ///
    /// # Errors
    /// The device can't: [`crate::backend_feature::RESUME`] says so.
    fn resume(&self) -> Result<(), VdpaError> {
        Err(VdpaError::NotSupported("it can't be resumed"))
    }

    /// Bytes of the configuration space.
    fn get_config_size(&self) -> usize;

    /// Reads the configuration space from `offset` on, little-endian.
    ///
    /// # Errors
    /// The range is empty or does not lie inside.
    fn get_config(&self, offset: usize, buf: &mut [u8]) -> Result<(), VdpaError>;

    /// Writes the configuration space from `offset` on.
    ///
    /// # Errors
    /// The range does not lie inside, or is not the driver's to write.
    fn set_config(&self, offset: usize, buf: &[u8]) -> Result<(), VdpaError>;

    /// Counts changes of the configuration space: the same before and after a read, and the read was not
    /// torn.
    fn get_generation(&self) -> u32 {
        0
    }

    // Memory

    /// I/O virtual addresses that can be mapped.
    fn get_iova_range(&self) -> RangeInclusive<u64> {
        0..=u64::MAX
    }

    /// Gives the queues of `group` the address space `asid`.
    ///
    /// # Errors
    /// There is no such group or address space; [`VdpaError::Busy`] where it can't change any more.
    fn set_group_asid(&self, group: u32, asid: u32) -> Result<(), VdpaError> {
        let _ = (group, asid);
        Err(VdpaError::NotSupported("it has one address space"))
    }

    /// Makes `table` the map of address space `asid`. When it returns, no request uses a mapping that is
    /// gone.
    ///
    /// # Errors
    /// No such address space; the table does not fit the device; the device has
    /// [`dma_map`](Self::dma_map) instead.
    fn set_map(&self, asid: u32, table: &IotlbTable) -> Result<(), VdpaError> {
        let _ = (asid, table);
        Err(VdpaError::NotSupported("it takes single mappings"))
    }

    /// Adds a mapping to address space `asid`.
    ///
    /// # Errors
    /// No such address space; an overlap; no room; the device has [`set_map`](Self::set_map) instead.
    fn dma_map(&self, asid: u32, mapping: IotlbMapping) -> Result<(), VdpaError> {
        let _ = (asid, mapping);
        Err(VdpaError::NotSupported("it takes whole maps"))
    }

    /// Removes every mapping of address space `asid` that has an address in `iova..iova + size`, whole.
    /// When it returns, no request uses one of them.
    ///
    /// # Errors
    /// No such address space; an empty range; the device has [`set_map`](Self::set_map) instead.
    fn dma_unmap(&self, asid: u32, iova: u64, size: u64) -> Result<(), VdpaError> {
        let _ = (asid, iova, size);
        Err(VdpaError::NotSupported("it takes whole maps"))
    }

    /// Gives address space `asid` the map it had when the device was made.
    ///
    /// # Errors
    /// No such address space; the device has no such map.
    fn reset_map(&self, asid: u32) -> Result<(), VdpaError> {
        let _ = asid;
        Err(VdpaError::NotSupported("it has no map of its own"))
    }

    /// Binds the device to a process's address space, which lives at least until
    /// [`unbind_mm`](Self::unbind_mm) (where [`use_va`](Self::use_va)).
    ///
    /// # Errors
    /// The device does not use virtual addresses.
    fn bind_mm(&self, mm: Arc<dyn KeepAlive>) -> Result<(), VdpaError> {
        let _ = mm;
        Err(VdpaError::NotSupported("it uses no virtual addresses"))
    }

    /// Ends the binding of [`bind_mm`](Self::bind_mm). When it returns, the device does not touch that
    /// address space any more.
    fn unbind_mm(&self) {}

    /// Ends the device's life: nothing is in flight, no memory is mapped, no callback is called any
    /// more when it returns. Each operation then fails with [`VdpaError::Gone`], or returns 0.
    fn free(&self);

    /// Whether there is a queue `vq`.
    ///
    /// # Errors
    /// There is none.
    fn check_vq(&self, vq: u16) -> Result<(), VdpaError> {
        let nvqs = self.nvqs();
        if vq < nvqs {
            return Ok(());
        }
        Err(VdpaError::Invalid(format!(
            "queue {vq} of a device with {nvqs}"
        )))
    }
}
