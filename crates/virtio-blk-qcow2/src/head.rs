// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a file begins with: its header.

use std::path::Path;

use crate::base::HEAD;
use crate::error::OpenError;
use crate::format::Header;
use crate::lane::Lane;

/// The header of an image of `len` bytes, and the bytes that it begins with, [`HEAD`] at most.
///
/// # Errors
/// It can't be read, or is not the header of an image that can be used. `path` is named.
pub fn read(lane: &mut Lane, len: u64, path: &Path) -> Result<(Header, Vec<u8>), OpenError> {
    let failed = |error| OpenError::file(path, error);
    let damaged = |error| OpenError::format(path, error);
    let mut first = vec![0; HEAD.min(usize::try_from(len).unwrap_or(HEAD))];
    lane.read(0, &mut first).map_err(failed)?;
    let cluster = Header::cluster(&first).map_err(damaged)?;
    first.resize(usize::try_from(cluster.min(len)).unwrap_or(HEAD), 0);
    lane.read(0, &mut first).map_err(failed)?;
    let header = Header::parse(&first, len).map_err(damaged)?;
    first.truncate(HEAD);
    Ok((header, first))
}
