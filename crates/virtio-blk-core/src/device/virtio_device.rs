// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a transport drives, independent of what executes the requests.

use std::fmt;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{ConfigError, Device, NegotiationError, StartError};
use crate::memory::DeviceMemory;
use crate::ring::QueueState;
use crate::runner::{QueueRunner, QueueSetup};

/// A virtio device as a transport (PCI, MMIO) drives it: our own [`Device`], or one elsewhere whose rings are set up in
/// it.
///
/// The transport keeps the registers, in particular the status byte ([`StatusRegister`](super::StatusRegister)), and
/// calls
/// 1. [`accept`](Self::accept) at FEATURES_OK;
/// 2. at DRIVER_OK [`start_queue`](Self::start_queue) for each enabled queue, then [`driver_ok`](Self::driver_ok);
/// 3. [`pause`](Self::pause) and [`resume`](Self::resume) around a time in which the device must not touch memory, having
///    stopped the queues that it serves itself;
/// 4. [`reset`](Self::reset) at a reset, when those queues have stopped.
///
/// Methods may be called from any thread. Those that read registers do not wait for the others.
pub trait VirtioDevice<M: DeviceMemory>: Send + Sync {
    /// Returns the feature bits to offer to the driver.
    fn offered(&self) -> u64;

    /// Takes the feature bits that the driver acknowledged.
    ///
    /// # Errors
    /// FEATURES_OK must not be set (virtio 1.4, 3.1.1).
    fn accept(&self, features: u64) -> Result<(), DriveError>;

    /// Returns the number of queues.
    fn queues(&self) -> u16;

    /// Returns the largest size of a queue in descriptors: a power of two.
    fn queue_size(&self) -> u16;

    /// Returns a number that changes when the configuration space does.
    fn config_generation(&self) -> u32;

    /// Reads the configuration space from byte `offset` on. Bytes beyond its end read as 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space from byte `offset` on.
    ///
    /// # Errors
    /// Nothing was changed. A transport that has no way to tell the driver drops the error.
    fn write_config(&self, offset: u64, data: &[u8]) -> Result<(), DriveError>;

    /// Sets what interrupts the driver when the configuration space changes, or when the device needs a reset. Call it
    /// once, before the driver starts.
    fn set_config_interrupt(&self, interrupt: DriverInterrupt);

    /// Returns whether the device can't continue, so that DEVICE_NEEDS_RESET is to be shown (virtio 1.4, 2.1.2). Queues
    /// that the transport serves report that by themselves.
    fn needs_reset(&self) -> bool {
        false
    }

    /// Returns whether the device executes requests by itself. It takes [`DriverInterrupt::EventFd`] only, and keeps its queues
    /// from DRIVER_OK to a reset.
    fn offloads(&self) -> bool {
        false
    }

    /// Sets up queue `index` at the position in its state.
    ///
    /// # Errors
    /// The ring is not usable, or the device does not take it.
    fn start_queue(
        &self,
        index: u16,
        queue: QueueResources<M>,
    ) -> Result<StartedQueue<M>, DriveError>;

    /// The driver is ready, and all its queues were set up: a device that offloads starts them.
    ///
    /// # Errors
    /// The device could not be started.
    fn driver_ok(&self) -> Result<(), DriveError> {
        Ok(())
    }

    /// Stops what the device executes by itself, with nothing in flight.
    ///
    /// # Errors
    /// Requests did not complete in time, and the device continues.
    fn pause(&self) -> Result<(), DriveError> {
        Ok(())
    }

    /// Continues after [`pause`](Self::pause).
    ///
    /// # Errors
    /// The device is not as it was.
    fn resume(&self) -> Result<(), DriveError> {
        Ok(())
    }

    /// Forgets what was negotiated. When it returns, the device does not touch the driver's memory.
    ///
    /// # Errors
    /// The device could not be reset.
    fn reset(&self) -> Result<(), DriveError>;
}

/// What a queue is started with.
pub struct QueueResources<M: DeviceMemory> {
    /// The driver's memory.
    pub memory: M,
    /// Size, addresses and position.
    pub state: QueueState,
    /// Heads that were taken and not returned before, to be executed first.
    pub replay: Vec<u16>,
    /// Written when the driver kicks.
    pub kick: Arc<EventFd>,
    /// Interrupts the driver.
    pub interrupt: DriverInterrupt,
}

/// A queue that was set up.
pub enum StartedQueue<M: DeviceMemory> {
    /// The transport serves it from now on, for instance with a [`QueueThread`](crate::runner::QueueThread).
    Runner(Box<QueueRunner<M>>),
    /// The device serves it from [`VirtioDevice::driver_ok`] on.
    Offloaded,
}

/// How a device interrupts its driver. Cheap to clone.
#[derive(Clone)]
pub enum DriverInterrupt {
    /// Writes 1 to an eventfd, for instance KVM's irqfd.
    EventFd(Arc<EventFd>),
    /// Calls a function, which must not block.
    Call(Arc<dyn Fn() + Send + Sync>),
}

impl DriverInterrupt {
    /// Interrupts the driver.
    pub fn notify(&self) {
        match self {
            // It only fails where the counter is about to overflow: the driver is interrupted then anyway.
            Self::EventFd(event) => drop(event.write(1)),
            Self::Call(call) => call(),
        }
    }
}

impl fmt::Debug for DriverInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EventFd(event) => f.debug_tuple("EventFd").field(event).finish(),
            Self::Call(_) => f.write_str("Call"),
        }
    }
}

/// Why a [`VirtioDevice`] refused a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// The features can't be accepted.
    #[error(transparent)]
    Negotiation(#[from] NegotiationError),
    /// The configuration space can't be written so.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A queue can't be started.
    #[error(transparent)]
    Queue(#[from] StartError),
    /// A device elsewhere refused, or failed.
    #[error(transparent)]
    Device(Box<dyn std::error::Error + Send + Sync>),
}

/// The device model of this crate: the transport serves its queues.
impl<M: DeviceMemory> VirtioDevice<M> for Device {
    fn offered(&self) -> u64 {
        self.offered()
    }

    fn accept(&self, features: u64) -> Result<(), DriveError> {
        Ok(self.accept(features)?)
    }

    fn queues(&self) -> u16 {
        self.options().queues
    }

    fn queue_size(&self) -> u16 {
        self.options().queue_size
    }

    fn config_generation(&self) -> u32 {
        self.config_generation()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.read_config(offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) -> Result<(), DriveError> {
        Ok(self.write_config(offset, data)?)
    }

    fn set_config_interrupt(&self, interrupt: DriverInterrupt) {
        self.listen(Box::new(move || interrupt.notify()));
    }

    fn start_queue(
        &self,
        index: u16,
        queue: QueueResources<M>,
    ) -> Result<StartedQueue<M>, DriveError> {
        let interrupt = queue.interrupt;
        let mut setup = QueueSetup::new(queue.memory, move || interrupt.notify());
        setup.replay = queue.replay;
        let runner = self.start_queue(index, setup, queue.state)?;
        Ok(StartedQueue::Runner(Box::new(runner)))
    }

    fn reset(&self) -> Result<(), DriveError> {
        self.reset();
        Ok(())
    }
}
