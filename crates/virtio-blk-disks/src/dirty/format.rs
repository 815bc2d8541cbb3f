// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A bitmap as bytes: saved, or in the file that goes along with a served disk.
//!
//! | bytes | what |
//! |---|---|
//! | 0 | `vblkdrty` |
//! | 8 | version, `u32` |
//! | 12 | flags, `u32`: 1 incomplete, 2 in use, 4 in use and synced, 8 others may change the disk, 16 in use with a disk that is handed over |
//! | 16 | granularity |
//! | 24 | bytes of the disk |
//! | 32 | id, then the number of the generation |
//! | 48 | the boot of the host in which it was written, 16 bytes |
//! | 64 | checksum of the regions and words, unless it is in use |
//! | 72 | the bitmap's name, 64 bytes filled up with zeroes |
//! | 136 | with flag 8: a stamp of the disk's content as it was left, of use in that boot, 32 bytes; or zeroes |
//! | 4088 | checksum of the header |
//! | 4096 | a bit for each region of the disk, while it is in use: whether it may have been written to |
//! | 8192 | a bit for each block |
//!
//! Numbers are little-endian and of 64 bits; what is not named is zero.

use virtio_blk_core::disk::ContentStamp;

use super::changes::Generation;
use super::error::BitmapError;
use super::words::BITS;

/// Bytes of the header, and of the regions.
pub(super) const PAGE: usize = 4096;
/// Where the words begin.
pub(super) const WORDS_AT: usize = 2 * PAGE;
/// The most bytes of a whole file.
pub(super) const MAX_BYTES: u64 = (1 << 30) + WORDS_AT as u64;
/// Regions there are bits for.
pub(super) const MAX_REGIONS: u64 = PAGE as u64 * 8;
/// The smallest region.
const MIN_REGION: u64 = 16 << 20;
/// The longest name.
const NAME: usize = 64;

const MAGIC: [u8; 8] = *b"vblkdrty";
const VERSION: u32 = 2;
const INCOMPLETE: u32 = 1;
const IN_USE: u32 = 2;
const SYNCED: u32 = 4;
const UNSEEN: u32 = 8;
const HANDS_OVER: u32 = 16;
const STAMP_AT: usize = 136;
const SUM_AT: usize = PAGE - 8;

/// Names a boot of the host. `None`: it is not known.
pub(super) type Boot = Option<[u8; 16]>;

/// The largest number of blocks of one bitmap: 1 GiB of bits.
const MAX_BLOCKS: u64 = 1 << 33;

/// Words for a disk of `size` bytes.
pub(super) fn words_for(size: u64, granularity: u64) -> Result<usize, BitmapError> {
    if !granularity.is_power_of_two() || granularity < 512 {
        return Err(BitmapError::Granularity(granularity));
    }
    let blocks = size.div_ceil(granularity);
    let words = usize::try_from(blocks.div_ceil(BITS)).ok();
    (words.filter(|_| blocks <= MAX_BLOCKS)).ok_or(BitmapError::TooLarge { size, granularity })
}

/// A bitmap at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) name: String,
    pub(super) granularity: u64,
    /// Bytes of the disk.
    pub(super) size: u64,
    pub(super) words: Vec<u64>,
    pub(super) incomplete: Option<&'static str>,
    pub(super) unseen: Option<Unseen>,
    pub(super) generation: Generation,
}

/// A time in which others may change the disk. With what names its content at the beginning, if anything does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unseen(pub(super) Option<ContentStamp>);

impl Marks {
    /// Leaves out words and bits of blocks behind the end.
    pub(super) fn trim(&mut self) {
        let words = words_for(self.size, self.granularity).unwrap_or(0);
        self.words.truncate(words);
        let rest = self.size.div_ceil(self.granularity) % BITS;
        if let (Some(last), true) = (self.words.last_mut(), rest != 0) {
            *last &= u64::MAX >> (BITS - rest);
        }
    }
}

/// The use of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) boot: Boot,
    /// Regions are stable before anything in them is written.
    pub(super) synced: bool,
    /// Others may have the disk once this use has ended, whatever the file could be told of that.
    pub(super) hands_over: bool,
}

/// What a file says.
pub(super) struct Decoded {
    /// Taken at its word.
    pub(super) marks: Marks,
    /// The boot in which it was written.
    pub(super) boot: Boot,
    /// It was not closed.
    pub(super) in_use: Option<Use>,
    /// The bits of the regions.
    pub(super) regions: Vec<u8>,
    /// What is wrong with it, though it is ours.
    pub(super) damage: Option<&'static str>,
}

/// Bytes of a region: a power of two, and whole words.
pub(super) fn region_bytes(size: u64, granularity: u64) -> u64 {
    let few = size.div_ceil(MAX_REGIONS).max(1).next_power_of_two();
    few.max(MIN_REGION).max(granularity.saturating_mul(BITS))
}

/// FNV-1a over words: finds accidents, not forgeries.
fn sum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x0100_0000_01b3);
    bytes.chunks(8).fold(0xcbf2_9ce4_8422_2325, |at, chunk| {
        let mut le = [0; 8];
        for (to, from) in le.iter_mut().zip(chunk) {
            *to = *from;
        }
        let at = step(at, u64::from_le_bytes(le));
        at ^ (at >> 32)
    })
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(value) {
        *to = *from;
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut le = [0; 8];
    put(&mut le, 0, bytes.get(at..at + 8).unwrap_or_default());
    u64::from_le_bytes(le)
}

/// The header of a file that is in use.
pub(super) fn header(marks: &Marks, used: Use) -> Vec<u8> {
    header_of(marks, used.boot, Ok(used))
}

/// The header of a file that is in use, or whose body has a checksum.
fn header_of(marks: &Marks, boot: Boot, of: Result<Use, u64>) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    let mut flags = match marks.incomplete {
        Some(_) => INCOMPLETE,
        None => 0,
    };
    if let Some(Unseen(left)) = marks.unseen {
        flags |= UNSEEN;
        let parts = left.map_or([0; 4], |ContentStamp(parts)| parts);
        for (part, at) in parts.into_iter().zip((STAMP_AT..).step_by(8)) {
            put(&mut bytes, at, &part.to_le_bytes());
        }
    }
    match of {
        Ok(used) => {
            flags |= IN_USE;
            flags |= if used.synced { SYNCED } else { 0 };
            flags |= if used.hands_over { HANDS_OVER } else { 0 };
        }
        Err(body) => put(&mut bytes, 64, &body.to_le_bytes()),
    }
    put(&mut bytes, 48, &boot.unwrap_or_default());
    put(&mut bytes, 0, &MAGIC);
    put(&mut bytes, 8, &VERSION.to_le_bytes());
    put(&mut bytes, 12, &flags.to_le_bytes());
    put(&mut bytes, 16, &marks.granularity.to_le_bytes());
    put(&mut bytes, 24, &marks.size.to_le_bytes());
    put(&mut bytes, 32, &marks.generation.id.to_le_bytes());
    put(&mut bytes, 40, &marks.generation.number.to_le_bytes());
    put(
        &mut bytes,
        72,
        marks
            .name
            .as_bytes()
            .get(..NAME)
            .unwrap_or(marks.name.as_bytes()),
    );
    let header = sum(bytes.get(..SUM_AT).unwrap_or_default());
    put(&mut bytes, SUM_AT, &header.to_le_bytes());
    bytes
}

/// The whole of a file that is closed, with these bits for regions.
pub(super) fn encode(marks: &Marks, boot: Boot, regions: &[u8]) -> Vec<u8> {
    let mut body = vec![0; PAGE];
    put(&mut body, 0, regions);
    body.extend(marks.words.iter().flat_map(|word| word.to_le_bytes()));
    let mut bytes = header_of(marks, boot, Err(sum(&body)));
    bytes.append(&mut body);
    bytes
}

/// Reads a file.
///
/// # Errors
/// It is something else, or of another version. Nothing larger than `bytes` is allocated.
pub(super) fn decode(bytes: &[u8]) -> Result<Decoded, BitmapError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(BitmapError::Saved("it begins otherwise"));
    }
    let (header, body) = (bytes.split_at_checked(PAGE))
        .filter(|(_, body)| body.len() >= PAGE)
        .ok_or(BitmapError::Saved("it is too short"))?;
    if number(header, 8) as u32 != VERSION {
        return Err(BitmapError::Saved("its version is unknown"));
    }
    let (regions, words) = body.split_at_checked(PAGE).unwrap_or_default();
    let flags = (number(header, 8) >> 32) as u32;
    let (granularity, size) = (number(header, 16), number(header, 24));
    let name = header.get(72..72 + NAME).unwrap_or_default();
    let name: Vec<u8> = name.iter().copied().take_while(|byte| *byte != 0).collect();
    let mut boot = [0; 16];
    put(&mut boot, 0, header.get(48..64).unwrap_or_default());
    let boot = Some(boot).filter(|boot| *boot != [0; 16]);
    let in_use = (flags & IN_USE != 0).then_some(Use {
        boot,
        synced: flags & SYNCED != 0,
        hands_over: flags & HANDS_OVER != 0,
    });
    let unseen = (flags & UNSEEN != 0).then(|| {
        let stamp = [0, 8, 16, 24].map(|at| number(header, STAMP_AT + at));
        Unseen((stamp != [0; 4]).then_some(ContentStamp(stamp)))
    });
    let words: Vec<u64> = words.chunks_exact(8).map(|word| number(word, 0)).collect();
    let marks = Marks {
        name: String::from_utf8_lossy(&name).into_owned(),
        granularity,
        size,
        incomplete: (flags & INCOMPLETE != 0).then_some("it was so when it was written"),
        unseen,
        generation: Generation {
            id: number(header, 32),
            number: number(header, 40),
        },
        words,
    };
    let damage = if number(header, SUM_AT) != sum(header.get(..SUM_AT).unwrap_or_default()) {
        Some("its file is damaged: the checksum of its header is wrong")
    } else if flags & !(INCOMPLETE | IN_USE | SYNCED | UNSEEN | HANDS_OVER) != 0 {
        Some("its file is damaged: it has unknown flags")
    } else if !body.len().is_multiple_of(8)
        || words_for(size, granularity).ok() != Some(marks.words.len())
    {
        Some("its file is damaged: its length does not fit its size")
    } else if in_use.is_none() && number(header, 64) != sum(body) {
        Some("its file is damaged: the checksum of its marks is wrong")
    } else if has_strays(&marks) {
        Some("its file is damaged: it marks blocks behind the end")
    } else {
        None
    };
    Ok(Decoded {
        marks,
        boot,
        in_use,
        regions: regions.to_vec(),
        damage,
    })
}

fn has_strays(marks: &Marks) -> bool {
    let rest = marks.size.div_ceil(marks.granularity) % BITS;
    rest != 0 && marks.words.last().is_some_and(|last| last >> rest != 0)
}
