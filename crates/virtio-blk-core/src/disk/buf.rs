// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The data of one operation: host memory segments and what keeps them mapped.

#[cfg(feature = "iotlb")]
use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::sync::Arc;

#[cfg(feature = "iotlb")]
use vm_memory::atomic::GuestMemoryLoadGuard;

#[cfg(feature = "iotlb")]
use crate::memory::IotlbTable;
use crate::memory::KeepAlive;

/// What holds the memory of a queue over an I/O TLB.
#[cfg(feature = "iotlb")]
type Translated = GuestMemoryLoadGuard<IotlbTable>;

/// An ordered list of host memory segments, together with an owner of that memory.
///
/// The memory may be shared with a guest that changes it at any moment. It is therefore only ever
/// copied or handed to the kernel, never borrowed as a slice. Methods take `&self` also where they
/// write: the buffer is a window on memory that others see.
///
/// It is one pointer wide, because it moves with its operation from hand to hand; what it points to is
/// reused from one operation to the next.
pub struct IoBuf(Option<Box<Inner>>);

#[derive(Default)]
pub(crate) struct Inner {
    segments: Vec<libc::iovec>,
    len: usize,
    keep: Option<Arc<dyn KeepAlive>>,
}

impl Inner {
    /// See [`IoBuf::push`].
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(crate) unsafe fn push(&mut self, base: *mut u8, len: usize) {
        if len == 0 {
            return;
        }
        self.len += len;
        if let Some(last) = self.segments.last_mut()
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base
        {
            last.iov_len += len;
            return;
        }
        self.segments.push(libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        });
    }

    /// Segments so far.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.segments.len()
    }
}

// SAFETY: the segments point to memory that `keep` holds mapped from any thread, and every access is a
// raw copy that assumes other writers.
unsafe impl Send for IoBuf {}

/// Heap memory that is only accessed through raw pointers.
struct Owned(UnsafeCell<Box<[u8]>>);
// SAFETY: nothing but raw copies reach the content, see `IoBuf`.
unsafe impl Send for Owned {}
// SAFETY: as above.
unsafe impl Sync for Owned {}

impl Default for IoBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl IoBuf {
    /// An empty buffer; allocates nothing.
    pub const fn new() -> Self {
        Self(None)
    }

    fn inner(&mut self) -> &mut Inner {
        self.0.get_or_insert_default()
    }

    /// Whether there is anything to drop.
    #[inline]
    pub(crate) const fn is_allocated(&self) -> bool {
        self.0.is_some()
    }

    /// A buffer of its own memory, of one segment, with `data` as content.
    pub fn from_vec(data: Vec<u8>) -> Self {
        let len = data.len();
        let owned = Arc::new(Owned(UnsafeCell::new(data.into_boxed_slice())));
        let mut buf = Self::new();
        // SAFETY: no reference into the box exists; the pointer stays valid as the box is never moved
        // out of nor replaced.
        let base = unsafe { (*owned.0.get()).as_mut_ptr() };
        buf.set_keep(owned);
        // SAFETY: `base` is valid for `len` bytes while `keep` lives.
        unsafe { buf.push(base, len) };
        buf
    }

    /// A buffer of its own memory with `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self::from_vec(vec![0; len])
    }

    /// Forgets the segments, keeping the allocation of the list and the owner of the memory.
    #[inline]
    pub fn clear(&mut self) {
        if let Some(inner) = &mut self.0 {
            inner.segments.clear();
            inner.len = 0;
        }
    }

    /// Empties the buffer, makes `keep` the owner of what is pushed next, and returns where to push.
    /// Costs no atomic operation when `keep` is the owner already.
    #[inline(always)]
    pub(crate) fn refill(&mut self, keep: &Arc<dyn KeepAlive>) -> &mut Inner {
        let inner = match &mut self.0 {
            Some(inner) => inner,
            empty => empty.insert(Box::default()),
        };
        inner.segments.clear();
        inner.len = 0;
        if !inner
            .keep
            .as_ref()
            .is_some_and(|held| Arc::ptr_eq(held, keep))
        {
            inner.keep = Some(keep.clone());
        }
        inner
    }

    /// Makes the buffer of one segment, which is not empty, with `keep` as the owner of its memory.
    ///
    /// # Safety
    /// As for [`IoBuf::push`].
    #[inline(always)]
    pub(crate) unsafe fn set_one(&mut self, keep: &Arc<dyn KeepAlive>, base: *mut u8, len: usize) {
        let segment = libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        };
        if let Some(inner) = &mut self.0
            && let [one] = inner.segments.as_mut_slice()
            && let Some(held) = &inner.keep
            && Arc::ptr_eq(held, keep)
        {
            *one = segment;
            inner.len = len;
            return;
        }
        self.set_first(keep, segment);
    }

    #[cold]
    fn set_first(&mut self, keep: &Arc<dyn KeepAlive>, segment: libc::iovec) {
        let inner = self.refill(keep);
        inner.len = segment.iov_len;
        inner.segments.push(segment);
    }

    /// Empties the buffer and makes `keep` the owner of the memory that later `push` calls refer to.
    pub fn set_keep(&mut self, keep: Arc<dyn KeepAlive>) {
        self.clear();
        self.inner().keep = Some(keep);
    }

    /// Gives up the memory: segments, their list and the owner.
    pub fn release(&mut self) {
        self.0 = None;
    }

    /// Appends a segment. Adjacent segments are merged, empty ones left out.
    ///
    /// # Safety
    /// `base` must be valid for reads and writes (or only the direction the operation uses) of `len`
    /// bytes, from any thread, until the owner given with [`IoBuf::set_keep`] is dropped. The sum of
    /// all lengths must not exceed `isize::MAX`.
    pub unsafe fn push(&mut self, base: *mut u8, len: usize) {
        // SAFETY: the same contract.
        unsafe { self.inner().push(base, len) };
    }

    /// Bytes in all segments.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |inner| inner.len)
    }

    /// Whether there are no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The segments, as the kernel takes them. Valid while this buffer lives.
    #[inline]
    pub fn segments(&self) -> &[libc::iovec] {
        self.0.as_ref().map_or(&[], |inner| &inner.segments)
    }

    /// Whether every segment's address and length is a multiple of `align`, a power of two in bytes.
    pub fn is_aligned(&self, align: usize) -> bool {
        let mask = align.wrapping_sub(1);
        self.segments()
            .iter()
            .all(|s| (s.iov_base as usize | s.iov_len) & mask == 0)
    }

    /// Whether the memory is still the one that it was, as far as can be told: a transport may take it away from
    /// requests that do not end, and then zeroes are found there. A disk that copies data itself asks after the
    /// copy (and before, if it copies to where the data stays), and fails a write with `EFAULT` whose data is lost.
    pub fn is_intact(&self) -> bool {
        self.memory_is_there()
    }

    #[cfg(not(feature = "iotlb"))]
    const fn memory_is_there(&self) -> bool {
        true
    }

    #[cfg(feature = "iotlb")]
    fn memory_is_there(&self) -> bool {
        let keep = self.0.as_ref().and_then(|inner| inner.keep.as_ref());
        let translated = keep.and_then(|keep| {
            let keep: &dyn Any = &**keep;
            keep.downcast_ref::<Translated>()
        });
        translated.is_none_or(|table| table.is_intact(self.segments()))
    }

    /// Appends to `out` the pieces that cover this buffer from byte `offset` on: at most `max_len`
    /// bytes in at most `max_segments` pieces. Returns the bytes covered.
    pub fn window(
        &self,
        offset: usize,
        max_len: usize,
        max_segments: usize,
        out: &mut Vec<libc::iovec>,
    ) -> usize {
        let mut covered = 0;
        let mut left = max_segments;
        self.visit(offset, max_len, |base, len| {
            if left == 0 {
                return false;
            }
            left -= 1;
            covered += len;
            out.push(libc::iovec {
                iov_base: base.cast(),
                iov_len: len,
            });
            true
        });
        covered
    }

    /// The bytes from `offset` on, at most `len` of them, as a buffer of its own over the same memory, which it keeps
    /// mapped as this one does: for a disk that passes parts of an operation on.
    pub fn part(&self, offset: usize, len: usize) -> Self {
        let mut part = Self::new();
        let inner = part.inner();
        inner.keep = self.0.as_ref().and_then(|inner| inner.keep.clone());
        self.visit(offset, len, |base, len| {
            // SAFETY: a part of a segment of this buffer, whose owner is the part's, too.
            unsafe { inner.push(base, len) };
            true
        });
        part
    }

    /// Copies `data` into the buffer from byte `offset` on, as far as there is room. Returns the bytes
    /// copied.
    pub fn copy_in(&self, offset: usize, data: &[u8]) -> usize {
        let mut done = 0;
        self.visit(offset, data.len(), |base, len| {
            if let Some(part) = data.get(done..done + len) {
                // SAFETY: `base` is valid for `len` bytes (contract of `push`), `part` has `len` bytes
                // and is not guest memory, so they cannot overlap.
                unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), base, len) };
                done += len;
            }
            true
        });
        done
    }

    /// Copies from the buffer, from byte `offset` on, into `data`, as far as there are bytes. Returns
    /// the bytes copied.
    pub fn copy_out(&self, offset: usize, data: &mut [u8]) -> usize {
        let mut done = 0;
        let room = data.len();
        self.visit(offset, room, |base, len| {
            if let Some(part) = data.get_mut(done..done + len) {
                // SAFETY: as in `copy_in`, in the other direction.
                unsafe { std::ptr::copy_nonoverlapping(base.cast_const(), part.as_mut_ptr(), len) };
                done += len;
            }
            true
        });
        done
    }

    /// Sets `len` bytes from byte `offset` on to `value`, as far as there are bytes. Returns the bytes
    /// set.
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> usize {
        let mut done = 0;
        self.visit(offset, len, |base, len| {
            // SAFETY: `base` is valid for writes of `len` bytes (contract of `push`).
            unsafe { std::ptr::write_bytes(base, value, len) };
            done += len;
            true
        });
        done
    }

    /// A copy of the content.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut data = vec![0; self.len()];
        self.copy_out(0, &mut data);
        data
    }

    /// Calls `f` with each contiguous piece of `[offset, offset + len)` clipped to the buffer, until it
    /// returns `false`.
    #[inline]
    fn visit(&self, offset: usize, len: usize, mut f: impl FnMut(*mut u8, usize) -> bool) {
        let (mut skip, mut left) = (offset, len);
        for segment in self.segments() {
            if left == 0 {
                return;
            }
            if skip >= segment.iov_len {
                skip -= segment.iov_len;
                continue;
            }
            let part = (segment.iov_len - skip).min(left);
            if !f(segment.iov_base.cast::<u8>().wrapping_add(skip), part) {
                return;
            }
            skip = 0;
            left -= part;
        }
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoBuf")
            .field("len", &self.len())
            .field("segments", &self.segments().len())
            .finish()
    }
}
