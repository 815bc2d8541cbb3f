// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vblk serve`.

mod vhost_user;

pub use vhost_user::run as vhost_user;
