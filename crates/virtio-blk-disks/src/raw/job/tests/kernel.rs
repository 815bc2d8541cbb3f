// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A kernel of our own.

use std::collections::VecDeque;

use super::SIZE;
use crate::raw::job::{Call, MAX_SEGMENTS};

/// What the kernel does with one call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mood {
    /// All of it.
    Whole,
    /// At most so many bytes of a transfer.
    Short(usize),
    /// This error.
    Fail(i32),
}

/// A kernel: a file in memory, and what it does with the coming calls (then `Whole`).
pub(super) struct Kernel {
    pub file: Vec<u8>,
    pub moods: VecDeque<Mood>,
    memory: usize,
    offset: usize,
    /// What it was asked, in short.
    pub log: Vec<String>,
}

impl Kernel {
    pub fn new(moods: impl IntoIterator<Item = Mood>, memory: usize, offset: usize) -> Self {
        let mut file = Vec::with_capacity(SIZE);
        for sector in 1..=SIZE / 512 {
            file.resize(sector * 512, sector as u8);
        }
        Self {
            file,
            moods: moods.into_iter().collect(),
            memory,
            offset,
            log: Vec::new(),
        }
    }

    fn transfer(&mut self, segments: &[libc::iovec], at: u64, read: bool, mood: Mood) -> i32 {
        assert!((1..=MAX_SEGMENTS).contains(&segments.len()));
        assert!(segments.iter().map(|s| s.iov_len).sum::<usize>() <= 0x7fff_f000);
        let aligned = segments.iter().all(|s| {
            (s.iov_base as usize).is_multiple_of(self.memory)
                && s.iov_len.is_multiple_of(self.offset)
        });
        if !aligned || !(at as usize).is_multiple_of(self.offset) {
            return -libc::EINVAL;
        }
        let mut left = match mood {
            Mood::Short(bytes) => bytes,
            _ => usize::MAX,
        };
        let mut at = at as usize;
        let start = at;
        for segment in segments {
            let len = segment.iov_len.min(left).min(self.file.len() - at);
            let base = segment.iov_base.cast::<u8>();
            let bytes = &mut self.file[at..at + len];
            // SAFETY: the job says that the segment is valid; it doesn't overlap `file`.
            unsafe {
                if read {
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), base, len);
                } else {
                    std::ptr::copy_nonoverlapping(base, bytes.as_mut_ptr(), len);
                }
            }
            at += len;
            left -= len;
        }
        (at - start) as i32
    }

    pub fn call(&mut self, call: Call<'_>) -> i32 {
        let mood = self.moods.pop_front().unwrap_or(Mood::Whole);
        self.log.push(match call {
            Call::Read { .. } => "read".into(),
            Call::Write { dsync: false, .. } => "write".into(),
            Call::Write { dsync: true, .. } => "write+dsync".into(),
            Call::Sync => "sync".into(),
            Call::Allocate { mode, .. } => format!("{mode:?}"),
            Call::Erase { how, .. } => format!("{how:?}"),
        });
        if let Mood::Fail(errno) = mood {
            return -errno;
        }
        match call {
            Call::Read { segments, offset } => self.transfer(segments, offset, true, mood),
            Call::Write {
                segments, offset, ..
            } => self.transfer(segments, offset, false, mood),
            Call::Allocate { offset, len, .. } | Call::Erase { offset, len, .. } => {
                self.file[offset as usize..(offset + len) as usize].fill(0);
                0
            }
            Call::Sync => 0,
        }
    }
}
