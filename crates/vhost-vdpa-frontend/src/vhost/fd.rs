// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The system calls on a vhost-vdpa descriptor, and the seam where tests look.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::Doorbell;
use super::abi::MESSAGE_SIZE;

/// What [`super::VhostVdpa`] asks of the kernel.
pub(crate) trait VhostFd: Send + Sync {
    /// `ioctl` with a pointer to `arg`, or with 0 where it is empty. Returns what the call returns.
    fn ioctl(&self, request: u32, arg: &mut [u8]) -> io::Result<i32>;

    /// Sends an IOTLB message.
    fn send(&self, message: &[u8; MESSAGE_SIZE]) -> io::Result<()>;

    /// Maps the doorbell page of queue `vq`.
    fn doorbell(&self, vq: u16) -> io::Result<Doorbell>;
}

/// `/dev/vhost-vdpa-N`.
pub(crate) struct KernelFd(pub(crate) OwnedFd);

impl VhostFd for KernelFd {
    fn ioctl(&self, request: u32, arg: &mut [u8]) -> io::Result<i32> {
        let pointer = if arg.is_empty() {
            std::ptr::null_mut()
        } else {
            arg.as_mut_ptr()
        };
        // SAFETY: every request of `abi` takes nothing, or a pointer to a structure of the size that its
        // number holds, which `arg` has; GET_CONFIG and SET_CONFIG also say how many bytes follow it, as
        // many as `arg` has. The type of a request number differs between C libraries.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, pointer) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(result)
    }

    fn send(&self, message: &[u8; MESSAGE_SIZE]) -> io::Result<()> {
        let sent = rustix::io::retry_on_intr(|| rustix::io::write(&self.0, message))?;
        if sent != MESSAGE_SIZE {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    fn doorbell(&self, vq: u16) -> io::Result<Doorbell> {
        Doorbell::map(self.0.as_fd(), vq)
    }
}
