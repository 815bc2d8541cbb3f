// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads and writes of one segment that the device knows: they need no operation, and no more than a token is kept.

use virtio_blk_core::disk::{Completion, DiskError, IoBuf, OpKind, SECTOR_SIZE, Token};
use virtio_blk_core::memory::Permissions;
use virtio_blk_driver::Segment;
use vm_memory::GuestAddress;

use super::SlowQueue;
use crate::slow::pending::MAX_SUB_REQUEST;
use crate::slow::shadow_queue::OneSegment;

/// A request that was taken without its buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) token: Token,
    /// The generation its data was translated with. The memory stays mapped, here and in the device, until nothing of that
    /// generation is in flight.
    pub(super) generation: u64,
}

impl Taken {
    /// The end of the request.
    #[inline]
    pub(super) fn complete(self, result: Result<(), DiskError>) -> Completion {
        Completion {
            token: self.token,
            result,
            buf: IoBuf::new(),
        }
    }
}

/// The requests that were taken, by head.
pub(super) struct TakenRequests {
    by_head: Vec<Option<Taken>>,
    count: usize,
}

impl TakenRequests {
    /// None, for a ring of `size` entries.
    pub(super) fn new(size: u16) -> Self {
        Self {
            by_head: vec![None; size.into()],
            count: 0,
        }
    }

    /// How many there are.
    #[inline]
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    #[inline]
    fn insert(&mut self, head: u16, taken: Taken) {
        if let Some(place) = self.by_head.get_mut(usize::from(head)) {
            *place = Some(taken);
            self.count += 1;
        }
    }

    /// Takes out the request of `head`. `None`: there is none, and the chain is an operation's.
    #[inline]
    pub(super) fn remove(&mut self, head: u16) -> Option<Taken> {
        let taken = self.by_head.get_mut(usize::from(head))?.take()?;
        self.count -= 1;
        Some(taken)
    }

    /// Takes out all.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Taken> {
        self.count = 0;
        self.by_head.iter_mut().filter_map(Option::take)
    }
}

impl SlowQueue {
    /// Gives a read or write of one segment to the device. `None`: it is none, needs more than one request or a copy, or
    /// there is no room: it must be submitted, and [`SlowQueue::check`] says what may be wrong with it.
    #[inline]
    pub(super) fn take(&mut self, kind: &OpKind, buf: &IoBuf, token: Token) -> Option<()> {
        let (is_read, offset) = match *kind {
            OpKind::Read { offset } => (true, offset),
            // What is left of one with `fua` is a flush.
            OpKind::Write { offset, fua } if !(fua && self.flush || self.read_only) => {
                (false, offset)
            }
            _ => return None,
        };
        let [segment] = buf.segments() else {
            return None;
        };
        let len = segment.iov_len as u64;
        let capacity = self.capacity();
        if len > self.longest
            || (offset | len) & (u64::from(self.limits.block) - 1) != 0
            || offset > capacity
            || len > capacity - offset
            || !self.waiting.is_empty()
            || self.is_failed()
        {
            return None;
        }
        let shadow = self.shadow.as_mut().filter(|shadow| shadow.indirect)?;
        let access = if is_read {
            Permissions::Write
        } else {
            Permissions::Read
        };
        let host = segment.iov_base as usize;
        let (iova, generation) = self.view.locate(host, segment.iov_len, access)?;
        let request = OneSegment {
            is_read,
            sector: offset / SECTOR_SIZE,
            data: Segment::new(GuestAddress(iova), len as u32),
        };
        // What is wrong with the ring shows again where the operation is submitted.
        let Ok(Some(head)) = shadow.add_one(&self.window, &request) else {
            self.view.release(generation);
            return None;
        };
        self.taken.insert(head, Taken { token, generation });
        self.submitted = true;
        Some(())
    }
}

/// Bytes of the longest segment that a request may have.
pub(super) fn longest(segment: u32) -> u64 {
    u64::from(segment).min(MAX_SUB_REQUEST)
}
