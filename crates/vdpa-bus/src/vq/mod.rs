// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The addresses and the state of a virtqueue.

/// Where the three parts of a virtqueue lie: I/O virtual addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VqAddress {
    /// Descriptor table (split), descriptor ring (packed). 16-aligned.
    pub desc: u64,
    /// Available ring, 2-aligned (split); driver event suppression, 4-aligned (packed).
    pub driver: u64,
    /// Used ring, 4-aligned (split); device event suppression, 4-aligned (packed).
    pub device: u64,
}

/// Where a device stands in a virtqueue (`struct vdpa_vq_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VqState {
    /// A split ring.
    Split {
        /// The index in the available ring of the next buffer to take.
        avail_index: u16,
    },
    /// A packed ring.
    Packed {
        /// Wrap counter of the next buffer to take.
        last_avail_counter: bool,
        /// Position of the next buffer to take: 15 bits.
        last_avail_idx: u16,
        /// Wrap counter of the next buffer to return.
        last_used_counter: bool,
        /// Position of the next buffer to return: 15 bits.
        last_used_idx: u16,
    },
}

impl VqState {
    /// The value that vhost gives for it (`VHOST_GET_VRING_BASE`): the index; for a packed ring both
    /// positions with their counters in bit 15, the used one in the upper half.
    pub const fn vring_base(self) -> u32 {
        const fn half(counter: bool, index: u16) -> u32 {
            (index & 0x7fff) as u32 | (counter as u32) << 15
        }
        match self {
            Self::Split { avail_index } => avail_index as u32,
            Self::Packed {
                last_avail_counter,
                last_avail_idx,
                last_used_counter,
                last_used_idx,
            } => {
                half(last_avail_counter, last_avail_idx)
                    | half(last_used_counter, last_used_idx) << 16
            }
        }
    }

    /// Returns the state that vhost's value `base` stands for; `None` if it doesn't fit a split ring.
    pub fn from_vring_base(base: u32, packed: bool) -> Option<Self> {
        if !packed {
            return Some(Self::Split {
                avail_index: u16::try_from(base).ok()?,
            });
        }
        let half = |bits: u32| (bits & 0x8000 != 0, (bits & 0x7fff) as u16);
        let (last_avail_counter, last_avail_idx) = half(base);
        let (last_used_counter, last_used_idx) = half(base >> 16);
        Some(Self::Packed {
            last_avail_counter,
            last_avail_idx,
            last_used_counter,
            last_used_idx,
        })
    }
}

#[cfg(test)]
mod tests;
