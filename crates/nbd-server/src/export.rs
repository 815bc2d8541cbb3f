// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk under a name.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use virtio_blk_core::disk::{Caps, Disk, DiskError, IoQueue};
use virtio_blk_core::runner::{Medium, MediumEvent};
use virtio_blk_nbd::proto::{BlockSizes, ExportFlags, MAX_PAYLOAD, MAX_STRING};

use crate::context::Bitmaps;
use crate::counters::{Counters, Counting};

/// Requests that a connection may have in flight, those whose reply is not sent yet included.
pub(crate) const DEPTH: u16 = 128;

/// An operation that the disk failed.
#[derive(Clone, Copy, Debug)]
pub struct OperationError<'a> {
    /// What it was: `read`, `write`, `flush`, `discard`, `write-zeroes` or `extents`.
    pub operation: &'static str,
    /// First byte on the disk; 0 where it covers no range.
    pub offset: u64,
    /// Bytes; 0 where it covers no range.
    pub len: u64,
    /// The disk's error.
    pub error: &'a DiskError,
}

/// Called for each operation that the disk failed, on the thread of the connection. It must not block.
pub type ErrorListener = Box<dyn Fn(&OperationError<'_>) + Send + Sync>;

/// How a disk is exported.
#[derive(Default)]
pub struct ExportOptions {
    /// By which clients ask for it. The first export of a server is also found by an empty name.
    pub name: String,
    /// What people may read of it.
    pub description: String,
    /// Clients can't change it.
    pub read_only: bool,
    /// The disk's dirty bitmaps.
    pub bitmaps: Option<Box<dyn Bitmaps>>,
    /// Told of operations that fail: clients learn a number and a text, but may not show them.
    pub on_error: Option<ErrorListener>,
    /// Somebody else takes the disk into use ([`Disk::activate`]), and keeps it so as long as the export is there.
    pub is_active: bool,
}

/// Why a disk can't be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The protocol can't carry the name or the description.
    #[error("{0:?} can't be an export's name or description: give at most 4096 bytes, without NUL")]
    Text(String),
    /// The disk does not work.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There is one of that name.
    #[error("there is an export {0:?} already: give each its own name")]
    Exists(String),
}

/// Why a client can't use an export now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("{0}")]
    Refused(String),
    #[error("the disk has {0} connections, and can't take more: end one of them")]
    Queues(u16),
    #[error("the disk is not ready yet: try again")]
    Slow,
    #[error("{0}")]
    Disk(#[from] DiskError),
}

/// A disk that clients can use, under a name.
pub struct Export {
    pub(crate) options: ExportOptions,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) counting: Counting,
    medium: Medium,
    users: Mutex<u16>,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("name", &self.options.name)
            .finish_non_exhaustive()
    }
}

impl Export {
    /// Exports a disk. It is taken into use when the first client begins to use it, and let go of after the last.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn new(disk: Arc<dyn Disk>, options: ExportOptions) -> Result<Arc<Self>, ExportError> {
        disk.caps().validate()?;
        for text in [&options.name, &options.description] {
            if text.len() > MAX_STRING || text.contains('\0') {
                return Err(ExportError::Text(text.clone()));
            }
        }
        let name = options.name.clone();
        let medium = Medium::new(disk.clone(), move |event| match event {
            MediumEvent::Lost(error) => {
                log::error!("export {name:?}: what the disk kept in memory may be lost: {error}");
            }
            MediumEvent::Refused(error) => log::warn!("export {name:?}: {error}"),
            MediumEvent::Settled => {}
        });
        Ok(Arc::new(Self {
            options,
            disk,
            counting: Counting::default(),
            medium,
            users: Mutex::new(0),
        }))
    }

    /// What it is called in messages.
    pub(crate) fn label(&self) -> String {
        match self.name() {
            "" => "the export without a name".to_owned(),
            name => format!("export {name:?}"),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Bytes, as clients are told now.
    pub fn size(&self) -> u64 {
        self.disk.caps().capacity_bytes()
    }

    /// What its clients did so far.
    pub fn counters(&self) -> Counters {
        self.counting.get()
    }

    /// Connections that use it now.
    pub fn connections(&self) -> u16 {
        *self.users()
    }

    fn users(&self) -> MutexGuard<'_, u16> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether clients can't change it.
    pub fn is_read_only(&self) -> bool {
        self.options.read_only || self.disk.caps().read_only
    }

    /// What clients are told that it can do. `structured`: the connection has structured replies.
    pub(crate) fn flags(&self, caps: &Caps, structured: bool) -> ExportFlags {
        let read_only = self.options.read_only || caps.read_only;
        let zeroes = caps.write_zeroes.filter(|_| !read_only);
        (ExportFlags::HAS_FLAGS | ExportFlags::SEND_FLUSH | ExportFlags::SEND_FUA)
            .with(ExportFlags::READ_ONLY, read_only)
            .with(ExportFlags::SEND_TRIM, !read_only && caps.discard.is_some())
            .with(ExportFlags::SEND_WRITE_ZEROES, zeroes.is_some())
            .with(ExportFlags::SEND_FAST_ZERO, zeroes.is_some())
            .with(ExportFlags::SEND_DF, structured)
            // A flush is for all queues of a disk, and all see one content.
            .with(ExportFlags::CAN_MULTI_CONN, caps.max_queues > 1)
    }

    /// What offsets and lengths must be like.
    pub(crate) fn block_sizes(caps: &Caps) -> BlockSizes {
        let minimum = caps.align.guest_block.min(1 << 16);
        let physical = caps.align.guest_block << caps.topology.physical_block_exp.min(8);
        BlockSizes {
            minimum,
            preferred: physical.clamp(4096, 1 << 20).max(minimum),
            maximum: MAX_PAYLOAD,
        }
    }

    /// Begins to use the disk for a connection.
    ///
    /// # Errors
    /// [`Unusable`].
    pub(crate) fn enter(self: &Arc<Self>, deadline: Instant) -> Result<Use, Unusable> {
        let most = self.disk.caps().max_queues;
        {
            let mut users = self.users();
            if *users >= most {
                return Err(Unusable::Queues(*users));
            }
            *users += 1;
        }
        // From here on it is left again.
        let mut using = Use {
            export: self.clone(),
            queue: None,
        };
        if !self.options.is_active {
            match self.medium.take(deadline) {
                None => return Err(Unusable::Slow),
                Some(Err(refused)) => return Err(Unusable::Refused(refused.to_string())),
                Some(Ok(())) => {}
            }
        }
        using.queue = Some(self.disk.open_queue(DEPTH)?);
        Ok(using)
    }

    /// Waits until `deadline` for the disk to be let go of, once no connection uses it. `None`: it is not so yet.
    ///
    /// # Errors
    /// What it held in memory may be lost.
    pub fn wait_left(&self, deadline: Instant) -> Option<Result<(), String>> {
        if self.options.is_active {
            return Some(Ok(()));
        }
        self.medium
            .wait_left(deadline)?
            .err()
            .map_or(Some(Ok(())), |error| Some(Err(error)))
    }

    pub(crate) fn note(&self, error: &OperationError<'_>) {
        if let Some(listener) = &self.options.on_error {
            listener(error);
        }
    }
}

/// The use of an export by one connection, with a data path of its own.
pub(crate) struct Use {
    pub(crate) export: Arc<Export>,
    pub(crate) queue: Option<Box<dyn IoQueue>>,
}

impl Drop for Use {
    fn drop(&mut self) {
        // It may block, and the disk is in use until it is over.
        self.queue = None;
        let mut users = self.export.users();
        *users -= 1;
        if *users == 0 && !self.export.options.is_active {
            self.export.medium.want(false);
        }
    }
}
