// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is wrong with a message.

/// What is wrong with a message of the peer's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtoError {
    /// Fewer bytes than the message has.
    #[error("{what} is cut off")]
    Short {
        /// The message.
        what: &'static str,
    },
    /// More bytes than the message has.
    #[error("{what} is longer than it says")]
    Long {
        /// The message.
        what: &'static str,
    },
    /// A message begins with another number than it must.
    #[error(
        "{what} begins with {found:#x}: the peer does not speak this protocol, or is out of step"
    )]
    Magic {
        /// The message.
        what: &'static str,
        /// The number.
        found: u64,
    },
    /// A length beyond its limit.
    #[error("{what} has {len} bytes, beyond the limit of {max}")]
    Length {
        /// The message or field.
        what: &'static str,
        /// Bytes.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// Text that is not UTF-8, or has a NUL in it.
    #[error("{what} is no text in UTF-8")]
    Text {
        /// The field.
        what: &'static str,
    },
    /// A number that the field can't have.
    #[error("{what} is {found}, which it can't be")]
    Value {
        /// The field.
        what: &'static str,
        /// The number.
        found: u64,
    },
    /// The server speaks the handshake from before 2011.
    #[error(
        "the server speaks the old style of the protocol, which has no options: use a server from after 2011"
    )]
    OldStyle,
}
