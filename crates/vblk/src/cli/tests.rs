// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::ffi::OsString;

use clap::{Command, CommandFactory, Parser};

use super::Cli;
use crate::groups;

/// All subcommands, each with its name.
fn all(command: &Command, name: &str, found: &mut Vec<(String, Command)>) {
    found.push((name.to_owned(), command.clone()));
    for sub in command.get_subcommands() {
        all(sub, &format!("{name} {}", sub.get_name()), found);
    }
}

fn commands() -> Vec<(String, Command)> {
    let mut found = Vec::new();
    let mut root = Cli::command().term_width(80);
    root.build();
    all(&root, "vblk", &mut found);
    found
}

/// The command lines of a text: what starts with `vblk`, with the lines that continue it.
fn examples(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().filter(|line| line.starts_with("  "));
    let commands = lines.flat_map(|line| line.split(['#', ';', '&', '|']));
    let commands = commands.map(|one| one.split_whitespace().collect::<Vec<_>>().join(" "));
    commands.filter(|one| one.starts_with("vblk ")).collect()
}

#[test]
fn every_line_of_every_help_fits_and_every_example_parses() {
    let mut seen = 0;
    for (name, command) in commands() {
        let Some(help) = command.get_after_help().map(ToString::to_string) else {
            continue;
        };
        let rendered = command.clone().term_width(80).render_help().to_string();
        for line in help.lines() {
            assert!(line.chars().count() <= 78, "{name}: {line}");
            assert!(
                rendered.lines().any(|shown| shown == line),
                "{name}: {line} is wrapped"
            );
        }
        for example in examples(&help) {
            // The file would have to be there.
            let example = example.replace("toml:disk.toml", "raw:disk.img");
            let words = example.split(' ').map(OsString::from);
            for line in groups::split(words) {
                let parsed = Cli::try_parse_from(&line);
                assert!(parsed.is_ok(), "{name}: {example}: {:?}", parsed.err());
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen} examples");
}

#[test]
fn every_subcommand_says_what_it_does() {
    for (name, command) in commands() {
        assert!(command.get_about().is_some(), "{name}");
        for argument in command.get_arguments() {
            assert!(
                argument.get_help().is_some(),
                "{name} {}",
                argument.get_id()
            );
        }
    }
}
