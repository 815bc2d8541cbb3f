// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What may change a writable image: the one way to its file, which the first failure closes.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::frozen::Frozen;
use super::header::{AUTOCLEAR, Header};
use super::host::Host;
use super::order::Order;

/// Why a change did not come about.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing refers to what was to be written, and the library forgets it: nothing else has changed.
    Undone(io::Error),
    /// The file differs from what the library has in memory, or may do so.
    Broken(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// The changes of a writable image.
#[derive(Debug)]
pub(super) struct Changes {
    host: Arc<dyn Host>,
    order: Mutex<Order>,
    frozen: Arc<Frozen>,
    /// The file has autoclear bits set: they must go before the first change.
    untouched: AtomicBool,
    /// Bitmaps that the file promises to be up to date, which nobody keeps so from the first change on.
    bitmaps: u32,
}

impl Changes {
    /// Of an image whose header is `header`.
    pub fn new(host: Arc<dyn Host>, order: Order, frozen: Arc<Frozen>, header: &Header) -> Self {
        Self {
            host,
            order: Mutex::new(order),
            frozen,
            untouched: AtomicBool::new(header.autoclear != 0),
            bitmaps: header.bitmaps,
        }
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the first change has something to do before it.
    pub fn is_untouched(&self) -> bool {
        self.untouched.load(Ordering::Acquire)
    }

    /// Bitmaps that the first change makes inconsistent.
    pub fn bitmaps(&self) -> u32 {
        if self.is_untouched() { self.bitmaps } else { 0 }
    }

    /// To be called before each change, also of data: clears the file's autoclear bits, stable, before the first one.
    ///
    /// # Errors
    /// The host's, and the image is frozen; or it was.
    pub fn begin(&self) -> io::Result<()> {
        if self.is_untouched() {
            self.make(&"clearing its autoclear bits", |_, _| Ok(()))?;
        }
        Ok(())
    }

    fn clear(&self, order: &mut Order) -> io::Result<()> {
        self.host.write(&[0; 8], AUTOCLEAR)?;
        order.sync(&*self.host)?;
        self.untouched.store(false, Ordering::Release);
        if self.bitmaps > 0 {
            log::warn!(
                "the persistent dirty bitmaps in {path} ({}) are inconsistent from its first write on, which has come: \
                 nobody keeps them up to date here. The next backup has to be a full one; \
                 `qemu-img check -r leaks {path}` frees what they take, once the image is closed",
                self.bitmaps,
                path = self.frozen.path().display()
            );
        }
        Ok(())
    }

    /// Fills `into` with what the library wrote at `offset`, if the file does not have it yet.
    pub fn view(&self, offset: u64, into: &mut [u8]) -> bool {
        match self.order().view(offset) {
            Some(view) if view.len() == into.len() => {
                into.copy_from_slice(view);
                true
            }
            _ => false,
        }
    }

    /// Makes a change by the rules of the order. `what` names it in the words of an error: a gerund.
    ///
    /// # Errors
    /// The host's, or the image contradicts itself. If the library is left ahead of the file by it, the image is
    /// frozen; if it was frozen before, nothing is tried.
    pub fn make<T>(
        &self,
        what: &dyn fmt::Display,
        change: impl FnOnce(&mut Order, &dyn Host) -> Result<T, Failure>,
    ) -> io::Result<T> {
        let mut order = self.order();
        if self.frozen.is_set() {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let begun = if self.is_untouched() {
            self.clear(&mut order).map_err(Failure::Broken)
        } else {
            Ok(())
        };
        match begun.and_then(|()| change(&mut order, &*self.host)) {
            Ok(done) => Ok(done),
            Err(Failure::Undone(error)) if self.host.lost().is_none() => Err(error),
            Err(Failure::Undone(error) | Failure::Broken(error)) => {
                self.freeze(what, &error);
                Err(error)
            }
        }
    }

    /// Freezes the image, since `what` failed.
    pub fn freeze(&self, what: &dyn fmt::Display, error: &io::Error) {
        match self.host.lost() {
            Some(errno) => self.frozen.lose(errno),
            None => self.frozen.freeze(what.to_string(), error),
        }
    }

    /// Makes everything stable that was written. Others may change the image meanwhile.
    ///
    /// # Errors
    /// The host's, and the image is frozen.
    pub fn sync(&self) -> io::Result<()> {
        self.host.sync().inspect_err(|error| {
            self.freeze(&"making it stable", error);
        })
    }
}
