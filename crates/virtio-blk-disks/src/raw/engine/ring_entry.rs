// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! System calls as entries of a ring.

use io_uring::{opcode, squeue, types};

use crate::raw::host_file::HostFile;
use crate::raw::job::Call;

/// The registered files: for data, and for flushes.
const FILE: types::Fixed = types::Fixed(0);
const FLUSH: types::Fixed = types::Fixed(1);

/// Who may fail a call that goes through a ring, and how.
#[cfg(feature = "inject")]
pub(super) type Ticket = Option<crate::inject::Ticket>;

/// A call in the ring's form.
pub(super) struct Ready {
    pub entry: squeue::Entry,
    #[cfg(feature = "inject")]
    pub ticket: Ticket,
}

/// The ring's form of a call. `None` for one that can only be made directly.
pub(super) fn entry(call: &Call<'_>) -> Option<squeue::Entry> {
    Some(match *call {
        Call::Read { segments, offset } => match segments {
            [one] if u32::try_from(one.iov_len).is_ok() => {
                opcode::Read::new(FILE, one.iov_base.cast(), one.iov_len as u32)
                    .offset(offset)
                    .build()
            }
            _ => opcode::Readv::new(FILE, segments.as_ptr(), segments.len() as u32)
                .offset(offset)
                .build(),
        },
        Call::Write {
            segments,
            offset,
            dsync,
        } => {
            let flags = if dsync { libc::RWF_DSYNC } else { 0 };
            match segments {
                [one] if u32::try_from(one.iov_len).is_ok() => {
                    opcode::Write::new(FILE, one.iov_base.cast(), one.iov_len as u32)
                        .offset(offset)
                        .rw_flags(flags)
                        .build()
                }
                _ => opcode::Writev::new(FILE, segments.as_ptr(), segments.len() as u32)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
            }
        }
        Call::Sync => opcode::Fsync::new(FLUSH)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Call::Allocate { mode, offset, len } => opcode::Fallocate::new(FILE, len)
            .offset(offset)
            .mode(mode.flags())
            .build(),
        Call::Erase { .. } => return None,
    })
}

impl Ready {
    #[cfg(not(feature = "inject"))]
    pub fn new(entry: squeue::Entry, _: &Call<'_>, _: &HostFile) -> Self {
        Self { entry }
    }

    /// Asks whether a test fails the call.
    #[cfg(feature = "inject")]
    pub fn new(entry: squeue::Entry, call: &Call<'_>, file: &HostFile) -> Self {
        let ticket = file.hook.as_ref().map(|hook| hook.begin(call.made()));
        let entry = match ticket {
            Some(ticket) if ticket.is_spared() => opcode::Nop::new().build(),
            _ => entry,
        };
        Self { entry, ticket }
    }
}
