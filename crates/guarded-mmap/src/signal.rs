// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The handler of `SIGBUS`.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::registry;

/// What handled the signal before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// The earlier handler was for one signal only (`SA_RESETHAND`), and had it.
static SPENT: AtomicBool = AtomicBool::new(false);

/// Nothing is to be installed any more: it is already, or must not be.
static SETTLED: AtomicBool = AtomicBool::new(false);
static SETTLING: Mutex<()> = Mutex::new(());

type Handler = extern "C" fn(c_int);
type Action = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Keeps this crate from installing a handler for `SIGBUS`, ever: for programs that have their own and
/// call [`handle`] from it. Mappings are not safe to touch without. Returns `false`, and changes nothing,
/// if the handler is installed already, with the first [`Mapping`](crate::Mapping).
pub fn opt_out() -> bool {
    let _guard = SETTLING.lock().unwrap_or_else(PoisonError::into_inner);
    if PREVIOUS.get().is_some() {
        return false;
    }
    SETTLED.store(true, Ordering::Release);
    true
}

/// Handles a `SIGBUS` if it is about a [`Mapping`](crate::Mapping). Returns whether it was, and the
/// handler may return; otherwise the caller must handle the signal. To be called from a handler for
/// `SIGBUS` (installed with `SA_SIGINFO`) of the embedder's own. Async-signal-safe; leaves `errno` alone.
///
/// # Safety
/// `info` is what the kernel gave to the handler, and the handler runs on the thread that was interrupted.
pub unsafe fn handle(info: *const libc::siginfo_t) -> bool {
    // SAFETY: `info` is the kernel's, which fills in the address for these codes. A signal that somebody sent
    // has other codes.
    let address = unsafe {
        match (*info).si_code {
            libc::BUS_ADRERR | libc::BUS_MCEERR_AR => (*info).si_addr(),
            _ => return false,
        }
    };
    // SAFETY: the calling thread's `errno`.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    let repaired = registry::repair(address as usize);
    // SAFETY: as above.
    unsafe { *errno = before };
    repaired
}

/// Installs the handler, once.
pub(crate) fn install() -> io::Result<()> {
    if SETTLED.load(Ordering::Acquire) {
        return Ok(());
    }
    let _guard = SETTLING.lock().unwrap_or_else(PoisonError::into_inner);
    if SETTLED.load(Ordering::Acquire) {
        return Ok(());
    }
    // SAFETY: `sigaction` is plain data.
    let mut previous: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: only asks.
    check(unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) })?;
    // The handler may need it as soon as it is there.
    let previous = PREVIOUS.get_or_init(|| previous);
    let mut action = *previous;
    action.sa_sigaction = on_sigbus as Action as usize;
    // What the earlier handler wants of its surroundings, it gets.
    action.sa_flags = previous.sa_flags & (libc::SA_NODEFER | libc::SA_RESTART)
        | libc::SA_SIGINFO
        | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO wants, and calls only what a handler may.
    check(unsafe { libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) })?;
    SETTLED.store(true, Ordering::Release);
    Ok(())
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: `info` is the kernel's.
    if unsafe { handle(info) } {
        return;
    }
    let Some(previous) = PREVIOUS.get() else {
        return;
    };
    let spent = previous.sa_flags & libc::SA_RESETHAND != 0 && SPENT.swap(true, Ordering::Relaxed);
    let handler = if spent {
        libc::SIG_DFL
    } else {
        previous.sa_sigaction
    };
    match handler {
        libc::SIG_DFL => by_default(signal, info),
        // The kernel does not let a thread ignore a fault of its own.
        libc::SIG_IGN if is_fault(info) => by_default(signal, info),
        libc::SIG_IGN => {}
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed with this flag, so it is a function of this type.
            let handler = unsafe { mem::transmute::<usize, Action>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: as above, without the flag.
            let handler = unsafe { mem::transmute::<usize, Handler>(handler) };
            handler(signal);
        }
    }
}

/// Whether the signal is about what this thread just did, and comes again if it continues.
fn is_fault(info: *const libc::siginfo_t) -> bool {
    // SAFETY: `info` is the kernel's.
    let code = unsafe { (*info).si_code };
    matches!(
        code,
        libc::BUS_ADRALN | libc::BUS_ADRERR | libc::BUS_OBJERR | libc::BUS_MCEERR_AR
    )
}

/// Makes the kernel do what it does without a handler: end the process, with a dump that shows the access.
fn by_default(signal: c_int, info: *const libc::siginfo_t) {
    // SAFETY: plain data; zeroes are the default action without mask and flags.
    let default: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: async-signal-safe calls. A fault comes again by itself, a signal that was sent is sent again.
    unsafe {
        libc::sigaction(signal, &raw const default, null_mut());
        if !is_fault(info) {
            libc::raise(signal);
        }
    }
}
