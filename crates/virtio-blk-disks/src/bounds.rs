// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The checks every disk makes before it touches its medium.

use virtio_blk_core::disk::{DiskError, OpKind};

/// What an operation is checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Bytes of the medium, as of now.
    pub capacity: u64,
    /// Bytes of the guest block, a power of two.
    pub block: u32,
    /// Nothing may change the medium.
    pub read_only: bool,
}

impl Bounds {
    /// Checks an operation whose buffer holds `data_len` bytes.
    ///
    /// # Errors
    /// `ReadOnly`, `OutOfRange` or `Misaligned`, in this order.
    #[inline]
    pub fn check(self, kind: &OpKind, data_len: usize) -> Result<(), DiskError> {
        if self.read_only && kind.is_write() {
            return Err(DiskError::ReadOnly);
        }
        let Some((offset, len)) = kind.range(data_len as u64) else {
            return Ok(());
        };
        if offset > self.capacity || len > self.capacity - offset {
            return Err(DiskError::OutOfRange);
        }
        if (offset | len) & (u64::from(self.block) - 1) != 0 {
            return Err(DiskError::Misaligned);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_its_error() {
        let bounds = Bounds {
            capacity: 8192,
            block: 4096,
            read_only: false,
        };
        let read = |offset| OpKind::Read { offset };
        assert!(bounds.check(&read(4096), 4096).is_ok());
        assert!(bounds.check(&read(8192), 0).is_ok());
        for (offset, len) in [(4096, 8192), (u64::MAX, 4096), (8192, 1), (u64::MAX, 0)] {
            let got = bounds.check(&read(offset), len);
            assert!(matches!(got, Err(DiskError::OutOfRange)), "{got:?}");
        }
        for (offset, len) in [(512, 4096), (0, 512)] {
            let got = bounds.check(&read(offset), len);
            assert!(matches!(got, Err(DiskError::Misaligned)), "{got:?}");
        }
        assert!(bounds.check(&OpKind::Flush, 0).is_ok());
    }

    #[test]
    fn read_only_refuses_changes_and_nothing_else() {
        let bounds = Bounds {
            capacity: 4096,
            block: 512,
            read_only: true,
        };
        assert!(bounds.check(&OpKind::Read { offset: 0 }, 512).is_ok());
        assert!(bounds.check(&OpKind::Flush, 0).is_ok());
        let write = OpKind::Write {
            offset: 0,
            fua: false,
        };
        assert!(matches!(
            bounds.check(&write, 512),
            Err(DiskError::ReadOnly)
        ));
    }
}
