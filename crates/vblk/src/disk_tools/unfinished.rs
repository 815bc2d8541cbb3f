// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files that are being made: under other names, until they are complete.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use signal_hook::consts::signal::SIGXFSZ;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use virtio_blk_core::disk::{Disk, DiskError};
use virtio_blk_qcow2::Access;

/// Why a file can't be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnfinishedError {
    /// Something is there.
    #[error("{} is there already: with --force it is replaced, and what is in it is lost", .0.display())]
    Exists(PathBuf),
    /// What is there is no file.
    #[error("{} is no regular file, and an image is never put in the place of one", .0.display())]
    NoFile(PathBuf),
    /// What is there can't be replaced.
    #[error("{} can't be replaced: {source}", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: DiskError,
    },
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn failed(path: &Path) -> impl Fn(io::Error) -> UnfinishedError + '_ {
    |source| UnfinishedError::Io {
        path: path.to_owned(),
        source,
    }
}

/// A file with a name for the time until it is complete.
struct NewFile {
    temporary: PathBuf,
    path: PathBuf,
    /// What is there, locked, and is to be replaced.
    old: Option<Arc<dyn Disk>>,
}

/// Files that are being made. What is not finished is removed: when this is dropped, and at SIGINT, SIGTERM and SIGHUP.
/// A kill leaves the temporary name, which says what it is.
pub(super) struct Unfinished(Arc<Mutex<Vec<NewFile>>>);

fn lock(files: &Mutex<Vec<NewFile>>) -> MutexGuard<'_, Vec<NewFile>> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove(files: &mut Vec<NewFile>) {
    for file in files.drain(..) {
        // The user is told of something else, or has interrupted it.
        let _ = fs::remove_file(&file.temporary);
    }
}

impl Unfinished {
    /// None yet.
    ///
    /// # Errors
    /// Signals can't be handled.
    pub(super) fn new() -> io::Result<Self> {
        let files = Arc::<Mutex<Vec<NewFile>>>::default();
        // A file that may not be as long as it has to be is told of by the call that makes it so long.
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGXFSZ])?;
        let unfinished = files.clone();
        std::thread::Builder::new()
            .name("vblk-signals".into())
            .spawn(move || {
                for signal in signals.forever().filter(|signal| *signal != SIGXFSZ) {
                    // Held to the end: nothing is finished any more.
                    let mut files = lock(&unfinished);
                    remove(&mut files);
                    let _ = emulate_default_handler(signal);
                }
            })?;
        Ok(Self(files))
    }

    /// Makes an empty file that will be at `path`. Where it is until then is returned.
    ///
    /// # Errors
    /// There is something, unless it is a file and `force`; the system's.
    pub(super) fn add(&self, path: &Path, force: bool) -> Result<PathBuf, UnfinishedError> {
        // Through links: what they lead to is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let old = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(&path)(error)),
            Ok(found) if !found.is_file() => return Err(UnfinishedError::NoFile(path)),
            Ok(_) if !force => return Err(UnfinishedError::Exists(path)),
            Ok(_) => match super::open(&path, Access::Read) {
                Ok(old) => Some(old),
                Err(source) => return Err(UnfinishedError::InUse { path, source }),
            },
        };
        let mut temporary = path.clone().into_os_string();
        temporary.push(format!(".unfinished-{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let mut files = lock(&self.0);
        File::create_new(&temporary).map_err(failed(&temporary))?;
        files.push(NewFile {
            temporary: temporary.clone(),
            path,
            old,
        });
        Ok(temporary)
    }

    /// Gives all of them their names, in the order in which they were added, and makes that stable.
    ///
    /// # Errors
    /// Something has come to be there in the meantime; the system's. Nothing new is left then.
    pub(super) fn finish(self) -> Result<(), UnfinishedError> {
        let mut files = lock(&self.0);
        let mut done = Vec::new();
        let mut named = Ok(());
        for file in files.iter() {
            named = name(file);
            if named.is_err() {
                break;
            }
            done.push((file.path.clone(), file.old.is_some()));
        }
        remove(&mut files);
        if named.is_err() {
            for (path, _) in done.iter().filter(|(_, replaced)| !replaced) {
                let _ = fs::remove_file(path);
            }
        }
        named
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        remove(&mut lock(&self.0));
    }
}

/// Gives a file its name, stably so.
fn name(file: &NewFile) -> Result<(), UnfinishedError> {
    let (from, to) = (&*file.temporary, &*file.path);
    let named = if file.old.is_some() {
        fs::rename(from, to)
    } else {
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::EXIST) => return Err(UnfinishedError::Exists(to.to_owned())),
            // File systems that can't do that at once.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => match to.exists() {
                true => return Err(UnfinishedError::Exists(to.to_owned())),
                false => fs::rename(from, to),
            },
            other => other.map_err(io::Error::from),
        }
    };
    named.map_err(failed(to))?;
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let opened = File::open(directory).map_err(failed(directory))?;
    opened.sync_all().map_err(failed(directory))
}
