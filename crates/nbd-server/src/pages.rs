// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory for the data of requests: of whole pages, so that a disk can use it without a copy, and used again.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

use virtio_blk_core::disk::IoBuf;

/// Bytes: what the memory is aligned to, and its length a multiple of.
const PAGE: usize = 4096;

/// Memory of at most so many bytes is kept for later requests: two to the power of this times a page.
const CLASSES: usize = 7;

/// Bytes that are kept at most.
const KEPT: usize = 4 << 20;

/// Some pages. Others (a disk) may read and write them: there is never a reference to what is in them.
#[derive(Debug)]
pub(crate) struct Pages {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is nobody else's, and reached by raw copies only.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// So many bytes of zeroes, at least one; `None` where there is no memory.
    fn new(bytes: usize) -> Option<Arc<Self>> {
        let bytes = bytes.max(1).checked_next_multiple_of(PAGE)?;
        let layout = Layout::from_size_align(bytes, PAGE).ok()?;
        // SAFETY: the size is not 0.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Arc::new(Self { base, layout }))
    }

    /// A buffer of the memory, still empty.
    fn buffer(self: &Arc<Self>) -> IoBuf {
        let mut buf = IoBuf::new();
        buf.set_keep(self.clone());
        buf
    }

    /// Makes a buffer of this memory hold its first `len` bytes, of which there are as many.
    fn fill(&self, buf: &mut IoBuf, len: usize) {
        buf.clear();
        // SAFETY: valid for the whole length until the last owner, of which the buffer is one, is dropped.
        unsafe { buf.push(self.base.as_ptr(), len.min(self.layout.size())) };
    }

    /// Whether the buffer is one of this memory.
    fn is_in(&self, buf: &IoBuf) -> bool {
        let first = buf.segments().first();
        first.is_some_and(|first| first.iov_base.cast() == self.base.as_ptr())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and dropped by the last owner.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// Memory of one connection. What it is used for again was the same client's.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// By their size: a page, two, four and so on. Each with its buffer.
    free: [Vec<(IoBuf, Arc<Pages>)>; CLASSES],
    kept: usize,
}

/// The class of memory of so many bytes, and what it has; `None`: it is not kept.
fn class_of(len: usize) -> Option<(usize, usize)> {
    let bytes = len.max(PAGE).checked_next_power_of_two()?;
    let class = (bytes / PAGE).trailing_zeros() as usize;
    (class < CLASSES).then_some((class, bytes))
}

impl Pool {
    /// A buffer of `len` bytes with anything in it, and its memory, which goes back with [`Pool::put`]. `None` where there is
    /// no memory.
    pub(crate) fn get(&mut self, len: usize) -> Option<(IoBuf, Arc<Pages>)> {
        let class = class_of(len);
        let kept = class.and_then(|(class, bytes)| Some((self.free.get_mut(class)?.pop()?, bytes)));
        let (mut buf, pages) = match kept {
            Some((kept, bytes)) => {
                self.kept -= bytes;
                kept
            }
            None => {
                let pages = Pages::new(class.map_or(len, |(_, bytes)| bytes))?;
                (pages.buffer(), pages)
            }
        };
        pages.fill(&mut buf, len);
        Some((buf, pages))
    }

    /// Takes memory back, with its buffer.
    pub(crate) fn put(&mut self, buf: IoBuf, pages: Arc<Pages>) {
        let size = pages.layout.size();
        // A disk may still have a handle of it, beside the buffer and this one.
        if Arc::strong_count(&pages) == 2
            && pages.is_in(&buf)
            && let Some((class, bytes)) = class_of(size)
            && bytes == size
            && self.kept + size <= KEPT
            && let Some(free) = self.free.get_mut(class)
        {
            self.kept += size;
            free.push((buf, pages));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_used_again_and_bounded() {
        let mut pool = Pool::default();
        for len in [1, 512, 4096, 5000, 256 << 10, 1 << 20, 32 << 20] {
            let (buf, pages) = pool.get(len).unwrap();
            assert_eq!(buf.len(), len);
            assert!((buf.segments()[0].iov_base as usize).is_multiple_of(PAGE));
            let base = pages.base;
            pool.put(buf, pages);
            let (buf, again) = pool.get(len).unwrap();
            assert_eq!(buf.len(), len);
            if len <= 256 << 10 {
                assert_eq!(again.base, base, "{len}");
            }
        }
        let all: Vec<_> = (0..100).map(|_| pool.get(256 << 10).unwrap()).collect();
        all.into_iter()
            .for_each(|(buf, pages)| pool.put(buf, pages));
        assert_eq!(pool.kept, KEPT);
        // What somebody still has is not given to the next request.
        let (buf, pages) = pool.get(512).unwrap();
        let (base, part) = (pages.base, buf.part(0, 512));
        pool.put(buf, pages);
        assert_ne!(pool.get(512).unwrap().1.base, base);
        drop(part);
        // Nor is memory whose buffer did not come back.
        let (_, pages) = pool.get(512).unwrap();
        let kept = pool.kept;
        pool.put(IoBuf::zeroed(512), pages);
        assert_eq!(pool.kept, kept);
    }
}
