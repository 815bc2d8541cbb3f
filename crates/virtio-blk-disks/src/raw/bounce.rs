// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Aligned memory for direct I/O on behalf of buffers that aren't.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use virtio_blk_core::disk::DiskError;

/// Bytes in a chunk, unless the alignment is larger.
const CHUNK: usize = 256 << 10;

/// A piece of aligned heap memory, accessed only through raw copies because the kernel may use it too.
#[derive(Debug)]
pub(super) struct Chunk {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory belongs to the chunk alone; nothing about it is tied to a thread.
unsafe impl Send for Chunk {}
// SAFETY: through `&Chunk` only its address can be had.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// A zeroed chunk of at least `align` bytes, at a multiple of `align`, a power of two.
    ///
    /// # Errors
    /// The host is out of memory.
    pub fn new(align: usize) -> Result<Self, DiskError> {
        let no_memory = || DiskError::from_errno(libc::ENOMEM);
        let layout =
            Layout::from_size_align(CHUNK.max(align), align.max(4096)).map_err(|_| no_memory())?;
        // SAFETY: the size is not 0.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(no_memory)?;
        Ok(Self { base, layout })
    }

    /// Bytes.
    pub const fn len(&self) -> usize {
        self.layout.size()
    }

    /// The first `len` bytes, as the kernel takes them; at most the whole chunk.
    pub fn segment(&self, len: usize) -> libc::iovec {
        libc::iovec {
            iov_base: self.base.as_ptr().cast(),
            iov_len: len.min(self.len()),
        }
    }

    /// The first `len` bytes. The kernel must not be using the chunk: `&mut` says that nobody else
    /// does in this process, the owning job keeps to it for the kernel.
    pub fn bytes(&mut self, len: usize) -> &mut [u8] {
        // SAFETY: valid and initialised for its whole length, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), len.min(self.len())) }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// The chunks of one queue: made when first needed, kept, never more than a fixed number.
#[derive(Debug)]
pub(super) struct Pool {
    align: usize,
    free: Vec<Chunk>,
    made: usize,
    limit: usize,
}

impl Pool {
    /// An empty pool of up to `limit` chunks at multiples of `align` bytes.
    pub const fn new(align: usize, limit: usize) -> Self {
        Self {
            align,
            free: Vec::new(),
            made: 0,
            limit,
        }
    }

    /// A chunk; `None` while all are in use.
    ///
    /// # Errors
    /// The host is out of memory and no chunk exists that could become free.
    pub fn take(&mut self) -> Result<Option<Chunk>, DiskError> {
        if let Some(chunk) = self.free.pop() {
            return Ok(Some(chunk));
        }
        if self.made == self.limit {
            return Ok(None);
        }
        match Chunk::new(self.align) {
            Ok(chunk) => {
                self.made += 1;
                Ok(Some(chunk))
            }
            Err(error) if self.made == 0 => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Takes a chunk back.
    pub fn give(&mut self, chunk: Chunk) {
        self.free.push(chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_aligned_and_bounded() {
        for align in [1, 512, 4096, 1 << 20] {
            let mut pool = Pool::new(align, 2);
            let one = pool.take().unwrap().unwrap();
            let two = pool.take().unwrap().unwrap();
            assert!(pool.take().unwrap().is_none());
            for chunk in [&one, &two] {
                assert_eq!(chunk.segment(512).iov_base as usize % align.max(4096), 0);
                assert!(chunk.len() >= align && chunk.len() % align == 0);
            }
            pool.give(one);
            assert!(pool.take().unwrap().is_some());
        }
    }

    #[test]
    fn a_segment_never_exceeds_the_chunk() {
        let mut chunk = Chunk::new(512).unwrap();
        let len = chunk.len();
        assert_eq!(chunk.segment(usize::MAX).iov_len, len);
        assert_eq!(chunk.bytes(usize::MAX).len(), len);
    }
}
