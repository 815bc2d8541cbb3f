// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use proptest::prelude::*;

use super::*;
use crate::{Engine, RawOptions};

fn parse(text: &str) -> Result<DiskArg, ArgError> {
    text.parse()
}

/// The message for a text that must be refused.
fn refusal(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn every_option_is_read() {
    let arg = parse(
        "raw:/a/b.img,direct=on,engine=io_uring,discard=off,block=4096,lock=off,mmap=off,readonly=on",
    );
    let expected = RawOptions::new("/a/b.img")
        .direct(true)
        .engine(Engine::IoUring)
        .discard(false)
        .block_size(Some(4096))
        .lock(false)
        .mmap(false)
        .read_only(true);
    assert_eq!(arg, Ok(DiskArg::new(expected)));
    assert_eq!(
        parse("raw:x,engine=sync,mmap=auto"),
        Ok(DiskArg::new(RawOptions::new("x").engine(Engine::Sync)))
    );
    let null = DiskArg::new(NullOptions {
        bytes: 1 << 40,
        zero: false,
    });
    assert_eq!(parse("null:1T,zero=off"), Ok(null));
}

#[test]
fn sizes_have_binary_units() {
    for (text, bytes) in [
        ("512", 512),
        ("64K", 64 << 10),
        ("64k", 64 << 10),
        ("10M", 10 << 20),
        ("8G", 8 << 30),
        ("1T", 1 << 40),
        ("2P", 2 << 50),
    ] {
        assert_eq!(
            parse(&format!("memory:{text}")),
            Ok(DiskArg::new(MemoryOptions { bytes })),
            "{text}"
        );
    }
    for text in [
        "0",
        "0K",
        "1",
        "513",
        "K",
        "-512",
        "+512",
        "1.5G",
        "8GB",
        "9000P",
        "0x200",
        "ß",
        "512 ",
        "99999999999999999999",
    ] {
        let message = refusal(&format!("memory:{text}"));
        assert!(message.contains(&format!("`{text}`")), "{message}");
        assert!(message.contains("64K"), "{message}");
    }
}

#[test]
fn a_bare_path_is_refused_with_the_right_spelling() {
    for path in ["/var/lib/disk.img", "disk.qcow2", "/a:b/c", "./x:1"] {
        let message = refusal(path);
        assert!(message.contains(&format!("raw:{path}")), "{message}");
        assert!(message.contains("never guessed"), "{message}");
    }
}

#[test]
fn mistakes_are_named_with_what_is_allowed() {
    for (text, parts) in [
        ("qcow:x", &["`qcow`", "raw, memory or null"][..]),
        ("raw:x,dierct=on", &["`dierct`", "direct", "engine"]),
        ("raw:x,", &["``", "engine"]),
        ("raw:x,direct=yes", &["`yes`", "direct", "on or off"]),
        ("raw:x,direct", &["``", "on or off"]),
        ("raw:x,engine=aio", &["`aio`", "auto, io_uring or sync"]),
        ("raw:x,block=1000", &["`1000`", "power of two"]),
        ("raw:x,block=256", &["`256`", "512"]),
        ("raw:x,mmap=on", &["`on`", "auto or off"]),
        ("raw:x,lock=on,lock=off", &["`lock`", "twice"]),
        ("raw:", &["PATH", "raw:"]),
        ("raw:,direct=on", &["PATH"]),
        ("memory:", &["SIZE"]),
        ("memory:1M,zero=on", &["`zero`", "none"]),
        ("null:1M,zero=1", &["`1`", "zero"]),
        ("null:1M,fill=on", &["`fill`", "zero"]),
    ] {
        let message = refusal(text);
        for part in parts {
            assert!(message.contains(part), "{text}: {message} lacks {part}");
        }
    }
}

#[test]
fn a_comma_in_a_path_is_written_twice() {
    for (text, path) in [
        ("raw:a,,b", "a,b"),
        ("raw:a,,", "a,"),
        ("raw:,,a", ",a"),
        ("raw:a,,,,b", "a,,b"),
        ("raw:a,,,lock=off", "a,"),
        ("raw:a:b", "a:b"),
    ] {
        let arg = parse(text).unwrap();
        let options: &RawOptions = arg.options().unwrap();
        assert_eq!(options.path.to_str(), Some(path), "{text}");
    }
}

#[test]
fn opening_makes_the_disk() {
    let disk = parse("memory:1M").unwrap().open(true).unwrap();
    assert!(disk.caps().read_only);
    assert_eq!(disk.caps().capacity, 2048);
    let disk = parse("null:8G").unwrap().open(false).unwrap();
    assert!(!disk.caps().read_only);

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a,b.img");
    std::fs::write(&path, [0; 4096]).unwrap();
    let text = DiskArg::new(RawOptions::new(&path)).to_string();
    assert!(text.contains("a,,b.img"));
    let arg = parse(&text).unwrap();
    assert!(arg.open(true).unwrap().caps().read_only);
    let disk = arg.open(false).unwrap();
    assert!(!disk.caps().read_only);
    assert_eq!(disk.caps().capacity, 8);
    drop(disk);
    let arg = parse(&format!("{text},readonly=on")).unwrap();
    assert!(arg.open(false).unwrap().caps().read_only);
}

fn any_spec() -> impl Strategy<Value = DiskArg> {
    let bytes = (0..=i64::MAX as u64 / 512).prop_map(|sectors| sectors * 512);
    let engine = prop_oneof![
        Just(Engine::Auto),
        Just(Engine::IoUring),
        Just(Engine::Sync)
    ];
    let block = proptest::option::of((9_u32..=21).prop_map(|exp| 1 << exp));
    let raw = (
        "[a-z,=:/ ]{1,12}",
        any::<(bool, bool, bool, bool, bool)>(),
        engine,
        block,
    )
        .prop_map(|(path, (a, b, c, d, e), engine, block)| {
            DiskArg::new(
                RawOptions::new(path)
                    .read_only(a)
                    .direct(b)
                    .discard(c)
                    .lock(d)
                    .mmap(e)
                    .engine(engine)
                    .block_size(block),
            )
        });
    prop_oneof![
        raw,
        bytes
            .clone()
            .prop_map(|bytes| DiskArg::new(MemoryOptions { bytes })),
        (bytes, any::<bool>()).prop_map(|(bytes, zero)| DiskArg::new(NullOptions { bytes, zero })),
    ]
}

proptest! {
    #[test]
    fn display_and_parse_are_inverse(arg in any_spec()) {
        let text = arg.to_string();
        prop_assert_eq!(parse(&text), Ok(arg), "{}", text);
    }

    #[test]
    fn no_text_makes_it_panic(text in "(raw:|memory:|null:|)[ -~ß]{0,30}") {
        let _ = parse(&text);
    }
}

#[test]
fn every_format_is_listed() {
    for format in DiskArg::FORMATS {
        assert!(
            format!("{format}:512").parse::<DiskArg>().is_ok(),
            "{format}"
        );
        // An error names all there are.
        let said = "nothing:512".parse::<DiskArg>().unwrap_err().to_string();
        assert!(said.contains(format), "{said}");
    }
}

/// A kind of another crate.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Tape {
    #[serde(skip)]
    reel: String,
    speed: u16,
    rewind: Option<bool>,
}

impl DiskOptions for Tape {
    const NAME: &'static str = "tape";
    const TARGET: &'static str = "REEL";
    const HELP: &'static str = "tape:REEL[,speed=N][,rewind=on|off]";
    const MANUAL: &'static str = "  tape:REEL               a tape";

    fn set_target(&mut self, target: String) -> Result<(), ArgError> {
        self.reel = target;
        Ok(())
    }

    fn target(&self) -> String {
        self.reel.clone()
    }

    fn changed(&self) -> Vec<(&'static str, String)> {
        let speed = (self.speed != 0).then(|| ("speed", self.speed.to_string()));
        let rewind = self.rewind.map(|on| if on { "on" } else { "off" });
        let rewind = rewind.map(|word| ("rewind", word.to_owned()));
        speed.into_iter().chain(rewind).collect()
    }

    fn open(&self, _: bool) -> Result<Arc<dyn Disk>, DiskError> {
        Err(DiskError::Config(format!("no tape {}", self.reel)))
    }
}

#[test]
fn a_program_adds_kinds_of_its_own() {
    let table = [OWN, &[DiskKind::of::<Tape>()]].concat();
    let kinds = DiskKinds::new(&table);
    assert_eq!(kinds.iter().last().unwrap().help, Tape::HELP);
    let arg = kinds.parse("tape:a,,b:7,rewind=off,speed=30").unwrap();
    assert_eq!(arg.to_string(), "tape:a,,b:7,speed=30,rewind=off");
    let tape: &Tape = arg.options().unwrap();
    assert_eq!(
        (tape.reel.as_str(), tape.speed, tape.rewind),
        ("a,b:7", 30, Some(false))
    );
    assert!(arg.options::<RawOptions>().is_none());
    assert!(arg.path().is_none());
    assert_eq!(arg, arg.clone().unlocked().for_inspection());
    let error = arg.open(false).err().unwrap().to_string();
    assert_eq!(error, "no tape a,b:7");
    for (text, wanted) in [
        ("tape:", "`tape:` lacks its REEL: write tape:REEL"),
        (
            "tape:a,speed=fast",
            "`fast` is no value for speed: use a number",
        ),
        ("tape:a,speed=70000", "70000"),
        (
            "tape:a,rewind=1",
            "`1` is no value for rewind: use on or off",
        ),
        (
            "tape:a,loud=on",
            "unknown option `loud` for tape: it has speed and rewind",
        ),
        ("tap:a", "null or tape"),
    ] {
        let error = kinds.parse(text).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    assert_eq!(kinds.parse("null:1M"), parse("null:1M"));
    assert!(parse("tape:a").is_err());
}

/// What a kind's help says of it is what it takes.
#[test]
fn help_names_each_option() {
    let names: Vec<_> = DiskKinds::new(OWN).iter().map(|kind| kind.name).collect();
    assert_eq!(names, DiskArg::FORMATS);
    for kind in DiskKinds::new(OWN).iter() {
        let error = refusal(&format!("{}:512,?=", kind.name));
        let (_, known) = error.split_once(": it has ").unwrap();
        let (known, _) = known.split_once('.').unwrap();
        let known: std::collections::BTreeSet<&str> = known
            .split([',', ' '])
            .filter(|word| !["", "and", "none"].contains(word))
            .collect();
        let said = kind.help.split("[,").skip(1);
        let said = said.map(|rest| rest.split('=').next().unwrap()).collect();
        assert_eq!(known, said, "{}", kind.help);
        for name in known {
            assert!(kind.manual.contains(name), "{name}: {}", kind.manual);
        }
        let is_short = |line: &str| line.chars().count() <= 78;
        assert!(kind.manual.lines().all(is_short), "{}", kind.manual);
        // In the documentation it is the same.
        let page = include_str!("mod.rs").replace("\\|", "|");
        assert!(page.contains(&format!("`{}`", kind.help)), "{}", kind.help);
    }
}

/// A kind with numbers of every width, an option that has to be there, and two that do not go together.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, try_from = "DrumWords")]
struct Drum(DrumWords);

#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct DrumWords {
    #[serde(skip)]
    target: String,
    tracks: u8,
    #[serde(default)]
    heads: u32,
    #[serde(default)]
    offset: i16,
    #[serde(default)]
    speed: f64,
    #[serde(default)]
    label: Option<String>,
    #[serde(default, rename = "gap")]
    _gap: Option<Gap>,
}

#[derive(Clone, Debug, serde::Deserialize)]
struct Gap {
    #[serde(rename = "len")]
    _len: u64,
}

impl TryFrom<DrumWords> for Drum {
    type Error = &'static str;

    fn try_from(words: DrumWords) -> Result<Self, &'static str> {
        if words.heads > words.tracks.into() {
            return Err("it has more heads than tracks");
        }
        Ok(Self(words))
    }
}

impl DiskOptions for Drum {
    const NAME: &'static str = "drum";
    const TARGET: &'static str = "PATH";
    const HELP: &'static str = "";
    const MANUAL: &'static str = "";

    fn set_target(&mut self, target: String) -> Result<(), ArgError> {
        self.0.target = target;
        Ok(())
    }

    fn target(&self) -> String {
        self.0.target.clone()
    }

    fn changed(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn open(&self, _: bool) -> Result<Arc<dyn Disk>, DiskError> {
        Err(DiskError::Unsupported)
    }
}

#[test]
fn numbers_of_every_width_are_read_and_errors_say_their_range() {
    let table = [DiskKind::of::<Drum>()];
    let kinds = DiskKinds::new(&table);
    let text = "drum:x,tracks=255,heads=3,offset=-32768,speed=-0.5,label=,,";
    let arg = kinds.parse(text).unwrap();
    let drum: &Drum = arg.options().unwrap();
    assert_eq!(
        (drum.0.tracks, drum.0.heads, drum.0.offset, drum.0.speed),
        (255, 3, -32768, -0.5)
    );
    assert_eq!(drum.0.label.as_deref(), Some(","));
    for (text, wanted) in [
        (
            "tracks=256",
            "`256` is no value for tracks: use a number from 0 to 255",
        ),
        (
            "tracks=-1",
            "`-1` is no value for tracks: use a number from 0 to 255",
        ),
        (
            "tracks=1,heads=4294967296",
            "`4294967296` is no value for heads: use a number from 0 to 4294967295",
        ),
        (
            "tracks=1,offset=32768",
            "`32768` is no value for offset: use a number from -32768 to 32767",
        ),
        (
            "tracks=1,speed=nan",
            "`nan` is no value for speed: use a number, such as",
        ),
        (
            "tracks=1,speed=inf",
            "`inf` is no value for speed: use a number, such as",
        ),
        ("tracks=", "`` is no value for tracks: use a number"),
        ("tracks", "`` is no value for tracks: use a number"),
        ("tracks=1,gap=5", "`5` is no value for gap: use struct Gap"),
        // What is not about one option names the kind.
        ("heads=1", "`drum` lacks `tracks`"),
        ("tracks=1,heads=2", "drum: it has more heads than tracks"),
    ] {
        let error = kinds
            .parse(&format!("drum:x,{text}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(wanted), "{text}: {error}");
    }
    let mut tree = Tree::disk("drum:x,tracks=1,heads=2").unwrap();
    tree.kind.key.at = 7;
    assert_eq!(kinds.read(&tree).unwrap_err().key.at, 7);
}

/// The message for a text without a format names no kind but those that are always there.
#[test]
fn a_text_without_a_format_is_told_of_raw_alone() {
    let message = refusal("disk.img");
    for foreign in ["qcow2", "nbd"] {
        assert!(!message.contains(foreign), "{message}");
    }
}
