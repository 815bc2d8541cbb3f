// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device, a guest, a saboteur, and a bench with all of them.
#![allow(dead_code)]

pub mod bench;
pub mod device;
pub mod flaky;
pub mod guest;

use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub fn eventfd() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap())
}
