// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a switch needs from the VMM.

/// What a switch needs from the VMM. The methods are called with the switch locked: they must not call it, and must not
/// wait for a thread that does. The exceptions are [`PathSwitch::status`](super::PathSwitch::status) and
/// [`PathSwitch::read_config`](super::PathSwitch::read_config), which never wait for a switch: a vCPU may be in one of
/// them when it is to be paused. Writes by the guest ([`PathSwitch::set_status`](super::PathSwitch::set_status),
/// [`PathSwitch::write_config`](super::PathSwitch::write_config)) wait: a VMM whose `pause_vcpus` waits for vCPUs
/// without limit must carry them out on another thread, or give up waiting and return `false`.
pub trait Vmm: Send + Sync {
    /// Pauses all vCPUs until [`Vmm::resume_vcpus`]. Returns whether they are paused. `false`: they run, as this VMM does
    /// not pause vCPUs or could not now; a device without SUSPEND then stays on the path it is on.
    fn pause_vcpus(&self) -> bool {
        false
    }

    /// Ends a pause of the vCPUs.
    fn resume_vcpus(&self) {}

    /// Unmaps doorbell pages from the guest, if it has any. When this returns, no vCPU can write to one: a write exits,
    /// and the VMM writes the queue's kick eventfd for it.
    fn unmap_doorbells(&self) {}

    /// The device takes kicks: doorbell pages may be mapped into the guest, if they aren't.
    fn map_doorbells(&self) {}
}

/// A VMM that does none of this.
impl Vmm for () {}
