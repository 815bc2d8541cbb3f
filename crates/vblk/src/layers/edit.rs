// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a control socket does to the layers of a served disk.

use std::error::Error;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use virtio_blk_disks::dirty::DirtyOptions;
use virtio_blk_disks::stack::{LayerArg, StackError};

use super::act::{Answer, settle};
use super::{ExportedDisk, LAYERS};

/// How long a change of layers is waited for; it continues afterwards.
const CHANGE: Duration = Duration::from_secs(5);

/// What to do to layers.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Edit {
    /// All there shall be, from the medium upwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<Vec<String>>,
    /// These go, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
    /// These get these settings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub change: Vec<String>,
    /// These come on top.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<String>,
    /// Dirty bitmaps that are not named may go, with their marks.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub drop_bitmaps: bool,
}

fn list(layers: &[LayerArg]) -> String {
    match layers {
        [] => "there is none".to_owned(),
        _ => {
            let texts: Vec<String> = layers.iter().map(ToString::to_string).collect();
            format!("there is {}", texts.join(", "))
        }
    }
}

/// The place of the one layer that is meant.
fn find(
    layers: &[LayerArg],
    text: &str,
    is_meant: impl Fn(&LayerArg) -> bool,
) -> Result<usize, String> {
    let meant: Vec<usize> = (0..)
        .zip(layers)
        .filter(|(_, layer)| is_meant(layer))
        .map(|(index, _)| index)
        .collect();
    match meant.as_slice() {
        [one] => Ok(*one),
        [] => Err(format!("there is no layer `{text}`: {}", list(layers))),
        _ => Err(format!("`{text}` names several layers: {}", list(layers))),
    }
}

impl Edit {
    fn is_empty(&self) -> bool {
        let lists = [&self.remove, &self.change, &self.add];
        self.set.is_none() && lists.iter().all(|list| list.is_empty())
    }

    /// What becomes of the layers.
    fn apply(&self, old: Vec<LayerArg>) -> Result<Vec<LayerArg>, Box<dyn Error>> {
        let mut layers = match &self.set {
            None => old.clone(),
            Some(set) => set
                .iter()
                .map(|text| LAYERS.parse(text))
                .collect::<Result<_, _>>()?,
        };
        let mut dropped = Vec::new();
        for text in &self.remove {
            let at = find(&layers, text, |layer| layer.is_named(text))?;
            dropped.push(layers.remove(at));
        }
        for text in &self.change {
            let new = LAYERS.parse(text)?;
            let at = find(&layers, text, |layer| layer.is_same(&new));
            let at = at.map_err(|error| format!("{error}; --add puts it on top"))?;
            if let Some(layer) = layers.get_mut(at) {
                *layer = new.or(layer);
            }
        }
        for text in &self.add {
            layers.push(LAYERS.parse(text)?);
        }
        let is_bitmap = |layer: &&LayerArg| layer.options::<DirtyOptions>().is_some();
        let stays = |layer: &&LayerArg| layers.contains(layer) || dropped.contains(layer);
        let lost = old.iter().filter(is_bitmap).find(|layer| !stays(layer));
        if let Some(lost) = lost.filter(|_| !self.drop_bitmaps) {
            return Err(format!(
                "that would drop the dirty bitmap `{lost}` with its marks: name it as well, or say --drop-bitmaps"
            )
            .into());
        }
        Ok(layers)
    }
}

/// Shows the layers, or changes them.
pub(super) fn layers(served: &ExportedDisk, edit: &Edit) -> Answer {
    let stack = &served.stack;
    let settled = if edit.is_empty() {
        stack.is_settled()?
    } else {
        let edited = |layers| edit.apply(layers).map_err(Failed::Edit);
        stack.edit(edited).map_err(Box::<dyn Error>::from)?;
        settle(stack, CHANGE)?
    };
    let layers: Vec<String> = stack.layers().iter().map(ToString::to_string).collect();
    Ok(json!({"layers": layers, "settled": settled}))
}

/// Why layers were not changed.
enum Failed {
    Edit(Box<dyn Error>),
    Stack(StackError),
}

impl From<StackError> for Failed {
    fn from(error: StackError) -> Self {
        Self::Stack(error)
    }
}

impl From<Failed> for Box<dyn Error> {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Edit(error) => error,
            Failed::Stack(error) => error.into(),
        }
    }
}
