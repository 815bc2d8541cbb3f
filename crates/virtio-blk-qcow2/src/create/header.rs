// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The first cluster of a new image.

use super::CreateOptions;
use super::plan::Plan;
use crate::format::{autoclear, field, incompatible, put};

const MAGIC: u32 = 0x5146_49fb;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE: u32 = 0x4441_5441;
/// Bytes of the header that is written, with the field for the compression.
const LEN: usize = 112;
/// Bytes in front of the content of a header extension, and of the extension that ends them.
const HEAD: usize = 8;
/// The compatible feature that refcounts may be out of date while the image is in use.
const LAZY_REFCOUNTS: u64 = 1;

/// The header extensions of an image.
fn extensions(options: &CreateOptions) -> Vec<(u32, &[u8])> {
    let backing = options.backing.as_ref();
    let backing = backing.map(|(_, format)| (BACKING_FORMAT, format.as_bytes()));
    let data = options.data_file.as_ref();
    let data = data.map(|name| (DATA_FILE, name.as_bytes()));
    backing.into_iter().chain(data).collect()
}

/// Bytes up to the end of the backing file's name, which comes last.
pub(super) fn len(options: &CreateOptions) -> usize {
    let name = options.backing.as_ref().map_or(0, |(name, _)| name.len());
    extensions_end(options) + name
}

fn extensions_end(options: &CreateOptions) -> usize {
    let extensions = extensions(options);
    let all = (extensions.iter()).map(|(_, content)| HEAD + content.len().next_multiple_of(8));
    LEN + all.sum::<usize>() + HEAD
}

/// The first cluster of an image.
pub(super) fn header(plan: &Plan, options: &CreateOptions) -> Vec<u8> {
    let mut bytes = vec![0; plan.geometry.cluster() as usize];
    let mut features = 0;
    for (has, feature) in [
        (options.is_external(), incompatible::DATA_FILE),
        (options.zstd, incompatible::COMPRESSION),
        (options.subclusters, incompatible::EXTENDED_L2),
    ] {
        features |= if has { feature } else { 0 };
    }
    let when = |has, feature| if has { feature } else { 0 };
    for (at, value) in [
        (0, MAGIC),
        (4, 3),
        (20, plan.geometry.cluster_bits),
        (field::L1, plan.entries as u32),
        (field::REFCOUNTS + 8, plan.table as u32),
        (96, plan.geometry.refcount_order),
        (100, LEN as u32),
    ] {
        put(&mut bytes, at, &value.to_be_bytes());
    }
    for (at, value) in [
        (field::SIZE, options.size),
        (field::L1 + 4, plan.at(plan.l1_at())),
        (field::REFCOUNTS, plan.at(1)),
        (field::INCOMPATIBLE, features),
        (80, when(options.lazy_refcounts, LAZY_REFCOUNTS)),
        (
            field::AUTOCLEAR,
            when(options.data_file_raw, autoclear::DATA_FILE_RAW),
        ),
    ] {
        put(&mut bytes, at, &value.to_be_bytes());
    }
    put(&mut bytes, 104, &[u8::from(options.zstd)]);
    let mut at = LEN;
    for (kind, content) in extensions(options) {
        put(&mut bytes, at, &kind.to_be_bytes());
        put(&mut bytes, at + 4, &(content.len() as u32).to_be_bytes());
        put(&mut bytes, at + HEAD, content);
        at += HEAD + content.len().next_multiple_of(8);
    }
    if let Some((name, _)) = &options.backing {
        // Behind the extension that ends them.
        let at = extensions_end(options);
        put(&mut bytes, at, name.as_bytes());
        put(&mut bytes, 8, &(at as u64).to_be_bytes());
        put(&mut bytes, 16, &(name.len() as u32).to_be_bytes());
    }
    bytes
}
