// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest should find on its disk.

/// A byte of the disk.
#[derive(Clone, Copy)]
struct Byte {
    value: u8,
    /// It was discarded: it may be zero as well.
    discarded: bool,
}

/// What a guest should find on its disk.
pub(super) struct Model(Vec<Byte>);

impl Model {
    pub(super) fn new(content: &[u8]) -> Self {
        let byte = |value: &u8| Byte {
            value: *value,
            discarded: false,
        };
        Self(content.iter().map(byte).collect())
    }

    fn at(&mut self, offset: u64, len: u64) -> &mut [Byte] {
        &mut self.0[offset as usize..(offset + len) as usize]
    }

    pub(super) fn write(&mut self, offset: u64, len: u64, value: u8) {
        self.at(offset, len).fill(Byte {
            value,
            discarded: false,
        });
    }

    pub(super) fn discard(&mut self, offset: u64, len: u64) {
        for byte in self.at(offset, len) {
            byte.discarded = true;
        }
    }

    pub(super) fn grow(&mut self, size: u64) {
        let zero = Byte {
            value: 0,
            discarded: false,
        };
        self.0.resize(size as usize, zero);
    }

    /// Whether a read may have found that.
    pub(super) fn allows(&mut self, offset: u64, found: &[u8]) -> bool {
        let expected = self.at(offset, found.len() as u64).iter();
        expected
            .zip(found)
            .all(|(byte, found)| byte.value == *found || byte.discarded && *found == 0)
    }
}
