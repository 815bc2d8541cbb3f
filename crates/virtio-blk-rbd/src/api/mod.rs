// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The functions of librados and librbd that are used, as declared in their `rados/librados.h` and `rbd/librbd.h`.

mod library;

use std::ffi::{c_char, c_int, c_void};

use crate::RbdError;

pub(crate) use library::load;

/// A handle of the libraries: a cluster, a pool, an image or a completion.
///
/// They may be used from any thread at the same time (`librados.h`: "thread safe"; `librbd.h` has no state of a caller).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Handle(pub *mut c_void);

impl Handle {
    /// What the libraries overwrite.
    pub const NONE: Self = Self(std::ptr::null_mut());
}

// SAFETY: the libraries lock what a handle stands for, see `Handle`.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// `rbd_open` and `rbd_open_read_only`: pool, image, where the handle is written, snapshot or null.
pub(crate) type Open =
    unsafe extern "C" fn(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
/// Called by librbd when an operation has ended, on a thread of its own.
pub(crate) type Callback = unsafe extern "C" fn(Handle, *mut c_void);
/// Called by librbd when the image's header has changed.
pub(crate) type UpdateCallback = unsafe extern "C" fn(*mut c_void);
/// Called by librbd for each range of a difference: offset, length, whether there is data.
pub(crate) type DiffCallback = unsafe extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int;
/// Called by librbd while it resizes: done, of how much.
pub(crate) type Progress = unsafe extern "C" fn(u64, u64, *mut c_void) -> c_int;

/// `rbd_aio_write_zeroes`: image, offset, length, completion, its own flags, flags of the operation.
pub(crate) type WriteZeroes =
    unsafe extern "C" fn(Handle, u64, usize, Handle, c_int, c_int) -> c_int;

/// `rbd_config_option_t`: a setting that counts for an image.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct ConfigOption {
    pub name: *mut c_char,
    pub value: *mut c_char,
    /// `rbd_config_source_t`: who has set it.
    pub source: c_int,
}

impl ConfigOption {
    /// What the library fills in.
    pub const EMPTY: Self = Self {
        name: std::ptr::null_mut(),
        value: std::ptr::null_mut(),
        source: 0,
    };
}

/// The only mode of the exclusive lock: `RBD_LOCK_MODE_EXCLUSIVE`.
pub(crate) const LOCK_EXCLUSIVE: c_int = 0;
/// Zeroes are allocated: `RBD_WRITE_ZEROES_FLAG_THICK_PROVISION`.
pub(crate) const ZEROES_ALLOCATED: c_int = 1;
/// The image has an exclusive lock: `RBD_FEATURE_EXCLUSIVE_LOCK`.
pub(crate) const FEATURE_EXCLUSIVE_LOCK: u64 = 1 << 2;
/// Somewhere a persistent cache holds writes that the image lacks: `RBD_FEATURE_DIRTY_CACHE`.
pub(crate) const FEATURE_DIRTY_CACHE: u64 = 1 << 11;
/// What is written goes through a journal: `RBD_FEATURE_JOURNALING`.
pub(crate) const FEATURE_JOURNALING: u64 = 1 << 6;

/// Declares the table.
macro_rules! symbols {
    ($($name:ident($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions, by their own names.
        #[derive(Clone, Debug)]
        pub(crate) struct Api {
            $(pub $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
            /// Not in old ones.
            pub rbd_aio_write_zeroes: Option<WriteZeroes>,
        }

        impl Api {
            /// Finds each function by `find`, which returns null for one that is not there.
            ///
            /// # Safety
            /// What `find` returns is null or the C function of that name with the type that is declared here.
            ///
            /// # Errors
            /// [`RbdError::Symbol`]: one is missing.
            unsafe fn find(find: impl Fn(&std::ffi::CStr) -> *mut c_void) -> Result<Self, RbdError> {
                Ok(Self {
                    $($name: {
                        let found = find(as_c(concat!(stringify!($name), "\0")));
                        if found.is_null() {
                            return Err(RbdError::Symbol { name: stringify!($name) });
                        }
                        // SAFETY: not null, so the function of this name and type, as the caller guarantees.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($arg),*) $(-> $ret)?,
                            >(found)
                        }
                    },)*
                    rbd_aio_write_zeroes: {
                        // SAFETY: null is `None`, and else it is the function of this name and type.
                        unsafe {
                            std::mem::transmute::<*mut c_void, Option<WriteZeroes>>(find(
                                c"rbd_aio_write_zeroes",
                            ))
                        }
                    },
                })
            }
        }
    };
}

/// The text of a constant that ends in a zero byte.
fn as_c(text: &'static str) -> &'static std::ffi::CStr {
    std::ffi::CStr::from_bytes_with_nul(text.as_bytes()).unwrap_or_default()
}

symbols! {
    rados_create(*mut Handle, *const c_char) -> c_int;
    rados_conf_read_file(Handle, *const c_char) -> c_int;
    rados_conf_set(Handle, *const c_char, *const c_char) -> c_int;
    rados_conf_get(Handle, *const c_char, *mut c_char, usize) -> c_int;
    rados_connect(Handle) -> c_int;
    rados_shutdown(Handle);
    rados_cluster_fsid(Handle, *mut c_char, usize) -> c_int;
    rados_get_instance_id(Handle) -> u64;
    rados_ioctx_create(Handle, *const c_char, *mut Handle) -> c_int;
    rados_ioctx_destroy(Handle);
    rados_ioctx_get_id(Handle) -> i64;
    rados_ioctx_set_namespace(Handle, *const c_char);
    rbd_open(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
    rbd_open_read_only(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
    rbd_close(Handle) -> c_int;
    rbd_get_size(Handle, *mut u64) -> c_int;
    rbd_get_features(Handle, *mut u64) -> c_int;
    rbd_get_stripe_unit(Handle, *mut u64) -> c_int;
    rbd_get_id(Handle, *mut c_char, usize) -> c_int;
    rbd_config_image_list(Handle, *mut ConfigOption, *mut c_int) -> c_int;
    rbd_config_image_list_cleanup(*mut ConfigOption, c_int);
    rbd_resize2(Handle, u64, bool, Progress, *mut c_void) -> c_int;
    rbd_list_lockers(
        Handle, *mut c_int, *mut c_char, *mut usize, *mut c_char, *mut usize, *mut c_char, *mut usize,
        *mut c_char, *mut usize
    ) -> isize;
    rbd_lock_break(Handle, c_int, *const c_char) -> c_int;
    rbd_update_watch(Handle, *mut u64, UpdateCallback, *mut c_void) -> c_int;
    rbd_update_unwatch(Handle, u64) -> c_int;
    rbd_diff_iterate2(Handle, *const c_char, u64, u64, u8, u8, DiffCallback, *mut c_void) -> c_int;
    rbd_aio_create_completion(*mut c_void, Callback, *mut Handle) -> c_int;
    rbd_aio_release(Handle);
    rbd_aio_get_return_value(Handle) -> isize;
    rbd_aio_readv(Handle, *const libc::iovec, c_int, u64, Handle) -> c_int;
    rbd_aio_writev(Handle, *const libc::iovec, c_int, u64, Handle) -> c_int;
    rbd_aio_discard(Handle, u64, u64, Handle) -> c_int;
    rbd_aio_flush(Handle, Handle) -> c_int;
}
