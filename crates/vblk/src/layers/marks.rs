// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a control socket does to the dirty bitmaps of a served disk.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use virtio_blk_disks::dirty::{Changes, DirtyBitmap, TakeToken};

use super::ExportedDisk;
use super::act::Answer;

/// The largest saved bitmap, and more than that.
const MAX_SAVED: u64 = (1 << 30) + (64 << 10);

/// What to do with a dirty bitmap.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Dirty {
    /// Its name.
    pub bitmap: String,
    /// Take the marks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take: bool,
    /// Forget what was taken under this token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Give it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<String>,
    /// Forget all marks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new: bool,
    /// Write the marks to this file, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub save: Option<PathBuf>,
    /// Add the marks of this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<PathBuf>,
}

/// Writes a file as a whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut next = path.as_os_str().to_owned();
    next.push(".new");
    let written = File::create(&next).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&next, path)?;
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    });
    if written.is_err() {
        // What failed first is the answer.
        let _ = fs::remove_file(&next);
    }
    written
}

fn load(bitmap: &DirtyBitmap, path: &Path) -> Result<(), Box<dyn Error>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    if file.take(MAX_SAVED + 1).read_to_end(&mut bytes)? as u64 > MAX_SAVED {
        return Err("it is too large for a saved dirty bitmap".into());
    }
    Ok(bitmap.load(&bytes)?)
}

fn named(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

/// What a bitmap is, and these changes.
fn describe(
    name: &str,
    bitmap: &DirtyBitmap,
    token: Option<TakeToken>,
    changes: &Changes,
) -> Value {
    json!({
        "bitmap": name,
        "generation": changes.generation.to_string(),
        "incomplete": changes.incomplete.is_some(),
        "why": changes.incomplete,
        "granularity": bitmap.granularity(),
        "size": changes.size,
        "bytes": changes.ranges.iter().map(|(_, len)| len).sum::<u64>(),
        "token": token.map(|token| token.to_string()),
        "ranges": changes.ranges,
    })
}

/// What a bitmap is now, and what was done to it.
fn done(bitmap: &DirtyBitmap, what: &str, value: impl Serialize) -> Answer {
    let changes = bitmap.changes();
    let mut answer = json!({
        "generation": changes.generation.to_string(),
        "incomplete": changes.incomplete.is_some(),
        "bytes": bitmap.dirty_bytes(),
    });
    if let Some(answer) = answer.as_object_mut() {
        answer.insert(what.to_owned(), serde_json::to_value(value)?);
    }
    Ok(answer)
}

impl Dirty {
    /// Checks that it is one thing.
    fn check(&self) -> Result<(), &'static str> {
        let others = [
            self.commit.is_some(),
            self.abort.is_some(),
            self.new,
            self.load.is_some(),
        ];
        let others = others.into_iter().filter(|given| *given).count();
        match (others, self.take || self.save.is_some()) {
            (0, _) | (1, false) => Ok(()),
            _ => Err("give one of take, commit, abort, new, save and load; save goes with take"),
        }
    }
}

/// Takes the marks, also into a file.
fn take(name: &str, bitmap: &DirtyBitmap, path: Option<&Path>) -> Answer {
    let take = bitmap.take();
    let mut answer = describe(name, bitmap, Some(take.token), &take.changes);
    let Some(path) = path else {
        return Ok(answer);
    };
    if let Err(error) = replace(path, &bitmap.save(name)) {
        // Unless somebody else has taken it meanwhile, with all there is.
        let _ = bitmap.abort(take.token);
        return Err(named(path, &error).into());
    }
    if let Some(answer) = answer.as_object_mut() {
        answer.insert("saved".to_owned(), serde_json::to_value(path)?);
    }
    Ok(answer)
}

/// Shows what a dirty bitmap has marked, or does something to it.
pub(super) fn dirty(served: &ExportedDisk, what: &Dirty) -> Answer {
    what.check()?;
    let name = what.bitmap.as_str();
    let found = served.stack.dirty(name);
    let bitmap = found
        .and_then(|disk| disk.bitmap(name))
        .ok_or_else(|| format!("there is no dirty bitmap `{name}`"))?;
    if what.take {
        return take(name, &bitmap, what.save.as_deref());
    }
    if let Some(token) = &what.commit {
        bitmap.commit(token.parse()?)?;
        return done(&bitmap, "committed", token);
    }
    if let Some(token) = &what.abort {
        bitmap.abort(token.parse()?)?;
        return done(&bitmap, "aborted", token);
    }
    if what.new {
        bitmap.clear()?;
        return done(&bitmap, "new", true);
    }
    if let Some(path) = &what.load {
        load(&bitmap, path).map_err(|error| named(path, &error))?;
        return done(&bitmap, "loaded", path);
    }
    if let Some(path) = &what.save {
        replace(path, &bitmap.save(name)).map_err(|error| named(path, &error))?;
        return done(&bitmap, "saved", path);
    }
    Ok(describe(name, &bitmap, bitmap.pending(), &bitmap.changes()))
}
