// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's file, as the server has it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::{FakeDevice, FakeKernel, os};
use crate::kernel::{DeviceFile, Events, Region, RegionInfo, VqInfo};
use crate::linux::wait_on;
use crate::message::{Answer, RawMessage, RawResponse};

pub(super) struct FakeFile {
    kernel: FakeKernel,
    name: String,
    notifier: Arc<EventFd>,
}

impl FakeFile {
    pub(super) fn new(kernel: FakeKernel, name: &str, notifier: Arc<EventFd>) -> Self {
        let name = name.to_owned();
        Self {
            kernel,
            name,
            notifier,
        }
    }

    /// Does something with the device, as an ioctl does: not once it is broken.
    fn ioctl<T>(&self, act: impl FnOnce(&mut FakeDevice) -> io::Result<T>) -> io::Result<T> {
        let mut world = self.kernel.0.lock();
        world.call()?;
        let device = world.devices.get_mut(&self.name);
        let device = device.ok_or_else(|| os(libc::ENODEV))?;
        if device.broken {
            return Err(os(libc::EPERM));
        }
        act(device)
    }
}

impl Drop for FakeFile {
    fn drop(&mut self) {
        let mut world = self.kernel.0.lock();
        if let Some(device) = world.devices.get_mut(&self.name) {
            device.open = false;
            // The next server gets what this one did not answer.
            let again = std::mem::take(&mut device.unanswered);
            for (_, message) in again.into_iter().rev() {
                device.sent.push_front(message);
            }
            // Kicks go to the dead server's eventfds until there are others.
            if !device.sent.is_empty() {
                device.signal();
            }
        }
    }
}

fn word(raw: &RawResponse, at: usize) -> u32 {
    let bytes = raw.iter().skip(at).take(4).rev();
    bytes.fold(0, |value, byte| value << 8 | u32::from(*byte))
}

impl DeviceFile for FakeFile {
    fn wait(&self, also: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Events> {
        // SAFETY: the eventfd is open as long as `self` is borrowed.
        let notifier = unsafe { BorrowedFd::borrow_raw(self.notifier.as_raw_fd()) };
        wait_on(notifier, also, timeout)?;
        let _ = self.notifier.read();
        let world = self.kernel.0.lock();
        let device = world.devices.get(&self.name);
        let device = device.ok_or_else(|| os(libc::ENODEV))?;
        Ok(Events {
            message: !device.sent.is_empty(),
            broken: device.broken,
        })
    }

    fn read(&self) -> io::Result<Option<RawMessage>> {
        let mut world = self.kernel.0.lock();
        world.call()?;
        let device = world.devices.get_mut(&self.name);
        let device = device.ok_or_else(|| os(libc::ENODEV))?;
        if let Some(size) = device.short.take() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a message of {size} bytes"),
            ));
        }
        let Some(message) = device.sent.pop_front() else {
            return Ok(None);
        };
        device.unanswered.insert(message.id, message);
        if !device.sent.is_empty() {
            device.signal();
        }
        Ok(Some(message.to_bytes()))
    }

    fn respond(&self, response: &RawResponse) -> io::Result<()> {
        let id = word(response, 0);
        let answer = match word(response, 4) {
            0 => Answer::VqState {
                index: word(response, 24),
                next_avail: word(response, 28) as u16,
            },
            _ => Answer::Failed,
        };
        {
            let mut world = self.kernel.0.lock();
            world.call()?;
            let device = world.devices.get_mut(&self.name);
            let device = device.ok_or_else(|| os(libc::ENODEV))?;
            let known = device.unanswered.remove(&id);
            known.ok_or_else(|| os(libc::ENOENT))?;
            device.answers.insert(id, answer);
        }
        self.kernel.0.changed.notify_all();
        Ok(())
    }

    fn region(&self, first: u64) -> io::Result<Option<Region>> {
        self.ioctl(|device| {
            let region = device.region_from(first).map(|region| {
                Ok(Region {
                    file: region.file.try_clone()?,
                    offset: region.offset,
                    first: region.first,
                    last: region.last,
                    permissions: region.permissions,
                    domain: region.domain,
                })
            });
            region.transpose()
        })
    }

    fn region_info(&self, first: u64) -> io::Result<Option<RegionInfo>> {
        self.ioctl(|device| {
            let bounce = device.bounce;
            Ok(device.region_from(first).map(|region| RegionInfo {
                first: region.first,
                last: region.last,
                bounce: region.domain && region.last < bounce,
            }))
        })
    }

    fn driver_features(&self) -> io::Result<u64> {
        self.ioctl(|device| Ok(device.driver_features))
    }

    fn set_config(&self, config: &[u8]) -> io::Result<()> {
        self.ioctl(|device| {
            if config.is_empty() || config.len() > device.config.len() {
                return Err(os(libc::EINVAL));
            }
            for (to, from) in device.config.iter_mut().zip(config) {
                *to = *from;
            }
            Ok(())
        })
    }

    fn inject_config_irq(&self) -> io::Result<()> {
        let done = self.ioctl(|device| {
            if !device.takes_irqs() {
                return Err(os(libc::EINVAL));
            }
            device.config_irqs += 1;
            Ok(())
        });
        self.kernel.0.changed.notify_all();
        done
    }

    fn set_up_vq(&self, index: u16, max_size: u16) -> io::Result<()> {
        self.ioctl(|device| {
            let vq = device.vqs.get_mut(usize::from(index));
            vq.ok_or_else(|| os(libc::EINVAL))?.max_size = max_size;
            Ok(())
        })
    }

    fn vq_info(&self, index: u16) -> io::Result<VqInfo> {
        self.ioctl(|device| {
            let vq = device.vqs.get(usize::from(index));
            Ok(vq.ok_or_else(|| os(libc::EINVAL))?.info)
        })
    }

    fn set_kick(&self, index: u16, kick: Option<&EventFd>) -> io::Result<()> {
        self.ioctl(|device| {
            let vq = device.vqs.get_mut(usize::from(index));
            let vq = vq.ok_or_else(|| os(libc::EINVAL))?;
            vq.kick = kick.map(EventFd::try_clone).transpose()?;
            if let Some(kick) = vq.kick.as_ref().filter(|_| vq.kicked && vq.info.ready) {
                kick.write(1)?;
                vq.kicked = false;
            }
            Ok(())
        })
    }

    fn inject_irq(&self, index: u16) -> io::Result<()> {
        let done = self.ioctl(|device| {
            if !device.takes_irqs() {
                return Err(os(libc::EINVAL));
            }
            let vq = device.vqs.get_mut(usize::from(index));
            vq.ok_or_else(|| os(libc::EINVAL))?.irqs += 1;
            Ok(())
        });
        self.kernel.0.changed.notify_all();
        done
    }
}
