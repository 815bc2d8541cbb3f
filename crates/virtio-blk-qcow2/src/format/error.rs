// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why bytes are no image that can be used.

/// Why bytes are no image that can be used. Has no file name: the caller adds it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Something else.
    #[error("it is not a qcow2 image")]
    Magic,
    /// A feature that this crate does not have.
    #[error("it uses {0}, which is not supported")]
    Unsupported(String),
    /// Marked as not closed, or as damaged.
    #[error("it is marked as {0}")]
    Marked(&'static str),
    /// It contradicts itself or the specification.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

impl FormatError {
    /// A damaged image.
    pub fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }
}
