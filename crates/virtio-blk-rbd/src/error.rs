// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be wrong with a cluster, or with the way to it.

use std::io;
use std::path::PathBuf;

use virtio_blk_core::disk::DiskError;

/// What can be wrong with an image, a cluster, or the library that leads there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RbdError {
    /// The library can't be opened.
    #[error(
        "rbd: needs librbd, which can't be opened ({why}): apt-get install librbd1, or on other systems the package \
         librbd1 or ceph-common"
    )]
    Library {
        /// In the words of the dynamic linker.
        why: String,
    },
    /// The library lacks a function.
    #[error("rbd: needs librbd of Ceph 14 or later: this one has no {name}")]
    Symbol {
        /// Its name.
        name: &'static str,
    },
    /// A call of the libraries failed.
    #[error("can't {what}: {source}{}{hint}", if hint.is_empty() { "" } else { "; " })]
    Call {
        /// What was to be done.
        what: String,
        /// Why not.
        source: io::Error,
        /// What to do, perhaps empty.
        hint: String,
    },
    /// The cluster did not respond in time.
    #[error(
        "the cluster did not respond within {seconds} s when {what} was opened: `ceph{conf} status` shows what is \
         wrong with it"
    )]
    Silent {
        /// The image.
        what: String,
        /// How long.
        seconds: u64,
        /// The option of the command that names the configuration.
        conf: String,
    },
    /// Another process of this host has the image open for writing.
    #[error(
        "another process on this host has the image open for writing (it holds {}, see `fuser -v` on it): end that \
         one first, or open the image with readonly=on",
        path.display()
    )]
    Claimed {
        /// The file that it has locked.
        path: PathBuf,
    },
    /// Somebody has locked the image by a command, and not as the library does.
    #[error(
        "{client} at {address} has locked the image by hand (`rbd lock add`): if nobody uses it any more, `{command}` \
         unlocks it"
    )]
    Locked {
        /// As whom the cluster knows the owner of the lock.
        client: String,
        /// Where it was.
        address: String,
        /// What ends it.
        command: String,
    },
    /// The image can't be used as a disk.
    #[error("the image can't be used: {0}")]
    Image(String),
}

impl RbdError {
    /// The error of a call that returned `code`, which is negative.
    pub(crate) fn call(what: impl Into<String>, code: i64, hint: impl Into<String>) -> Self {
        Self::Call {
            what: what.into(),
            source: io::Error::from_raw_os_error(errno(code)),
            hint: hint.into(),
        }
    }
}

/// The host's number of a code that the libraries returned.
pub(crate) fn errno(code: i64) -> i32 {
    code.checked_neg()
        .and_then(|code| i32::try_from(code).ok())
        .filter(|code| *code > 0)
        .unwrap_or(libc::EIO)
}

impl From<RbdError> for DiskError {
    /// What is wrong with the cluster stays an I/O error, the rest are settings to be changed.
    fn from(error: RbdError) -> Self {
        let kind = match &error {
            RbdError::Call { source, .. } => source.kind(),
            RbdError::Silent { .. } => io::ErrorKind::TimedOut,
            _ => return Self::Config(error.to_string()),
        };
        Self::Io(io::Error::new(kind, error))
    }
}
