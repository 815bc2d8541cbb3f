// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Contexts, in which the block status is asked for.

use super::fields::{Fields, put_text};
use super::{MAX_STRING, ProtoError};

/// The context of what is allocated, whose states are [`Allocation`](super::Allocation).
pub const BASE_ALLOCATION: &str = "base:allocation";

/// In front of the name of a bitmap: the context of what changed. Bit 0 of a state: it did.
pub const QEMU_DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";

/// The payload of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContextQuery<'a> {
    /// The export.
    pub export: &'a str,
    /// Names of contexts. A name that ends with a colon stands for all with that beginning in a list, and a list
    /// without any names for all there are.
    pub queries: Vec<&'a str>,
}

impl<'a> MetaContextQuery<'a> {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_text(&mut out, self.export);
        out.extend_from_slice(&(self.queries.len() as u32).to_be_bytes());
        for query in &self.queries {
            put_text(&mut out, query);
        }
        out
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// It is malformed.
    pub fn decode(payload: &'a [u8]) -> Result<Self, ProtoError> {
        let mut fields = Fields::of("a query for contexts", payload);
        let export = fields.text_after_len("the name of an export")?;
        let count = fields.u32()?;
        let mut queries = Vec::new();
        // Each takes 4 bytes at least, so the list grows no further than what was received.
        for _ in 0..count {
            queries.push(fields.text_after_len("the name of a context")?);
        }
        fields.end()?;
        Ok(Self { export, queries })
    }
}

/// A context: the payload of the reply `META_CONTEXT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaContext<'a> {
    /// By which block status names it. Without a meaning in a list.
    pub id: u32,
    /// Its name.
    pub name: &'a str,
}

impl<'a> MetaContext<'a> {
    /// The payload. The name has at most [`MAX_STRING`] bytes.
    pub fn encode(self) -> Vec<u8> {
        debug_assert!(self.name.len() <= MAX_STRING);
        [&self.id.to_be_bytes(), self.name.as_bytes()].concat()
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// It is malformed.
    pub fn decode(payload: &'a [u8]) -> Result<Self, ProtoError> {
        let mut fields = Fields::of("a context", payload);
        let id = fields.u32()?;
        let name = fields.last_text("the name of a context")?;
        Ok(Self { id, name })
    }
}
