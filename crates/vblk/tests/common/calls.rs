// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! System calls that fail, or never return, in a program under test: by a seccomp filter that it starts with.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What becomes of each call of fsync and fdatasync. io_uring is not affected.
#[derive(Clone, Copy)]
pub enum Syncs {
    /// It fails with EIO.
    Fail,
    /// It does not return, as over a storage that is gone.
    Hang,
}

/// Starts `command` so.
pub fn with_syncs(command: &mut Command, syncs: Syncs) {
    // SAFETY: the function makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(move || filter(syncs)) };
}

/// Filters the calls of this process, and of what it executes.
fn filter(syncs: Syncs) -> io::Result<()> {
    let (action, flags) = match syncs {
        Syncs::Fail => (libc::SECCOMP_RET_ERRNO | libc::EIO as u32, 0),
        // Asks a supervisor, which is the process itself and says nothing.
        Syncs::Hang => (
            libc::SECCOMP_RET_USER_NOTIF,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
        ),
    };
    let step = |code: u32, k: u32, (jt, jf): (u8, u8)| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let is = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    let mut program = [
        // The call's number, the first field of `seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, (0, 0)),
        step(is, libc::SYS_fsync as u32, (1, 0)),
        step(is, libc::SYS_fdatasync as u32, (0, 1)),
        step(end, action, (0, 0)),
        step(end, libc::SECCOMP_RET_ALLOW, (0, 0)),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    let check = |result: libc::c_long| match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the program outlives the call.
    let listener =
        check(unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) })?;
    if let Syncs::Hang = syncs {
        // Stays open in what is executed.
        // SAFETY: a descriptor that was just made.
        check(unsafe { libc::fcntl(listener as i32, libc::F_SETFD, 0) }.into())?;
    }
    Ok(())
}
