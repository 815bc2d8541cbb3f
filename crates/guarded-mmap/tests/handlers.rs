// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Signals that are not about a mapping go to the handler that was there before. Each case is a process of its
//! own: this program again, told by a variable what to do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use guarded_mmap::{Mapping, Protection};

const CASE: &str = "GUARDED_MMAP_CASE";
const PAGE: usize = 4096;

static CALLS: AtomicU32 = AtomicU32::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);

/// Runs `body` in a process of its own, in which nothing else happens.
fn in_child(name: &str, body: fn()) -> ExitStatus {
    if std::env::var(CASE).as_deref() == Ok(name) {
        // No dump for every death.
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: a valid pointer.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
        body();
        std::process::exit(0);
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args([name, "--exact"]).env(CASE, name).output();
    output.unwrap().status
}

fn empty_file() -> File {
    tempfile::tempfile().unwrap()
}

/// A page of a file that has none.
fn missing_page() -> *mut u8 {
    let file = empty_file();
    // SAFETY: a new mapping.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(base, libc::MAP_FAILED);
    base.cast()
}

/// Touches a page that is missing, in nobody's mapping. Returns if somebody repaired it.
fn fault() {
    let page = missing_page();
    ADDRESS.store(page as usize, Ordering::Relaxed);
    // SAFETY: mapped; what happens is the test.
    unsafe { page.read_volatile() };
}

/// A mapping that loses its page does no harm.
fn guarded_fault() {
    let mapping = Mapping::new(empty_file(), 0, PAGE, Protection::Read).unwrap();
    // SAFETY: mapped.
    assert_eq!(unsafe { mapping.as_ptr().read_volatile() }, 0);
    assert!(mapping.is_poisoned());
}

fn send() {
    // SAFETY: a signal to this thread.
    unsafe { libc::raise(libc::SIGBUS) };
}

fn set_action(handler: usize, flags: c_int) {
    // SAFETY: plain data.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: handlers here have the type that goes with the flags.
    let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
    assert_eq!(result, 0);
}

extern "C" fn count(signal: c_int) {
    assert_eq!(signal, libc::SIGBUS);
    CALLS.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn end(_signal: c_int) {
    // SAFETY: ends the process.
    unsafe { libc::_exit(42) };
}

extern "C" fn examine(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's own.
    let address = unsafe { (*info).si_addr() };
    let right = signal == libc::SIGBUS
        && address as usize == ADDRESS.load(Ordering::Relaxed)
        && !context.is_null();
    // SAFETY: ends the process.
    unsafe { libc::_exit(if right { 43 } else { 44 }) };
}

extern "C" fn own(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    CALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the kernel's own.
    if !unsafe { guarded_mmap::handle(info) } {
        // SAFETY: ends the process.
        unsafe { libc::_exit(45) };
    }
}

fn plain(handler: extern "C" fn(c_int)) -> usize {
    handler as usize
}

fn detailed(handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)) -> usize {
    handler as usize
}

#[test]
fn other_faults_still_end_the_process() {
    let name = "other_faults_still_end_the_process";
    let status = in_child(name, || {
        guarded_fault();
        fault();
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}

#[test]
fn the_default_action() {
    let status = in_child("the_default_action", || {
        set_action(libc::SIG_DFL, 0);
        guarded_fault();
        fault();
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}

#[test]
fn a_signal_that_was_sent_ends_the_process_by_default() {
    let name = "a_signal_that_was_sent_ends_the_process_by_default";
    let status = in_child(name, || {
        set_action(libc::SIG_DFL, 0);
        guarded_fault();
        send();
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}

#[test]
fn ignored_goes_for_signals_that_are_sent() {
    let status = in_child("ignored_goes_for_signals_that_are_sent", || {
        set_action(libc::SIG_IGN, 0);
        guarded_fault();
        send();
        guarded_fault();
    });
    assert_eq!(status.code(), Some(0));
}

#[test]
fn faults_can_not_be_ignored() {
    let status = in_child("faults_can_not_be_ignored", || {
        set_action(libc::SIG_IGN, 0);
        guarded_fault();
        fault();
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}

#[test]
fn a_plain_handler_gets_what_is_not_ours() {
    let status = in_child("a_plain_handler_gets_what_is_not_ours", || {
        set_action(plain(count), 0);
        guarded_fault();
        assert_eq!(CALLS.load(Ordering::Relaxed), 0);
        send();
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    });
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_plain_handler_gets_faults() {
    let status = in_child("a_plain_handler_gets_faults", || {
        set_action(plain(end), 0);
        guarded_fault();
        fault();
    });
    assert_eq!(status.code(), Some(42));
}

#[test]
fn a_detailed_handler_gets_the_details() {
    let status = in_child("a_detailed_handler_gets_the_details", || {
        set_action(detailed(examine), libc::SA_SIGINFO);
        guarded_fault();
        fault();
    });
    assert_eq!(status.code(), Some(43));
}

#[test]
fn a_handler_for_one_signal_gets_one() {
    let status = in_child("a_handler_for_one_signal_gets_one", || {
        set_action(plain(count), libc::SA_RESETHAND);
        guarded_fault();
        send();
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
        guarded_fault();
        send();
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}

#[test]
fn opting_out_leaves_the_handler_to_the_embedder() {
    let name = "opting_out_leaves_the_handler_to_the_embedder";
    let status = in_child(name, || {
        assert!(guarded_mmap::opt_out());
        set_action(detailed(own), libc::SA_SIGINFO);
        guarded_fault();
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
        assert!(guarded_mmap::opt_out(), "as often as one likes");
        fault();
    });
    assert_eq!(status.code(), Some(45));
}

#[test]
fn opting_out_is_too_late_after_the_first_mapping() {
    let name = "opting_out_is_too_late_after_the_first_mapping";
    let status = in_child(name, || {
        guarded_fault();
        assert!(!guarded_mmap::opt_out());
        guarded_fault();
    });
    assert_eq!(status.code(), Some(0));
}
