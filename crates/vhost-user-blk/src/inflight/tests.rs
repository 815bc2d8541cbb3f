// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::shared_file::alarm;

#[test]
fn an_area_comes_back_from_its_file() {
    let (area, file, size) = create(2, 8, 8, &alarm()).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    assert!(file.set_len(0).is_err(), "sealed");
    area.keep_cache_mode(0);
    // A client may have rounded the size up to whole pages.
    for said in [size, size + 1] {
        let again = open(&file, 0, said, 2, 8, &alarm()).unwrap();
        assert_eq!(again.cache_mode(), Some(0));
    }
}

#[test]
fn sizes_are_checked() {
    let (_area, file, size) = create(2, 8, 8, &alarm()).unwrap();
    assert!(open(&file, 0, size, 6, 8, &alarm()).is_err());
    assert!(open(&file, 4096, size, 2, 8, &alarm()).is_err());
    assert!(open(&file, 0, size, 0, 8, &alarm()).is_err());
}
