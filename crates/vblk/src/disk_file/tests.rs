// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

#[test]
fn a_file_says_what_a_command_line_says() {
    let file = r#"
        format = "raw"
        path = "/a,b=c:d.img"
        direct = true
        block = 4_096

        [[layer]]
        type = "throttle"
        group = "a"
        iops = { rate = 0x1388, burst = 20000, length = 0.5 }
        write_bandwidth = "50M"

        [[layer]]
        type = "dirty"
        name = "backup"
        granularity = "1M"

        [[layer]]
        type = "fault"
        seed = 7
        reorder = true

        [[layer]]
        type = "meter"
    "#;
    let line = "raw:/a,,b=c:d.img,direct=on,block=4096,\
                throttle=iops:5000/burst:20000/length:0.5/write_bandwidth:50M/group:a,\
                dirty=backup/granularity:1M,fault=seed:7/reorder:on,meter";
    assert_eq!(stack(file).unwrap(), line.parse().unwrap());
    for (file, line) in [
        ("format='memory'\nsize='1M'", "memory:1M"),
        ("format='memory'\nsize=4096", "memory:4K"),
        (
            "format='qcow2'\npath='x'\nbacking='allow'",
            "qcow2:x,backing=allow",
        ),
        (
            "format='null'\nsize='1M'\n[[layer]]\ntype='errors'\nrerror='stop'\nwerror='enospc'",
            "null:1M,errors=rerror:stop/werror:enospc",
        ),
        (
            "format='null'\nsize='1M'\n[[layer]]\ntype='dirty'\nname='a'\npersist='/b,c/sync'\nsync=true",
            "null:1M,dirty=a/sync:on/persist:/b,,c/sync",
        ),
        (
            "format='vdpa'\npath='/dev/vhost-vdpa-0'",
            "vdpa:/dev/vhost-vdpa-0",
        ),
    ] {
        assert_eq!(stack(file).unwrap(), line.parse().unwrap(), "{file}");
    }
}

#[test]
fn errors_name_the_file_the_line_and_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.toml");
    let text = format!("toml:{}", path.display());
    let raw = "format='raw'\npath='x'\n";
    for (content, line, words) in [
        ("format = 'raw'\npath = \n", 2, &[][..]),
        ("format='raw'\nformat='raw'", 2, &["duplicate"]),
        ("path='x'", 1, &["`format`"]),
        ("format='raw'", 1, &["`path`"]),
        ("\nformat='rwa'\npath='x'", 2, &["`format`", "`rwa`"]),
        ("format='memory'\nsize='1Q'", 2, &["`size`", "`1Q`"]),
        (&format!("{raw}direct=[1]"), 3, &["`direct`", "array"]),
        (
            &format!("{raw}direct='yes'"),
            3,
            &["`direct`", "`yes`", "on or off"],
        ),
        (
            &format!("{raw}\ndierct=true"),
            4,
            &["`dierct`", "direct, engine"],
        ),
        (
            &format!("{raw}block='1,meter'"),
            3,
            &["`block`", "`1,meter`"],
        ),
        (&format!("{raw}layer=1"), 3, &["[[layer]]"]),
        (&format!("{raw}layer=[1]"), 3, &["[[layer]]"]),
        (&format!("{raw}[[layer]]\nname='a'"), 3, &["`type`"]),
        (
            &format!("{raw}[[layer]]\ntype='metre'"),
            4,
            &["`type`", "`metre`"],
        ),
        (
            &format!("{raw}[[layer]]\ntype='meter'\nfast=1"),
            5,
            &["`fast`", "meter"],
        ),
        (
            &format!("{raw}[[layer]]\ntype='throttle'"),
            4,
            &["throttle=iops:5000"],
        ),
        (
            &format!("{raw}[[layer]]\ntype='throttle'\niops=5\nread_iops='many'"),
            6,
            &["`read_iops`", "`many`"],
        ),
        (
            &format!("{raw}[[layer]]\ntype='throttle'\niops={{rate=1,bust=2}}"),
            5,
            &["`bust`", "burst"],
        ),
        (
            &format!("{raw}[[layer]]\ntype='throttle'\niops={{burst=2}}"),
            5,
            &["`iops`", "`rate`"],
        ),
        (
            &format!("{raw}[[layer]]\ntype='throttle'\niops={{rate=5,burst=2}}"),
            5,
            &["`iops`", "average"],
        ),
        (
            &format!("{raw}[[layer]]\ntype='dirty'\nname='a,meter'"),
            5,
            &["`name`", "`a,meter`"],
        ),
        (
            &format!("{raw}[[layer]]\ntype='throttle'\niops={{rate=5,length=2}}"),
            5,
            &["`iops`", "`burst`"],
        ),
        (
            &format!("{raw}[[layer]]\ntype='throttle'\niops={{rate='x'}}"),
            5,
            &["`iops`", "`x`", "whole number"],
        ),
        (
            &format!("{raw}[[layer]]\ntype='fault'\nreorder={{a=1}}"),
            5,
            &["`reorder`", "on or off"],
        ),
        (
            &format!("{raw}[[layer]]\ntype='dirty'\nname='a'\nsync=true"),
            6,
            &["`sync`", "persist:"],
        ),
        (
            &format!("{raw}[[layer]]\ntype='dirty'\nname='a'\npersist='/x/sync:on'"),
            6,
            &["`persist`", "last part"],
        ),
        (
            &format!("{raw}[[layer]]\ntype='meter'\nname='a'"),
            5,
            &["`name`", "none"],
        ),
        (
            &format!("{raw}[[layer]]\ntype='dirty'\nname='a'\ngranularity=5"),
            6,
            &["`granularity`", "`5`"],
        ),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = parse(&text).unwrap_err().to_string();
        let place = format!("disk.toml, line {line}: ");
        assert!(error.contains(&place), "{content}: {error}");
        for word in words {
            assert!(error.contains(word), "{content}: {error}");
        }
    }
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(parse(&text).unwrap_err().to_string().contains("larger"));
    let missing = parse("toml:/nonexistent/d.toml").unwrap_err().to_string();
    assert!(
        missing.contains("/nonexistent/d.toml: No such file"),
        "{missing}"
    );
}
