// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What outlives this process: a record of the device and of each of its queues, in a file for each device.
//!
//! The kernel keeps a device whose server died, and tells a successor neither the device's status nor where its
//! queues stand. All of that is in the record, changed before the kernel learns of it: by plain stores to memory that
//! was reserved when the device was made, so that no change can fail. The file is bound to the device's name, the
//! boot, and the shape of the device.
//!
//! Layout, in native byte order: a header that never changes; behind it the words of the device; from [`TABLE`] on a
//! word for each queue ([`Place`]); then an in-flight area for each queue. What a queue had in flight counts only
//! while its place says so; the area is emptied before a queue starts anew, when nothing runs any more that was
//! started before the reset.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guarded_mmap::{Mapping, Protection};
use rustix::fs::FallocateFlags;
use virtio_blk_core::device::{AbiError, GuestAbi};
use virtio_blk_core::memory::HostMemory;
use virtio_blk_core::runner::{InFlightArea, InFlightError};

/// What a record begins with; the last byte is the layout's number.
const MAGIC: &[u8; 7] = b"vblkvdu";
/// The layout that is written and read here. That of layout 1 did not tell where queues stand.
const LAYOUT: u8 = b'2';
/// Bytes of the header that never changes.
const HEADER: usize = 1024;
/// The queues' words begin here.
const TABLE: usize = 4096;
/// Parts of the file begin at multiples of this.
const PART: usize = 4096;

const BOOT: usize = 8;
const BOOT_SIZE: usize = 40;
const NAME: usize = 80;
const NAME_SIZE: usize = 256;
const ABI: usize = 384;

/// Status, and flags above it.
const STATUS: usize = 1024;
const ACCEPTED: usize = 1032;
const GENERATION: usize = 1040;
/// In sectors, as the driver was told last.
const CAPACITY: usize = 1048;

const SUSPENDED: u64 = 1 << 8;
const HELD: u64 = 1 << 9;

/// The device that a record belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) boot: String,
    /// What the kernel, and any driver, was told when the device was made. See [`State::abi`] for the capacity.
    pub(crate) abi: GuestAbi,
}

/// Where a queue stands, and where it starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It has not run since the last reset: it starts at the index that the driver set.
    Fresh,
    /// It was started. It stands where the used index and the heads in flight say, and `gap` further: by as much as
    /// the driver had set the available index ahead of the used index when it started.
    Started {
        /// See above.
        gap: u16,
    },
    /// It was stopped, with nothing in flight; the next available index.
    Stopped(u16),
}

const STARTED: u64 = 1 << 16;
const STOPPED: u64 = 2 << 16;

impl Place {
    fn to_word(self) -> u64 {
        match self {
            Self::Fresh => 0,
            Self::Started { gap } => STARTED | u64::from(gap),
            Self::Stopped(index) => STOPPED | u64::from(index),
        }
    }

    /// `None`: no such word is written.
    fn from_word(word: u64) -> Option<Self> {
        let index = word as u16;
        match word - u64::from(index) {
            0 if index == 0 => Some(Self::Fresh),
            STARTED => Some(Self::Started { gap: index }),
            STOPPED => Some(Self::Stopped(index)),
            _ => None,
        }
    }
}

/// The record of one device.
pub(crate) struct State {
    shape: Shape,
    memory: HostMemory,
    areas: Vec<InFlightArea>,
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(field) {
        *to = *from;
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(bytes.iter().skip(at)) {
        *to = *from;
    }
    field
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default())
        .into_owned()
}

fn encode(shape: &Shape) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    put(&mut bytes, 0, MAGIC);
    put(&mut bytes, MAGIC.len(), &[LAYOUT]);
    put(&mut bytes, BOOT, shape.boot.as_bytes());
    put(&mut bytes, NAME, shape.name.as_bytes());
    put(&mut bytes, ABI, &shape.abi.to_bytes());
    bytes
}

/// `None`: this is no record, or one of an old layout.
///
/// # Errors
/// Written by code that knows more (`Unsupported`), or damaged (`InvalidData`).
fn decode(bytes: &[u8; HEADER]) -> io::Result<Option<Shape>> {
    let [layout] = field(bytes, MAGIC.len());
    if field(bytes, 0) != *MAGIC || layout < LAYOUT {
        return Ok(None);
    }
    if layout > LAYOUT {
        let what = "the record was written by a newer program: use that, or a newer one";
        return Err(io::Error::new(io::ErrorKind::Unsupported, what));
    }
    let abi = GuestAbi::from_bytes(bytes.get(ABI..).unwrap_or_default());
    let abi = abi.map_err(|error| match error {
        AbiError::Version { .. } => io::Error::new(io::ErrorKind::Unsupported, error),
        error => invalid(error),
    })?;
    Ok(Some(Shape {
        name: text(&field::<NAME_SIZE>(bytes, NAME)),
        boot: text(&field::<BOOT_SIZE>(bytes, BOOT)),
        abi,
    }))
}

impl Shape {
    /// Where the queues' areas begin.
    fn areas(&self) -> usize {
        (TABLE + size_of::<u64>() * usize::from(self.abi.queues)).next_multiple_of(PART)
    }

    /// Bytes of one queue's area.
    fn area(&self) -> usize {
        InFlightArea::least_bytes(1, self.abi.queue_size).next_multiple_of(size_of::<u64>())
    }

    fn bytes(&self) -> usize {
        self.areas() + self.area() * usize::from(self.abi.queues)
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl State {
    fn path(directory: &Path, name: &str) -> PathBuf {
        directory.join(format!("vduse-{name}.state"))
    }

    /// Makes the record of a new device, in place of any other.
    ///
    /// # Errors
    /// There is no room for it, or no permission to make it.
    pub(crate) fn create(directory: &Path, shape: Shape) -> io::Result<Self> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory)?;
        let path = Self::path(directory, &shape.name);
        let new = path.with_extension("new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&new)?;
        // Stores to memory can't say that the file system is full.
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, shape.bytes() as u64) {
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(shape.bytes() as u64)?,
            done => done?,
        }
        file.write_all_at(&encode(&shape), 0)?;
        let state = Self::map(&file, shape)?;
        state.set_capacity(state.shape.abi.capacity);
        fs::rename(&new, &path)?;
        Ok(state)
    }

    /// The record that an earlier server left. `None` if there is none, it is of another boot, or it is damaged.
    ///
    /// # Errors
    /// It can't be read, or a newer program wrote it.
    pub(crate) fn open(directory: &Path, name: &str, boot: &str) -> io::Result<Option<Self>> {
        let path = Self::path(directory, name);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = [0; HEADER];
        if file.read_exact_at(&mut bytes, 0).is_err() {
            return Ok(None);
        }
        let open = || match decode(&bytes)? {
            Some(shape) if shape.name == name && shape.boot == boot => {
                Self::map(&file, shape)?.check().map(Some)
            }
            _ => Ok(None),
        };
        open().or_else(|error: io::Error| match error.kind() {
            io::ErrorKind::InvalidData => {
                log::warn!("the record of device {name} is damaged: {error}");
                Ok(None)
            }
            _ => Err(error),
        })
    }

    fn check(self) -> io::Result<Self> {
        for index in 0..self.shape.abi.queues {
            let word = self.word(Self::queue_word(index)).load(Ordering::Acquire);
            Place::from_word(word).ok_or_else(|| invalid("a queue stands nowhere"))?;
        }
        Ok(self)
    }

    fn map(file: &File, shape: Shape) -> io::Result<Self> {
        let (areas, area, len) = (shape.areas(), shape.area(), shape.bytes());
        if file.metadata()?.len() < len as u64 {
            return Err(invalid("the record is cut off"));
        }
        let mapping = Mapping::new(file, 0, len, Protection::ReadWrite)?;
        let base = mapping.as_ptr();
        // SAFETY: the mapping has these bytes for reading and writing as long as it lives, and nobody has
        // references into it but to atomics.
        let memory = unsafe { HostMemory::new(base, len, Arc::new(mapping)) };
        let areas = (0..usize::from(shape.abi.queues)).map(|index| {
            let part = memory.slice(areas + index * area, area);
            let part = part.ok_or_else(|| invalid("the record is cut off"))?;
            InFlightArea::new(part, 1, shape.abi.queue_size).map_err(invalid)
        });
        Ok(Self {
            areas: areas.collect::<io::Result<_>>()?,
            shape,
            memory,
        })
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    const fn queue_word(index: u16) -> usize {
        TABLE + size_of::<u64>() * index as usize
    }

    /// The word at `at`. One behind the end is the last.
    fn word(&self, at: usize) -> &AtomicU64 {
        let at = at.min(self.memory.len() - size_of::<u64>()) & !(align_of::<u64>() - 1);
        // SAFETY: inside the memory, which is mapped for as long as `self` is borrowed, and aligned, as its beginning
        // is a page's; all of these words are only ever accessed as atomics.
        unsafe { AtomicU64::from_ptr(self.memory.as_ptr().wrapping_add(at).cast()) }
    }

    /// The device status, as the driver was told.
    pub(crate) fn status(&self) -> u8 {
        self.word(STATUS).load(Ordering::Acquire) as u8
    }

    /// The features that the driver acknowledged.
    pub(crate) fn accepted(&self) -> u64 {
        self.word(ACCEPTED).load(Ordering::Acquire)
    }

    /// Resets so far.
    pub(crate) fn generation(&self) -> u64 {
        self.word(GENERATION).load(Ordering::Acquire)
    }

    /// Notes the status and the driver's features.
    pub(crate) fn set_status(&self, status: u8, accepted: u64) {
        self.word(ACCEPTED).store(accepted, Ordering::Release);
        let word = self.word(STATUS);
        let flags = word.load(Ordering::Acquire) & !u64::from(u8::MAX);
        word.store(flags | u64::from(status), Ordering::Release);
    }

    /// What the driver was told.
    pub(crate) fn abi(&self) -> GuestAbi {
        let mut abi = self.shape.abi;
        abi.capacity = self.word(CAPACITY).load(Ordering::Acquire);
        abi
    }

    /// Notes the capacity, in sectors, that the driver is told.
    pub(crate) fn set_capacity(&self, capacity: u64) {
        self.word(CAPACITY).store(capacity, Ordering::Release);
    }

    fn flag(&self, flag: u64) -> bool {
        self.word(STATUS).load(Ordering::Acquire) & flag != 0
    }

    fn set_flag(&self, flag: u64, value: bool) {
        let word = self.word(STATUS);
        let others = word.load(Ordering::Acquire) & !flag;
        word.store(others | if value { flag } else { 0 }, Ordering::Release);
    }

    /// Whether the device was suspended: nothing runs until a reset.
    pub(crate) fn is_suspended(&self) -> bool {
        self.flag(SUSPENDED)
    }

    /// Notes that the device is suspended.
    pub(crate) fn set_suspended(&self) {
        self.set_flag(SUSPENDED, true);
    }

    /// Whether a queue's state was told: no queue starts until the VMM is done with it.
    pub(crate) fn is_held(&self) -> bool {
        self.flag(HELD)
    }

    /// Notes that a queue's state is told, or that the queues may start again.
    pub(crate) fn set_held(&self, held: bool) {
        self.set_flag(HELD, held);
    }

    /// Where a queue stands.
    pub(crate) fn place(&self, index: u16) -> Place {
        let word = self.word(Self::queue_word(index)).load(Ordering::Acquire);
        Place::from_word(word).unwrap_or(Place::Fresh)
    }

    /// Notes where a queue stands.
    pub(crate) fn set_place(&self, index: u16, place: Place) {
        self.word(Self::queue_word(index))
            .store(place.to_word(), Ordering::Release);
    }

    /// The in-flight area of queue `index` with `size` descriptors, in which it is queue 0. That of a fresh queue is
    /// emptied. Nothing may run then that was started before the reset.
    ///
    /// # Errors
    /// The ring is larger than the record's queues.
    pub(crate) fn log(&self, index: u16, size: u16) -> Result<&InFlightArea, InFlightError> {
        let area = self.areas.get(usize::from(index));
        let area = area.ok_or(InFlightError::Queue {
            queues: self.shape.abi.queues,
            queue_size: self.shape.abi.queue_size,
            index,
            size,
        })?;
        if self.place(index) == Place::Fresh {
            let first = self.shape.areas() + self.shape.area() * usize::from(index);
            for at in (first..first + self.shape.area()).step_by(size_of::<u64>()) {
                self.word(at).store(0, Ordering::Relaxed);
            }
        }
        Ok(area)
    }

    /// The device is reset.
    pub(crate) fn reset(&self) {
        // With this one store everything else counts for nothing.
        self.word(STATUS).store(0, Ordering::Release);
        self.word(ACCEPTED).store(0, Ordering::Release);
        for index in 0..self.shape.abi.queues {
            self.set_place(index, Place::Fresh);
        }
        let generation = self.generation().wrapping_add(1);
        self.word(GENERATION).store(generation, Ordering::Release);
    }

    /// A device is gone: so is its record.
    pub(crate) fn remove(directory: &Path, name: &str) {
        let _ = fs::remove_file(Self::path(directory, name));
    }
}

#[cfg(test)]
mod tests;
