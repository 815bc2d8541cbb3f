// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kinds of disks of this crate.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, de};
use virtio_blk_core::disk::{Disk, DiskError};

use super::size::{self, Size};
use super::words::{differing, engine, lock, on_off};
use super::{ArgError, DiskKind, DiskOptions};
use crate::{MemoryDisk, NullDisk, RawDisk, RawOptions};

/// The kinds of disks of this crate, in the order in which they are named.
pub const OWN: &[DiskKind] = &[
    DiskKind::of::<RawOptions>(),
    DiskKind::of::<MemoryOptions>(),
    DiskKind::of::<NullOptions>(),
];

/// A disk in memory: `memory:SIZE`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryOptions {
    /// Bytes, a multiple of 512.
    #[serde(skip)]
    pub bytes: u64,
}

/// A disk that holds nothing: `null:SIZE`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NullOptions {
    /// Bytes, a multiple of 512.
    #[serde(skip)]
    pub bytes: u64,
    /// Reads give zeroes, see [`NullDisk::zero_fill`].
    pub zero: bool,
}

impl Default for NullOptions {
    fn default() -> Self {
        Self {
            bytes: 0,
            zero: true,
        }
    }
}

/// Reads the size of a block.
pub(crate) fn block<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    struct Block;

    impl Block {
        fn checked(bytes: u64) -> Option<u32> {
            let bytes = u32::try_from(bytes).ok()?;
            (bytes.is_power_of_two() && (512..=1 << 21).contains(&bytes)).then_some(bytes)
        }
    }

    impl de::Visitor<'_> for Block {
        type Value = u32;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a power of two from 512 to 2097152 (bytes)")
        }

        fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<u32, E> {
            let wrong = || E::invalid_value(de::Unexpected::Unsigned(bytes), &self);
            Self::checked(bytes).ok_or_else(wrong)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<u32, E> {
            let wrong = || E::invalid_value(de::Unexpected::Str(text), &self);
            let bytes = text.parse().ok().and_then(Self::checked);
            bytes.ok_or_else(wrong)
        }
    }

    from.deserialize_any(Block).map(Some)
}

impl DiskOptions for RawOptions {
    const NAME: &'static str = "raw";
    const TARGET: &'static str = "PATH";
    const HELP: &'static str = "raw:PATH[,readonly=on|off][,direct=on|off][,engine=auto|io_uring|sync]\
                                [,discard=on|off][,block=BYTES][,lock=on|off|handover][,mmap=auto|off]";
    const MANUAL: &'static str = "  \
  raw:PATH[,OPTION…]      a file or block device
      readonly=on|off     open it read-only (off)
      direct=on|off       bypass the page cache (off)
      engine=auto|io_uring|sync
                          how to do I/O (auto: probe, and take the best)
      discard=on|off      pass discards to the host (on)
      block=BYTES         logical block size that the guest sees (probed)
      lock=on|off|handover
                          lock the file against other users (on); handover:
                          only while a driver uses the disk, so that a guest
                          can migrate between two servers of it
      mmap=auto|off       copy cached reads from a mapping of the file (auto)";

    fn set_target(&mut self, target: String) -> Result<(), ArgError> {
        self.path = target.into();
        Ok(())
    }

    fn target(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    fn changed(&self) -> Vec<(&'static str, String)> {
        let usual = Self::default();
        let mut changed = differing([
            ("readonly", on_off(self.read_only), on_off(usual.read_only)),
            ("direct", on_off(self.direct), on_off(usual.direct)),
            ("discard", on_off(self.discard), on_off(usual.discard)),
            ("lock", lock(self.lock), lock(usual.lock)),
            ("engine", engine(self.engine), engine(usual.engine)),
        ]);
        changed.extend(self.block.map(|bytes| ("block", bytes.to_string())));
        if !self.mmap {
            changed.push(("mmap", "off".to_owned()));
        }
        changed
    }

    fn open(&self, read_only: bool) -> Result<Arc<dyn Disk>, DiskError> {
        let read_only = read_only || self.read_only;
        Ok(Arc::new(RawDisk::open(&self.clone().read_only(read_only))?))
    }

    fn for_inspection(self) -> Self {
        self.inspect(true)
    }

    fn unlocked(self) -> Self {
        self.lock(false)
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

impl DiskOptions for MemoryOptions {
    const NAME: &'static str = "memory";
    const TARGET: &'static str = "SIZE";
    const HELP: &'static str = "memory:SIZE";
    const MANUAL: &'static str = "  memory:SIZE             memory, gone when its process ends";

    fn set_target(&mut self, target: String) -> Result<(), ArgError> {
        self.bytes = size::parse(&target)?;
        Ok(())
    }

    fn target(&self) -> String {
        Size(self.bytes).to_string()
    }

    fn changed(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn open(&self, read_only: bool) -> Result<Arc<dyn Disk>, DiskError> {
        let disk = MemoryDisk::new(self.bytes)?;
        Ok(Arc::new(if read_only { disk.read_only()? } else { disk }))
    }
}

impl DiskOptions for NullOptions {
    const NAME: &'static str = "null";
    const TARGET: &'static str = "SIZE";
    const HELP: &'static str = "null:SIZE[,zero=on|off]";
    const MANUAL: &'static str = "  null:SIZE[,zero=on|off] stores nothing; for benchmarks";

    fn set_target(&mut self, target: String) -> Result<(), ArgError> {
        self.bytes = size::parse(&target)?;
        Ok(())
    }

    fn target(&self) -> String {
        Size(self.bytes).to_string()
    }

    fn changed(&self) -> Vec<(&'static str, String)> {
        differing([("zero", on_off(self.zero), "on")])
    }

    fn open(&self, read_only: bool) -> Result<Arc<dyn Disk>, DiskError> {
        let disk = NullDisk::new(self.bytes)?.zero_fill(self.zero);
        Ok(Arc::new(disk.read_only(read_only)))
    }
}
