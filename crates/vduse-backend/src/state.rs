// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What outlives this process: the device's status and the requests in flight, in a file for each device.
//!
//! The kernel keeps a device whose server died, and does not tell a successor its status, nor which requests
//! the dead server had taken. The file is bound to the device's name, the boot, and the shape of the device; each
//! reset makes a new one, so that a queue that still runs after a reset writes to the old one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guarded_mmap::{Mapping, Protection};
use virtio_blk_core::memory::HostMemory;
use virtio_blk_core::runner::InFlightArea;

const MAGIC: &[u8; 8] = b"vblkvdu1";
/// The in-flight area begins here.
const HEADER: usize = 4096;
/// Bytes of the header in use.
const USED: usize = 384;

const BOOT: usize = 8;
const BOOT_SIZE: usize = 40;
const FEATURES: usize = 48;
const QUEUES: usize = 56;
const QUEUE_SIZE: usize = 58;
const STATUS: usize = 60;
const ACCEPTED: usize = 64;
const GENERATION: usize = 72;
const NAME: usize = 80;

/// The shape that a record belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) boot: String,
    /// Device features offered.
    pub(crate) features: u64,
    pub(crate) queues: u16,
    pub(crate) queue_size: u16,
}

/// What changes while the device lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) status: u8,
    /// The features the driver acknowledged.
    pub(crate) accepted: u64,
    /// Counts resets.
    pub(crate) generation: u64,
}

/// The record of one device.
pub(crate) struct State {
    path: PathBuf,
    file: File,
    shape: Shape,
    progress: Progress,
    area: InFlightArea,
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

fn encode(shape: &Shape, progress: &Progress) -> [u8; USED] {
    let mut bytes = [0; USED];
    put(&mut bytes, 0, MAGIC);
    put(&mut bytes, BOOT, shape.boot.as_bytes());
    put(&mut bytes, FEATURES, &shape.features.to_ne_bytes());
    put(&mut bytes, QUEUES, &shape.queues.to_ne_bytes());
    put(&mut bytes, QUEUE_SIZE, &shape.queue_size.to_ne_bytes());
    put(&mut bytes, STATUS, &[progress.status]);
    put(&mut bytes, ACCEPTED, &progress.accepted.to_ne_bytes());
    put(&mut bytes, GENERATION, &progress.generation.to_ne_bytes());
    put(&mut bytes, NAME, shape.name.as_bytes());
    bytes
}

fn decode(bytes: &[u8; USED]) -> Option<(Shape, Progress)> {
    if field(bytes, 0) != *MAGIC {
        return None;
    }
    let shape = Shape {
        name: text(&field::<256>(bytes, NAME)),
        boot: text(&field::<BOOT_SIZE>(bytes, BOOT)),
        features: u64::from_ne_bytes(field(bytes, FEATURES)),
        queues: u16::from_ne_bytes(field(bytes, QUEUES)),
        queue_size: u16::from_ne_bytes(field(bytes, QUEUE_SIZE)),
    };
    let [status] = field(bytes, STATUS);
    let progress = Progress {
        status,
        accepted: u64::from_ne_bytes(field(bytes, ACCEPTED)),
        generation: u64::from_ne_bytes(field(bytes, GENERATION)),
    };
    Some((shape, progress))
}

fn map(file: &File, shape: &Shape) -> io::Result<InFlightArea> {
    let has = file.metadata()?.len().saturating_sub(HEADER as u64);
    // An older version's is shorter.
    let len = InFlightArea::bytes(shape.queues, shape.queue_size);
    let len = usize::try_from(has).map_or(len, |has| len.min(has));
    if len < InFlightArea::least_bytes(shape.queues, shape.queue_size) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the record is cut off",
        ));
    }
    let mapping = Mapping::new(file, HEADER as u64, len, Protection::ReadWrite)?;
    let base = mapping.as_ptr();
    // SAFETY: the mapping has these bytes for reading and writing as long as it lives, and nobody has
    // references into it.
    let memory = unsafe { HostMemory::new(base, len, Arc::new(mapping)) };
    InFlightArea::new(memory, shape.queues, shape.queue_size)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

impl State {
    fn path(directory: &Path, name: &str) -> PathBuf {
        directory.join(format!("vduse-{name}.state"))
    }

    /// Makes the record of a new device, in place of any other.
    pub(crate) fn create(directory: &Path, shape: Shape) -> io::Result<Self> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory)?;
        Self::make(
            Self::path(directory, &shape.name),
            shape,
            Progress::default(),
        )
    }

    fn make(path: PathBuf, shape: Shape, progress: Progress) -> io::Result<Self> {
        let new = path.with_extension("new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&new)?;
        let len = HEADER + InFlightArea::bytes(shape.queues, shape.queue_size);
        file.set_len(len as u64)?;
        file.write_all_at(&encode(&shape, &progress), 0)?;
        let area = map(&file, &shape)?;
        fs::rename(&new, &path)?;
        Ok(Self {
            path,
            file,
            shape,
            progress,
            area,
        })
    }

    /// The record that an earlier server left. `None` if there is none, or it is of another boot.
    ///
    /// # Errors
    /// It can't be read.
    pub(crate) fn open(directory: &Path, name: &str, boot: &str) -> io::Result<Option<Self>> {
        let path = Self::path(directory, name);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = [0; USED];
        if file.read_exact_at(&mut bytes, 0).is_err() {
            return Ok(None);
        }
        let Some((shape, progress)) = decode(&bytes) else {
            return Ok(None);
        };
        if shape.name != name || shape.boot != boot {
            return Ok(None);
        }
        let area = map(&file, &shape)?;
        Ok(Some(Self {
            path,
            file,
            shape,
            progress,
            area,
        }))
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    pub(crate) fn progress(&self) -> Progress {
        self.progress
    }

    pub(crate) fn area(&self) -> &InFlightArea {
        &self.area
    }

    /// Notes the status and the driver's features, before the driver learns that they were taken.
    pub(crate) fn note(&mut self, status: u8, accepted: u64) -> io::Result<()> {
        self.progress.status = status;
        self.progress.accepted = accepted;
        let bytes = encode(&self.shape, &self.progress);
        self.file.write_all_at(&bytes, 0)
    }

    /// After a reset: a new, empty record takes the place of this one.
    pub(crate) fn renew(&mut self) -> io::Result<()> {
        let progress = Progress {
            generation: self.progress.generation.wrapping_add(1),
            ..Progress::default()
        };
        *self = Self::make(self.path.clone(), self.shape.clone(), progress)?;
        Ok(())
    }

    /// The device is gone: so is its record.
    pub(crate) fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use virtio_blk_core::runner::InFlightLog;

    use super::*;

    fn shape() -> Shape {
        Shape {
            name: "disk0".to_owned(),
            boot: "c7b3f7a2-6d9c-4b0e-9f0a-0123456789ab".to_owned(),
            features: 0x3_0000_0040,
            queues: 2,
            queue_size: 8,
        }
    }

    #[test]
    fn a_successor_finds_what_was_noted() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::create(dir.path(), shape()).unwrap();
        state.note(0xf, 0x1_0000_0000).unwrap();
        let (mut log, _) = state.area().queue(1, 8, 0).unwrap();
        log.taken(5);
        drop(state);
        let again = State::open(dir.path(), "disk0", &shape().boot)
            .unwrap()
            .unwrap();
        assert_eq!(again.shape(), &shape());
        assert_eq!(again.progress().status, 0xf);
        assert_eq!(again.progress().accepted, 0x1_0000_0000);
        assert_eq!(again.area().queue(1, 8, 0).unwrap().1, [5]);
        again.remove();
        assert!(
            State::open(dir.path(), "disk0", &shape().boot)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_reset_leaves_the_old_record_to_whoever_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::create(dir.path(), shape()).unwrap();
        state.note(0xf, 1).unwrap();
        let (mut late, _) = state.area().queue(0, 8, 0).unwrap();
        state.renew().unwrap();
        late.taken(3);
        assert_eq!(state.area().queue(0, 8, 0).unwrap().1, Vec::<u16>::new());
        let expected = Progress {
            generation: 1,
            ..Progress::default()
        };
        assert_eq!(state.progress(), expected);
        let again = State::open(dir.path(), "disk0", &shape().boot).unwrap();
        assert_eq!(again.unwrap().progress(), expected);
    }

    #[test]
    fn other_boots_names_and_rubbish_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        drop(State::create(dir.path(), shape()).unwrap());
        assert!(State::open(dir.path(), "disk0", "other").unwrap().is_none());
        assert!(State::open(dir.path(), "disk1", "other").unwrap().is_none());
        let path = State::path(dir.path(), "disk0");
        fs::rename(&path, State::path(dir.path(), "disk1")).unwrap();
        let boot = shape().boot;
        assert!(State::open(dir.path(), "disk1", &boot).unwrap().is_none());
        fs::write(&path, b"rubbish").unwrap();
        assert!(State::open(dir.path(), "disk0", &boot).unwrap().is_none());
        let mut cut = encode(&shape(), &Progress::default()).to_vec();
        cut.resize(HEADER, 0);
        fs::write(&path, &cut).unwrap();
        assert!(State::open(dir.path(), "disk0", &boot).is_err());
    }
}
