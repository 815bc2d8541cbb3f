// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Management devices, devices, and what is said to make and measure one.

use std::fmt;
use std::str::FromStr;

use netlink_packet_core::DefaultNla;

use super::attribute::attr;
use super::name::{DeviceName, ManagementName};
use super::wire::{self, Attributes};

/// Something that makes vDPA devices: VDUSE, a simulator, a network card's function.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ManagementDevice {
    /// Its name.
    pub name: ManagementName,
    /// Bit N: it makes devices of virtio device ID N (2 is a block device).
    pub supported_classes: u64,
    /// Virtqueues of a device, at most. Old kernels don't say.
    pub max_vqs: Option<u32>,
    /// Features that its devices can offer; 0 where each device has its own (VDUSE). Old kernels don't say.
    pub supported_features: Option<u64>,
}

impl ManagementDevice {
    /// Whether it makes devices of this virtio device ID.
    pub fn supports(&self, device_id: u32) -> bool {
        self.supported_classes
            .checked_shr(device_id)
            .is_some_and(|classes| classes & 1 == 1)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let attributes = Attributes::parse(bytes)?;
        Ok(Self {
            name: management_name(&attributes)?,
            supported_classes: attributes
                .u64(attr::MGMTDEV_SUPPORTED_CLASSES)?
                .unwrap_or(0),
            max_vqs: attributes.u32(attr::MGMTDEV_MAX_VQS)?,
            supported_features: attributes.u64(attr::MGMTDEV_SUPPORTED_FEATURES)?,
        })
    }
}

fn management_name(attributes: &Attributes<'_>) -> Result<ManagementName, String> {
    Ok(ManagementName::of_kernel(
        attributes.text(attr::MGMTDEV_BUS_NAME),
        attributes.needed_text(attr::MGMTDEV_DEV_NAME)?,
    ))
}

/// A vDPA device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Device {
    /// Its name. Any bytes may be in it: make a [`DeviceName`] of it to use it in a call.
    pub name: String,
    /// What made it.
    pub management: ManagementName,
    /// The virtio device ID: 2 is a block device.
    pub device_id: u32,
    /// The vendor ID.
    pub vendor_id: u32,
    /// Its virtqueues.
    pub max_vqs: u32,
    /// The largest size of a virtqueue.
    pub max_vq_size: Option<u16>,
    /// The smallest size of a virtqueue.
    pub min_vq_size: Option<u16>,
}

impl Device {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let attributes = Attributes::parse(bytes)?;
        let needed = |kind| {
            let value = attributes.u32(kind)?;
            value.ok_or_else(|| format!("attribute {kind} is missing"))
        };
        Ok(Self {
            name: attributes.needed_text(attr::DEV_NAME)?,
            management: management_name(&attributes)?,
            device_id: needed(attr::DEV_ID)?,
            vendor_id: needed(attr::DEV_VENDOR_ID)?,
            max_vqs: needed(attr::DEV_MAX_VQS)?,
            max_vq_size: attributes.u16(attr::DEV_MAX_VQ_SIZE)?,
            min_vq_size: attributes.u16(attr::DEV_MIN_VQ_SIZE)?,
        })
    }
}

/// The address of a network device: six bytes, written `02:00:00:00:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Whether it can be a device's: neither zero nor a group's. The kernel takes no other.
    pub const fn is_unicast(&self) -> bool {
        let [first, second, third, fourth, fifth, sixth] = self.0;
        first & 1 == 0 && first | second | third | fourth | fifth | sixth != 0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

/// Not the address of a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an address has six bytes in hexadecimal, as 02:00:00:00:00:01, is not zero and no group's"
)]
pub struct MacAddressError;

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        let mut parts = text.split(':');
        let mut bytes = [0; 6];
        for byte in &mut bytes {
            let part = parts.next().ok_or(MacAddressError)?;
            let is_hex = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            let value = u8::from_str_radix(part, 16).map_err(|_| MacAddressError)?;
            *byte = if is_hex {
                value
            } else {
                return Err(MacAddressError);
            };
        }
        let address = Self(bytes);
        match parts.next() {
            None if address.is_unicast() => Ok(address),
            _ => Err(MacAddressError),
        }
    }
}

/// What to add. A management device refuses (`EOPNOTSUPP`) an attribute that it doesn't know: VDUSE and the
/// block simulator know none, their devices are set up before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddDevice {
    name: DeviceName,
    management: ManagementName,
    attributes: Vec<DefaultNla>,
}

impl AddDevice {
    /// A device of this name, made by `management`. For VDUSE it is the name of a device that its daemon
    /// has created and set up.
    pub fn new(name: DeviceName, management: ManagementName) -> Self {
        Self {
            name,
            management,
            attributes: Vec::new(),
        }
    }

    /// Offer these features only.
    #[must_use]
    pub fn device_features(self, features: u64) -> Self {
        self.with(attr::DEV_FEATURES, features.to_ne_bytes())
    }

    /// The address of a network device.
    #[must_use]
    pub fn mac_address(self, address: MacAddress) -> Self {
        self.with(attr::NET_CFG_MACADDR, address.0)
    }

    /// The MTU of a network device, in bytes.
    #[must_use]
    pub fn mtu(self, bytes: u16) -> Self {
        self.with(attr::NET_CFG_MTU, bytes.to_ne_bytes())
    }

    /// The queue pairs of a network device, at most.
    #[must_use]
    pub fn max_queue_pairs(self, pairs: u16) -> Self {
        self.with(attr::NET_CFG_MAX_VQP, pairs.to_ne_bytes())
    }

    /// The name.
    pub fn name(&self) -> &DeviceName {
        &self.name
    }

    /// What is to make it.
    pub fn management(&self) -> &ManagementName {
        &self.management
    }

    fn with<const N: usize>(mut self, kind: u16, value: [u8; N]) -> Self {
        self.attributes.push(wire::plain(kind, value));
        self
    }

    pub(super) fn encode(&self) -> Vec<DefaultNla> {
        let mut list = vec![wire::text(attr::DEV_NAME, self.name.as_str())];
        if let Some(bus) = self.management.bus() {
            list.push(wire::text(attr::MGMTDEV_BUS_NAME, bus));
        }
        list.push(wire::text(attr::MGMTDEV_DEV_NAME, self.management.device()));
        list.extend(self.attributes.iter().cloned());
        list
    }
}

/// Counters of one queue, named by the device's vendor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VendorStats {
    /// The device's name.
    pub name: String,
    /// The queue.
    pub queue: u32,
    /// Features the driver took.
    pub negotiated_features: Option<u64>,
    /// Names and values.
    pub counters: Vec<(String, u64)>,
}

impl VendorStats {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let attributes = Attributes::parse(bytes)?;
        let mut counters = Vec::new();
        let mut name = None;
        for (kind, value) in attributes.iter() {
            match kind {
                attr::DEV_VENDOR_ATTR_NAME => name = Some(wire::text_of(value)),
                attr::DEV_VENDOR_ATTR_VALUE => {
                    let name = name.take().ok_or("a counter without a name")?;
                    counters.push((name, u64::from_ne_bytes(wire::fixed(kind, value)?)));
                }
                _ => {}
            }
        }
        Ok(Self {
            name: attributes.needed_text(attr::DEV_NAME)?,
            queue: attributes.u32(attr::DEV_QUEUE_INDEX)?.unwrap_or(0),
            negotiated_features: attributes.u64(attr::DEV_NEGOTIATED_FEATURES)?,
            counters,
        })
    }
}
