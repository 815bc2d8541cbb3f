// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Compressed clusters.

use std::io::Read;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use ruzstd::decoding::StreamingDecoder;

use crate::format::Compression;

/// Most bytes that a frame of zstd may ask for as its window: that of the largest cluster, and QEMU's default level.
const MAX_WINDOW: u64 = 8 << 20;

/// Makes a cluster of compressed bytes, and remembers the last one.
pub struct Inflater {
    compression: Compression,
    deflate: Box<DecompressorOxide>,
    /// The descriptor that `data` belongs to. It never means other data: nobody writes compressed clusters, and those
    /// that become free are found by no descriptor any more.
    last: Option<u64>,
    data: Vec<u8>,
}

impl Inflater {
    /// For an image's compression.
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            deflate: Box::default(),
            last: None,
            data: Vec::new(),
        }
    }

    /// What was inflated last, if that was this.
    pub fn last(&self, descriptor: u64) -> Option<&[u8]> {
        (self.last == Some(descriptor)).then_some(&self.data)
    }

    /// Inflates a cluster of `len` bytes. The compressed data ends within `bytes`.
    pub fn inflate(&mut self, bytes: &[u8], len: usize, descriptor: u64) -> Option<&[u8]> {
        self.last = None;
        self.data.resize(len, 0);
        let good = match self.compression {
            Compression::Zlib => {
                self.deflate.init();
                let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
                let (status, _, made) =
                    decompress(&mut self.deflate, bytes, &mut self.data, 0, flags);
                // The stream may have more to say when the cluster is full.
                made == len && matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput)
            }
            Compression::Zstd => StreamingDecoder::new_with_max_window_size(bytes, MAX_WINDOW)
                .is_ok_and(|mut decoder| decoder.read_exact(&mut self.data).is_ok()),
        };
        if !good {
            return None;
        }
        self.last = Some(descriptor);
        Some(&self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "abc" 1,000 times, deflated.
    fn deflated() -> Vec<u8> {
        miniz_oxide::deflate::compress_to_vec(&b"abc".repeat(1000), 6)
    }

    #[test]
    fn deflated_clusters_are_restored_and_remembered() {
        let mut inflater = Inflater::new(Compression::Zlib);
        let mut bytes = deflated();
        bytes.extend([0x55; 300]);
        assert_eq!(
            inflater.inflate(&bytes, 3000, 7).unwrap(),
            b"abc".repeat(1000)
        );
        assert!(inflater.last(7).is_some() && inflater.last(8).is_none());
    }

    #[test]
    fn damaged_data_is_an_error() {
        let bytes = deflated();
        for compression in [Compression::Zlib, Compression::Zstd] {
            let mut inflater = Inflater::new(compression);
            assert!(inflater.inflate(&bytes, 3001, 7).is_none());
            assert!(inflater.inflate(&bytes[..10], 3000, 7).is_none());
            assert!(inflater.inflate(&[0xff; 100], 3000, 7).is_none());
            assert!(inflater.inflate(&[], 3000, 7).is_none());
            assert!(inflater.last(7).is_none());
        }
    }
}
