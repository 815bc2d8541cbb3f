// Copyright 2026 The vblk Authors.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Texts of others in messages and in the commands that messages name.

/// A text with nothing in it that a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if is_plain(char) {
            out.push(char);
        } else {
            out.extend(char.escape_default());
        }
    }
    out
}

/// A text as one word for a shell: in quotes if it needs them. What a terminal would obey is written as an escape of
/// `$'…'`, which bash and other newer shells know.
pub(crate) fn shell_word(text: &str) -> String {
    let is_bare = |char: char| char.is_ascii_alphanumeric() || "_-./:@%+=,".contains(char);
    if !text.is_empty() && text.chars().all(is_bare) {
        return text.to_owned();
    }
    if text.chars().all(is_plain) {
        return format!("'{}'", text.replace('\'', "'\\''"));
    }
    let mut out = String::from("$'");
    for char in text.chars() {
        match char {
            '\'' | '\\' => out.extend(['\\', char]),
            _ if is_plain(char) => out.push(char),
            _ => {
                let mut bytes = [0; 4];
                let bytes = char.encode_utf8(&mut bytes).bytes();
                out.extend(bytes.map(|byte| format!("\\x{byte:02x}")));
            }
        }
    }
    out.push('\'');
    out
}

/// Whether a character stands for itself: no control character, and none that changes the direction or joins others.
fn is_plain(char: char) -> bool {
    char == ' ' || char.is_ascii_graphic() || !char.is_ascii() && char.is_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_what_the_shell_makes_of_it() {
        for text in [
            "client.17",
            "a b",
            "",
            "it's",
            "$(reboot)",
            "`x`",
            "\x1b[2J",
            "a\n'\\b",
            "\u{202e}x",
            "\u{e9}",
        ] {
            let word = shell_word(text);
            assert!(word.chars().all(is_plain), "{word:?}");
            let script = format!("printf '%s.' {word}");
            let mut shell = std::process::Command::new("bash");
            let said = shell.args(["-c", &script]).env("LC_ALL", "C").output();
            assert_eq!(
                said.unwrap().stdout,
                format!("{text}.").into_bytes(),
                "{word}"
            );
        }
        assert_eq!(shell_word("client.17"), "client.17");
    }

    #[test]
    fn what_a_terminal_obeys_is_escaped() {
        assert_eq!(printable("\x1b[2J\u{202e}\n"), "\\u{1b}[2J\\u{202e}\\n");
        assert_eq!(printable("10.0.0.1:0/99"), "10.0.0.1:0/99");
    }
}
