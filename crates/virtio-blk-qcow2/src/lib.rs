// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod base;
mod bitmaps;
mod check;
mod create;
mod desk;
mod disk;
mod epoch;
mod erase;
mod error;
mod extents;
mod files;
mod flight;
mod format;
mod freeze;
mod grant;
mod head;
mod host;
mod image;
mod inflate;
mod job;
mod keeper;
mod lane;
mod layout;
mod listeners;
mod map;
mod medium;
mod open;
mod options;
mod pool;
mod queue;
mod refcounts;
mod reserve;
mod resize;
mod slice;
mod sync;
mod tables;
mod worker;
mod writer;

pub use bitmaps::{BitmapInfo, PersistentBitmap};
pub use check::{Checked, Repair, check};
pub use create::{CreateOptions, Preallocation, create};
pub use disk::Qcow2Disk;
pub use error::OpenError;
pub use extents::{ChainFile, Extent, Where};
pub use files::{Access, Files};
pub use host::Qcow2File;
pub use options::Qcow2Options;
