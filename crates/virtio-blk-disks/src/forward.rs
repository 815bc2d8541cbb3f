// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What every layer passes on to the disk underneath.

/// The methods of `virtio_blk_core::disk::Disk` that a layer leaves to the disk underneath, in one place: a
/// method that is added to the contract is added here, not in each layer. Written within an `impl Disk`;
/// `$inner` is an expression for the disk, with `$self` in it.
macro_rules! control {
    ($self:ident, $inner:expr) => {
        crate::forward::activation!($self, $inner);
        crate::forward::settings!($self, $inner);
    };
}
pub(crate) use control;

/// The part of [`control`] that a layer which remembers something of the content has in a form of its own.
macro_rules! activation {
    ($self:ident, $inner:expr) => {
        fn activate(&$self) -> Result<(), virtio_blk_core::disk::DiskError> {
            $inner.activate()
        }

        fn deactivate(&$self) -> Result<(), virtio_blk_core::disk::DiskError> {
            $inner.deactivate()
        }
    };
}
pub(crate) use activation;

/// The rest of [`control`].
macro_rules! settings {
    ($self:ident, $inner:expr) => {
        fn flush_error(&$self) -> Option<virtio_blk_core::disk::DiskError> {
            $inner.flush_error()
        }

        fn handover(&$self) -> virtio_blk_core::disk::Handover {
            $inner.handover()
        }

        fn refresh(&$self) -> Result<(), virtio_blk_core::disk::DiskError> {
            $inner.refresh()
        }

        fn resize(&$self, bytes: u64) -> Result<(), virtio_blk_core::disk::DiskError> {
            $inner.resize(bytes)
        }

        fn listen(&$self, listener: virtio_blk_core::disk::DiskListener) {
            $inner.listen(listener);
        }
    };
}
pub(crate) use settings;

#[cfg(test)]
mod tests;
