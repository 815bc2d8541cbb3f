// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An operation that librbd has.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use virtio_blk_core::disk::{Completion, DiskError, Op, OpKind};

use crate::api::{Api, Handle, ZEROES_ALLOCATED};
use crate::error::errno;
use crate::image::Target;
use crate::inbox::{Ended, Inbox};

/// An operation that librbd has. It owns the buffer, and the list of segments that librbd reads from; librbd has its
/// address until it calls [`ended`], which is the only one to drop it. So whatever becomes of the queue, the memory is
/// there for as long as librbd may touch it. The image is kept open by the queue, which waits for its flights: a flight
/// that kept it could close it on a thread of librbd, which would wait for itself.
struct Flight {
    op: Op,
    /// Its place with the queue.
    place: usize,
    /// The write has ended; what is in flight is the flush that belongs to it.
    flushing: bool,
    image: Arc<Target>,
    inbox: Arc<Inbox>,
}

/// Hands an operation to librbd. Its end comes into `inbox`, from any thread and perhaps before this returns.
///
/// # Safety
/// The image stays open until that end has come.
///
/// # Errors
/// The completion with the reason. Nothing comes into `inbox`.
pub(crate) unsafe fn start(
    op: Op,
    place: usize,
    image: &Arc<Target>,
    inbox: &Arc<Inbox>,
) -> Result<(), Box<Completion>> {
    let flight = Box::new(Flight {
        op,
        place,
        flushing: false,
        image: image.clone(),
        inbox: inbox.clone(),
    });
    flight
        .launch()
        .map_err(|(flight, error)| Box::new(flight.op.complete(Err(error))))
}

impl Flight {
    /// Starts what is due. On success librbd owns the flight.
    ///
    /// # Errors
    /// The flight, and why it did not start.
    fn launch(self: Box<Self>) -> Result<(), (Box<Self>, DiskError)> {
        let api = self.image.api;
        let this = Box::into_raw(self);
        let mut completion = Handle::NONE;
        // SAFETY: `ended` takes the address of a flight, once; the handle is there to be written.
        let code = unsafe {
            (api.rbd_aio_create_completion)(this.cast::<c_void>(), ended, &raw mut completion)
        };
        let code = if code < 0 {
            code
        } else {
            // SAFETY: nobody else has the flight yet; the reference ends before librbd is told of it.
            let due = unsafe { (*this).due() };
            // SAFETY: the flight, with the segments, is not dropped before librbd has called `ended`, or refused. There is
            // no reference to it, as `ended` may drop it before this returns.
            unsafe { submit(&due, completion) }
        };
        if code >= 0 {
            return Ok(());
        }
        if completion != Handle::NONE {
            // SAFETY: librbd refused the operation, so nobody else uses the completion.
            unsafe { (api.rbd_aio_release)(completion) };
        }
        // SAFETY: from `into_raw` above; librbd did not take it, so `ended` is never called.
        let flight = unsafe { Box::from_raw(this) };
        Err((flight, DiskError::from_errno(errno(code.into()))))
    }

    /// What librbd is to be given now.
    fn due(&self) -> Due {
        let segments = self.op.buf.segments();
        Due {
            api: self.image.api,
            image: self.image.handle,
            kind: (!self.flushing).then_some(self.op.kind),
            segments: segments.as_ptr(),
            count: segments.len(),
        }
    }

    /// The end of what was in flight, with librbd's result.
    fn end(mut self: Box<Self>, returned: i64) {
        let result = self.result(returned);
        let stable = !matches!(
            self.op.kind,
            OpKind::Write { fua: true, .. } | OpKind::WriteZeroes { fua: true, .. }
        );
        if result.is_ok() && !stable && !self.flushing {
            self.flushing = true;
            if let Err((flight, error)) = self.launch() {
                flight.finish(Err(error));
            }
            return;
        }
        (*self).finish(result);
    }

    fn finish(self, result: Result<(), DiskError>) {
        let Self {
            op, place, inbox, ..
        } = self;
        let completion = op.complete(result);
        inbox.push(Ended { place, completion });
    }

    fn result(&self, returned: i64) -> Result<(), DiskError> {
        if returned < 0 {
            let errno = errno(returned);
            self.image.failed(errno);
            return Err(DiskError::from_errno(errno));
        }
        match self.op.kind {
            OpKind::Read { .. } if returned != self.op.buf.len() as i64 => {
                // The image was made smaller.
                Err(DiskError::OutOfRange)
            }
            // librbd has copied the data; it is not the guest's if its memory was taken away before.
            OpKind::Write { .. } if !self.op.buf.is_intact() => {
                Err(DiskError::from_errno(libc::EFAULT))
            }
            _ => Ok(()),
        }
    }
}

/// What librbd is given, without a reference to the flight that it is of.
struct Due {
    api: &'static Api,
    image: Handle,
    /// `None`: a flush, whatever it was.
    kind: Option<OpKind>,
    segments: *const libc::iovec,
    count: usize,
}

/// Gives librbd what is due.
///
/// # Safety
/// The image is open, and the segments stay with the memory that they name, valid for the direction of the operation,
/// until librbd has called back, or this has returned a negative code.
unsafe fn submit(due: &Due, completion: Handle) -> c_int {
    let Due {
        api,
        image,
        segments,
        ..
    } = *due;
    let Ok(count) = c_int::try_from(due.count) else {
        return -libc::EINVAL;
    };
    // SAFETY: as the caller guarantees.
    unsafe {
        match due.kind {
            None | Some(OpKind::Flush) => (api.rbd_aio_flush)(image, completion),
            Some(OpKind::Read { offset }) => {
                (api.rbd_aio_readv)(image, segments, count, offset, completion)
            }
            Some(OpKind::Write { offset, .. }) => {
                (api.rbd_aio_writev)(image, segments, count, offset, completion)
            }
            Some(OpKind::Discard { offset, len }) => {
                (api.rbd_aio_discard)(image, offset, len, completion)
            }
            Some(OpKind::WriteZeroes {
                offset, len, unmap, ..
            }) => {
                let flags = if unmap { 0 } else { ZEROES_ALLOCATED };
                match (api.rbd_aio_write_zeroes, usize::try_from(len)) {
                    (Some(write_zeroes), Ok(len)) => {
                        write_zeroes(image, offset, len, completion, flags, 0)
                    }
                    _ => -libc::EOPNOTSUPP,
                }
            }
            Some(_) => -libc::EOPNOTSUPP,
        }
    }
}

/// Called by librbd, once for each operation that it has taken, on a thread of its own.
unsafe extern "C" fn ended(completion: Handle, flight: *mut c_void) {
    // SAFETY: the address that `launch` gave up; this is the only call for it.
    let flight = unsafe { Box::from_raw(flight.cast::<Flight>()) };
    let api = flight.image.api;
    // SAFETY: the completion is ended; our reference to it is given back once.
    let returned = unsafe {
        let returned = (api.rbd_aio_get_return_value)(completion);
        (api.rbd_aio_release)(completion);
        returned
    };
    flight.end(i64::try_from(returned).unwrap_or(-i64::from(libc::EIO)));
}
