// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Device halves to test the driver half against.
#![allow(dead_code, missing_docs)]

pub mod oracle;

/// What the devices answer to a request for their name.
pub const ID: [u8; 20] = *b"a model device\0\0\0\0\0\0";
