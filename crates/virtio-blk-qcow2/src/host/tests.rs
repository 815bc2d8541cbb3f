// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use virtio_blk_disks::DiskArg;
use virtio_blk_disks::disk_arg::{DiskKind, DiskKinds};

use super::*;

fn parse(text: &str) -> Result<DiskArg, ArgError> {
    DiskKinds::new(&[DiskKind::of::<Qcow2File>()]).parse(text)
}

#[test]
fn every_option_is_read_and_written() {
    let all = "qcow2:a,,b,readonly=on,direct=on,discard=off,lock=off,backing=allow,engine=sync,mmap=off,repair=on";
    let image = Qcow2File::new("a,b")
        .read_only(true)
        .direct(true)
        .discard(false)
        .lock(false)
        .backing(true)
        .engine(Engine::Sync)
        .mmap(false)
        .repair(true);
    assert_eq!(parse(all).unwrap(), DiskArg::new(image));
    for text in [
        all,
        "qcow2:x",
        "qcow2:/a:b,engine=io_uring",
        "qcow2:x,lock=handover",
    ] {
        assert_eq!(parse(text).unwrap().to_string(), text);
    }
    let usual = "qcow2:x,backing=deny,mmap=auto,lock=on,repair=off,direct=off,engine=auto";
    assert_eq!(parse(usual).unwrap().to_string(), "qcow2:x");
}

#[test]
fn mistakes_are_named_with_what_is_allowed() {
    for (text, parts) in [
        ("qcow2:", &["PATH"][..]),
        ("qcow2:x,backing=on", &["`on`", "allow or deny"]),
        ("qcow2:x,block=4096", &["`block`", "backing"]),
        ("qcow2:x,engine=fast", &["`fast`", "io_uring"]),
        ("qcow2:x,repair=all", &["`all`", "on or off"]),
    ] {
        let message = parse(text).unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "{text}: {message} lacks {part}");
        }
    }
}

/// What help says of the options is what is taken.
#[test]
fn help_names_each_option() {
    let error = parse("qcow2:x,?=").unwrap_err().to_string();
    let (_, known) = error.split_once(": it has ").unwrap();
    let (known, _) = known.split_once('.').unwrap();
    let known = known.split([',', ' ']);
    let mut known: Vec<&str> = known.filter(|word| !["", "and"].contains(word)).collect();
    let said = Qcow2File::HELP.split("[,").skip(1);
    let mut said: Vec<&str> = said.map(|rest| rest.split('=').next().unwrap()).collect();
    known.sort_unstable();
    said.sort_unstable();
    assert_eq!(known, said);
    for name in known {
        assert!(Qcow2File::MANUAL.contains(name), "{name}");
    }
    let mut lines = Qcow2File::MANUAL.lines();
    assert!(lines.all(|line| line.chars().count() <= 78));
    let page = include_str!("../../README.md").replace("\\|", "|");
    assert!(page.contains(&format!("`{}`", Qcow2File::HELP)));
}

#[test]
fn a_file_that_is_not_there_is_named_once() {
    let image = Qcow2File::new("/nonexistent/i");
    let error = image.open().unwrap_err();
    assert_eq!(error.to_string().matches("/nonexistent/i").count(), 1);
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    let mut number = None;
    while let Some(error) = cause {
        let found = error.downcast_ref::<io::Error>();
        number = number.or(found.and_then(io::Error::raw_os_error));
        cause = error.source();
    }
    assert_eq!(number, Some(2));
    let files: &dyn Files = &image;
    let error = files.open(Path::new("/nonexistent/base"), Access::Read);
    let error = error.err().unwrap().to_string();
    assert!(error.contains("/nonexistent/base"), "{error}");
}
