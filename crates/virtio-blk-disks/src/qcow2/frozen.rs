// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The end of all changes of an image.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use virtio_blk_core::disk::DiskError;

/// What went wrong.
#[derive(Debug)]
struct Cause {
    what: String,
    error: String,
    /// Of a failed sync: what completed may be lost.
    lost: Option<i32>,
    /// The library panicked: what it has in memory is not used again.
    panicked: bool,
}

/// Whether, and why, an image takes no changes any more.
///
/// The library keeps tables in memory that are ahead of the file's, and does not take a change back when
/// writing it fails. So the first such failure ends all changes: nothing is written any more, until the image
/// is opened anew from what the file holds. Reads go on.
#[derive(Debug, Default)]
pub(super) struct Frozen {
    path: PathBuf,
    cause: OnceLock<Cause>,
}

impl Frozen {
    /// For the image at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            cause: OnceLock::new(),
        }
    }

    /// The image.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn set(&self, cause: Cause) {
        if self.cause.set(cause).is_ok()
            && let Some(error) = self.text()
        {
            log::error!("{error}");
        }
    }

    /// Freezes the image, since `what` (a gerund) failed. Only the first failure is kept, and logged.
    pub fn freeze(&self, what: String, error: &io::Error) {
        self.set(Cause {
            what,
            error: error.to_string(),
            lost: None,
            panicked: false,
        });
    }

    /// Freezes the image, since making it stable failed with `errno`.
    pub fn lose(&self, errno: i32) {
        self.set(Cause {
            what: "making it stable".to_owned(),
            error: io::Error::from_raw_os_error(errno).to_string(),
            lost: Some(errno),
            panicked: false,
        });
    }

    /// Freezes the image, since the library panicked.
    pub fn distrust(&self) {
        self.set(Cause {
            what: "the qcow2 library's work on it".to_owned(),
            error: "it panicked".to_owned(),
            lost: None,
            panicked: true,
        });
    }

    /// Whether it is frozen.
    pub fn is_set(&self) -> bool {
        self.cause.get().is_some()
    }

    fn text(&self) -> Option<String> {
        self.cause.get().map(|cause| {
            format!(
                "{path} is frozen since {what} failed ({error}): it takes no changes any more, and what completed \
                 since the last flush may be lost. Stop the disk, see to its host, check the image \
                 (`qemu-img check {path}`) and open it again",
                path = self.path.display(),
                what = cause.what,
                error = cause.error,
            )
        })
    }

    /// Why every change fails.
    pub fn error(&self) -> Option<DiskError> {
        let text = self.text()?;
        Some(match self.cause.get().and_then(|cause| cause.lost) {
            Some(errno) => DiskError::FlushLost { errno },
            None => DiskError::Io(io::Error::other(text)),
        })
    }

    /// # Errors
    /// The image takes no changes any more.
    pub fn check(&self) -> Result<(), DiskError> {
        self.error().map_or(Ok(()), Err)
    }

    /// # Errors
    /// The library must not be asked any more, not even for a read.
    pub fn check_library(&self) -> Result<(), DiskError> {
        match self.cause.get() {
            Some(cause) if cause.panicked => self.check(),
            _ => Ok(()),
        }
    }
}
