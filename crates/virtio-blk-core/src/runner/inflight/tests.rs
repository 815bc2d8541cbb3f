// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::Arc;

use super::*;

/// `bytes` of zeroes.
fn zeroes(bytes: usize) -> HostMemory {
    let words: Arc<Vec<AtomicU64>> = Arc::new((0..bytes.div_ceil(8)).map(|_| 0.into()).collect());
    let base = words.as_ptr().cast_mut().cast();
    // SAFETY: the words live as long as their owner, and are only reached by atomics.
    unsafe { HostMemory::new(base, bytes, words) }
}

/// Two queues of eight.
fn area() -> (InFlightArea, HostMemory) {
    let memory = zeroes(InFlightArea::bytes(2, 8));
    (InFlightArea::new(memory.clone(), 2, 8).unwrap(), memory)
}

fn reopen(area: &InFlightArea, size: u16, used: u16) -> (SplitLog, Vec<u16>) {
    area.split_log(1, size, used).unwrap()
}

#[test]
fn a_new_area_has_nothing_in_flight() {
    let (area, memory) = area();
    assert_eq!(memory.len(), 2 * 192 + 64 + 512);
    assert_eq!(reopen(&area, 8, 5).1, Vec::<u16>::new());
}

#[test]
fn heads_come_back_in_the_order_taken() {
    let (area, _) = area();
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
    let (area, _) = area();
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
    let (area, _) = area();
    let (mut log, _) = reopen(&area, 8, 0);
    log.taken(0);
    log.taken(1);
    log.returning(&[1, 0], 2);
    assert_eq!(reopen(&area, 8, 0).1, [0, 1]);
}

#[test]
fn head_zero_is_no_special_case() {
    let (area, _) = area();
    let (mut log, _) = reopen(&area, 8, 0);
    log.taken(0);
    assert_eq!(reopen(&area, 8, 0).1, [0]);
    log.returning(&[0], 1);
    assert_eq!(reopen(&area, 8, 1).1, Vec::<u16>::new());
}

#[test]
fn hostile_content_is_bounded() {
    let (area, _) = area();
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
    let (area, memory) = area();
    assert!(area.split_log(2, 8, 0).is_err());
    assert!(area.split_log(0, 16, 0).is_err());
    let odd = memory.slice(4, memory.len() - 4).unwrap();
    assert_eq!(
        InFlightArea::new(odd, 2, 8).unwrap_err(),
        InFlightError::Alignment
    );
    assert!(InFlightArea::new(memory.clone(), 6, 8).is_err());
    assert!(InFlightArea::new(memory.clone(), 0, 8).is_err());
    assert!(InFlightArea::new(memory, 2, 0).is_err());
}

#[test]
fn a_layout_of_the_future_is_refused() {
    let (area, _) = area();
    let (log, _) = reopen(&area, 8, 0);
    log.store::<AtomicU16>(VERSION, LAYOUT + 1);
    assert_eq!(
        area.split_log(1, 8, 0).unwrap_err(),
        InFlightError::Layout(LAYOUT + 1)
    );
}

#[test]
fn the_cache_mode_is_kept_where_there_is_room() {
    let (area, memory) = area();
    assert_eq!(area.cache_mode(), None);
    area.keep_cache_mode(0);
    let again = InFlightArea::new(memory.clone(), 2, 8).unwrap();
    assert_eq!(again.cache_mode(), Some(0));
    // The area of a server that knows nothing of it.
    let small = memory.slice(0, InFlightArea::least_bytes(2, 8)).unwrap();
    let small = InFlightArea::new(small, 2, 8).unwrap();
    small.keep_cache_mode(1);
    assert_eq!(small.cache_mode(), None);
    assert_eq!(area.cache_mode(), Some(0));
}

fn told(capacity: u64) -> GuestAbi {
    let disk = crate::testdisk::TestDisk::new(crate::disk::Caps::basic(capacity));
    let options = crate::device::DeviceOptions::default();
    crate::device::Device::new(Arc::new(disk), options)
        .unwrap()
        .guest_abi()
}

#[test]
fn what_the_guest_was_told_is_kept_with_the_cache_mode() {
    let (area, memory) = area();
    assert_eq!(area.guest_abi(), Ok(None));
    for capacity in [8, 16, 24, 32] {
        area.keep_guest_abi(&told(capacity));
        let again = InFlightArea::new(memory.clone(), 2, 8).unwrap();
        assert_eq!(again.guest_abi().unwrap().unwrap().capacity, capacity);
    }
    let mut abi = told(8);
    abi.writeback = true;
    area.keep_guest_abi(&abi);
    area.keep_cache_mode(0);
    assert!(!area.guest_abi().unwrap().unwrap().writeback);
    assert_eq!(area.cache_mode(), Some(0));
    // Nothing of it lies in a queue's part.
    assert_eq!(area.split_log(1, 8, 0).unwrap().1, Vec::<u16>::new());
}

#[test]
fn a_death_at_any_store_leaves_the_old_record_or_the_new() {
    let (old, new) = (told(8), told(16));
    for before in [None, Some(old)] {
        // From either place.
        for rounds in 0..2 {
            for stores in 0.. {
                let (area, _) = area();
                for _ in 0..=rounds {
                    before.iter().for_each(|abi| area.keep_guest_abi(abi));
                }
                let all: Vec<_> = area.abi_stores(&new.to_bytes()).collect();
                if stores > all.len() {
                    break;
                }
                for &(offset, value) in all.iter().take(stores) {
                    field::<AtomicU64>(&area.memory, offset)
                        .unwrap()
                        .store(value, Ordering::Release);
                }
                let expected = if stores == all.len() {
                    Some(new)
                } else {
                    before
                };
                assert_eq!(area.guest_abi(), Ok(expected), "{stores}");
                // And the next owner can keep another.
                area.keep_guest_abi(&old);
                assert_eq!(area.guest_abi(), Ok(Some(old)));
            }
        }
    }
}

#[test]
fn an_area_of_an_older_version_keeps_the_cache_mode_alone() {
    let (_, memory) = area();
    let least = InFlightArea::least_bytes(2, 8);
    let small = memory.slice(0, least + CACHE_MODE).unwrap();
    let small = InFlightArea::new(small, 2, 8).unwrap();
    small.keep_cache_mode(0);
    small.keep_guest_abi(&told(8));
    assert_eq!(small.cache_mode(), Some(0));
    assert_eq!(small.guest_abi(), Ok(None));
    // The whole of it is as the older version would have left it.
    let whole = InFlightArea::new(memory, 2, 8).unwrap();
    assert_eq!(whole.cache_mode(), Some(0));
    assert_eq!(whole.guest_abi(), Ok(None));
}

#[test]
fn a_hostile_record_is_refused() {
    let (area, _) = area();
    area.keep_guest_abi(&told(8));
    let trailer = InFlightArea::least_bytes(2, 8);
    let store = |offset: usize, value: u64| {
        field::<AtomicU64>(&area.memory, trailer + offset)
            .unwrap()
            .store(value, Ordering::Relaxed);
    };
    for chosen in [2, 3, u64::MAX] {
        store(CHOSEN, chosen);
        assert!(matches!(area.guest_abi(), Err(AbiError::Malformed(_))));
    }
    store(CHOSEN, 1);
    assert!(area.guest_abi().is_ok());
    store(CACHE_MODE + 8, u64::MAX);
    assert!(matches!(area.guest_abi(), Err(AbiError::Malformed(_))));
}

#[test]
fn what_is_discarded_is_not_replayed() {
    let (area, _) = area();
    for size in [8, 4] {
        let (mut log, heads) = area.split_log(1, 8, 7).unwrap();
        assert_eq!(heads, [0; 0]);
        let (mut other, _) = area.split_log(0, 8, 0).unwrap();
        other.taken(5);
        for head in [7, 3, 0] {
            log.taken(head);
        }
        log.returning(&[3], 8);
        area.discard(1).unwrap();
        // The next ring, perhaps a smaller one, begins anew; the other queue is as it was.
        assert_eq!(reopen(&area, size, 0).1, [0; 0]);
        assert_eq!(area.split_log(0, 8, 0).unwrap().1, [5]);
    }
    assert_eq!(
        reopen(&area, 8, 0).1,
        [0; 0],
        "nothing is left beyond a smaller ring"
    );
    assert!(area.discard(2).is_err());
}

/// An area asked for with 8 that has room for rings of 32.
fn with_larger() -> (InFlightArea, HostMemory) {
    let memory = zeroes(InFlightArea::bytes_for_larger(2, 8, 32));
    (InFlightArea::new(memory.clone(), 2, 8).unwrap(), memory)
}

#[test]
fn larger_rings_are_logged_as_others_are() {
    let (area, memory) = with_larger();
    let (mut log, heads) = reopen(&area, 32, 0);
    assert!(heads.is_empty());
    for head in [31, 0, 8] {
        log.taken(head);
    }
    log.returning(&[0], 1);
    log.returned(&[0], 1);
    // The other queue is untouched.
    assert!(area.split_log(0, 32, 0).unwrap().1.is_empty());
    // The next server finds the same room by the length alone.
    let again = InFlightArea::new(memory, 2, 8).unwrap();
    assert_eq!(reopen(&again, 32, 1).1, [31, 8]);
    assert_eq!(
        reopen(&again, 16, 1).1,
        [8],
        "of a ring that has no head 31"
    );
    assert!(matches!(
        area.split_log(1, 64, 0).unwrap_err(),
        InFlightError::Queue { queue_size: 32, .. }
    ));
    again.discard(1).unwrap();
    assert!(reopen(&again, 32, 1).1.is_empty());
    assert!(again.discard(2).is_err());
}

#[test]
fn a_ring_of_another_size_leaves_nothing_behind() {
    for sizes in [[8, 32], [32, 8]] {
        let (area, _) = with_larger();
        let [first, second] = sizes;
        reopen(&area, first, 0).0.taken(3);
        assert!(reopen(&area, second, 0).1.is_empty());
        assert!(reopen(&area, first, 0).1.is_empty(), "{sizes:?}");
    }
}

/// A version without the part for larger rings served the guest in between.
#[test]
fn what_an_older_version_does_not_know_is_not_replayed_after_it() {
    for drained in [false, true] {
        let (area, memory) = with_larger();
        reopen(&area, 32, 0).0.taken(20);
        let known = memory.slice(0, InFlightArea::bytes(2, 8)).unwrap();
        let older = InFlightArea::new(known, 2, 8).unwrap();
        assert!(older.split_log(1, 32, 0).is_err());
        // It took no ring: the guest's is as it was.
        assert_eq!(reopen(&area, 32, 0).1, [20]);
        let mut log = reopen(&older, 8, 0).0;
        log.taken(3);
        if drained {
            log.returning(&[3], 1);
            log.returned(&[3], 1);
        }
        assert_eq!(reopen(&area, 32, 0).1, [0; 0], "of an earlier boot");
        assert_eq!(reopen(&area, 8, 0).1, [0; 0]);
    }
}

#[test]
fn what_is_too_little_for_anything_is_not_used() {
    let sizes = [0, 16, 32, 1024, MAX_QUEUE_SIZE];
    for largest in sizes {
        let bytes = InFlightArea::bytes_for_larger(2, 8, largest);
        assert_eq!(InFlightArea::used_bytes(2, 8, bytes), bytes);
        assert_eq!(InFlightArea::used_bytes(2, 8, bytes + 64), bytes);
    }
    let least = InFlightArea::least_bytes(2, 8);
    assert_eq!(InFlightArea::used_bytes(2, 8, least), least);
    let most = InFlightArea::bytes_for_larger(2, 8, MAX_QUEUE_SIZE);
    assert_eq!(InFlightArea::used_bytes(2, 8, usize::MAX), most);
    // Nothing is larger than the largest.
    assert_eq!(
        InFlightArea::used_bytes(1, MAX_QUEUE_SIZE, usize::MAX),
        InFlightArea::bytes(1, MAX_QUEUE_SIZE)
    );
}
