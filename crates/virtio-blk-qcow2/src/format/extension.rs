// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Header extensions: what follows the header in the first cluster.

use super::{FormatError, be32, be64};

/// Most header extensions that are looked at; there are six kinds.
const MAX_EXTENSIONS: usize = 64;
const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const BITMAPS: u32 = 0x2385_2875;
const ENCRYPTION: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;
/// Most bytes of a directory of bitmaps (QEMU: 65,535 bitmaps of at most 1,023 + 32 bytes each).
const MAX_DIRECTORY: u64 = 65_535 * 1_055;

/// The extension that says where the directory of persistent bitmaps is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bitmaps {
    /// Bitmaps in the directory.
    pub count: u32,
    /// Bytes of the directory.
    pub len: u64,
    /// First byte of the directory in the file.
    pub offset: u64,
}

/// What header extensions say. Unknown ones are ignored, as the specification wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// The backing file's format.
    pub backing_format: Option<String>,
    /// The external data file's name.
    pub data_file: Option<String>,
    /// Persistent bitmaps.
    pub bitmaps: Option<Bitmaps>,
    /// A header of LUKS.
    pub luks: bool,
}

impl Extensions {
    /// Reads the extensions in the first cluster, of which `area` is what follows the header.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn parse(area: &[u8]) -> Result<Self, FormatError> {
        let cut = || FormatError::damaged("its header extensions are cut off");
        let mut found = Self::default();
        let mut at = 0_usize;
        for _ in 0..MAX_EXTENSIONS {
            if at + 8 > area.len() {
                return Ok(found);
            }
            let (kind, len) = (be32(area, at), be32(area, at + 4) as usize);
            at += 8;
            if kind == END {
                return Ok(found);
            }
            let data = area.get(at..at.saturating_add(len)).ok_or_else(cut)?;
            let text = || String::from_utf8_lossy(data).into_owned();
            match kind {
                BACKING_FORMAT => {
                    found.backing_format.get_or_insert_with(text);
                }
                DATA_FILE => {
                    found.data_file.get_or_insert_with(text);
                }
                ENCRYPTION => found.luks = true,
                BITMAPS => found.bitmaps = Some(bitmaps(data)?),
                _ => {}
            }
            at += len.next_multiple_of(8);
        }
        Err(FormatError::damaged("it has too many header extensions"))
    }
}

fn bitmaps(data: &[u8]) -> Result<Bitmaps, FormatError> {
    let bitmaps = Bitmaps {
        count: be32(data, 0),
        len: be64(data, 8),
        offset: be64(data, 16),
    };
    if data.len() != 24 || bitmaps.count == 0 || bitmaps.len > MAX_DIRECTORY {
        return Err(FormatError::damaged(
            "its directory of bitmaps is impossible",
        ));
    }
    Ok(bitmaps)
}
