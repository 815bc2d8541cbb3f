// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a switch asks of the VMM.

/// What a switch asks of the VMM. Called with the switch locked: no method may call it.
pub trait Vmm: Send + Sync {
    /// Stops all vCPUs, until [`Vmm::resume_vcpus`]. Answers whether they stand still; `false`: this VMM does not do
    /// that, and devices without SUSPEND stay on the path they are on.
    fn pause_vcpus(&self) -> bool {
        false
    }

    /// Has the vCPUs go on.
    fn resume_vcpus(&self) {}

    /// Takes doorbell pages away from the guest. When it returns, no vCPU can write one.
    fn unmap_doorbells(&self) {}

    /// The device takes kicks: doorbell pages may be given to the guest.
    fn map_doorbells(&self) {}
}

/// A VMM that does none of it.
impl Vmm for () {}
