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
        ("format='raw'\nsize='8G'", 2, &["`size`", "raw", "`path`"]),
        ("format='nbd'\nsize='8G'", 2, &["`size`", "nbd", "`path`"]),
        (
            "format='memory'\npath='8G'",
            2,
            &["`path`", "memory", "`size`"],
        ),
        (&format!("{raw}size='8G'"), 3, &["`size`", "raw"]),
        (
            &format!("{raw}[[layer]]\ntype='rerror'\nwerror='stop'"),
            5,
            &["`werror`", "rerror"],
        ),
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

/// Words that an error lists after "it has".
fn listed(error: &str) -> Vec<String> {
    let Some((_, list)) = error.split_once(": it has ") else {
        return Vec::new();
    };
    let list = list.split(['.', ';']).next().unwrap();
    let words = list
        .split([',', ' '])
        .filter(|word| !["", "and", "none"].contains(word));
    words.map(str::to_owned).collect()
}

/// Values for any option: right ones, those of other options, and wrong ones.
const VALUES: [&str; 26] = [
    "",
    "on",
    "off",
    "auto",
    "handover",
    "allow",
    "deny",
    "sync",
    "io_uring",
    "stop",
    "report",
    "enospc",
    "fail",
    "0",
    "1",
    "-1",
    "+7",
    "0.5",
    "512",
    "4096",
    "64K",
    "64k",
    "99999999999999999999",
    "a,b",
    "a b",
    "ON",
];

/// Both forms say the same, or are refused with the same words; the file's with the key in front.
fn compare(text: &str, file: &str, refused: &mut u32) {
    match (StackArg::<Source>::parse(text, LAYERS), stack(file)) {
        (Ok(text), Ok(file)) => {
            assert_eq!(text, file);
            assert_eq!(StackArg::parse(&text.to_string(), LAYERS), Ok(text));
        }
        (Err(text), Err(file)) => {
            *refused += 1;
            let (key, why) = file.why.split_once(": ").unwrap();
            assert!(key.starts_with('`') && key.len() > 2, "{}", file.why);
            assert_eq!(text.to_string(), why);
        }
        (of_text, of_file) => panic!("{text}: {of_text:?}\n{file}: {of_file:?}"),
    }
}

/// Each option of each kind of disk and of layer that is linked, with each of the values.
#[test]
fn text_and_file_take_and_refuse_the_same() {
    let (mut all, mut refused) = (0, 0);
    for kind in KINDS.iter() {
        let (key, target) = match (kind.target, kind.name) {
            ("SIZE", _) => ("size", "1M"),
            (_, "nbd") => ("path", "unix:/n"),
            _ => ("path", "/x"),
        };
        let start = format!("{}:{target}", kind.name);
        let names = listed(
            &format!("{start},?=")
                .parse::<StackArg<Source>>()
                .unwrap_err()
                .to_string(),
        );
        for name in &names {
            // The keys that a file has for something else.
            assert!(
                !["format", "path", "size", "layer"].contains(&name.as_str()),
                "{name}"
            );
            // In text it would be taken for a layer.
            assert!(
                LAYERS
                    .parse(&format!("{name}=?"))
                    .unwrap_err()
                    .to_string()
                    .contains("unknown layer")
            );
            for value in VALUES {
                let doubled = value.replace(',', ",,");
                let file = format!("format='{}'\n{key}='{target}'\n{name}='{value}'", kind.name);
                compare(&format!("{start},{name}={doubled}"), &file, &mut refused);
                all += 1;
            }
        }
    }
    for kind in LAYERS.iter() {
        let (start, target) = match LAYERS.parse(&format!("{}=a", kind.name)) {
            Ok(_) => (format!("{}=a/", kind.name), "name='a'"),
            Err(_) => (format!("{}=", kind.name), ""),
        };
        let names = listed(&LAYERS.parse(&format!("{start}?:")).unwrap_err().to_string());
        assert_eq!(
            names.is_empty(),
            kind.manual
                .lines()
                .next()
                .unwrap()
                .trim_start()
                .starts_with(&format!("{} ", kind.name)),
            "{}",
            kind.name
        );
        for (name, value) in names
            .iter()
            .flat_map(|name| VALUES.map(|value| (name, value)))
        {
            let text = format!("null:1M,{start}{name}:{}", value.replace(',', ",,"));
            let file = format!(
                "format='null'\nsize='1M'\n[[layer]]\ntype='{}'\n{target}\n{name}='{value}'",
                kind.name
            );
            compare(&text, &file, &mut refused);
            all += 1;
        }
    }
    assert!(
        all > 600 && refused > all / 2 && refused < all,
        "{refused} of {all}"
    );
}

/// A file is an operator's, but a mistake in it must not end in a crash.
#[test]
fn deep_and_long_files_are_refused() {
    const DEEP: usize = 200_000;
    let start = "format='raw'\npath='x'\n";
    for content in [
        format!("{start}a{} = 1", ".a".repeat(DEEP)),
        format!("{start}[a{}]\nb = 1", ".a".repeat(DEEP)),
        format!("{start}a = {}", "[".repeat(DEEP)),
        format!("{start}a = {}", "{a=".repeat(DEEP)),
        format!("{start}a = {}1{}", "{a=".repeat(60), "}".repeat(60)),
        format!("{start}{}", "[[layer]]\ntype='meter'\n".repeat(DEEP / 8)),
    ] {
        match stack(&content) {
            Err(wrong) => assert!(!wrong.why.is_empty()),
            Ok(arg) => {
                let opened = arg.disk.open(true).map(|_| ());
                assert!(opened.is_err());
                assert_eq!(arg.layers.len(), DEEP / 8);
            }
        }
    }
}
