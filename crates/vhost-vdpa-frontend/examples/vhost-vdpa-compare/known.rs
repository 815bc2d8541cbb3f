// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is known to differ, and why. All of it is what vhost (`drivers/vhost/vhost.c`, `vdpa.c`) or `VhostVdpa` does
//! before the kernel's device is asked: the `compat` profile is the device, without vhost above it.

/// A step that the two don't return the same for.
pub struct Difference {
    /// The step's name in the scripts.
    pub step: &'static str,
    /// What comes back of the kernel's device.
    pub kernel: &'static str,
    /// What the `compat` profile returns.
    pub ours: &'static str,
    /// Why.
    pub why: &'static str,
}

/// `vhost_vdpa_set_group_asid`: ENOBUFS, and the device itself doesn't look.
const GROUP: &str = "vhost checks the group, with another error";
/// `vhost_vdpa_config_validate`, and `VhostVdpa` itself.
const CONFIG: &str = "vhost checks the range, the device ignores one that does not fit";
/// No ioctl asks the device: `VhostVdpa` returns what was set.
const FEATURES: &str = "vhost has no way to ask which features were taken";
/// `vhost_vdpa_set_features`, `vhost_vdpa_set_status`.
const STATUS: &str = "vhost refuses features after FEATURES_OK and a status that loses bits";
/// `vhost_vring_set_num`, `vhost_vring_set_addr`.
const RING: &str = "vhost refuses a size that is no power of two and misaligned rings";
/// `vhost_vdpa_vring_ioctl`.
const RUNNING: &str = "vhost changes no ring of a device that runs";
/// `VhostVdpa` has both ways whatever the parent has.
const MAPS: &str = "vhost makes a whole map of single mappings";

const fn known(
    why: &'static str,
    step: &'static str,
    kernel: &'static str,
    ours: &'static str,
) -> Difference {
    Difference {
        step,
        kernel,
        ours,
        why,
    }
}

pub const DIFFERENCES: &[Difference] = &[
    known(GROUP, "set_group_asid 1 0", "Err(105)", "Err(22)"),
    known(CONFIG, "get_config, nothing", "Err(22)", "Ok([])"),
    known(
        CONFIG,
        "get_config beyond the end",
        "Err(22)",
        "Ok([204, 204])",
    ),
    known(CONFIG, "set_config beyond the end", "Err(22)", "Ok(())"),
    known(
        FEATURES,
        "get_driver_features",
        "18446744073709551615",
        "13019149894",
    ),
    known(
        STATUS,
        "set_driver_features after FEATURES_OK",
        "Err(16)",
        "Ok(())",
    ),
    known(STATUS, "set_status 0x3", "(Err(22), 11)", "(Ok(()), 3)"),
    known(STATUS, "set_status 0xf", "(Err(22), 203)", "(Ok(()), 15)"),
    known(RING, "set_vq_num 0", "Err(22)", "Ok(())"),
    known(RING, "set_vq_num 77", "Err(22)", "Ok(())"),
    known(RING, "set_vq_num 65536", "Err(22)", "Ok(())"),
    known(
        RING,
        "set_vq_address with a misaligned available ring",
        "Err(22)",
        "Ok(())",
    ),
    known(
        RING,
        "set_vq_address with a misaligned used ring",
        "Err(22)",
        "Ok(())",
    ),
    known(
        RUNNING,
        "set_vq_address of a running queue",
        "Err(22)",
        "Ok(())",
    ),
    known(
        RUNNING,
        "set_vq_state of a running queue",
        "Err(22)",
        "Ok(())",
    ),
    known(RUNNING, "get_vq_state after it", "Ok(1)", "Ok(9)"),
    known(MAPS, "dma_map", "Ok(())", "Err(95)"),
    known(MAPS, "dma_unmap", "Ok(())", "Err(95)"),
    known(
        RING,
        "queue: the available ring is not aligned",
        REFUSED,
        NOTHING,
    ),
    known(
        RING,
        "queue: the used ring is not aligned",
        REFUSED,
        NOTHING,
    ),
    known(RING, "queue: the queue size is 0", REFUSED, NOTHING),
    known(
        RING,
        "queue: the queue size is not a power of two",
        REFUSED,
        NOTHING,
    ),
    known(
        RING,
        "queue: the queue size is more than virtio knows",
        REFUSED,
        NOTHING,
    ),
];

const REFUSED: &str = "\"refused with 22\"";
const NOTHING: &str = "(Ok(0), 0, [], [], 0)";
