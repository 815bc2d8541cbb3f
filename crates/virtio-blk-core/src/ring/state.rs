// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a virtqueue lies and how far it was worked on, as plain data.

/// The largest queue size the specification allows, in descriptors.
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// What the addresses of a queue's structures are addresses of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum AddressKind {
    /// The memory that the driver names to the device: guest memory, or I/O virtual memory behind an IOMMU.
    #[default]
    Guest,
    /// The memory of this process.
    Host,
    /// A space that only the queue's owner knows, such as the window of shadow rings.
    Own,
}

/// The state of a virtqueue, of either layout, as it is handed over between owners: a device that stops and one
/// that starts, a snapshot, another process.
///
/// It may come from a hostile driver or snapshot. Everything is checked where it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct QueueState {
    /// The version of this structure: [`QueueState::VERSION`] for what is said here.
    pub version: u16,
    /// The largest size that the device offers, in descriptors; 0 where the device itself knows it.
    pub max_size: u16,
    /// Size in descriptors.
    pub size: u16,
    /// Enabled by the driver.
    pub ready: bool,
    /// What the three addresses are addresses of.
    pub addresses: AddressKind,
    /// Address of the descriptor table (packed: the descriptor ring).
    pub desc_table: u64,
    /// Address of the available ring (packed: the driver event suppression structure).
    pub avail_ring: u64,
    /// Address of the used ring (packed: the device event suppression structure).
    pub used_ring: u64,
    /// The next available entry to take (packed: its place in the descriptor ring).
    pub next_avail: u16,
    /// The next used entry to fill (packed: its place in the descriptor ring).
    pub next_used: u16,
    /// The driver's ring wrap counter at `next_avail`. Without a meaning, and true, in a split ring.
    pub avail_wrap: bool,
    /// The device's ring wrap counter at `next_used`. Without a meaning, and true, in a split ring.
    pub used_wrap: bool,
}

impl QueueState {
    /// The version this code writes; it reads all up to this one.
    pub const VERSION: u16 = 1;

    /// The state as `virtio-queue` has it, of a split ring in guest memory, whose driver uses EVENT_IDX or not.
    /// `None` for what it can't express: other addresses, a newer version.
    pub fn to_virtio_queue(&self, event_idx: bool) -> Option<virtio_queue::QueueState> {
        if self.addresses != AddressKind::Guest || self.version > Self::VERSION {
            return None;
        }
        Some(virtio_queue::QueueState {
            max_size: self.max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        })
    }
}

impl Default for QueueState {
    /// A queue that the driver has not set up.
    fn default() -> Self {
        Self {
            version: Self::VERSION,
            max_size: 0,
            size: 0,
            ready: false,
            addresses: AddressKind::Guest,
            desc_table: 0,
            avail_ring: 0,
            used_ring: 0,
            next_avail: 0,
            next_used: 0,
            avail_wrap: true,
            used_wrap: true,
        }
    }
}

impl From<&Self> for QueueState {
    fn from(state: &Self) -> Self {
        *state
    }
}

/// A split ring in guest memory. That the driver uses EVENT_IDX is left out: the features say so.
impl From<virtio_queue::QueueState> for QueueState {
    fn from(state: virtio_queue::QueueState) -> Self {
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
            next_avail: state.next_avail,
            next_used: state.next_used,
            ..Self::default()
        }
    }
}

impl From<&virtio_queue::QueueState> for QueueState {
    fn from(state: &virtio_queue::QueueState) -> Self {
        Self::from(*state)
    }
}

/// Whether `heads` are different heads of a queue of `size`.
pub(crate) fn are_distinct(heads: &[u16], size: u16) -> bool {
    let mut heads = heads.to_vec();
    heads.sort_unstable();
    heads.is_sorted_by(|a, b| a < b) && heads.last().is_none_or(|&head| head < size)
}
