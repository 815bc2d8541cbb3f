// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From an operation to a request in the shadow ring.

use std::sync::atomic::Ordering;

use virtio_blk_core::disk::{DiskError, OpKind};
use virtio_blk_core::memory::Permissions;
use virtio_blk_driver::ring::{Chain, RingError};
use virtio_blk_driver::{Memory, Segment, wire};
use vm_memory::GuestAddress;

use super::{SlowQueue, release};
use crate::slow::limits::Limits;
use crate::slow::pending::{SubRequest, copy};

/// What became of an attempt to give an operation to the device.
pub(super) enum Issue {
    /// The device has it.
    Issued,
    /// There is no room in the ring, or no bounce buffer: later.
    NoRoom,
    /// It can't be executed any more: the operation ends with this error.
    Refused(DiskError),
}

impl SlowQueue {
    /// Gives the next sub-request of operation `index` to the device.
    pub(super) fn issue(&mut self, index: u16) -> Result<Issue, RingError> {
        let Self {
            shared,
            shadow: Some(shadow),
            view,
            limits,
            flush: _,
            pending,
            readable,
            writable,
            scratch,
            ..
        } = self
        else {
            return Ok(Issue::NoRoom);
        };
        let Some(entry) = pending.get_mut(usize::from(index)).and_then(Option::as_mut) else {
            return Ok(Issue::Issued);
        };
        let Some(head) = shadow.ring.next_head() else {
            return Ok(Issue::NoRoom);
        };
        let place = shadow.slot(head);
        let window = &shared.window;
        readable.clear();
        writable.clear();
        readable.push(place.header());
        let mut sub_request = SubRequest {
            head,
            ..SubRequest::default()
        };
        let mut kind = wire::T_FLUSH;
        let mut sector = 0;
        let caps = &shared.caps;
        let range = match entry.op.kind {
            _ if entry.flushing => None,
            OpKind::Flush => None,
            OpKind::Lifetime => {
                kind = wire::T_GET_LIFETIME;
                writable.push(place.lifetime());
                None
            }
            OpKind::Discard { .. } => {
                kind = wire::T_DISCARD;
                Some((caps.discard.map_or(u32::MAX, |l| l.max_sectors), false))
            }
            OpKind::SecureErase { .. } => {
                kind = wire::T_SECURE_ERASE;
                Some((caps.secure_erase.map_or(u32::MAX, |l| l.max_sectors), false))
            }
            OpKind::WriteZeroes { unmap, .. } => {
                kind = wire::T_WRITE_ZEROES;
                Some((caps.write_zeroes.map_or(u32::MAX, |l| l.max_sectors), unmap))
            }
            // `check` let nothing else through.
            _ => {
                let write = matches!(entry.op.kind, OpKind::Write { .. });
                let (data, access) = if write {
                    kind = wire::T_OUT;
                    (&mut *readable, Permissions::Read)
                } else {
                    kind = wire::T_IN;
                    (&mut *writable, Permissions::Write)
                };
                sector = entry.sector();
                sub_request.len = entry.gather(view.current(), limits, access, data);
                if sub_request.len == 0 {
                    view.publish_oldest();
                    data.truncate(usize::from(write));
                    let Some(bounce) = shadow.take_bounce() else {
                        return Ok(Issue::NoRoom);
                    };
                    sub_request.bounce = Some(bounce);
                    let at = shadow.bounce(bounce);
                    sub_request.len = bounce_len(limits, shadow.bounce_len(), entry.left());
                    shared.copied.fetch_add(sub_request.len, Ordering::Relaxed);
                    split_segments(at, sub_request.len, limits.segment, data);
                    if let (true, Some(to)) = (write, window.host(at, sub_request.len as usize)) {
                        // SAFETY: `to` has so many bytes in the window, which is nobody's buffer.
                        unsafe {
                            let (done, len) = (entry.done as usize, sub_request.len as usize);
                            copy(&entry.op.buf, done, len, to, true, scratch);
                        }
                        if !entry.op.buf.is_intact() {
                            // What was copied is not what the driver wrote.
                            release(shadow, view, &sub_request);
                            return Ok(Issue::Refused(DiskError::from_errno(libc::EFAULT)));
                        }
                    }
                } else {
                    sub_request.generation = Some(view.hold());
                }
                None
            }
        };
        if let Some((max, unmap)) = range {
            let range = entry.range(max, unmap);
            sub_request.len = u64::from(range.num_sectors) * 512;
            window.write_at(place.range().addr, &range.to_bytes())?;
            readable.push(place.range());
        }
        writable.push(place.status());
        shadow.prepare(window, head, &wire::header(kind, 0, sector))?;
        let chain = Chain {
            readable,
            writable,
            indirect: shadow.indirect.then(|| place.table()),
        };
        match shadow.ring.add(window, &chain, index.into()) {
            Ok(_) => {
                entry.sub_request = sub_request;
                Ok(Issue::Issued)
            }
            Err(error) => {
                release(shadow, view, &sub_request);
                match error {
                    RingError::Full { .. } => Ok(Issue::NoRoom),
                    other => Err(other),
                }
            }
        }
    }
}

/// Bytes of a sub-request that goes through a bounce buffer: whole blocks.
fn bounce_len(limits: &Limits, room: u32, left: u64) -> u64 {
    let most = u64::from(limits.segment).saturating_mul(limits.segments as u64);
    let len = left.min(most).min(room.into());
    // `limits` and `SlowOptions` see to it that a block fits.
    len - len % u64::from(limits.block)
}

/// Cuts `len` bytes at `at` into segments of at most `max`.
fn split_segments(mut at: u64, mut len: u64, max: u32, out: &mut Vec<Segment>) {
    while len != 0 {
        let piece = len.min(max.into());
        out.push(Segment::new(GuestAddress(at), piece as u32));
        at += piece;
        len -= piece;
    }
}
