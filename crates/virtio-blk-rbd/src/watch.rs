// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Learning that somebody has changed an image's size.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use crate::RbdError;
use crate::api::{Api, Handle};
use crate::cluster::checked;
use crate::error::errno;
use crate::size::Size;

/// A thread that asks for the size whenever librbd says that the image has changed: its own thread must not ask.
pub(crate) struct Watch {
    api: &'static Api,
    image: Handle,
    /// By this the library knows who is told.
    number: u64,
    /// What the library has the address of.
    ring: Box<SyncSender<()>>,
    /// The thread must not use the image any more.
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Watches an image.
    ///
    /// # Safety
    /// The image stays open until [`Watch::end`] has returned, or for good.
    ///
    /// # Errors
    /// The cluster refused, or there is no thread left.
    pub(crate) unsafe fn start(
        api: &'static Api,
        image: Handle,
        name: &str,
        size: Arc<Size>,
    ) -> Result<Self, RbdError> {
        // One ring that was not heard yet stands for all that come meanwhile.
        let (ring, rings) = sync_channel(1);
        let mut ring = Box::new(ring);
        let over = Arc::new(AtomicBool::new(false));
        let (text, ends) = (name.to_owned(), over.clone());
        let thread = std::thread::Builder::new()
            .name("rbd-watch".to_owned())
            .spawn(move || {
                for () in rings {
                    if ends.load(Ordering::Acquire) {
                        return;
                    }
                    // SAFETY: the image is open until this thread has ended, as the caller of `start` guarantees.
                    match unsafe { ask(api, image) } {
                        Ok(bytes) => size.set(bytes),
                        Err(error) => log::warn!("{text}: {error}; the size stays what it was"),
                    }
                }
            })
            .map_err(|source| RbdError::Call {
                what: format!("watch {name}"),
                source,
                hint: String::new(),
            })?;
        let mut number = 0;
        let address = (&raw mut *ring).cast::<c_void>();
        // SAFETY: the image is open; `changed` is given the address of the sender, which stays until the library
        // has said that it is done with it.
        let code = unsafe { (api.rbd_update_watch)(image, &raw mut number, changed, address) };
        checked(code, || format!("watch {name}"), String::new)?;
        Ok(Self {
            api,
            image,
            number,
            ring,
            over,
            thread,
        })
    }

    /// Watches no more. May wait for the cluster.
    pub(crate) fn end(self) {
        // SAFETY: the image is open; the number is what the library gave.
        let code = unsafe { (self.api.rbd_update_unwatch)(self.image, self.number) };
        if code < 0 {
            // The library may still ring, but nobody hears it: the image is about to be closed.
            self.over.store(true, Ordering::Release);
            wake(&self.ring);
            Box::leak(self.ring);
        } else {
            drop(self.ring);
        }
        // It panicked if this fails, and has said so.
        let _ = self.thread.join();
    }
}

/// Called by the library when the header of the image has changed.
unsafe extern "C" fn changed(ring: *mut c_void) {
    // SAFETY: the address that `Watch::start` gave; the sender is there until no more calls come.
    let ring = unsafe { &*ring.cast_const().cast::<SyncSender<()>>() };
    wake(ring);
}

/// Has the thread look.
fn wake(ring: &SyncSender<()>) {
    match ring.try_send(()) {
        // It is about to look in any case, or has ended.
        Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
    }
}

/// The size of an image in bytes. May wait for the cluster.
///
/// # Safety
/// The image is open until this has returned.
///
/// # Errors
/// The cluster's.
pub(crate) unsafe fn ask(api: &Api, image: Handle) -> Result<u64, RbdError> {
    let mut bytes = 0;
    // SAFETY: the image is open, as the caller guarantees; the number is there to be written.
    let code = unsafe { (api.rbd_get_size)(image, &raw mut bytes) };
    if code < 0 {
        let hint = if errno(code.into()) == libc::ENOENT {
            "was the image removed?"
        } else {
            ""
        };
        return Err(RbdError::call(
            "ask for the image's size",
            code.into(),
            hint,
        ));
    }
    Ok(bytes)
}
