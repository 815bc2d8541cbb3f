// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A child of the test that is stopped at each of its system calls, and killed at one of them.

use std::collections::HashSet;
use std::{fs, io, mem, ptr};

use libc::pid_t;

/// What a stop at a system call shows beside SIGTRAP.
const CALL: i32 = 0x80;

/// Has the calling thread trace all threads of `process`, its child, and those that they will make.
pub fn seize(process: pid_t) {
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    let mut known = HashSet::new();
    loop {
        let before = known.len();
        for task in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
            let task = task.unwrap().file_name().into_string().unwrap();
            let task: pid_t = task.parse().unwrap();
            if !known.insert(task) {
                continue;
            }
            // SAFETY: ptrace(2) with these requests takes no pointers.
            let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, task, 0, options) };
            if seized == 0 {
                // SAFETY: the same.
                unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, task, 0, 0) };
            } else {
                // Traced already, as its maker is; or gone.
                let why = io::Error::last_os_error().raw_os_error();
                assert!(matches!(why, Some(libc::EPERM | libc::ESRCH)), "{why:?}");
            }
        }
        if known.len() == before {
            return;
        }
    }
}

/// Lets a process that was seized run to its end, and kills it at stop `kill_at` of any of its threads. Calls stop twice:
/// before they are made, and after. Returns the number of stops. The process is left to be waited for.
pub fn run(process: pid_t, kill_at: u64) -> u64 {
    let mut stops = 0;
    loop {
        // SAFETY: plain data.
        let mut about: libc::siginfo_t = unsafe { mem::zeroed() };
        let what = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT;
        let options = what | libc::__WALL | libc::__WNOTHREAD;
        // SAFETY: a variable of ours.
        let found = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut about, options) };
        assert_eq!(found, 0, "{}", io::Error::last_os_error());
        // SAFETY: waitid(2) has filled it in.
        let task = unsafe { about.si_pid() };
        let has_ended = [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED];
        if task == process && has_ended.contains(&about.si_code) {
            return stops;
        }
        let mut status = 0;
        // SAFETY: a variable of ours.
        let waited = unsafe { libc::waitpid(task, &raw mut status, libc::__WALL) };
        assert_eq!(waited, task, "{}", io::Error::last_os_error());
        if !libc::WIFSTOPPED(status) {
            continue;
        }
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        let is_call = signal == libc::SIGTRAP | CALL;
        if is_call {
            stops += 1;
            if stops == kill_at {
                // SAFETY: plain kill(2) of a child that has not been waited for.
                assert_eq!(unsafe { libc::kill(process, libc::SIGKILL) }, 0);
                continue;
            }
        }
        let delivered = if is_call || event != 0 { 0 } else { signal };
        let none = ptr::null_mut::<libc::c_void>();
        // One that is being killed can't go on.
        // SAFETY: a number in the place of a pointer, as this request has it.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, task, none, delivered as usize) };
    }
}
