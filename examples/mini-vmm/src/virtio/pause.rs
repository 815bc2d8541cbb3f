// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device that stands still, and continues.

use super::{Block, Interrupt, on_broken};
use crate::error::{Error, Result};

impl Block {
    /// Whether the device may touch guest memory (PCI's Bus Master Enable). While it may not its queues stand
    /// still, and kicks wait in their eventfds.
    pub fn set_dma(&mut self, on: bool) {
        if std::mem::replace(&mut self.dma, on) == on || self.paused {
            return;
        }
        if on {
            return self.restart();
        }
        let why = match self.stand_still() {
            Ok(()) => return,
            Err(error) => error.to_string(),
        };
        if std::mem::take(&mut self.offloaded)
            && let Err(error) = self.disk.device().reset()
        {
            log::error!("a device that does not stand still can't be reset: {error}");
        }
        on_broken(0, self.broken.clone(), self.interrupt.clone())(&why);
    }

    /// Stops all queues and leaves everything else as it is. Kicks wait in their eventfds.
    ///
    /// # Errors
    /// The disk or the device does not come to an end. [`Block::resume`] then continues with what can.
    pub fn pause(&mut self) -> Result<()> {
        if self.dma {
            self.stand_still()?;
        }
        self.paused = true;
        Ok(())
    }

    fn stand_still(&mut self) -> Result<()> {
        let paused = self.disk.device().pause();
        paused.map_err(|error| Error::Control(error.to_string()))?;
        self.halt()
    }

    /// Continues after [`Block::pause`] or [`Block::restore`].
    pub fn resume(&mut self) {
        self.paused = false;
        if self.dma {
            self.restart();
        }
    }

    fn restart(&mut self) {
        if self.offloaded {
            if let Err(error) = self.disk.device().resume() {
                log::error!("a device does not continue as it was: {error}");
            }
            // It was reset, and tells nobody of what changed meanwhile.
            self.interrupt.config();
        }
        self.start_all();
    }
}
