// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which export a client wants.

use super::fields::{Fields, Header, put_text};
use super::{ExportFlags, InfoKind, ProtoError};

/// Zero bytes after an [`OldExport`], unless both sides said NO_ZEROES.
pub const EXPORT_NAME_ZEROES: usize = 124;

/// Which export a client wants, and what it wants to know: the payload of `INFO` and `GO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportRequest<'a> {
    /// The export's name; empty: the default one.
    pub name: &'a str,
    /// What the server is asked to tell. It may tell more, and less.
    pub infos: Vec<InfoKind>,
}

impl<'a> ExportRequest<'a> {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_text(&mut out, self.name);
        let count = u16::try_from(self.infos.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for kind in self.infos.iter().take(count.into()) {
            out.extend_from_slice(&kind.0.to_be_bytes());
        }
        out
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// It is malformed.
    pub fn decode(payload: &'a [u8]) -> Result<Self, ProtoError> {
        let mut fields = Fields::of("a request for an export", payload);
        let name = fields.text_after_len("the name of an export")?;
        let count = fields.u16()?;
        // The bytes are there before there is a list of them.
        let list = fields.bytes(2 * usize::from(count))?;
        fields.end()?;
        let infos = list.as_chunks().0.iter();
        let infos = infos.map(|kind| InfoKind(u16::from_be_bytes(*kind)));
        Ok(Self {
            name,
            infos: infos.collect(),
        })
    }
}

/// The reply to `EXPORT_NAME`. [`EXPORT_NAME_ZEROES`] may follow, then requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldExport {
    /// Bytes.
    pub size: u64,
    /// What it can do.
    pub flags: ExportFlags,
}

impl OldExport {
    /// Bytes on the wire.
    pub const LEN: usize = 10;

    /// The wire form.
    pub fn encode(self) -> [u8; Self::LEN] {
        Header::new()
            .put(&self.size.to_be_bytes())
            .put(&self.flags.0.to_be_bytes())
            .done()
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// The size is beyond 2^63.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, ProtoError> {
        let mut fields = Fields::of("an export", bytes);
        let size = checked_size(fields.u64()?)?;
        let flags = ExportFlags(fields.u16()?);
        fields.end()?;
        Ok(Self { size, flags })
    }
}

/// A size that every offset type holds.
pub(super) fn checked_size(size: u64) -> Result<u64, ProtoError> {
    if size > i64::MAX as u64 {
        return Err(ProtoError::Value {
            what: "the size of the export",
            found: size,
        });
    }
    Ok(size)
}
