// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be wrong with a server, or with the way to it.

use std::io;

use virtio_blk_core::disk::DiskError;

use crate::Address;
use crate::proto::{OptionReplyKind, ProtoError};

/// What can be wrong with a server, or with the way to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdError {
    /// There is no server at the address.
    #[error("can't connect to {address}: {source}; is the server running?")]
    Connect {
        /// The address.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The server did not say anything in time.
    #[error(
        "the server was silent for {seconds} s in the handshake: it is overloaded, or serves fewer clients at a time"
    )]
    Silent {
        /// How long.
        seconds: u64,
    },
    /// The server has a request and does not reply to it.
    #[error(
        "the server has not replied to a request for {seconds} s: it hangs, or timeout= is too short for its storage"
    )]
    Unanswered {
        /// How long.
        seconds: u64,
    },
    /// The server said what the protocol does not allow.
    #[error("the server broke the protocol: {0}")]
    Protocol(#[from] ProtoError),
    /// The server said what the protocol does not allow in a reply.
    #[error("the server broke the protocol: {0}")]
    Reply(&'static str),
    /// The server refused an option.
    #[error("the server refused {what}{}{text}: {hint}", if text.is_empty() { "" } else { " with the words " })]
    Refused {
        /// What.
        what: &'static str,
        /// How.
        kind: OptionReplyKind,
        /// In its words, perhaps empty.
        text: String,
        /// What to do.
        hint: &'static str,
    },
    /// The export can't be used as this disk.
    #[error("the export can't be used: {0}")]
    Export(String),
    /// TLS failed.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// The server is about to end, and said so.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// Another connection was made anew, so that this one may lead to a server that is no longer the same.
    #[error("the server may have been replaced")]
    Replaced,
}

impl NbdError {
    /// The host's number that comes nearest.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            Self::Connect { source, .. } => source.raw_os_error().unwrap_or(libc::EHOSTUNREACH),
            Self::Io(error) => error.raw_os_error().unwrap_or(libc::EIO),
            Self::Silent { .. } | Self::Unanswered { .. } => libc::ETIMEDOUT,
            Self::Protocol(_) | Self::Reply(_) => libc::EPROTO,
            Self::Refused { .. } | Self::Export(_) | Self::Tls(_) => libc::ECONNREFUSED,
            Self::Closed | Self::Replaced => libc::ECONNRESET,
            Self::ShuttingDown => libc::ESHUTDOWN,
        }
    }
}

impl From<NbdError> for DiskError {
    /// What is wrong with the way to the server stays an I/O error, the rest are settings to be changed.
    fn from(error: NbdError) -> Self {
        let kind = match &error {
            NbdError::Connect { source, .. } => source.kind(),
            NbdError::Silent { .. } | NbdError::Unanswered { .. } => io::ErrorKind::TimedOut,
            NbdError::Io(_) | NbdError::Closed | NbdError::ShuttingDown => io::ErrorKind::Other,
            _ => return Self::Config(error.to_string()),
        };
        Self::Io(io::Error::new(kind, error))
    }
}
