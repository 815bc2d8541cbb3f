// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether librbd keeps what has completed in memory.

use std::ffi::CStr;

use crate::RbdError;
use crate::api::{Api, ConfigOption, Handle};
use crate::cluster::checked;

/// The most settings that are looked at; librbd 16 has some eighty.
const MOST: i32 = 4096;

/// Refuses an image or a pool with a setting of its own that switches the cache on: it is stronger than the one that was
/// made for the connection.
///
/// # Safety
/// The image is open until this has returned.
///
/// # Errors
/// [`RbdError::Image`] if there is such a setting, or the cluster's.
pub(crate) unsafe fn refuse(api: &Api, image: Handle, hint: &str) -> Result<(), RbdError> {
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
    let on = options
        .iter()
        .take(usize::try_from(count).unwrap_or_default())
        // SAFETY: both are texts of the library that end in zero.
        .any(|option| unsafe { is(option.name, c"rbd_cache") && !is(option.value, c"false") });
    // SAFETY: what the library has filled in, once.
    unsafe { (api.rbd_config_image_list_cleanup)(options.as_mut_ptr(), count) };
    if on {
        return Err(RbdError::Image(format!(
            "it has rbd_cache=true as a setting of its own or of its pool, and writes that have completed would be lost \
             with this process: {hint}"
        )));
    }
    Ok(())
}

/// Whether a text of the library's is this one.
///
/// # Safety
/// It is null, or ends in zero.
unsafe fn is(text: *const std::ffi::c_char, other: &CStr) -> bool {
    // SAFETY: as the caller guarantees.
    !text.is_null() && unsafe { CStr::from_ptr(text) } == other
}
