// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

fn new(text: &str) -> Result<NewImage, ArgError> {
    text.parse()
}

#[test]
fn everything_that_is_given_is_taken() {
    let image = new(
        "qcow2:a,,b,size=20G,preallocation=metadata,cluster=2M,extended_l2=on,compression=zstd,refcount_bits=8,\
         lazy_refcounts=on,data_file=d,data_file_raw=on",
    );
    let image = image.unwrap();
    let expected = NewImage {
        format: Format::Qcow2,
        path: "a,b".into(),
        size: Some(20 << 30),
        preallocation: Preallocation::Metadata,
        backing: None,
        cluster: Some(2 << 20),
        extended_l2: true,
        zstd: true,
        refcount_bits: Some(8),
        lazy_refcounts: true,
        data_file: Some("d".into()),
        data_file_raw: true,
    };
    assert_eq!(image, expected);
    let image = new("qcow2:a,backing=b,backing_format=raw").unwrap();
    assert_eq!(image.size, None);
    assert_eq!(image.backing.unwrap().format_name(), "raw");
    let image = new("raw:a,size=1M,preallocation=full").unwrap();
    assert_eq!(image.preallocation, Preallocation::Full);
    let image: Image = "qcow2:a,backing=allow".parse().unwrap();
    assert!(image.backing);
}

#[test]
fn what_is_wrong_is_named() {
    for (text, words) in [
        ("a.img", "names no format"),
        ("vmdk:a,size=1M", "raw or qcow2"),
        ("qcow2:,size=1M", "PATH"),
        ("raw:a", "size"),
        ("qcow2:a", "size"),
        ("raw:a,size=513", "multiple of 512"),
        ("raw:a,size=1M,size=2M", "twice"),
        ("raw:a,size=1M,cluster=4K", "size and preallocation"),
        (
            "raw:a,size=1M,preallocation=metadata",
            "off, falloc or full",
        ),
        ("qcow2:a,size=1M,prealloc=off", "it has size, preallocation"),
        ("qcow2:a,size=1M,cluster=3K", "power of two"),
        ("qcow2:a,size=1M,cluster=4M", "power of two"),
        ("qcow2:a,size=1M,backing=b", "backing_format"),
        ("qcow2:a,size=1M,backing_format=raw", "backing"),
        (
            "qcow2:a,size=1M,backing=b,backing_format=vmdk",
            "raw or qcow2",
        ),
        ("qcow2:a,size=1M,compression=lzma", "zlib or zstd"),
        ("qcow2:a,size=1M,refcount_bits=7", "1, 2, 4"),
        ("qcow2:a,size=1M,extended_l2=yes", "on or off"),
        ("qcow2:a,size=1M,data_file=", "path"),
        ("qcow2:a,size=1M,data_file_raw=on", "data_file"),
    ] {
        let error = new(text).unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
    for (text, words) in [
        ("raw:a,backing=allow", "none"),
        ("qcow2:a,backing=perhaps", "allow or deny"),
        ("qcow2:a,size=1M", "backing"),
        ("qcow2:a,backing=deny,backing=deny", "twice"),
    ] {
        let error = text.parse::<Image>().unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}
