// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Words about operations that wait for the cluster.

use std::time::{Duration, Instant};

/// How long an operation may take before that is said; and the first pause until it is said again.
pub(crate) const FIRST: Duration = Duration::from_secs(10);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(300);

/// When the operations of a queue were submitted, and when to look at them.
pub(crate) struct Stall {
    /// By place.
    since: Vec<Option<Instant>>,
    busy: usize,
    look: Option<Instant>,
    /// Since when words are said, and the pause until the next.
    said: Option<(Instant, Duration)>,
}

/// What there is to say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// So many operations wait, the oldest for that long.
    Waiting(usize, Duration),
    /// All that waited has ended, after that time.
    Over(Duration),
}

impl Stall {
    pub(crate) fn new(depth: usize) -> Self {
        Self {
            since: vec![None; depth],
            busy: 0,
            look: None,
            said: None,
        }
    }

    /// An operation begins.
    pub(crate) fn begin(&mut self, place: usize, now: Instant) {
        if let Some(since) = self.since.get_mut(place)
            && since.replace(now).is_none()
        {
            self.busy += 1;
        }
        if self.look.is_none() {
            self.look = Some(now + FIRST);
        }
    }

    /// It has ended.
    pub(crate) fn end(&mut self, place: usize) {
        if let Some(since) = self.since.get_mut(place)
            && since.take().is_some()
        {
            self.busy -= 1;
        }
    }

    /// When to call [`Stall::look`] next.
    pub(crate) const fn deadline(&self) -> Option<Instant> {
        self.look
    }

    /// Looks, if it is time.
    pub(crate) fn look(&mut self, now: Instant) -> Option<Word> {
        if self.look.is_none_or(|look| now < look) {
            return None;
        }
        let oldest = self.since.iter().flatten().min().copied();
        let Some(oldest) = oldest.filter(|oldest| now.saturating_duration_since(*oldest) >= FIRST)
        else {
            self.look = oldest.map(|oldest| oldest + FIRST);
            let (since, _) = self.said.take()?;
            return Some(Word::Over(now.saturating_duration_since(since)));
        };
        let pause = match self.said {
            Some((_, pause)) => (pause * 2).min(LONGEST),
            None => FIRST,
        };
        let since = self.said.map_or(oldest, |(since, _)| since);
        self.said = Some((since, pause));
        self.look = Some(now + pause);
        let late = |since: &&Instant| now.saturating_duration_since(**since) >= FIRST;
        let waiting = self.since.iter().flatten().filter(late).count();
        Some(Word::Waiting(
            waiting,
            now.saturating_duration_since(oldest),
        ))
    }

    /// Words were said, and nothing of what they were about is left: to be looked at soon.
    pub(crate) fn hurry(&mut self, now: Instant) {
        if self.said.is_some() && self.busy == 0 {
            self.look = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_waits_is_said_ever_more_rarely_and_its_end_once() {
        let start = Instant::now();
        let mut stall = Stall::new(4);
        assert_eq!(stall.deadline(), None);
        stall.begin(0, start);
        stall.begin(1, start + 5 * SECOND);
        let (mut said, mut now) = (Vec::new(), start);
        while said.len() < 8 {
            now = stall.deadline().unwrap();
            if let Some(word) = stall.look(now) {
                let Word::Waiting(count, time) = word else {
                    panic!("{word:?}");
                };
                said.push((count, time.as_secs()));
            }
        }
        assert_eq!(said[..3], [(1, 10), (2, 20), (2, 40)]);
        assert!(
            said.iter().zip(&said[1..]).all(|(a, b)| b.1 - a.1 <= 300),
            "{said:?}"
        );
        stall.end(0);
        stall.hurry(now);
        assert_eq!(stall.look(now), None, "one is left");
        stall.end(1);
        stall.hurry(now);
        assert!(matches!(stall.look(now), Some(Word::Over(_))));
        assert_eq!(stall.deadline(), None);
    }

    #[test]
    fn what_is_quick_is_not_spoken_of() {
        let start = Instant::now();
        let mut stall = Stall::new(2);
        for second in 0..100 {
            let now = start + second * SECOND;
            stall.begin(0, now);
            assert_eq!(stall.look(now), None);
            stall.end(0);
            stall.hurry(now);
        }
        // A place that ends twice, or is not there, does no harm.
        stall.end(0);
        stall.end(7);
        stall.begin(7, start);
    }
}
