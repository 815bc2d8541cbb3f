// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk and the layers on it, by name: `DISK,LAYER,LAYER…`, from the medium upwards.
//!
//! | layer | syntax |
//! |---|---|
//! | limits | `throttle=[iops:N][/read_iops:N][/write_iops:N][/bandwidth:B][/read_bandwidth:B][/write_bandwidth:B][/group:NAME]` |
//! | a bitmap of changes | `dirty=NAME[/granularity:SIZE][/sync:on\|off][/persist:PATH]` |
//! | what failed is kept and tried again | `rerror=report\|stop`, `werror=report\|stop\|enospc`; or both, `errors=rerror:stop/werror:enospc` |
//! | counts and latencies | `meter` |
//! | checksums | `verify` |
//! | faults | `fault=[seed:N][/errors:PER_MILLE][/torn:PER_MILLE][/delay:SECONDS][/reorder:on]` |
//!
//! `N` is operations a second, `B` bytes a second, with K, M, G, T, P in binary units. After a limit may
//! stand `/burst:RATE`, and after that `/length:SECONDS` (1): the rate that holds for so long after a quiet
//! time. `PATH` goes to the end, but for `/granularity` and `/sync`.
//! The disk itself is a [`DiskArg`](crate::disk_arg::DiskArg). A layer that lives in another crate implements
//! [`LayerOptions`] for the type of its options; the program that links it lists it in its table of kinds
//! ([`LayerKinds`]), with which it reads text ([`StackArg::parse`]) and files ([`LayerKinds::read`]).
//!
//! ```
//! use virtio_blk_disks::stack::{Groups, StackArg};
//!
//! let arg: StackArg = "memory:64M,throttle=iops:5000/burst:20000/group:a,dirty=backup,meter".parse()?;
//! let stack = arg.open_live(false, &Groups::default())?;
//! let disk = stack.disk();
//! // … the disk is served; then, while it works:
//! stack.change(&["throttle=iops:100/group:a".parse()?, "meter".parse()?])?;
//! assert!(stack.dirty("backup").is_none());
//! # drop(disk);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod any_disk;
mod arg;
mod flush;
mod groups;
mod kind;
mod layer;
mod layers;
mod nearest;
mod options;
mod parse;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use virtio_blk_core::disk::{Disk, DiskError};

use crate::hot_swap::HoldError;
use crate::layer::{Layer, Layered};
use crate::policy::{PolicyEvent, PolicyListeners};
use crate::{
    ArgError, DirtyDisk, FaultDisk, MeterDisk, PolicyDisk, SwitchDisk, ThrottleDisk, VerifyDisk,
};

pub use arg::StackArg;
pub use groups::Groups;
pub(crate) use groups::JoinError;
pub use kind::{LayerKind, LayerKinds, OWN};
pub use layer::LayerArg;
use layers::{Built, find_double, merge};
pub use options::{LayerContext, LayerOptions, Parts, Shape};

/// Why a stack can't be made or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StackError {
    /// The layers can't be there together.
    #[error(transparent)]
    Arg(#[from] ArgError),
    /// The disk or a layer can't be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The stack is a fixed one.
    #[error("the layers of this disk can't be changed: it was not opened for that")]
    Fixed,
    /// The driver was told of abilities that the disk would lose.
    #[error(
        "the layer `{0}` changes what the disk can do, of which its driver was told: it can only be there \
         from the start"
    )]
    Abilities(String),
}

/// A disk with its layers.
pub struct Stack {
    base: Arc<dyn Disk>,
    groups: Groups,
    switch: Option<Arc<SwitchDisk>>,
    layers: Mutex<Vec<Built>>,
    listeners: Mutex<Vec<Listener>>,
    /// Listeners for operations that are kept, whatever layers come and go.
    policy_listeners: Arc<PolicyListeners>,
}

/// Called with whether some layer needs to see requests.
type Listener = Arc<dyn Fn(bool) + Send + Sync>;

/// Layers that a disk can have. Each takes a part of the stack of the thread that serves a queue.
const MAX_LAYERS: usize = 64;

/// Makes layers over a disk.
fn build(
    base: &Arc<dyn Disk>,
    layers: &[LayerArg],
    before: &[Built],
    context: &LayerContext<'_>,
) -> Result<Vec<Built>, StackError> {
    if layers.len() > MAX_LAYERS {
        let (given, most) = (layers.len(), MAX_LAYERS);
        return Err(ArgError::Layers { given, most }.into());
    }
    let layers = merge(layers);
    if let Some(double) = find_double(&layers) {
        let layer = double.to_string();
        return Err(ArgError::SameLayer { layer }.into());
    }
    let mut built: Vec<Built> = Vec::with_capacity(layers.len());
    for arg in &layers {
        arg.0.validate()?;
        let inner = top(base, &built);
        built.push(Built::new(arg, inner, before, context)?);
    }
    Ok(built)
}

fn top(base: &Arc<dyn Disk>, layers: &[Built]) -> Arc<dyn Disk> {
    layers.last().map_or_else(|| base.clone(), Built::disk)
}

/// What [`Stack::resume`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Operations that had failed and are tried again.
    pub operations: u64,
    /// Whether there was a hold to end. If it had ended before, what relied on it has to be done again.
    pub hold: Result<(), HoldError>,
}

impl Stack {
    /// Puts layers over a disk that can't be changed later. Without any it is the bare disk.
    ///
    /// # Errors
    /// The layers don't go together, or one can't be made.
    pub fn fixed(
        base: Arc<dyn Disk>,
        layers: &[LayerArg],
        groups: Groups,
    ) -> Result<Self, StackError> {
        let policy_listeners = Arc::default();
        let context = LayerContext {
            groups: &groups,
            listeners: &policy_listeners,
        };
        let layers = build(&base, layers, &[], &context)?;
        layers.iter().try_for_each(Built::apply)?;
        Ok(Self {
            base,
            groups,
            switch: None,
            layers: Mutex::new(layers),
            listeners: Mutex::default(),
            policy_listeners,
        })
    }

    /// Puts layers over a disk that can be changed.
    ///
    /// # Errors
    /// As for [`Stack::fixed`]; or the disk has only one queue.
    pub fn live(
        base: Arc<dyn Disk>,
        layers: &[LayerArg],
        groups: Groups,
    ) -> Result<Self, StackError> {
        let mut stack = Self::fixed(base, layers, groups)?;
        stack.switch = Some(Arc::new(SwitchDisk::new(stack.disk())?));
        Ok(stack)
    }

    fn built(&self) -> MutexGuard<'_, Vec<Built>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk to serve.
    pub fn disk(&self) -> Arc<dyn Disk> {
        match &self.switch {
            Some(switch) => switch.clone(),
            None => top(&self.base, &self.built()),
        }
    }

    /// The layers in use, from the medium upwards; a throttle with the limits that its group has now.
    pub fn layers(&self) -> Vec<LayerArg> {
        self.built().iter().map(Built::current).collect()
    }

    /// Replaces the layers, while the disk works. A layer that is also in the new list keeps what it
    /// knows: a throttle its group, a dirty bitmap its marks, a meter its counts. New limits of a throttle
    /// hold at once; otherwise queues follow when they are next served ([`Stack::is_settled`]), and a
    /// new layer sees each operation that is submitted from then on. In a fixed stack only the limits of throttles
    /// can be changed.
    ///
    /// # Errors
    /// The layers don't go together, one can't be made or would change the disk's abilities, or the stack
    /// is fixed. Nothing changed then.
    pub fn change(&self, layers: &[LayerArg]) -> Result<(), StackError> {
        self.edit(|_| Ok(layers.to_vec()))
    }

    /// As [`Stack::change`], to what `edit` makes of the layers there are. No other change comes between.
    ///
    /// # Errors
    /// That of `edit`, or as for [`Stack::change`].
    pub fn edit<E: From<StackError>>(
        &self,
        edit: impl FnOnce(Vec<LayerArg>) -> Result<Vec<LayerArg>, E>,
    ) -> Result<(), E> {
        {
            let mut current = self.built();
            let layers = edit(current.iter().map(Built::current).collect())?;
            self.try_change(&mut current, &layers)?;
        }
        let sees = self.sees_requests();
        for listener in self.listeners().clone() {
            listener(sees);
        }
        Ok(())
    }

    fn try_change(&self, current: &mut Vec<Built>, layers: &[LayerArg]) -> Result<(), StackError> {
        let context = LayerContext {
            groups: &self.groups,
            listeners: &self.policy_listeners,
        };
        let built = build(&self.base, layers, current, &context)?;
        let same_places = current.len() == built.len()
            && (current.iter().zip(&built)).all(|(old, new)| old.can_become(&new.arg));
        if same_places {
            built.iter().try_for_each(Built::apply)?;
            for (old, new) in current.iter_mut().zip(built) {
                old.arg = new.arg;
            }
            return Ok(());
        }
        let switch = self.switch.as_ref().ok_or(StackError::Fixed)?;
        let caps = self.base.caps();
        if let Some(changes) = built.iter().find(|built| built.disk().caps() != caps)
            && !current.iter().any(|old| old.arg == changes.arg)
        {
            return Err(StackError::Abilities(changes.arg.to_string()));
        }
        built.iter().try_for_each(Built::apply)?;
        let stays = |old: &&Built| built.iter().any(|new| new.arg == old.arg);
        let mut leaving = current.iter().filter(|old| !stays(old));
        leaving.try_for_each(Built::leave)?;
        switch.switch(top(&self.base, &built));
        *current = built;
        Ok(())
    }

    /// Whether every queue has followed the last [`Stack::change`].
    ///
    /// # Errors
    /// Why one can't.
    pub fn is_settled(&self) -> Result<bool, StackError> {
        let Some(switch) = &self.switch else {
            return Ok(true);
        };
        match switch.last_error() {
            Some(error) => Err(DiskError::Config(error).into()),
            None => Ok(switch.is_settled()),
        }
    }

    /// Makes every queue complete what it has in flight, and hold what comes afterwards until [`Stack::resume`] or for
    /// that time. Returns at once: when [`Stack::is_settled`] says so, nothing is in flight. What [`Stack::flush`]
    /// then makes stable is the whole disk at one moment, for a copy or a snapshot.
    ///
    /// # Errors
    /// [`StackError::Fixed`].
    pub fn hold(&self, time: Duration) -> Result<(), StackError> {
        let switch = self.switch.as_ref().ok_or(StackError::Fixed)?;
        switch.hold(Instant::now() + time);
        Ok(())
    }

    /// Makes a [`Stack::hold`] that is in force last for `time` from now on.
    ///
    /// # Errors
    /// None is in force.
    pub fn extend(&self, time: Duration) -> Result<(), HoldError> {
        let switch = self.switch.as_ref().ok_or(HoldError::None)?;
        switch.extend(Instant::now() + time)
    }

    /// Ends [`Stack::hold`], and retries operations that failed and are kept.
    pub fn resume(&self) -> Resumed {
        Resumed {
            operations: self.policy().map_or(0, |policy| policy.resume()),
            hold: match &self.switch {
                Some(switch) => switch.resume(),
                None => Err(HoldError::None),
            },
        }
    }

    /// Flushes the disk, and waits for it.
    ///
    /// # Errors
    /// The flush failed; or one failed before it, on any queue, so that completed writes may be lost.
    pub fn flush(&self) -> Result<(), DiskError> {
        flush::flush(&*self.base)?;
        self.base.flush_error().map_or(Ok(()), Err)
    }

    /// Whether some layer needs to see requests, so that they can't bypass this stack. Every layer does, except a
    /// throttle without a limit.
    pub fn sees_requests(&self) -> bool {
        self.built().iter().any(Built::sees_requests)
    }

    /// Calls `listener` after each [`Stack::change`] with what [`Stack::sees_requests`] returns then: for the code that
    /// chooses the path. Not called when another stack changes the limits of a group that both are in.
    pub fn listen(&self, listener: impl Fn(bool) + Send + Sync + 'static) {
        self.listeners().push(Arc::new(listener));
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Listener>> {
        (self.listeners.lock()).unwrap_or_else(PoisonError::into_inner)
    }

    /// The first layer of a type, from the medium upwards.
    pub fn layer<L: Layer>(&self) -> Option<Arc<Layered<L>>> {
        self.built().iter().find_map(Built::of)
    }

    /// The throttle layers, from the medium upwards.
    pub fn throttles(&self) -> Vec<Arc<ThrottleDisk>> {
        self.built().iter().filter_map(Built::of).collect()
    }

    /// The layer with the dirty bitmap of that name.
    pub fn dirty(&self, name: &str) -> Option<Arc<DirtyDisk>> {
        let built = self.built();
        let mut layers = built.iter().filter_map(Built::of);
        layers.find(|disk: &Arc<DirtyDisk>| disk.bitmap(name).is_some())
    }

    /// The names of all dirty bitmaps, from the medium upwards.
    pub fn dirty_names(&self) -> Vec<String> {
        let built = self.built();
        let layers = built.iter().filter_map(Built::of);
        layers
            .flat_map(|disk: Arc<DirtyDisk>| disk.names())
            .collect()
    }

    /// The layer that keeps operations that failed.
    pub fn policy(&self) -> Option<Arc<PolicyDisk>> {
        self.layer()
    }

    /// Calls `listener` for what happens to operations that failed, whenever there is a layer for that.
    /// It must not block.
    pub fn listen_events(&self, listener: impl Fn(&PolicyEvent) + Send + Sync + 'static) {
        self.policy_listeners.add(Arc::new(listener));
    }

    /// The meter.
    pub fn meter(&self) -> Option<Arc<MeterDisk>> {
        self.layer()
    }

    /// The verifying layer.
    pub fn verify(&self) -> Option<Arc<VerifyDisk>> {
        self.layer()
    }

    /// The fault layer.
    pub fn fault(&self) -> Option<Arc<FaultDisk>> {
        self.layer()
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut layers = f.debug_list();
        for built in self.built().iter() {
            layers.entry(&built.arg);
        }
        layers.finish()
    }
}

#[cfg(test)]
mod tests;
