// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a disk is called on command lines.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use virtio_blk_core::disk::{Disk, DiskError};
use virtio_blk_disks::disk_arg::{ArgError, DiskOptions};

use crate::name::FORMS;
use crate::shell::shell_word;
use crate::{ImageName, RbdDisk};

/// Where a disk notes under which name the cluster knows it, for its successor if it is killed: see
/// [`RbdOptions::state`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// `/run/vblk` for root, else `vblk` in the directory that `XDG_RUNTIME_DIR` names; nowhere if there is none, of which
    /// the log warns.
    #[default]
    Usual,
    /// In this directory.
    In(PathBuf),
    /// Nowhere.
    Off,
}

impl State {
    /// The directory, if there is one.
    pub(crate) fn directory(&self) -> Option<PathBuf> {
        match self {
            Self::Off => None,
            Self::In(path) => Some(path.clone()),
            Self::Usual if rustix::process::geteuid().is_root() => Some("/run/vblk".into()),
            Self::Usual => {
                let runtime = std::env::var_os("XDG_RUNTIME_DIR")?;
                Path::new(&runtime)
                    .is_absolute()
                    .then(|| Path::new(&runtime).join("vblk"))
            }
        }
    }
}

/// An image of a Ceph cluster as a disk: `rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT][,OPTION…]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Words")]
pub struct RbdOptions {
    name: ImageName,
    conf: Option<PathBuf>,
    id: Option<String>,
    read_only: bool,
    timeout: u32,
    state: State,
}

/// The options as they are written.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Words {
    conf: Option<PathBuf>,
    id: Option<String>,
    readonly: bool,
    timeout: u32,
    state: Option<PathBuf>,
}

/// What says that there is no directory for the state.
const OFF: &str = "off";

impl From<Words> for RbdOptions {
    fn from(words: Words) -> Self {
        Self {
            name: ImageName::default(),
            conf: words.conf,
            id: words.id,
            read_only: words.readonly,
            timeout: words.timeout,
            state: match words.state {
                None => State::Usual,
                Some(path) if path == Path::new(OFF) => State::Off,
                Some(path) => State::In(path),
            },
        }
    }
}

impl RbdOptions {
    /// The image of this name, by the usual configuration and user.
    pub fn new(name: ImageName) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// The cluster's configuration (default: where Ceph looks for it, `/etc/ceph/ceph.conf`).
    #[must_use]
    pub fn conf(mut self, path: impl Into<PathBuf>) -> Self {
        self.conf = Some(path.into());
        self
    }

    /// The user of the cluster, without `client.` (default: admin). The key is where the configuration says.
    #[must_use]
    pub fn id(mut self, user: impl Into<String>) -> Self {
        self.id = Some(user.into());
        self
    }

    /// Whether the disk is read-only though the image is not (default: no). A snapshot always is.
    #[must_use]
    pub const fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// After so many seconds without a response an operation fails with `ETIMEDOUT` (default: 0, it waits, and the log
    /// says so every ten seconds and more). The servers may still execute a write that has failed so.
    #[must_use]
    pub const fn timeout(mut self, seconds: u32) -> Self {
        self.timeout = seconds;
        self
    }

    /// Where a disk that is open for writing notes under which name the cluster knows it. Its successor on this host
    /// takes the image's exclusive lock from a predecessor that was killed at once, by what stands there, and not after
    /// half a minute. Two disks that share the directory can't have one image open for writing at the same time.
    #[must_use]
    pub fn state(mut self, state: State) -> Self {
        self.state = state;
        self
    }

    /// The image.
    pub const fn name(&self) -> &ImageName {
        &self.name
    }

    pub(crate) fn conf_path(&self) -> Option<&Path> {
        self.conf.as_deref()
    }

    pub(crate) fn user(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Whether nothing may be changed.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only || self.name.snapshot().is_some()
    }

    pub(crate) fn patience(&self) -> Option<Duration> {
        (self.timeout != 0).then(|| Duration::from_secs(self.timeout.into()))
    }

    pub(crate) fn state_directory(&self) -> Option<PathBuf> {
        self.state.directory()
    }

    /// Whether there should be a directory for the state, and there is none.
    pub(crate) fn lacks_state(&self) -> bool {
        self.state == State::Usual && self.state_directory().is_none()
    }

    /// The options of Ceph's programs that lead to the same cluster.
    pub(crate) fn words(&self) -> String {
        let conf = self.conf.as_ref();
        let conf = conf.map(|path| shell_word(&path.to_string_lossy()));
        let mut words = conf.map_or_else(String::new, |path| format!(" --conf {path}"));
        if let Some(id) = &self.id {
            words.push_str(" --id ");
            words.push_str(&shell_word(id));
        }
        words
    }
}

impl DiskOptions for RbdOptions {
    const NAME: &'static str = "rbd";
    const TARGET: &'static str = "POOL/IMAGE";
    const HELP: &'static str = "rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT][,conf=FILE][,id=USER][,readonly=on|off]\
                                [,timeout=SECONDS][,state=DIR|off]";
    const MANUAL: &'static str = "  \
  rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT][,OPTION…]
                          an image of a Ceph cluster, or a snapshot of one, by
                          librbd, which must be installed
      conf=FILE           the cluster's configuration (/etc/ceph/ceph.conf)
      id=USER             as which user, without `client.` (admin)
      readonly=on|off     read-only in any case (off; on for snapshots)
      timeout=SECONDS     how long operations wait for the cluster before they
                          fail (0: for ever)
      state=DIR|off       where the next process finds whose lock on the image
                          it may break if this one is killed (/run/vblk for
                          root, else $XDG_RUNTIME_DIR/vblk if there is one)";

    fn set_target(&mut self, target: String) -> Result<(), ArgError> {
        let Ok(name) = target.parse() else {
            return Err(ArgError::Value {
                option: Self::NAME.into(),
                value: target,
                allowed: FORMS.into(),
            });
        };
        self.name = name;
        Ok(())
    }

    fn target(&self) -> String {
        self.name.to_string()
    }

    fn changed(&self) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut changed = Vec::new();
        changed.extend(self.conf.as_deref().map(|path| ("conf", text(path))));
        changed.extend(self.id.clone().map(|id| ("id", id)));
        if self.read_only {
            changed.push(("readonly", "on".to_owned()));
        }
        if self.timeout != 0 {
            changed.push(("timeout", self.timeout.to_string()));
        }
        match &self.state {
            State::Usual => {}
            State::In(path) => changed.push(("state", text(path))),
            State::Off => changed.push(("state", OFF.to_owned())),
        }
        changed
    }

    fn open(&self, read_only: bool) -> Result<Arc<dyn Disk>, DiskError> {
        let read_only = read_only || self.read_only;
        Ok(Arc::new(RbdDisk::open(&self.clone().read_only(read_only))?))
    }

    /// Neither takes the lock nor notes anything.
    fn for_inspection(self) -> Self {
        self.read_only(true)
    }
}

#[cfg(test)]
mod tests {
    use virtio_blk_disks::disk_arg::{ArgError, DiskArg, DiskKind, DiskKinds};

    use super::*;

    fn parse(text: &str) -> Result<DiskArg, ArgError> {
        DiskKinds::new(&[DiskKind::of::<RbdOptions>()]).parse(text)
    }

    #[test]
    fn every_option_is_read_and_shown() {
        for text in [
            "rbd:pool/disk",
            "rbd:pool/space/disk@snap",
            "rbd:p/i,conf=/c,,d,id=u,readonly=on,timeout=30,state=/run/x",
            "rbd:p/i,state=off",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_could() {
        for (text, words) in [
            ("rbd:", "POOL/IMAGE"),
            ("rbd:disk", "POOL/NAMESPACE/IMAGE"),
            ("rbd:p/i,timeout=long", "a number"),
            ("rbd:p/i,user=x", "id"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn snapshots_are_read_only() {
        for (text, read_only) in [("p/i", false), ("p/i@s", true)] {
            let options = RbdOptions::new(text.parse().unwrap());
            assert_eq!(options.is_read_only(), read_only);
        }
    }
}
