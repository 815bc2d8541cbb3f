// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ways to make a job's system calls. Each is an `IoQueue` around the same [`super::job::Job`].

#[cfg(feature = "io-uring")]
mod ring_entry;
#[cfg(feature = "io-uring")]
mod ring_setup;
mod sync;
#[cfg(feature = "io-uring")]
mod uring;

use std::sync::Arc;

use virtio_blk_core::disk::{DiskError, IoQueue};

use super::error::OpenError;
use super::medium::Medium;
use super::options::Engine;

/// The engine chosen for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// System calls only.
    Sync,
    /// An io_uring for everything.
    #[cfg(feature = "io-uring")]
    Ring {
        /// Nothing else will do.
        by_name: bool,
    },
    /// The page cache inside `execute`, an io_uring for the rest.
    #[cfg(feature = "io-uring")]
    Mixed,
}

impl Plan {
    /// Chooses an engine.
    ///
    /// # Errors
    /// io_uring was asked for by name and is not available.
    pub fn choose(wanted: Engine, medium: &Medium) -> Result<Self, OpenError> {
        // Files in memory do without.
        if wanted == Engine::Auto && medium.in_memory && !medium.is_direct() {
            return Ok(Self::Sync);
        }
        match (wanted, available()) {
            (Engine::Sync, _) => Ok(Self::Sync),
            (Engine::Auto, Err(why)) => {
                medium.does_without_io_uring(&why);
                Ok(Self::Sync)
            }
            (Engine::IoUring, Err(why)) => Err(OpenError::Engine {
                path: medium.path.clone(),
                why,
            }),
            #[cfg(feature = "io-uring")]
            (Engine::IoUring, Ok(())) => Ok(Self::Ring { by_name: true }),
            #[cfg(feature = "io-uring")]
            (Engine::Auto, Ok(())) => Ok(if medium.is_direct() {
                Self::Ring { by_name: false }
            } else {
                Self::Mixed
            }),
            #[cfg(not(feature = "io-uring"))]
            (Engine::IoUring | Engine::Auto, Ok(())) => Ok(Self::Sync),
        }
    }

    /// The engine in the words of the options.
    pub const fn engine(self) -> Engine {
        match self {
            Self::Sync => Engine::Sync,
            #[cfg(feature = "io-uring")]
            Self::Ring { .. } => Engine::IoUring,
            #[cfg(feature = "io-uring")]
            Self::Mixed => Engine::Auto,
        }
    }

    /// Opens a queue for `depth` operations at a time.
    ///
    /// # Errors
    /// The ring could not be had. Only an engine chosen by name fails then, the others do without.
    pub fn open_queue(
        self,
        medium: &Arc<Medium>,
        depth: u16,
    ) -> Result<Box<dyn IoQueue>, DiskError> {
        #[cfg(feature = "io-uring")]
        {
            let (page_cache, by_name) = match self {
                Self::Sync => return Ok(Box::new(sync::SyncQueue::new(medium.clone()))),
                Self::Ring { by_name } => (false, by_name),
                Self::Mixed => (true, false),
            };
            match uring::RingQueue::new(medium.clone(), depth, page_cache) {
                Ok(queue) => return Ok(Box::new(queue)),
                Err(error) if by_name => return Err(error),
                Err(error) => medium.does_without_io_uring(&error.to_string()),
            }
        }
        #[cfg(not(feature = "io-uring"))]
        let _ = depth;
        Ok(Box::new(sync::SyncQueue::new(medium.clone())))
    }
}

/// Whether io_uring can be used by this process, or why not.
#[cfg(feature = "io-uring")]
pub(super) fn available() -> Result<(), String> {
    ring_setup::available()
}

#[cfg(not(feature = "io-uring"))]
pub(super) fn available() -> Result<(), String> {
    Err("this program was built without the feature `io-uring`".into())
}
