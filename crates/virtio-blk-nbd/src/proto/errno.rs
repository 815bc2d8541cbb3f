// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Errors of requests.

/// Why a request failed: numbers of the protocol, which are those of Linux on most machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub u32);

impl Errno {
    /// It did not fail.
    pub const OK: Self = Self(0);
    /// Not allowed: a write to a read-only export.
    pub const PERM: Self = Self(1);
    /// The medium failed.
    pub const IO: Self = Self(5);
    /// No memory.
    pub const NOMEM: Self = Self(12);
    /// The request makes no sense.
    pub const INVAL: Self = Self(22);
    /// The medium is full, or the range beyond its end.
    pub const NOSPC: Self = Self(28);
    /// The reply would be too long, or can't be one piece.
    pub const OVERFLOW: Self = Self(75);
    /// Not offered, or not fast.
    pub const NOTSUP: Self = Self(95);
    /// The server is about to end.
    pub const SHUTDOWN: Self = Self(108);

    /// The protocol's number for an error of the host's.
    pub const fn of_host(errno: i32) -> Self {
        match errno {
            0 => Self::OK,
            libc::EPERM | libc::EACCES | libc::EROFS => Self::PERM,
            libc::ENOMEM => Self::NOMEM,
            libc::EINVAL => Self::INVAL,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Self::NOSPC,
            libc::EOVERFLOW => Self::OVERFLOW,
            libc::EOPNOTSUPP => Self::NOTSUP,
            libc::ESHUTDOWN => Self::SHUTDOWN,
            _ => Self::IO,
        }
    }

    /// The host's number for it; `None`: it did not fail. A number that the protocol does not have is taken for
    /// [`Errno::INVAL`], as the specification asks for.
    pub const fn to_host(self) -> Option<i32> {
        Some(match self {
            Self::OK => return None,
            Self::PERM => libc::EPERM,
            Self::IO => libc::EIO,
            Self::NOMEM => libc::ENOMEM,
            Self::NOSPC => libc::ENOSPC,
            Self::OVERFLOW => libc::EOVERFLOW,
            Self::NOTSUP => libc::EOPNOTSUPP,
            Self::SHUTDOWN => libc::ESHUTDOWN,
            _ => libc::EINVAL,
        })
    }
}
