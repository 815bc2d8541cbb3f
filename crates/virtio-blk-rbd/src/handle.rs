// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The library's handle of an image.

use crate::api::{Api, FEATURE_JOURNALING, Handle, Open};
use crate::cache;
use crate::cluster::{Cluster, checked, pointer, text};
use crate::{RbdError, RbdOptions};

/// The handle of an image. Dropping it closes it.
pub(crate) struct OpenHandle {
    pub api: &'static Api,
    pub image: Handle,
    /// As it is written on command lines.
    pub name: String,
    closed: bool,
}

impl OpenHandle {
    /// Closes it. Returns whether that succeeded: if not, a lock of ours may still be there.
    pub(crate) fn close(mut self) -> bool {
        self.end()
    }

    fn end(&mut self) -> bool {
        self.closed = true;
        // SAFETY: open, and closed once; no operation is in flight, as each queue waits for its own and keeps the image
        // meanwhile.
        let code = unsafe { (self.api.rbd_close)(self.image) };
        if code < 0 {
            let error = RbdError::call("close the image", code.into(), "");
            log::warn!("{}: {error}", self.name);
        }
        code >= 0
    }

    /// What kind of image it is, as a set of `RBD_FEATURE_*`.
    ///
    /// # Errors
    /// The cluster's.
    pub(crate) fn features(&self) -> Result<u64, RbdError> {
        let mut features = 0;
        // SAFETY: open; the number is there to be written.
        let code = unsafe { (self.api.rbd_get_features)(self.image, &raw mut features) };
        checked(
            code,
            || format!("ask for the features of {}", self.name),
            String::new,
        )?;
        Ok(features)
    }
}

impl Drop for OpenHandle {
    fn drop(&mut self) {
        if !self.closed {
            self.end();
        }
    }
}

/// Opens an image or a snapshot that is only read.
///
/// An image is opened as one that is written if that can be: nothing is locked without a write, and only then does the
/// library learn what others do to the image (its size, its parent), and the cluster refuses to remove it.
///
/// # Errors
/// The cluster's.
pub(crate) fn open_reader(
    api: &'static Api,
    cluster: &Cluster,
    options: &RbdOptions,
) -> Result<OpenHandle, RbdError> {
    if options.name().snapshot().is_some() {
        return open_handle(api, cluster, options, false);
    }
    let why = match open_handle(api, cluster, options, true) {
        Ok(handle) => match lock_of_reads(&handle)? {
            None => return Ok(handle),
            Some(why) => why,
        },
        Err(RbdError::Call { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => {
            "the user may not watch it".to_owned()
        }
        Err(error) => return Err(error),
    };
    let handle = open_handle(api, cluster, options, false)?;
    log::warn!(
        "{}: {why}, so changes of its size are not noticed, and the cluster does not know that the image is in use: it can \
         be removed meanwhile",
        handle.name
    );
    Ok(handle)
}

/// Why the library would take the image's lock to read, if it would.
///
/// # Errors
/// The cluster's.
fn lock_of_reads(handle: &OpenHandle) -> Result<Option<String>, RbdError> {
    if handle.features()? & FEATURE_JOURNALING != 0 {
        return Ok(Some(
            "it has a journal, and reading would take the lock away from its writer".to_owned(),
        ));
    }
    // SAFETY: open, and this call does not end before the library's.
    let setting = unsafe { cache::overridden(handle.api, handle.image, cache::NO_LOCK_OF_READS) }?;
    Ok(setting.map(|setting| {
        format!(
            "it has {} as a setting of its own or of its pool, and reading would take the lock away from its writer",
            setting.to_string_lossy()
        )
    }))
}

/// Opens an image so that the cluster knows of it (`watched`), or so that nothing can be changed.
///
/// # Errors
/// The cluster's.
pub(crate) fn open_handle(
    api: &'static Api,
    cluster: &Cluster,
    options: &RbdOptions,
    watched: bool,
) -> Result<OpenHandle, RbdError> {
    let name = options.name();
    let image = text(name.image(), "the image's name")?;
    let snapshot = name
        .snapshot()
        .map(|snapshot| text(snapshot, "the snapshot's name"))
        .transpose()?;
    let mut handle = Handle::NONE;
    let mut open = |by: Open| {
        // SAFETY: the pool is open for as long as the image, see `Opened`; the names end in zero or are null; the handle
        // is there to be written.
        unsafe {
            by(
                cluster.pool(),
                image.as_ptr(),
                &raw mut handle,
                pointer(snapshot.as_deref()),
            )
        }
    };
    let code = if watched {
        open(api.rbd_open)
    } else {
        open(api.rbd_open_read_only)
    };
    let hint = || match -code {
        libc::ENOENT if snapshot.is_some() => format!(
            "`rbd{words} ls {}` shows the images there are, `rbd{words} snap ls` their snapshots",
            name.place(),
            words = options.words()
        ),
        libc::ENOENT => format!(
            "`rbd{words} ls {}` shows those there are, and `rbd{words} create {name} --size 8G` makes it",
            name.place(),
            words = options.words()
        ),
        libc::EPERM | libc::EACCES => format!(
            "client.{} needs `profile rbd` for the pool {}",
            options.user().unwrap_or("admin"),
            name.pool()
        ),
        _ => String::new(),
    };
    checked(code, || format!("open the image {name}"), hint)?;
    Ok(OpenHandle {
        api,
        image: handle,
        name: format!("rbd:{name}"),
        closed: false,
    })
}
