// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether librbd keeps what has completed on this host, in memory or on an SSD.

use std::ffi::CStr;

use crate::RbdError;
use crate::api::{Api, ConfigOption, Handle};
use crate::cluster::checked;

/// The setting that switches on the cache in memory.
pub(crate) const MEMORY_CACHE: &CStr = c"rbd_cache";
/// The setting that says where the persistent write-log cache is (of librbd's plugin `pwl_cache`).
pub(crate) const PERSISTENT_CACHE: &CStr = c"rbd_persistent_cache_mode";

/// What the settings of an image that is written must be.
pub(crate) const OFF: &[(&CStr, &CStr)] =
    &[(MEMORY_CACHE, c"false"), (PERSISTENT_CACHE, c"disabled")];

/// The setting by which a read copies from the parent, which changes the image.
pub(crate) const COPY_ON_READ: &CStr = c"rbd_clone_copy_on_read";

/// What the settings of an image must be so that the library reads without the image's lock.
pub(crate) const NO_LOCK_OF_READS: &[(&CStr, &CStr)] =
    &[(COPY_ON_READ, c"false"), (PERSISTENT_CACHE, c"disabled")];

/// The most settings that are looked at; librbd 16 has some eighty.
const MOST: i32 = 4096;

/// Returns the first of these settings that an image or its pool has with another value: such a setting is stronger than
/// the one that was made for the connection. What the library does not know is not there.
///
/// # Safety
/// The image is open until this has returned.
///
/// # Errors
/// The cluster's.
pub(crate) unsafe fn overridden(
    api: &Api,
    image: Handle,
    wanted: &[(&'static CStr, &CStr)],
) -> Result<Option<&'static CStr>, RbdError> {
    let mut count = 128;
    let mut options;
    let code = loop {
        options = vec![ConfigOption::EMPTY; usize::try_from(count).unwrap_or_default()];
        let room = count;
        // SAFETY: the image is open, as the caller guarantees; there is room for so many.
        let code =
            unsafe { (api.rbd_config_image_list)(image, options.as_mut_ptr(), &raw mut count) };
        if code != -libc::ERANGE || count <= room || count > MOST {
            break code;
        }
    };
    checked(
        code,
        || "ask for the image's settings".to_owned(),
        String::new,
    )?;
    let given = || {
        options
            .iter()
            .take(usize::try_from(count).unwrap_or_default())
    };
    let found = wanted.iter().find(|(name, value)| {
        // SAFETY: both are texts of the library that end in zero.
        given().any(|option| unsafe { is(option.name, name) && !is(option.value, value) })
    });
    let found = found.map(|(name, _)| *name);
    // SAFETY: what the library has filled in, once.
    unsafe { (api.rbd_config_image_list_cleanup)(options.as_mut_ptr(), count) };
    Ok(found)
}

/// Whether a text of the library's is this one.
///
/// # Safety
/// It is null, or ends in zero.
unsafe fn is(text: *const std::ffi::c_char, other: &CStr) -> bool {
    // SAFETY: as the caller guarantees.
    !text.is_null() && unsafe { CStr::from_ptr(text) } == other
}
