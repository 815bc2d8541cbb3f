// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vDPA device of the kernel, through `/dev/vhost-vdpa-N`.

mod abi;
mod device;
mod doorbell;
mod fd;
mod maps;

use std::fs::OpenOptions;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use vdpa_bus::{VdpaError, backend_feature};
use vmm_sys_util::eventfd::EventFd;

use crate::lock;
pub use doorbell::Doorbell;
use fd::{KernelFd, VhostFd};
pub(crate) use maps::holds;
use maps::{AddressSpace, Sender};

/// Backend features that this layer uses where the kernel has them.
const KNOWN_BACKEND_FEATURES: u64 = backend_feature::IOTLB_MSG_V2
    | backend_feature::IOTLB_BATCH
    | backend_feature::IOTLB_ASID
    | backend_feature::SUSPEND
    | backend_feature::RESUME
    | backend_feature::ENABLE_AFTER_DRIVER_OK
    | backend_feature::DESC_ASID
    | backend_feature::IOTLB_PERSIST;

/// Virtqueues that a device may have: more is no device but a mistake.
const MAX_VQS: u32 = 4096;
/// Address spaces that a device may have.
const MAX_ADDRESS_SPACES: u32 = 1024;
/// Bytes that a configuration space may have.
const MAX_CONFIG_SIZE: u32 = 4096;

/// A device behind `/dev/vhost-vdpa-N`, as [`vdpa_bus::VdpaDevice`].
///
/// The kernel lets one process at a time open it, and resets the device when it is opened and closed.
/// What the trait promises and the kernel does not is made up for here:
///
/// * **Maps survive a reset.** Where the kernel does not promise that (`IOTLB_PERSIST`), they are sent again, at the
///   latest before DRIVER_OK.
/// * **Only what was mapped is unmapped**, and each change is one batch.
/// * **Configuration reads do not tear.** The kernel has no generation: fields are read until two reads agree.
/// * **A reset clears callbacks** also in vhost, which keeps them otherwise.
///
/// Callbacks are eventfds only ([`vdpa_bus::Callback::Trigger`]). Mapped memory is pinned by most parents: it counts
/// against RLIMIT_MEMLOCK, and must not be given back to the system (balloon, discard) meanwhile.
pub struct VhostVdpa {
    fd: Box<dyn VhostFd>,
    raw: RawFd,
    name: String,
    backend_features: u64,
    device_id: u32,
    config_size: usize,
    num_max: u16,
    groups: u32,
    iova_range: RangeInclusive<u64>,
    vqs: Box<[Vq]>,
    spaces: Mutex<Vec<AddressSpace>>,
    config_call: AtomicBool,
    driver_features: AtomicU64,
    gone: AtomicBool,
}

/// What is known of a queue beyond what the kernel keeps.
#[derive(Default)]
struct Vq {
    kick: Mutex<Option<Arc<EventFd>>>,
    called: AtomicBool,
    ready: AtomicBool,
    doorbell: OnceLock<Arc<Doorbell>>,
}

impl VhostVdpa {
    /// Opens a device node.
    ///
    /// # Errors
    /// There is none, it may not be opened or is in use ([`VdpaError::System`] names it); or the kernel is older
    /// than 5.18.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, VdpaError> {
        let path = path.as_ref();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| VdpaError::System {
                what: match source.raw_os_error() {
                    Some(libc::EBUSY) => {
                        format!("{}: another process has the device open", path.display())
                    }
                    _ => format!("can't open {}", path.display()),
                },
                source,
            })?;
        Self::named(file.into(), path.display().to_string())
    }

    /// Takes a descriptor of a device node, opened for reading and writing by somebody with the right to.
    ///
    /// # Errors
    /// As for [`VhostVdpa::open`]; it is no vhost-vdpa descriptor.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, VdpaError> {
        let name = format!("descriptor {}", fd.as_raw_fd());
        Self::named(fd, name)
    }

    fn named(fd: OwnedFd, name: String) -> Result<Self, VdpaError> {
        let raw = fd.as_raw_fd();
        Self::over(Box::new(KernelFd(fd)), raw, name)
    }

    /// Takes possession of the device, agrees on backend features and asks for what never changes.
    fn over(fd: Box<dyn VhostFd>, raw: RawFd, name: String) -> Result<Self, VdpaError> {
        let ask = Ask { fd: fd.as_ref() };
        ask.ioctl("VHOST_SET_OWNER", abi::SET_OWNER, &mut [])?;
        let offered = ask.u64("VHOST_GET_BACKEND_FEATURES", abi::GET_BACKEND_FEATURES)?;
        let mut backend_features = offered & KNOWN_BACKEND_FEATURES;
        if backend_features & backend_feature::IOTLB_ASID == 0 {
            backend_features &= !backend_feature::DESC_ASID;
        }
        ask.ioctl(
            "VHOST_SET_BACKEND_FEATURES",
            abi::SET_BACKEND_FEATURES,
            &mut backend_features.to_ne_bytes(),
        )?;
        let count = ask.u32("VHOST_VDPA_GET_VQS_COUNT", abi::GET_VQS_COUNT)?;
        let config_size = ask.u32("VHOST_VDPA_GET_CONFIG_SIZE", abi::GET_CONFIG_SIZE)?;
        if count > MAX_VQS || config_size > MAX_CONFIG_SIZE {
            return Err(VdpaError::Invalid(format!(
                "{name} claims {count} queues and {config_size} bytes of configuration"
            )));
        }
        let one = |result: Result<u32, VdpaError>| match result {
            // Kernels before 5.19 have one of each.
            Err(VdpaError::NotSupported(_)) => Ok(1),
            other => other,
        };
        let groups = one(ask.u32("VHOST_VDPA_GET_GROUP_NUM", abi::GET_GROUP_NUM))?;
        let spaces = one(ask.u32("VHOST_VDPA_GET_AS_NUM", abi::GET_AS_NUM))?;
        let mut range = [0; 16];
        ask.ioctl("VHOST_VDPA_GET_IOVA_RANGE", abi::GET_IOVA_RANGE, &mut range)?;
        let [first, last] = halves(range);
        let mut num = [0; 2];
        ask.ioctl("VHOST_VDPA_GET_VRING_NUM", abi::GET_VRING_NUM, &mut num)?;
        let device_id = ask.u32("VHOST_VDPA_GET_DEVICE_ID", abi::GET_DEVICE_ID)?;
        Ok(Self {
            raw,
            name,
            backend_features,
            device_id,
            config_size: config_size as usize,
            num_max: u16::from_ne_bytes(num),
            groups,
            iova_range: first..=last,
            vqs: (0..count).map(|_| Vq::default()).collect(),
            spaces: Mutex::new(
                (0..spaces.clamp(1, MAX_ADDRESS_SPACES))
                    .map(|_| AddressSpace::default())
                    .collect(),
            ),
            config_call: AtomicBool::new(false),
            driver_features: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            fd,
        })
    }

    /// What it was opened as.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The doorbell page of queue `vq`. From now on [`vdpa_bus::VdpaDevice::kick_vq`] uses it too.
    ///
    /// # Errors
    /// The parent has none (most have not), or there is no such queue.
    pub fn doorbell(&self, vq: u16) -> Result<Arc<Doorbell>, VdpaError> {
        let queue = self.vq(vq)?;
        if let Some(doorbell) = queue.doorbell.get() {
            return Ok(doorbell.clone());
        }
        let mapped = self
            .fd
            .doorbell(vq)
            .map_err(|source| match source.raw_os_error() {
                // The kernel's own ENOTSUPP, which no C library knows, or EOPNOTSUPP; EINVAL where the queue's doorbell
                // is within a page.
                Some(524 | libc::EOPNOTSUPP | libc::EINVAL) => {
                    VdpaError::NotSupported("it has no doorbell pages")
                }
                _ => VdpaError::System {
                    what: format!("can't map the doorbell of queue {vq} of {}", self.name),
                    source,
                },
            })?;
        Ok(queue.doorbell.get_or_init(|| Arc::new(mapped)).clone())
    }

    /// Maps the doorbell pages of all queues, so that [`vdpa_bus::VdpaDevice::kick_vq`] costs no system call. Returns
    /// whether the parent has any.
    ///
    /// # Errors
    /// The system refuses to map one that is there. Kicks work all the same.
    pub fn use_doorbells(&self) -> Result<bool, VdpaError> {
        for vq in (0..).take(self.vqs.len()) {
            match self.doorbell(vq) {
                Ok(_) => {}
                Err(VdpaError::NotSupported(_)) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Has vhost write `event` when queue `vq` fails (`VHOST_SET_VRING_ERR`), or no longer.
    ///
    /// # Errors
    /// No such queue; the system refused.
    pub fn set_vq_err(&self, vq: u16, event: Option<&EventFd>) -> Result<(), VdpaError> {
        self.vq(vq)?;
        self.vring_fd("VHOST_SET_VRING_ERR", abi::SET_VRING_ERR, vq, event)
    }

    fn vq(&self, vq: u16) -> Result<&Vq, VdpaError> {
        vdpa_bus::VdpaDevice::check_vq(self, vq)?;
        self.vqs.get(usize::from(vq)).ok_or(VdpaError::Gone)
    }

    /// The way to the kernel, while there is one.
    fn ask(&self) -> Result<Ask<'_>, VdpaError> {
        if self.gone.load(Ordering::Acquire) {
            return Err(VdpaError::Gone);
        }
        Ok(Ask {
            fd: self.fd.as_ref(),
        })
    }

    fn vring_fd(
        &self,
        what: &'static str,
        request: u32,
        vq: u16,
        event: Option<&EventFd>,
    ) -> Result<(), VdpaError> {
        let fd = event.map_or(-1, |event| event.as_raw_fd());
        self.ask()?
            .ioctl(what, request, &mut abi::pair(vq.into(), fd as u32))
    }

    /// Runs `change` on address space `asid`.
    fn change<R>(
        &self,
        asid: u32,
        change: impl FnOnce(&mut AddressSpace, &Sender<'_>) -> Result<R, VdpaError>,
    ) -> Result<R, VdpaError> {
        self.ask()?;
        let mut spaces = lock(&self.spaces);
        let space = spaces.get_mut(asid as usize).ok_or_else(|| {
            VdpaError::Invalid(format!("{} has no address space {asid}", self.name))
        })?;
        change(space, &self.sender(asid))
    }

    fn sender(&self, asid: u32) -> Sender<'_> {
        let has = |bit| self.backend_features & bit != 0;
        Sender {
            fd: self.fd.as_ref(),
            asid: if has(backend_feature::IOTLB_ASID) {
                asid
            } else {
                0
            },
            v2: has(backend_feature::IOTLB_MSG_V2),
            batch: has(backend_feature::IOTLB_BATCH),
        }
    }
}

impl std::fmt::Debug for VhostVdpa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostVdpa")
            .field("name", &self.name)
            .field("device_id", &self.device_id)
            .field("queues", &self.vqs.len())
            .field("backend_features", &self.backend_features)
            .finish_non_exhaustive()
    }
}

impl AsRawFd for VhostVdpa {
    fn as_raw_fd(&self) -> RawFd {
        self.raw
    }
}

/// Calls with their errors translated.
#[derive(Clone, Copy)]
struct Ask<'a> {
    fd: &'a dyn VhostFd,
}

impl Ask<'_> {
    fn ioctl(&self, what: &'static str, request: u32, arg: &mut [u8]) -> Result<(), VdpaError> {
        self.fd
            .ioctl(request, arg)
            .map(drop)
            .map_err(|error| translate(what, error))
    }

    fn u64(&self, what: &'static str, request: u32) -> Result<u64, VdpaError> {
        let mut bytes = [0; 8];
        self.ioctl(what, request, &mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn u32(&self, what: &'static str, request: u32) -> Result<u32, VdpaError> {
        let mut bytes = [0; 4];
        self.ioctl(what, request, &mut bytes)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    /// A request about queue or group `index` that takes `value` and returns another.
    fn pair(
        &self,
        what: &'static str,
        request: u32,
        index: u32,
        value: u32,
    ) -> Result<u32, VdpaError> {
        let mut bytes = abi::pair(index, value);
        self.ioctl(what, request, &mut bytes)?;
        Ok(abi::second(bytes))
    }
}

fn translate(what: &'static str, source: io::Error) -> VdpaError {
    match source.raw_os_error() {
        // vhost does not know the request (ENOTTY from ENOIOCTLCMD), or the parent does not do it.
        Some(libc::EOPNOTSUPP | libc::ENOTTY) => VdpaError::NotSupported(what),
        Some(libc::EBUSY) => VdpaError::Busy(what),
        Some(libc::ENODEV | libc::ENXIO) => VdpaError::Gone,
        Some(libc::EINVAL) => VdpaError::Invalid(format!("the device refused {what}")),
        _ => VdpaError::System {
            what: what.to_owned(),
            source,
        },
    }
}

fn halves(bytes: [u8; 16]) -> [u64; 2] {
    let value = u128::from_ne_bytes(bytes);
    let (low, high) = (value as u64, (value >> 64) as u64);
    if cfg!(target_endian = "little") {
        [low, high]
    } else {
        [high, low]
    }
}

#[cfg(test)]
mod tests;
