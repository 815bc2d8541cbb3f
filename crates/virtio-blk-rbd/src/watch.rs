// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Learning that somebody has changed an image's size.

use std::ffi::c_void;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::RbdError;
use crate::api::{Api, Handle};
use crate::cluster::checked;
use crate::error::errno;
use crate::size::Size;

/// A thread that asks for the size whenever librbd says that the image has changed: its own thread must not ask. No
/// other thread asks while there is this one, so no size is taken over after a newer one. Dropping it ends it, and may
/// wait for the cluster.
pub(crate) struct Watch {
    api: &'static Api,
    image: Handle,
    /// By this the library knows who is told, once it does.
    number: Option<u64>,
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches an image.
    ///
    /// # Safety
    /// The image stays open until the watch is dropped, or for good.
    ///
    /// # Errors
    /// The cluster refused, or there is no thread left.
    pub(crate) unsafe fn start(
        api: &'static Api,
        image: Handle,
        name: &str,
        size: Arc<Size>,
    ) -> Result<Self, RbdError> {
        let bell = Arc::new(Bell::default());
        let (text, rung) = (name.to_owned(), bell.clone());
        let thread = std::thread::Builder::new()
            .name("rbd-watch".to_owned())
            .spawn(move || {
                while let Some(look) = rung.next() {
                    // SAFETY: the image is open until this thread has ended, as the caller of `start` guarantees.
                    let asked = unsafe { ask(api, image) };
                    if let Ok(bytes) = asked {
                        size.set(bytes);
                    }
                    if let (false, Err(code)) = (rung.done(look, asked.err()), asked) {
                        let error = unknown(code);
                        log::warn!("{text}: {error}; the size stays what it was");
                    }
                }
            })
            .map_err(|source| RbdError::Call {
                what: format!("watch {name}"),
                source,
                hint: String::new(),
            })?;
        let mut watch = Self {
            api,
            image,
            number: None,
            bell,
            thread: Some(thread),
        };
        let mut number = 0;
        let address = Arc::as_ptr(&watch.bell).cast_mut().cast::<c_void>();
        // SAFETY: the image is open; `changed` is given the address of the bell, which stays until the library has said
        // that it is done with it.
        let code = unsafe { (api.rbd_update_watch)(image, &raw mut number, changed, address) };
        checked(code, || format!("watch {name}"), String::new)?;
        watch.number = Some(number);
        Ok(watch)
    }

    /// What has the thread look.
    pub(crate) const fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            // SAFETY: the image is open; the number is what the library gave.
            let code = unsafe { (self.api.rbd_update_unwatch)(self.image, number) };
            if code < 0 {
                // The library may still ring, but nobody hears it: the image is about to be closed.
                std::mem::forget(self.bell.clone());
            }
        }
        self.bell.end();
        if let Some(thread) = self.thread.take() {
            // It panicked if this fails, and has said so.
            let _ = thread.join();
        }
    }
}

/// Called by the library when the header of the image has changed.
unsafe extern "C" fn changed(bell: *mut c_void) {
    // SAFETY: the address that `Watch::start` gave; the bell is there until no more calls come.
    let bell = unsafe { &*bell.cast_const().cast::<Bell>() };
    bell.lock().wanted += 1;
    bell.moved.notify_all();
}

/// What has a watch's thread look at the size.
#[derive(Default)]
pub(crate) struct Bell {
    looks: Mutex<Looks>,
    moved: Condvar,
}

#[derive(Default)]
struct Looks {
    /// How often somebody wanted the thread to look. One look stands for all that wanted it before it began.
    wanted: u64,
    /// What of that is done.
    done: u64,
    /// The code of the last look, if it failed.
    failed: Option<i32>,
    /// Who waits for the thread, and is told of an error.
    waiting: usize,
    /// Somebody has waited long enough for the look that is still going on.
    stalled: bool,
    /// The thread must not use the image any more.
    over: bool,
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, Looks> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the thread look, and waits until it has: so long at most, and not at all while an earlier look is known not to
    /// end. Listeners were told of a new size when this returns.
    ///
    /// # Errors
    /// The cluster's, or it did not respond in time. The size is taken over when it does.
    pub(crate) fn look(&self, patience: Duration) -> Result<(), RbdError> {
        let mut looks = self.lock();
        looks.wanted += 1;
        let look = looks.wanted;
        self.moved.notify_all();
        looks.waiting += 1;
        let due = |looks: &mut Looks| looks.done < look && !looks.over && !looks.stalled;
        let waited = self.moved.wait_timeout_while(looks, patience, due);
        (looks, _) = waited.unwrap_or_else(PoisonError::into_inner);
        looks.waiting -= 1;
        if looks.done < look {
            looks.stalled = true;
            return Err(unknown(-libc::ETIMEDOUT));
        }
        looks.failed.map_or(Ok(()), |code| Err(unknown(code)))
    }

    /// Waits until somebody wants a look. Returns what is done by it; `None` at the end.
    fn next(&self) -> Option<u64> {
        let idle = |looks: &mut Looks| looks.wanted == looks.done && !looks.over;
        let looks = self.moved.wait_while(self.lock(), idle);
        let looks = looks.unwrap_or_else(PoisonError::into_inner);
        (!looks.over).then_some(looks.wanted)
    }

    /// A look has ended. Returns whether anybody has waited for it.
    fn done(&self, look: u64, failed: Option<i32>) -> bool {
        let mut looks = self.lock();
        looks.done = look;
        looks.failed = failed;
        looks.stalled = false;
        self.moved.notify_all();
        looks.waiting != 0
    }

    /// Nothing is looked at any more.
    fn end(&self) {
        self.lock().over = true;
        self.moved.notify_all();
    }
}

/// The size of an image in bytes. May wait for the cluster.
///
/// # Safety
/// The image is open until this has returned.
///
/// # Errors
/// The library's code.
pub(crate) unsafe fn ask(api: &Api, image: Handle) -> Result<u64, i32> {
    let mut bytes = 0;
    // SAFETY: the image is open, as the caller guarantees; the number is there to be written.
    let code = unsafe { (api.rbd_get_size)(image, &raw mut bytes) };
    if code < 0 { Err(code) } else { Ok(bytes) }
}

/// The error of [`ask`] by its code.
pub(crate) fn unknown(code: i32) -> RbdError {
    let hint = match errno(code.into()) {
        libc::ENOENT => "was the image removed?",
        libc::ETIMEDOUT => "`ceph status` shows what is wrong with the cluster",
        _ => "",
    };
    RbdError::call("ask for the image's size", code.into(), hint)
}
