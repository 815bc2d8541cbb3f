// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a queue or the configuration interrupts the guest: MSI-X, and the ISR register.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use super::super::Interrupt;
use crate::bus::lock;
use crate::interrupt::Source;
use crate::pci::msix::Msix;

/// No vector is chosen.
pub(super) const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Which vector each event has, as the driver chose.
pub(super) struct Vectors {
    pub msix: Msix,
    pub config: u16,
    pub queues: Vec<u16>,
    /// What a device elsewhere writes, by queue. Our own has none. Changes of the configuration come to us in any
    /// case: a register has to be set.
    pub sources: Vec<Source>,
}

/// Raised from queue threads, programmed from vCPUs.
pub(super) struct PciInterrupt {
    pub vectors: Mutex<Vectors>,
    pub isr: AtomicU8,
}

impl PciInterrupt {
    fn raise(&self, isr: u8, choose: impl Fn(&Vectors) -> u16) {
        let mut vectors = lock(&self.vectors);
        let messages = vectors.msix.enabled;
        // That of the configuration is set in any case, that of queues only where there are no messages (4.1.4.5.1).
        if isr == ISR_CONFIG || !messages {
            self.isr.fetch_or(isr, Ordering::AcqRel);
        }
        if messages {
            let vector = choose(&vectors);
            vectors.msix.trigger(vector);
        }
    }
}

impl Interrupt for PciInterrupt {
    fn queue(&self, index: u16) {
        self.raise(ISR_QUEUE, |vectors| {
            let vector = vectors.queues.get(usize::from(index));
            vector.copied().unwrap_or(NO_VECTOR)
        });
    }

    fn config(&self) {
        self.raise(ISR_CONFIG, |vectors| vectors.config);
    }
}

impl Vectors {
    /// A vector the driver chose, or none if there is no such vector (4.1.5.1.2.2).
    pub fn known(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.len() {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// Has KVM take what a device elsewhere writes, where that is all there is to an interrupt. What meets a mask comes
    /// to us.
    pub fn bind_sources(&mut self) {
        for (source, vector) in self.sources.iter_mut().zip(&self.queues) {
            source.bind(self.msix.open_line(*vector));
        }
    }
}
