// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The client of the family.

use std::io;
use std::time::{Duration, Instant};

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_MATCH, NLM_F_REQUEST, NLM_F_ROOT};

use super::attribute::{FAMILY, VERSION, attr, command, control};
use super::config::DeviceConfig;
use super::device::{AddDevice, Device, MacAddress, ManagementDevice, VendorStats};
use super::error::ManagementError;
use super::link::{KernelLink, Link};
use super::name::DeviceName;
use super::wire::{self, Attributes, Generic, Part};

/// How long each datagram of a reply may take, and all of it together. The kernel has the first one ready
/// when it has taken the request.
const REPLY_TIME: Duration = Duration::from_secs(10);
/// Bytes of one reply, at most: tens of thousands of devices.
const MAX_REPLY: usize = 16 << 20;
const ENOENT: i32 = 2;
/// The virtio device ID of network devices.
const NETWORK: u32 = 1;

/// A client of the kernel's netlink family `vdpa`. Listing needs no privilege; adding, deleting, changing
/// and vendor statistics need `CAP_NET_ADMIN`. See the [module](super) for what blocks.
#[derive(Debug)]
pub struct Management<L = KernelLink> {
    link: L,
    family: u16,
    sequence: u32,
}

/// What is asked of a family.
struct Request<'a> {
    family: u16,
    version: u8,
    command: u8,
    flags: u16,
    attributes: &'a [DefaultNla],
}

impl Management<KernelLink> {
    /// Connects to the kernel.
    ///
    /// # Errors
    /// [`ManagementError::NoFamily`] where the kernel has no vDPA; others as the system says.
    pub fn open() -> Result<Self, ManagementError> {
        let link = KernelLink::open(REPLY_TIME).map_err(|source| ManagementError::System {
            what: "opening a netlink socket".to_owned(),
            source,
        })?;
        Self::with_link(link)
    }
}

impl<L: Link> Management<L> {
    /// Uses a connection of one's own.
    ///
    /// # Errors
    /// As [`Management::open`].
    pub fn with_link(link: L) -> Result<Self, ManagementError> {
        let mut client = Self {
            link,
            family: control::FAMILY,
            sequence: 0,
        };
        client.family = client.resolve()?;
        Ok(client)
    }

    /// The connection.
    pub fn into_link(self) -> L {
        self.link
    }

    fn resolve(&mut self) -> Result<u16, ManagementError> {
        let what = "looking for the netlink family \"vdpa\"";
        let request = Request {
            family: control::FAMILY,
            version: control::VERSION,
            command: control::GETFAMILY,
            flags: 0,
            attributes: &[wire::text(control::ATTR_FAMILY_NAME, FAMILY)],
        };
        let replies = match self.exchange(what, &request) {
            Err(ManagementError::Refused { errno: ENOENT, .. }) => {
                return Err(ManagementError::NoFamily);
            }
            replies => replies?,
        };
        let id = one(what, replies, |bytes| {
            Attributes::parse(bytes)?.u16(control::ATTR_FAMILY_ID)
        })?;
        // Lower numbers are netlink's own, the controller's and of two families of old.
        id.filter(|id| *id > control::FAMILY)
            .ok_or_else(|| malformed(what, "no number of the family"))
    }

    /// What can make devices.
    ///
    /// # Errors
    /// The kernel or its reply.
    pub fn management_devices(&mut self) -> Result<Vec<ManagementDevice>, ManagementError> {
        let what = "listing management devices";
        let replies = self.dump(what, command::MGMTDEV_GET, command::MGMTDEV_NEW)?;
        all(what, replies, ManagementDevice::decode)
    }

    /// The devices.
    ///
    /// # Errors
    /// The kernel or its reply.
    pub fn devices(&mut self) -> Result<Vec<Device>, ManagementError> {
        let what = "listing devices";
        let replies = self.dump(what, command::DEV_GET, command::DEV_NEW)?;
        all(what, replies, Device::decode)
    }

    /// One device.
    ///
    /// # Errors
    /// [`ManagementError::NoDevice`]; the kernel or its reply.
    pub fn device(&mut self, name: &DeviceName) -> Result<Device, ManagementError> {
        let what = format!("looking at {name}");
        let reply = self.of_device(&what, name, command::DEV_GET, &[])?;
        one(
            &what,
            answers(&what, reply, command::DEV_NEW)?,
            Device::decode,
        )
    }

    /// The configuration of one device.
    ///
    /// # Errors
    /// [`ManagementError::NoDevice`]; the kernel or its reply.
    pub fn config(&mut self, name: &DeviceName) -> Result<DeviceConfig, ManagementError> {
        let what = format!("reading the configuration of {name}");
        let reply = self.of_device(&what, name, command::DEV_CONFIG_GET, &[])?;
        let reply = answers(&what, reply, command::DEV_CONFIG_GET)?;
        one(&what, reply, DeviceConfig::decode)
    }

    /// The configurations of all devices.
    ///
    /// # Errors
    /// The kernel or its reply.
    pub fn configs(&mut self) -> Result<Vec<DeviceConfig>, ManagementError> {
        let what = "reading the configurations";
        let replies = self.dump(what, command::DEV_CONFIG_GET, command::DEV_CONFIG_GET)?;
        all(what, replies, DeviceConfig::decode)
    }

    /// The vendor's counters of one queue. The kernel has them for network devices only: a block device's
    /// are refused with `EOPNOTSUPP`, and any device's with `EAGAIN` before FEATURES_OK.
    ///
    /// # Errors
    /// [`ManagementError::NoDevice`]; the kernel or its reply.
    pub fn vendor_stats(
        &mut self,
        name: &DeviceName,
        queue: u32,
    ) -> Result<VendorStats, ManagementError> {
        let what = format!("reading the statistics of {name}");
        let index = wire::plain(attr::DEV_QUEUE_INDEX, queue.to_ne_bytes());
        let reply = self.of_device(&what, name, command::DEV_VSTATS_GET, &[index])?;
        let reply = answers(&what, reply, command::DEV_VSTATS_GET)?;
        one(&what, reply, VendorStats::decode)
    }

    /// Adds a device to the bus. If a driver takes it, its probe runs before this returns: **never call
    /// this from the thread that replies to the device's VDUSE messages or serves its queues**.
    ///
    /// # Errors
    /// [`ManagementError::Refused`]: `ENODEV` without such a management device, `EEXIST` if the name is
    /// taken, `EOPNOTSUPP` for an attribute it can't set, `EINVAL` from VDUSE without a device of that name
    /// or with queues that aren't set up, `EPERM` without `CAP_NET_ADMIN`.
    pub fn add(&mut self, device: &AddDevice) -> Result<(), ManagementError> {
        let what = format!("adding {} by {}", device.name(), device.management());
        let request = self.request(command::DEV_NEW, 0);
        self.exchange(
            &what,
            &Request {
                attributes: &device.encode(),
                ..request
            },
        )?;
        Ok(())
    }

    /// Changes the address of a network device (Linux 6.12). A driver that has read it already keeps what it read. Needs
    /// `CAP_NET_ADMIN`.
    ///
    /// The kernel reports success for a device whose parent makes no network devices, and changes nothing: so the
    /// device's class is looked at before, and its configuration space afterwards, as far as that tells the address.
    ///
    /// # Errors
    /// [`ManagementError::NoDevice`]; [`ManagementError::NotNetwork`]; [`ManagementError::AddressNotTaken`];
    /// [`ManagementError::Refused`]: `EOPNOTSUPP` from older kernels, `EINVAL` from a parent that can't change it or for an
    /// address that is no device's, `EPERM` without `CAP_NET_ADMIN`.
    pub fn set_mac_address(
        &mut self,
        name: &DeviceName,
        address: MacAddress,
    ) -> Result<(), ManagementError> {
        if self.device(name)?.device_id != NETWORK {
            return Err(ManagementError::NotNetwork(name.to_string()));
        }
        let what = format!("changing the address of {name}");
        let attribute = wire::plain(attr::NET_CFG_MACADDR, address.0);
        self.of_device(&what, name, command::DEV_ATTR_SET, &[attribute])?;
        match self.config(name)?.net.mac_address {
            Some(found) if found != address => Err(ManagementError::AddressNotTaken {
                device: name.to_string(),
                wanted: address,
                found,
            }),
            _ => Ok(()),
        }
    }

    /// Takes a device off the bus. Its driver's removal runs before this returns, with the same rule for
    /// the calling thread as [`Management::add`], and it waits until `/dev/vhost-vdpa-N` is closed.
    ///
    /// # Errors
    /// [`ManagementError::NoDevice`]; [`ManagementError::Refused`]: `EPERM` without `CAP_NET_ADMIN`,
    /// `EINVAL` if the device wasn't added over netlink.
    pub fn delete(&mut self, name: &DeviceName) -> Result<(), ManagementError> {
        let what = format!("deleting {name}");
        self.of_device(&what, name, command::DEV_DEL, &[])?;
        Ok(())
    }

    fn request(&self, command: u8, flags: u16) -> Request<'static> {
        Request {
            family: self.family,
            version: VERSION,
            command,
            flags,
            attributes: &[],
        }
    }

    fn dump(
        &mut self,
        what: &str,
        command: u8,
        answer: u8,
    ) -> Result<Vec<Generic>, ManagementError> {
        let request = self.request(command, NLM_F_ROOT | NLM_F_MATCH);
        let replies = self.exchange(what, &request)?;
        answers(what, replies, answer)
    }

    /// Asks something about one device.
    fn of_device(
        &mut self,
        what: &str,
        name: &DeviceName,
        command: u8,
        more: &[DefaultNla],
    ) -> Result<Vec<Generic>, ManagementError> {
        const ENODEV: i32 = 19;
        let mut attributes = vec![wire::text(attr::DEV_NAME, name.as_str())];
        attributes.extend_from_slice(more);
        let request = self.request(command, 0);
        let replies = self.exchange(
            what,
            &Request {
                attributes: &attributes,
                ..request
            },
        );
        match replies {
            Err(ManagementError::Refused { errno: ENODEV, .. }) => {
                Err(ManagementError::NoDevice(name.to_string()))
            }
            replies => replies,
        }
    }

    /// Sends a request and collects what comes back until its end.
    fn exchange(
        &mut self,
        what: &str,
        request: &Request<'_>,
    ) -> Result<Vec<Generic>, ManagementError> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = Generic {
            family: request.family,
            command: request.command,
            version: request.version,
            attributes: wire::attributes(request.attributes),
        };
        let flags = NLM_F_REQUEST | NLM_F_ACK | request.flags;
        let bytes = wire::request(message, flags, self.sequence);
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ManagementError::TimedOut {
                what: what.to_owned(),
            },
            _ => ManagementError::System {
                what: what.to_owned(),
                source,
            },
        };
        self.link.send(&bytes).map_err(failed)?;
        let deadline = Instant::now() + REPLY_TIME;
        let mut received = 0;
        let mut replies = Vec::new();
        loop {
            let datagram = self.link.receive().map_err(failed)?;
            received += datagram.len();
            if received > MAX_REPLY {
                return Err(malformed(what, &format!("more than {MAX_REPLY} bytes")));
            }
            let parts = wire::parts(&datagram, self.sequence);
            for part in parts.map_err(|why| malformed(what, &why))? {
                match part {
                    Part::Content(reply) if reply.family == request.family => replies.push(reply),
                    Part::Content(_) => return Err(malformed(what, "a message of another family")),
                    Part::End => return Ok(replies),
                    Part::Refused { errno, reason } => {
                        return Err(ManagementError::Refused {
                            what: what.to_owned(),
                            errno,
                            reason,
                        });
                    }
                }
            }
            if Instant::now() > deadline {
                return Err(ManagementError::TimedOut {
                    what: what.to_owned(),
                });
            }
        }
    }
}

fn malformed(what: &str, why: &str) -> ManagementError {
    ManagementError::Malformed {
        what: what.to_owned(),
        why: why.to_owned(),
    }
}

/// The replies, which must be this command's.
fn answers(
    what: &str,
    replies: Vec<Generic>,
    command: u8,
) -> Result<Vec<Generic>, ManagementError> {
    match replies.iter().find(|reply| reply.command != command) {
        Some(reply) => {
            let why = format!("command {}, not {command}", reply.command);
            Err(malformed(what, &why))
        }
        None => Ok(replies),
    }
}

fn all<T>(
    what: &str,
    replies: Vec<Generic>,
    decode: impl Fn(&[u8]) -> Result<T, String>,
) -> Result<Vec<T>, ManagementError> {
    replies
        .iter()
        .map(|reply| decode(&reply.attributes).map_err(|why| malformed(what, &why)))
        .collect()
}

fn one<T>(
    what: &str,
    replies: Vec<Generic>,
    decode: impl Fn(&[u8]) -> Result<T, String>,
) -> Result<T, ManagementError> {
    let mut decoded = all(what, replies, decode)?;
    match (decoded.pop(), decoded.is_empty()) {
        (Some(reply), true) => Ok(reply),
        _ => Err(malformed(what, "not one reply")),
    }
}
