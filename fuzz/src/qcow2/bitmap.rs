// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A persistent dirty bitmap in an image, which only QEMU makes.

/// Its name, and bytes of a block, as a power of two.
pub(super) const NAME: &str = "fuzz";
const GRANULARITY_BITS: u8 = 9;
/// Where an image without other extensions has its first one.
const EXTENSION: usize = 112;
const BITMAPS: u32 = 0x2385_2875;

/// Adds an enabled bitmap in which nothing is marked, of a disk of `guest` bytes, to an image in clusters of `cluster` bytes:
/// a directory and a table behind its end, which are not counted yet.
pub(super) fn add(image: &mut Vec<u8>, cluster: usize, guest: u64) {
    let directory = image.len().next_multiple_of(cluster);
    let table = directory + cluster;
    image.resize(table + cluster, 0);
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let bits = guest >> GRANULARITY_BITS;
    let entries = (bits.div_ceil(8) as usize).div_ceil(cluster);
    put(directory, &(table as u64).to_be_bytes());
    put(directory + 8, &(entries as u32).to_be_bytes());
    // Changes are marked in it.
    put(directory + 12, &2_u32.to_be_bytes());
    put(directory + 16, &[1, GRANULARITY_BITS]);
    put(directory + 18, &(NAME.len() as u16).to_be_bytes());
    put(directory + 24, NAME.as_bytes());
    let len = (24 + NAME.len()).next_multiple_of(8) as u64;
    put(EXTENSION, &BITMAPS.to_be_bytes());
    put(EXTENSION + 4, &24_u32.to_be_bytes());
    put(EXTENSION + 8, &1_u32.to_be_bytes());
    put(EXTENSION + 16, &len.to_be_bytes());
    put(EXTENSION + 24, &(directory as u64).to_be_bytes());
    // The autoclear feature: it is up to date.
    put(95, &[1]);
}
