// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Opens an image and what it stands on.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};

use super::error::OpenError;
use super::header::Header;
use super::options::Qcow2Options;
use super::order::Order;
use super::storage::ImageFile;
use super::tables::Tables;
use crate::RawOptions;
use crate::raw;

/// Most images on top of each other.
const MAX_CHAIN: usize = 64;

/// An open image.
pub(super) struct Opened {
    pub format: FormatAccess<ImageFile>,
    pub header: Header,
    pub tables: Tables,
    pub file: Arc<File>,
    pub frozen: Arc<std::sync::atomic::AtomicBool>,
}

/// The files of a chain so far, by device and number.
#[derive(Default)]
struct Chain(Vec<(u64, u64)>);

/// Opens, locks and checks an image and, where that is allowed, its backing files.
///
/// # Errors
/// See [`OpenError`].
pub(super) fn open(options: &Qcow2Options) -> Result<Opened, OpenError> {
    let mut chain = Chain::default();
    chain.image(options.path(), options, !options.read_only)
}

impl Chain {
    fn file(&mut self, path: &Path, writable: bool, lock: bool) -> Result<Arc<File>, OpenError> {
        let raw = RawOptions::new(path).read_only(!writable);
        let file = raw::open_file(&raw)?;
        let library = |source| OpenError::Library {
            path: path.to_owned(),
            source,
        };
        let about = file.metadata().map_err(library)?;
        let id = (about.dev(), about.ino());
        if self.0.contains(&id) {
            return Err(OpenError::damaged(
                path,
                "it is its own backing file, directly or through others",
            ));
        }
        if self.0.len() == MAX_CHAIN {
            return Err(OpenError::damaged(
                path,
                format!("more than {MAX_CHAIN} images stand on each other"),
            ));
        }
        // Only now: a file that is its own backing file is not in use by somebody else.
        if lock {
            raw::lock_file(&file, &raw)?;
        }
        self.0.push(id);
        Ok(Arc::new(file))
    }

    fn image(
        &mut self,
        path: &Path,
        options: &Qcow2Options,
        writable: bool,
    ) -> Result<Opened, OpenError> {
        let library = |source| OpenError::Library {
            path: path.to_owned(),
            source,
        };
        let top = self.0.is_empty();
        let file = self.file(path, writable, options.lock)?;
        let len = raw::file_size(&file).map_err(library)?;
        let header = Header::read(&file, len, path)?;
        let tables = Tables::read(&file, len, &header, path)?;
        let backing = match &header.backing {
            None => None,
            Some((name, format)) => Some(Arc::new(self.below(
                path,
                name,
                format.as_deref(),
                options,
            )?)),
        };
        let storage = if top {
            let order = writable.then(|| Order::new(&file, &header)).transpose();
            ImageFile::image(file.clone(), path.to_owned(), order.map_err(library)?)
        } else {
            ImageFile::backing(file.clone(), path.to_owned())
        };
        let frozen = storage.frozen();
        let format = Qcow2::<ImageFile, Arc<FormatAccess<ImageFile>>>::builder(storage)
            .write(writable)
            .backing(backing)
            .data_file(None)
            .open(DenyImplicitOpenGate::default())
            .map_err(library)?;
        Ok(Opened {
            format: FormatAccess::new(format),
            header,
            tables,
            file,
            frozen,
        })
    }

    /// Opens the backing file that `path` names.
    fn below(
        &mut self,
        path: &Path,
        name: &str,
        format: Option<&str>,
        options: &Qcow2Options,
    ) -> Result<FormatAccess<ImageFile>, OpenError> {
        if !options.backing {
            return Err(OpenError::BackingDenied {
                path: path.to_owned(),
                backing: name.to_owned(),
            });
        }
        let refuse = |why: String| OpenError::Backing {
            path: path.to_owned(),
            backing: name.to_owned(),
            why,
        };
        let place = backing_path(path, name).map_err(|why| refuse(why.to_owned()))?;
        match format {
            Some("qcow2") => Ok(self
                .image(&place, options, false)
                .map_err(|error| refuse(error.to_string()))?
                .format),
            Some("raw") => {
                let file = self
                    .file(&place, false, options.lock)
                    .map_err(|error| refuse(error.to_string()))?;
                let storage = ImageFile::backing(file, place);
                let raw = Raw::builder(storage)
                    .open(DenyImplicitOpenGate::default())
                    .map_err(|error| refuse(error.to_string()))?;
                Ok(FormatAccess::new(raw))
            }
            Some(other) => Err(refuse(format!("its format is {other}: use raw or qcow2"))),
            None => Err(refuse(format!(
                "the image does not say its format, which is never guessed: \
                 `qemu-img rebase -u -b {name} -F raw {path}` (or -F qcow2) says it",
                path = path.display()
            ))),
        }
    }
}

/// Where a backing file is, from its name in the image at `image`.
fn backing_path(image: &Path, name: &str) -> Result<PathBuf, &'static str> {
    if name.is_empty() || name.contains('\0') {
        return Err("that is no file name");
    }
    // As QEMU sees it: a word and a colon before any slash name a protocol.
    let scheme = name
        .find(':')
        .zip(Some(name.find('/').unwrap_or(name.len())));
    if scheme.is_some_and(|(colon, slash)| colon < slash) {
        return Err(
            "it names a protocol (such as json:, nbd: or file:), not a file. Only files are opened; \
             a relative path with a colon needs ./ before it",
        );
    }
    Ok(image.parent().unwrap_or(Path::new("")).join(name))
}
