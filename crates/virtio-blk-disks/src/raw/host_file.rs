// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One open file description of an image, and every system call on it: where tests make them fail.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::options::RawOptions;
use super::sys::{self, Erase};
#[cfg(feature = "inject")]
use crate::inject::{Call, Hook, Made};

/// An open file description. The calls return a count or 0, or a negated `errno`.
#[derive(Debug)]
pub(super) struct HostFile {
    file: File,
    /// Who may fail the calls.
    #[cfg(feature = "inject")]
    pub(super) hook: Option<Hook>,
}

/// Makes a call, unless a test fails it.
macro_rules! make {
    ($self:ident, $kind:ident, $offset:expr, $len:expr, $stable:expr, $call:expr) => {{
        #[cfg(feature = "inject")]
        if let Some(hook) = &$self.hook {
            let mut made = Made::new(Call::$kind, $offset, $len);
            made.stable = $stable;
            return hook.around(made, || $call);
        }
        $call
    }};
}

#[cfg(feature = "inject")]
fn total(segments: &[libc::iovec]) -> u64 {
    segments.iter().map(|segment| segment.iov_len as u64).sum()
}

impl HostFile {
    pub fn new(file: File, options: &RawOptions) -> Self {
        #[cfg(not(feature = "inject"))]
        let _ = options;
        Self {
            #[cfg(feature = "inject")]
            hook: options
                .inject
                .as_ref()
                .map(|injector| Hook::new(injector, &file)),
            file,
        }
    }

    /// Another open file description of the same file, for [`HostFile::fdatasync`] only. It holds no lock.
    ///
    /// # Errors
    /// There is no `/proc`, or the process may not open the file any more.
    pub fn reopen(&self) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        Ok(Self {
            #[cfg(feature = "inject")]
            hook: match &self.hook {
                Some(hook) => Some(hook.again(&file)?),
                None => None,
            },
            file,
        })
    }

    /// The file, for what is not its content.
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// `preadv2`.
    ///
    /// # Safety
    /// The segments must be valid for writes for the length of the call.
    #[inline]
    pub unsafe fn preadv2(&self, segments: &[libc::iovec], offset: u64, flags: i32) -> i32 {
        make!(self, Read, offset, total(segments), false, {
            // SAFETY: by the caller's word.
            unsafe { sys::preadv2(&self.file, segments, offset, flags) }
        })
    }

    /// `pwritev2`.
    ///
    /// # Safety
    /// The segments must be valid for reads for the length of the call.
    #[inline]
    pub unsafe fn pwritev2(&self, segments: &[libc::iovec], offset: u64, flags: i32) -> i32 {
        make!(
            self,
            Write,
            offset,
            total(segments),
            flags & libc::RWF_DSYNC != 0,
            {
                // SAFETY: by the caller's word.
                unsafe { sys::pwritev2(&self.file, segments, offset, flags) }
            }
        )
    }

    /// `fdatasync`.
    pub fn fdatasync(&self) -> i32 {
        make!(self, Sync, 0, 0, false, sys::fdatasync(&self.file))
    }

    /// Tells of a failed write-back as the next `fdatasync` would, without one: 0 or a negated `errno`.
    pub fn write_back_error(&self) -> i32 {
        #[cfg(feature = "inject")]
        if let Some(hook) = &self.hook
            && let Some(errno) = hook.write_back_error()
        {
            return -errno;
        }
        sys::write_back_error(&self.file)
    }

    /// `fallocate`.
    pub fn fallocate(&self, mode: i32, offset: u64, len: u64) -> i32 {
        make!(self, Allocate, offset, len, false, {
            sys::fallocate(&self.file, mode, offset, len)
        })
    }

    /// A discard of a block device.
    pub(super) fn erase(&self, how: Erase, offset: u64, len: u64) -> i32 {
        make!(self, Erase, offset, len, false, {
            sys::erase(&self.file, how, offset, len)
        })
    }

    /// `ftruncate`.
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        let call = || match self.file.set_len(len) {
            Ok(()) => 0,
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        // The macro may return.
        let made = || make!(self, Resize, 0, len, false, call());
        match made() {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    }
}

impl AsRawFd for HostFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
