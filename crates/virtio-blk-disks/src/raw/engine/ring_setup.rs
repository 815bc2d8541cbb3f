// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a ring is set up, and whether this process can have one.

use std::io;

use io_uring::{IoUring, Probe, opcode};

/// Sets up a ring, with the newer flags if the kernel knows them.
pub(super) fn set_up(depth: u32) -> io::Result<IoUring> {
    let entries = depth.next_power_of_two();
    // Room for a cancellation beside each operation. The kernel caps it; what does not fit is kept in
    // the kernel until there is room.
    let completions = entries.saturating_mul(2);
    let mut builder = IoUring::builder();
    builder.setup_clamp().setup_cqsize(completions);
    builder
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all();
    match builder.build(entries) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::builder()
            .setup_clamp()
            .setup_cqsize(completions)
            .build(entries),
        result => result,
    }
}

/// Whether this process can use io_uring with all we need, or why not.
pub(super) fn available() -> Result<(), String> {
    let ring = set_up(1).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel has no io_uring".to_owned(),
        Some(libc::EPERM | libc::EACCES) => {
            "this process may not use io_uring: look at the sysctl \
             kernel.io_uring_disabled and at the seccomp profile"
                .to_owned()
        }
        Some(libc::ENOMEM) => {
            "no memory for a ring: look at the limit of locked memory, `ulimit -l`".to_owned()
        }
        _ => format!("setting up a ring failed: {error}"),
    })?;
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error| format!("asking for the operations of io_uring failed: {error}"))?;
    for (code, name) in [
        (opcode::Readv::CODE, "READV"),
        (opcode::Writev::CODE, "WRITEV"),
        (opcode::Read::CODE, "READ"),
        (opcode::Write::CODE, "WRITE"),
        (opcode::Fsync::CODE, "FSYNC"),
        (opcode::Fallocate::CODE, "FALLOCATE"),
        (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    ] {
        if !probe.is_supported(code) {
            return Err(format!("the kernel's io_uring lacks the operation {name}"));
        }
    }
    Ok(())
}
