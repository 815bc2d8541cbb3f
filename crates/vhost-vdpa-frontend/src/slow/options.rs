// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the slow path is made.

use std::time::Duration;

use vdpa_bus::VdpaDevice;

use super::limits::Limits;
use super::shadow_queue::ShadowLayout;
use crate::PathError;

/// How a queue learns of finished requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompletionMode {
    /// An eventfd is readable.
    #[default]
    Event,
    /// Its owner polls; the device is asked for no interrupts.
    Poll,
}

/// How the slow path is made. All sizes are bounds: less is used where the device has less.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowOptions {
    /// Queues.
    pub queues: u16,
    /// Entries of each ring.
    pub queue_size: u16,
    /// How finished requests are noticed.
    pub completion_mode: CompletionMode,
    /// Bounce buffers of each queue.
    pub bounces: u16,
    /// Bytes of a bounce buffer: a multiple of 4096, and at least a block.
    pub bounce_len: u32,
    /// First I/O address of the shadow window. `None`: one above 64 TiB where the device allows that, else as high as
    /// it allows.
    pub window: Option<u64>,
    /// Give a device up that finishes nothing for so long. `None`: only one that says itself that it is broken.
    pub timeout: Option<Duration>,
}

impl Default for SlowOptions {
    /// All queues, 256 entries, an eventfd, 16 bounce buffers of 128 KiB, no timeout.
    fn default() -> Self {
        Self {
            queues: u16::MAX,
            queue_size: 256,
            completion_mode: CompletionMode::Event,
            bounces: 16,
            bounce_len: 128 << 10,
            window: None,
            timeout: None,
        }
    }
}

/// The smallest ring that holds a request of one segment without indirect tables.
const MIN_SIZE: u16 = 4;
/// Where the window lies by default.
const WINDOW: u64 = 1 << 46;
/// The window's alignment.
const ALIGN: u64 = 1 << 21;

impl SlowOptions {
    pub(super) fn shape(
        &self,
        device: &dyn VdpaDevice,
        queues: u16,
        limits: &Limits,
    ) -> Result<ShadowLayout, PathError> {
        let mut size = self.queue_size.min(device.get_vq_num_max());
        for vq in 0..queues {
            if let Ok(max) = device.get_vq_size(vq) {
                size = size.min(max);
            }
        }
        let size = 1u16
            .checked_shl(size.checked_ilog2().unwrap_or(0))
            .unwrap_or(0);
        if size < MIN_SIZE || size < device.get_vq_num_min() {
            return Err(PathError::Queue {
                index: 0,
                why: format!("a ring of {size} entries is too small"),
            });
        }
        // As many as fit the ring without an indirect table, which the guest may decline.
        let direct = limits.segments.min(usize::from(size) - 2);
        if u64::from(limits.segment).saturating_mul(direct as u64) < u64::from(limits.block) {
            return Err(PathError::Config(format!(
                "a ring of {size} entries holds {direct} segments of {} bytes, and no block of {}: give it more \
                 entries, if the device takes them",
                limits.segment, limits.block
            )));
        }
        if self.bounces == 0
            || self.bounce_len < limits.block
            || !self.bounce_len.is_multiple_of(4096)
        {
            return Err(PathError::Config(format!(
                "{} bounce buffers of {} bytes for blocks of {}: give at least one, of a multiple of 4096 \
                 bytes and at least a block",
                self.bounces, self.bounce_len, limits.block
            )));
        }
        Ok(ShadowLayout {
            size,
            segments: limits.segments,
            bounces: self.bounces,
            bounce_len: self.bounce_len,
        })
    }

    /// Where the window of `len` bytes lies.
    pub(super) fn window_at(&self, device: &dyn VdpaDevice, len: u64) -> Result<u64, PathError> {
        let range = device.get_iova_range();
        let fits = |at: u64| {
            at >= *range.start()
                && at
                    .checked_add(len - 1)
                    .is_some_and(|last| last <= *range.end())
        };
        let refuse = |at, why| Err(PathError::Window { at, len, why });
        match self.window {
            Some(at) if !at.is_multiple_of(4096) => refuse(at, "it is not aligned to 4096"),
            Some(at) if !fits(at) => refuse(at, "the device can't be given those addresses"),
            Some(at) => Ok(at),
            None if fits(WINDOW) => Ok(WINDOW),
            None => {
                let at = range.end().saturating_sub(len - 1) & !(ALIGN - 1);
                if fits(at) {
                    Ok(at)
                } else {
                    refuse(at, "the device has too few addresses")
                }
            }
        }
    }
}
