// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A page cache that can be lost: what of a file is stable, and what only written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// Bytes that become stable together.
const SECTOR: u64 = 512;

/// What of the writes that were not made stable outlives a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// Everything but what a failed write-back dropped.
    Everything,
    /// Some sectors, chosen by this seed.
    Some(u64),
}

impl Keep {
    fn keeps(self, sector: u64) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Some(seed) => {
                let mixed = (sector ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                mixed >> 63 == 0
            }
        }
    }
}

/// What tells files apart.
pub(super) fn identity(file: &File) -> u64 {
    file.metadata()
        .map_or(0, |about| about.ino() ^ about.dev().rotate_left(40))
}

#[derive(Debug)]
pub(super) struct Cache {
    file: File,
    identity: u64,
    stable: Vec<u8>,
    /// When each sector was written, and what, for those that a sync would make stable. A later write may be on its way to
    /// the file when the sync ends.
    dirty: BTreeMap<u64, (u64, Vec<u8>)>,
    clock: u64,
}

impl Cache {
    pub fn new(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Self {
            identity: identity(&file),
            file,
            stable: std::fs::read(path)?,
            dirty: BTreeMap::new(),
            clock: 0,
        })
    }

    pub const fn is(&self, identity: u64) -> bool {
        self.identity == identity
    }

    /// Now, to be told apart from what is written later.
    pub const fn clock(&self) -> u64 {
        self.clock
    }

    fn sectors(offset: u64, len: u64) -> std::ops::Range<u64> {
        offset / SECTOR..(offset + len).div_ceil(SECTOR)
    }

    /// Something was written.
    pub fn wrote(&mut self, offset: u64, len: u64) {
        self.clock += 1;
        for sector in Self::sectors(offset, len) {
            let written = (self.clock, self.content(sector));
            self.dirty.insert(sector, written);
        }
    }

    /// What the file has now, less at its end.
    fn content(&self, sector: u64) -> Vec<u8> {
        let mut data = vec![0; SECTOR as usize];
        let got = self.file.read_at(&mut data, sector * SECTOR).unwrap_or(0);
        data.truncate(got);
        data
    }

    /// A sector is stable.
    fn store(&mut self, sector: u64, data: &[u8]) {
        let at = (sector * SECTOR) as usize;
        if self.stable.len() < at + data.len() {
            self.stable.resize(at + data.len(), 0);
        }
        if let Some(stable) = self.stable.get_mut(at..at + data.len()) {
            stable.copy_from_slice(data);
        }
    }

    /// What was written up to a moment is stable.
    pub fn settle(&mut self, until: u64) {
        let dirty = std::mem::take(&mut self.dirty);
        for (sector, (written, data)) in dirty {
            if written <= until {
                self.store(sector, &data);
            } else {
                self.dirty.insert(sector, (written, data));
            }
        }
    }

    /// A range that was just written is stable.
    pub fn settle_range(&mut self, offset: u64, len: u64) {
        for sector in Self::sectors(offset, len) {
            let data = match self.dirty.remove(&sector) {
                Some((_, data)) => data,
                None => self.content(sector),
            };
            self.store(sector, &data);
        }
    }

    /// What was written up to a moment never becomes stable.
    pub fn lose(&mut self, until: u64) {
        self.dirty.retain(|_, (written, _)| *written > until);
    }

    /// Makes the file what is left.
    pub fn cut(&mut self, keep: Keep) -> io::Result<()> {
        for (sector, (_, data)) in std::mem::take(&mut self.dirty) {
            if keep.keeps(sector) {
                self.store(sector, &data);
            }
        }
        let len = self.file.metadata()?.len();
        self.stable.resize(usize::try_from(len).unwrap_or(0), 0);
        self.file.set_len(0)?;
        self.file.write_all_at(&self.stable, 0)
    }
}
