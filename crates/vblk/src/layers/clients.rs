// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The clients of a server, of which there are so many at most: for one more, the one that has done nothing for the
//! longest time must go.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A client's place.
struct Place {
    number: u64,
    /// Since when nothing is done for it. `None`: something is.
    idle: Option<Instant>,
    /// Cuts the connection.
    cut: Box<dyn Fn() + Send>,
}

#[derive(Default)]
struct Places {
    all: Vec<Place>,
    next: u64,
}

/// All places.
pub(super) struct Clients {
    places: Mutex<Places>,
    most: usize,
    patience: Duration,
}

impl Clients {
    /// `most` at a time, each of which may be idle for `patience` before it has to go for another.
    pub(super) fn new(most: usize, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            places: Mutex::default(),
            most,
            patience,
        })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a client a place, which `cut` takes from it: it must not block. `None`: all are busy.
    pub(super) fn enter(self: &Arc<Self>, cut: impl Fn() + Send + 'static) -> Option<Entered> {
        let mut places = self.places();
        if places.all.len() >= self.most {
            let idle = places.all.iter().enumerate();
            let longest = idle.filter_map(|(index, place)| Some((place.idle?, index)));
            let (since, index) = longest.min()?;
            if since.elapsed() < self.patience {
                return None;
            }
            let gone = places.all.remove(index);
            (gone.cut)();
        }
        let number = places.next;
        places.next += 1;
        places.all.push(Place {
            number,
            idle: Some(Instant::now()),
            cut: Box::new(cut),
        });
        Some(Entered {
            clients: self.clone(),
            number,
        })
    }
}

/// A place, until this is dropped.
pub(super) struct Entered {
    clients: Arc<Clients>,
    number: u64,
}

impl Entered {
    fn set(&self, idle: Option<Instant>) -> bool {
        let mut places = self.clients.places();
        let mine = places.all.iter_mut().find(|one| one.number == self.number);
        mine.map(|place| place.idle = idle).is_some()
    }

    /// Runs `work`, meanwhile the place can't be taken. `None`: it was.
    pub(super) fn work<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        if !self.set(None) {
            return None;
        }
        let result = work();
        self.set(Some(Instant::now()));
        Some(result)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut places = self.clients.places();
        places.all.retain(|place| place.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_one_that_was_idle_longest_goes() {
        let clients = Clients::new(2, Duration::ZERO);
        let cuts: [Arc<AtomicUsize>; 3] = Default::default();
        let enter = |index: usize| {
            let cut = cuts[index].clone();
            clients.enter(move || {
                cut.fetch_add(1, Ordering::Relaxed);
            })
        };
        let cut = |index: usize| cuts[index].load(Ordering::Relaxed);
        let (first, second) = (enter(0).unwrap(), enter(1).unwrap());
        first.work(|| {});
        let third = enter(2).unwrap();
        assert_eq!([cut(0), cut(1), cut(2)], [0, 1, 0]);
        assert_eq!(second.work(|| 1), None);
        drop(second);
        // Neither can go while something is done for it.
        let refused = first.work(|| third.work(|| enter(1).is_none()));
        assert_eq!(refused, Some(Some(true)));
        drop(first);
        assert!(enter(0).is_some());
        assert_eq!([cut(0), cut(1), cut(2)], [0, 1, 0]);
    }

    #[test]
    fn who_is_not_idle_long_enough_stays() {
        let clients = Clients::new(1, Duration::from_secs(3600));
        let first = clients.enter(|| panic!("it may stay"));
        assert!(first.is_some() && clients.enter(|| {}).is_none());
    }
}
