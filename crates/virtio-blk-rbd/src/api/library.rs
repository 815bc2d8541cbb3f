// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Opening the library while the program runs.

use std::ffi::CStr;
use std::sync::OnceLock;

use super::Api;
use crate::RbdError;

/// Its name with the version of its interface. It depends on librados, whose functions are found through it.
const LIBRARY: &CStr = c"librbd.so.1";

/// The functions of the library, which stays in the process: its threads may outlive every disk.
///
/// # Errors
/// [`RbdError::Library`]: it is not there. [`RbdError::Symbol`]: it is too old.
pub(crate) fn load() -> Result<&'static Api, RbdError> {
    static API: OnceLock<Api> = OnceLock::new();
    if let Some(api) = API.get() {
        return Ok(api);
    }
    let api = open(LIBRARY)?;
    Ok(API.get_or_init(|| api))
}

/// The functions of the library of this name.
fn open(name: &CStr) -> Result<Api, RbdError> {
    // SAFETY: a string that ends in zero; the initialisers of the library run, which is what it is opened for.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() {
        // SAFETY: it has no preconditions.
        let message = unsafe { libc::dlerror() };
        let why = if message.is_null() {
            "no reason is given".to_owned()
        } else {
            // SAFETY: a string that ends in zero, valid until the next call of this thread.
            let message = unsafe { CStr::from_ptr(message) };
            message.to_string_lossy().into_owned()
        };
        return Err(RbdError::Library { why });
    }
    // SAFETY: what is found under these names in librbd and in librados, which it depends on, are the C functions that
    // the headers of that version of the interface declare; the types here are theirs.
    unsafe { Api::find(|symbol| libc::dlsym(library, symbol.as_ptr())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named_with_its_package_and_a_command() {
        let error = open(c"librbd-that-is-not-there.so.1").unwrap_err();
        let text = error.to_string();
        for words in [
            "librbd-that-is-not-there.so.1",
            "apt-get install librbd1",
            "ceph-common",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn a_library_without_the_functions_is_too_old() {
        let error = open(c"libc.so.6").unwrap_err();
        assert!(matches!(error, RbdError::Symbol { .. }), "{error}");
        assert!(error.to_string().contains("rados_create"), "{error}");
    }
}
