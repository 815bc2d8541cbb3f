// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The dirty page log of a migration (vhost-user: `SET_LOG_BASE`, `VHOST_F_LOG_ALL`).

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use vm_memory::VolatileMemory;
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::shared_file::{Alarm, SharedFile};

/// Bytes of guest memory per bit (`VHOST_LOG_PAGE`).
const PAGE: u64 = 4096;

/// One bit per page of guest memory, in memory shared with the client.
#[derive(Debug, Default)]
pub(crate) struct DirtyLog {
    enabled: Arc<AtomicBool>,
    bits: RwLock<Option<SharedFile>>,
}

impl DirtyLog {
    /// Takes a new log of `size` bytes at `offset` of `file`.
    ///
    /// # Errors
    /// The file is shorter than that, or can't be mapped.
    pub(crate) fn replace(
        &self,
        file: &File,
        offset: u64,
        size: u64,
        alarm: &Alarm,
    ) -> io::Result<()> {
        let region = SharedFile::map(file, offset, size, alarm)?;
        *self.bits.write().unwrap_or_else(PoisonError::into_inner) = Some(region);
        Ok(())
    }

    /// Starts or ends logging.
    pub(crate) fn enable(&self, on: bool) {
        self.enabled.store(on, Ordering::Release);
    }

    /// Whether logging is on, at any time.
    pub(crate) fn enabled(&self) -> &Arc<AtomicBool> {
        &self.enabled
    }

    fn mark(&self, addr: u64, len: u64) {
        if len == 0 || !self.enabled.load(Ordering::Acquire) {
            return;
        }
        let bits = self.bits.read().unwrap_or_else(PoisonError::into_inner);
        let Some(bits) = bits.as_ref() else { return };
        for page in addr / PAGE..=addr.saturating_add(len - 1) / PAGE {
            // Pages beyond the log are the client's mistake; it sized the log.
            let Ok(byte) = usize::try_from(page / 8) else {
                return;
            };
            let Ok(byte) = bits.get_atomic_ref::<AtomicU8>(byte) else {
                return;
            };
            byte.fetch_or(1 << (page % 8), Ordering::AcqRel);
        }
    }
}

/// The view of a [`DirtyLog`] that a memory region has: offsets count from `base`.
#[derive(Clone, Debug)]
pub(crate) struct LogBitmap {
    log: Arc<DirtyLog>,
    base: u64,
}

impl LogBitmap {
    /// A bitmap for a region at guest address `base`.
    pub(crate) fn new(log: Arc<DirtyLog>, base: u64) -> Self {
        Self { log, base }
    }
}

impl Bitmap for LogBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.log
            .mark(self.base.saturating_add(offset as u64), len as u64);
    }

    /// Always `false`: the client reads the log, this side only writes it.
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            log: self.log.clone(),
            base: self.base.saturating_add(offset as u64),
        }
    }
}

impl WithBitmapSlice<'_> for LogBitmap {
    type S = Self;
}

impl BitmapSlice for LogBitmap {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared_file::alarm;

    #[test]
    fn marks_exactly_the_pages_touched_while_enabled() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let log = Arc::new(DirtyLog::default());
        log.replace(&file, 0, 16, &alarm()).unwrap();
        let bitmap = LogBitmap::new(log.clone(), 0x10_000);
        bitmap.mark_dirty(0, 1);
        log.enable(true);
        bitmap.slice_at(0xfff).mark_dirty(0, 2);
        bitmap.mark_dirty(0x3000, 0);
        bitmap.mark_dirty(usize::MAX, usize::MAX);
        log.mark(127 * PAGE, 5 * PAGE);
        log.enable(false);
        bitmap.mark_dirty(0x5000, 1);
        let mut bytes = [0; 17];
        std::os::unix::fs::FileExt::read_at(&file, &mut bytes, 0).unwrap();
        let mut expected = [0; 17];
        expected[2] = 0b11; // Pages 0x10 and 0x11.
        expected[15] = 0x80;
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_log_beyond_its_file_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        assert!(
            DirtyLog::default()
                .replace(&file, 0, 4096, &alarm())
                .is_err()
        );
    }
}
