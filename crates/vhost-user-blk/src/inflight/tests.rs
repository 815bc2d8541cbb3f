// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::shared_file::alarm;

fn reopen(area: &InFlightArea, size: u16, used: u16) -> (SplitLog, Vec<u16>) {
    area.queue(1, size, used).unwrap()
}

#[test]
fn a_new_area_has_nothing_in_flight() {
    let (area, file, size) = InFlightArea::create(2, 8, &alarm()).unwrap();
    assert_eq!(size, 2 * 192 + 64);
    assert_eq!(file.metadata().unwrap().len(), size);
    assert_eq!(reopen(&area, 8, 5).1, Vec::<u16>::new());
    assert!(file.set_len(0).is_err(), "sealed");
}

#[test]
fn heads_come_back_in_the_order_taken() {
    let (area, ..) = InFlightArea::create(2, 8, &alarm()).unwrap();
    let (mut log, _) = reopen(&area, 8, 0);
    for head in [3, 0, 7, 1] {
        log.taken(head);
    }
    log.returning(&[0, 7], 2);
    log.returned(&[0, 7], 2);
    let (mut log, heads) = reopen(&area, 8, 2);
    assert_eq!(heads, [3, 1]);
    log.taken(5);
    assert_eq!(reopen(&area, 8, 2).1, [3, 1, 5]);
}

#[test]
fn a_batch_cut_off_after_the_index_store_counts_as_returned() {
    let (area, ..) = InFlightArea::create(2, 8, &alarm()).unwrap();
    let (mut log, _) = reopen(&area, 8, 65534);
    for head in 0..4 {
        log.taken(head);
    }
    // The index wraps with this batch of three; `returned` never runs.
    log.returning(&[2, 0, 3], 1);
    assert_eq!(reopen(&area, 8, 1).1, [1]);
    assert_eq!(reopen(&area, 8, 1).1, [1], "recovery is repeatable");
}

#[test]
fn a_batch_cut_off_before_the_index_store_is_still_in_flight() {
    let (area, ..) = InFlightArea::create(2, 8, &alarm()).unwrap();
    let (mut log, _) = reopen(&area, 8, 0);
    log.taken(0);
    log.taken(1);
    log.returning(&[1, 0], 2);
    assert_eq!(reopen(&area, 8, 0).1, [0, 1]);
}

#[test]
fn head_zero_is_no_special_case() {
    let (area, ..) = InFlightArea::create(2, 8, &alarm()).unwrap();
    let (mut log, _) = reopen(&area, 8, 0);
    log.taken(0);
    assert_eq!(reopen(&area, 8, 0).1, [0]);
    log.returning(&[0], 1);
    assert_eq!(reopen(&area, 8, 1).1, Vec::<u16>::new());
}

#[test]
fn hostile_content_is_bounded() {
    let (area, ..) = InFlightArea::create(2, 8, &alarm()).unwrap();
    let (log, _) = reopen(&area, 8, 0);
    log.store::<AtomicU16>(LAST_BATCH_HEAD, 60000);
    log.store::<AtomicU16>(USED_IDX, 3);
    for head in 0..8 {
        log.set_in_flight(head, true);
        log.store::<AtomicU16>(SplitLog::next(head), head);
        log.store::<AtomicU64>(SplitLog::order(head), u64::MAX);
    }
    let (mut log, heads) = reopen(&area, 8, 2);
    assert_eq!(heads.len(), 8);
    log.taken(9999);
    log.returning(&[9999], 0);
    log.returned(&[9999], 0);
    log.store::<AtomicU16>(LAST_BATCH_HEAD, 4);
    log.store::<AtomicU16>(USED_IDX, 3);
    assert_eq!(reopen(&area, 8, 2).1.len(), 7, "a loop in the list ends");
}

#[test]
fn sizes_are_checked() {
    let (area, file, size) = InFlightArea::create(2, 8, &alarm()).unwrap();
    assert!(area.queue(2, 8, 0).is_err());
    assert!(area.queue(0, 16, 0).is_err());
    assert!(InFlightArea::open(&file, 0, size, 3, 8, &alarm()).is_err());
    assert!(InFlightArea::open(&file, 4096, size, 2, 8, &alarm()).is_err());
    assert!(InFlightArea::open(&file, 0, size, 0, 8, &alarm()).is_err());
}

#[test]
fn the_cache_mode_is_kept_where_there_is_room() {
    let (area, file, size) = InFlightArea::create(2, 8, &alarm()).unwrap();
    assert_eq!(area.cache_mode(), None);
    area.keep_cache_mode(0);
    let again = InFlightArea::open(&file, 0, size, 2, 8, &alarm()).unwrap();
    assert_eq!(again.cache_mode(), Some(0));
    // The area of a server that knows nothing of it.
    let small = InFlightArea::open(&file, 0, size - 64, 2, 8, &alarm()).unwrap();
    small.keep_cache_mode(1);
    assert_eq!(small.cache_mode(), None);
    assert_eq!(area.cache_mode(), Some(0));
}
