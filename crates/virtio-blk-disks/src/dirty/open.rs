// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From the file of a bitmap to the bitmap.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use super::bitmap::DirtyBitmap;
use super::changes::ranges;
use super::error::BitmapError;
use super::format::{
    self, Boot, Decoded, MAX_BYTES, Marks, PAGE, Unseen, Use, region_bytes, words_for,
};
use super::persist::{Persist, PersistOptions, set_bit};
use super::words::BITS;

/// Where Linux names the boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The boot of this host.
pub(super) fn boot() -> Boot {
    let text = fs::read_to_string(BOOT_ID).ok()?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    Some(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes())
}

fn failed(path: &Path) -> impl Fn(io::Error) -> BitmapError + '_ {
    |source| BitmapError::Io {
        path: path.to_owned(),
        source,
    }
}

fn refused(path: &Path, why: impl Into<String>) -> BitmapError {
    BitmapError::File {
        path: path.to_owned(),
        why: why.into(),
    }
}

fn lock(file: &File, path: &Path) -> Result<(), BitmapError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(refused(
            path,
            "a dirty bitmap that is in use is kept there: give each its own file",
        )),
        Err(error) => Err(failed(path)(error.into())),
    }
}

/// Reads a saved bitmap, or the file of one.
pub(super) fn read(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if file.take(MAX_BYTES + 1).read_to_end(&mut bytes)? as u64 > MAX_BYTES {
        return Err(io::Error::other("it is too large for a dirty bitmap"));
    }
    Ok(bytes)
}

/// The file that is there, locked, and what is in it.
fn existing(path: &Path) -> Result<(Option<File>, Option<Decoded>), BitmapError> {
    let file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((None, None)),
        Err(error) => return Err(failed(path)(error)),
    };
    if !file.metadata().map_err(failed(path))?.is_file() {
        return Err(refused(
            path,
            "it is no file, in which a dirty bitmap could be kept",
        ));
    }
    lock(&file, path)?;
    // An error of the host's that nobody was told of yet.
    let lost = file.sync_data().is_err();
    let bytes = read(&file).map_err(failed(path))?;
    if bytes.is_empty() {
        return Ok((Some(file), None));
    }
    let mut decoded = format::decode(&bytes)
        .map_err(|error| refused(path, format!("{error}; give another file, or remove it")))?;
    if lost {
        decoded.damage = Some("the host could not write its file");
    }
    Ok((Some(file), Some(decoded)))
}

/// Checks that a file is that of this bitmap.
fn check(path: &Path, found: &Marks, wanted: &Marks) -> Result<(), BitmapError> {
    let why = if found.name != wanted.name {
        format!("it is the file of the dirty bitmap `{}`", found.name)
    } else if found.granularity != wanted.granularity {
        format!(
            "it has a granularity of {} bytes: give that",
            found.granularity
        )
    } else if found.size > wanted.size {
        format!(
            "it is of a disk of {} bytes, this one has {}: if the disk was made smaller, remove the file",
            found.size, wanted.size
        )
    } else {
        return Ok(());
    };
    Err(refused(path, why))
}

/// What the file of a bitmap is worth, in this boot and perhaps not closed.
fn recover(decoded: Decoded, boot: Boot) -> Marks {
    let mut marks = decoded.marks;
    let is_same_boot = boot.is_some() && decoded.boot == boot;
    if !is_same_boot {
        // A power cut takes back the time of a change, but not what a flush has made stable: `fdatasync` need not
        // write the times of a file whose size stays.
        marks.unseen = marks.unseen.map(|_| Unseen(None));
    }
    if decoded.in_use.is_some_and(|used| used.hands_over) {
        // The server that was killed with it may not have been the last one.
        marks.unseen = marks.unseen.or(Some(Unseen(None)));
    }
    match decoded.in_use {
        None => {}
        // The process was killed: the host's page cache has everything.
        Some(_) if is_same_boot => {}
        Some(used) if used.synced => {
            let region = region_bytes(marks.size, marks.granularity);
            let words = region / marks.granularity / BITS;
            for (word, index) in marks.words.iter_mut().zip(0_u64..) {
                let bit = index / words.max(1);
                let byte = usize::try_from(bit / 8).ok();
                let byte = byte.and_then(|at| decoded.regions.get(at));
                let is_set = byte.is_some_and(|byte| byte >> (bit % 8) & 1 != 0);
                *word = if is_set { u64::MAX } else { 0 };
            }
        }
        Some(_) => {
            marks.incomplete =
                Some("the host went down while its file was in use, without sync:on");
        }
    }
    marks
}

/// The marks to begin with.
fn start(
    path: &Path,
    found: Option<Decoded>,
    empty: Marks,
    boot: Boot,
) -> Result<Marks, BitmapError> {
    let Some(decoded) = found else {
        return Ok(empty);
    };
    if decoded.damage.is_some() {
        return Ok(Marks {
            incomplete: decoded.damage,
            ..empty
        });
    }
    check(path, &decoded.marks, &empty)?;
    Ok(recover(decoded, boot))
}

/// What the bitmap is to be whose file is opened, and where.
pub(super) struct New<'a> {
    pub(super) name: &'a str,
    /// Bytes of the disk.
    pub(super) size: u64,
    pub(super) granularity: u64,
    pub(super) boot: Boot,
    /// The disk is one that is released.
    pub(super) hands_over: bool,
}

/// Opens the file of a bitmap, or makes it.
///
/// # Errors
/// It belongs to something else, is in use, or can't be written.
pub(super) fn open(
    options: &PersistOptions,
    new: &New<'_>,
) -> Result<(Arc<DirtyBitmap>, Arc<Persist>), BitmapError> {
    let &New {
        name,
        size,
        granularity,
        boot,
        hands_over,
    } = new;
    // Through links: it is replaced.
    let path = fs::canonicalize(&options.path).unwrap_or_else(|_| options.path.clone());
    let empty = DirtyBitmap::incomplete(size, granularity, "its file is new")?;
    let empty = empty.marks(name, size);
    let (old, found) = existing(&path)?;
    let marks = start(&path, found, empty, boot)?;
    let (before, incomplete) = (marks.size, marks.incomplete);
    let mut marks = Marks {
        size,
        words: marks.words,
        ..marks
    };
    marks.words.resize(words_for(size, granularity)?, 0);
    let bitmap = DirtyBitmap::from_marks(&marks)?;
    // What the disk has grown by.
    bitmap.mark(before, size - before);
    let marks = Marks {
        incomplete,
        ..bitmap.marks(name, size)
    };
    let used = Use {
        boot,
        synced: options.sync,
        hands_over,
    };
    let regions = regions(&marks, used);
    let file = replace(&path, old.is_some(), &marks, used, &regions)?;
    // The next one to open it finds the lock of the new file.
    drop(old);
    let bitmap = Arc::new(bitmap);
    let persist = Persist::new(bitmap.clone(), name, path, file, used, &marks, regions);
    Ok((bitmap, persist))
}

/// The regions with marks.
fn regions(marks: &Marks, used: Use) -> Vec<u8> {
    let mut bits = vec![0; PAGE];
    if used.synced {
        let region = region_bytes(marks.size, marks.granularity);
        for (offset, len) in ranges(&marks.words, marks.granularity, marks.size) {
            for index in offset / region..=(offset + len - 1) / region {
                set_bit(&mut bits, index, true);
            }
        }
    }
    bits
}

/// Writes a file that is in use in place of what is at `path`, which we have locked, if it was there: stable and
/// locked.
fn replace(
    path: &Path,
    was_there: bool,
    marks: &Marks,
    used: Use,
    regions: &[u8],
) -> Result<File, BitmapError> {
    let next = beside(path);
    let next = next.as_path();
    let file = (File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false))
    .open(next)
    .map_err(failed(next))?;
    lock(&file, path)?;
    if !was_there && path.exists() {
        let _ = fs::remove_file(next);
        return Err(refused(
            path,
            "somebody else has just made it: give each dirty bitmap its own file",
        ));
    }
    let written = write(&file, marks, used, regions).and_then(|()| {
        fs::rename(next, path)?;
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    });
    if let Err(error) = written {
        // What failed first is the answer.
        let _ = fs::remove_file(next);
        return Err(failed(path)(error));
    }
    Ok(file)
}

/// A file's name while it is written.
pub(super) fn beside(path: &Path) -> PathBuf {
    let mut next = path.as_os_str().to_owned();
    next.push(".new");
    next.into()
}

fn write(mut file: &File, marks: &Marks, used: Use, regions: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    let whole = format::encode(marks, used.boot, regions);
    file.write_all(&format::header(marks, used))?;
    file.write_all(whole.get(PAGE..).unwrap_or_default())?;
    file.sync_all()
}
