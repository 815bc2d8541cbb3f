// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kinds of guest memory, to run one test body on each of them.
//!
//! | function | memory |
//! |---|---|
//! | [`single`] | one region |
//! | [`gapped`] | three regions: two adjacent, so that buffers straddle them, then a gap and the third |
//! | [`fragmented`] | behind an IOMMU, each page somewhere else in host memory |
//! | [`fragmented_naive`] | the same with an IOMMU as careless as vm-memory's own lookup |
//!
//! Each returns the memory and a [`Space`] to take buffers from. [`on_each_memory!`](crate::on_each_memory)
//! runs a block on each of the first three.

mod iommu;
mod space;

use vm_memory::mmap::FromRangesError;
use vm_memory::{GuestAddress, GuestMemoryMmap, IommuMemory};

pub use iommu::{PAGE, TestIommu};
pub use space::{OutOfSpace, Space};

/// Guest memory behind a [`TestIommu`].
pub type FragmentedMemory = IommuMemory<GuestMemoryMmap<()>, TestIommu>;

/// Where memory starts: not at 0, and not aligned to more than a page.
const BASE: u64 = 0x1_1000;
/// Where I/O virtual memory starts: beyond 32 bits.
const IOVA_BASE: u64 = 0x12_3456_7000;
/// Bytes between the second and the third region of gapped memory.
const GAP: u64 = 0x10_0000;

/// Why test memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TestMemoryError {
    /// The host gave no memory.
    #[error("cannot map test memory")]
    Map(#[from] FromRangesError),
    /// A length must be a positive multiple of the page size, and at least three pages.
    #[error("test memory of {0} bytes: give a multiple of 4096, at least 12288")]
    Length(usize),
}

fn check(len: usize) -> Result<u64, TestMemoryError> {
    if len < 3 * PAGE || !len.is_multiple_of(PAGE) {
        return Err(TestMemoryError::Length(len));
    }
    Ok(len as u64)
}

/// One region of `len` bytes.
///
/// # Errors
/// A bad length, or the host gave no memory.
pub fn single(len: usize) -> Result<(GuestMemoryMmap<()>, Space), TestMemoryError> {
    let space = Space::new(&[(GuestAddress(BASE), check(len)?)]);
    Ok((
        GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), len)])?,
        space,
    ))
}

/// Three regions of `len` bytes in total. The space's first part spans two adjacent ones.
///
/// # Errors
/// As for [`single`].
pub fn gapped(len: usize) -> Result<(GuestMemoryMmap<()>, Space), TestMemoryError> {
    check(len)?;
    let third = len / 3 / PAGE * PAGE;
    let rest = len - 2 * third;
    let second = BASE + third as u64;
    let last = second + third as u64 + GAP;
    let mem = GuestMemoryMmap::from_ranges(&[
        (GuestAddress(BASE), third),
        (GuestAddress(second), third),
        (GuestAddress(last), rest),
    ])?;
    let space = Space::new(&[
        (GuestAddress(BASE), 2 * third as u64),
        (GuestAddress(last), rest as u64),
    ]);
    Ok((mem, space))
}

/// `len` bytes of I/O virtual memory whose pages lie shuffled in host memory; `seed` says how.
///
/// # Errors
/// As for [`single`].
pub fn fragmented(len: usize, seed: u64) -> Result<(FragmentedMemory, Space), TestMemoryError> {
    make_fragmented(len, seed, TestIommu::new())
}

/// As [`fragmented`], with an IOMMU that hands ranges to vm-memory's lookup unchecked. A lookup of a
/// range that wraps around the address space panics in a debug build, and returns no bytes in a release build: a device
/// must not make one.
///
/// # Errors
/// As for [`single`].
pub fn fragmented_naive(
    len: usize,
    seed: u64,
) -> Result<(FragmentedMemory, Space), TestMemoryError> {
    make_fragmented(len, seed, TestIommu::naive())
}

fn make_fragmented(
    len: usize,
    seed: u64,
    iommu: TestIommu,
) -> Result<(FragmentedMemory, Space), TestMemoryError> {
    let bytes = check(len)?;
    let backend = GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), len)])?;
    let mut pages: Vec<u64> = (0..bytes / PAGE as u64).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut pages);
    let mapping = pages.into_iter().enumerate().map(|(index, page)| {
        let iova = IOVA_BASE + (index * PAGE) as u64;
        (GuestAddress(iova), GuestAddress(BASE + page * PAGE as u64))
    });
    iommu.map_pages(mapping);
    let mem = IommuMemory::new(backend, iommu, true, ());
    Ok((mem, Space::new(&[(GuestAddress(IOVA_BASE), bytes)])))
}

/// Runs a block on plain memory of one region, plain memory with a gap, and fragmented memory behind
/// an IOMMU, each of `len` bytes: `on_each_memory!(len, |mem, space| { … })`, where `mem` is an `Arc` of
/// the memory and `space` a mutable [`Space`](crate::testmem::Space). The block is compiled once for each.
#[macro_export]
macro_rules! on_each_memory {
    ($len:expr, |$mem:ident, $space:ident| $body:block) => {{
        {
            let (mem, mut $space) = $crate::testmem::single($len).expect("single memory");
            let $mem = ::std::sync::Arc::new(mem);
            $body
        }
        {
            let (mem, mut $space) = $crate::testmem::gapped($len).expect("gapped memory");
            let $mem = ::std::sync::Arc::new(mem);
            $body
        }
        {
            let (mem, mut $space) =
                $crate::testmem::fragmented($len, 1).expect("fragmented memory");
            let $mem = ::std::sync::Arc::new(mem);
            $body
        }
    }};
}

#[cfg(test)]
mod tests;
