// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Opens an image and what it stands on.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};

use super::changes::Changes;
use super::error::OpenError;
use super::frozen::Frozen;
use super::header::Header;
use super::host::{FileHost, Host};
use super::options::Qcow2Options;
use super::order::Order;
use super::storage::{ImageFile, Writable};
use super::tables::Tables;
use crate::raw;
use crate::{Engine, Lock, RawOptions};

/// Most images on top of each other.
const MAX_CHAIN: usize = 64;

/// An open image.
pub(super) struct Opened {
    pub format: FormatAccess<ImageFile>,
    pub header: Header,
    pub tables: Arc<Tables>,
    pub host: Arc<dyn Host>,
    pub frozen: Arc<Frozen>,
    /// None, if it is read-only.
    pub changes: Option<Arc<Changes>>,
    /// Bytes of the backing file.
    pub backing: Option<u64>,
}

#[derive(Default)]
struct Chain {
    /// The files so far, by device and number.
    files: Vec<(u64, u64)>,
    /// The first image has been seen.
    below: bool,
}

/// Opens, locks and checks an image and, where that is allowed, its backing files.
///
/// # Errors
/// See [`OpenError`].
pub(super) fn open(options: &Qcow2Options) -> Result<Opened, OpenError> {
    let mut chain = Chain::default();
    let host = chain.file(options.path(), options, options.is_writable())?;
    chain.image(host, options.path(), options, options.is_writable())
}

/// The same for an image that lies on `host`.
///
/// # Errors
/// See [`OpenError`].
pub(super) fn open_on(host: Arc<dyn Host>, options: &Qcow2Options) -> Result<Opened, OpenError> {
    Chain::default().image(host, options.path(), options, options.is_writable())
}

/// Reads only the header of an image, which somebody else may be using: without a lock, and without a look at what
/// lies elsewhere and may change in this moment.
///
/// # Errors
/// See [`OpenError`].
pub(super) fn header(options: &Qcow2Options) -> Result<Header, OpenError> {
    let path = options.path();
    let look = options.clone().inspect(true);
    let host = Chain::default().file(path, &look, false)?;
    let header = Header::read(&*host, i64::MAX as u64, path)?;
    match &header.backing {
        Some((backing, _)) if !options.backing => Err(OpenError::BackingDenied {
            path: path.to_owned(),
            backing: backing.clone(),
        }),
        _ => Ok(header),
    }
}

impl Chain {
    fn file(
        &mut self,
        path: &Path,
        options: &Qcow2Options,
        writable: bool,
    ) -> Result<Arc<dyn Host>, OpenError> {
        let engine = if self.files.is_empty() {
            options.engine
        } else {
            Engine::Sync
        };
        let raw = RawOptions::new(path)
            .read_only(!writable)
            .inspect(options.inspect)
            .lock(options.lock)
            .engine(engine);
        #[cfg(feature = "inject")]
        let raw = match &options.inject {
            Some(injector) if self.files.is_empty() => raw.inject(injector),
            _ => raw,
        };
        let file = raw::open_file(&raw)?;
        let library = |source| OpenError::Library {
            path: path.to_owned(),
            source,
        };
        let about = file.metadata().map_err(library)?;
        let id = (about.dev(), about.ino());
        if self.files.contains(&id) {
            return Err(OpenError::damaged(
                path,
                "it is its own backing file, directly or through others",
            ));
        }
        if self.files.len() == MAX_CHAIN {
            return Err(OpenError::damaged(
                path,
                format!("more than {MAX_CHAIN} images stand on each other"),
            ));
        }
        // Only now: a file that is its own backing file is not in use by somebody else.
        if options.lock != Lock::Off && !options.inspect {
            raw::lock_file(&file, &raw)?;
        }
        self.files.push(id);
        Ok(Arc::new(FileHost::new(file, &raw)?))
    }

    fn image(
        &mut self,
        host: Arc<dyn Host>,
        path: &Path,
        options: &Qcow2Options,
        writable: bool,
    ) -> Result<Opened, OpenError> {
        let library = |source| OpenError::Library {
            path: path.to_owned(),
            source,
        };
        let len = host.size().map_err(library)?;
        let header = Header::read(&*host, len, path)?;
        let tables = Arc::new(Tables::read(&*host, len, &header, path)?);
        let top = !std::mem::replace(&mut self.below, true);
        let backing = match &header.backing {
            None => None,
            Some((name, format)) => Some(Arc::new(self.below(
                path,
                name,
                format.as_deref(),
                options,
            )?)),
        };
        let frozen = Arc::new(Frozen::new(path.to_owned()));
        let mut changes = None;
        let storage = if writable {
            let order = Order::new(&*host, &header, tables.clone(), backing.is_some());
            let order = order.map_err(library)?;
            if order.uncounted(&*host).map_err(library)?.is_some() {
                return Err(OpenError::damaged(
                    path,
                    "one of its tables has a refcount of 0",
                ));
            }
            let all = Changes::new(host.clone(), order, frozen.clone(), &header);
            let all = changes.insert(Arc::new(all)).clone();
            let writable = Writable {
                changes: all,
                tables: tables.clone(),
                autoclear: header.version >= 3,
            };
            ImageFile::image(host.clone(), path.to_owned(), Some(writable))
        } else if top {
            ImageFile::image(host.clone(), path.to_owned(), None)
        } else {
            ImageFile::backing(host.clone(), path.to_owned())
        };
        let reach = backing.as_ref().map(|backing| backing.size());
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
            host,
            frozen,
            changes,
            backing: reach,
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
                .file(&place, options, false)
                .and_then(|host| self.image(host, &place, options, false))
                .map_err(|error| refuse(error.to_string()))?
                .format),
            Some("raw") => {
                let file = self
                    .file(&place, options, false)
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
