// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_blk_core::disk::Caps;
use virtio_blk_core::testdisk::removable_buffer;

use super::*;
use crate::raw::host_file::HostFile;
use crate::raw::medium::Abilities;
use crate::raw::options::RawOptions;

const PAGES: u64 = 64;

/// A medium whose page cache may be mapped, whatever file system the tests run on.
fn medium(file: File, in_memory: bool) -> Medium {
    let caps = Caps::basic(PAGES * PAGE / 512);
    let can = Abilities::new(true, true);
    let mut medium = Medium::new(
        HostFile::new(file, &RawOptions::new("test")),
        "test".into(),
        caps,
        true,
        can,
        false,
        false,
    );
    medium.in_memory = in_memory;
    medium
}

/// A file whose pages hold their numbers, and a queue that knows the first `known` of them.
fn numbered(known: u64) -> (Medium, PageCacheMap) {
    let file = tempfile::tempfile().unwrap();
    for page in 0..PAGES {
        let content = [page as u8; PAGE as usize];
        file.write_all_at(&content, page * PAGE).unwrap();
    }
    let medium = medium(file, false);
    let mut reads = PageCacheMap::new();
    for page in 0..known {
        reads.note(&medium, page * PAGE, PAGE as usize);
    }
    (medium, reads)
}

/// What a read copies; `None` if a system call is needed.
fn read(reads: &mut PageCacheMap, offset: u64, len: usize) -> Option<Vec<u8>> {
    let buf = IoBuf::from_vec(vec![0xEE; len]);
    reads.read(offset, &buf).then(|| buf.to_vec())
}

#[test]
fn only_what_is_known_is_copied() {
    let (medium, mut reads) = numbered(0);
    let page = PAGE as usize;
    assert_eq!(read(&mut reads, 0, 512), None);
    reads.note(&medium, 3 * PAGE + 512, 1);
    assert_eq!(read(&mut reads, 3 * PAGE, page).unwrap(), [3; 4096]);
    for (offset, len) in [(2 * PAGE, page), (3 * PAGE, page + 1), (3 * PAGE - 1, 2)] {
        assert_eq!(read(&mut reads, offset, len), None, "{offset} {len}");
    }
    reads.note(&medium, 3 * PAGE, page + 1);
    let both = read(&mut reads, 3 * PAGE + 100, page).unwrap();
    assert_eq!((both[0], both[page - 1]), (3, 4));
}

#[test]
fn a_buffer_in_pieces_is_filled_in_order() {
    let (_medium, mut reads) = numbered(2);
    let memory = std::sync::Arc::new(vec![0u8; 3 * PAGE as usize]);
    let base = memory.as_ptr().cast_mut();
    let mut buf = IoBuf::new();
    buf.set_keep(memory);
    // SAFETY: inside the vector, which is only reached through the buffer.
    unsafe {
        buf.push(base.add(5000), 100);
        buf.push(base, 412);
    }
    assert!(reads.read(PAGE - 100, &buf));
    assert_eq!(buf.to_vec(), [vec![0; 100], vec![1; 412]].concat());
}

#[test]
fn empty_long_and_divided_ranges_are_not_copied() {
    for (offset, len, fits) in [
        (0, 0, false),
        (0, 1, true),
        (0, MAX_COPY, true),
        (0, MAX_COPY + 1, false),
        (WINDOW - 1, 1, true),
        (WINDOW - 1, 2, false),
        (u64::MAX, 1, true),
    ] {
        assert_eq!(
            PageCacheMap::place(offset, len).is_some(),
            fits,
            "{offset} {len}"
        );
    }
}

#[test]
fn writes_and_holes_show_at_once() {
    let (medium, mut reads) = numbered(8);
    medium
        .file
        .file()
        .write_all_at(&[0xAA; 512], PAGE + 512)
        .unwrap();
    assert_eq!(read(&mut reads, PAGE + 512, 512).unwrap(), [0xAA; 512]);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(medium.file.fallocate(mode, 2 * PAGE, PAGE), 0);
    assert_eq!(read(&mut reads, 2 * PAGE, 4096).unwrap(), [0; 4096]);
    assert_eq!(read(&mut reads, 3 * PAGE, 4096).unwrap(), [3; 4096]);
}

#[test]
fn what_was_cut_off_is_left_to_the_system_call() {
    let (medium, mut reads) = numbered(8);
    assert!(read(&mut reads, 4 * PAGE, 512).is_some());
    medium.file.file().set_len(PAGE).unwrap();
    assert_eq!(read(&mut reads, 4 * PAGE, 512), None);
    assert!(
        reads.windows.is_empty(),
        "a poisoned window is not used again"
    );
    assert_eq!(read(&mut reads, 0, 512), None);
    // From the next success on there is another.
    reads.note(&medium, 0, 512);
    assert_eq!(read(&mut reads, 0, 512).unwrap(), [0; 512]);
    medium
        .file
        .file()
        .write_all_at(&[9; 4096], 4 * PAGE)
        .unwrap();
    reads.note(&medium, 4 * PAGE, 512);
    assert_eq!(read(&mut reads, 4 * PAGE, 512).unwrap(), [9; 512]);
}

/// A write of `value`s; `None` if a system call is needed.
fn write(
    cache: &mut PageCacheMap,
    medium: &Medium,
    offset: u64,
    value: u8,
) -> Option<Result<(), DiskError>> {
    cache.write(medium, offset, &IoBuf::from_vec(vec![value; 512]))
}

#[test]
fn writes_are_copied_only_where_the_page_cache_is_the_medium() {
    let (mut medium, mut cache) = numbered(8);
    assert!(write(&mut cache, &medium, PAGE, 9).is_none());
    medium.in_memory = true;
    let mut cache = PageCacheMap::new();
    assert!(write(&mut cache, &medium, PAGE, 9).is_none());
    cache.note(&medium, PAGE, 512);
    write(&mut cache, &medium, PAGE + 1024, 9).unwrap().unwrap();
    assert!(write(&mut cache, &medium, 2 * PAGE, 9).is_none());
    assert!(write(&mut cache, &medium, 2 * PAGE - 256, 9).is_none());
    let mut found = [0; PAGE as usize];
    medium.file.file().read_exact_at(&mut found, PAGE).unwrap();
    let mut expected = [1; PAGE as usize];
    expected[1024..1536].fill(9);
    assert!(found == expected);
    assert_eq!(read(&mut cache, PAGE + 1024, 512).unwrap(), [9; 512]);
}

#[test]
fn writes_behind_the_end_are_left_to_the_system_call() {
    let (mut medium, _) = numbered(0);
    medium.in_memory = true;
    let mut cache = PageCacheMap::new();
    cache.note(&medium, 0, 8 * PAGE as usize);
    medium.file.file().set_len(PAGE).unwrap();
    assert!(write(&mut cache, &medium, 4 * PAGE, 9).is_none());
    assert!(cache.windows.is_empty());
    assert_eq!(medium.file.file().metadata().unwrap().len(), PAGE);
    // A file that can't be mapped for writing.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, [0; 512]).unwrap();
    let medium = super::tests::medium(File::open(&path).unwrap(), true);
    cache.note(&medium, 0, 512);
    assert!(!medium.can.map.get());
    assert!(write(&mut cache, &medium, 0, 9).is_none());
}

#[test]
fn data_that_was_taken_away_is_no_write() {
    let (mut medium, _) = numbered(0);
    medium.in_memory = true;
    let mut cache = PageCacheMap::new();
    cache.note(&medium, 0, 512);
    let asked = Arc::new(AtomicU32::new(0));
    for (gone_at, expected) in [(0, None), (1, Some(false)), (2, Some(true))] {
        asked.store(0, Ordering::Relaxed);
        let count = asked.clone();
        let buf = removable_buffer(&[9; 512], move || {
            count.fetch_add(1, Ordering::Relaxed) != gone_at
        });
        let done = cache.write(&medium, 0, &buf);
        assert_eq!(done.map(|result| result.is_ok()), expected, "{gone_at}");
        let untouched = read(&mut cache, 0, 512).unwrap() == [0; 512];
        assert_eq!(untouched, gone_at == 0);
    }
}

#[test]
fn what_was_added_is_in_the_mapping() {
    let (medium, mut reads) = numbered(1);
    let end = 1000 * PAGE;
    medium.file.file().write_all_at(&[7; 4096], end).unwrap();
    reads.note(&medium, end, 4096);
    assert_eq!(reads.windows.len(), 1);
    assert_eq!(read(&mut reads, end, 4096).unwrap(), [7; 4096]);
}

#[test]
fn a_queue_maps_so_much_and_no_more() {
    let (medium, mut reads) = numbered(0);
    for number in 0..2 * MAX_WINDOWS as u64 {
        medium.file.file().set_len((number + 1) * WINDOW).unwrap();
        reads.note(&medium, number * WINDOW + PAGE, 512);
    }
    assert_eq!(reads.windows.len(), MAX_WINDOWS);
    let last = MAX_WINDOWS as u64 - 1;
    assert!(read(&mut reads, last * WINDOW + PAGE, 512).is_some());
    assert!(read(&mut reads, (last + 1) * WINDOW + PAGE, 512).is_none());
    reads.note(&medium, u64::MAX - PAGE, 512);
}

#[test]
fn a_file_that_can_not_be_mapped_is_read_by_system_calls() {
    let directory = tempfile::tempdir().unwrap();
    // Open for writing only: not to be mapped for reading.
    let file = File::create(directory.path().join("image")).unwrap();
    let medium = medium(file, false);
    let mut reads = PageCacheMap::new();
    reads.note(&medium, 0, 512);
    assert!(!medium.can.map.get());
    assert_eq!(read(&mut reads, 0, 512), None);
    let (medium, _) = numbered(0);
    medium.can.map.disable();
    reads.note(&medium, 0, 512);
    assert!(reads.windows.is_empty(), "not wanted");
}

#[test]
fn pages_that_were_evicted_end_the_copying_for_a_while() {
    let (medium, mut reads) = numbered(1);
    let sample = |reads: &mut PageCacheMap| (0..SAMPLE).all(|_| read(reads, 0, 512).is_some());
    assert!(sample(&mut reads));
    assert!(
        sample(&mut reads),
        "the first one has nothing to compare with"
    );
    for pause in [MIN_PAUSE, 2 * MIN_PAUSE, 4 * MIN_PAUSE] {
        // As if one of the reads had waited for the device.
        reads.faults = reads.faults.map(|faults| faults - 1);
        assert!(sample(&mut reads));
        assert!(reads.windows.is_empty());
        reads.note(&medium, 0, 512);
        for _ in 0..pause {
            assert_eq!(read(&mut reads, 0, 512), None);
        }
        assert!(read(&mut reads, 0, 512).is_some());
        reads.copies = 0;
    }
    for _ in 0..10 {
        assert!(sample(&mut reads));
    }
    assert_eq!(reads.pause, MIN_PAUSE);
}

#[test]
fn a_file_that_shrinks_and_grows_under_its_readers() {
    let (medium, _) = numbered(0);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut reads = PageCacheMap::new();
                while !stop.load(Ordering::Relaxed) {
                    for page in 0..PAGES {
                        reads.note(&medium, page * PAGE, PAGE as usize);
                        if let Some(data) = read(&mut reads, page * PAGE, PAGE as usize) {
                            let content = data[0];
                            assert!(content == 0 || content == page as u8, "{page}: {content}");
                        }
                    }
                }
            });
        }
        for _ in 0..500 {
            medium.file.file().set_len(PAGE).unwrap();
            medium.file.file().set_len(PAGES * PAGE).unwrap();
            medium
                .file
                .file()
                .write_all_at(&[5; 4096], 5 * PAGE)
                .unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
}
