// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a stream of bytes is cut into descriptors. A device must not care (virtio 1.4, 2.7.4).

use vm_memory::GuestAddress;

use crate::Segment;
use crate::rng::Rng;

/// How a request's readable and writable streams are cut into descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing<'a> {
    /// One descriptor for the header, one for each segment of data, one for the status.
    #[default]
    Separate,
    /// As few as possible: header with data, and data with status, where they are adjacent.
    Merged,
    /// Joined as `Merged`, then cut into pieces of these lengths; what is left of each joined part after
    /// the last is one piece. A length of 0 makes an empty descriptor.
    Cut {
        /// Lengths of the pieces the device reads.
        readable: &'a [u32],
        /// Lengths of the pieces the device writes.
        writable: &'a [u32],
    },
    /// Joined as `Merged`, then cut in random places, with an empty descriptor now and then.
    Random {
        /// The same seed cuts the same way.
        seed: u64,
        /// Cuts in each of the two streams.
        cuts: u16,
    },
}

impl<'a> Framing<'a> {
    /// Cuts both streams, in place. `scratch` is overwritten.
    pub(super) fn apply(
        &self,
        readable: &mut Vec<Segment>,
        writable: &mut Vec<Segment>,
        scratch: &mut Vec<Segment>,
    ) {
        if matches!(self, Self::Separate) {
            return;
        }
        merge(readable);
        merge(writable);
        match *self {
            Self::Separate | Self::Merged => {}
            Self::Cut {
                readable: first,
                writable: second,
            } => {
                cut(readable, scratch, &mut first.iter().copied());
                cut(writable, scratch, &mut second.iter().copied());
            }
            Self::Random { seed, cuts } => {
                let mut rng = Rng::new(seed);
                for stream in [readable, writable] {
                    let bytes = stream.iter().map(|s| u64::from(s.len)).sum();
                    let mut lengths = (0..cuts).map(|_| random_len(&mut rng, bytes));
                    cut(stream, scratch, &mut lengths);
                }
            }
        }
    }
}

/// A length for a piece of a stream of `bytes`: short ones, where headers and status are cut, as often
/// as ones of any length.
fn random_len(rng: &mut Rng, bytes: u64) -> u32 {
    let bound = match rng.below(8) {
        0 => 0,
        1..=4 => 24,
        _ => bytes,
    };
    rng.below(bound.min(bytes) + 1) as u32
}

/// Joins adjacent segments.
fn merge(list: &mut Vec<Segment>) {
    list.dedup_by(|next, last| {
        let adjacent = last.addr.0.checked_add(last.len.into()) == Some(next.addr.0);
        match last.len.checked_add(next.len) {
            Some(len) if adjacent => {
                last.len = len;
                true
            }
            _ => false,
        }
    });
}

/// Cuts `list` into pieces of `lengths`, or shorter ones where a segment ends.
fn cut(
    list: &mut Vec<Segment>,
    scratch: &mut Vec<Segment>,
    lengths: &mut impl Iterator<Item = u32>,
) {
    scratch.clear();
    for segment in list.iter() {
        let mut rest = *segment;
        while rest.len > 0 {
            let len = lengths.next().unwrap_or(rest.len).min(rest.len);
            scratch.push(Segment::new(rest.addr, len));
            // Stays inside the segment.
            rest.addr = GuestAddress(rest.addr.0.wrapping_add(len.into()));
            rest.len -= len;
        }
    }
    std::mem::swap(list, scratch);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seg(addr: u64, len: u32) -> Segment {
        Segment::new(GuestAddress(addr), len)
    }

    fn frame(
        framing: Framing<'_>,
        readable: &[Segment],
        writable: &[Segment],
    ) -> [Vec<Segment>; 2] {
        let (mut r, mut w) = (readable.to_vec(), writable.to_vec());
        framing.apply(&mut r, &mut w, &mut Vec::new());
        [r, w]
    }

    #[test]
    fn separate_leaves_everything() {
        let (r, w) = ([seg(0, 16), seg(16, 512)], [seg(600, 0), seg(600, 1)]);
        assert_eq!(frame(Framing::Separate, &r, &w), [r.to_vec(), w.to_vec()]);
    }

    #[test]
    fn merged_joins_what_is_adjacent_only() {
        let r = [seg(0, 16), seg(16, 512), seg(529, 1)];
        let w = [seg(u64::MAX, 1), seg(0, 1), seg(1, u32::MAX)];
        assert_eq!(
            frame(Framing::Merged, &r, &w),
            [
                vec![seg(0, 528), seg(529, 1)],
                vec![seg(u64::MAX, 1), seg(0, 1), seg(1, u32::MAX)]
            ]
        );
    }

    #[test]
    fn cut_follows_the_lengths() {
        let framing = Framing::Cut {
            readable: &[4, 0, 100, 3],
            writable: &[],
        };
        assert_eq!(
            frame(
                framing,
                &[seg(0, 16), seg(100, 10)],
                &[seg(0, 5), seg(5, 1)]
            ),
            [
                vec![seg(0, 4), seg(4, 0), seg(4, 12), seg(100, 3), seg(103, 7)],
                vec![seg(0, 6)]
            ]
        );
    }

    #[test]
    fn random_keeps_the_bytes_and_follows_the_seed() {
        let (r, w) = ([seg(0, 16), seg(4096, 8192)], [seg(100_000, 513)]);
        let mut kinds = std::collections::HashSet::new();
        for seed in 0..100 {
            let framing = Framing::Random { seed, cuts: 5 };
            let [first, second] = frame(framing, &r, &w);
            assert_eq!(frame(framing, &r, &w), [first.clone(), second.clone()]);
            assert!(first.len() <= 7 && second.len() <= 6);
            // Joined again it is what it was.
            assert_eq!(
                frame(Framing::Merged, &first, &second),
                frame(Framing::Merged, &r, &w)
            );
            kinds.insert(format!("{first:?}"));
        }
        assert!(kinds.len() > 90, "{} different cuts", kinds.len());
    }
}
