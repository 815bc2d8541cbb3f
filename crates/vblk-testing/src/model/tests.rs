// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

fn sector(number: u64, stamp: Stamp) -> [u8; SECTOR] {
    let mut data = [0; SECTOR];
    pattern::fill(&mut data, number, stamp);
    data
}

fn read(model: &Model, stamp: Stamp) -> Result<Freedom, Box<Mismatch>> {
    let ticket = model.begin_read(5..6);
    model.end_read(ticket, &sector(5, stamp))
}

fn write(model: &Model, effect: Effect) {
    let ticket = model.begin_write(5..6, effect);
    model.end_write(ticket);
}

const A: Stamp = Stamp(100);
const B: Stamp = Stamp(101);

#[test]
fn a_completed_write_hides_what_was_there() {
    let model = Model::new(0..10, Stamp::FILE);
    assert!(read(&model, Stamp::FILE).is_ok());
    assert!(read(&model, Stamp::ZERO).is_err());
    write(&model, Effect::Data(A));
    let error = read(&model, Stamp::FILE).unwrap_err();
    assert_eq!((error.sector, &error.allowed[..]), (5, &[A][..]));
    assert!(read(&model, A).is_ok());
    write(&model, Effect::Zero);
    assert!(read(&model, A).is_err());
    assert!(read(&model, Stamp::ZERO).is_ok());
}

#[test]
fn overlapping_writes_may_win_in_any_order_but_only_one_stays() {
    for winner in [A, B] {
        let model = Model::new(0..10, Stamp::FILE);
        let a = model.begin_write(5..6, Effect::Data(A));
        let b = model.begin_write(5..6, Effect::Data(B));
        model.end_write(b);
        model.end_write(a);
        assert!(read(&model, Stamp::FILE).is_err());
        assert_eq!(read(&model, winner).unwrap().ambiguous, 1);
        assert_eq!(read(&model, winner).unwrap().ambiguous, 0, "settled");
        let loser = if winner == A { B } else { A };
        assert!(read(&model, loser).is_err(), "settled on the other");
    }
}

#[test]
fn a_read_beside_a_write_sees_old_new_or_a_mix() {
    let model = Model::new(0..10, Stamp::FILE);
    let first = model.begin_read(5..6);
    let second = model.begin_read(5..6);
    let third = model.begin_read(5..6);
    write(&model, Effect::Data(A));
    assert!(read(&model, Stamp::FILE).is_err(), "submitted afterwards");
    assert!(read(&model, A).is_ok());
    assert!(model.end_read(first, &sector(5, Stamp::FILE)).is_ok());
    assert!(model.end_read(second, &sector(5, A)).is_ok());
    let mut torn = sector(5, A);
    torn[..256].copy_from_slice(&sector(5, Stamp::FILE)[..256]);
    assert_eq!(model.end_read(third, &torn).unwrap().mixed, 1);
}

#[test]
fn settling_leaves_earlier_reads_their_freedom() {
    let model = Model::new(0..10, Stamp::FILE);
    let early = model.begin_read(5..6);
    let a = model.begin_write(5..6, Effect::Data(A));
    let b = model.begin_write(5..6, Effect::Data(B));
    model.end_write(a);
    model.end_write(b);
    assert!(read(&model, A).is_ok());
    assert!(read(&model, B).is_err());
    assert!(model.end_read(early, &sector(5, B)).is_ok());
}

#[test]
fn a_discarded_sector_is_old_or_zero() {
    for seen in [Stamp::FILE, Stamp::ZERO] {
        let model = Model::new(0..10, Stamp::FILE);
        write(&model, Effect::Discard);
        assert!(read(&model, A).is_err());
        assert!(read(&model, seen).is_ok());
        let other = if seen == Stamp::ZERO {
            Stamp::FILE
        } else {
            Stamp::ZERO
        };
        assert!(read(&model, other).is_err(), "no change of mind");
        write(&model, Effect::Data(A));
        assert!(read(&model, seen).is_err());
        assert!(read(&model, A).is_ok());
    }
}

#[test]
fn ranges_cross_locks_and_need_not_start_on_one() {
    let model = Model::new(100..300, Stamp::ZERO);
    let ticket = model.begin_write(120..200, Effect::Data(A));
    model.end_write(ticket);
    let ticket = model.begin_read(100..300);
    let mut data = vec![0; 200 * SECTOR];
    pattern::fill(&mut data[20 * SECTOR..100 * SECTOR], 120, A);
    assert_eq!(model.end_read(ticket, &data), Ok(Freedom::default()));
    let ticket = model.begin_read(100..300);
    data[150 * SECTOR] = 1;
    assert_eq!(model.end_read(ticket, &data).unwrap_err().sector, 250);
}

/// An operation of [`Device`].
enum Pending {
    Write {
        ticket: WriteTicket,
        effect: Effect,
        applied: bool,
    },
    Read {
        ticket: ReadTicket,
        seen: Option<Stamp>,
        /// What the sector held at any moment since the submission.
        possible: Vec<Stamp>,
    },
}

/// Plays a disk of one sector that applies operations in random order between their submission and
/// their completion. `wrong` may replace what a read saw. Returns whether the model objected.
fn play(
    rng: &mut fastrand::Rng,
    wrong: impl Fn(&[Stamp], &mut fastrand::Rng) -> Option<Stamp>,
) -> bool {
    let model = Model::new(0..10, Stamp::FILE);
    let mut now = Stamp::FILE;
    let mut pending: Vec<Pending> = Vec::new();
    for _ in 0..400 {
        if pending.len() < 6 && rng.u8(..) < 100 {
            pending.push(if rng.bool() {
                let effect = match rng.u8(..6) {
                    0 => Effect::Zero,
                    1 => Effect::Discard,
                    _ => Effect::Data(model.stamp()),
                };
                Pending::Write {
                    ticket: model.begin_write(5..6, effect),
                    effect,
                    applied: false,
                }
            } else {
                Pending::Read {
                    ticket: model.begin_read(5..6),
                    seen: None,
                    possible: vec![now],
                }
            });
            continue;
        }
        if pending.is_empty() {
            continue;
        }
        let at = rng.usize(..pending.len());
        match &mut pending[at] {
            Pending::Write {
                effect, applied, ..
            } if !*applied => {
                *applied = true;
                now = match *effect {
                    Effect::Data(stamp) => stamp,
                    Effect::Zero => Stamp::ZERO,
                    Effect::Discard if rng.bool() => Stamp::ZERO,
                    Effect::Discard => now,
                };
                let changed = now;
                for op in &mut pending {
                    if let Pending::Read { possible, .. } = op {
                        possible.push(changed);
                    }
                }
                continue;
            }
            Pending::Read { seen, .. } if seen.is_none() => {
                *seen = Some(now);
                continue;
            }
            _ => {}
        }
        match pending.swap_remove(at) {
            Pending::Write { ticket, .. } => model.end_write(ticket),
            Pending::Read {
                ticket,
                seen,
                possible,
            } => {
                let stamp = wrong(&possible, rng).or(seen).unwrap();
                if model.end_read(ticket, &sector(5, stamp)).is_err() {
                    return true;
                }
            }
        }
    }
    false
}

#[test]
fn a_correct_disk_is_never_blamed() {
    let mut rng = fastrand::Rng::with_seed(1);
    for round in 0..300 {
        assert!(!play(&mut rng, |_, _| None), "round {round}");
    }
}

#[test]
fn stale_and_foreign_data_are_noticed() {
    let mut rng = fastrand::Rng::with_seed(2);
    let foreign = (0..50)
        .filter(|_| play(&mut rng, |_, _| Some(Stamp(1_000_000))))
        .count();
    assert_eq!(foreign, 50);
    // A write that was certainly overwritten long ago.
    let stale = (0..50)
        .filter(|_| {
            play(&mut rng, |possible, _| {
                let newest = possible.iter().max()?;
                (newest.0 > 30).then(|| Stamp(newest.0 - 25))
            })
        })
        .count();
    assert_eq!(stale, 50);
}
