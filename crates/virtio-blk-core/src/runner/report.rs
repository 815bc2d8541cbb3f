// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What went wrong, told to the embedder: a driver only learns a status byte.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::QueueError;
use super::slot::RequestKind;
use crate::disk::{DiskError, OpKind};
use crate::ring::ChainError;
use crate::spec::RequestType;

/// Something that went wrong in a queue.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestError<'a> {
    /// The queue's index.
    pub queue: u16,
    /// What it was.
    pub cause: ErrorCause<'a>,
}

/// What went wrong; see [`RequestError`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum ErrorCause<'a> {
    /// The disk failed an operation. Requests that are refused before they reach the disk (out of range, not
    /// negotiated) are the driver's business and not told.
    Operation {
        /// The request it belongs to.
        request: RequestType,
        /// First byte on the disk; 0 where it covers no range.
        offset: u64,
        /// Bytes; 0 where it covers no range.
        len: u64,
        /// The disk's error; [`DiskError::errno`] has the host's number.
        error: &'a DiskError,
    },
    /// A chain could not be taken: the driver made it wrong.
    Chain(ChainError),
    /// The queue broke. Nothing more is told of it until it is started again.
    Queue(&'a QueueError),
}

impl fmt::Display for RequestError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {}: ", self.queue)?;
        match self.cause {
            ErrorCause::Operation {
                request,
                offset,
                len,
                error,
            } => {
                let name = request.name();
                match len {
                    0 => write!(f, "{name} failed: {error}"),
                    _ => write!(f, "{name} of {len} bytes at byte {offset} failed: {error}"),
                }
            }
            ErrorCause::Chain(error) => write!(f, "a request can't be taken: {error}"),
            ErrorCause::Queue(error) => error.fmt(f),
        }
    }
}

/// Called for each error, on the thread that serves the queue.
type ErrorListener = Box<dyn Fn(&RequestError<'_>) + Send + Sync>;

/// The listeners of a device.
#[derive(Default)]
pub(crate) struct ErrorListeners(Mutex<Vec<Arc<ErrorListener>>>);

impl ErrorListeners {
    pub(crate) fn add(&self, listener: ErrorListener) {
        self.lock().push(Arc::new(listener));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<ErrorListener>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue's way to the listeners.
pub(crate) struct Reports {
    pub(crate) queue: u16,
    pub(crate) listeners: Arc<ErrorListeners>,
}

impl Reports {
    #[cold]
    pub(super) fn tell(&self, cause: ErrorCause<'_>) {
        let error = RequestError {
            queue: self.queue,
            cause,
        };
        // Not under the lock: one queue's listener must not hold up another's.
        let listeners = self.listeners.lock().clone();
        for listener in listeners {
            listener(&error);
        }
    }

    /// Tells that an operation failed.
    #[cold]
    pub(super) fn operation(&self, kind: &OpKind, data_len: u32, error: &DiskError) {
        let (offset, len) = kind.range(u64::from(data_len)).unwrap_or_default();
        self.tell(ErrorCause::Operation {
            request: request_of(kind),
            offset,
            len,
            error,
        });
    }

    /// As `operation`, for one of a request in flight that covers the `place`.
    #[cold]
    pub(super) fn request(&self, kind: RequestKind, (offset, len): (u64, u64), error: &DiskError) {
        self.tell(ErrorCause::Operation {
            request: kind.request(),
            offset,
            len,
            error,
        });
    }
}

const fn request_of(kind: &OpKind) -> RequestType {
    match kind {
        OpKind::Read { .. } => RequestType::In,
        OpKind::Write { .. } => RequestType::Out,
        OpKind::Flush => RequestType::Flush,
        OpKind::Discard { .. } => RequestType::Discard,
        OpKind::WriteZeroes { .. } => RequestType::WriteZeroes,
        OpKind::SecureErase { .. } => RequestType::SecureErase,
        OpKind::Lifetime => RequestType::GetLifetime,
    }
}
