// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A slice: consecutive entries of an L2 table, which are read, kept and locked together.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use crate::format::{Entry, Geometry};
use crate::job::Job;

/// A slice of an L2 table. There is one object at most for each slice, and what is in it is what is in the file.
pub struct Slice {
    /// Its number, counted over all L2 tables.
    pub number: u64,
    /// Its content.
    pub state: Mutex<State>,
    /// It was used since somebody looked for one to throw out.
    pub used: AtomicBool,
}

/// A cluster that is being copied, or given its place: its entry is not to be changed by anybody else.
#[derive(Debug)]
struct Transit {
    index: usize,
    /// Where the entry will refer to, if data may be written there meanwhile.
    host: Option<u64>,
    /// What waits for the end of it.
    waiting: Vec<Job>,
}

/// What is in a slice.
#[derive(Debug, Default)]
pub struct State {
    /// The L1 entry through which the table is reached. `None`: the slice was not read yet.
    pub l1: Option<u64>,
    /// The entries, a word or two each.
    words: Vec<u64>,
    transits: Vec<Transit>,
}

impl Slice {
    /// One that was not read yet.
    pub fn new(number: u64) -> Arc<Self> {
        Arc::new(Self {
            number,
            state: Mutex::default(),
            used: AtomicBool::new(true),
        })
    }
}

impl State {
    /// Takes over what was read, `None` for a table that is not there.
    pub fn fill(&mut self, geometry: Geometry, l1: u64, bytes: Option<&[u8]>) {
        self.words = match bytes {
            Some(bytes) => (0..bytes.len())
                .step_by(8)
                .map(|at| crate::format::be64(bytes, at))
                .collect(),
            None => vec![0; (geometry.slice() / 8) as usize],
        };
        self.l1 = Some(l1);
    }

    /// An entry.
    pub fn get(&self, geometry: Geometry, index: usize) -> Entry {
        let at = index * geometry.words();
        let word = |at: usize| self.words.get(at).copied().unwrap_or(0);
        Entry {
            word: word(at),
            bits: if geometry.extended { word(at + 1) } else { 0 },
        }
    }

    /// Sets an entry.
    pub fn set(&mut self, geometry: Geometry, index: usize, entry: Entry) {
        let at = index * geometry.words();
        if let Some(word) = self.words.get_mut(at) {
            *word = entry.word;
        }
        if geometry.extended
            && let Some(bits) = self.words.get_mut(at + 1)
        {
            *bits = entry.bits;
        }
    }

    /// Bytes of the slice, as in the file.
    pub fn bytes(&self, range: std::ops::Range<usize>) -> Vec<u8> {
        let words = self.words.get(range.start / 8..range.end / 8);
        (words.unwrap_or_default().iter())
            .flat_map(|word| word.to_be_bytes())
            .collect()
    }

    /// Whether a cluster is being copied.
    pub fn in_transit(&self, index: usize) -> bool {
        self.transits.iter().any(|transit| transit.index == index)
    }

    /// Notes that a cluster is being copied. It must not be so already.
    pub fn begin_transit(&mut self, index: usize) {
        self.transits.push(Transit {
            index,
            host: None,
            waiting: Vec::new(),
        });
    }

    /// Notes that a cluster's entry is being written, and will refer to byte `host` of the file. As for
    /// [`State::begin_transit`].
    pub fn begin_grant(&mut self, index: usize, host: u64) {
        self.transits.push(Transit {
            index,
            host: Some(host),
            waiting: Vec::new(),
        });
    }

    /// Where an entry that is being written will refer to.
    pub fn granted(&self, index: usize) -> Option<u64> {
        (self.transits.iter())
            .find(|transit| transit.index == index)
            .and_then(|transit| transit.host)
    }

    /// Has `job` wait for the end of a copy; returned if there is none.
    pub fn park(&mut self, index: usize, job: Job) -> Option<Job> {
        match (self.transits.iter_mut()).find(|transit| transit.index == index) {
            Some(transit) => {
                transit.waiting.push(job);
                None
            }
            None => Some(job),
        }
    }

    /// Ends a copy, well or badly. What waited for it.
    pub fn end_transit(&mut self, index: usize) -> Vec<Job> {
        let found = (self.transits.iter()).position(|transit| transit.index == index);
        found.map_or_else(Vec::new, |at| self.transits.swap_remove(at).waiting)
    }
}
