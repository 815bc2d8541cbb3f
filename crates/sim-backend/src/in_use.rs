// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The disk of a device: in use while a queue runs.

use std::ptr;
use std::sync::{Arc, Mutex, Weak};

use vdpa_bus::VdpaError;
use virtio_blk_core::disk::{Disk, DiskError};

use crate::lock;

/// How many devices of this process use a disk.
type Users = Mutex<usize>;

type Known = (Weak<dyn Disk>, Arc<Users>);

/// The disks that devices of this process have.
static DISKS: Mutex<Vec<Known>> = Mutex::new(Vec::new());

/// The users of a disk, whichever device asks.
fn users_of(disk: &Arc<dyn Disk>) -> Arc<Users> {
    let mut disks = lock(&DISKS);
    disks.retain(|(disk, _)| disk.strong_count() != 0);
    let found = disks
        .iter()
        .find(|(known, _)| ptr::addr_eq(known.as_ptr(), Arc::as_ptr(disk)));
    if let Some((_, users)) = found {
        return users.clone();
    }
    let users = Arc::new(Mutex::new(0));
    disks.push((Arc::downgrade(disk), users.clone()));
    users
}

/// A disk that is activated before the first queue of a device starts, and deactivated after the last has stopped. One
/// that several devices share is in use while any of them uses it. Dropped after the device's queues.
pub(crate) struct InUse {
    disk: Arc<dyn Disk>,
    users: Arc<Users>,
    active: bool,
    /// Why what it kept when it was last in use may be lost: returned to each caller until it is in use again.
    lost: Option<String>,
}

impl InUse {
    /// A disk that is not in use. `shared`: what other devices may have, too, below it.
    pub(crate) fn new(disk: Arc<dyn Disk>, shared: &Arc<dyn Disk>) -> Self {
        Self {
            users: users_of(shared),
            disk,
            active: false,
            lost: None,
        }
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Takes the disk into use, if it is not.
    ///
    /// # Errors
    /// As for [`Disk::activate`].
    pub(crate) fn take(&mut self) -> Result<(), DiskError> {
        if self.active {
            return Ok(());
        }
        let mut users = lock(&self.users);
        if *users == 0 {
            self.disk.activate()?;
        }
        *users += 1;
        self.active = true;
        self.lost = None;
        Ok(())
    }

    /// Releases the disk, if it is in use. If it is not, returns what came of that the last time.
    ///
    /// # Errors
    /// What the disk kept in memory may be lost.
    pub(crate) fn leave(&mut self) -> Result<(), VdpaError> {
        if std::mem::take(&mut self.active) {
            let mut users = lock(&self.users);
            *users -= 1;
            if *users == 0 {
                self.lost = self.disk.deactivate().err().map(|why| why.to_string());
            }
        }
        match &self.lost {
            None => Ok(()),
            Some(why) => Err(VdpaError::Failed(
                format!(
                    "the disk can't be left in order: {why}; what it kept in memory may be lost"
                )
                .into(),
            )),
        }
    }

    /// Releases the disk as the device is reset: what is lost is what a power cut would have taken.
    pub(crate) fn reset(&mut self) {
        let _ = self.leave();
        self.lost = None;
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.reset();
    }
}
