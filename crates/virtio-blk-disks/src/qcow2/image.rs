// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The image behind the library: operations in our terms, and the library's panics caught.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imago::format::PreallocateMode;
use imago::{FormatAccess, Mapping};
use virtio_blk_core::disk::{DiskError, DiskEvent, IoBuf, OpKind, SECTOR_SIZE};

use super::chain::Opened;
use super::changes::Changes;
use super::control::Control;
use super::frozen::Frozen;
use super::gate::Gate;
use super::host::Host;
use super::storage::ImageFile;
use super::tables::Tables;
use crate::bounds::Bounds;

/// Most bytes that are mapped in one go.
const MAX_MAPPING: u64 = 8 << 20;
/// Most bytes whose place is told after an operation.
const MAX_LEARNED: u64 = 64 << 20;

/// A host, and the first byte of some data in it.
type Place = (Arc<dyn Host>, u64);

/// Clusters in a row, in the guest's view and in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First cluster of the guest, by number.
    pub cluster: u64,
    /// First byte in the file.
    pub host: u64,
    /// Clusters.
    pub count: u64,
    /// When this was so.
    pub generation: u64,
}

/// An open image.
pub(super) struct Image {
    /// Only `None` while dropped.
    format: Option<FormatAccess<ImageFile>>,
    /// Held in every call into the library. Its caches keep refcounts and tables in order on the way to the
    /// file, but not against an allocation between the writing of the first and of the second.
    library: Mutex<L2Tables>,
    /// The library has changes that the file has not. Changed by who holds `library`.
    unwritten: AtomicBool,
    tables: Arc<Tables>,
    pub host: Arc<dyn Host>,
    pub gate: Gate,
    pub cluster_bits: u32,
    /// What outlives it.
    control: Arc<Control>,
    read_only: bool,
    /// Bytes of the backing file.
    backing: Option<u64>,
    /// Clusters can be made zero.
    pub erases: bool,
    /// Discards give space back to the host.
    punch: bool,
    frozen: Arc<Frozen>,
    /// The listeners know that it is frozen.
    told: AtomicBool,
    /// None, if it is read-only.
    changes: Option<Arc<Changes>>,
}

/// Parts of the guest's disk that have an L2 table of their own, by number.
#[derive(Debug, Default)]
struct L2Tables(Vec<u64>);

impl L2Tables {
    fn has(&self, number: u64) -> bool {
        let word = self.0.get((number / 64) as usize);
        word.is_some_and(|word| word & 1 << (number % 64) != 0)
    }

    /// The number is bounded by the size of an L1 table: 32 MiB of entries.
    fn add(&mut self, number: u64) {
        let word = (number / 64) as usize;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        if let Some(word) = self.0.get_mut(word) {
            *word |= 1 << (number % 64);
        }
    }
}

fn broken(what: &str) -> DiskError {
    DiskError::Io(io::Error::new(io::ErrorKind::InvalidData, what))
}

impl Image {
    /// Of an image whose size `control` has.
    pub fn new(opened: Opened, control: Arc<Control>, punch: bool) -> Self {
        Self {
            erases: opened.header.version >= 3,
            cluster_bits: opened.header.cluster_bits,
            control,
            read_only: opened.changes.is_none(),
            backing: opened.backing,
            format: Some(opened.format),
            library: Mutex::default(),
            unwritten: AtomicBool::new(false),
            tables: opened.tables,
            host: opened.host,
            gate: Gate::default(),
            punch,
            frozen: opened.frozen,
            told: AtomicBool::new(false),
            changes: opened.changes,
        }
    }

    const fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes that the guest sees now.
    #[inline]
    pub fn capacity(&self) -> u64 {
        self.control.capacity()
    }

    /// What operations are checked against.
    #[inline]
    pub fn bounds(&self) -> Bounds {
        Bounds {
            capacity: self.capacity(),
            block: SECTOR_SIZE as u32,
            read_only: self.read_only,
        }
    }

    /// Makes the guest's disk larger, stable, and tells the listeners. What is added reads as zeroes.
    ///
    /// # Errors
    /// It is read-only, is to become smaller, or has a backing file that reaches further; or the host's error.
    pub fn grow(&self, size: u64) -> Result<(), DiskError> {
        let refuse = |why: &str| {
            Err(DiskError::Config(format!(
                "the image can't be resized: {why}"
            )))
        };
        if !size.is_multiple_of(SECTOR_SIZE) {
            return refuse("the size is not a multiple of 512 bytes");
        }
        self.changing(|format, changes, _| {
            let old = self.capacity();
            if size == old {
                return Ok(());
            }
            if size < old {
                return refuse("it can't become smaller while it is in use; `qemu-img resize --shrink` does it after");
            }
            if self.backing.is_some_and(|backing| backing > old) {
                return refuse(
                    "its backing file is larger than it, and what that holds there would show;                      `qemu-img resize` does it after",
                );
            }
            self.write_tables(format)?;
            let growing = |on| {
                changes.make(&"preparing its growth", |order, _| {
                    order.set_growing(on);
                    Ok(())
                })
            };
            growing(true)?;
            self.unwritten.store(true, Ordering::Release);
            let grown = format.resize_grow(size, PreallocateMode::None);
            growing(false)?;
            grown?;
            self.write_tables(format)?;
            changes.make(&"making its new size stable", |order, host| {
                Ok(order.sync(host)?)
            })?;
            self.control.set_capacity(size);
            Ok(())
        })
    }

    /// Persistent bitmaps that the first change makes inconsistent.
    pub fn bitmaps(&self) -> u32 {
        self.changes.as_ref().map_or(0, |changes| changes.bitmaps())
    }

    /// Runs one call into the library.
    fn with<T>(
        &self,
        f: impl FnOnce(&FormatAccess<ImageFile>, MutexGuard<'_, L2Tables>) -> Result<T, DiskError>,
    ) -> Result<T, DiskError> {
        let format = self.format.as_ref().ok_or_else(|| broken("it is closed"))?;
        let alone = self.library.lock().unwrap_or_else(PoisonError::into_inner);
        // The library's own state is not looked at again after a panic.
        self.frozen.check_library()?;
        let result = catch_unwind(AssertUnwindSafe(|| f(format, alone))).unwrap_or_else(|_| {
            self.frozen.distrust();
            Err(broken("the qcow2 library failed on this image"))
        });
        self.tell();
        result
    }

    /// The same for a call that may change the image.
    fn changing<T>(
        &self,
        f: impl FnOnce(
            &FormatAccess<ImageFile>,
            &Changes,
            MutexGuard<'_, L2Tables>,
        ) -> Result<T, DiskError>,
    ) -> Result<T, DiskError> {
        let changes = self.changes.as_deref().ok_or(DiskError::ReadOnly)?;
        self.with(|format, alone| {
            self.frozen.check()?;
            let done = f(format, changes, alone);
            // The library keeps some failures to itself.
            self.frozen.check().and(done)
        })
    }

    /// Makes it known if the image is frozen now. Places that were learned before are forgotten: who writes there
    /// directly would not find out.
    fn tell(&self) {
        if self.frozen.is_set() && !self.told.swap(true, Ordering::AcqRel) {
            self.gate.forget();
            self.control.listeners.tell(DiskEvent::MediaError);
        }
    }

    /// Why no change of the image succeeds any more, or no flush.
    pub fn error(&self) -> Option<DiskError> {
        let lost = || self.host.lost().map(|errno| DiskError::FlushLost { errno });
        self.frozen.error().or_else(lost)
    }

    /// Executes an operation that was admitted, waiting for its end. Must not be called from inside the
    /// gate. What was changed may be lost with the process until [`Image::write_out`] has run.
    ///
    /// # Errors
    /// The host's, or the image is frozen; or nobody wants it any more: `gone` is asked between the parts of an erase,
    /// of which there may be many.
    pub fn execute(
        &self,
        kind: &OpKind,
        buf: &IoBuf,
        gone: &dyn Fn() -> bool,
    ) -> Result<(), DiskError> {
        match *kind {
            OpKind::Read { offset } => self.inside(|| self.read(offset, buf)),
            OpKind::Write { offset, fua } => {
                self.inside(|| {
                    self.changing(|format, changes, mut l2| {
                        self.write(format, changes, &mut l2, offset, buf)
                    })
                })?;
                // Outside: who is inside must not enter again, as somebody may wait for them to leave.
                if fua { self.flush() } else { Ok(()) }
            }
            OpKind::Flush => self.flush(),
            OpKind::Discard { offset, len } => self.zero(offset, len, true, false, gone),
            OpKind::WriteZeroes {
                offset,
                len,
                unmap,
                fua,
            } => self.zero(offset, len, unmap, fua, gone),
            _ => Err(DiskError::Unsupported),
        }
    }

    /// Runs `f` as a user of the gate.
    fn inside<T>(&self, f: impl FnOnce() -> Result<T, DiskError>) -> Result<T, DiskError> {
        self.gate.enter();
        let result = f();
        self.gate.leave();
        result
    }

    /// Whether something waits for [`Image::write_out`].
    pub fn is_unwritten(&self) -> bool {
        self.unwritten.load(Ordering::Acquire)
    }

    /// Writes all changes of tables to the file, where they survive this process. They are not stable then.
    ///
    /// # Errors
    /// The host's, or the image is frozen.
    pub fn write_out(&self) -> Result<(), DiskError> {
        self.frozen.check()?;
        if !self.is_unwritten() {
            return Ok(());
        }
        self.inside(|| self.changing(|format, _, _| self.write_tables(format)))
    }

    fn write_tables(&self, format: &FormatAccess<ImageFile>) -> Result<(), DiskError> {
        if self.is_unwritten() {
            format.flush()?;
            self.unwritten.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Runs a call that makes an L2 table for the cluster at `offset` of the guest, if there is none yet.
    ///
    /// The library takes any free cluster for it, and writes it at once. Among them are those that were given up in
    /// memory only, so everything is written before.
    fn with_table<T>(
        &self,
        format: &FormatAccess<ImageFile>,
        l2: &mut L2Tables,
        offset: u64,
        f: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, DiskError> {
        let number = offset >> (2 * self.cluster_bits - 3);
        let known = l2.has(number);
        if !known {
            self.unwritten.store(true, Ordering::Release);
            self.write_tables(format)?;
        }
        let done = f()?;
        if !known {
            l2.add(number);
        }
        Ok(done)
    }

    /// Finds out where the cluster at `offset` is, and those behind it.
    pub fn learn(&self, offset: u64) -> Option<Extent> {
        let extent = self.inside(|| self.with(|format, _| Ok(self.extent(format, offset))));
        extent.ok().flatten()
    }

    /// Where the clusters from `offset` on are, if they can be read and, on a writable disk, written there.
    fn extent(&self, format: &FormatAccess<ImageFile>, offset: u64) -> Option<Extent> {
        // The generation first: see `tell`.
        let generation = self.gate.generation();
        // Who writes there directly relies on the tables in the file, and does not ask whether he may.
        let untouched = self.changes.as_ref().is_some_and(|c| c.is_untouched());
        if self.is_unwritten() || untouched || self.frozen.is_set() {
            return None;
        }
        let start = offset & !(self.cluster() - 1);
        let (mapping, len) = format.get_mapping(start, MAX_LEARNED).ok()?;
        let Mapping::Raw {
            storage,
            offset: host,
            writable,
            ..
        } = mapping
        else {
            return None;
        };
        if !storage.is_top() || !(writable || self.read_only) {
            return None;
        }
        // What is not wholly in the file yet reads as zeroes behind its end, which takes more than a read.
        let there = self.host.size().ok()?.saturating_sub(host);
        let count = len.min(there) >> self.cluster_bits;
        let bytes = count << self.cluster_bits;
        (count > 0 && !self.tables.touch(host, bytes)).then_some(Extent {
            cluster: start >> self.cluster_bits,
            host,
            count,
            generation,
        })
    }

    fn read(&self, offset: u64, buf: &IoBuf) -> Result<(), DiskError> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (moved, place) = self.with(|format, _| self.read_piece(format, at, buf, done))?;
            if moved == 0 {
                return Err(broken("the image has a hole in its tables"));
            }
            if let Some((file, host)) = place {
                file.read_buf(buf, done, moved, host)?;
            }
            done += moved;
        }
        Ok(())
    }

    /// Reads the next bytes of a buffer, from its byte `done` on; or says where they are, so that others
    /// may use the library meanwhile. How many is the answer, too.
    fn read_piece(
        &self,
        format: &FormatAccess<ImageFile>,
        at: u64,
        buf: &IoBuf,
        done: usize,
    ) -> Result<(usize, Option<Place>), DiskError> {
        let rest = (buf.len() - done) as u64;
        let (mapping, len) = format.get_mapping(at, rest)?;
        let len = usize::try_from(len.min(rest)).unwrap_or(0);
        Ok(match mapping {
            Mapping::Raw {
                storage, offset, ..
            } => (len, Some((storage.host.clone(), offset))),
            Mapping::Zero { .. } => (buf.fill(done, len, 0), None),
            Mapping::Special { .. } => {
                // To the end of the cluster.
                let in_cluster = self.cluster() - (at & (self.cluster() - 1));
                let len = len.min(usize::try_from(in_cluster).unwrap_or(len));
                let mut data = vec![0; len];
                format.read(data.as_mut_slice(), at)?;
                (buf.copy_in(done, &data), None)
            }
            _ => (0, None),
        })
    }

    fn write(
        &self,
        format: &FormatAccess<ImageFile>,
        changes: &Changes,
        l2: &mut L2Tables,
        offset: u64,
        buf: &IoBuf,
    ) -> Result<(), DiskError> {
        changes.begin()?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let rest = ((buf.len() - done) as u64).min(MAX_MAPPING);
            let place = self.with_table(format, l2, at, || {
                format.prepare_data_mapping(at, rest, true)
            })?;
            let len = usize::try_from(place.length().min(rest)).unwrap_or(0);
            if len == 0 || self.tables.touch(place.offset(), len as u64) {
                return Err(broken("the image's tables point at themselves"));
            }
            if !place.is_nonblocking() {
                self.unwritten.store(true, Ordering::Release);
                changes.make(&"preparing new clusters", |order, host| {
                    order.new_data(host, place.offset(), len as u64)
                })?;
            }
            self.host.write_buf(buf, done, len, place.offset())?;
            format.commit_data_mapping(place)?;
            done += len;
        }
        Ok(())
    }

    fn zero(
        &self,
        offset: u64,
        len: u64,
        unmap: bool,
        fua: bool,
        gone: &dyn Fn() -> bool,
    ) -> Result<(), DiskError> {
        let mut at = offset;
        while at < offset + len {
            if gone() {
                return Err(DiskError::Cancelled);
            }
            let rest = offset + len - at;
            // One piece at a time, so that other operations wait only for that.
            let moved = self.gate.change(|| {
                self.changing(|format, changes, mut l2| {
                    self.zero_piece(format, changes, &mut l2, at, rest, unmap)
                })
            })?;
            at += moved;
        }
        if fua { self.flush() } else { Ok(()) }
    }

    /// Zeroes the first bytes of a range; how many is the answer. Nobody else uses the image.
    ///
    /// Only whole clusters are left to the library, which miscounts in the last cluster of an image
    /// otherwise.
    fn zero_piece(
        &self,
        format: &FormatAccess<ImageFile>,
        changes: &Changes,
        l2: &mut L2Tables,
        at: u64,
        rest: u64,
        unmap: bool,
    ) -> Result<u64, DiskError> {
        let stuck = || broken("the image has a hole in its tables");
        let (mapping, len) = format.get_mapping(at, rest)?;
        let len = len.min(rest);
        if len == 0 {
            return Err(stuck());
        }
        // Nothing to do, and no table for it.
        if matches!(mapping, Mapping::Zero { .. }) {
            return Ok(len);
        }
        changes.begin()?;
        let in_cluster = at & (self.cluster() - 1);
        let to_end = (self.cluster() - in_cluster).min(self.capacity() - at);
        if in_cluster != 0 || rest < to_end {
            let len = len.min(to_end);
            let zeroes = IoBuf::zeroed(usize::try_from(len).unwrap_or(0));
            self.write(format, changes, l2, at, &zeroes)?;
            return Ok(len);
        }
        let whole = if at + len == self.capacity() {
            len
        } else {
            // What is mapped may end inside a cluster, where a backing file does.
            (len & !(self.cluster() - 1)).max(to_end)
        };
        let bytes = whole.next_multiple_of(self.cluster());
        let place = match mapping {
            Mapping::Raw {
                storage,
                offset: host,
                writable: true,
                ..
            } if storage.is_top() && !self.tables.touch(host, bytes) => Some(host),
            _ => None,
        };
        // Before the clusters become free: then they may be somebody else's.
        let punched = unmap && self.punch && place.is_some_and(|host| self.host.punch(host, bytes));
        let driver = format.inner();
        let (start, done) = self.with_table(format, l2, at, || {
            self.unwritten.store(true, Ordering::Release);
            if unmap {
                // SAFETY: the gate is closed: nobody else is in the library, or uses a mapping from it.
                unsafe { driver.discard_to_zero_unsafe(at, whole) }
            } else {
                driver.ensure_zero_mapping(at, whole)
            }
        })?;
        if start != at || done == 0 {
            return Err(stuck());
        }
        if let Some(place) = place {
            let len = done.next_multiple_of(self.cluster());
            changes.make(&"erasing clusters", |order, _| {
                order.erased(place, len, punched);
                Ok(())
            })?;
        }
        Ok(done.min(rest))
    }

    /// Makes everything stable that was completed.
    ///
    /// # Errors
    /// The host's, and the image is frozen.
    pub fn flush(&self) -> Result<(), DiskError> {
        let Some(changes) = &self.changes else {
            return Ok(());
        };
        let settled = self.inside(|| {
            self.changing(|format, changes, _| {
                if changes.is_untouched() {
                    return Ok(false);
                }
                // The library frees some clusters only now.
                self.unwritten.store(true, Ordering::Release);
                self.write_tables(format)?;
                Ok(changes.make(&"making it stable", |order, host| {
                    let open = !order.is_settled();
                    if open {
                        order.settle(host)?;
                    }
                    Ok(open)
                })?)
            })
        })?;
        if !settled {
            // Others may use the library meanwhile.
            let synced = changes.sync();
            self.tell();
            self.frozen.check()?;
            synced?;
        }
        Ok(())
    }

    /// Leaves the file as the library believes it to be.
    fn close(&self) -> Result<(), DiskError> {
        if self.changes.is_none() {
            return Ok(());
        }
        self.changing(|format, changes, _| {
            if changes.is_untouched() {
                return Ok(());
            }
            format.flush()?;
            Ok(changes.make(&"closing it", |order, host| Ok(order.close(host)?))?)
        })
    }

    /// Leaves the file as it is to be closed, stable. Nobody uses the image.
    ///
    /// # Errors
    /// What was completed may not be stable.
    pub fn finish(&self) -> Result<(), DiskError> {
        self.close().and_then(|()| self.flush())
    }

    /// Whether, and why, it takes no changes any more.
    pub fn frozen(&self) -> Arc<Frozen> {
        self.frozen.clone()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // An error can't be told to anyone: who needs to know flushes before.
        let _ = self.close();
        let format = self.format.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(format)));
    }
}
