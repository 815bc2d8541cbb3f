// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The disks on the command lines of these tools.

use std::path::PathBuf;
use std::str::FromStr;

use virtio_blk_core::disk::SECTOR_SIZE;
use virtio_blk_disks::ArgError;
use virtio_blk_disks::disk_arg::tree::Tree;
use virtio_blk_qcow2::Preallocation;

use crate::layers::ctl::bytes;

/// What an image's bytes mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// They are the guest's.
    Raw,
    /// They are tables, and data where these say.
    Qcow2,
}

impl Format {
    const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    fn of(word: &str) -> Result<Self, ArgError> {
        match word {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(ArgError::Format {
                format: word.to_owned(),
                known: "raw or qcow2".to_owned(),
            }),
        }
    }
}

/// The words of a disk, of which none is left over at the end.
struct Words {
    format: Format,
    path: PathBuf,
    options: Vec<(String, String)>,
}

impl Words {
    fn new(text: &str) -> Result<Self, ArgError> {
        let tree = Tree::disk(text)?;
        let format = Format::of(tree.kind.word())?;
        let path = tree.target.as_ref().map_or("", |target| target.word());
        if path.is_empty() {
            return Err(ArgError::Missing {
                format: format.name(),
                what: "PATH",
            });
        }
        let options = tree.options.iter();
        Ok(Self {
            format,
            path: path.into(),
            options: options
                .map(|entry| (entry.key.name.clone(), entry.word().to_owned()))
                .collect(),
        })
    }

    /// The value of an option, if it is given.
    fn take(&mut self, option: &str) -> Option<String> {
        let place = self.options.iter().position(|(name, _)| name == option)?;
        Some(self.options.remove(place).1)
    }

    /// The value as `read` understands it.
    fn read<T>(
        &mut self,
        option: &'static str,
        allowed: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ArgError> {
        let Some(value) = self.take(option) else {
            return Ok(None);
        };
        match read(&value) {
            Some(value) => Ok(Some(value)),
            None => Err(ArgError::Value {
                option: option.into(),
                value,
                allowed: allowed.into(),
            }),
        }
    }

    fn switch(&mut self, option: &'static str) -> Result<bool, ArgError> {
        let value = self.read(option, "on or off", |word| match word {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        })?;
        Ok(value.unwrap_or_default())
    }

    /// Refuses what was not taken.
    fn end(self, taken: &[&str], allowed: &'static str) -> Result<PathBuf, ArgError> {
        match self.options.into_iter().next() {
            None => Ok(self.path),
            Some((option, _)) if taken.contains(&option.as_str()) => {
                Err(ArgError::Twice { option })
            }
            Some((option, _)) => Err(ArgError::Option {
                option,
                format: self.format.name(),
                allowed: allowed.into(),
            }),
        }
    }
}

/// An image that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its format.
    pub format: Format,
    /// Its file.
    pub path: PathBuf,
    /// The files that it names are opened, too.
    pub backing: bool,
}

impl FromStr for Image {
    type Err = ArgError;

    fn from_str(text: &str) -> Result<Self, ArgError> {
        let mut words = Words::new(text)?;
        let format = words.format;
        if format == Format::Raw {
            let path = words.end(&[], "it has none here")?;
            let backing = false;
            return Ok(Self {
                format,
                path,
                backing,
            });
        }
        let backing = words.read("backing", "allow or deny", |word| match word {
            "allow" => Some(true),
            "deny" => Some(false),
            _ => None,
        })?;
        Ok(Self {
            format,
            path: words.end(&["backing"], "it has backing here")?,
            backing: backing.unwrap_or_default(),
        })
    }
}

/// A backing file of a new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name as the image is to have it.
    pub name: String,
    /// Its format, which is never guessed.
    pub format: Format,
}

impl Backing {
    /// The format's name.
    pub const fn format_name(&self) -> &'static str {
        self.format.name()
    }
}

/// An image that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// Its format.
    pub format: Format,
    /// Its file.
    pub path: PathBuf,
    /// Bytes. `None`: those of the backing file.
    pub size: Option<u64>,
    /// Space that it gets at once.
    pub preallocation: Preallocation,
    /// The backing file.
    pub backing: Option<Backing>,
    /// Bytes of a cluster.
    pub cluster: Option<u64>,
    /// Clusters have subclusters.
    pub extended_l2: bool,
    /// zstd in place of zlib.
    pub zstd: bool,
    /// Bits of a refcount.
    pub refcount_bits: Option<u32>,
    /// QEMU may leave refcounts out of date.
    pub lazy_refcounts: bool,
    /// Where its data is, if that is another file.
    pub data_file: Option<PathBuf>,
    /// That file is a raw image.
    pub data_file_raw: bool,
}

/// The options of a new raw image, and those that a qcow2 image has besides.
const RAW: [&str; 2] = ["size", "preallocation"];
const QCOW2: [&str; 11] = [
    "size",
    "preallocation",
    "backing",
    "backing_format",
    "cluster",
    "extended_l2",
    "compression",
    "refcount_bits",
    "lazy_refcounts",
    "data_file",
    "data_file_raw",
];

impl FromStr for NewImage {
    type Err = ArgError;

    fn from_str(text: &str) -> Result<Self, ArgError> {
        let mut words = Words::new(text)?;
        let format = words.format;
        let size = match words.take("size") {
            Some(size) => Some(bytes(&size)?),
            None => None,
        };
        let allowed = match format {
            Format::Raw => "off, falloc or full",
            Format::Qcow2 => "off, metadata, falloc or full",
        };
        let preallocation = words.read("preallocation", allowed, |word| match word {
            "off" => Some(Preallocation::Off),
            "metadata" if format == Format::Qcow2 => Some(Preallocation::Metadata),
            "falloc" => Some(Preallocation::Falloc),
            "full" => Some(Preallocation::Full),
            _ => None,
        })?;
        let mut new = Self {
            format,
            path: PathBuf::new(),
            size,
            preallocation: preallocation.unwrap_or_default(),
            backing: None,
            cluster: None,
            extended_l2: false,
            zstd: false,
            refcount_bits: None,
            lazy_refcounts: false,
            data_file: None,
            data_file_raw: false,
        };
        new.path = match format {
            Format::Raw => words.end(&RAW, "it has size and preallocation")?,
            Format::Qcow2 => {
                new.read_qcow2(&mut words)?;
                words.end(
                    &QCOW2,
                    "it has size, preallocation, backing, backing_format, cluster, extended_l2, compression, refcount_bits, \
                     lazy_refcounts, data_file and data_file_raw",
                )?
            }
        };
        if new.size.is_none() && new.backing.is_none() {
            return Err(missing("size", text));
        }
        Ok(new)
    }
}

/// The error of a disk that lacks an option.
fn missing(part: &'static str, text: &str) -> ArgError {
    ArgError::MissingPart {
        option: text.to_owned(),
        part,
    }
}

impl NewImage {
    fn read_qcow2(&mut self, words: &mut Words) -> Result<(), ArgError> {
        let backing = words.take("backing");
        let format = words.read("backing_format", "raw or qcow2", |word| {
            Format::of(word).ok()
        })?;
        self.backing = match (backing, format) {
            (None, None) => None,
            (Some(name), Some(format)) => Some(Backing { name, format }),
            // It is never guessed, as a guest could choose it.
            (Some(name), None) => return Err(missing("backing_format", &name)),
            (None, Some(_)) => return Err(missing("backing", "backing_format")),
        };
        let cluster = words.read("cluster", "a power of two from 512 to 2M", |word| {
            bytes(word)
                .ok()
                .filter(|bytes| bytes.is_power_of_two() && (SECTOR_SIZE..=2 << 20).contains(bytes))
        })?;
        self.cluster = cluster;
        self.extended_l2 = words.switch("extended_l2")?;
        let zstd = words.read("compression", "zlib or zstd", |word| match word {
            "zlib" => Some(false),
            "zstd" => Some(true),
            _ => None,
        })?;
        self.zstd = zstd.unwrap_or_default();
        self.refcount_bits = words.read("refcount_bits", "1, 2, 4, 8, 16, 32 or 64", |word| {
            let bits: u32 = word.parse().ok()?;
            (bits.is_power_of_two() && bits <= 64).then_some(bits)
        })?;
        self.lazy_refcounts = words.switch("lazy_refcounts")?;
        self.data_file = words.read("data_file", "the path of a file", |word| {
            (!word.is_empty()).then(|| word.into())
        })?;
        self.data_file_raw = words.switch("data_file_raw")?;
        if self.data_file_raw && self.data_file.is_none() {
            return Err(missing("data_file", "data_file_raw"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
