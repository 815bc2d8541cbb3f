// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Buffers in memory that its owner can take away.

use std::sync::Arc;

use vm_memory::GuestAddressSpace;

use crate::disk::IoBuf;
use crate::memory::{Iotlb, IotlbTable};

/// A buffer with `data`, to write from. `intact` says whether that is still there: what
/// [`IoBuf::is_intact`] returns.
pub fn removable_buffer(
    data: &'static [u8],
    intact: impl Fn() -> bool + Send + Sync + 'static,
) -> IoBuf {
    let mut table = IotlbTable::new();
    table.ask_intact(move |_| intact());
    let mut buf = IoBuf::new();
    buf.set_keep(Arc::new(Iotlb::new(table).memory()));
    // SAFETY: the bytes are there for ever, and a write only reads them.
    unsafe { buf.push(data.as_ptr().cast_mut(), data.len()) };
    buf
}
