// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A kernel that is a model in memory (feature `test-util`): devices, messages with their time-out,
//! address spaces, kicks and interrupts, as `drivers/vdpa/vdpa_user` behaves. Tests are the driver, and
//! may be as hostile as they like. Not for use.

mod driver;
mod file;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::thread::CpuSet;
use virtio_blk_core::memory::Permissions;
use virtio_blk_core::spec::status::DRIVER_OK;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use driver::{FakeDriver, Pending};
use file::FakeFile;

use crate::kernel::{Attribute, Control, DeviceFile, Kernel, NewDevice, VqInfo};
use crate::message::{Answer, Message, Request};

/// A mapped range, in a file.
#[derive(Clone, Debug)]
pub struct FakeRegion {
    /// The file with the memory.
    pub file: Arc<OwnedFd>,
    /// Where `first` lies in it.
    pub offset: u64,
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
    /// What the device may do there.
    pub permissions: Permissions,
    /// See [`Region::domain`](crate::kernel::Region::domain).
    pub domain: bool,
}

#[derive(Debug, Default)]
struct Vq {
    max_size: u16,
    info: VqInfo,
    kick: Option<EventFd>,
    /// A kick came while there was no eventfd.
    kicked: bool,
    irqs: u64,
    /// Where the driver takes interrupts; `None`: the kernel does not tell.
    cpus: Option<CpuSet>,
}

#[derive(Debug)]
struct FakeDevice {
    new: NewDevice,
    attached: bool,
    open: bool,
    broken: bool,
    timeout: u64,
    bounce: u64,
    /// Readable while there is something to look at.
    notifier: Arc<EventFd>,
    next_id: u32,
    sent: VecDeque<Message>,
    unanswered: BTreeMap<u32, Message>,
    answers: BTreeMap<u32, Answer>,
    regions: Vec<FakeRegion>,
    vqs: Vec<Vq>,
    driver_features: u64,
    config: Vec<u8>,
    config_irqs: u64,
    /// As the driver reads it: a change counts once the server has answered.
    status: u8,
    /// The server was asked to suspend and did: no kicks, no interrupts until a reset.
    suspended: bool,
    /// The size of the next message read, if it is not to be the right one.
    short: Option<usize>,
    /// `region` returns this first, whatever was asked for.
    wild: Option<FakeRegion>,
}

#[derive(Debug)]
struct World {
    loaded: bool,
    api_version: u64,
    features: u64,
    chosen: u64,
    boot: String,
    devices: BTreeMap<String, FakeDevice>,
    /// Calls of the server's so far, and which of them fails, how.
    calls: u64,
    failing: Option<(u64, i32)>,
}

impl World {
    /// Counts a call of the server's.
    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        match self.failing {
            Some((at, errno)) if at == self.calls => Err(os(errno)),
            _ => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The model. Clones are handles to the same kernel.
#[derive(Clone, Debug)]
pub struct FakeKernel(Arc<Shared>);

fn os(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl FakeKernel {
    /// A kernel that knows the interface up to `api_version`, with these of its features.
    pub fn new(api_version: u64, features: u64) -> Self {
        Self(Arc::new(Shared {
            world: Mutex::new(World {
                loaded: true,
                api_version,
                features,
                chosen: 0,
                boot: "boot-1".to_owned(),
                devices: BTreeMap::new(),
                calls: 0,
                failing: None,
            }),
            changed: Condvar::new(),
        }))
    }

    /// How many calls servers made so far.
    pub fn calls(&self) -> u64 {
        self.0.lock().calls
    }

    /// Makes the call that servers make after `count` others, counted from now on, fail once with `errno`.
    pub fn fail_after(&self, count: u64, errno: i32) {
        let mut world = self.0.lock();
        world.failing = Some((world.calls + count + 1, errno));
    }

    /// A kernel without the module.
    pub fn unload(&self) {
        self.0.lock().loaded = false;
    }

    /// Another boot: all devices are gone.
    pub fn reboot(&self, id: &str) {
        let mut world = self.0.lock();
        world.devices.clear();
        id.clone_into(&mut world.boot);
    }

    /// The driver's side of a device.
    pub fn driver(&self, name: &str) -> FakeDriver {
        FakeDriver::new(self.clone(), name)
    }

    /// Whether the device exists.
    pub fn has(&self, name: &str) -> bool {
        self.0.lock().devices.contains_key(name)
    }

    /// The features of the interface that the server chose.
    pub fn chosen_features(&self) -> u64 {
        self.0.lock().chosen
    }
}

struct FakeControl {
    shared: Arc<Shared>,
    api_version: Mutex<u64>,
}

impl Control for FakeControl {
    fn api_version(&self) -> io::Result<u64> {
        let mut world = self.shared.lock();
        world.call()?;
        Ok(world.api_version)
    }

    fn set_api_version(&self, version: u64) -> io::Result<()> {
        self.shared.lock().call()?;
        if version > self.shared.lock().api_version {
            return Err(os(libc::EINVAL));
        }
        *self
            .api_version
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = version;
        Ok(())
    }

    fn features(&self) -> io::Result<u64> {
        self.shared.lock().call()?;
        match self.shared.lock().features {
            0 => Err(os(libc::EINVAL)),
            features => Ok(features),
        }
    }

    fn set_features(&self, features: u64) -> io::Result<()> {
        let mut world = self.shared.lock();
        world.call()?;
        if features & !world.features != 0 {
            return Err(os(libc::EINVAL));
        }
        world.chosen = features;
        Ok(())
    }

    fn create(&self, device: &NewDevice) -> io::Result<()> {
        let version = *self
            .api_version
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut world = self.shared.lock();
        world.call()?;
        if world.devices.contains_key(&device.name) {
            return Err(os(libc::EEXIST));
        }
        // ACCESS_PLATFORM must be offered, CONFIG_WCE must not.
        let bad = device.features & 1 << 33 == 0 || device.features & 1 << 11 != 0;
        if bad || device.api_version != version || device.queues == 0 {
            return Err(os(libc::EINVAL));
        }
        let notifier = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        let fake = FakeDevice {
            attached: false,
            open: false,
            broken: false,
            timeout: 30,
            bounce: 64 << 20,
            notifier,
            next_id: 1,
            sent: VecDeque::new(),
            unanswered: BTreeMap::new(),
            answers: BTreeMap::new(),
            regions: Vec::new(),
            vqs: (0..device.queues).map(|_| Vq::default()).collect(),
            driver_features: 0,
            config: device.config.clone(),
            config_irqs: 0,
            status: 0,
            suspended: false,
            short: None,
            wild: None,
            new: device.clone(),
        };
        world.devices.insert(device.name.clone(), fake);
        Ok(())
    }

    fn destroy(&self, name: &str) -> io::Result<()> {
        let mut world = self.shared.lock();
        world.call()?;
        let device = world.devices.get(name).ok_or_else(|| os(libc::EINVAL))?;
        if device.attached || device.open {
            return Err(os(libc::EBUSY));
        }
        world.devices.remove(name);
        Ok(())
    }
}

impl Kernel for FakeKernel {
    fn control(&self) -> io::Result<Box<dyn Control>> {
        self.0.lock().call()?;
        if !self.0.lock().loaded {
            return Err(os(libc::ENOENT));
        }
        Ok(Box::new(FakeControl {
            shared: self.0.clone(),
            api_version: Mutex::new(0),
        }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DeviceFile>> {
        let mut world = self.0.lock();
        world.call()?;
        let device = world
            .devices
            .get_mut(name)
            .ok_or_else(|| os(libc::ENOENT))?;
        if device.open {
            return Err(os(libc::EBUSY));
        }
        device.open = true;
        Ok(Arc::new(FakeFile::new(
            self.clone(),
            name,
            device.notifier.clone(),
        )))
    }

    fn attribute(&self, name: &str, attribute: Attribute) -> io::Result<u64> {
        let mut world = self.0.lock();
        world.call()?;
        let device = world.devices.get(name).ok_or_else(|| os(libc::ENOENT))?;
        Ok(match attribute {
            Attribute::BounceSize => device.bounce,
            Attribute::MsgTimeout => device.timeout,
        })
    }

    fn set_attribute(&self, name: &str, attribute: Attribute, value: u64) -> io::Result<()> {
        let mut world = self.0.lock();
        world.call()?;
        let device = world
            .devices
            .get_mut(name)
            .ok_or_else(|| os(libc::ENOENT))?;
        match attribute {
            Attribute::BounceSize if !(1 << 20..=1 << 30).contains(&value) => {
                return Err(os(libc::EINVAL));
            }
            Attribute::BounceSize if device.attached => return Err(os(libc::EPERM)),
            Attribute::BounceSize => device.bounce = value,
            Attribute::MsgTimeout => device.timeout = value,
        }
        Ok(())
    }

    fn vq_cpus(&self, name: &str, index: u16) -> io::Result<CpuSet> {
        let mut world = self.0.lock();
        world.call()?;
        let device = world.devices.get(name).ok_or_else(|| os(libc::ENOENT))?;
        let vq = device.vqs.get(usize::from(index));
        vq.and_then(|vq| vq.cpus).ok_or_else(|| os(libc::ENOENT))
    }

    fn boot_id(&self) -> io::Result<String> {
        let mut world = self.0.lock();
        world.call()?;
        Ok(world.boot.clone())
    }
}

impl FakeDevice {
    fn signal(&self) {
        // The counter can't overflow in a test.
        let _ = self.notifier.write(1);
    }

    /// What a look-up in the address space finds.
    fn region_from(&self, first: u64) -> Option<FakeRegion> {
        self.wild.clone().or_else(|| {
            let above = self.regions.iter().filter(|region| region.last >= first);
            above.min_by_key(|region| region.first).cloned()
        })
    }

    /// What the kernel does to a device at a reset, once the server has answered.
    fn reset(&mut self) {
        for vq in &mut self.vqs {
            *vq = Vq {
                max_size: vq.max_size,
                irqs: vq.irqs,
                cpus: vq.cpus.take(),
                ..Vq::default()
            };
        }
        self.driver_features = 0;
        self.status = 0;
        self.suspended = false;
    }

    /// What the kernel does once a message is answered.
    fn answered(&mut self, request: Request, answer: Answer) {
        let done = answer != Answer::Failed;
        match request {
            // The kernel forgets everything whatever the server says.
            Request::SetStatus(0) => self.reset(),
            Request::SetStatus(status) if done => self.status = status,
            Request::Suspend if done => self.suspended = true,
            Request::SetVqReady { index, ready } if done => {
                let vq = usize::try_from(index)
                    .ok()
                    .and_then(|at| self.vqs.get_mut(at));
                if let Some(vq) = vq {
                    vq.info.ready = ready;
                }
            }
            Request::SetVqReady { .. } => {
                self.broken = true;
                self.signal();
            }
            _ => {}
        }
    }

    /// Whether interrupts reach the driver.
    fn takes_irqs(&self) -> bool {
        self.status & DRIVER_OK != 0 && !self.suspended
    }

    /// How long a sender waits.
    fn patience(&self) -> Option<Duration> {
        (self.timeout != 0).then(|| Duration::from_secs(self.timeout))
    }
}
